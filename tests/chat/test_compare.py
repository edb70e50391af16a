"""Two replies to one question: how they are made, and what becomes of the choice."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.adaptable import with_adapters
from support.chatting import FakeSource, make_session, talk
from support.processes import run_python

from selm_edge.chat.compare import Comparison, Side
from selm_edge.chat.plain import PlainChat
from selm_edge.chat.session import ChatSession
from selm_edge.errors import SelmError
from selm_edge.store.errors import NotFound
from selm_edge.store.opening import open_store


def ready(session: ChatSession, *questions: str) -> ChatSession:
    session.use_model(session.open_model(None))
    for question in questions:
        talk(session, question)
    return session


def texts(session: ChatSession) -> list[str]:
    return [turn.text for turn in session.path]


def made(session: ChatSession, how: str = "") -> Comparison:
    reply = session.last_reply
    assert reply is not None
    found = session.compare.begin(reply, how)
    for side in found.sides:
        if side.message is None:
            write(session, found, side)
    session.compare.end(found)
    return found


def write(session: ChatSession, found: Comparison, side: Side, words: int | None = None) -> None:
    """One of the replies, cut after some words."""
    reply = session.compare.reply(found, side)
    for number, _ in enumerate(reply, 1):
        if number == words:
            reply.cancel()
    session.compare.made(side, reply)


def at(found: Comparison, label: str) -> int:
    return next(i for i, side in enumerate(found.sides) if side.label.startswith(label))


@pytest.fixture
def july(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ChatSession, list[list[str]]]:
    """A talk with a model that answers with ``july``."""
    source, changes = with_adapters(tmp_path, monkeypatch, "july", "august")
    session = ready(make_session(tmp_path, source), "Q")
    session.adapters.change("july")
    changes.clear()
    return session, changes


def test_with_and_without_from_the_same_seed_in_any_order(
    july: tuple[ChatSession, list[list[str]]],
) -> None:
    session, changes = july
    before = list(session.path)
    found = made(session)
    assert {side.label: side.text for side in found.sides} == {
        "with july": "july", "without july": "plain"
    }  # fmt: skip
    assert sorted(changes[:-1]) == [[], ["july"]]
    one, two = (side.facts for side in found.sides)
    assert one is not None and two is not None and one.seed == two.seed == found.seed
    assert {str(one.adapter), str(two.adapter)} == {"{'july-0.gguf': 1.0}", "None"}
    assert session.store.conversations.tree(1) == before  # nothing is stored before the choice
    assert changes[-1] == ["july"]  # as it was before
    orders = {made(session).sides[0].label for _ in range(40)}
    assert orders == {"with july", "without july"}


def test_the_choice_is_feedback_and_the_talk_goes_on_with_it(
    july: tuple[ChatSession, list[list[str]]],
) -> None:
    session, _ = july
    found = made(session)
    words = session.compare.settle(found, at(found, "with "))
    assert words.startswith("You took the reply with july. Kept only on this device.")
    assert texts(session) == ["Q", "july"] and len(session.versions[session.path[1].id]) == 3
    (row,) = session.store.feedback.rows()
    assert row.kind == "preference" and row.rejected is not None and row.consent
    assert (row.record.reply, row.rejected.reply) == ("july", "plain")
    assert (row.record.adapter, row.rejected.adapter) == ({"july-0.gguf": 1.0}, None)
    assert row.record.seed == row.rejected.seed == found.seed
    assert row.record.messages == row.rejected.messages == [{"role": "user", "content": "Q"}]
    assert row.record.prompt == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert row.record.message == session.path[1].id != row.rejected.message
    assert row.record.sampling and row.rejected.model == "selm-mini"
    assert session.marks[session.path[1].id] == {"preference"}
    for label, words in (("without", "Of 2 such choices july won 1"), ("with ", "Of 3 such")):
        found = made(session)
        assert words in session.compare.settle(found, at(found, label))
    # The reply that was taken last can be left again; so can the choice.
    assert session.compare.take_back(session.path[1]) == "Taken back."
    assert len(session.store.feedback.rows()) == 2
    with pytest.raises(ValueError, match="not taken"):
        session.compare.take_back(session.path[1])


def test_another_reply_beside_the_one_that_is_there(tmp_path: Path) -> None:
    session = ready(make_session(tmp_path, FakeSource(["first", "second", "third"])), "Q")
    session.set_sampling({"seed": 7})
    first = session.path[1]
    found = made(session)
    assert {side.text for side in found.sides} == {"first", "second"}
    new = found.sides[at(found, "the new")]
    assert new.facts is not None and new.facts.seed not in (7, None)  # else it were the same
    session.compare.settle(found, at(found, "the new"))
    assert texts(session) == ["Q", "second"]
    (row,) = session.store.feedback.rows()
    assert (row.record.reply, row.rejected and row.rejected.message) == ("second", first.id)
    # One that was there may stay: what follows it stays, too.
    talk(session, "And?")
    found = session.compare.begin(session.path[1])
    write(session, found, found.sides[at(found, "the new")])
    session.compare.settle(found, at(found, "the reply"))
    assert texts(session)[:3] == ["Q", "second", "And?"] and len(session.path) == 4


def test_neither_is_kept_as_versions_and_says_nothing(
    july: tuple[ChatSession, list[list[str]]],
) -> None:
    session, _ = july
    talk(session, "And?")
    before, found = texts(session), session.compare.begin(session.path[1])
    for side in found.sides:
        write(session, found, side)
    assert "Undecided" in session.compare.settle(found, None)
    assert texts(session) == before and len(session.versions[session.path[1].id]) == 3
    assert session.store.feedback.rows() == []


def test_what_was_cut_off_is_not_judged_and_not_kept(tmp_path: Path) -> None:
    session = ready(make_session(tmp_path, FakeSource(["first", "one two three four"])), "Q")
    found = session.compare.begin(session.path[1])
    new = found.sides[at(found, "the new")]
    write(session, found, new, 2)
    assert new.text and not new.whole
    assert session.compare.settle(found, None) == ""
    assert len(session.store.conversations.tree(1)) == 2


def test_the_same_words_leave_nothing_to_choose(tmp_path: Path) -> None:
    session = ready(make_session(tmp_path, FakeSource(["same"])), "Q")
    found = made(session)
    assert found.same and "word for word" in session.compare.settle(found, 0)
    assert session.store.feedback.rows() == [] and len(session.store.conversations.tree(1)) == 2


def test_an_adapter_may_be_tried_before_it_is_in_use(
    july: tuple[ChatSession, list[list[str]]],
) -> None:
    session, changes = july
    found = made(session, "august")
    assert {side.text for side in found.sides} == {"july august", "july"}
    assert changes[-1] == ["july"]
    session.adapters.change("none")
    assert {side.text for side in made(session, "august").sides} == {"august", "plain"}
    assert {side.label for side in made(session).sides} == {
        "the reply that was there",
        "the new reply",
    }
    with pytest.raises(SelmError, match="no adapter called 'may'"):
        session.compare.begin(session.path[1], "may")
    session.adapters.change("july")
    labels = {side.label for side in made(session, "again").sides}
    assert "the new reply" in labels


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    session = ready(make_session(tmp_path, FakeSource(["first", "second"])), "Q")
    own = session.feedback.correct(session.path[1], "mine")
    with pytest.raises(ValueError, match="your own text"):
        session.compare.begin(own)
    session.switch(own, -1)
    found = session.compare.begin(session.path[1])
    session.use_model(session.open_model("other"))
    with pytest.raises(SelmError, match="another model"):
        session.compare.reply(found, found.sides[at(found, "the new")])
    assert session.compare.end(found) == []
    session.delete(1)
    session.change_setting("share_feedback", "no")
    with pytest.raises(NotFound):
        session.compare.begin(own)


def test_what_was_deleted_in_another_window_leaves_no_row(tmp_path: Path) -> None:
    session = ready(make_session(tmp_path, FakeSource(["first", "second"])), "Q")
    found = made(session)
    open_store(tmp_path / "selm.db").conversations.delete(1)
    with pytest.raises(NotFound):
        session.compare.settle(found, 0)
    assert session.store.feedback.rows() == []


_CHOOSER = """
import sys
from pathlib import Path
from support.chatting import FakeSource, make_session, talk
count = iter(range(10**6))
session = make_session(Path(sys.argv[1]), FakeSource(lambda _: f"reply {next(count)}"))
session.use_model(session.open_model(None))
talk(session, "Q")
print("ready", flush=True)
while True:
    found = session.compare.begin(session.last_reply)
    for side in found.sides:
        if side.message is None:
            reply = session.compare.reply(found, side)
            list(reply)
            session.compare.made(side, reply)
    session.compare.settle(found, 0)
    print(session.last_reply.text, flush=True)  # the acknowledgement
"""


def test_killed_at_any_moment_a_choice_is_whole_or_not_there(tmp_path: Path) -> None:
    chance = random.Random(3)
    for round_ in range(8):
        folder = tmp_path / str(round_)
        folder.mkdir()
        chooser = run_python(_CHOOSER, str(folder))
        assert chooser.stdout is not None and chooser.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.2)
        os.kill(chooser.pid, signal.SIGKILL)
        told = [line for line in chooser.stdout if line.endswith("\n")]
        chooser.communicate()
        session = make_session(folder)
        session.open(1)
        rows = session.store.feedback.rows()
        replies = {turn.id: turn.text for turn in session.store.conversations.tree(1)[1:]}
        assert len(told) <= len(rows) <= len(told) + 1
        assert len(replies) == len(rows) + 1  # each choice with its new version, or neither
        for row in rows:
            assert row.rejected is not None
            assert replies[row.record.message or 0] == row.record.reply
            assert replies[row.rejected.message or 0] == row.rejected.reply
        if rows:
            assert session.path[-1].text == rows[-1].record.reply  # what is on show is the choice
        session.close()


# ---- As lines ------------------------------------------------------------------------------------


def typed(folder: Path, source: FakeSource, *lines: str, person: bool = True) -> tuple[str, int]:
    out = io.StringIO()
    session = make_session(folder, source)
    chat = PlainChat(session, io.StringIO("\n".join(lines) + "\n"), out, interactive=person)
    code = chat.run()
    session.close()
    return out.getvalue(), code


def test_plain_takes_one_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)
    source = FakeSource(["first", "second", "third"])
    out, _ = typed(tmp_path, source, "Q", "/compare", "2", "/compare again", "", "/compare back")
    assert "Reply 1: first\nReply 2: second\n" in out and "You took the new reply." in out
    assert "Reply 1: second\nReply 2: third\n" in out and "Undecided" in out
    assert "Taken back." in out
    session = make_session(tmp_path)
    session.open(1)
    assert texts(session) == ["Q", "second"] and session.store.feedback.rows() == []


def test_plain_needs_somebody_who_chooses(tmp_path: Path) -> None:
    out, code = typed(tmp_path, FakeSource(["first"]), "Q", "/compare", person=False)
    assert "somebody at the keyboard" in out and code == 1
