"""`selm feedback` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selm_edge.cli.feedback import feedback
from selm_edge.errors import SelmError
from selm_edge.feedback import fluency
from selm_edge.feedback.log import ReplyRecord
from selm_edge.store.conversations import ReplyFacts
from selm_edge.store.opening import open_store

TURNS = [{"role": "user", "content": "2+2?"}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*args: str) -> str:
    result = CliRunner().invoke(feedback, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def filled(home: Path) -> None:
    store = open_store(home / "selm.db")
    store.feedback.add("up", ReplyRecord(TURNS, "4", message=1, model="tiny"))
    store.feedback.add("correction", ReplyRecord(TURNS, "5", message=2), correction="4\x1b[2J")
    store.close()


def test_a_device_without_feedback(home: Path) -> None:
    assert "no feedback yet" in run("list")
    assert json.loads(run("list", "--json")) == []
    assert json.loads(run("stats", "--json"))["total"] == 0
    assert run("export") == ""
    assert not home.exists()  # asking makes no files


def test_list_and_stats(home: Path) -> None:
    filled(home)
    shown = run("list")
    assert "up" in shown and "correction" in shown and "\x1b" not in shown
    rows = json.loads(run("list", "--kind", "correction", "--json"))
    assert [(row["kind"], row["reply"], row["messages"]) for row in rows] == [
        ("correction", "5", TURNS)
    ]
    assert json.loads(run("list", "--since", "2999-01-01", "--json")) == []
    assert len(json.loads(run("list", "--limit", "1", "--json"))) == 1
    counts = json.loads(run("stats", "--json"))
    assert (counts["total"], counts["by_model"]["tiny"]) == (2, {"up": 1})
    assert "unknown: 1 correction" in run("stats")


def talked(home: Path) -> None:
    store = open_store(home / "selm.db")
    for question, reply in (("What is 2+2?", "2 + 2 = 4."), ("And 3+3?", "3 + 3 = 6.")):
        conversation = store.conversations.create().id
        asked = store.conversations.add(conversation, None, "user", question)
        facts = ReplyFacts(finish_reason="stop", model="selm-mini")
        store.conversations.add(conversation, asked.id, "assistant", reply, facts=facts)
    store.close()


def test_stats_as_plots(home: Path) -> None:
    filled(home)
    talked(home)
    shown = run("stats", "--plot", "--fluency", "--limit", "1")
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80
    for words in ("50 % of 2 judged", "1 reply was corrected", "in 2 dialogues", "1 reply,",
                  "good replies, by day", "100 %│", "perplexity, by day"):  # fmt: skip
        assert words in shown.replace("\n", " "), words
    assert "Fluency" not in run("stats", "--plot")
    assert "Satisfaction" not in run("stats", "--fluency") and "Satisfaction" not in run("stats")
    figures = json.loads(run("stats", "--json"))
    assert figures["total"] == 2 and figures["fluency"] is None
    assert figures["satisfaction"]["share"] == 0.5
    assert figures["corrections"]["by_model"]["unknown"]["f1"] == 0
    assert 0 < figures["coherence"]["answers"] <= 1
    figures = json.loads(run("stats", "--json", "--fluency", "selm-tiny-student"))
    assert figures["fluency"]["judge"] == "selm-tiny-student" and figures["fluency"]["replies"] == 2
    assert json.loads(run("stats", "--json", "--since", "2999-01-01"))["total"] == 0
    result = CliRunner().invoke(feedback, ["stats", "--limit", "3"])
    assert result.exit_code == 2 and "--limit is for --fluency" in result.output


def test_ctrl_c_shows_what_was_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talked(home)
    whole, done = fluency._nats, list[int]()

    def interrupted(*args: Any) -> float | None:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return whole(*args)

    monkeypatch.setattr(fluency, "_nats", interrupted)
    result = CliRunner().invoke(feedback, ["stats", "--fluency"])
    assert result.exit_code == 130 and "1 of 2 replies" in result.stderr
    assert "Perplexity" in result.stdout and "1 reply," in result.stdout


def test_colours_only_where_they_are_wanted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(home)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("selm_edge.cli.feedback_stats._terminal", lambda: True)
    runner = CliRunner()
    assert "\x1b[32m" in runner.invoke(feedback, ["stats", "--plot"], color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in runner.invoke(feedback, ["stats", "--plot"], color=True).output


def test_a_terminal_without_the_characters_gets_the_values(home: Path) -> None:
    filled(home)
    result = CliRunner(charset="latin-1").invoke(feedback, ["stats", "--plot"])
    assert result.exit_code == 0 and "50 %" in result.output and "█" not in result.output


def test_a_choice_is_listed_with_what_it_was_preferred_to(home: Path) -> None:
    filled(home)
    store = open_store(home / "selm.db")
    store.feedback.add(
        "preference",
        ReplyRecord(TURNS, "It is four.", message=3, model="tiny", adapter={"july.gguf": 1.0}),
        rejected=ReplyRecord(TURNS, "It is five.", message=4, model="tiny"),
    )
    store.close()
    assert "It is four. / not: It is five." in run("list", "--kind", "preference")
    (row,) = json.loads(run("list", "--kind", "preference", "--json"))
    assert row["rejected"]["reply"] == "It is five." and row["adapter"] == {"july.gguf": 1.0}
    assert "preference         1" in run("stats")
    assert "1 up, 1 preference" in run("stats") or "1 preference, 1 up" in run("stats")
    pairs = [json.loads(line) for line in run("export", "--format", "dpo").splitlines()]
    assert [pair["chosen"]["content"] for pair in pairs] == ["4\x1b[2J", "It is four."]


def test_export(home: Path, tmp_path: Path) -> None:
    filled(home)
    lines = [json.loads(line) for line in run("export", "--format", "kto").splitlines()]
    assert [line["kto_tag"] for line in lines] == [True, False, True]
    target = tmp_path / "dpo.jsonl"
    said = json.loads(run("export", "--format", "dpo", "-o", str(target), "--json"))
    assert said == {"file": str(target), "format": "dpo", "examples": 1}
    assert json.loads(target.read_text())["rejected"]["content"] == "5"


def test_an_output_that_cannot_be_written_is_named(home: Path, tmp_path: Path) -> None:
    filled(home)
    target = tmp_path / "none" / "x.jsonl"
    result = CliRunner().invoke(feedback, ["export", "-o", str(target)])
    said = str(result.exception)
    assert isinstance(result.exception, SelmError) and said.startswith(f"{target} cannot be")
    assert "Errno" not in said and ".part" not in said and "folder that exists" in said


def test_a_wrong_date_is_said(home: Path) -> None:
    result = CliRunner().invoke(feedback, ["list", "--since", "yesterday"])
    assert result.exit_code == 2 and "2026-01-31" in result.output
