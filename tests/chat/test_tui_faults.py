"""What fails, and what the chat makes of it."""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import pytest
from support.chatting import FakeSource, make_session, talk
from support.driving import Driver, driven
from textual.widgets import Input, Static

from selm_edge.assistant import Plan, Reply
from selm_edge.chat.screens.ask import TextScreen
from selm_edge.chat.screens.models import ModelScreen
from selm_edge.chat.session import ChatSession
from selm_edge.chat.widgets.status import StatusLine
from selm_edge.chat.widgets.turns import ReplyTurn, Turn
from selm_edge.store.conversations import Message

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


# -- the boundary: nothing that may be expected ends the chat --------------------------------------


async def test_a_lock_that_another_program_holds(chat: Driver, tmp_path: Path) -> None:
    await chat.say("Q")
    await chat.last_reply()
    other = apsw.Connection(str(tmp_path / "selm.db"))
    other.execute("begin immediate")
    began = time.monotonic()
    await chat.press("plus")
    await chat.until(lambda: "locked" in chat.banner)
    assert time.monotonic() - began < 5  # not the half minute that a command would wait
    other.execute("rollback")
    await chat.press("plus")
    await chat.until(lambda: chat.session.marks.get(chat.session.path[1].id) == {"up"})


async def test_a_reply_that_is_made_waits_for_the_lock(chat: Driver, tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "selm.db"))
    keep, refused = chat.session.keep, list[bool]()

    def locked_once(question: Message, reply: Reply) -> Message:
        if not refused:
            other.execute("begin immediate")
        elif len(refused) == 1:
            other.execute("rollback")
        refused.append(True)
        return keep(question, reply)

    chat.session.keep = locked_once  # type: ignore[method-assign]
    await chat.say("Q")
    assert len(refused) == 2 and chat.texts == ["Q", "Hello from the fake engine."]
    assert chat.session.store.saving


@pytest.mark.parametrize("key", ["plus", "r"])
async def test_a_key_on_what_another_window_deleted(chat: Driver, tmp_path: Path, key: str) -> None:
    await chat.say("Q")
    await chat.last_reply()
    assert chat.session.conversation
    make_session(tmp_path).delete(chat.session.conversation.id)
    await chat.press(key)
    await chat.until(lambda: "any more" in chat.banner and chat.app.idle)
    assert chat.session.conversation is None and chat.session.store.feedback.count() == 0
    await chat.until(lambda: not chat.app.transcript.turns)
    await chat.say("a new page")


async def test_an_empty_path_in_a_dialog(chat: Driver) -> None:
    await chat.say("Q")
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    screen.query_one(Input).value = '""'
    screen.query_one(Input).focus()
    await chat.press("enter", "f3", "escape")
    await chat.main()
    await chat.last_reply()
    await chat.press("w")
    screen = await chat.screen(TextScreen)
    screen.query_one(Input).value = '""'
    await chat.press("enter")
    await chat.until(lambda: "path of a file" in chat.banner)


async def test_an_engine_that_does_not_take_the_settings(chat: Driver) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise TypeError("incompatible function arguments")

    await chat.until(lambda: chat.session.model)
    assert chat.session.model
    chat.session.model.assistant.reply = refuses  # type: ignore[method-assign,assignment]
    chat.app.prompt.load_text("Q")
    await chat.press("enter")
    await chat.until(lambda: "could not begin" in chat.banner and chat.app.idle)
    # Stored is stored: the question is not in the prompt too.
    assert "r on it" in chat.banner and chat.texts == ["Q"] and chat.app.prompt.text == ""


async def test_a_fault_of_ours_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with driven(tmp_path) as chat:
            chat.app.action_help = lambda: 1 // 0  # type: ignore[method-assign,assignment,return-value]
            await chat.press("f1")


# -- while a model is opened -----------------------------------------------------------------------


async def waiting(chat: Driver) -> None:
    chat.app.prompt.load_text("For a new page")
    await chat.press("enter")
    await chat.until(lambda: any(isinstance(t, ReplyTurn) for t in chat.app.transcript.turns))


@pytest.mark.parametrize("leave", ["escape", "ctrl+n", "open"])
async def test_a_question_that_waits_for_the_model_can_be_taken_back(
    tmp_path: Path, leave: str
) -> None:
    source = FakeSource()
    session = make_session(tmp_path, source)
    session.use_model(session.open_model(None))
    talk(session, "old")
    session.new()
    assert session.model
    session.model, source.load_delay = None, 2.0
    async with driven(tmp_path, source, session=session, wait=False) as chat:
        await waiting(chat)
        if leave == "open":
            await chat.app.open_conversation(1)
        else:
            await chat.press(leave)
        await chat.until(lambda: chat.app.idle and chat.app.prompt.text == "For a new page")
        await chat.until(lambda: session.model is not None)
        await chat.until(lambda: len(chat.app.transcript.turns) == len(session.path))
        (only,) = session.store.conversations.recent()
        assert only.turns == 2 and len(session.path) == (2 if leave == "open" else 0)


async def test_a_question_that_waits_is_kept_when_one_quits(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(load_delay=5), wait=False) as chat:
        await waiting(chat)
        await chat.press("ctrl+q")
    (only,) = make_session(tmp_path).store.conversations.recent()
    assert (only.title, only.turns) == ("For a new page", 1)


async def test_the_model_chosen_last_is_used_and_kept(chat: Driver) -> None:
    chat.source.load_delay = 1.0
    chat.app.load_model("slow")
    await chat.pilot.pause(0.2)
    chat.source.load_delay = 0.0
    chat.app.load_model("other")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "other")
    await chat.until(lambda: len(chat.source.engines) == 3 and chat.source.engines[-1].closed)
    assert chat.session.model and chat.session.model.name == "other"
    assert chat.session.preferences.config.model == "other"
    assert "other" in chat.app.status_line.line(80).plain


async def test_a_plan_of_one_model_is_never_sent_to_another(chat: Driver) -> None:
    add = chat.app.transcript.add
    old, plans = chat.session.model, list[Plan]()
    reply = chat.session.reply

    async def switches(turn: Turn) -> None:
        await add(turn)
        if isinstance(turn, ReplyTurn):
            chat.session.use_model(chat.session.open_model("other"))

    def record(plan: Plan) -> Reply:
        plans.append(plan)
        return reply(plan)

    chat.app.transcript.add = switches  # type: ignore[method-assign]
    chat.session.reply = record  # type: ignore[method-assign]
    await chat.say("Q")
    (plan,) = plans
    assert old and chat.session.model and chat.session.model.name == "other"
    assert plan.assistant is chat.session.model.assistant is not old.assistant
    assert chat.session.path[1].facts.model == "other"


async def test_what_is_wrong_with_settings_and_models_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"colour": "red"}')
    source = FakeSource(wrong=["models.json: is not a list of models"])
    async with driven(tmp_path, source) as chat:
        assert "colour is not a preference" in chat.banner and "not a list" in chat.banner
