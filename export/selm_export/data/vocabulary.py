"""The tokenizer: byte-level BPE with Qwen2's pre-tokenizer, one digit at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from selm_export import pretokenizers
from selm_export.data.chat import END_OF_TEXT, SPECIAL_TOKENS, TURN_END, Conversation, render
from selm_export.errors import RecipeError


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pretokenizers.build(pretokenizers.CUTS["qwen2"])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_vocabulary(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of exactly ``size`` tokens, unless the texts hold too few pairs."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_vocabulary(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them the assistant has to produce."""
    ids: list[int] = []
    reply: list[bool] = []
    for piece in render(conversation):
        found = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids.extend(found)
        reply.extend([piece.reply] * len(found))
    return ids, reply


def speaks_chatml(tokenizer: Tokenizer) -> bool:
    """Whether it has the tokens that conversations are written with here (Qwen's have)."""
    return all(tokenizer.token_to_id(token) is not None for token in SPECIAL_TOKENS)


def _special(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise RecipeError(
            "the tokenizer", f"has no token {token}, with which conversations are written",
            "Train a model whose chats are ChatML, as Qwen's; export others as they are",
        )  # fmt: skip
    return int(found)


def end_of_turn(tokenizer: Tokenizer) -> int:
    return _special(tokenizer, TURN_END)


def end_of_text(tokenizer: Tokenizer) -> int:
    return _special(tokenizer, END_OF_TEXT)
