"""Asking whether an earlier reply was right: which, how seldom, and by which keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.chatting import FakeSource, make_session, talk
from support.driving import Driver, driven

from selm_edge.chat import judging, offers
from selm_edge.chat.screens.editor import EditorScreen
from selm_edge.chat.session import ChatSession
from selm_edge.store.conversations import ReplyFacts

HOUR, DAY = 3_600_000, 86_400_000


def filled(session: ChatSession, replies: int = 12, ago: int = 2 * DAY) -> list[int]:
    """Unrated replies of other talks, the model ever less sure; the first began ``ago``."""
    session.preferences.config.embedder = "off"  # no figure of a file that may be retrained
    made = []
    talks = session.store.conversations
    for number in range(replies):
        talk_ = talks.create()
        asked = talks.add(talk_.id, None, "user", f"Where does Nils Falk live, {number}?")
        facts = ReplyFacts(
            model="selm-mini", entropy=0.1 * number, finish_reason="stop", system="Be brief."
        )
        made.append(
            talks.add(talk_.id, asked.id, "assistant", f"In Oslo {number}.", facts=facts).id
        )
    later(session, ago)
    return made


def later(session: ChatSession, milliseconds: int) -> None:
    """As if everything had been that long ago."""
    with session.store.database.write() as connection:
        for table in ("conversation", "message"):
            connection.execute(f"update {table} set created = created - ?", (milliseconds,))
    state = session.store.settings.get(judging.STATE)
    if state:
        state["at"] -= milliseconds
        session.store.settings.set(judging.STATE, state)
    session.judging.asked = False  # the next visit


def asked(session: ChatSession) -> int | None:
    found = session.judging.question()
    return None if found is None else found.message


# ---- Which, and how seldom -----------------------------------------------------------------------


def test_it_asks_about_the_most_informative_reply(session: ChatSession) -> None:
    made = filled(session)
    assert asked(session) == made[-1]
    session.open(len(made))  # before the user's eyes, with its own keys
    assert asked(session) == made[-2]


def test_not_in_a_first_use_nor_among_few(session: ChatSession) -> None:
    assert asked(session) is None
    filled(session, ago=HOUR // 2)
    assert asked(session) is None
    later(session, HOUR)
    assert asked(session) is not None
    for row in session.store.database.rows("select id from message where role = 'assistant'")[:4]:
        turn = session.store.conversations.message(row[0])
        session.feedback.keep("up", turn)
    assert asked(session) is None


def test_once_a_visit_once_a_day_and_a_week_after_it_was_declined(session: ChatSession) -> None:
    made = filled(session)
    first = session.judging.question()
    assert first is not None
    session.judging.shown()
    assert asked(session) is None
    session.judging.asked = False  # another visit, the same day
    assert asked(session) is None
    later(session, DAY)
    assert asked(session) == made[-1]  # it was not answered, and not declined either
    session.judging.shown()
    session.judging.decline(first)
    later(session, 2 * DAY)
    assert asked(session) is None
    later(session, 5 * DAY)
    assert asked(session) == made[-2]  # never again about that one


def test_what_was_declined_is_remembered_past_the_end(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    made = filled(session)
    turn = session.judging.question()
    assert turn is not None
    session.judging.shown()
    session.judging.decline(turn)
    session.close()
    again = make_session(tmp_path)
    again.preferences.config.embedder = "off"
    assert asked(again) is None
    later(again, 8 * DAY)
    assert asked(again) == made[-2]
    again.close()


def test_a_setting_turns_it_off(session: ChatSession) -> None:
    filled(session)
    assert "does not ask" in session.change_setting("ask_feedback", "no")
    assert asked(session) is None
    session.change_setting("ask_feedback", "yes")
    assert asked(session) is not None
    with pytest.raises(ValueError, match="ask_feedback"):
        session.change_setting("ask", "no")


def test_what_is_old_and_what_is_not_saved_is_not_asked_about(session: ChatSession) -> None:
    filled(session, ago=40 * DAY)
    assert asked(session) is None


def test_an_answer_is_feedback_of_the_other_talk(session: ChatSession) -> None:
    made = filled(session)
    session.use_model(session.open_model(None))
    turn = session.judging.question()
    assert turn is not None
    session.judging.answer(turn, "down")
    session.judging.correct(turn, "In Bergen.")
    thumb, correction = session.store.feedback.rows()
    assert (thumb.kind, thumb.record.message, thumb.record.reply) == (
        "down",
        made[-1],
        "In Oslo 11.",
    )
    assert thumb.record.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where does Nils Falk live, 11?"},
    ]
    assert correction.correction == "In Bergen." and correction.record.reply == "In Oslo 11."
    # That talk has gone on with what it was: no version of it was made.
    assert len(session.store.conversations.tree(12)) == 2


# ---- In the window -------------------------------------------------------------------------------


@pytest.fixture
async def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A window in which a moment is quiet at once, after a first reply."""
    monkeypatch.setattr(offers, "QUIET_SECONDS", 0.05)
    session = make_session(tmp_path, FakeSource(["Hello."]))
    filled(session)
    async with driven(tmp_path, session=session) as chat:
        yield chat


async def shown(chat: Driver) -> str:
    await chat.until(lambda: chat.app.question is not None and chat.app.question.size.width)
    assert chat.app.question is not None
    return chat.app.question.line(chat.app.question.size.width - 4).plain


async def test_one_line_asks_and_takes_nothing_that_is_typed(quiet: Driver) -> None:
    assert quiet.app.question is None  # not before a reply
    await quiet.say("Q")
    line = await shown(quiet)
    assert line.startswith("Was this right?  Where does") and "In Oslo 11." in line
    assert quiet.app.focused is quiet.app.prompt
    await quiet.press("plus", "minus", "x", "1")
    assert quiet.app.prompt.text == "+-x1" and quiet.session.store.feedback.rows() == []
    await quiet.press("enter")
    await quiet.until(lambda: quiet.app.idle and len(quiet.texts) == 4)
    assert quiet.app.question is None  # the next question puts it away
    await quiet.pilot.pause(0.3)
    assert quiet.app.question is None  # once a visit
    assert "declined" in quiet.session.store.settings.get(judging.STATE)
    assert quiet.session.store.settings.get(judging.STATE)["declined"] is False


@pytest.mark.parametrize(("key", "kind"), [("plus", "up"), ("minus", "down")])
async def test_the_line_is_answered_by_keys_once_selected(
    quiet: Driver, key: str, kind: str
) -> None:
    await quiet.say("Q")
    await shown(quiet)
    await quiet.press("up")
    await quiet.until(lambda: quiet.app.focused is quiet.app.question)
    assert ("+", "yes") in quiet.app.query_one("Hints")._hints  # type: ignore[attr-defined]
    await quiet.press("up", "down", "down", "up")  # between the turns and the prompt
    await quiet.until(lambda: quiet.app.focused is quiet.app.question)
    await quiet.press(key)
    await quiet.until(lambda: quiet.app.question is None)
    await quiet.until(lambda: quiet.app.focused is quiet.app.prompt)
    (row,) = quiet.session.store.feedback.rows()
    assert (row.kind, row.record.reply) == (kind, "In Oslo 11.")
    assert "Kept only on this device" in quiet.told[-1] and quiet.texts == ["Q", "Hello."]


async def test_what_it_should_have_been(quiet: Driver) -> None:
    await quiet.say("Q")
    await shown(quiet)
    await quiet.press("up", "x")
    screen = await quiet.screen(EditorScreen)
    await quiet.press("escape")  # still asked
    await quiet.main()
    assert quiet.app.question is not None
    quiet.app.question.focus()
    await quiet.press("x")
    screen = await quiet.screen(EditorScreen)
    screen.query_one("TextArea").load_text("In Bergen.")
    await quiet.press("ctrl+s")
    await quiet.main()
    await quiet.until(quiet.session.store.feedback.rows)
    (row,) = quiet.session.store.feedback.rows()
    assert (row.kind, row.correction) == ("correction", "In Bergen.")
    assert quiet.app.question is None


@pytest.mark.parametrize("selected", [False, True])
async def test_not_now(quiet: Driver, selected: bool) -> None:
    await quiet.say("Q")
    await shown(quiet)
    await quiet.press(*(["up"] if selected else []), "escape")
    await quiet.until(lambda: quiet.app.question is None)
    await quiet.until(lambda: quiet.app.focused is quiet.app.prompt)
    state = quiet.session.store.settings.get(judging.STATE)
    assert state["declined"] is True and len(state["not"]) == 1
    assert quiet.session.store.feedback.rows() == []


async def test_it_waits_while_something_is_written_or_read(
    quiet: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "QUIET_SECONDS", 0.3)
    await quiet.say("Q")
    quiet.app.prompt.load_text("Hm")
    await quiet.pilot.pause(0.8)
    assert quiet.app.question is None
    await quiet.press("f1")
    quiet.app.prompt.clear()  # not before: then the moment might be quiet until F1 is read
    await quiet.pilot.pause(0.8)
    assert not quiet.app.main.query("QuietQuestion")
    await quiet.press("escape")
    await shown(quiet)


async def test_a_fault_while_it_chooses_stays_quiet(
    quiet: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise OSError("no disk")

    monkeypatch.setattr(quiet.session.judging, "question", broken)
    await quiet.say("Q")
    await quiet.pilot.pause(0.3)
    assert quiet.banner == "" and quiet.app.question is None
    talk(quiet.session, "still here")
