"""Two replies beside each other in the window, by its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.adaptable import with_adapters
from support.chatting import FakeSource, make_session
from support.driving import Driver, driven
from textual.containers import Container
from textual.widgets import Markdown

from selm_edge.chat.screens.compare import CompareScreen

LONG = "word " * 2000


async def compared(chat: Driver) -> CompareScreen:
    """The screen, once both replies are on it."""
    await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
    screen: Any = chat.app.screen
    await chat.until(lambda: screen._asked or "same" in subtitle(screen))
    return screen


def subtitle(screen: CompareScreen) -> str:
    return str(screen.query_one(".compare", Container).border_subtitle)


def shown(screen: CompareScreen) -> list[str]:
    return [body.source for body in screen.query(Markdown)]


async def back(chat: Driver) -> None:
    await chat.main()
    await chat.until(lambda: chat.app.idle)
    await chat.until(lambda: chat.shown == chat.texts)


async def test_a_key_shows_two_replies_and_another_takes_one(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["first", "second"])) as chat:
        await chat.say("Q")
        await chat.last_reply()
        await chat.press("a")
        screen = await compared(chat)
        assert sorted(shown(screen)) == ["first", "second"]
        number = shown(screen).index("second")
        await chat.press("enter")  # nothing is suggested, so that takes nothing
        assert chat.app.screen is screen
        await chat.press(str(number + 1))
        await back(chat)
        assert chat.texts == ["Q", "second"] and chat.app.focused is chat.app.prompt
        assert "◆ taken of two" in chat.app.transcript.turns[1].meta().plain  # type: ignore[attr-defined]
        (row,) = chat.session.store.feedback.rows()
        assert row.rejected is not None
        assert (row.kind, row.record.reply, row.rejected.reply) == ("preference", "second", "first")
        assert "You took the new reply. Kept only on this device." in chat.told[-1]
        chat.app.prompt.load_text("/compare back")
        await chat.press("enter")
        await chat.until(lambda: chat.told[-1] == "Taken back.")
        assert chat.session.store.feedback.rows() == []


async def test_with_and_without_the_adapter_is_not_told_before_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, changes = with_adapters(tmp_path, monkeypatch, "july")
    async with driven(tmp_path, source) as chat:
        await chat.say("Q")
        chat.session.adapters.change("july")
        chat.app.prompt.load_text("/compare")
        await chat.press("enter")
        screen = await compared(chat)
        assert sorted(shown(screen)) == ["july", "plain"]
        assert not any("with" in told for told in chat.told)
        assert {str(s.border_title) for s in screen._sides} == {"1", "2"}
        at = shown(screen).index("july")
        await chat.press("right" if at else "left", "enter")
        await back(chat)
        assert chat.texts == ["Q", "july"] and "with july" in chat.told[-1]
        assert changes[-1] == ["july"]  # as before the comparison
        await chat.say("Next")
        assert chat.texts[-1] == "july"


async def test_esc_while_they_are_written_stops_the_compute(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["first", LONG], delay=0.05)) as chat:
        await chat.say("Q")
        chat.app.prompt.load_text("/compare")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and len(chat.app._reply.text) > 30)
        await chat.press("1", "2")  # not before both are there
        assert isinstance(chat.app.screen, CompareScreen) and "Esc stops" in subtitle(
            chat.app.screen
        )
        await chat.press("escape")
        await back(chat)
        assert chat.texts == ["Q", "first"] and chat.source.engine.sessions[0].busy is False
        assert len(chat.session.store.conversations.tree(1)) == 2
        assert chat.session.store.feedback.rows() == []
        chat.app.prompt.load_text("Next")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        await chat.press("escape")


async def test_neither(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["first", "second"])) as chat:
        await chat.say("Q")
        chat.app.prompt.load_text("/compare again")
        await chat.press("enter")
        await compared(chat)
        await chat.press("escape")
        await back(chat)
        assert chat.texts == ["Q", "first"] and "Undecided" in chat.told[-1]
        assert len(chat.session.versions[chat.session.path[1].id]) == 2
        assert chat.session.store.feedback.rows() == []


async def test_the_same_reply_twice_is_nothing_to_choose(chat: Driver) -> None:
    await chat.say("Q")
    chat.app.prompt.load_text("/compare")
    await chat.press("enter")
    screen = await compared(chat)
    await chat.press("1")
    assert chat.app.screen is screen and "word for word" in subtitle(screen)
    await chat.press("escape")
    await back(chat)
    assert "word for word" in chat.told[-1] and len(chat.session.store.conversations.tree(1)) == 2


async def test_what_is_wrong_is_said_and_the_chat_goes_on(chat: Driver) -> None:
    chat.app.prompt.load_text("/compare")
    await chat.press("enter")
    await chat.until(lambda: chat.told and "no reply yet" in chat.told[-1])
    await chat.say("Q")
    chat.app.prompt.load_text("/compare back")
    await chat.press("enter")
    await chat.until(lambda: "not taken from two" in chat.told[-1])
    chat.app.prompt.load_text("/compare x")
    await chat.press("enter")
    await chat.until(lambda: chat.app.idle and "selm-mini" in chat.banner)  # there is no such file
    await chat.say("Next")


async def test_a_reply_that_breaks_off_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(tmp_path) as chat:
        await chat.say("Q")

        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("the core gave up")

        monkeypatch.setattr("support.fake_engine.FakeStream.__next__", broken)
        chat.app.prompt.load_text("/compare")
        await chat.press("enter")
        await chat.until(lambda: "broke off: the core gave up" in chat.banner)
        await back(chat)
        assert chat.texts == ["Q", "Hello from the fake engine."]


@pytest.mark.parametrize("whole", [False, True])
async def test_leaving_in_the_middle_keeps_what_is_whole(tmp_path: Path, whole: bool) -> None:
    source = FakeSource(["first", "second" if whole else LONG], delay=0.003)
    async with driven(tmp_path, source) as chat:
        await chat.say("Q")
        chat.app.prompt.load_text("/compare")
        await chat.press("enter")
        if whole:
            await compared(chat)
        else:
            await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        await chat.app.action_quit()  # as a signal does
    session = make_session(tmp_path)
    (found,) = session.store.conversations.recent()
    session.open(found.id)
    assert [turn.text for turn in session.path] == ["Q", "first"]
    assert found.turns == (3 if whole else 2) and session.store.feedback.rows() == []


async def test_the_window_that_ends_by_itself_stops_the_compute(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["first", LONG], delay=0.003)) as chat:
        await chat.say("Q")
        chat.app.prompt.load_text("/compare")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        chat.app.exit()  # as when the terminal goes away
    assert chat.source.engine.sessions[0].busy is False
    (found,) = make_session(tmp_path).store.conversations.recent()
    assert found.turns == 2


@pytest.mark.parametrize(("width", "stacked"), [(80, True), (120, False)])
async def test_beside_each_other_where_there_is_room(
    tmp_path: Path, width: int, stacked: bool
) -> None:
    async with driven(tmp_path, FakeSource(["first", "second"]), size=(width, 30)) as chat:
        await chat.say("Q")
        chat.app.prompt.load_text("/compare")
        await chat.press("enter")
        screen = await compared(chat)
        one, two = (side.region for side in screen._sides)
        assert (one.x == two.x) is stacked and (one.y == two.y) is not stacked
        await chat.pilot.resize_terminal(200 - width, 30)
        await chat.until(
            lambda: (screen._sides[0].region.y == screen._sides[1].region.y) is stacked
        )
        await chat.press("escape")
        await back(chat)
