"""Feedback rows and the training files made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selm_edge.feedback.export import lines, write
from selm_edge.feedback.log import FeedbackLog, ReplyRecord
from selm_edge.store.database import Database

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


@pytest.fixture
def log() -> FeedbackLog:
    return FeedbackLog(Database(None))


def record(message: int, reply: str = "5") -> ReplyRecord:
    return ReplyRecord(
        TURNS, reply, "<prompt>", 1, message, {"top_k": 4}, 9, "tiny", "ff" * 32, "chatml", 12.5
    )


def test_a_row_carries_what_training_needs(log: FeedbackLog) -> None:
    row = log.add("correction", record(3), correction="4")
    assert log.rows() == [row]
    assert row.record == record(3) and row.correction == "4"
    assert len(row.uid) == 32 and row.app_version and row.created > 0


def test_the_last_thumb_counts_and_the_older_stays_marked(log: FeedbackLog) -> None:
    up = log.add("up", record(3))
    other = log.add("up", record(4))
    correction = log.add("correction", record(3), correction="4")
    down = log.add("down", record(3))
    assert [row.id for row in log.rows()] == [other.id, correction.id, down.id]
    assert log.rows(ids=[up.id])[0].superseded_by == down.id
    assert log.marks(1) == {3: {"down", "correction"}, 4: {"up"}}
    again = log.add("correction", record(3), correction="four")
    assert log.rows(ids=[correction.id])[0].superseded_by == again.id
    assert log.correction(3) == "four"
    assert log.stats() == {
        "total": 3,
        "up": 1,
        "down": 1,
        "correction": 1,
        "regeneration": 0,
        "superseded": 2,
        "by_model": {"tiny": {"up": 1, "down": 1, "correction": 1}},
    }
    assert log.withdraw(3, ["up", "down"]) == 2
    assert log.marks(1)[3] == {"correction"}


def test_a_correction_needs_its_text(log: FeedbackLog) -> None:
    with pytest.raises(ValueError, match="correct"):
        log.add("correction", record(1))
    with pytest.raises(ValueError, match="correct"):
        log.add("up", record(1), correction="x")


def test_the_three_shapes(log: FeedbackLog, tmp_path: Path) -> None:
    liked = log.add("up", record(1, "4"))
    disliked = log.add("down", record(2, "6"))
    log.add("down", record(3, "5"))  # its correction speaks for it
    corrected = log.add("correction", record(3, "5"), correction="4, of course")
    log.add("regeneration", record(4, "7"))
    rows = log.rows()

    sft = list(lines(rows, "sft"))
    assert [line["id"] for line in sft] == [liked.uid, corrected.uid]
    assert sft[1]["messages"] == [*TURNS, {"role": "assistant", "content": "4, of course"}]

    kto = [
        (line["id"], line["messages"][-1]["content"], line["kto_tag"])
        for line in lines(rows, "kto")
    ]
    assert kto == [
        (liked.uid, "4", True),
        (disliked.uid, "6", False),
        (corrected.uid + "-rejected", "5", False),
        (corrected.uid + "-chosen", "4, of course", True),
    ]

    (dpo,) = lines(rows, "dpo")
    assert dpo["messages"] == TURNS
    assert dpo["chosen"] == {"role": "assistant", "content": "4, of course"}
    assert dpo["rejected"] == {"role": "assistant", "content": "5"}

    target = tmp_path / "kto.jsonl"
    assert write(lines(rows, "kto"), target) == 4
    first = target.read_bytes()
    write(lines(rows, "kto"), target)
    assert target.read_bytes() == first  # a replay adds nothing
    assert all(json.loads(line)["model"] == "tiny" for line in first.splitlines())


def test_rows_since_a_time_and_of_a_kind(log: FeedbackLog) -> None:
    log.add("up", record(1))
    second = log.add("down", record(2))
    assert log.rows(kinds=["down"]) == [second]
    assert log.rows(since=second.created + 1) == []
    assert log.rows(limit=1) == [second]
