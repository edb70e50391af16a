"""Our quantiser against the `gguf` package, the core's readers and llama.cpp's own quantiser."""

from __future__ import annotations

import functools
import subprocess
import warnings
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from selm_export.quantization.quantize import FOUND_IN_GGUF, GRIDS, TYPES, quantize
from support.bundled import START
from support.core import dequantize, llama_python

Type = gguf.GGMLQuantizationType
Floats = npt.NDArray[np.float32]
SEARCHED = tuple(GRIDS)
# Runs where llama-cpp-python is; quantises each matrix of a file with and without its importance.
LLAMA_SCRIPT = """
import ctypes, sys
from pathlib import Path
import numpy as np
import llama_cpp

lib = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))))
lib.ggml_row_size.restype = lib.ggml_quantize_chunk.restype = ctypes.c_size_t
lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
lib.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
given, out = np.load(sys.argv[1]), {}
importance = given["importance"]
for name in given.files:
    if name == "importance":
        continue
    x = np.ascontiguousarray(given[name])
    for kind in map(int, sys.argv[3].split(",")):
        for weights in (None, importance):
            data = np.zeros((len(x), lib.ggml_row_size(kind, x.shape[1])), np.uint8)
            at = None if weights is None else weights.ctypes.data
            lib.ggml_quantize_chunk(kind, x.ctypes.data, data.ctypes.data, 0, *x.shape, at)
            out[f"{name} {kind} {weights is not None}"] = data
np.savez(sys.argv[2], **out)
"""


@functools.cache
def matrices() -> dict[str, Floats]:
    """Trained ones of the bundled model, and random ones whose outliers spoil a range."""
    rng = np.random.default_rng(0)
    wanted = {
        "token_embd.weight", "blk.1.attn_q.weight", "blk.2.attn_v.weight", "blk.0.ffn_up.weight",
    }  # fmt: skip
    found = {
        t.name: np.array(gguf.quants.dequantize(t.data[:96], t.tensor_type)[:, :512])
        for t in gguf.GGUFReader(START).tensors
        if t.name in wanted
    }
    assert len(found) == len(wanted)
    shape = (64, 512)
    found["normal"] = rng.standard_normal(shape).astype(np.float32) * 0.02
    found["student"] = rng.standard_t(2, shape).astype(np.float32) * 0.02
    shifted = rng.standard_normal(shape) * 0.02 + rng.standard_normal((64, 1)) * 0.05
    found["shifted"] = shifted.astype(np.float32)
    return found


def some_importance(columns: int = 512) -> Floats:
    """As activations have it: most alike, a few columns hundreds of times larger."""
    rng = np.random.default_rng(1)
    found = np.exp(rng.standard_normal(columns))
    found[rng.choice(columns, 8, replace=False)] *= 200
    return found.astype(np.float32)


def error(data: npt.NDArray[np.uint8], kind: Type, x: Floats, weights: Floats | None) -> float:
    decoded = gguf.quants.dequantize(data, kind).astype(np.float64)
    w = np.ones(x.shape[1]) if weights is None else weights
    return float((((decoded - x) ** 2) @ w).sum())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, npt.NDArray[np.uint8]]:
    """ "matrix type with-importance" -> the blocks that llama.cpp makes."""
    python = llama_python()
    if python is None:
        pytest.skip("llama-cpp-python is not installed (nor named by SELM_TEST_LLAMA_PYTHON)")
    folder = tmp_path_factory.mktemp("llama")
    given: dict[str, Any] = {**matrices(), "importance": some_importance()}
    np.savez(folder / "in.npz", **given)
    kinds = ",".join(str(int(kind)) for kind in (*SEARCHED, Type.Q8_0))
    files = [str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run([python, "-c", LLAMA_SCRIPT, *files, kinds], check=True, capture_output=True)
    with np.load(folder / "out.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", (*SEARCHED, Type.Q8_0), ids=lambda t: t.name)
def test_errors_are_not_larger_than_those_of_llama_cpp(
    kind: Type, weighed: bool, llama: dict[str, npt.NDArray[np.uint8]]
) -> None:
    weights = some_importance() if weighed else None
    for name, x in matrices().items():
        ours = error(quantize(x, kind, weights), kind, x, weights)
        theirs = error(llama[f"{name} {int(kind)} {weighed}"], kind, x, weights)
        assert ours <= 1.02 * theirs, name


@pytest.mark.parametrize("kind", FOUND_IN_GGUF, ids=lambda t: t.name)
def test_rounding_to_nearest_is_that_of_the_gguf_package_bit_for_bit(kind: Type) -> None:
    for x in (*matrices().values(), np.zeros((2, 64), np.float32)):
        expected = np.ascontiguousarray(gguf.quants.quantize(x, kind)).view(np.uint8)
        np.testing.assert_array_equal(quantize(x, kind), expected)


@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_the_core_reads_what_was_written(kind: Type, weighed: bool) -> None:
    x = matrices()["shifted"][:8]
    data = quantize(x, kind, some_importance() if weighed else None)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert data.dtype == np.uint8
    assert data.shape == (8, 512 // block * size)
    got = dequantize(kind, data.tobytes(), x.size).reshape(x.shape)
    np.testing.assert_array_equal(got, gguf.quants.dequantize(data, kind).reshape(x.shape))
    bits = min(8 * size / block, 11)  # F16 has so many of precision, BF16 three less
    bits -= 3 * (kind == Type.BF16)
    assert ((got - x) ** 2).sum() <= 4.0 ** -(bits - 2.2) * (x**2).sum()


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda t: t.name)
def test_every_level_and_scale_survives_the_way_into_bytes(kind: Type) -> None:
    """What blocks hold exactly is found again exactly, or nearly so where codes must be guessed:
    weights that random blocks decode to have an encoding without any error."""
    from selm_export.blocks import random_blocks

    blocks = random_blocks(kind, 16, 512, 0.05, np.random.default_rng(3))
    x = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(16, 512)
    ours = error(quantize(x, kind, np.ones(512, np.float32)), kind, x, None)
    coarse = 4.0 ** -(8 * gguf.GGML_QUANT_SIZES[kind][1] / gguf.GGML_QUANT_SIZES[kind][0])
    assert ours <= coarse * (x**2).sum()


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda t: t.name)
def test_importance_lessens_the_error_that_it_weighs(kind: Type) -> None:
    weights = some_importance()
    for name, x in matrices().items():
        with_it = error(quantize(x, kind, weights), kind, x, weights)
        assert with_it < error(quantize(x, kind, None), kind, x, weights), name


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda t: t.name)
def test_only_the_proportions_of_importance_count(kind: Type) -> None:
    x, weights = matrices()["student"][:4], some_importance()
    same = quantize(x, kind, weights * np.float32(2.0**40))
    np.testing.assert_array_equal(quantize(x, kind, weights), same)
    # Columns that were never active count nearly nothing, but nothing breaks; nor where all are.
    weights[:64] = 0
    assert np.isfinite(gguf.quants.dequantize(quantize(x, kind, weights), kind)).all()
    nothing = quantize(x, kind, np.zeros(512, np.float32))
    np.testing.assert_array_equal(nothing, quantize(x, kind, np.ones(512, np.float32)))


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_odd_matrices(kind: Type) -> None:
    """Zeros, one value throughout, one outlier, the largest and the smallest sizes."""
    x = np.zeros((7, 256), np.float32)
    x[1] = 0.25
    x[2] = -0.25
    x[3, 100] = 3.0
    x[4] = np.linspace(-60000, 60000, 256)
    x[5] = np.linspace(-1e-7, 1e-7, 256)
    x[6] = np.linspace(-1, 1, 256)
    for weights in (None, np.ones(256, np.float32)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the gguf package overflows where it divides by tiny
            data = quantize(x, kind, weights)
        got = gguf.quants.dequantize(data, kind).reshape(x.shape)
        assert np.isfinite(got).all()
        assert not got[0].any()
        for row in (1, 2, 3, 4, 6):
            assert np.abs(got[row] - x[row]).max() <= 0.35 * np.abs(x[row]).max(), row
        assert np.abs(got[5]).max() <= 4e-6


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda t: t.name)
def test_any_number_of_threads_gives_the_same_bytes(kind: Type) -> None:
    x = np.random.default_rng(5).standard_normal((200, 512)).astype(np.float32)
    whole = quantize(x, kind, some_importance())
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        np.testing.assert_array_equal(quantize(x, kind, some_importance()), whole)
    finally:
        torch.set_num_threads(before)


def test_rows_longer_than_a_slice() -> None:
    x = np.random.default_rng(6).standard_normal((2, 65536)).astype(np.float32)
    weights = np.ones(65536, np.float32)
    weights[40000:] = 5
    data = quantize(x, Type.Q4_K, weights)
    for start in (0, 32768, 65280):
        part, w = x[:, start : start + 256], weights[start : start + 256]
        at = slice(start // 256 * 144, start // 256 * 144 + 144)
        alone = error(quantize(part, Type.Q4_K, w), Type.Q4_K, part, w)
        assert error(data[:, at], Type.Q4_K, part, w) == pytest.approx(alone, rel=0.02)


def test_what_cannot_be_quantised_is_refused() -> None:
    x = np.ones((2, 256), np.float32)
    for kind in (Type.Q4_K, Type.F16, Type.F32, Type.Q8_0):
        for bad in (np.nan, np.inf):
            y = x.copy()
            y[1, 7] = bad
            with pytest.raises(ValueError, match=rf"the weight \[1, 7\] is {bad}"):
                quantize(y, kind)
    with pytest.raises(ValueError, match=r"weight of 1e\+06 is more than Q4_K can hold"):
        quantize(x * 1e6, Type.Q4_K)
    with pytest.raises(ValueError, match="rows of 100 do not fill Q8_0's blocks of 32"):
        quantize(x[:, :100], Type.Q8_0)
    with pytest.raises(ValueError, match=r"a matrix is needed, not the shape \[256\]"):
        quantize(x[0], Type.Q8_0)
    with pytest.raises(ValueError, match="the type TQ1_0 is none of F32, F16"):
        quantize(x, Type.TQ1_0)
    with pytest.raises(ValueError, match=r"the shape \[3\], not \[256\]"):
        quantize(x, Type.Q4_K, np.ones(3, np.float32))
    for bad_weight in (np.nan, -1.0):
        with pytest.raises(ValueError, match="an importance is negative or not finite"):
            quantize(x, Type.Q4_K, np.full(256, bad_weight, np.float32))
