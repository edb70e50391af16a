"""Random weights that already are GGUF blocks: no float matrix is made, so gigabytes take seconds.

Every byte that may be anything is random; scales are set so that the dequantised weights have
about zero mean and the wanted spread. Layouts: ggml/src/ggml-common.h.
"""

from __future__ import annotations

import functools

import gguf
import numpy as np
import numpy.typing as npt

Type = gguf.GGMLQuantizationType
Bytes = npt.NDArray[np.uint8]

# Where the block keeps its f16 scale and, where it has one, its f16 minimum.
SCALE_AT = {
    Type.Q4_0: 0,
    Type.Q4_1: 0,
    Type.Q5_0: 0,
    Type.Q5_1: 0,
    Type.Q8_0: 0,
    Type.Q2_K: 80,
    Type.Q3_K: 108,
    Type.Q4_K: 0,
    Type.Q5_K: 0,
    Type.Q6_K: 208,
    Type.IQ4_NL: 0,
    Type.IQ4_XS: 0,
}
# value = scale * q + minimum (or - minimum, K-quants): the minimum that centres q, per scale.
CENTRE = {
    Type.Q4_1: (2, -7.5),
    Type.Q5_1: (2, -15.5),
    Type.Q2_K: (82, 1.5),
    Type.Q4_K: (2, 7.5),
    Type.Q5_K: (2, 15.5),
}


def _equal_scales_and_minima(blocks: Bytes, kind: Type) -> None:
    """Makes each sub-block's minimum equal its scale, so that `CENTRE` centres all of them."""
    if kind == Type.Q2_K:  # low four bits the scale, high four the minimum
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
    elif kind in (Type.Q4_K, Type.Q5_K):  # twelve bytes: eight 6-bit scales, eight 6-bit minima
        low, high = blocks[:, 4:8] & 63, blocks[:, 12:16] & 15
        top = blocks[:, 8:12] & 0xC0
        blocks[:, 4:8] = low | top
        blocks[:, 8:12] = low | top
        blocks[:, 12:16] = high * 17


def _set_f16(blocks: Bytes, at: int, value: float) -> None:
    blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)


def _with_scale(kind: Type, blocks: Bytes, scale: float) -> Bytes:
    _set_f16(blocks, SCALE_AT[kind], scale)
    if kind in CENTRE:
        at, factor = CENTRE[kind]
        _equal_scales_and_minima(blocks, kind)
        _set_f16(blocks, at, scale * factor)
    return blocks


@functools.cache
def _unit_spread(kind: Type) -> float:
    """Standard deviation of the weights at scale 2^-6 (exact in f16), over 2^-6."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    bits = np.random.default_rng(0).integers(0, 256, (4096, size), np.uint8)
    return float(gguf.quants.dequantize(_with_scale(kind, bits, 2**-6), kind).std()) * 2**6


def random_blocks(
    kind: Type, rows: int, columns: int, spread: float, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Bytes [rows, row_bytes] of a matrix [rows, columns] with weights of mean 0, std `spread`.

    Raises ValueError where `columns` is not a multiple of the block.
    """
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if columns % elements:
        raise ValueError(f"rows of {columns} are not a multiple of {kind.name}'s {elements}")
    if kind in (Type.F32, Type.F16, Type.BF16):
        floats = rng.standard_normal((rows, columns), np.float32) * np.float32(spread)
        return np.ascontiguousarray(gguf.quants.quantize(floats, kind)).view(np.uint8)
    n = rows * columns // elements
    blocks = np.frombuffer(bytearray(rng.bytes(n * size)), np.uint8).reshape(n, size)
    return _with_scale(kind, blocks, spread / _unit_spread(kind)).reshape(rows, -1)
