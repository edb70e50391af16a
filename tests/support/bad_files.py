"""The broken, hostile and foreign files that `test_bad_files.py` opens, each made from a good one.

A case is a name, what is done to the parts of the good file, and a pattern that the message must
match. `has_offset` says whether the fault has a place in the file that the error must name.
"""

from __future__ import annotations

import math
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.gguf_files import CONFIGS, write_model
from support.raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    U8,
    U16,
    U32,
    U64,
    RawFile,
    Tensor,
    array,
    text,
)

Change = Callable[[RawFile], RawFile | bytes | None]
TOKENS = "tokenizer.ggml.tokens"
N_VOCAB = 352


@dataclass(frozen=True)
class Case:
    change: Change
    message: str
    has_offset: bool | None = None  # None: either will do
    unsupported: bool | None = False


def header(**parts: int | bytes) -> Change:
    def change(raw: RawFile) -> None:
        for name, value in parts.items():
            setattr(raw, name, value)

    return change


def key(name: str, kind: int, value: object) -> Change:
    return lambda raw: raw.set(name, kind, value)


def encoded(name: bytes, kind: int, value: bytes) -> Change:
    """A key of any type and bytes, after the good ones."""
    return lambda raw: raw.more_keys.append((name, kind, value))


def dropped(name: str) -> Change:
    return lambda raw: raw.drop(name)


def tensor(name: str, **parts: object) -> Change:
    def change(raw: RawFile) -> None:
        for part, value in parts.items():
            setattr(raw.tensor(name), part, value)

    return change


def extra_tensor(name: bytes, dims: list[int], kind: int, data: bytes = b"") -> Change:
    return lambda raw: raw.tensors.append(Tensor(name, dims, kind, data))


def in_tokens(index: int, value: bytes | str) -> Change:
    """Another text for one token."""

    def change(raw: RawFile) -> None:
        kind, data = raw.keys[TOKENS.encode()]
        count, at, values = struct.unpack_from("<Q", data, 4)[0], 12, []
        for _ in range(count):
            length = struct.unpack_from("<Q", data, at)[0]
            values.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        values[index] = value
        raw.keys[TOKENS.encode()] = (kind, array(STRING, values))

    return change


def only(*tensors: Tensor) -> Change:
    def change(raw: RawFile) -> None:
        raw.tensors = list(tensors)

    return change


def swap_first_two(raw: RawFile) -> None:
    """The directory's order is not the data's."""
    first, second = raw.tensors[0], raw.tensors[1]
    first.offset, second.offset = len(raw.padded(first.data)), 0


HEADER = {
    "empty": Case(lambda _: b"", "empty", None),
    "one-byte": Case(lambda _: b"G", "ends|GGUF", None),
    "magic": Case(header(magic=b"GGML"), "GGUF", True),
    "text": Case(lambda _: b"This is not a model at all.", "GGUF", True),
    "html": Case(lambda _: b"<!DOCTYPE html><html></html>", "GGUF", True),
    "zip": Case(lambda _: b"PK\x03\x04" + bytes(60), "GGUF", True),
    "safetensors": Case(lambda _: struct.pack("<Q", 2) + b"{}" + bytes(8), "GGUF", True),
    "version-0": Case(header(version=0), "version 0", True),
    "version-1": Case(header(version=1), "version 1", True, unsupported=True),
    "version-4": Case(header(version=4), "version 4", True, unsupported=True),
    "version-big": Case(header(version=2**31 - 1), "version", True, unsupported=True),
    "big-endian": Case(header(version=3 << 24), "endian", True, unsupported=True),
    "many-keys": Case(header(n_keys=2**40), "do(es)? not fit|ends", True),
    "most-keys": Case(header(n_keys=2**64 - 1), "do(es)? not fit|ends", True),
    "one-key-more": Case(header(n_keys=10**6), "do(es)? not fit|ends", True),
    "many-tensors": Case(header(n_tensors=2**40), "do(es)? not fit|ends", True),
    "most-tensors": Case(header(n_tensors=2**64 - 1), "do(es)? not fit|ends", True),
    "negative-tensors": Case(header(n_tensors=2**63), "do(es)? not fit|ends", True),
}
METADATA = {
    "empty-key": Case(encoded(b"", U32, bytes(4)), "key", True),
    "long-key": Case(encoded(b"k" * 65536, U32, bytes(4)), "key", True),
    "huge-key": Case(
        lambda raw: raw.head() + struct.pack("<Q", 2**62) + bytes(64), "alignment|ends|GGUF|tensor"
    ),
    "duplicate-key": Case(
        encoded(b"general.architecture", STRING, text("llama")), "twice|dup", True
    ),
    "bad-type": Case(encoded(b"x", 13, bytes(8)), "type 13", True),
    "huge-type": Case(encoded(b"x", 2**32 - 1, bytes(8)), "type 4294967295", True),
    "bad-element-type": Case(
        encoded(b"x", ARRAY, struct.pack("<IQ", 99, 1) + bytes(8)), "99", True
    ),
    "nested-array": Case(
        encoded(b"x", ARRAY, struct.pack("<IQ", ARRAY, 1) + array(U8, [1])),
        "array",
        True,
        unsupported=True,
    ),
    "huge-array": Case(encoded(b"x", ARRAY, struct.pack("<IQ", U8, 2**62)), "fit|end", True),
    "overflowing-array": Case(
        encoded(b"x", ARRAY, struct.pack("<IQ", U64, 2**61 + 1)), "fit|end", True
    ),
    "huge-string-array": Case(
        encoded(b"x", ARRAY, struct.pack("<IQ", STRING, 2**40)), "fit|end", True
    ),
    "huge-string": Case(encoded(b"x", STRING, struct.pack("<Q", 2**63)), "bytes|ends", True),
    "bool-of-2": Case(encoded(b"x", BOOL, b"\x02"), "bool", True),
    "alignment-0": Case(key("general.alignment", U32, 0), "alignment", True),
    "alignment-24": Case(key("general.alignment", U32, 24), "alignment", True),
    "alignment-1": Case(key("general.alignment", U32, 1), "alignment", True),
    "alignment-float": Case(key("general.alignment", F32, 32.0), "alignment", True),
    "alignment-u64": Case(key("general.alignment", U64, 32), "alignment", True),
    "alignment-array": Case(key("general.alignment", U32, [32]), "alignment", True),
    "alignment-other": Case(key("general.alignment", U32, 64), "offset|ends", True),
    "alignment-huge": Case(key("general.alignment", U32, 2**31), "offset|ends", True),
    "split": Case(key("split.count", U16, 3), "split", True, unsupported=True),
}
TENSORS = {
    # The reference implementation once took this one for a tensor of no bytes.
    "dims-2^32-squared": Case(extra_tensor(b"x", [2**32, 2**32], 0), "overflow", True),
    "dims-triple": Case(
        extra_tensor(b"x", [4194305, 4194305, 211106198978564], 0), "overflow", True
    ),
    "dims-bytes-overflow": Case(extra_tensor(b"x", [2**62], 0), "overflow|ends", True),
    "dims-negative": Case(extra_tensor(b"x", [-1], 0), "negative", True),
    "dims-5": Case(extra_tensor(b"x", [1] * 5, 0, bytes(4)), "5 dimensions", True),
    "dims-huge-count": Case(extra_tensor(b"x", [1] * 1000, 0, bytes(4)), "1000 dimensions", True),
    "past-the-end": Case(extra_tensor(b"x", [2**20], 0), "ends|past", True),
    "far-past-the-end": Case(extra_tensor(b"x", [2**40], 0), "ends|past", True),
    "row-not-blocks": Case(extra_tensor(b"x", [33], 8, bytes(68)), "'x'.*33.*32", True),
    "row-not-superblocks": Case(extra_tensor(b"x", [64], 12, bytes(144)), "'x'.*64.*256", True),
    "name-of-64": Case(extra_tensor(b"n" * 65, [1], 0, bytes(4)), "name", True),
    "name-huge": Case(extra_tensor(b"n" * 5000, [1], 0, bytes(4)), "name", True),
    "name-twice": Case(extra_tensor(b"output_norm.weight", [64], 0, bytes(256)), "twice|dup", True),
    "out-of-order": Case(swap_first_two, "order|offset", True),
    "overlap": Case(tensor("output_norm.weight", offset=0), "overlap|offset", True),
    "offset-past-end": Case(tensor("output_norm.weight", offset=2**40), "offset", True),
    "offset-negative": Case(tensor("output_norm.weight", offset=-32), "offset", True),
    "offset-unaligned": Case(tensor("output_norm.weight", offset=1), "offset", True),
    **{
        f"type-{kind}": Case(tensor("output_norm.weight", kind=kind), f"type {kind}\\b", True)
        for kind in (4, 5, 9, 15, 31, 36, 38, 43, 99, 2**32 - 1)
    },
    "type-iq2": Case(extra_tensor(b"x", [256], 16, bytes(66)), "type 16", True, unsupported=True),
}
HYPERPARAMETERS = {
    "no-architecture": Case(dropped("general.architecture"), "general.architecture"),
    "architecture-number": Case(key("general.architecture", U32, 1), "general.architecture", True),
    "architecture-unknown": Case(
        key("general.architecture", STRING, "mamba"), "mamba", unsupported=True
    ),
    "architecture-empty": Case(
        key("general.architecture", STRING, ""), "architecture", unsupported=None
    ),
    "architecture-not-utf8": Case(
        key("general.architecture", STRING, b"\xff\xfe"), "architecture", unsupported=None
    ),
    "experts": Case(key("llama.expert_count", U32, 8), "expert", unsupported=True),
    **{
        f"no-{name}": Case(dropped(f"llama.{name}"), name)
        for name in (
            "block_count",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "context_length",
        )
    },
    "blocks-0": Case(key("llama.block_count", U32, 0), "block_count", True),
    "blocks-513": Case(key("llama.block_count", U32, 513), "block_count", True),
    "blocks-huge": Case(key("llama.block_count", U64, 2**63), "block_count", True),
    "blocks-negative": Case(key("llama.block_count", I32, -1), "block_count", True),
    "blocks-float": Case(key("llama.block_count", F32, 2.0), "block_count", True),
    "blocks-3": Case(key("llama.block_count", U32, 3), r"blk\.2\."),
    "heads-0": Case(key("llama.attention.head_count", U32, 0), "head_count", True),
    "heads-huge": Case(key("llama.attention.head_count", U32, 2**31), "head_count", True),
    "heads-not-dividing": Case(key("llama.attention.head_count", U32, 5), "heads|head_count"),
    "kv-heads-0": Case(key("llama.attention.head_count_kv", U32, 0), "head_count_kv", True),
    "kv-heads-3": Case(
        key("llama.attention.head_count_kv", U32, 3), "3 key/value heads|head_count_kv"
    ),
    "kv-heads-more": Case(key("llama.attention.head_count_kv", U32, 8), "heads|head_count_kv"),
    "kv-heads-short-array": Case(
        key("llama.attention.head_count_kv", U32, [2]), "head_count_kv", True
    ),
    "kv-heads-strings": Case(
        key("llama.attention.head_count_kv", STRING, ["2", "2"]), "head_count_kv", True
    ),
    "kv-heads-negative": Case(
        key("llama.attention.head_count_kv", I32, [2, -2]), "head_count_kv", True
    ),
    "width-0": Case(key("llama.embedding_length", U32, 0), "embedding_length", True),
    "width-huge": Case(key("llama.embedding_length", U32, 2**32 - 1), "embedding_length", True),
    "width-other": Case(key("llama.embedding_length", U32, 128), "shape"),
    "ff-other": Case(key("llama.feed_forward_length", U32, 128), "shape.*ask|ffn"),
    "context-0": Case(key("llama.context_length", U32, 0), "context_length", True),
    "context-string": Case(key("llama.context_length", STRING, "512"), "context_length", True),
    "key-length-0": Case(key("llama.attention.key_length", U32, 0), "key_length", True),
    "key-length-other": Case(key("llama.attention.key_length", U32, 32), "shape|rope"),
    "eps-nan": Case(key("llama.attention.layer_norm_rms_epsilon", F32, math.nan), "epsilon", True),
    "eps-inf": Case(key("llama.attention.layer_norm_rms_epsilon", F32, math.inf), "epsilon", True),
    "eps-negative": Case(key("llama.attention.layer_norm_rms_epsilon", F32, -1.0), "epsilon", True),
    "rope-odd": Case(key("llama.rope.dimension_count", U32, 15), "dimension_count"),
    "rope-wide": Case(key("llama.rope.dimension_count", U32, 18), "dimension_count", True),
    "rope-base-0": Case(key("llama.rope.freq_base", F32, 0.0), "freq_base", True),
    "rope-base-nan": Case(key("llama.rope.freq_base", F64, math.nan), "freq_base", True),
    "rope-scaling-unknown": Case(
        key("llama.rope.scaling.type", STRING, "longrope"), "longrope", unsupported=True
    ),
    "rope-scaling-number": Case(key("llama.rope.scaling.type", U32, 1), "rope.scaling.type", True),
}
WEIGHTS = {
    **{
        f"no-{name}": Case(
            lambda raw, name=name: raw.remove_tensor(f"{name}.weight"), name.replace(".", r"\.")
        )
        for name in (
            "token_embd",
            "output_norm",
            "blk.0.attn_q",
            "blk.1.attn_norm",
            "blk.1.ffn_down",
        )
    },
    "vocabulary-only": Case(only(), "no tensors"),
    "one-row-less": Case(
        tensor("token_embd.weight", dims=[64, N_VOCAB - 1], data=bytes(256 * (N_VOCAB - 1))),
        r"token_embd.*shape",
    ),
    "transposed": Case(tensor("blk.0.attn_k.weight", dims=[32, 64]), r"blk\.0\.attn_k.*shape"),
    "three-dims": Case(tensor("blk.0.ffn_up.weight", dims=[64, 48, 2]), r"blk\.0\.ffn_up.*shape"),
    "zero-dim": Case(
        tensor("blk.0.ffn_up.weight", dims=[64, 0], data=b""), r"blk\.0\.ffn_up.*shape"
    ),
    "norm-nan": Case(
        tensor("output_norm.weight", data=struct.pack("<64f", *[math.nan] * 64)),
        r"output_norm.*finite",
    ),
    "norm-inf": Case(
        tensor("blk.0.ffn_norm.weight", data=struct.pack("<64f", *[math.inf] * 64)),
        r"blk\.0\.ffn_norm.*finite",
    ),
    "rope-factors-short": Case(extra_tensor(b"rope_freqs.weight", [4], 0, bytes(16)), "rope_freqs"),
    "rope-factors-0": Case(extra_tensor(b"rope_freqs.weight", [8], 0, bytes(32)), "rope_freqs"),
    # A weight that this core would not use would be left out in silence.
    "unknown-tensor": Case(
        extra_tensor(b"blk.0.ffn_up.bias", [96], 0, bytes(384)), r"ffn_up\.bias", unsupported=True
    ),
}
VOCABULARY = {
    "no-tokens": Case(dropped(TOKENS), TOKENS),
    "tokens-numbers": Case(key(TOKENS, U32, [1] * N_VOCAB), TOKENS, True),
    "tokens-one": Case(key(TOKENS, STRING, "a"), TOKENS, True),
    "tokens-none": Case(key(TOKENS, STRING, []), TOKENS, True),
    "tokens-fewer": Case(key(TOKENS, STRING, ["a", "b"]), "token"),
    "no-model": Case(dropped("tokenizer.ggml.model"), "tokenizer.ggml.model"),
    "model-unknown": Case(key("tokenizer.ggml.model", STRING, "bert"), "bert", unsupported=True),
    "model-number": Case(key("tokenizer.ggml.model", U32, 1), "tokenizer.ggml.model", True),
    "scores-short": Case(key("tokenizer.ggml.scores", F32, [0.0] * 3), "scores", True),
    "scores-ints": Case(key("tokenizer.ggml.scores", I32, [0] * N_VOCAB), "scores", True),
    "scores-nan": Case(key("tokenizer.ggml.scores", F32, [math.nan] * N_VOCAB), "scores"),
    "types-short": Case(key("tokenizer.ggml.token_type", I32, [1] * 3), "token_type", True),
    "types-floats": Case(
        key("tokenizer.ggml.token_type", F32, [1.0] * N_VOCAB), "token_type", True
    ),
    "types-unknown": Case(key("tokenizer.ggml.token_type", I32, [99] * N_VOCAB), "token_type"),
    "byte-negative": Case(in_tokens(3, "<0x-1>"), "byte|0x"),
    "byte-not-hex": Case(in_tokens(5, "<0xZZ>"), "byte|0x"),
    "byte-short": Case(in_tokens(5, "<0x1>"), "byte|0x"),
    "bos-outside": Case(key("tokenizer.ggml.bos_token_id", U32, N_VOCAB), "bos_token_id", True),
    "bos-negative": Case(key("tokenizer.ggml.bos_token_id", I32, -2), "bos_token_id"),
    "eos-outside": Case(key("tokenizer.ggml.eos_token_id", U32, 2**31), "eos_token_id", True),
    "add-bos-number": Case(key("tokenizer.ggml.add_bos_token", F32, 1.0), "add_bos_token", True),
}
# These change the qwen2 file: a byte-level BPE vocabulary, which names no BOS.
BPE = {
    "pre-unknown": Case(key("tokenizer.ggml.pre", STRING, "martian"), "martian", unsupported=True),
    "pre-number": Case(key("tokenizer.ggml.pre", U32, 1), "tokenizer.ggml.pre", True),
    "no-merges": Case(dropped("tokenizer.ggml.merges"), "merges"),
    "merges-numbers": Case(key("tokenizer.ggml.merges", U32, [1, 2]), "merges", True),
    "add-bos-without-bos": Case(key("tokenizer.ggml.add_bos_token", BOOL, True), "bos"),
}
MODEL_CASES = {
    f"{group}/{name}": case
    for group, cases in {
        "header": HEADER,
        "metadata": METADATA,
        "tensors": TENSORS,
        "hyperparameters": HYPERPARAMETERS,
        "weights": WEIGHTS,
        "vocabulary": VOCABULARY,
        "bpe": BPE,
    }.items()
    for name, case in cases.items()
}


def arch_of(name: str) -> str:
    """Of the good file that a case changes."""
    return "qwen2" if name.startswith("bpe/") else "llama"


def broken(case: Case, path: Path, good: Path) -> Path:
    """Writes the bad file to ``path``."""
    raw = RawFile.read(good)
    changed = case.change(raw)
    path.write_bytes(changed if isinstance(changed, bytes) else raw.build())
    return path


def main() -> None:
    """``python -m support.bad_files FOLDER``: every case as a file, for programs without Python."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        good = {
            arch: write_model(Path(scratch) / arch, CONFIGS[arch]) for arch in ("llama", "qwen2")
        }
        for name, case in MODEL_CASES.items():
            broken(case, folder / f"{name.replace('/', '-')}.gguf", good[arch_of(name)])


if __name__ == "__main__":
    main()
