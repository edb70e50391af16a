"""`selm memory` and what `selm ask` recalls, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner, Result

from selm_edge.cli.app import selm
from selm_edge.errors import SelmError

WALNUTS = "My sister Nora is allergic to walnuts."


@pytest.fixture(autouse=True)
def words_alone(home: Path) -> None:
    """No embedder: what is found is found by its words."""
    home.mkdir()
    (home / "config.json").write_text('{"embedder": "off"}')


def invoked(*args: str) -> Result:
    return CliRunner().invoke(
        selm, ["memory", *args], catch_exceptions=False, standalone_mode=False
    )


def run(*args: str, code: int = 0) -> str:
    result = invoked(*args)
    assert (result.return_value or result.exit_code) == code, result.output
    return result.output


def as_json(*args: str) -> Any:
    return json.loads(invoked(*args, "--json").stdout)


def test_asking_a_new_device_makes_no_file(home: Path) -> None:
    assert "nothing is remembered yet" in run("list")
    assert as_json("search", "walnuts") == []
    assert as_json("stats")["memories"] == 0
    assert not (home / "selm.db").exists()


def test_add_find_change_forget(home: Path) -> None:
    assert run("add", WALNUTS).startswith("remembered:")
    assert run("add", WALNUTS.lower()).startswith("known already:")
    [found] = as_json("search", "what is Nora allergic to")
    assert {"id", "kind", "text", "source", "score", "bm25_rank", "vector_rank", "created"} <= set(
        found
    )
    assert (found["id"], found["bm25_rank"], found["vector_rank"]) == (1, 1, None)
    assert as_json("pin", "1")["pinned"] is True
    assert as_json("never", "1")["status"] == "never"
    assert as_json("search", "Nora") == []
    assert as_json("never", "1", "--undo")["status"] == "active"
    assert as_json("edit", "1", WALNUTS.replace("walnuts", "hazelnuts"))["id"] == 1
    assert as_json("edit", "1", WALNUTS, "--correct")["kind"] == "correction"
    assert [row["status"] for row in as_json("list", "--status", "superseded")] == ["superseded"]
    assert "from shell" in run("show", "2")
    assert as_json("forget", "1", "2", "--yes")["bytes_gone"] is True
    assert b"walnuts" not in (home / "selm.db").read_bytes()


def test_forgetting_asks_and_takes_one_thing(home: Path) -> None:
    run("add", WALNUTS)
    result = CliRunner().invoke(selm, ["memory", "forget", "1"], input="n\n")
    assert result.exit_code == 1 and "Forget" in result.stderr
    assert len(as_json("list")) == 1
    assert "say what" in CliRunner().invoke(selm, ["memory", "forget"]).output


def test_what_is_very_like_is_for_the_user_to_decide() -> None:
    first = "The wifi code of the grey garden shed behind the house is ab12."
    other = first.replace("ab12", "cd34")
    run("add", first)
    near = as_json("add", other)
    assert (near["outcome"], [one["text"] for one in near["near"]]) == ("near", [first])
    assert len(as_json("list")) == 1
    assert as_json("add", other, "--corrects", "1")["outcome"] == "new"
    assert [row["text"] for row in as_json("list")] == [other]


def test_spaces_and_documents(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "pool.md").write_text("# Pool\n\nThe pool opens at 9:30.\n")
    (folder / "photo.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0binary")
    report = as_json("ingest", str(folder), "--space", "work")
    assert [Path(p).name for p in report["added"]] == ["pool.md"] and report["passages"] == 1
    assert any("photo.txt" in one["path"] for one in [*report["failed"], *report["skipped"]])
    assert as_json("ingest", str(folder), "--space", "work")["unchanged"] == report["added"]
    assert as_json("search", "when does the pool open") != []
    assert as_json("search", "when does the pool open", "--space", "personal") == []
    stats = as_json("stats")
    assert [d["passages"] for d in stats["documents"]] == [1]
    run("space", "rename", "work", "Job")
    assert [s["name"] for s in as_json("space", "list")] == ["personal", "Job"]
    assert run("forget", "--document", report["added"][0], "--yes").startswith("forgotten:")
    assert as_json("stats")["documents"] == []


def test_export_and_import_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("add", WALNUTS, "--space", "work", "--pin")
    file = tmp_path / "memories.jsonl"
    assert as_json("export", str(file))["memories"] == 1
    with pytest.raises(SelmError, match="exists"):
        run("export", str(file))
    monkeypatch.setenv("SELM_HOME", str(tmp_path / "other"))
    assert as_json("import", str(file)) == {"new": 1, "known": 0}
    assert as_json("import", str(file)) == {"new": 0, "known": 1}
    [row] = as_json("list", "--space", "work")
    assert (row["text"], row["pinned"]) == (WALNUTS, True)


def test_a_passphrase(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("add", WALNUTS)
    monkeypatch.setenv("SELM_NEW_PASSPHRASE", "open sesame")
    assert "is encrypted" in run("encrypt")
    assert b"walnuts" not in (home / "selm.db").read_bytes()
    with pytest.raises(SelmError, match="passphrase"):
        run("list")
    monkeypatch.setenv("SELM_PASSPHRASE", "open barley")
    with pytest.raises(SelmError, match="wrong"):
        run("list")
    monkeypatch.setenv("SELM_PASSPHRASE", "open sesame")
    assert [row["text"] for row in as_json("list")] == [WALNUTS]
    monkeypatch.setenv("SELM_NEW_PASSPHRASE", "other")
    run("rekey")
    monkeypatch.setenv("SELM_PASSPHRASE", "other")
    run("decrypt")
    monkeypatch.delenv("SELM_PASSPHRASE")
    assert [row["text"] for row in as_json("list")] == [WALNUTS]


def test_an_unknown_embedder_changes_nothing(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SelmError, match=r"nothing\.gguf"):
        run("embedder", str(tmp_path / "nothing.gguf"))
    assert json.loads((home / "config.json").read_text()) == {"embedder": "off"}
    assert as_json("embedder")["embedder"] == "off"


# -- asking ----------------------------------------------------------------------------------------


def asked(cli: Any, model: Path, *args: str) -> dict[str, Any]:
    done = cli("ask", "--model", str(model), "--max-tokens", "1", "--json", *args)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_ask_recalls_and_says_what(cli: Any, qwen: Path, tmp_path: Path) -> None:
    plain = asked(cli, qwen, "What is Nora allergic to?")
    assert plain["memories"] == []
    run("add", WALNUTS)
    found = asked(cli, qwen, "What is Nora allergic to?")
    assert found["memories"] == [1] and found["prompt_tokens"] > plain["prompt_tokens"]
    without = asked(cli, qwen, "--no-memory", "What is Nora allergic to?")
    assert (without["memories"], without["prompt_tokens"]) == ([], plain["prompt_tokens"])
    run("space", "add", "work")
    assert asked(cli, qwen, "--space", "work", "What is Nora allergic to?")["memories"] == []
    file = tmp_path / "pool.txt"
    file.write_text("The pool opens at 9:30.")
    given = asked(cli, qwen, "--file", str(file), "When does it open?")
    assert given["memories"] == [2]
    missing = cli("ask", "--model", str(qwen), "--file", str(tmp_path / "no.txt"), "hm")
    assert missing.returncode == 1 and "no.txt" in missing.stderr


@pytest.mark.parametrize("passphrase", [None, "a secret"])
def test_a_damaged_file_is_found_and_mended(
    home: Path, monkeypatch: pytest.MonkeyPatch, passphrase: str | None
) -> None:
    run("add", WALNUTS)
    for number in range(200):
        run("add", "--anyway", f"Fact {number}: {'walnut ' * 40}")
    if passphrase:
        monkeypatch.setenv("SELM_NEW_PASSPHRASE", passphrase)
        run("encrypt")
        monkeypatch.setenv("SELM_PASSPHRASE", passphrase)
    assert run("check").strip() == "sound" and run("repair").strip() == "nothing to repair"
    path = home / "selm.db"
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 20 : 4096 * 21] = bytes(4096)
    path.write_bytes(damaged)
    if passphrase:  # its first pages are proven or refused: it does not even open
        with pytest.raises(SelmError, match="`selm memory repair`"):
            run("check")
    else:
        assert "`selm memory repair`" in run("check", code=1)
    told = as_json("repair")
    assert Path(told["kept"]).read_bytes() == damaged
    assert told["rescued"]["memory"] + told["missing"]["memory"] == 201 > told["missing"]["memory"]
    assert as_json("check")["sound"] is True
    assert len(as_json("list", "--limit", "1000")) == told["rescued"]["memory"]


def test_a_damaged_word_index_is_mended_in_place(home: Path) -> None:
    run("add", WALNUTS)
    raw = apsw.Connection(str(home / "selm.db"))
    raw.execute("update memory_fts_data set block = zeroblob(length(block)) where id > 10")
    raw.close()
    assert "memory_fts does not fit" in run("check", code=1)
    assert "made again" in run("repair")
    assert run("check").strip() == "sound" and len(as_json("search", "walnuts")) == 1
    assert sorted(file.name for file in home.glob("selm.db*"))[0:1] == ["selm.db"]
    assert not list(home.glob("selm.db.damaged-*"))
