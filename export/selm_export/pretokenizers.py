"""How byte-level BPE cuts text into words: the expressions of published tokenizers and the names
that GGUF files (``tokenizer.ggml.pre``) have for them.

The expressions are those that the models' own ``tokenizer.json`` files state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = rf"{_CONTRACTIONS}|{_PREFIX}\p{{L}}+|\p{{N}}|{_SYMBOLS}|{_SPACES}"
LLAMA3 = rf"{_CONTRACTIONS}|{_PREFIX}\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
TEKKEN = (
    rf"{_PREFIX}{_CAPITALS}*{_SMALL}+|{_PREFIX}{_CAPITALS}+{_SMALL}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
O200K = (
    rf"{_PREFIX}{_CAPITALS}*{_SMALL}+{_CONTRACTIONS}?|{_PREFIX}{_CAPITALS}+{_SMALL}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
DIGIT = r"\p{N}"


@dataclass(frozen=True)
class Cut:
    """Each expression cuts the pieces that the one before it left: every match is a piece.
    ``ignore_merges``: a piece that is a token as it stands needs no merges."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False


CUTS = {
    "qwen2": Cut((QWEN2,)),
    "llama-bpe": Cut((LLAMA3,), ignore_merges=True),
    "smaug-bpe": Cut((LLAMA3,)),
    "gpt-2": Cut((GPT2,)),
    "smollm": Cut((DIGIT, GPT2)),
    "tekken": Cut((TEKKEN,), ignore_merges=True),
    "gpt-4o": Cut((O200K,)),
    "deepseek-coder": Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT)),
}
# Names that other converters give to files which are cut in the same way.
ALSO = {
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "smaug-bpe": ("dbrx", "glm4", "chatglm-bpe"),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "minerva-7b"),
}


def cut_of(name: str) -> Cut | None:
    """What a file means by this ``tokenizer.ggml.pre``; None: unknown here."""
    known = name if name in CUTS else next((k for k, v in ALSO.items() if name in v), None)
    return None if known is None else CUTS[known]


def name_of(stages: Mapping[str, Any] | None, ignore_merges: bool) -> str | None:
    """``stages``: what ``tokenizer.json`` says under ``pre_tokenizer``."""
    expressions = _expressions(stages)
    if expressions is None:
        return None
    cut = Cut(expressions, ignore_merges)
    return next((name for name, known in CUTS.items() if known == cut), None)


def _expressions(stages: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    if stages is None:
        return None
    parts = stages["pretokenizers"] if stages["type"] == "Sequence" else [stages]
    found: list[str] = []
    for part in parts[:-1]:
        expression = _expression(part)
        if expression is None:
            return None
        found.append(expression)
    last = parts[-1] if parts else {"type": None}
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    return (*found, GPT2) if last.get("use_regex", True) else tuple(found)


def _expression(part: Mapping[str, Any]) -> str | None:
    if part["type"] == "Digits" and part.get("individual_digits"):
        return DIGIT
    if part["type"] != "Split":
        return None
    # To remove what is not a match is to keep the matches, where every character is in one.
    way = (part["behavior"], bool(part.get("invert")))
    if way not in (("Isolated", False), ("Removed", True)):
        return None
    expression: str | None = part["pattern"].get("Regex")
    # Some write the control characters themselves.
    return expression and expression.replace("\r", r"\r").replace("\n", r"\n")


def build(cut: Cut) -> pre_tokenizers.Sequence:
    """The same for the `tokenizers` package."""
    splits = [pre_tokenizers.Split(Regex(e), "isolated") for e in cut.expressions]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
