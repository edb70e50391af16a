"""Shapes that no one chose: random sizes of everything, on every instruction set."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selm_export.blocks import random_blocks
from support.core import BLOCK_TYPES, ISAS, Session, Type, isa_available, matmul, require_isa
from support.gguf_files import LINEAR, LLAMA3, YARN, Config, random_weights, write_model
from support.oracles import relative_error
from support.reference import Reference

TOKENS = [5, 300, 17, 17, 260, 99, 1, 0, 351]


@st.composite
def configs(draw: st.DrawFn) -> Config:
    arch = draw(st.sampled_from(["llama", "qwen2", "qwen3"]))
    kv_heads = draw(st.integers(1, 4))
    return Config(
        arch=arch,
        hidden=draw(st.integers(2, 140)),
        layers=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 7)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 40)),
        ff=draw(st.integers(1, 150)),
        eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        rope_base=draw(st.sampled_from([100.0, 10000.0, 1e6])),
        rope_scaling=draw(
            st.sampled_from([None, LINEAR, YARN, *([LLAMA3] if arch == "llama" else [])])
        ),
        tied=draw(st.booleans()),
    )


@settings(max_examples=50, deadline=None)
@given(config=configs(), isa=st.sampled_from(ISAS), seed=st.integers(0, 99))
def test_logits_of_any_shape_are_those_of_the_reference(
    config: Config, isa: str, seed: int
) -> None:
    if not isa_available(isa):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "m.gguf", config, random_weights(config, seed))
        single = Session(path, isa=isa, threads=2).eval_in_pieces(TOKENS, [1])
        together = Session(path, isa=isa, threads=1).eval(TOKENS)
        expected = Reference(path).eval(TOKENS)
    assert relative_error(single, expected) <= 1e-4
    assert together.tobytes() == single.tobytes()


@pytest.mark.parametrize("isa", ISAS[1:])
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(BLOCK_TYPES),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 9),
    columns=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_fast_products_of_any_size_equal_the_scalar_ones(
    isa: str, *, kind: Type, rows: int, blocks: int, columns: int, seed: int
) -> None:
    """To float rounding; with more than 16 columns at once, within what eight bits allow."""
    require_isa(isa)
    rng = np.random.default_rng(seed)
    small = kind.name in ("F32", "F16", "BF16")
    n = blocks * (7 if small else 256 if kind.name.endswith("_K") or kind == Type.IQ4_XS else 32)
    weights = random_blocks(kind, rows, n, n**-0.5, rng)
    acts = rng.standard_normal((columns, n)).astype(np.float32)
    fast, truth = matmul(kind, weights, acts, isa), matmul(kind, weights, acts, "scalar")
    limit = 1e-5 if columns <= 16 else 3e-2
    assert np.abs(fast - truth).max() <= limit * max(np.abs(truth).max(), 1e-3)
