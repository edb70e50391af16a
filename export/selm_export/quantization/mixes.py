"""Which block type each tensor of a model gets.

A named mix gives all matrices one type and some a finer one: those where llama.cpp's mixes of the
same names found that it pays, the head and the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gguf

from selm_export.gguf_file import stored_as

Type = gguf.GGMLQuantizationType
Types = dict[str, Type]  # by the tensor's name in the file; what is not named is F32
Shapes = Mapping[str, tuple[int, ...]]

# Where rows do not fill blocks of 256: about the same bits in blocks of 32. Where not these: F16.
_OF_32 = {
    Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.IQ4_NL,
    Type.IQ4_XS: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
# Small, and they decide who speaks.
_SCORES = ".score."


@dataclass(frozen=True)
class Mix:
    base: Type
    head: Type  # of the embedding too
    finer: Type | None = None  # for the attention's values and the feed-forward's way down
    layers: str = "some"  # that get it: "all", "some" (ends, and each third between) or "first"

    def is_finer(self, layer: int, count: int) -> bool:
        eighth = count // 8
        if self.layers == "some":
            inner = eighth <= layer < 7 * count // 8
            return not inner or (layer - eighth) % 3 == 2
        return self.layers == "all" or layer < max(1, eighth)


MIXES = {
    "f16": Mix(Type.F16, Type.F16),
    "bf16": Mix(Type.BF16, Type.BF16),
    "q8_0": Mix(Type.Q8_0, Type.Q8_0),
    "q6_k": Mix(Type.Q6_K, Type.Q8_0),
    "q5_0": Mix(Type.Q5_0, Type.Q6_K),
    "q5_1": Mix(Type.Q5_1, Type.Q6_K),
    "q5_k_s": Mix(Type.Q5_K, Type.Q6_K),
    "q5_k_m": Mix(Type.Q5_K, Type.Q6_K, Type.Q6_K),
    "q4_0": Mix(Type.Q4_0, Type.Q6_K),
    "q4_1": Mix(Type.Q4_1, Type.Q6_K),
    "iq4_nl": Mix(Type.IQ4_NL, Type.Q6_K, Type.Q5_K, "first"),
    "iq4_xs": Mix(Type.IQ4_XS, Type.Q6_K, Type.Q5_K, "first"),
    "q4_k_s": Mix(Type.Q4_K, Type.Q6_K, Type.Q5_K, "first"),
    "q4_k_m": Mix(Type.Q4_K, Type.Q6_K, Type.Q6_K),
    "q3_k_s": Mix(Type.Q3_K, Type.Q6_K),
    "q3_k_m": Mix(Type.Q3_K, Type.Q6_K, Type.Q4_K, "all"),
    "q2_k": Mix(Type.Q2_K, Type.Q6_K, Type.Q3_K, "all"),
}


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor may be anything but F32."""
    return stored_as(name, shape, Type.F16) != Type.F32


def fitting(kind: Type, columns: int) -> Type:
    """``kind``, or what stands in for it where rows of so many columns do not fill its blocks."""
    for candidate in (kind, _OF_32.get(kind, kind)):
        if columns % gguf.GGML_QUANT_SIZES[candidate][0] == 0:
            return candidate
    return Type.F16


def bytes_of(kind: Type, shape: tuple[int, ...]) -> int:
    """That the tensor takes in a file, filled up to the next multiple of 32."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = 1
    for extent in shape:
        count *= extent
    return (count // block * size + 31) // 32 * 32


def _layer(name: str) -> int | None:
    _, found, rest = name.partition("blk.")
    return int(rest.split(".", 1)[0]) if found else None


def _of_mix(mix: Mix, name: str, layers: int) -> Type:
    if _SCORES in name:
        return Type.Q8_0
    layer = _layer(name)
    if layer is None:
        return mix.head
    decides = ".attn_v." in name or ".ffn_down." in name
    return mix.finer if mix.finer and decides and mix.is_finer(layer, layers) else mix.base


def of_mix(mix: Mix, shapes: Shapes) -> Types:
    """What the mix means for tensors of these ``shapes`` [rows, columns]; it may not fit them."""
    layers = 1 + max((_layer(name) or 0 for name in shapes), default=0)
    return {
        name: _of_mix(mix, name, layers) for name, shape in shapes.items() if is_matrix(name, shape)
    }


def fitted(wanted: Types, shapes: Shapes) -> Types:
    return {name: fitting(kind, shapes[name][1]) for name, kind in wanted.items()}


def of_routes(shapes: Shapes) -> Types:
    """The matrices that no budget may touch, as they decide which expert speaks."""
    return {name: Type.Q8_0 for name in shapes if _SCORES in name and is_matrix(name, shapes[name])}


def replaced(types: Types, wanted: Types) -> list[str]:
    """Says which tensors did not get the type that was meant for them."""
    pairs = ((name, kind, wanted[name]) for name, kind in types.items())
    return [f"{name}: {kind.name} for {meant.name}" for name, kind, meant in pairs if kind != meant]
