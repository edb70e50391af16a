"""Logits: those of transformers and numpy float64, whatever the pieces, threads, processor."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from selm_export.blocks import random_blocks
from support.core import BLOCK_TYPES, ISAS, Session, Type, llama_cpp_logits, require_isa
from support.gguf_files import (
    CONFIGS,
    NUMPY_ONLY,
    Config,
    random_weights,
    to_gguf,
    write_model,
)
from support.oracles import nmse, relative_error, transformers_logits
from support.reference import Reference

from selm_edge import _core

TOKENS = np.random.default_rng(11).integers(0, 352, 48).tolist()
F32_LIMIT = 1e-4  # largest difference over largest logit, F32 weights and cache
F16_CACHE_LIMIT = 5e-3  # the same with keys and values rounded to F16

# Rows of 256 and 512, so that every block type fits every matrix.
WIDE = Config("llama", hidden=256, heads=4, kv_heads=2, ff=512, vocab=352)
WIDE_QWEN = Config("qwen2", hidden=256, heads=4, kv_heads=2, ff=768, vocab=352, tied=True)


def write_quantised(path: Path, config: Config, kind: Type, seed: int = 3) -> Path:
    """A model all of whose matrices are random blocks of one type."""
    weights = random_weights(config, seed)
    rng = np.random.default_rng(seed)
    raw = {
        name: (random_blocks(kind, *value.shape, float(value.std()), rng), kind)
        for name, value in to_gguf(config, weights).items()
        if value.ndim == 2
    }
    return write_model(path, config, weights, raw=raw)


@pytest.mark.parametrize("name", [*CONFIGS, *NUMPY_ONLY])
def test_logits_are_those_of_the_numpy_reference(name: str, tmp_path: Path) -> None:
    config = {**CONFIGS, **NUMPY_ONLY}[name]
    path = write_model(tmp_path / "m.gguf", config, random_weights(config, seed=1))
    expected = Reference(path).eval(TOKENS)
    assert relative_error(Session(path).eval(TOKENS), expected) <= F32_LIMIT
    assert relative_error(Session(path, kv_type="f16").eval(TOKENS), expected) <= F16_CACHE_LIMIT


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config, weights = CONFIGS[name], random_weights(CONFIGS[name], seed=2)
    path = write_model(tmp_path / "m.gguf", config, weights)
    expected = transformers_logits(config, weights, TOKENS)
    assert relative_error(Session(path).eval(TOKENS), expected) <= F32_LIMIT


@pytest.mark.parametrize("name", ["llama-gqa8-llama3", "qwen2-yarn", "qwen3"])
def test_far_positions_keep_their_angle(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    path = write_model(tmp_path / "m.gguf", config, random_weights(config, seed=4))
    tokens = np.random.default_rng(2).integers(0, 352, 400).tolist()
    got = Session(path, context=400).eval(tokens)
    assert relative_error(got[-50:], Reference(path).eval(tokens)[-50:]) <= F32_LIMIT


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16], ids=lambda t: t.name)
def test_half_precision_weights(kind: Type, tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    path = write_model(tmp_path / "m.gguf", config, weight_type=kind)
    assert relative_error(Session(path).eval(TOKENS), Reference(path).eval(TOKENS)) <= F32_LIMIT


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["llama-gqa4", "llama-head-dim", "qwen2-gqa7-tied", "qwen3-tied"])
def test_every_instruction_set_gives_the_reference(name: str, isa: str, tmp_path: Path) -> None:
    require_isa(isa)
    config = CONFIGS[name]
    path = write_model(tmp_path / "m.gguf", config, random_weights(config, seed=5))
    expected = Reference(path).eval(TOKENS)
    assert relative_error(Session(path, isa=isa).eval(TOKENS), expected) <= F32_LIMIT
    half = Session(path, isa=isa, kv_type="f16").eval(TOKENS)
    assert relative_error(half, expected) <= F16_CACHE_LIMIT


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_the_instruction_set(isa: str, tmp_path: Path) -> None:
    require_isa(isa)
    path = write_model(tmp_path / "m.gguf", CONFIGS["llama"])
    script = (
        "import sys; from selm_edge import _core; m = _core.Model(sys.argv[1]);"
        "s = _core.Session(m, context=64, threads=1, kv_type='f32');"
        "sys.stdout.buffer.write(m.info.isa.encode() + b' ' + bytes(memoryview(s.eval([1, 5, 9]))))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "SELM_ISA": isa},
        cwd=tmp_path,  # not the sources, which hold no compiled core
        capture_output=True,
        check=True,
    )
    name, _, logits = run.stdout.partition(b" ")
    assert name.decode() == isa
    assert logits == Session(path, isa=isa, context=64).eval([1, 5, 9]).tobytes()


def test_an_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", CONFIGS["llama"])
    with pytest.raises(_core.CoreError, match="quantum"):
        _core.Model(str(path), isa="quantum")


# ---- Quantised models ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda t: t.name)
def test_quantised_logits_are_near_the_dequantised_reference(kind: Type, tmp_path: Path) -> None:
    """Two layers of products, each within 5e-4: 2e-3 in all, 3e-3 if weights are re-quantised."""
    path = write_quantised(tmp_path / "m.gguf", WIDE, kind)
    truth = Reference(path).eval(TOKENS)
    assert nmse(Session(path, exact=True).eval(TOKENS), truth) <= 2e-3
    assert nmse(Session(path).eval(TOKENS), truth) <= 3e-3


def test_quantised_logits_are_near_those_of_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp rounds activations too, in other places: both are within 2e-3 of the truth."""
    paths, errors = [], {}
    for config in (WIDE, WIDE_QWEN):
        for kind in BLOCK_TYPES:
            path = tmp_path / f"{config.arch}-{kind.name}.gguf"
            paths.append(write_quantised(path, config, kind))
    for path, theirs in zip(paths, llama_cpp_logits(paths, TOKENS, tmp_path), strict=True):
        errors[path.stem] = nmse(Session(path).eval(TOKENS), theirs)
    assert {name: e for name, e in errors.items() if e > 4e-3} == {}


def test_float_logits_are_those_of_llama_cpp(tmp_path: Path) -> None:
    paths = [write_model(tmp_path / f"{name}.gguf", config) for name, config in CONFIGS.items()]
    errors = {}
    for path, theirs in zip(paths, llama_cpp_logits(paths, TOKENS, tmp_path), strict=True):
        errors[path.stem] = relative_error(Session(path).eval(TOKENS), theirs)
    assert {name: e for name, e in errors.items() if e > 1e-3} == {}


# ---- The same bits -----------------------------------------------------------------------------

SAME_BITS = {
    "F32": (CONFIGS["qwen3"], None),
    "F16": (CONFIGS["llama-gqa4"], Type.F16),
    "Q4_0": (WIDE, Type.Q4_0),
    "Q8_0": (WIDE_QWEN, Type.Q8_0),
    "Q4_K": (WIDE, Type.Q4_K),
    "Q6_K": (WIDE_QWEN, Type.Q6_K),
}


@pytest.fixture(params=SAME_BITS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config, kind = SAME_BITS[request.param]
    path = tmp_path / "m.gguf"
    return write_quantised(path, config, kind) if kind else write_model(path, config)


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize("isa", ISAS)
def test_pieces_of_up_to_16_give_the_same_bits(model: Path, isa: str, kv_type: str) -> None:
    require_isa(isa)

    def session() -> Session:
        return Session(model, isa=isa, kv_type=kv_type)

    single = session().eval_in_pieces(TOKENS, [1])
    for sizes in ([16], [2, 3], [7], [15, 1, 16]):
        assert session().eval_in_pieces(TOKENS, sizes).tobytes() == single.tobytes()
    # A larger piece may use faster arithmetic, each product within 2e-4 (the C++ tests see to it);
    # two layers of random weights make more of that.
    assert nmse(session().eval(TOKENS), single) <= 2e-3
    exact = Session(model, isa=isa, kv_type=kv_type, exact=True)
    assert exact.eval(TOKENS).tobytes() == single.tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_threads_do_not_change_a_bit(model: Path, isa: str) -> None:
    require_isa(isa)
    one = [Session(model, isa=isa, threads=1).eval_in_pieces(TOKENS, s) for s in ([1], [48])]
    for threads in (2, 3, 5):
        for sizes, expected in zip(([1], [48]), one, strict=True):
            got = Session(model, isa=isa, threads=threads).eval_in_pieces(TOKENS, sizes)
            assert got.tobytes() == expected.tobytes()


def test_every_run_gives_the_same_bits(model: Path) -> None:
    runs = {Session(model, threads=2).eval(TOKENS).tobytes() for _ in range(5)}
    assert len(runs) == 1


def test_an_internal_batch_of_any_size_gives_the_same_bits(model: Path) -> None:
    expected = Session(model).eval_in_pieces(TOKENS, [1]).tobytes()
    for batch in (1, 3, 16):
        assert Session(model, batch=batch).eval(TOKENS).tobytes() == expected


def test_what_is_truncated_leaves_no_trace(model: Path) -> None:
    session = Session(model)
    first = session.eval_in_pieces(TOKENS, [8])
    session.core.truncate(20)
    session.eval_in_pieces(TOKENS[::-1], [16])  # other tokens in the places behind
    session.core.truncate(20)
    assert session.core.position == 20
    again = session.eval_in_pieces(TOKENS[20:], [8])
    assert again.tobytes() == first[20:].tobytes()


def test_sessions_of_one_model_do_not_disturb_each_other(model: Path) -> None:
    shared = _core.Model(str(model))
    expected = Session(model).eval(TOKENS).tobytes()

    def work(_: int) -> bytes:
        session = _core.Session(shared, context=64, threads=2, kv_type="f32")
        return bytes(memoryview(session.eval(TOKENS)))

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {expected}


def test_last_logits_are_the_last_row_of_all(model: Path) -> None:
    every = Session(model).eval_in_pieces(TOKENS[:16], [16])
    last = Session(model).core.eval(TOKENS[:16], "last")
    assert bytes(memoryview(last)) == every[-1].tobytes()


# ---- A session's limits ------------------------------------------------------------------------


def test_the_cache_is_counted_exactly(tmp_path: Path) -> None:
    config = NUMPY_ONLY["llama-kv-per-layer"]
    path = write_model(tmp_path / "m.gguf", config)
    for kv_type, size in (("f16", 2), ("f32", 4)):
        session = Session(path, kv_type=kv_type)
        assert session.core.state_bytes == 0
        session.eval(TOKENS)
        heads = sum(config.kv(layer) for layer in range(config.layers))
        assert session.core.state_bytes == len(TOKENS) * 2 * heads * config.d_head * size


@pytest.mark.parametrize("isa", ISAS)
def test_a_q8_0_cache(tmp_path: Path, isa: str) -> None:
    """Half the memory of f16, nearly its logits, and the same bits for prompts in pieces."""
    require_isa(isa)
    path = write_quantised(tmp_path / "m.gguf", WIDE, Type.F16)
    session = Session(path, isa=isa, kv_type="q8_0", exact=True)
    logits = session.eval(TOKENS)
    assert session.core.state_bytes == len(TOKENS) * 2 * 2 * 2 * (WIDE.d_head // 32 * 34)
    exact = Session(path, isa=isa, kv_type="f32").eval(TOKENS)
    # An element is off by up to 1 part in 254 of its block's largest; weights are random here.
    assert 0 < relative_error(logits, exact) < 4e-2
    for sizes in ([1], [7], [15, 1, 16]):
        again = Session(path, isa=isa, kv_type="q8_0").eval_in_pieces(TOKENS, sizes)
        assert again.tobytes() == logits.tobytes()


def test_a_q8_0_cache_needs_heads_of_whole_blocks(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", CONFIGS["llama"])
    with pytest.raises(_core.CoreError, match="blocks of 32") as caught:
        Session(path, kv_type="q8_0")
    assert caught.value.args[0] == "invalid_argument"


def test_a_full_context_evaluates_nothing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", CONFIGS["llama"])
    session = Session(path, context=32)
    expected = session.eval(TOKENS[:30])
    with pytest.raises(_core.CoreError, match="context") as caught:
        session.eval(TOKENS[:3])
    assert caught.value.args[0] == "context_full"
    assert session.core.position == 30
    session.core.truncate(0)
    assert session.eval(TOKENS[:30]).tobytes() == expected.tobytes()
    assert session.eval(TOKENS[:2]).shape == (2, 352)  # the last two places are usable


@pytest.mark.parametrize("token", [-1, 352, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused(token: int, tmp_path: Path) -> None:
    session = Session(write_model(tmp_path / "m.gguf", CONFIGS["llama"]))
    with pytest.raises(_core.CoreError, match=str(token)):
        session.eval([1, token, 2])
    assert session.core.position == 0


def test_an_embedding_is_the_mean_of_the_normed_states(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", CONFIGS["qwen2"])
    reference = Reference(path)
    mean = np.mean([reference.hidden(t) for t in TOKENS], axis=0)
    session = Session(path, batch=16)
    got = np.array(memoryview(session.core.embed(TOKENS)))
    assert relative_error(got, mean / np.linalg.norm(mean)) <= F32_LIMIT
    assert session.core.position == 0


@pytest.mark.parametrize("which", ["all", "last", "none"])
def test_no_tokens_give_no_logits(which: str, tmp_path: Path) -> None:
    session = Session(write_model(tmp_path / "m.gguf", CONFIGS["llama"]))
    session.eval([1, 2])
    assert memoryview(session.core.eval([], which)).nbytes == 0
    assert session.core.position == 2
