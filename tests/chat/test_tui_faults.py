"""What fails, and what the chat makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chatting import FakeSource, make_session
from support.driving import Driver, driven
from textual.widgets import Static

from selm_edge.chat.session import ChatSession
from selm_edge.chat.widgets.status import StatusLine

# -- faults ------------------------------------------------------------------------------------


async def test_a_full_disk_is_said_and_the_chat_goes_on(chat: Driver) -> None:
    await chat.say("before")
    chat.session.store.database._connection.pragma("max_page_count", 1)
    await chat.say("during " * 2000)
    assert "nothing is saved" in chat.banner and "Make room" in chat.banner
    assert "not saved" in str(chat.app.query_one("#top", Static).render())
    await chat.press("escape")
    assert chat.banner == ""
    await chat.say("after")
    await chat.last_reply()
    await chat.press("plus")
    await chat.until(lambda: any("until you quit" in told for told in chat.told))


async def test_a_home_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    from selm_edge.chat.preferences import Preferences
    from selm_edge.store.opening import open_store_or_memory

    (tmp_path / "file").write_text("x")
    source = FakeSource()
    store = open_store_or_memory(tmp_path / "file" / "selm.db")
    session = ChatSession(store, source, Preferences(tmp_path / "config.json"))
    async with driven(tmp_path, source, session=session) as chat:
        assert "nothing is saved" in chat.banner and "SELM_HOME" in chat.banner
        await chat.say("Q")
        assert chat.texts == ["Q", "Hello from the fake engine."]


async def test_a_conversation_that_another_window_deleted(chat: Driver, tmp_path: Path) -> None:
    await chat.say("Q")
    assert chat.session.conversation
    make_session(tmp_path).delete(chat.session.conversation.id)
    chat.app.prompt.focus()
    chat.app.prompt.load_text("more")
    await chat.press("enter")
    await chat.until(lambda: "no conversation" in chat.banner and chat.app.idle)
    assert chat.app.prompt.text == "more"


async def test_a_template_that_is_missing_is_said(tmp_path: Path) -> None:
    async with driven(tmp_path) as chat:
        assert chat.session.model
        chat.session.model.assistant.model.template.source = None
        await chat.say("Q")
        assert "no chat template" in chat.banner


@pytest.mark.parametrize("size", [(20, 6), (10, 3), (1, 1)])
async def test_a_tiny_terminal_says_so_and_recovers(tmp_path: Path, size: tuple[int, int]) -> None:
    async with driven(tmp_path, size=size) as chat:
        assert chat.app.main.has_class("tiny")
        assert "24×8" in str(chat.app.query_one("#tiny", Static).render())
        await chat.pilot.resize_terminal(80, 24)
        await chat.until(lambda: not chat.app.main.has_class("tiny"))
        await chat.say("Q")


@pytest.mark.parametrize("size", [(24, 8), (40, 12), (300, 90)])
async def test_any_other_size_works(tmp_path: Path, size: tuple[int, int]) -> None:
    async with driven(tmp_path, size=size) as chat:
        await chat.say("Q")
        assert chat.app.prompt.region.height >= 1 and chat.app.query_one(StatusLine).region.height
        assert chat.app.transcript.region.height >= 2
