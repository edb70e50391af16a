"""The measures of stored conversations, against numpy, by hand, and with the models that ship."""

from __future__ import annotations

import itertools
import math
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from support.bundled import DEFAULT
from support.word_embedder import WordEmbedder

from selm_edge.feedback import fluency
from selm_edge.feedback.dialogues import coherence, corrections, satisfaction
from selm_edge.feedback.log import ReplyRecord
from selm_edge.feedback.overlap import bleu
from selm_edge.feedback.periods import MOST, over_time
from selm_edge.feedback.report import report
from selm_edge.model import Model
from selm_edge.plots import columns
from selm_edge.store.conversations import ReplyFacts
from selm_edge.store.database import Database
from selm_edge.store.opening import Store

TURNS = [{"role": "user", "content": "2+2?"}]
DAY = 86_400_000


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.fixture
def store() -> Store:
    return Store(Database(None))


def judge(store: Store, kind: str, message: int, when: str, model: str = "a", **text: str) -> None:
    record = ReplyRecord(TURNS, text.get("reply", "5"), message=message, model=model)
    row = store.feedback.add(kind, record, correction=text.get("correction"))  # type: ignore[arg-type]
    with store.database.write() as connection:
        connection.execute("update feedback set created = ? where id = ?", (at(when), row.id))


def say(store: Store, *texts: str, when: str = "2026-06-03", end: str = "stop") -> int:
    """A conversation of questions and replies; the last message's id."""
    conversation, parent = store.conversations.create().id, None
    for i, text in enumerate(texts):
        facts = ReplyFacts(finish_reason=end, model="a", system="") if i % 2 else None
        role = "assistant" if i % 2 else "user"
        parent = store.conversations.add(conversation, parent, role, text, facts=facts).id  # type: ignore[arg-type]
    with store.database.write() as connection:
        for table, column, key in (("message", "created", "conversation"),
                                   ("conversation", "updated", "id")):  # fmt: skip
            connection.execute(
                f"update {table} set {column} = ? where {key} = ?", (at(when), conversation)
            )
    assert parent is not None
    return parent


# -- over time ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "unit", "first", "count"),
    [
        (1, "day", "2026-01-07", 1),
        (MOST, "day", "2026-01-07", MOST),
        (MOST + 1, "week", "2026-01-05", 5),  # the Monday before
        (300, "month", "2026-01-01", 11),
        (3000, "year", "2026-01-01", 9),
    ],
)
def test_periods_are_as_fine_as_there_is_room(
    store: Store, days: int, unit: str, first: str, count: int
) -> None:
    start = at("2026-01-07T12:00")
    things = [fluency.Measured(start + i * DAY, "a", 1.0, 1) for i in (0, days - 1)]
    found = over_time(things, fluency._perplexity)
    assert (found.unit, len(found.periods)) == (unit, count)
    assert found.periods[0][0].isoformat() == first
    assert sum(of.replies for _, of in found.periods) == 2  # and those between are empty
    assert found.periods[-1][1].replies >= 1


def test_nothing_has_no_periods(store: Store) -> None:
    found = report(store.database, WordEmbedder())
    assert found.satisfaction.periods == () and found.satisfaction.whole.share is None
    assert found.as_json()["coherence"]["answers"] is None and found.as_json()["fluency"] is None
    assert [section.plots for section in found.sections] == [[], [], []]


# -- satisfaction ------------------------------------------------------------------------------


def test_satisfaction_counts_each_reply_once(store: Store) -> None:
    judge(store, "down", 1, "2026-06-01")
    judge(store, "up", 1, "2026-06-01")  # takes the place of the other thumb
    judge(store, "up", 2, "2026-06-01", "b")
    judge(store, "down", 3, "2026-06-03")
    judge(store, "correction", 3, "2026-06-03", correction="4")  # speaks for the thumb
    judge(store, "regeneration", 4, "2026-06-03")
    found = satisfaction(store.feedback.rows())
    assert (found.whole.up, found.whole.down, found.whole.corrected) == (2, 0, 1)
    assert found.whole.share == pytest.approx(2 / 3) and found.whole.regenerated == 1
    assert [of.share for _, of in found.periods] == [1.0, None, 0.0]
    assert {model: of.share for model, of in found.models.items()} == {"a": 0.5, "b": 1.0}


def test_the_interval_is_wilsons(store: Store) -> None:
    """Brown, Cai and DasGupta 2001: where the score test of each end is just not refused."""
    for i in range(12):
        judge(store, "up" if i < 10 else "down", i, "2026-06-01")
    interval = satisfaction(store.feedback.rows()).whole.interval
    assert interval is not None
    for p in interval:
        assert abs(10 / 12 - p) / math.sqrt(p * (1 - p) / 12) == pytest.approx(1.959964, abs=1e-5)


# -- corrections -------------------------------------------------------------------------------


def test_corrections_are_the_references(store: Store) -> None:
    first = ("The dog bit the man.", "The dog bit the man hard.")
    second = ("It was cold today.", "It was not warm at all.")
    judge(store, "correction", 1, "2026-06-01", reply=first[0], correction=first[1])
    judge(store, "correction", 2, "2026-06-02", "b", reply=second[0], correction=second[1])
    found = corrections(store.feedback.rows())
    # Words without articles: 3 of 3 and 3 of 4, then 2 of 4 and 2 of 6.
    assert found.whole.precision == pytest.approx((1 + 1 / 2) / 2)
    assert found.whole.recall == pytest.approx((3 / 4 + 2 / 6) / 2)
    assert found.whole.f1 == pytest.approx((6 / 7 + 2 / 5) / 2)
    both = tuple(zip(first, second, strict=True))
    assert found.whole.bleu == pytest.approx(bleu(both[0], both[1]))  # of the corpus: no mean
    assert found.models["a"].bleu == pytest.approx(bleu([first[0]], [first[1]]))
    judge(store, "correction", 3, "2026-06-05", reply="5", correction="4")
    assert corrections(store.feedback.rows()).periods[-1][1].bleu is None  # too short for it


# -- coherence ---------------------------------------------------------------------------------


def test_coherence_against_numpy(store: Store) -> None:
    talks = [
        ("how to descale a kettle", "descale a kettle with vinegar", "how often", "once a month"),
        ("when to plant tulips", "plant them in autumn"),
    ]
    for talk in talks:
        say(store, *talk)
    say(store, "a question", "broken off", end="cancelled")
    say(store, "a question of mine", "corrected by me", end="corrected")
    vectors = [
        np.array([np.frombuffer(v or b"", "<f4") for v in WordEmbedder().embed(talk)], float)
        for talk in talks
    ]
    likeness = [[float(a @ b) for a, b in itertools.pairwise(v)] for v in vectors]
    found = coherence(store.database, WordEmbedder()).whole
    assert found.dialogues == 2
    assert found.answers == pytest.approx(
        np.mean([np.mean(likeness[0][0::2]), likeness[1][0]]), abs=1e-6
    )
    assert found.follows == pytest.approx(likeness[0][1], abs=1e-6)
    assert found.chance == pytest.approx(float(vectors[0][0] @ vectors[1][1]), abs=1e-6)
    assert coherence(store.database, WordEmbedder(), since=at("2026-07-01")).whole.dialogues == 0
    assert coherence(store.database, WordEmbedder(), cancelled=lambda: True).whole.dialogues == 0


def test_the_branch_on_show_counts(store: Store) -> None:
    last = say(store, "kettle vinegar", "tulips autumn")
    message = store.conversations.message(last)
    facts = ReplyFacts(finish_reason="stop", model="a")
    store.conversations.add(
        message.conversation, message.parent, "assistant", "kettle vinegar", facts=facts
    )
    assert coherence(store.database, WordEmbedder()).whole.answers == pytest.approx(1, abs=1e-6)


def test_without_an_embedder_the_reason_is_said(store: Store) -> None:
    found = report(store.database, None, no_embedder="it is off")
    assert found.coherence is None and found.as_json()["coherence"] is None
    assert "it is off" in found.sections[2].words[0]


# -- fluency -----------------------------------------------------------------------------------


def test_fluency_against_numpy(store: Store) -> None:
    """Perplexity of the logits of one long eval, in float64."""
    texts = ("Paris is the capital of France. " * 3, "17 + 25 = 42.")
    say(store, "What is the capital of France?", texts[0], "What is 17 + 25?", texts[1])
    with Model.load(DEFAULT, threads=1) as model:
        stored = fluency.replies(store.database)
        found = list(fluency.measured(model, store.database, stored))
        turns = [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": texts[0]},
            {"role": "user", "content": "What is 17 + 25?"},
        ]
        for one, messages, text in zip(found, (turns, turns[:1]), reversed(texts), strict=True):
            prompt = model.chat_prompt(messages).ids
            ids = model.tokenize(text, add_special=False)
            with model.session() as session:
                logits = np.asarray(session.eval(prompt + ids), dtype=np.float64)
            rows = logits[len(prompt) - 1 : -1]
            nll = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(ids)), ids]
            assert one.tokens == len(ids)
            # Pieces of more than 16 tokens are read with faster arithmetic (8 bits).
            assert one.nats / one.tokens == pytest.approx(nll.mean(), abs=0.02)
    whole = fluency.fluency(found).whole
    nats, tokens = sum(one.nats for one in found), sum(one.tokens for one in found)
    assert whole.perplexity == pytest.approx(math.exp(nats / tokens))
    assert whole.perplexity is not None and whole.perplexity > 1


def test_surprise_is_exact_for_any_logits() -> None:
    for shift in (0.0, 5000.0, -5000.0):
        values = np.array([[0, 0], [1, 3]], dtype=np.float32) + np.float32(shift)
        rows = memoryview(values)
        assert fluency._surprise(rows, 0, 1) == pytest.approx(math.log(2))
        assert fluency._surprise(rows, 1, 0) == pytest.approx(2 + math.log1p(math.exp(-2)))


def test_what_does_not_fit_is_left_out_and_what_is_cancelled_stops(store: Store) -> None:
    say(store, "lime " * 400, "Rinse it.")
    say(store, "Hi", "word " * 200)
    say(store, "Hi", "Hello.")
    with Model.load(DEFAULT, threads=1, context=64) as model:
        stored = fluency.replies(store.database)
        found = list(fluency.measured(model, store.database, stored))
        assert [one.tokens > 0 for one in found] == [True, True, False]
        assert found[1].tokens < 64  # as much of it as there is room for
        assert fluency.fluency(found).whole.left_out == 1
        stop = iter((False, False, True, True))
        some = fluency.measured(model, store.database, stored, cancelled=lambda: next(stop, True))
        assert len(list(some)) < 3
    assert len(fluency.replies(store.database, limit=2)) == 2
    assert fluency.replies(store.database, since=time.time_ns() // 1_000_000) == []


# -- plots -------------------------------------------------------------------------------------


def test_columns() -> None:
    lines = columns([1.0, 0.5, None, 0.0], ["a", "b", "c", "d"], top=1, top_label="1", height=2)
    assert lines == ["1│███", " │███ ███     ▁▁▁", "0└────────────────", "  a              d"]
    assert columns([], [], top=1, top_label="1", height=1) == ["1│", "0└"]
    many = columns([0.5] * 99, list(map(str, range(99))), top=0, top_label="1", width=20)
    assert max(map(len, many)) <= 20 and many[-1].split() == ["81", "98"]  # the newest


def test_no_line_of_a_report_is_too_wide(store: Store, tmp_path: Path) -> None:
    for i in range(40):
        judge(store, "up" if i % 3 else "down", i, f"2026-0{1 + i // 10}-{1 + i % 10:02}")
    (plot,) = report(store.database, None).sections[0].plots
    assert plot.caption == "good replies, by week"
    for width in (20, 40, 80, 200):
        assert max(map(len, plot.lines(width))) <= width
    assert "29 Dec" in plot.spoken and " %" in plot.spoken
