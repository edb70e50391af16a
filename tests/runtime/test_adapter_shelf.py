"""Which adapters are there, which are in use, and the way back: commands, chat, disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from support.adapters import pairs, write_adapter
from support.gguf_files import CONFIGS, random_weights, to_gguf, write_model

from selm_edge import Model, SelmError
from selm_edge.adapters import AdapterShelf, apply
from selm_edge.catalog import Catalog, Entry, sha256_of
from selm_edge.chat.adapters import ChatAdapters
from selm_edge.chat.models import opened
from selm_edge.cli.models import models

CONFIG = CONFIGS["llama"]
PROMPT = list(range(5, 40))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shelf")
    weights = random_weights(CONFIG, seed=5)
    names = to_gguf(CONFIG, weights)
    model = write_model(folder / "m.gguf", CONFIG, weights)
    low = pairs(names, 1, ["attn_q", "ffn_down"])
    digest = sha256_of(model)
    return {
        "model": model,
        "july": write_adapter(
            folder / "july.gguf", CONFIG.arch, low, name="July", base_sha256=digest
        ),
        "august": write_adapter(folder / "august.gguf", CONFIG.arch, pairs(names, 2, ["attn_v"])),
        "strange": write_adapter(folder / "strange.gguf", CONFIG.arch, low, base_sha256="0" * 64),
        "other": write_model(folder / "other.gguf", CONFIG, random_weights(CONFIG, seed=6)),
    }


@pytest.fixture
def entry(files: dict[str, Path], home: Path) -> Entry:
    return Catalog().add(files["model"], "mine")


def said(model: Model) -> str:
    return model.generate(PROMPT, temperature=0.0, max_tokens=20).finish().text


def test_use_leave_and_go_back(files: dict[str, Path], entry: Entry, home: Path) -> None:
    shelf = AdapterShelf()
    july, august = shelf.add(files["july"], entry), shelf.add(files["august"], entry)
    assert shelf.for_model(entry) == {} and july.rank == 4 and july.model_name == "mine"
    assert shelf.enable("july") == {"july": 1.0}
    assert shelf.enable("august", 0.5) == {"july": 1.0, "august": 0.5}
    assert shelf.for_model(entry) == {shelf.path_of(july): 1.0, shelf.path_of(august): 0.5}
    assert shelf.disable("july") == {"august": 0.5}
    digest = july.model_sha256
    for expected in ({"july": 1.0, "august": 0.5}, {"july": 1.0}, {}):
        assert shelf.rollback(digest) == expected == AdapterShelf().in_use(digest)
    with pytest.raises(SelmError, match="no way back"):
        shelf.rollback(digest)
    shelf.enable("july")
    shelf.enable("july")  # nothing new: no step of its own
    assert shelf.rollback(digest) == {}
    shelf.enable("july")
    shelf.remove("july")
    assert not shelf.path_of(july).exists() and shelf.in_use(digest) == {}
    assert files["july"].exists()  # the one it came from is the user's


def test_an_open_model_gets_what_is_in_use_within_no_time(
    files: dict[str, Path], entry: Entry
) -> None:
    shelf = AdapterShelf()
    shelf.add(files["july"], entry)
    with Model.load(entry.path, threads=1) as model:
        plain = said(model)
        assert apply(model, entry) == [] and said(model) == plain
        shelf.enable("july")
        assert apply(model, entry) == [] and said(model) != plain
        assert list(model.adapters) == [shelf.path_of(shelf.find("july")).name]
        shelf.disable("july")
        assert apply(model, entry) == [] and said(model) == plain and not model.adapters


def test_what_does_not_belong_to_the_model_is_refused(files: dict[str, Path], entry: Entry) -> None:
    shelf = AdapterShelf()
    with pytest.raises(SelmError, match="trained on another model than mine"):
        shelf.add(files["strange"], entry)
    with pytest.raises(SelmError, match="not an adapter"):
        shelf.add(files["other"], entry)
    shelf.add(files["july"], entry)
    with pytest.raises(SelmError, match="is another adapter already"):
        shelf.add(files["august"], entry, "july")
    with pytest.raises(SelmError, match="there are: july"):
        shelf.enable("june")
    other = Catalog().add(files["other"], "theirs")
    shelf.enable("july")
    assert shelf.for_model(other) == {}
    assert shelf.all()[0].name == "july"


def test_faults_leave_the_model_as_it_is_and_say_so(
    files: dict[str, Path], entry: Entry, home: Path
) -> None:
    shelf = AdapterShelf()
    kept = shelf.path_of(shelf.add(files["july"], entry))
    shelf.enable("july")
    whole = kept.read_bytes()
    with Model.load(entry.path, threads=1) as model:
        plain = said(model)
        kept.write_bytes(whole[:-40])
        assert "is not what was added" in apply(model, entry)[0] and said(model) == plain
        kept.write_bytes(b"\0" * len(whole))
        assert "no adapter is used" in apply(model, entry)[0] and said(model) == plain
        kept.write_bytes(whole)
        assert apply(model, entry) == [] and said(model) != plain
        kept.write_bytes(b"\0" * len(whole))  # while it is in use: what is told is so
        assert "no adapter is used" in apply(model, entry)[0] and said(model) == plain
        kept.unlink()
        assert "left out" in apply(model, entry)[0] and said(model) == plain
        shelf.file.write_text("{")
        assert "cannot be read" in apply(model, entry)[0]
    with pytest.raises(SelmError, match="Move that file away"):
        shelf.enable("july")
    assert shelf.file.read_text() == "{"


def run(*args: str) -> Any:
    result = CliRunner().invoke(models, ["adapter", *args, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_the_commands(files: dict[str, Path], entry: Entry) -> None:
    assert run("add", str(files["july"]), "--model", "mine", "--enable")["in_use"]
    run("add", str(files["august"]), "--model", "mine")
    assert [(a["name"], a["scale"]) for a in run("list")] == [("july", 1.0), ("august", None)]
    assert run("enable", "august", "--scale", "0.25") == {"in_use": {"july": 1.0, "august": 0.25}}
    assert run("disable", "july") == {"in_use": {"august": 0.25}}
    assert run("rollback", "--model", "mine") == {"in_use": {"july": 1.0, "august": 0.25}}
    assert run("remove", "august")["name"] == "august"
    shown = CliRunner().invoke(models, ["adapter", "list"]).output
    assert shown.startswith("* july") and "for mine" in shown


def test_ask_uses_what_is_in_use(files: dict[str, Path], entry: Entry, cli: Any) -> None:
    ask = ("ask", "--model", "mine", "--raw", "--temperature", "0", "--max-tokens", "12", "the")
    plain = cli(*ask).stdout
    shelf = AdapterShelf()
    shelf.add(files["july"], entry)
    shelf.enable("july", 8.0)
    assert cli(*ask).stdout != plain == cli(*ask, "--no-adapters").stdout


def test_the_chat_changes_adapters_between_two_questions(
    files: dict[str, Path], entry: Entry
) -> None:
    shelf = AdapterShelf()
    with Model.load(entry.path, threads=1) as model:
        session: Any = SimpleNamespace(model=None)
        chat = ChatAdapters(session)
        with pytest.raises(SelmError, match="no model open"):
            chat.change("")
        session.model = opened(model, "mine", str(entry.path), "mine")
        assert "has no adapters" in chat.change("")
        shelf.add(files["july"], entry)
        shelf.add(files["august"], entry)
        plain = said(model)
        assert "In use: none. There are: july, august" in chat.change("")
        assert chat.change("july 2") == "Adapters in use: july." and said(model) != plain
        assert chat.change("august") == "Adapters in use: july, august."
        assert chat.change("july") == "Adapters in use: august."  # again: leaves it
        assert chat.change("back") == "Adapters in use: july, august."
        assert chat.change("none") == "Adapters in use: none." and said(model) == plain
        assert chat.change("back") == "Adapters in use: july, august."  # all of them, in one step
        assert chat.change("none") == "Adapters in use: none."
        for wrong, reason in (("june", "no adapter called"), ("july loud", "no scale")):
            with pytest.raises(SelmError, match=reason):
                chat.change(wrong)
