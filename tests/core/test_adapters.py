"""LoRA adapters: the logits of merged weights, loaded, scaled and taken away between tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.adapters import ALPHA, RANK, pairs, write_adapter
from support.core import Session
from support.gguf_files import CONFIGS, random_weights, to_gguf, write_model
from support.oracles import relative_error

from selm_edge import _core

TOKENS = np.random.default_rng(3).integers(3, 350, 60).tolist()
PARTS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
NAMES = ["llama", "qwen2", "qwen3"]


class Case:
    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.config = folder, CONFIGS[name]
        self.weights = random_weights(self.config, seed=5)
        self.path = write_model(folder / "m.gguf", self.config, self.weights)
        self.names = to_gguf(self.config, self.weights)

    def adapter(self, name: str, seed: int, parts: list[str]) -> tuple[Path, dict[str, Any]]:
        low = pairs(self.names, seed, parts)
        return write_adapter(self.folder / name, self.config.arch, low), low

    def merged(self, *added: tuple[dict[str, Any], float]) -> Any:
        """Logits of a file whose weights hold scale * alpha / rank * b a already."""
        raw = {}
        for name, value in self.names.items():
            total = value.astype(np.float64)
            for low, scale in added:
                if name in low:
                    a, b = low[name]
                    total = total + scale * ALPHA / RANK * (b.astype(np.float64) @ a)
            if any(name in low for low, _ in added):
                whole = np.ascontiguousarray(total.astype(np.float32))
                raw[name] = (whole.view(np.uint8), gguf.GGMLQuantizationType.F32)
        path = write_model(self.folder / "merged.gguf", self.config, self.weights, raw=raw)
        return Session(path).eval(TOKENS)


@pytest.fixture(scope="module", params=NAMES)
def case(request: Any, tmp_path_factory: Any) -> Case:
    return Case(tmp_path_factory.mktemp("a"), request.param)


def test_an_adapter_is_as_merged_weights(case: Case) -> None:
    path, low = case.adapter("all.gguf", 1, PARTS)
    session = Session(case.path, threads=2)
    plain = session.eval(TOKENS)
    adapter = _core.Adapter(session.model, str(path))
    for scale in (1.0, 0.4, -1.0):
        session.core.set_adapters([(adapter, scale)])
        session.core.truncate(0)
        expected = case.merged((low, scale))
        assert relative_error(plain, expected) > 1e-2
        assert relative_error(session.eval(TOKENS), expected) <= 1e-4
        session.core.truncate(0)
        assert relative_error(session.eval_in_pieces(TOKENS, [1, 20]), expected) <= 1e-4
    session.core.set_adapters([])
    session.core.truncate(0)
    assert np.array_equal(session.eval(TOKENS), plain)


def test_several_at_once_and_only_some_weights(case: Case) -> None:
    one, low_one = case.adapter("one.gguf", 2, ["attn_q", "ffn_down"])
    two, low_two = case.adapter("two.gguf", 3, ["ffn_up", "attn_q"])
    session = Session(case.path)
    adapters = [
        (_core.Adapter(session.model, str(one)), 0.7),
        (_core.Adapter(session.model, str(two)), 1.3),
    ]
    session.core.set_adapters(adapters)
    expected = case.merged((low_one, 0.7), (low_two, 1.3))
    assert relative_error(session.eval(TOKENS), expected) <= 1e-4


def test_between_tokens_the_past_stays(case: Case) -> None:
    """What was held before keeps its keys and values."""
    path, _ = case.adapter("late.gguf", 4, ["ffn_down"])
    half = len(TOKENS) // 2
    session = Session(case.path)
    adapter = _core.Adapter(session.model, str(path))
    plain = Session(case.path).eval(TOKENS)
    first = session.eval(TOKENS[:half])
    session.core.set_adapters([(adapter, 1.0)])
    session.eval(TOKENS[half:])
    session.core.truncate(half)
    session.core.set_adapters([])
    assert np.array_equal(np.concatenate([first, session.eval(TOKENS[half:])]), plain)


def test_an_adapter_for_another_base_is_refused(case: Case, tmp_path: Path) -> None:
    session = Session(case.path)

    def refused(path: Path, match: str) -> None:
        with pytest.raises(_core.CoreError, match=match):
            _core.Adapter(session.model, str(path))

    low = pairs(case.names, 1, PARTS)
    name = next(iter(low))
    a, b = low[name]
    arch = case.config.arch
    wrong = {name: (a[:, :-1].copy(), b)}
    refused(write_adapter(tmp_path / "1", arch, wrong),
            rf"{name}.lora_a has .*\[{a.shape[1] - 1}, 4.*ask for \[{a.shape[1]}, 4")  # fmt: skip
    refused(write_adapter(tmp_path / "2", arch, {name: (a, b[:-3].copy())}),
            rf"{name}.lora_b has .*\[4, {len(b) - 3}.*ask for \[4, {len(b)}")  # fmt: skip
    refused(write_adapter(tmp_path / "3", "gemma", low), "the adapter is for another base")
    refused(write_adapter(tmp_path / "4", arch, low, type="model"), "not an adapter")
    refused(write_adapter(tmp_path / "5", arch, low, adapter="control"), "only LoRA adapters")
    refused(write_adapter(tmp_path / "6", arch, {"token_embd.weight": (a, b)}), "token_embd.weight")
    refused(write_adapter(tmp_path / "7", arch, {"blk.99.attn_q.weight": (a, b)}), "blk.99.attn_q")
    refused(write_adapter(tmp_path / "8", arch, {}), "no tensors")
    refused(case.path, "general.type")
    other = Session(write_model(tmp_path / "other.gguf", case.config, case.weights))
    right = _core.Adapter(session.model, str(write_adapter(tmp_path / "9", arch, low)))
    with pytest.raises(_core.CoreError, match="another model"):
        other.core.set_adapters([(right, 1.0)])
    with pytest.raises(_core.CoreError, match="the most is 8"):
        session.core.set_adapters([(right, 1.0)] * 9)
