"""What a tokenizer does not say itself: the chat template and which tokens begin and end a text.

In a folder: ``tokenizer_config.json`` and ``chat_template.jinja``, as `transformers` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from selm_export.data.chat import CHAT_TEMPLATE, END_OF_TEXT, TURN_END
from selm_export.errors import RecipeError

FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
AGAIN = "Copy the folder again, or save it again with transformers"
# Tokens with which published models end a turn; one of them stands in the template.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class TokenizerConfig:
    """Ids of tokens, None where there is none: ``eos`` ends a text, ``eot`` a turn of a chat;
    ``bos`` stands before every text if ``add_bos``."""

    chat_template: str | None = None
    eos: int | None = None
    eot: int | None = None
    bos: int | None = None
    pad: int | None = None
    add_bos: bool = False
    add_eos: bool = False


def own(tokenizer: Tokenizer) -> TokenizerConfig:
    """That of the models that are trained here: plain ChatML, nothing before a text."""
    end, text = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    return TokenizerConfig(CHAT_TEMPLATE, eos=end, eot=end, bos=text, pad=text)


def read_json(path: Path) -> dict[str, Any]:
    """Of an object; what is no JSON is told with its place."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise RecipeError(path, f"cannot be read as JSON ({problem})", AGAIN) from problem
    if not isinstance(found, dict):
        raise RecipeError(path, "holds no JSON object", AGAIN)
    return found


def read(folder: Path, tokenizer: Tokenizer) -> TokenizerConfig:
    """What the folder says; ids that ``tokenizer_config.json`` does not name are taken from
    ``generation_config.json`` and ``config.json``."""
    said = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    template = _template(folder, said)
    bos = next(_ids(folder, said, tokenizer, "bos"), None)
    eos = next(_ids(folder, said, tokenizer, "eos"), None)
    puts = tokenizer.encode("a").ids  # what the tokenizer itself puts around a text
    return TokenizerConfig(
        chat_template=template,
        eos=eos,
        eot=_turn_end(template, tokenizer),
        bos=bos,
        pad=next(_ids(folder, said, tokenizer, "pad"), None),
        add_bos=_added(said, "add_bos_token", bos, puts[:1]),
        add_eos=_added(said, "add_eos_token", eos, puts[-1:]),
    )


def _added(said: dict[str, Any], key: str, token: int | None, put: list[int]) -> bool:
    if token is None:
        return False
    asked = said.get(key)
    return asked if isinstance(asked, bool) else put == [token]


def _template(folder: Path, said: dict[str, Any]) -> str | None:
    """A file of its own, else a text or a list of named ones in ``tokenizer_config.json``."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = said.get("chat_template")
    if isinstance(found, list):
        found = next((x["template"] for x in found if x.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _ids(folder: Path, said: dict[str, Any], tokenizer: Tokenizer, name: str) -> Iterator[int]:
    token = said.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
        found = tokenizer.token_to_id(token)
        if found is None:
            cause = f'names the {name}_token "{token}", which tokenizer.json does not have'
            raise RecipeError(folder / FILE, cause, AGAIN)
        yield found
    for file in ("generation_config.json", "config.json"):
        if (folder / file).is_file():
            ids = read_json(folder / file).get(f"{name}_token_id")
            for found in ids if isinstance(ids, list) else [ids]:
                if isinstance(found, int) and tokenizer.id_to_token(found) is not None:
                    yield found


def _turn_end(template: str | None, tokenizer: Tokenizer) -> int | None:
    ends = (end for end in TURN_ENDS if template is not None and end in template)
    return next((i for i in map(tokenizer.token_to_id, ends) if i is not None), None)


def write(folder: Path, config: TokenizerConfig, tokenizer: Tokenizer) -> None:
    """So that ``AutoTokenizer`` and ``read`` find it."""
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": config.add_bos,
        "add_eos_token": config.add_eos,
    }
    for name in ("eos", "bos", "pad"):
        token = getattr(config, name)
        if token is not None:
            said[f"{name}_token"] = tokenizer.id_to_token(token)
    if config.chat_template is not None:
        said["chat_template"] = config.chat_template
    (folder / FILE).write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")
