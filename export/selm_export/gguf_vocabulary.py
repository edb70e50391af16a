"""A tokenizer as the keys ``tokenizer.`` of a GGUF file, and back.

Byte-level BPE is ``gpt2`` with the name of its cut in ``tokenizer.ggml.pre``; a BPE made from a
SentencePiece model is ``llama``, whose tokens have scores instead of merges. The format (keys,
kinds of tokens) is described in ggml's docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from selm_export import pretokenizers
from selm_export.errors import RecipeError
from selm_export.tokenizer_config import TokenizerConfig, own

Kind = gguf.TokenType
SPACE = "▁"
BYTES = [f"<0x{i:02X}>" for i in range(256)]
OTHER = "Give a model whose tokenizer is of Qwen, Llama, SmolLM, GPT-2 or Mistral"
AGAIN = "Convert the model again from the folder that it was made from"


def check(tokenizer: Tokenizer, where: Path | str) -> None:
    """Raises RecipeError where a GGUF file could not say how this tokenizer works."""
    _flavour(json.loads(tokenizer.to_str()), where)


def _flavour(spec: Mapping[str, Any], where: Path | str) -> tuple[str, str, bool]:
    """``tokenizer.ggml.model``, ``.pre`` and whether a space is put before a text."""
    model = spec["model"]
    if model["type"] != "BPE":
        raise RecipeError(where, f"its model is {model['type']}, not BPE", OTHER)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise RecipeError(where, f"its BPE has a {key}, for which GGUF has no key", OTHER)
    if model.get("byte_fallback"):
        return "llama", "default", _space_prefix(spec, where)
    normalizer = spec.get("normalizer")
    # NFC (Qwen) cannot be said in a file: text that is not composed is read as it stands.
    if normalizer is not None and normalizer["type"] != "NFC":
        raise RecipeError(where, f"its normalizer is {normalizer['type']}, not NFC or none", OTHER)
    pre = pretokenizers.name_of(spec["pre_tokenizer"], bool(model.get("ignore_merges")))
    if pre is None:
        cut = json.dumps(spec["pre_tokenizer"], ensure_ascii=False)
        cause = f"it cuts text into words in a way that has no name in GGUF files: {cut}"
        raise RecipeError(where, cause, OTHER)
    return "gpt2", pre, False


def _space_prefix(spec: Mapping[str, Any], where: Path | str) -> bool:
    """SentencePiece's spaces: written by a normalizer, or by a pre-tokenizer that never cuts."""
    normalizer, pre = spec.get("normalizer"), spec.get("pre_tokenizer")
    if normalizer is None and pre is not None and pre["type"] == "Metaspace" and not pre["split"]:
        return bool(pre["prepend_scheme"] != "never")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    known: list[dict[str, Any]] = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    if pre is None and steps in (known, known[1:]):
        return steps == known
    raise RecipeError(where, "it does not write spaces as SentencePiece models do", OTHER)


def token_kinds(spec: Mapping[str, Any], size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Texts and kinds by id; ids without a token are ``[PADi]``."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [Kind.UNUSED] * size
    bytes_too = set(BYTES) if spec["model"].get("byte_fallback") else set()
    for token, i in spec["model"]["vocab"].items():
        tokens[i], kinds[i] = token, Kind.BYTE if token in bytes_too else Kind.NORMAL
    for token in spec["added_tokens"]:
        i = token["id"]
        tokens[i], kinds[i] = token["content"], Kind.USER_DEFINED
        if token["special"]:
            kinds[i] = Kind.CONTROL
    unknown = spec["model"].get("unk_token")
    if unknown is not None and bytes_too:
        kinds[tokens.index(unknown)] = Kind.UNKNOWN
    return tokens, kinds


def pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """Merges of ``tokenizer.json``, which are pairs or (before 2024) texts "a b"."""
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in merges]  # type: ignore[misc]


def scores(spec: Mapping[str, Any], tokens: list[str], where: Path | str) -> list[float]:
    """Of a SentencePiece model: the token that is merged first has the highest.

    Readers merge any two neighbours whose joined text is a token, so every way to put a token
    together must be among the merges, as it is where they were made from such a model.
    """
    merges = pairs(spec["model"]["merges"])
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    known, vocabulary = set(merges), spec["model"]["vocab"]
    added = {token["content"] for token in spec["added_tokens"]}
    for token in vocabulary:
        if token in added or token in BYTES:
            continue
        for i in range(1, len(token)):
            halves = (token[:i], token[i:])
            plain = all(half in vocabulary and half not in added for half in halves)
            if plain and halves not in known:
                cause = f"{halves[0]!r} and {halves[1]!r} are tokens and so is their whole, but no"
                raise RecipeError(
                    where, f"{cause} merge: it was not made from a SentencePiece model", OTHER
                )
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def write_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, size: int,
    config: TokenizerConfig | None = None, where: Path | str = "the tokenizer",
) -> None:  # fmt: skip
    """``size``: rows of the embedding, at least as many as there are tokens. ``config``: that of a
    model trained here, if none is given."""
    config = config or own(tokenizer)
    spec = json.loads(tokenizer.to_str())
    model, pre, space_prefix = _flavour(spec, where)
    tokens, kinds = token_kinds(spec, size)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if model == "llama":
        writer.add_token_scores(scores(spec, tokens, where))
        writer.add_add_space_prefix(space_prefix)
        if Kind.UNKNOWN in kinds:
            writer.add_unk_token_id(kinds.index(Kind.UNKNOWN))
    else:
        writer.add_token_merges([" ".join(pair) for pair in pairs(spec["model"]["merges"])])
    writer.add_token_types(kinds)
    add: dict[str, Callable[[int], None]] = {
        "eos": writer.add_eos_token_id, "eot": writer.add_eot_token_id,
        "pad": writer.add_pad_token_id, "bos": writer.add_bos_token_id,
    }  # fmt: skip
    for name, add_id in add.items():
        if (token := getattr(config, name)) is not None:
            add_id(token)
    writer.add_add_bos_token(config.add_bos)
    if config.add_eos:
        writer.add_add_eos_token(True)
    if config.chat_template is not None:
        writer.add_chat_template(config.chat_template)


# ---- Back ----------------------------------------------------------------------------------------


def read_vocabulary(reader: gguf.GGUFReader, path: Path) -> tuple[Tokenizer, TokenizerConfig]:
    """The tokenizer of a file as the `tokenizers` package has it."""

    def get(key: str, *default: Any) -> Any:
        field = reader.get_field(f"tokenizer.{key}")
        if field is None and not default:
            raise RecipeError(path, f"it has no key tokenizer.{key}", AGAIN)
        return default[0] if field is None else field.contents()

    tokens = get("ggml.tokens")
    kinds = [Kind(kind) for kind in get("ggml.token_type", [Kind.NORMAL] * len(tokens))]
    model, spm = get("ggml.model"), get("ggml.model") == "llama"
    if spm:
        tokenizer = _sentencepiece(tokens, kinds, get)
    elif model == "gpt2":
        tokenizer = _byte_level(tokens, kinds, get, path)
    else:
        raise RecipeError(path, f"its tokenizer is {model}, not gpt2 or llama", OTHER)
    for added, special in ((Kind.CONTROL, True), (Kind.USER_DEFINED, False)):
        texts = [t for t, kind in zip(tokens, kinds, strict=True) if kind == added]
        given = [AddedToken(text, special=special, normalized=False) for text in texts]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(given)
    first, last = (1, 2) if spm else (None, None)
    bos, eos = get("ggml.bos_token_id", first), get("ggml.eos_token_id", last)
    ignores = not spm and tokenizer.model.ignore_merges
    config = TokenizerConfig(
        chat_template=get("chat_template", None),
        eos=eos,
        eot=get("ggml.eot_token_id", None),
        bos=bos,
        pad=get("ggml.padding_token_id", None),
        add_bos=bos is not None and get("ggml.add_bos_token", spm or ignores),
        add_eos=eos is not None and get("ggml.add_eos_token", False),
    )
    if config.add_bos:
        begin = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, bos)]
        )
    return tokenizer, config


def _byte_level(
    tokens: list[str], kinds: list[Any], get: Callable[..., Any], path: Path
) -> Tokenizer:
    pre = get("ggml.pre", "default")
    cut = pretokenizers.cut_of(pre)
    if cut is None:
        cause = f"it cuts text into words as {pre!r}, which is unknown here"
        raise RecipeError(path, cause, OTHER)
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != Kind.UNUSED
    }
    merges = pairs(get("ggml.merges", []))
    model = models.BPE(vocabulary, merges, ignore_merges=cut.ignore_merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pretokenizers.build(cut)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: list[str], kinds: list[Any], get: Callable[..., Any]) -> Tokenizer:
    values = get("ggml.scores")
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != Kind.UNUSED
    }
    plain = {t: i for t, i in vocabulary.items() if kinds[i] == Kind.NORMAL}
    found = [
        (-values[i], plain[token[:n]], plain[token[n:]], token[:n], token[n:])
        for token, i in plain.items()
        for n in range(1, len(token))
        if token[:n] in plain and token[n:] in plain
    ]
    merges = [(left, right) for *_, left, right in sorted(found)]
    unknown = next((t for t, i in vocabulary.items() if kinds[i] == Kind.UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    ends: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
    ]  # fmt: skip
    if get("ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
        ends.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer
