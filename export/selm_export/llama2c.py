"""Convert a llama2.c model to GGUF.

    python -m selm_export.llama2c stories260K.bin tokenizer.bin stories260K.gguf --type f16

Reads llama2.c's legacy ("version 0") format: seven int32 (dim, hidden_dim, layers, heads,
kv_heads, vocabulary, context; a negative vocabulary means a head of its own) and float32 weights
in the order of `Header.weights`; and its tokenizer.bin: an int32, then score, length and bytes of
each token. llama2.c rotates adjacent pairs, as GGUF's `llama` does, so no row moves.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

EPSILON = 1e-5  # llama2.c's rmsnorm
FIRST_BYTE = 3  # tokens 3 to 258 stand for bytes
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


class ConversionError(Exception):
    """A file that is not what it should be: says which, where and why."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")


@dataclass(frozen=True)
class Header:
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    shared_head: bool

    @property
    def head_size(self) -> int:
        return self.dim // self.heads

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """GGUF name and shape, in file order; `{}` is the layer, which the first axis counts."""
        kv = self.kv_heads * self.head_size
        yield "token_embd", (self.vocabulary, self.dim)
        yield "blk.{}.attn_norm", (self.layers, self.dim)
        yield "blk.{}.attn_q", (self.layers, self.dim, self.dim)
        yield "blk.{}.attn_k", (self.layers, kv, self.dim)
        yield "blk.{}.attn_v", (self.layers, kv, self.dim)
        yield "blk.{}.attn_output", (self.layers, self.dim, self.dim)
        yield "blk.{}.ffn_norm", (self.layers, self.dim)
        yield "blk.{}.ffn_gate", (self.layers, self.hidden, self.dim)
        yield "blk.{}.ffn_down", (self.layers, self.dim, self.hidden)
        yield "blk.{}.ffn_up", (self.layers, self.hidden, self.dim)
        yield "output_norm", (self.dim,)
        yield "", (2, self.context, self.head_size // 2)  # cosines and sines, which we compute
        if not self.shared_head:
            yield "output", (self.vocabulary, self.dim)


def read_header(path: Path, data: bytes) -> Header:
    if len(data) < 28:
        raise ConversionError(path, f"{len(data)} bytes are too few for a llama2.c model")
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", data)
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocabulary), context)
    if min(sizes) < 1 or max(sizes) > 1 << 24 or dim % heads or heads % kv_heads:
        raise ConversionError(path, f"not a legacy llama2.c model: its header says {sizes}")
    return Header(*sizes, shared_head=vocabulary > 0)


def read_model(path: Path) -> tuple[Header, dict[str, npt.NDArray[np.float32]]]:
    """The header, and the weights by GGUF name, [rows, columns] or [columns]."""
    data = path.read_bytes()
    header = read_header(path, data)
    shapes = list(header.weights())
    expected = 28 + 4 * sum(int(np.prod(shape, dtype=object)) for _, shape in shapes)
    if len(data) != expected:
        raise ConversionError(path, f"{len(data)} bytes where its header asks for {expected}")
    values, at = np.frombuffer(data, "<f4", offset=28), 0
    tensors = {}
    for name, shape in shapes:
        part = values[at : at + int(np.prod(shape))].reshape(shape)
        at += part.size
        if "{}" in name:
            tensors.update({f"{name.format(i)}.weight": part[i] for i in range(header.layers)})
        elif name:
            tensors[f"{name}.weight"] = part
    return header, tensors


def read_tokens(path: Path, count: int) -> list[tuple[bytes, float]]:
    """Bytes and score of each token."""
    data, at = path.read_bytes(), 4
    tokens: list[tuple[bytes, float]] = []
    while len(tokens) < count:
        if at + 8 > len(data):
            raise ConversionError(path, f"ends after {len(tokens)} tokens of {count}")
        score, length = struct.unpack_from("<fi", data, at)
        text = data[at + 8 : at + 8 + length]
        if length < 0 or len(text) != length:
            raise ConversionError(path, f"at byte {at}: a token of {length} bytes does not fit")
        tokens.append((text, score))
        at += 8 + length
    return tokens


def vocabulary(tokens: list[tuple[bytes, float]]) -> tuple[list[bytes], list[int]]:
    """Texts and types as SentencePiece has them: `▁` for a space, bare names for BOS and EOS."""
    texts = [b"<unk>", b"<s>", b"</s>"]
    types = [UNKNOWN, CONTROL, CONTROL]
    for token, (text, _) in enumerate(tokens[FIRST_BYTE:], FIRST_BYTE):
        is_byte = token < FIRST_BYTE + 256
        texts.append(text if is_byte else text.replace(b" ", "▁".encode()))
        types.append(BYTE if is_byte else NORMAL)
    return texts, types


def write(
    output: Path,
    header: Header,
    tensors: dict[str, npt.NDArray[np.float32]],
    tokens: list[tuple[bytes, float]],
    *,
    name: str,
    half: bool,
) -> None:
    texts, types = vocabulary(tokens)
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_name(name)
    writer.add_file_type(1 if half else 0)
    writer.add_context_length(header.context)
    writer.add_embedding_length(header.dim)
    writer.add_block_count(header.layers)
    writer.add_feed_forward_length(header.hidden)
    writer.add_head_count(header.heads)
    writer.add_head_count_kv(header.kv_heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(header.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(header.vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([score for _, score in tokens])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    for tensor_name, value in tensors.items():
        matrix: np.ndarray[Any, Any] = value
        if half and value.ndim == 2:
            matrix = value.astype(np.float16)
        writer.add_tensor(tensor_name, np.ascontiguousarray(matrix))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(model: Path, tokenizer: Path, output: Path, *, kind: str = "f32") -> None:
    """Writes `output`. Raises ConversionError for files that are not what they should be."""
    header, tensors = read_model(model)
    tokens = read_tokens(tokenizer, header.vocabulary)
    write(output, header, tensors, tokens, name=model.stem, half=kind == "f16")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m selm_export.llama2c", description="Convert a llama2.c model to GGUF."
    )
    parser.add_argument("model", type=Path, help="llama2.c's model.bin (legacy format)")
    parser.add_argument("tokenizer", type=Path, help="llama2.c's tokenizer.bin")
    parser.add_argument("output", type=Path, help="the GGUF file to write")
    parser.add_argument("--type", choices=["f32", "f16"], default="f32", help="of the matrices")
    options = parser.parse_args(arguments)
    try:
        convert(options.model, options.tokenizer, options.output, kind=options.type)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
