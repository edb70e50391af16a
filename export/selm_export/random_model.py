"""Random weights of known shapes as GGUF, for benchmarks that need no download.

    python -m selm_export.random_model qwen2.5-0.5b --type q4_k_m bench.gguf

The file opens in llama.cpp as well. Which tensor gets which type follows llama.cpp's quantiser,
with its fallbacks where a row is not a multiple of 256, so that sizes and speeds are those of a
real file; the text it makes is noise. `--vocab FILE.gguf` takes the vocabulary of another file.
Of the `edge` shapes, the first sees all tokens; `edge-performer` (a `selm` file) differs in its
attention alone: it sees the last 64, and the rest through features; `edge-experts` in that three
experts share the lower half of its layers and differ by deltas in the upper one. `--hub DIR` writes
a Hugging Face folder of bf16 shards instead, with a tokenizer, to try the export pipeline on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from selm_export.blocks import random_blocks

Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int = 151936
    context: int = 32768
    far: bool = False  # performer attention, in a file of the architecture selm
    experts: int = 0  # as deltas above the trunk, early route; likewise


EDGE = Shape(512, 1536, 8, 8, 4, 64, vocabulary=8192, context=1 << 17)
SHAPES = {  # Qwen2.5's configurations, and ours; all tie the head to the embedding
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 64),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 128),
    "edge-softmax": EDGE,
    "edge-performer": replace(EDGE, far=True),
    "edge-experts": replace(EDGE, experts=3),
}
WINDOW, FEATURES = 64, 128
RANK, SCORE_WIDTHS = 16, (256, 128, 1)
STICKINESS = 0.3  # random scores would change the speaker at every fourth token; so at one of 25
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MIXES = {  # --type: of most matrices, of those that matter more, general.file_type
    "f16": (Type.F16, Type.F16, 1),
    "q4_0": (Type.Q4_0, Type.Q4_0, 2),
    "q8_0": (Type.Q8_0, Type.Q8_0, 7),
    "q4_k_m": (Type.Q4_K, Type.Q6_K, 15),
    "q5_k_m": (Type.Q5_K, Type.Q6_K, 17),
    "q6_k": (Type.Q6_K, Type.Q6_K, 18),
}
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
VOCABULARY_KEYS = "tokenizer."
REAL_TOKENS = 151643  # before the control tokens, as Qwen2 has it
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule for attn_v and ffn_down in Q4_K_M, Q5_K_M: the ends, every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_type(name: str, shape: tuple[int, ...], mix: str, layers: int) -> Type:
    if len(shape) != 2:
        return Type.F32
    most, better, _ = MIXES[mix]
    if name == "token_embd.weight":  # tied: it is the output head too
        kind = most if mix in ("f16", "q8_0") else Type.Q6_K
    elif "attn_v" in name or "ffn_down" in name:
        kind = better if gets_more_bits(int(name.split(".")[1]), layers) else most
    else:
        kind = most
    fits = shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    return kind if fits else FALLBACK.get(kind, Type.F16)


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """GGUF name to [rows, columns] or [columns]."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocabulary, shape.hidden),
        "output_norm.weight": (shape.hidden,),
    }
    for layer in range(shape.layers):
        p = f"blk.{layer}."
        tensors |= {
            f"{p}attn_norm.weight": (shape.hidden,),
            f"{p}attn_q.weight": (q, shape.hidden),
            f"{p}attn_q.bias": (q,),
            f"{p}attn_k.weight": (kv, shape.hidden),
            f"{p}attn_k.bias": (kv,),
            f"{p}attn_v.weight": (kv, shape.hidden),
            f"{p}attn_v.bias": (kv,),
            f"{p}attn_output.weight": (shape.hidden, q),
            f"{p}ffn_norm.weight": (shape.hidden,),
            f"{p}ffn_gate.weight": (shape.feed_forward, shape.hidden),
            f"{p}ffn_up.weight": (shape.feed_forward, shape.hidden),
            f"{p}ffn_down.weight": (shape.hidden, shape.feed_forward),
        }
        if shape.far:
            tensors |= {
                f"{p}performer.projection.weight": (shape.kv_heads, FEATURES, shape.head_size),
                f"{p}performer.far_gain": (shape.heads,),
            }
    for expert in range(shape.experts):
        tensors |= expert_shapes(shape, f"expert.{expert}.", tensors)
    return tensors


def expert_shapes(
    shape: Shape, prefix: str, whole: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Its deltas of the layers above the trunk, and what scores it."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.layers // 2, shape.layers):
        for projection in PROJECTIONS:
            name = f"blk.{layer}.{projection}.weight"
            rows, columns = whole[name]
            found[f"{prefix}{name}.lora_a"] = (RANK, columns)
            found[f"{prefix}{name}.lora_b"] = (rows, RANK)
    found |= {f"{prefix}score.norm.{part}": (shape.hidden,) for part in ("weight", "bias")}
    width = shape.hidden
    for number, rows in enumerate(SCORE_WIDTHS):
        found[f"{prefix}score.{number}.weight"] = (rows, width)
        found[f"{prefix}score.{number}.bias"] = (rows,)
        width = rows
    return found


def random_tensor(
    name: str, shape: tuple[int, ...], kind: Type, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Norms near 1, biases near 0, matrices that keep the size of what they multiply."""
    if len(shape) == 1:
        mean = 0.0 if name.endswith(".bias") else 1.0
        return (mean + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 3:  # features of keys: normal directions
        return rng.standard_normal(shape).astype(np.float32)
    spread = 0.05 if name == "token_embd.weight" else shape[1] ** -0.5
    return random_blocks(kind, shape[0], shape[1], spread, rng)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for bytes 0 to 255."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def synthetic_vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, types and merges of a byte-level BPE: all pairs of bytes, then pairs with a third."""
    letters = byte_alphabet()
    tokens, merges, count = list(letters), [], min(REAL_TOKENS, size - len(CONTROL))
    left = 0
    while len(tokens) < count:
        for right in letters[: count - len(tokens)]:
            merges.append(f"{tokens[left]} {right}")
            tokens.append(tokens[left] + right)
        left += 1
    unused = [f"[PAD{i}]" for i in range(count + len(CONTROL), size)]
    types = [1] * count + [3] * len(CONTROL) + [5] * len(unused)
    return [*tokens, *CONTROL, *unused], types, merges


def add_synthetic_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    tokens, types, merges = synthetic_vocabulary(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(CONTROL[2]))
    writer.add_pad_token_id(tokens.index(CONTROL[0]))
    writer.add_add_bos_token(False)


def copy_vocabulary(writer: gguf.GGUFWriter, source: Path) -> int:
    """Copies every `tokenizer.` key; the number of tokens."""
    reader = gguf.GGUFReader(source)
    for key, field in reader.fields.items():
        if key.startswith(VOCABULARY_KEYS):
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    return len(reader.fields["tokenizer.ggml.tokens"].data)


def add_hyperparameters(writer: gguf.GGUFWriter, shape: Shape) -> None:
    if shape.experts:
        writer.add_array("selm.expert.names", [f"expert-{i + 1}" for i in range(shape.experts)])
        writer.add_uint32("selm.expert.trunk_layers", shape.layers // 2)
        writer.add_string("selm.expert.kind", "delta")
        writer.add_string("selm.expert.route", "early")
        writer.add_float32("selm.expert.stickiness", STICKINESS)
        writer.add_array("selm.attention.kinds", ["softmax"] * shape.layers)
    if shape.far:
        writer.add_array("selm.attention.kinds", ["performer"] * shape.layers)
        writer.add_uint32("selm.attention.window", WINDOW)
        writer.add_uint32("selm.performer.features", FEATURES)
        writer.add_string("selm.performer.feature_map", "favor+")
        writer.add_float32("selm.performer.clamp", 1.2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)


def write_model(
    output: Path, name: str, mix: str, *, vocabulary: Path | None = None, seed: int = 0
) -> None:
    """Writes `output`, one tensor in memory at a time."""
    shape, rng = SHAPES[name], np.random.default_rng(seed)
    writer = gguf.GGUFWriter(output, "selm" if shape.far or shape.experts else "qwen2")
    writer.add_name(f"random {name}")
    writer.add_file_type(MIXES[mix][2])
    writer.add_quantization_version(2)
    if vocabulary:
        shape = replace(shape, vocabulary=copy_vocabulary(writer, vocabulary))
    else:
        add_synthetic_vocabulary(writer, shape.vocabulary)
    add_hyperparameters(writer, shape)
    tensors = {
        tensor: (size, tensor_type(tensor, size, mix, shape.layers))
        for tensor, size in tensor_shapes(shape).items()
    }
    for tensor, (size, kind) in tensors.items():
        stored = gguf.quant_shape_to_byte_shape(size, kind)
        nbytes = int(np.prod(stored))
        writer.add_tensor_info(tensor, stored, np.dtype(np.uint8), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, (size, kind) in tensors.items():
        writer.write_tensor_data(random_tensor(tensor, size, kind, rng))
    writer.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m selm_export.random_model",
        description="Write a GGUF file, or a Hugging Face folder, with random weights.",
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("output", type=Path, nargs="?", help="the GGUF file to write")
    target.add_argument("--hub", type=Path, metavar="DIR", help="the folder to fill instead")
    parser.add_argument("--type", choices=sorted(MIXES), default="q4_0")
    parser.add_argument("--vocab", type=Path, help="take the vocabulary of this GGUF file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chosen: dict[str, Any] = {"vocabulary": options.vocab, "seed": options.seed}
    try:
        if options.hub:
            from selm_export import random_hub

            random_hub.write_folder(options.hub, SHAPES[options.shape], **chosen)
        else:
            write_model(options.output, options.shape, options.type, **chosen)
    except (OSError, ValueError) as error:
        print(f"error: {options.hub or options.output}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
