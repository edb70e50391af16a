"""Where the levels, codes and f16 numbers of a fit lie in the bytes of a block.

Layouts: ggml/src/ggml-common.h, as `gguf.quants` reads them. All arrays here have the block first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from selm_export.quantization.search import Fit

Type = gguf.GGMLQuantizationType
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[Any]  # uint8 as well; sums of these with small numbers stay so
BOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _numbers(fit: Fit) -> tuple[Numbers, Numbers, Numbers, Bytes, Bytes]:
    """Levels [blocks, weights], codes and minima [blocks, groups] as int8 seen as bytes; d and
    dmin [blocks, 2], f16."""
    blocks = fit.d.shape[0]
    q = fit.levels.permute(2, 0, 1).reshape(blocks, -1)
    levels, codes, minima = (
        np.ascontiguousarray(n.numpy().astype(np.int8)).view(np.uint8)
        for n in (q, fit.codes.T, fit.minima.T)
    )
    d, dmin = (
        n.numpy().astype(np.float16).view(np.uint8).reshape(-1, 2) for n in (fit.d, fit.dmin)
    )
    return levels, codes, minima, d, dmin


def _nibbles(q: Numbers, half: int) -> Numbers:
    """Weight i of every 2 * half in the low four bits of byte i, weight half + i in the high."""
    pairs = (q & 15).reshape(len(q), -1, 2, half)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(q), -1)


def _spread(q: Numbers, bits: int, run: int) -> Numbers:
    """8 / bits weights to a byte, those of a byte ``run`` apart."""
    parts = q.reshape(len(q), -1, 8 // bits, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    joined: Numbers = np.bitwise_or.reduce(parts << shifts, axis=2)
    return joined.reshape(len(q), -1)


def _join(*parts: Numbers) -> Bytes:
    return np.concatenate(parts, axis=1)


def _q4_0(fit: Fit) -> Bytes:
    q, _, _, d, _ = _numbers(fit)
    return _join(d, _nibbles(q + 8, 16))


def _q4_1(fit: Fit) -> Bytes:
    q, _, _, d, m = _numbers(fit)
    return _join(d, _negative(m), _nibbles(q, 16))


def _negative(f16: Bytes) -> Bytes:
    """The file adds what the fit takes away."""
    return f16 ^ np.array([0, 0x80], np.uint8)


def _fifth_bits(q: Numbers) -> Bytes:
    return np.packbits(q >> 4, axis=1, bitorder="little")


def _q5_0(fit: Fit) -> Bytes:
    q, _, _, d, _ = _numbers(fit)
    q = q + 16
    return _join(d, _fifth_bits(q), _nibbles(q, 16))


def _q5_1(fit: Fit) -> Bytes:
    q, _, _, d, m = _numbers(fit)
    return _join(d, _negative(m), _fifth_bits(q), _nibbles(q, 16))


def _q2_k(fit: Fit) -> Bytes:
    q, codes, minima, d, dmin = _numbers(fit)
    return _join(codes | minima << 4, _spread(q, 2, 32), d, dmin)


def _q3_k(fit: Fit) -> Bytes:
    q, codes, _, d, _ = _numbers(fit)
    q, codes = q + 4, codes + 32
    low, high = codes & 15, codes >> 4
    scales = _join(low[:, :8] | low[:, 8:] << 4, _spread(high, 2, 4))
    return _join(_spread(q >> 2, 1, 32), _spread(q & 3, 2, 32), scales, d)


def _six_bits(codes: Numbers, minima: Numbers) -> Bytes:
    """Eight scales and eight minima in twelve bytes: the high bits of the last four go on top of
    the first four."""
    last = codes[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    tops = [n[:, :4] | (n[:, 4:] >> 4) << 6 for n in (codes, minima)]
    return _join(*tops, last)


def _q4_k(fit: Fit) -> Bytes:
    q, codes, minima, d, dmin = _numbers(fit)
    return _join(d, dmin, _six_bits(codes, minima), _nibbles(q, 32))


def _q5_k(fit: Fit) -> Bytes:
    q, codes, minima, d, dmin = _numbers(fit)
    return _join(d, dmin, _six_bits(codes, minima), _spread(q >> 4, 1, 32), _nibbles(q, 32))


def _q6_k(fit: Fit) -> Bytes:
    q, codes, _, d, _ = _numbers(fit)
    q = q + 32
    return _join(_nibbles(q, 64), _spread(q >> 4, 2, 32), codes, d)


def _book_places(q: Numbers) -> Bytes:
    return np.searchsorted(np.array(BOOK, np.int8), q.view(np.int8)).astype(np.uint8)


def _iq4_nl(fit: Fit) -> Bytes:
    q, _, _, d, _ = _numbers(fit)
    return _join(d, _nibbles(_book_places(q), 16))


def _iq4_xs(fit: Fit) -> Bytes:
    q, codes, _, d, _ = _numbers(fit)
    codes = codes + 32
    high = np.bitwise_or.reduce(
        (codes >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16), axis=1
    )
    high_bytes = high[:, None].view(np.uint8)
    low = codes[:, 0::2] & 15 | (codes[:, 1::2] & 15) << 4
    return _join(d, high_bytes, low, _nibbles(_book_places(q), 16))


PACK: dict[Type, Callable[[Fit], Bytes]] = {
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q5_0: _q5_0,
    Type.Q5_1: _q5_1,
    Type.Q2_K: _q2_k,
    Type.Q3_K: _q3_k,
    Type.Q4_K: _q4_k,
    Type.Q5_K: _q5_k,
    Type.Q6_K: _q6_k,
    Type.IQ4_NL: _iq4_nl,
    Type.IQ4_XS: _iq4_xs,
}
