"""The static embedder in plain numpy: what a text's vector is, and its file.

A text's vector is the sum of its tokens' rows, of length 1. Tokens are those of BERT's uncased
WordPiece tokenizer, without [CLS] and [SEP]; unknown ones are left out. This is the reference that
the C++ core is held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from selm_export.embedding.teacher import NO_TEXT, Floats
from selm_export.errors import RecipeError
from selm_export.gguf_file import FILE_TYPES, Label, open_file, whole_file, write_label

ARCHITECTURE = "selm-embedder"
TENSOR = "token_embd.weight"
UNKNOWN, LONGEST_WORD = "[UNK]", 100
AGAIN = "Write it again: selm-export embedder"
TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in (
    "f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
)}  # fmt: skip


def wordpiece(tokens: Sequence[str]) -> Tokenizer:
    """BERT's uncased tokenizer over these tokens, without special ones around a text."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


class StaticEmbedder:
    """``rows`` [len(tokens), dim], with the tokens' weights folded in."""

    def __init__(self, tokens: Sequence[str], rows: Floats) -> None:
        self.tokens, self.rows = list(tokens), rows
        self._tokenizer = wordpiece(tokens)
        self._unknown = self.tokens.index(UNKNOWN)

    @property
    def dim(self) -> int:
        return int(self.rows.shape[1])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text's known tokens."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[i for i in each.ids if i != self._unknown] for each in found]

    def embed(self, texts: Sequence[str]) -> Floats:
        """[len(texts), dim], each of length 1; zeros for a text without a known token."""
        found = np.zeros((len(texts), self.dim), np.float32)
        for i, ids in enumerate(self.ids(texts)):
            total = self.rows[ids].sum(0, dtype=np.float64)
            length = np.sqrt((total**2).sum())
            if length > 0:
                found[i] = total / length
        return found


def write(path: Path, embedder: StaticEmbedder, label: Label, source: str, kind: str) -> None:
    """The embedder's GGUF file, whole or not at all; ``kind`` is a key of ``TYPES``."""
    tokens = embedder.tokens
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for i, token in enumerate(tokens):
        if token in NO_TEXT:
            unknown = token == UNKNOWN
            types[i] = gguf.TokenType.UNKNOWN if unknown else gguf.TokenType.CONTROL
    with whole_file(path, ARCHITECTURE) as writer:
        write_label(writer, label)
        writer.add_string("general.source", source)
        writer.add_file_type(FILE_TYPES[TYPES[kind]])
        writer.add_embedding_length(embedder.dim)
        writer.add_uint32(f"{ARCHITECTURE}.max_word_characters", LONGEST_WORD)
        writer.add_tokenizer_model("bert")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_unk_token_id(tokens.index(UNKNOWN))
        data = gguf.quants.quantize(embedder.rows, TYPES[kind])
        writer.add_tensor(TENSOR, data, raw_dtype=TYPES[kind])


def read(path: Path) -> StaticEmbedder:
    """The embedder of a file, its rows as floats. Raises RecipeError for any other file."""
    reader = open_file(path, AGAIN)
    architecture = reader.fields.get("general.architecture")
    if architecture is None or architecture.contents() != ARCHITECTURE:
        raise RecipeError(path, f"is no file of the architecture {ARCHITECTURE}", AGAIN)
    field = reader.fields.get("tokenizer.ggml.tokens")
    tensor = next((t for t in reader.tensors if t.name == TENSOR), None)
    if field is None or tensor is None:
        raise RecipeError(path, f"lacks its tokens or {TENSOR}", AGAIN)
    tokens = [str(token) for token in field.contents()]
    rows = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    if rows.ndim != 2 or len(rows) != len(tokens) or UNKNOWN not in tokens:
        raise RecipeError(path, f"has {len(tokens)} tokens and rows {rows.shape}", AGAIN)
    return StaticEmbedder(tokens, rows)
