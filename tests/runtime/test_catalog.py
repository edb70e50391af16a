"""The list of models, preferences and paths: what is kept, and what happens when it cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import child_environment

from selm_edge import config, paths
from selm_edge.catalog import Catalog, sha256_of
from selm_edge.errors import ModelError, SelmError

not_root = pytest.mark.skipif(
    hasattr(os, "getuid") and os.getuid() == 0, reason="root writes everywhere"
)


def bundle(directory: Path, model: Path, **changes: object) -> Path:
    """A package's model directory with one model in it."""
    directory.mkdir()
    file = directory / "selm-mini.gguf"
    file.write_bytes(model.read_bytes())
    card = {
        "name": "selm-mini", "file": file.name, "size": file.stat().st_size,
        "sha256": sha256_of(file), "license": "Apache-2.0", "steps": 12, **changes,
    }  # fmt: skip
    (directory / "selm-mini.json").write_text(json.dumps(card))
    return directory


def test_add_list_remove(stories: Path, home: Path, tmp_path: Path) -> None:
    catalog = Catalog(bundled=tmp_path / "none")
    assert catalog.list() == []
    entry = catalog.add(stories)
    assert entry.name == "stories" and entry.path == stories and not entry.bundled
    assert Catalog(bundled=tmp_path / "none").list() == [entry]
    assert catalog.find("stories") == entry and catalog.resolve(None) == entry
    assert catalog.add(stories) == entry  # again is fine
    assert oct(home.stat().st_mode & 0o777) == "0o700"
    assert catalog.remove("stories") == entry and stories.exists()
    assert catalog.list() == []
    with pytest.raises(SelmError, match="no added model"):
        catalog.remove("stories")


def test_names(stories: Path, qwen: Path) -> None:
    catalog = Catalog()
    catalog.add(stories, "one")
    with pytest.raises(SelmError, match="already"):
        catalog.add(qwen, "one")
    for bad in ("", "a b", "../x", "-x", "x" * 101):
        if bad:
            with pytest.raises(SelmError, match="name"):
                catalog.add(qwen, bad)
    assert [entry.name for entry in catalog.list() if not entry.bundled] == ["one"]


def test_what_is_no_model_is_not_added(tmp_path: Path, stories: Path) -> None:
    catalog = Catalog()
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(stories.read_bytes()[:5000])
    for path in (wrong, tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(ModelError):
            catalog.add(path)
    assert not catalog.file.exists() or catalog.list() == Catalog().list()


def test_the_bundled_model_is_the_default(stories: Path, qwen: Path, tmp_path: Path) -> None:
    catalog = Catalog(bundled=bundle(tmp_path / "package", stories))
    catalog.add(qwen)
    entry = catalog.resolve(None)
    assert entry.name == "selm-mini" and entry.bundled and entry.licence == "Apache-2.0"
    assert entry.details == {"steps": 12}
    assert catalog.verify("selm-mini").ok
    with pytest.raises(SelmError, match="part of the package"):
        catalog.remove("selm-mini")
    assert catalog.resolve("qwen").path == qwen
    assert catalog.resolve(str(stories)).path == stories
    with pytest.raises(SelmError, match="selm-mini"):
        catalog.resolve("nothing")
    with pytest.raises(ModelError):
        catalog.resolve("nothing.gguf")


def test_of_several_bundled_models_one_is_named_the_default(stories: Path, tmp_path: Path) -> None:
    directory = bundle(tmp_path / "package", stories)
    card = json.loads((directory / "selm-mini.json").read_text())
    for name, facts in (("selm-a", {}), ("selm-z", {"default": True})):
        (directory / f"{name}.json").write_text(json.dumps(card | {"name": name} | facts))
    catalog = Catalog(bundled=directory)
    assert [entry.name for entry in catalog.list()] == ["selm-z", "selm-a", "selm-mini"]
    assert catalog.resolve(None).name == "selm-z" and "default" not in catalog.resolve(None).details
    (directory / "selm-z.json").unlink()
    assert Catalog(bundled=directory).resolve(None).name == "selm-a"


def test_a_bundled_model_that_was_changed(stories: Path, tmp_path: Path) -> None:
    directory = bundle(tmp_path / "package", stories)
    file = directory / "selm-mini.gguf"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    checks = Catalog(bundled=directory).verify("selm-mini").checks
    assert checks["size"] is None and "should be" in (checks["sha256"] or "")
    file.write_bytes(data[:-1])
    verdict = Catalog(bundled=directory).verify("selm-mini")
    assert not verdict.ok and verdict.checks["size"] and verdict.checks["opens"]
    file.unlink()
    verdict = Catalog(bundled=directory).verify("selm-mini")
    assert all(verdict.checks.values())


def test_the_first_verification_fixes_the_sum(stories: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(stories.read_bytes())
    catalog = Catalog()
    catalog.add(own)
    assert catalog.verify("own").ok
    found = catalog.find("own")
    assert found is not None and found.sha256 == sha256_of(own)
    data = bytearray(own.read_bytes())
    data[-100] ^= 1
    own.write_bytes(data)
    assert catalog.verify("own").checks["sha256"]


def test_a_torn_list_is_reported_and_kept(stories: Path, home: Path) -> None:
    catalog = Catalog()
    catalog.add(stories)
    text = catalog.file.read_text()
    for wrong in (text[: len(text) // 2], "[]", '{"models": [{"name": 1}]}', "\x00"):
        catalog.file.write_text(wrong)
        assert [entry for entry in catalog.list() if not entry.bundled] == []
        assert catalog.warnings and str(catalog.file) in catalog.warnings[0]
        with pytest.raises(SelmError):
            catalog.add(stories, "other")
        assert catalog.file.read_text() == wrong  # nothing of the user's is overwritten


def test_a_home_that_cannot_be_made(stories: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    catalog = Catalog(blocked / "home")
    assert all(entry.bundled for entry in catalog.list())
    with pytest.raises(SelmError, match="SELM_HOME"):
        catalog.add(stories)
    assert catalog.resolve(str(stories)).path == stories  # by path it still works


@not_root
def test_a_read_only_home(stories: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert paths.check(locked / "home") and paths.ensure_dir(locked / "home")
    with pytest.raises(SelmError, match="cannot be changed"):
        Catalog(locked / "home").add(stories)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc takes no new directory")
def test_a_file_system_that_takes_nothing(stories: Path) -> None:
    catalog = Catalog(Path("/proc/selm"))
    assert all(entry.bundled for entry in catalog.list())
    assert paths.check(Path("/proc/selm")) and paths.ensure_dir(Path("/proc/selm"))
    with pytest.raises(SelmError, match="cannot be changed"):
        catalog.add(stories)


WRITER = """
import sys
from selm_edge.catalog import Catalog
path, name = sys.argv[1:]
catalog = Catalog()
print("ready", flush=True)
i = 0
while True:
    catalog.add(path, f"{name}{i % 7}")
    if i % 7 == 6:
        for k in range(7):
            catalog.remove(f"{name}{k}")
    i += 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_writers_never_tear_the_list(stories: Path) -> None:
    catalog = Catalog()
    catalog.add(stories, "kept")
    for round_ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(stories), name],
                stdout=subprocess.PIPE,
                env=child_environment(),
            )
            for name in ("a", "b")
        ]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline()
        time.sleep(0.05 * (round_ + 1))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        names = [entry.name for entry in catalog.list()]
        assert "kept" in names and catalog.warnings == []
        catalog.add(stories, "after")  # no lock is left behind
        catalog.remove("after")


def test_eight_processes_add_at_once(stories: Path) -> None:
    script = "import sys; from selm_edge.catalog import Catalog; Catalog().add(*sys.argv[1:])"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(stories), f"m{i}"], env=child_environment()
        )
        for i in range(8)
    ]
    assert [process.wait() for process in started] == [0] * 8
    assert {f"m{i}" for i in range(8)} <= {entry.name for entry in Catalog().list()}


def test_a_failed_write_leaves_the_old_list(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog()
    catalog.add(stories, "old")
    before = catalog.file.read_text()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SelmError, match="No space left"):
        catalog.add(stories, "new")
    assert catalog.file.read_text() == before
    assert sorted(p.name for p in catalog.file.parent.iterdir()) == ["models.json", "models.lock"]


# ---- Preferences -------------------------------------------------------------------------------


def test_preferences(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load().model is None and config.load().problems == []
    home.mkdir()
    file = home / "config.json"
    file.write_text('{"model": "m", "threads": 2, "sampling": {"temperature": 0.5, "seed": 3}}')
    loaded = config.load()
    assert (loaded.model, loaded.threads, loaded.context) == ("m", 2, 4096)
    assert loaded.sampling == {"temperature": 0.5, "seed": 3} and loaded.problems == []
    monkeypatch.setenv("SELM_MODEL", "other")
    monkeypatch.setenv("SELM_THREADS", "many")
    loaded = config.load()
    assert (loaded.model, loaded.threads) == ("other", 2)
    assert loaded.problems == ["SELM_THREADS is a whole number from 1 to 4096"]


def test_one_question_for_every_number_preference() -> None:
    for name, right, wrong in (
        ("threads", 1, 0),
        ("context", 4096, 15),
        ("max_tokens", 512, 1 << 40),
        ("temperature", 0.5, float("nan")),
        ("seed", 0, 1.5),
        ("top_k", 40, 10**400),
    ):
        assert config.number_problem(name, right) is None
        assert f"{name} is a " in (config.number_problem(name, wrong) or "")
    assert "no" in (config.number_problem("heat", 1) or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ('{"threads": 0}', "threads"),
        ('{"threads": true}', "threads"),
        ('{"model": 3}', "model"),
        ('{"sampling": {"heat": 1}}', "heat"),
        ('{"sampling": {"temperature": -1}}', "temperature"),
        ('{"sampling": {"top_k": 1.5}}', "top_k"),
        ('{"colour": "red"}', "colour"),
        ("\xff", "cannot be read"),
    ],
)
def test_wrong_preferences_are_named_and_the_rest_holds(home: Path, text: str, said: str) -> None:
    home.mkdir()
    (home / "config.json").write_bytes(text.encode("latin-1"))
    loaded = config.load()
    (problem,) = loaded.problems
    assert said in problem and str(home) in problem
    assert loaded.threads is None and loaded.sampling == {}
    if text.endswith("}"):
        (home / "config.json").write_text(text[:-1] + ', "max_tokens": 7}')
        assert config.load().max_tokens == 7


# ---- Paths -------------------------------------------------------------------------------------


def test_selm_home_holds_everything(home: Path) -> None:
    assert paths.data_dir() == home
    for path in (paths.config_file(), paths.database_file()):
        assert home in path.parents
    assert not home.exists()  # asking makes nothing


def test_without_selm_home_the_systems_places_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg/data")
    if sys.platform.startswith("linux"):
        assert paths.data_dir() == Path("/xdg/data/selm")
    assert paths.data_dir().is_absolute()


def test_directories_are_private(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    assert paths.ensure_dir(made) is None
    assert made.stat().st_mode & 0o777 == 0o700
    open_ = tmp_path / "open"
    open_.mkdir(mode=0o755)
    assert paths.ensure_dir(open_) is None and open_.stat().st_mode & 0o777 == 0o755  # as it was
    (tmp_path / "file").write_text("")
    assert "file" in (paths.ensure_dir(tmp_path / "file" / "x") or "")
    assert paths.check(tmp_path / "new") is None and not (tmp_path / "new").exists()
