"""A model between two stages: a folder as `transformers` writes it, with its tokenizer.

``config.json``, ``model.safetensors`` (or shards and their index), ``tokenizer.json`` and
``tokenizer_config.json``. A folder appears under its name once it is whole, or not at all. What
comes from elsewhere is read in the same way: Qwen2, Qwen3, Llama and Mistral folders, and GGUF
files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer

from selm_export import hub, tokenizer_config
from selm_export.errors import RecipeError
from selm_export.modeling.model import SelmForCausalLM, register
from selm_export.tokenizer_config import TokenizerConfig

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    model: SelmForCausalLM  # float32, not in training mode
    tokenizer: Tokenizer
    tokenizer_config: TokenizerConfig = field(default_factory=TokenizerConfig)


def load(path: Path) -> Checkpoint:
    """A folder's model, or that of a GGUF file. Takes as much memory as the weights in float32,
    and one tensor more; raises RecipeError that names the file, what is wrong and what to do."""
    if path.is_file():
        from selm_export.gguf_export import read_gguf

        return read_gguf(path)
    if not (path / "config.json").is_file():
        raise RecipeError(path, "holds no model (no config.json)", "Name a model's folder")
    register()
    config = hub.read_config(path)
    tokenizer = hub.read_tokenizer(path, config)
    # Stages before tokenizer_config.json was written left models of our own without one.
    known = (path / tokenizer_config.FILE).is_file() or config.from_hub
    said = tokenizer_config.read(path, tokenizer) if known else tokenizer_config.own(tokenizer)
    return Checkpoint(path, hub.read_weights(path, config.model), tokenizer, said)


def save(
    path: Path, model: SelmForCausalLM, tokenizer: Tokenizer, config: TokenizerConfig | None = None
) -> None:
    """Fills ``path`` with the model; what an earlier run left of one there is replaced.
    ``config``: of the checkpoint that the tokenizer is from; of a model trained here, if not given.
    """
    path.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(dir=path, prefix="writing-"))
    try:
        model.save_pretrained(writing)
        tokenizer.save(str(writing / TOKENIZER))
        tokenizer_config.write(writing, config or tokenizer_config.own(tokenizer), tokenizer)
        _take_place(writing, path)
    except (OSError, SafetensorError) as problem:
        cause = f"it could not be written ({problem})"
        raise RecipeError(
            path, cause, "Free space on the disk, or name another folder"
        ) from problem
    finally:
        shutil.rmtree(writing)


def _take_place(writing: Path, path: Path) -> None:
    """Without the configuration there is no model here, so it goes first and comes last."""
    new = sorted(writing.iterdir(), key=lambda file: file.name == hub.CONFIG)
    (path / hub.CONFIG).unlink(missing_ok=True)
    for old in [*path.glob("model*.safetensors*"), path / tokenizer_config.TEMPLATE_FILE]:
        old.unlink(missing_ok=True)  # shards of a model that was cut in others
    for file in new:
        file.replace(path / file.name)


def same_tokenizer(checkpoints: Sequence[Checkpoint]) -> None:
    """Experts of one ensemble speak the same tokens: raises RecipeError that names both folders
    and the first token that differs."""
    for other in checkpoints[1:]:
        first, different = checkpoints[0], _difference(checkpoints[0].tokenizer, other.tokenizer)
        if different is not None:
            cause = f"its tokenizer is not that of {first.path}: {different}"
            raise RecipeError(
                other.path, cause, "Take experts that were trained from the same base model"
            )


def _difference(a: Tokenizer, b: Tokenizer) -> str | None:
    for i in range(max(a.get_vocab_size(), b.get_vocab_size())):
        left, right = b.id_to_token(i), a.id_to_token(i)
        if left != right:
            return f"token {i} is {left!r} here and {right!r} there"
    return None if _rules(a) == _rules(b) else "the tokens are the same, but not how text is cut"


def _rules(tokenizer: Tokenizer) -> list[Any]:
    spec = json.loads(tokenizer.to_str())
    added = {token["id"]: token["special"] for token in spec["added_tokens"]}
    return [spec["model"].get("merges"), spec["pre_tokenizer"], spec["normalizer"], added]
