"""Sessions of SELM files come back bit for bit: rings, sinks and sums, whatever evaluates next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
from selm_export.gguf_file import Label
from selm_export.modeling.file import write_model
from support.core import Session
from support.selm_models import some_model, some_tokenizer
from support.snapshots import Walk

from selm_edge import _core

IDS = np.random.default_rng(5).integers(0, 400, 400).tolist()
FAR = ["performer"] * 3
MIXED = {"attention_kinds": ["performer", "window", "softmax"], "sinks": 3, "head_gate": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "far, window and all": MIXED,
    "favor+": {"attention_kinds": FAR},
    "favor+, long window and many sinks": {"attention_kinds": FAR, "window": 70, "sinks": 40},
    "elu1": {"attention_kinds": FAR, "feature_map": "elu1", "features": 16, "window": 33},
    "hedgehog, window of one": {"attention_kinds": FAR, "feature_map": "hedgehog", "window": 1},
    "window": {"attention_kinds": ["window"] * 3, "window": 7},
    "experts": {
        "attention_kinds": ["performer", "softmax", "performer"], "trunk_layers": 1,
        "expert_names": ["one", "two"], "expert_kind": "full", "expert_route": "early",
    },
}  # fmt: skip


def written(path: Path, changes: dict[str, Any]) -> Path:
    write_model(path, some_model(**changes), some_tokenizer(), Label("Test"))
    return path


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: Any, tmp_path_factory: Any) -> Path:
    return written(tmp_path_factory.mktemp("m") / "m.gguf", VARIANTS[request.param])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: Any) -> Path:
    return written(tmp_path_factory.mktemp("m") / "m.gguf", MIXED)


def test_a_thousand_random_sequences_are_a_fresh_run(mixed: Path, tmp_path: Path) -> None:
    walk = Walk(mixed, tmp_path)
    for _ in range(1000):
        walk.sequence()
    assert min(walk.done[step] for step in ("save", "restore", "fork", "roll_back")) > 200


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_every_kind_of_layer_too(model: Path, kv_type: str, tmp_path: Path) -> None:
    walk = Walk(model, tmp_path, kv_type=kv_type, seed=1)
    for _ in range(80):
        walk.sequence()


def test_the_same_tokens_give_the_same_snapshot(model: Path) -> None:
    """However they came in, and whatever the session could hold beside."""
    for count in (0, 1, 31, 64, 70, 140, 350):
        seen = set()
        for batch, piece in ((0, 400), (187, 400), (32, 33), (512, 1)):
            session = Session(model, context=400 + batch % 7, batch=batch)
            if count:
                session.eval_in_pieces(IDS[:count], [piece])
            seen.add(session.core.snapshot())
        assert len(seen) == 1, count


def test_what_is_saved_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {"attention_kinds": FAR, "sinks": 4})
    session = Session(path, context=4096)
    session.eval(IDS)
    first = len(session.core.snapshot()) - 4 * session.core.position
    session.eval(IDS * 8)
    assert len(session.core.snapshot()) - 4 * session.core.position - first <= 64 * 3 * 2 * 2 * 64


def test_saving_changes_nothing(model: Path) -> None:
    """Where a session can go back to as well."""
    for back in (10, 32, 100, 250):
        kept = []
        for saves in (False, True):
            session = Session(model, context=400, batch=300)
            session.eval_in_pieces(IDS[:340], [290, 50])
            if saves:
                session.core.snapshot()
                session.core.fork()
            kept.append(session.core.truncate(340 - back))
            at = kept[-1]
            assert np.array_equal(
                session.eval(IDS[at:]), Session(model, context=400).eval(IDS)[at:]
            )
        assert kept[0] == kept[1]


def test_a_restored_session_takes_tokens_back_as_a_fresh_one(model: Path) -> None:
    fresh = Session(model, context=400).eval(IDS)
    saver = Session(model, context=400, batch=400)
    saver.eval(IDS[:300])
    for batch, back in ((32, 32), (400, 31), (64, 1), (187, 17)):
        session = Session(model, context=400, batch=batch)
        session.core.restore(saver.core.snapshot())
        assert session.core.truncate(300 - back) == 300 - back
        assert np.array_equal(session.eval(IDS[300 - back : 390]), fresh[300 - back : 390])
        session.core.restore(saver.core.snapshot())
        session.eval(IDS[:90])
        assert session.core.truncate(300) == 300  # where it was restored
        assert np.array_equal(session.eval(IDS[300:]), fresh[300:])


def test_damage_is_refused_and_changes_nothing(mixed: Path) -> None:
    saver = Session(mixed, context=400)
    saver.eval(IDS[:200])
    good = saver.core.snapshot()
    session = Session(mixed, context=400)
    session.eval(IDS[:77])
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good)
        bad[int(rng.integers(12, len(bad)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(_core.CoreError, match="format"):
            session.core.restore(bytes(bad))
        with pytest.raises(_core.CoreError, match="format"):
            session.core.restore(good[: int(rng.integers(len(good)))])
    assert np.array_equal(session.eval(IDS[77:]), Session(mixed, context=400).eval(IDS)[77:])


def test_another_kind_of_layer_is_another_model(mixed: Path, tmp_path: Path) -> None:
    saver = Session(mixed)
    saver.eval(IDS[:50])
    other = written(tmp_path / "o.gguf", {**MIXED, "sinks": 4})
    with pytest.raises(_core.CoreError, match="of another model"):
        Session(other).core.restore(saver.core.snapshot())
