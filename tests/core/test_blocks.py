"""Block types: dequantised bit for bit as the `gguf` package does, multiplied within NMSE 5e-4."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from selm_export.blocks import CENTRE, SCALE_AT, random_blocks
from support.core import BLOCK_TYPES, ISAS, Type, dequantize, matmul, require_isa

from selm_edge import _core

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
QUANTISED = [t for t in BLOCK_TYPES if t in SCALE_AT]
ODD_SCALES = np.array(
    [0.0, -0.0, 2**-24, -(2**-24), 1023 * 2**-24, 2**-14, 1.0, -1.5, 65504, -65504], np.float16
)


def scale_positions(kind: Type) -> list[int]:
    """Byte offsets of the f16 fields of a block."""
    return [SCALE_AT[kind], *(CENTRE[kind][:1] if kind in CENTRE else ())]


def raw_blocks(kind: Type, n: int, seed: int) -> Bytes:
    """[n, block_bytes], every bit random except that no scale is infinite or NaN."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(seed).integers(0, 256, (n, size), np.uint8)
    for at in scale_positions(kind):
        high = blocks[:, at + 1]
        high[(high & 0x7C) == 0x7C] ^= 0x40
    return blocks


def same_bits(kind: Type, blocks: Bytes) -> None:
    expected = gguf.quants.dequantize(blocks, kind).astype(np.float32).ravel()
    got = dequantize(kind, blocks.tobytes(), expected.size)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda t: t.name)
def test_random_blocks_dequantise_bit_for_bit(kind: Type) -> None:
    same_bits(kind, raw_blocks(kind, 512, seed=int(kind)))


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda t: t.name)
def test_odd_scales_dequantise_bit_for_bit(kind: Type) -> None:
    """Zeros of both signs, subnormals and the largest scales, each with each."""
    positions = scale_positions(kind)
    blocks = raw_blocks(kind, len(ODD_SCALES) ** 2, seed=1)
    pairs = np.array(np.meshgrid(ODD_SCALES, ODD_SCALES)).reshape(2, -1)
    for at, values in zip(positions, pairs, strict=False):
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
    same_bits(kind, blocks)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16], ids=lambda t: t.name)
def test_every_half_is_read_bit_for_bit(kind: Type) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    values = gguf.quants.dequantize(halves.view(np.uint8), kind).astype(np.float32)
    got = dequantize(kind, halves.tobytes(), halves.size)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(got[number].view(np.uint32), values[number].view(np.uint32))
    assert np.isnan(got[~number]).all()


def test_floats_are_copied() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32)
    floats = bits.view(np.float32)
    got = dequantize(Type.F32, bits.tobytes(), bits.size)
    finite = np.isfinite(floats)
    np.testing.assert_array_equal(got[finite].view(np.uint32), bits[finite])


@pytest.mark.parametrize("kind", [3, 7, 8, 12, 14, 20], ids=lambda t: Type(t).name)
def test_bytes_that_do_not_match_are_refused(kind: int) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[Type(kind)]
    with pytest.raises(_core.CoreError):
        _core.dequantize(kind, bytes(size - 1), elements)
    with pytest.raises(_core.CoreError):
        _core.dequantize(kind, bytes(2 * size), elements + 1)


@pytest.mark.parametrize("kind", [4, 5, 9, 15, 16, 24, 31, 36, 42, 43, 255, 2**32 - 1])
def test_types_that_are_not_read_are_refused(kind: int) -> None:
    with pytest.raises(_core.CoreError):
        _core.dequantize(kind, bytes(4096), 256)


def product(kind: Type, weights: Bytes, acts: Floats) -> tuple[Doubles, Doubles]:
    """The product in float64 [columns, rows], and the size to expect of each of its values.

    A value of a few rows and columns may be near zero by chance; |w| |a| / sqrt(n) is not.
    """
    dense = gguf.quants.dequantize(weights, kind).astype(np.float64).reshape(len(weights), -1)
    exact = acts.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)[:, None] * np.linalg.norm(dense, axis=1)
    return exact @ dense.T, norms / np.sqrt(dense.shape[1])


def error(got: Floats, expected: Doubles, size: Doubles) -> float:
    """Mean squared error over mean square; the larger of both ways to take the latter."""
    squares = ((got - expected) ** 2).sum()
    return max(squares / (size**2).sum(), squares / (expected**2).sum() if got.size > 512 else 0.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda t: t.name)
def test_products_are_those_of_the_dequantised_weights(kind: Type, isa: str) -> None:
    """NMSE 5e-4 where activations are rounded to eight bits (from 17 columns on, weights too, or
    16-bit floats to bf16), float rounding elsewhere."""
    require_isa(isa)
    rng = np.random.default_rng(int(kind))
    shapes = [(1, 256, 1), (3, 512, 2), (17, 768, 5), (64, 2816, 16), (40, 256, 33)]
    shapes.append((130, 2816, 19))  # two strips and a piece of them, re-quantised
    for rows, n, columns in shapes:
        rounded = isa == "amx" and columns > 16 and kind != Type.F32
        limit = 5e-4 if rounded or kind in QUANTISED else 1e-11
        weights = random_blocks(kind, rows, n, n**-0.5, rng)
        acts = rng.standard_normal((columns, n)).astype(np.float32)
        assert error(matmul(kind, weights, acts, isa), *product(kind, weights, acts)) <= limit


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", QUANTISED, ids=lambda t: t.name)
def test_products_with_weights_of_any_bits(kind: Type, isa: str) -> None:
    """Minima and scales that no quantiser would choose; activations of any size."""
    require_isa(isa)
    rng, n = np.random.default_rng(5), 1024
    elements, _ = gguf.GGML_QUANT_SIZES[kind]
    blocks = raw_blocks(kind, 48 * n // elements, seed=9)
    for at in scale_positions(kind):  # 2^-3 to 2^3, both signs
        blocks[:, at + 1] = (blocks[:, at + 1] & 0x80) | rng.integers(0x30, 0x48, len(blocks))
    weights = blocks.reshape(48, -1)
    acts = rng.standard_normal((7, n)).astype(np.float32)
    acts[1] *= 1e-6
    acts[2] *= 1e6
    # Outliers spend the eight bits of their block: with 256 elements a block that shows.
    acts[3, ::97] *= 40
    got = matmul(kind, weights, acts, isa)
    for column, (wanted, size) in enumerate(zip(*product(kind, weights, acts), strict=True)):
        limit = 3e-3 if column == 3 else 5e-4
        assert error(got[column], wanted, size) <= limit


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda t: t.name)
def test_fast_products_equal_the_scalar_ones_to_rounding(kind: Type, isa: str) -> None:
    require_isa(isa)
    rng = np.random.default_rng(int(kind) + 100)
    for rows, n, columns in [(9, 256, 1), (33, 2560, 3), (16, 1024, 16)]:
        weights = random_blocks(kind, rows, n, n**-0.5, rng)
        acts = rng.standard_normal((columns, n)).astype(np.float32)
        fast, truth = matmul(kind, weights, acts, isa), matmul(kind, weights, acts, "scalar")
        assert np.abs(fast - truth).max() <= 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda t: t.name)
def test_a_value_depends_on_its_row_and_column_alone(kind: Type, isa: str) -> None:
    """Any 16 columns or fewer, and any rows beside it: the same bits."""
    require_isa(isa)
    rng, n = np.random.default_rng(3), 512
    weights = random_blocks(kind, 37, n, n**-0.5, rng)
    acts = rng.standard_normal((16, n)).astype(np.float32)
    whole = matmul(kind, weights, acts, isa)
    for columns in (1, 2, 3, 5, 15):
        part = matmul(kind, weights, acts[-columns:], isa)
        assert part.tobytes() == whole[-columns:].tobytes()
    for rows in (1, 2, 7, 32):
        part = matmul(kind, weights[-rows:], acts, isa)
        assert part.tobytes() == np.ascontiguousarray(whole[:, -rows:]).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda t: t.name)
def test_zero_activations_give_zero(kind: Type, isa: str) -> None:
    require_isa(isa)
    weights = random_blocks(kind, 8, 256, 1.0, np.random.default_rng(0))
    assert not matmul(kind, weights, np.zeros((2, 256), np.float32), isa).any()


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda t: t.name)
def test_random_models_get_the_spread_that_they_ask_for(kind: Type) -> None:
    blocks = random_blocks(kind, 64, 1024, 0.03, np.random.default_rng(1))
    values = gguf.quants.dequantize(blocks, kind)
    assert abs(values.std() / 0.03 - 1) < 0.1
    assert abs(values.mean()) < 0.005  # q - 8 of four bits leans by half a step
