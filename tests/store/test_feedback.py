"""Feedback rows and the training files made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from selm_edge.feedback import bundle
from selm_edge.feedback.export import lines, redacted, write
from selm_edge.feedback.log import FeedbackLog, ReplyRecord
from selm_edge.feedback.redact import Redactor
from selm_edge.feedback.unrated import unrated
from selm_edge.store.conversations import Conversations, ReplyFacts
from selm_edge.store.database import Database
from selm_edge.store.errors import StoreError
from selm_edge.store.migrations import MIGRATIONS

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
        "preference": 0,
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


# ---- One of two replies --------------------------------------------------------------------------


def other(message: int, reply: str) -> ReplyRecord:
    return replace(record(message, reply), adapter={"july.gguf": 0.5}, seed=10, entropy=0.25)


def test_a_preference_has_two_replies_each_with_how_it_was_made(log: FeedbackLog) -> None:
    row = log.add("preference", other(4, "4"), rejected=record(3), consent=False)
    assert log.rows() == [row] and not row.consent
    assert (row.record, row.rejected) == (other(4, "4"), record(3))
    assert log.marks(1) == {4: {"preference"}}
    assert log.stats()["preference"] == log.stats()["total"] == 1
    leaving = bundle.row_of(row)
    assert leaving["reply"] == "4" and leaving["adapter"] == {"july.gguf": 0.5}
    assert leaving["rejected"] == {
        "reply": "5", "sampling": {"top_k": 4}, "seed": 9, "model": "tiny",
        "model_sha256": "ff" * 32, "template_id": "chatml", "tokens_per_second": 12.5,
        "adapter": None, "experts": None, "entropy": None, "margin": None, "recalled": None,
    }  # fmt: skip
    assert "rejected" not in bundle.row_of(log.add("up", record(9)))
    assert log.withdraw(4, ["preference"]) == 1 and log.marks(1) == {9: {"up"}}


def test_a_preference_supersedes_nothing(log: FeedbackLog) -> None:
    up = log.add("up", record(1, "4"))
    first = log.add("preference", record(1, "4"), rejected=record(2))
    second = log.add("preference", record(3, "four"), rejected=record(1, "4"))
    assert log.rows() == [up, first, second]
    for kind, rejected in (("up", record(2)), ("preference", None)):
        with pytest.raises(ValueError, match="preference"):
            log.add(kind, record(1), rejected=rejected)  # type: ignore[arg-type]


def test_the_shapes_of_a_preference(log: FeedbackLog) -> None:
    row = log.add("preference", other(4, "4"), rejected=record(3))
    assert list(lines(log.rows(), "sft")) == []  # the better of two need not be good
    assert [
        (line["id"], line["messages"], line["kto_tag"]) for line in lines(log.rows(), "kto")
    ] == [
        (row.uid + "-rejected", [*TURNS, {"role": "assistant", "content": "5"}], False),
        (row.uid + "-chosen", [*TURNS, {"role": "assistant", "content": "4"}], True),
    ]
    (dpo,) = lines(log.rows(), "dpo")
    assert (dpo["messages"], dpo["chosen"]["content"], dpo["rejected"]["content"]) == (
        TURNS, "4", "5"
    )  # fmt: skip
    (told,) = lines(log.rows(), "messages")
    assert told["rating"] == "preference" and told["adapter"] == {"july.gguf": 0.5}
    assert told["rejected"]["content"] == "5" and told["rejected"]["seed"] == 9
    log.add("down", record(4, "4"))  # said of it by itself
    assert [line["kto_tag"] for line in lines(log.rows(), "kto")] == [False, False]
    assert len(list(lines(log.rows(), "dpo"))) == 1


def test_details_leave_both_replies(log: FeedbackLog) -> None:
    log.add("preference", record(4, "Ask jo@example.org"), rejected=record(3, "Ask al@example.org"))
    (row,) = redacted(log.rows(), Redactor())
    assert row.rejected is not None
    assert (row.record.reply, row.rejected.reply) == ("Ask [MAIL 1]", "Ask [MAIL 2]")
    assert row.rejected.prompt is None


def test_both_replies_of_a_choice_are_judged(log: FeedbackLog) -> None:
    talks = Conversations(log.database)
    talk = talks.create()
    asked = talks.add(talk.id, None, "user", "2+2?")
    facts = ReplyFacts(finish_reason="stop")
    three = [talks.add(talk.id, asked.id, "assistant", t, facts=facts).id for t in "456"]
    log.add("preference", record(three[0], "4"), rejected=record(three[1], "5"))
    assert [turn.message for turn in unrated(log.database)] == three[2:]


def test_feedback_of_before_preferences_is_all_there(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    before = Database(path, MIGRATIONS[:5])
    with before.write() as connection:
        for number, kind in enumerate(("up", "down", "correction", "up"), 1):
            connection.execute(
                "insert into feedback(uid, kind, created, messages, reply, app_version, message,"
                " conversation, consent, recalled) values(?, ?, 9, '[]', 'r', '1', 7, 1, ?, '[3]')",
                (f"u{number}", kind, number % 2),
            )
        connection.execute("update feedback set superseded_by = 2 where id = 1")
        connection.execute("delete from feedback where id = 4")
    before.close()
    log = FeedbackLog(Database(path))
    rows = log.rows(superseded=True)
    assert [(row.id, row.uid, row.kind, row.superseded_by, row.consent) for row in rows] == [
        (1, "u1", "up", 2, True), (2, "u2", "down", None, False),
        (3, "u3", "correction", None, True),
    ]  # fmt: skip
    assert rows[0].record.recalled == [3]
    assert log.add("preference", record(7), rejected=record(8)).id == 5  # no number twice
    assert log.withdraw(7, ["down"]) == 1
    assert log.rows(ids=[1])[0].superseded_by is None  # the key still points here
    assert (tmp_path / "selm.db.before-v6").exists()
    with pytest.raises(StoreError, match="constraint"):
        log.add("applause", record(7))  # type: ignore[arg-type]
    assert log.database.rows("pragma integrity_check") == [("ok",)]
    assert log.database.rows("pragma freelist_count") == [(0,)]
    names = log.database.rows("select name from sqlite_master where tbl_name = 'feedback'")
    assert {"feedback_message", "feedback_conversation", "feedback_superseded"} <= {
        name for (name,) in names
    }
