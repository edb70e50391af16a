"""Float matrices as blocks of any type that the core reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selm_export.quantization.layouts import BOOK, PACK
from selm_export.quantization.search import Grid, Search

Type = gguf.GGMLQuantizationType
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Ranges to try; more of them would take twice the time for a hundredth of the error.
_ENDS_OF_4 = (-0.06, 0.03, 0.12, 0.21, 0.3)
_ENDS_OF_16 = (-0.04, 0.0, 0.04, 0.1)
_ENDS_OF_32 = (-0.02, 0.0, 0.02, 0.05)


def _factors(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(first, last, count).tolist())


GRIDS = {
    Type.Q4_0: Grid(32, 1, -8, 7, _factors(0.85, 1.3, 10)),
    Type.Q4_1: Grid(32, 1, 0, 15, _ENDS_OF_16, minimum=True),
    Type.Q5_0: Grid(32, 1, -16, 15, _factors(0.9, 1.2, 10)),
    Type.Q5_1: Grid(32, 1, 0, 31, _ENDS_OF_32, minimum=True),
    Type.Q2_K: Grid(16, 16, 0, 3, _ENDS_OF_4, (0, 15), 15, minimum=True),
    Type.Q3_K: Grid(16, 16, -4, 3, _factors(0.8, 1.4, 10), (-32, 31)),
    Type.Q4_K: Grid(32, 8, 0, 15, _ENDS_OF_16, (0, 63), 63, minimum=True),
    Type.Q5_K: Grid(32, 8, 0, 31, _ENDS_OF_32, (0, 63), 63, minimum=True),
    Type.Q6_K: Grid(16, 16, -32, 31, _factors(0.92, 1.1, 8), (-128, 127)),
    Type.IQ4_NL: Grid(32, 1, -127, 113, _factors(0.85, 1.3, 8), book=BOOK),
    Type.IQ4_XS: Grid(32, 8, -127, 113, _factors(0.85, 1.3, 8), (-32, 31), book=BOOK),
}
ROUNDED = (Type.F32, Type.F16, Type.BF16, Type.Q8_0)  # to nearest, whatever the importance
FOUND_IN_GGUF = (*ROUNDED, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
TYPES = (*FOUND_IN_GGUF, *(t for t in GRIDS if t not in FOUND_IN_GGUF))
# Of a slice: it stays in the cache, and below what torch would share between threads of its own.
SLICE = 120 * 256
LARGEST = 65504  # that an f16 number can be
LEAST_IMPORTANCE = 1e-4  # of the mean: what calibration never saw may still come


def _check(values: Floats, kind: Type) -> None:
    if kind not in TYPES:
        raise ValueError(f"the type {kind.name} is none of {', '.join(t.name for t in TYPES)}")
    if values.ndim != 2:
        raise ValueError(f"a matrix is needed, not the shape {list(values.shape)}")
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if values.shape[1] % block:
        raise ValueError(f"rows of {values.shape[1]} do not fill {kind.name}'s blocks of {block}")
    largest = max(values.max(initial=0), -values.min(initial=0))
    if not np.isfinite(largest):  # as max and min of a NaN are NaN
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"the weight [{row}, {column}] is {values[row, column]}")
    if largest > LARGEST and kind not in (Type.F32, Type.BF16):
        raise ValueError(f"a weight of {largest:g} is more than {kind.name} can hold")


def _importance(importance: Floats | None, columns: int) -> Tensor:
    """[columns], of mean 1; all alike where nothing is known."""
    if importance is None:
        return torch.ones(columns)
    if importance.shape != (columns,):
        raise ValueError(f"the importance has the shape {list(importance.shape)}, not [{columns}]")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("an importance is negative or not finite")
    wide = torch.from_numpy(importance.astype(np.float64))
    mean = wide.mean()
    if mean == 0:
        return torch.ones(columns)
    return (wide / mean).clamp(min=LEAST_IMPORTANCE).float()


def _slices(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Whole rows where they are short, else pieces of a row."""
    step = max(1, SLICE // columns)
    width = min(columns, SLICE)
    for row in range(0, rows, step):
        for column in range(0, columns, width):
            yield slice(row, row + step), slice(column, column + width)


def _searched(values: Floats, kind: Type, importance: Tensor) -> Bytes:
    grid = GRIDS[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((values.shape[0], values.shape[1] // block * size), np.uint8)

    def blocks(part: Tensor) -> Tensor:
        return part.reshape(-1, grid.groups, grid.size).permute(1, 2, 0).contiguous()

    def work(place: tuple[slice, slice]) -> None:
        rows, columns = place
        x = torch.from_numpy(np.array(values[rows, columns], np.float32))
        w = importance[columns].expand_as(x)
        fit = Search(grid, blocks(x), blocks(w)).fit()
        first = columns.start // block * size
        packed = PACK[kind](fit).reshape(len(x), -1)
        out[rows, first : first + packed.shape[1]] = packed

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(work, _slices(*values.shape)):
            pass
    return out


def rounds(kind: Type) -> bool:
    """Whether the type is always rounded to nearest, so that importance does not matter."""
    return kind in ROUNDED


def dequantize(data: npt.NDArray[Any], kind: Type) -> Floats:
    found: Floats = gguf.quants.dequantize(data, kind)
    return found


def quantize(values: Floats, kind: Type, importance: Floats | None = None) -> Bytes:
    """Bytes [rows, row_bytes] of a matrix [rows, columns].

    ``importance`` [columns] weighs the squared errors of each column: the mean square of what it
    is multiplied with, or anything proportional to that. Without it, types that the `gguf` package
    quantises are rounded to nearest as it does it, bit for bit; all else is searched for the least
    squared error. F32, F16, BF16 and Q8_0 are always rounded to nearest.

    Raises ValueError where the columns do not fill blocks, a weight or importance is not finite,
    or a weight is too large for the type.
    """
    _check(values, kind)
    if kind in ROUNDED or (importance is None and kind in FOUND_IN_GGUF):
        return np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)
    return _searched(values, kind, _importance(importance, values.shape[1]))
