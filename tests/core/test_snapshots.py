"""Sessions of standard models come back bit for bit, and nothing but a whole snapshot is taken."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.core import Session, array
from support.gguf_files import CONFIGS, NUMPY_ONLY, random_weights, set_key, write_model
from support.processes import child_environment
from support.snapshots import Walk

from selm_edge import _core

IDS = np.random.default_rng(3).integers(0, 300, 240).tolist()
HEADER = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("m") / "m.gguf", CONFIGS["qwen2"])


@pytest.fixture(scope="module")
def snapshot(model: Path) -> bytes:
    session = Session(model)
    session.eval(IDS[:40])
    return session.core.snapshot()


def test_a_thousand_random_sequences_are_a_fresh_run(model: Path, tmp_path: Path) -> None:
    walk = Walk(model, tmp_path)
    for _ in range(1000):
        walk.sequence()
    assert min(walk.done[step] for step in ("save", "restore", "fork", "roll_back")) > 200


@pytest.mark.parametrize("name", ["llama-kv-per-layer", "qwen3", "qwen2-gqa7-tied"])
@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_other_shapes_and_caches_too(name: str, kv_type: str, tmp_path: Path) -> None:
    config = {**CONFIGS, **NUMPY_ONLY}[name]
    if kv_type == "q8_0" and config.d_head % 32:
        config = replace(config, head_dim=32)
    walk = Walk(write_model(tmp_path / "m.gguf", config), tmp_path, kv_type=kv_type)
    for _ in range(60):
        walk.sequence()


def test_a_snapshot_holds_what_is_in_use_and_no_more(model: Path) -> None:
    session = Session(model, context=512)
    for wanted in (0, 1, 40):
        session.core.truncate(0)
        if wanted:
            session.eval(IDS[:wanted])
        held = session.core.state_bytes + 4 * wanted
        assert len(session.core.snapshot()) == HEADER + held + 8


def refused(session: Session, data: bytes) -> str:
    """The message; the session goes on as if nothing had been tried."""
    before = session.core.tokens()
    with pytest.raises(_core.CoreError) as caught:
        session.core.restore(data)
    assert session.core.tokens() == before
    status, message = caught.value.args
    return f"{status}: {message}"


def test_damage_is_refused_and_changes_nothing(model: Path, snapshot: bytes) -> None:
    session = Session(model)
    session.eval(IDS[:5])
    rng = random.Random(0)
    cuts = {0, 1, 7, 8, 11, 12, 39, 40, 47, 48, len(snapshot) - 1, len(snapshot) // 2}
    for cut in cuts:
        assert "format: " in refused(session, snapshot[:cut])
    assert "should end after" in refused(session, snapshot + b"\0")
    places = [*range(HEADER + 8), *(rng.randrange(len(snapshot)) for _ in range(300))]
    for place in places:
        bad = bytearray(snapshot)
        bad[place] ^= 1 << rng.randrange(8)
        said = refused(session, bytes(bad))
        assert said.startswith("unsupported: " if 8 <= place < 12 else "format: "), (place, said)
    fresh = Session(model).eval(IDS[:15])
    assert np.array_equal(session.eval(IDS[5:15]), fresh[5:])


def test_what_is_sound_but_not_for_this_session_is_refused(
    model: Path, snapshot: bytes, tmp_path: Path
) -> None:
    config = CONFIGS["qwen2"]
    other = write_model(tmp_path / "o.gguf", config, random_weights(config, seed=1))
    assert "of another model" in refused(Session(other), snapshot)
    text = gguf.GGUFValueType.STRING
    edited = write_model(
        tmp_path / "e.gguf",
        config,
        edit=lambda writer, _: set_key(writer, "general.description", "another", text),
    )
    assert "of another model" in refused(Session(edited), snapshot)
    said = refused(Session(model, kv_type="f16"), snapshot)
    assert said.startswith("unsupported: ") and "as f32, this session as f16" in said
    said = refused(Session(model, context=39), snapshot)
    assert said.startswith("context_full: ") and "40 tokens" in said and "39 positions" in said
    session = Session(model, context=40)
    session.core.restore(snapshot)
    assert session.core.position == 40
    newer = bytearray(snapshot)
    newer[8:12] = (2).to_bytes(4, "little")
    assert "is of version 2; this library reads version 1" in refused(session, bytes(newer))


def test_the_same_model_elsewhere_is_the_same(model: Path, snapshot: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model.read_bytes())
    session = Session(copy)
    session.core.restore(snapshot)
    assert np.array_equal(session.eval(IDS[40:]), Session(model).eval(IDS)[40:])


def test_a_change_in_any_tensor_is_another_model(snapshot: bytes, tmp_path: Path) -> None:
    config = CONFIGS["qwen2"]
    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        weights = random_weights(config)
        weights[name] = weights[name] * 1.001
        path = write_model(tmp_path / "c.gguf", config, weights)
        assert "of another model" in refused(Session(path), snapshot)


def test_a_file_is_private_and_replaced_whole(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.snapshot"
    session = Session(model)
    for end in (30, 60):
        session.eval(IDS[end - 30 : end])
        session.core.save(str(path))
        assert path.read_bytes() == session.core.snapshot()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.snapshot"]
    for place in (tmp_path / "no" / "folder", tmp_path):
        with pytest.raises(_core.CoreError) as caught:
            session.core.save(str(place))
        assert caught.value.args[0] == "io"
    for bad in (tmp_path / "missing", tmp_path):
        with pytest.raises(_core.CoreError) as caught:
            session.core.restore_file(str(bad))
        assert caught.value.args[0] == "io"
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.snapshot"]


_FULL_DISK = """
import resource, sys
from selm_edge import _core
session = _core.Session(_core.Model(sys.argv[1]), context=256, kv_type="f32")
session.restore_file(sys.argv[2])
session.eval([1, 2, 3], "none")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    session.save(sys.argv[2])
except _core.CoreError as error:
    print(*error.args, sep=": ")
print(session.position)
"""


@pytest.mark.parametrize("limit", [0, 1000, 65536, 100_000])
def test_a_full_disk_leaves_the_old_file(
    limit: int, model: Path, snapshot: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "s.snapshot"
    session = Session(model)
    session.eval(IDS)
    session.core.save(str(path))
    before = path.read_bytes()
    assert len(before) > 100_000
    command = [sys.executable, "-c", _FULL_DISK, str(model), str(path), str(limit)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=child_environment()
    )
    assert done.stdout.splitlines() == ["io: cannot write: File too large", "243"]
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.snapshot"]


_SAVER = """
import sys
from selm_edge import _core
session = _core.Session(_core.Model(sys.argv[1]), context=512, kv_type="f32")
print("ready", flush=True)
while True:
    session.truncate(0)
    for part in range(8):
        session.eval([part] * 60, "none")
        session.save(sys.argv[2])
"""


def test_a_saver_that_is_killed_leaves_a_whole_snapshot(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.snapshot"
    chance = random.Random(1)
    session = Session(model, context=512)
    session.eval(IDS)
    session.core.save(str(path))
    seen = set()
    for _ in range(25):
        command = [sys.executable, "-c", _SAVER, str(model), str(path)]
        saver = subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment())
        assert saver.stdout is not None and saver.stdout.readline() == b"ready\n"
        time.sleep(chance.random() * 0.03)  # the moment of death is the thing that varies
        os.kill(saver.pid, signal.SIGKILL)
        saver.communicate()
        session.core.restore_file(str(path))
        seen.add(session.core.position)
        logits = array(session.core.eval([7], "last"))
        tokens = session.core.tokens()
        session.core.truncate(0)
        assert np.array_equal(logits, array(session.core.eval(tokens, "last")))
    assert len(seen) > 1
