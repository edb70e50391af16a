"""Random models for benchmarks: the shapes, types and sizes of real files, and they run."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from selm_export import random_model
from selm_export.random_model import SHAPES, Shape
from support.core import Session, Type, llama_cpp_logits
from support.oracles import nmse
from support.reference import Reference

from selm_edge import Model

# Qwen2.5-0.5B's oddity in small: rows of 896 (no multiple of 256) beside rows of 1280.
SMALL = Shape(896, 1280, 2, 14, 2, 64, vocabulary=1024, context=2048)
TOKENS = np.random.default_rng(0).integers(0, 1000, 12).tolist()


@pytest.fixture(scope="module", params=sorted(random_model.MIXES))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / f"{request.param}.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", SMALL)
        random_model.write_model(path, "small", request.param)
    return path


def test_it_runs_here_and_gives_the_reference(small: Path) -> None:
    with Model.load(small, context=64, threads=1) as model:
        assert model.detokenize(model.tokenize("Hello, 世界!")) == "Hello, 世界!"
    expected = Reference(small).eval(TOKENS)
    assert 0.1 < expected.std() < 10
    assert nmse(Session(small, context=64).eval(TOKENS), expected) <= 2e-3


def test_llama_cpp_reads_it_as_we_do(small: Path, tmp_path: Path) -> None:
    theirs = llama_cpp_logits([small], TOKENS, tmp_path)[0]
    assert nmse(Session(small, context=64).eval(TOKENS), theirs) <= 4e-3


def test_types_fall_back_where_a_row_is_no_multiple_of_256(small: Path) -> None:
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(small).tensors}
    assert kinds["blk.0.attn_norm.weight"] == Type.F32
    if small.stem == "q4_k_m":
        assert kinds["token_embd.weight"] == Type.Q8_0  # instead of Q6_K
        assert kinds["blk.0.attn_q.weight"] == Type.Q5_0  # instead of Q4_K
        assert {kinds[f"blk.{i}.ffn_down.weight"] for i in range(2)} == {Type.Q4_K, Type.Q6_K}


# llama.cpp's quantiser makes files of these sizes (bytes of tensors, in MB) of the real weights.
SIZES = {
    ("qwen2.5-0.5b", "q4_0"): 347,
    ("qwen2.5-0.5b", "q4_k_m"): 392,
    ("qwen2.5-0.5b", "q8_0"): 525,
    ("qwen2.5-1.5b", "q4_k_m"): 980,
    ("qwen2.5-1.5b", "q5_k_m"): 1119,
    ("qwen2.5-1.5b", "q6_k"): 1267,
}


def tensor_bytes(name: str, mix: str) -> int:
    shape = SHAPES[name]
    return sum(
        int(np.prod(gguf.quant_shape_to_byte_shape(size, kind)))
        for tensor, size in random_model.tensor_shapes(shape).items()
        for kind in (random_model.tensor_type(tensor, size, mix, shape.layers),)
    )


@pytest.mark.parametrize(("name", "mix"), SIZES)
def test_sizes_are_those_of_real_files(name: str, mix: str) -> None:
    assert abs(tensor_bytes(name, mix) / 1e6 / SIZES[name, mix] - 1) < 0.01


def test_three_experts_cost_a_ninth_of_the_file() -> None:
    grown = tensor_bytes("edge-experts", "q8_0") / tensor_bytes("edge-softmax", "q8_0")
    assert 1.05 < grown <= 1.12


def test_experts_speak(tmp_path: Path) -> None:
    tiny = Shape(64, 96, 4, 2, 1, 32, vocabulary=600, context=256, experts=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", tiny)
        random_model.write_model(tmp_path / "m.gguf", "tiny", "q8_0")
    with Model.load(tmp_path / "m.gguf", threads=1) as model:
        assert model.experts == ("expert-1", "expert-2", "expert-3")
        reply = model.generate(list(range(5, 40)), max_tokens=60, temperature=0.0).finish()
        assert sum(reply.stats.experts.values()) == reply.stats.tokens > 0


def test_the_synthetic_vocabulary_is_whole() -> None:
    tokens, types, merges = random_model.synthetic_vocabulary(151936)
    assert len(tokens) == len(types) == len(set(tokens)) == 151936
    known, made = set(tokens[:256]), []
    for merge in merges:  # each joins two tokens made before it
        left, right = merge.split(" ")
        assert left in known
        assert right in known
        known.add(left + right)
        made.append(left + right)
    assert made == tokens[256 : 256 + len(made)]


def test_a_vocabulary_can_be_copied(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", SMALL)
        random_model.write_model(path, "small", "q8_0", vocabulary=small)
    with Model.load(small) as first, Model.load(path) as second:
        assert first.tokenize("some words") == second.tokenize("some words")


def test_an_impossible_output_is_an_error_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_model.main(["qwen2.5-0.5b", str(tmp_path / "no" / "such" / "folder.gguf")]) == 1
    assert "folder.gguf" in capsys.readouterr().err
