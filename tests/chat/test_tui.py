"""The app, driven by keys as a person would: asking, writing, turns, feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chatting import FakeSource, make_session, talk
from support.driving import Driver, driven
from support.fake_engine import FakeStream
from textual import events
from textual.widgets import Static, TextArea

from selm_edge.chat.screens.editor import EditorScreen
from selm_edge.chat.widgets.status import Hints
from selm_edge.chat.widgets.transcript import EmptyPage
from selm_edge.chat.widgets.turns import Earlier, ReplyTurn, UserTurn

# -- asking ------------------------------------------------------------------------------------


async def test_a_question_and_its_reply(chat: Driver) -> None:
    assert chat.app.query(EmptyPage)
    await chat.press(*"Hi", "enter")
    await chat.until(lambda: chat.texts == ["Hi", "Hello from the fake engine."])
    await chat.until(lambda: chat.shown == chat.texts)
    assert not chat.app.query(EmptyPage) and chat.app.prompt.text == ""
    assert "Hi" in str(chat.app.query_one("#top", Static).render())
    await chat.until(lambda: chat.app.status_line.status.used)
    assert chat.app.status_line.status.state == "ready"


async def test_the_first_frame_comes_before_the_model(tmp_path: Path) -> None:
    source = FakeSource(load_delay=1.5)
    async with driven(tmp_path, source, wait=False) as chat:
        assert chat.session.model is None and chat.app.prompt.has_focus
        await chat.until(lambda: chat.app.status_line.status.state == "loading")
        assert "Loading" in chat.app.status_line.line(80).plain
        await chat.press(*"Hi", "enter")  # it may be asked already
        await chat.until(lambda: any(isinstance(t, ReplyTurn) for t in chat.app.transcript.turns))
        assert chat.session.model is None
        await chat.until(lambda: chat.texts == ["Hi", "Hello from the fake engine."])
        await chat.until(lambda: chat.shown == chat.texts)


async def test_a_model_that_cannot_be_opened_gives_the_question_back(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(load_delay=1.5), model="broken", wait=False) as chat:
        await chat.press(*"Hi", "enter")
        await chat.until(lambda: "magic" in chat.banner)
        await chat.until(lambda: chat.app.prompt.text == "Hi" and chat.app.idle)
        assert chat.session.path == [] and chat.app.status_line.status.state == "none"
        assert "F3" in chat.app.status_line.line(80).plain


async def test_esc_stops_the_compute_and_keeps_the_partial_text(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["word " * 2000, "Yes."], delay=0.005)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and len(chat.app._reply.text) > 30)
        assert chat.app.status_line.status.state == "replying"
        assert ("Esc", "stop") in chat.app.query_one(Hints)._hints
        await chat.press("escape")
        await chat.until(lambda: chat.app.idle)
        kept = chat.session.path[1]
        assert kept.facts.finish_reason == "cancelled" and 30 < len(kept.text) < 9000
        assert chat.source.engine.sessions[0].busy is False
        assert "stopped" in chat.app.transcript.turns[1].meta().plain
        await chat.say("again?")  # the session can go on


async def test_while_a_reply_is_made_a_second_question_waits(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["word " * 2000], delay=0.005)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply)
        chat.app.prompt.load_text("Another")
        await chat.press("enter")
        await chat.until(lambda: any("Esc stops" in told for told in chat.told))
        assert chat.app.prompt.text == "Another"
        await chat.press("ctrl+n")  # leaving for a new page stops it and keeps what there is
        await chat.until(lambda: chat.session.conversation is None and chat.app.idle)
        (found,) = chat.session.store.conversations.recent()
        assert found.turns == 2


async def test_quitting_in_the_middle_keeps_the_partial_text(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["word " * 2000], delay=0.005)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        await chat.press("ctrl+q")
    again = make_session(tmp_path)
    (found,) = again.store.conversations.recent()
    assert [m.role for m in again.store.conversations.path(found.id)] == ["user", "assistant"]


async def test_the_app_ending_by_itself_keeps_the_partial_text(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["word " * 2000], delay=0.005)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        chat.app.exit()  # as when the terminal goes away
    again = make_session(tmp_path)
    (found,) = again.store.conversations.recent()
    assert [m.role for m in again.store.conversations.path(found.id)] == ["user", "assistant"]


async def test_an_engine_that_breaks_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FakeStream.__next__

    def breaking(stream: FakeStream) -> str:
        if stream.stats.tokens == 2:
            raise RuntimeError("the core gave up")
        return whole(stream)

    monkeypatch.setattr(FakeStream, "__next__", breaking)
    async with driven(tmp_path) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: "the core gave up" in chat.banner and chat.app.idle)
        assert chat.texts == ["Q", "Hello from"]


async def test_examples_begin_a_conversation(chat: Driver) -> None:
    await chat.press("up", "enter")
    await chat.until(lambda: len(chat.texts) == 2 and chat.app.idle)
    assert chat.app.prompt.has_focus


# -- writing -----------------------------------------------------------------------------------


async def test_newlines_and_pastes_never_send(chat: Driver) -> None:
    await chat.press("a", "ctrl+j", "b")
    assert chat.app.prompt.text == "a\nb"
    chat.app.prompt.clear()
    chat.app.post_message(events.Paste("one\r\ntwo\x1b[31m\rthree\n"))
    await chat.until(lambda: chat.app.prompt.text == "one\ntwo\nthree\n")
    await chat.pilot.pause(0.1)
    assert chat.session.path == [] and chat.app.idle


async def test_a_paste_without_marks_never_sends(chat: Driver) -> None:
    # A terminal that does not mark a paste sends a burst of keys, Enter among them.
    keys = [events.Key(c if c != "\n" else "enter", c if c != "\n" else "\r") for c in "ab\ncd\n"]
    for key in keys:
        key.time = keys[0].time
        chat.app.prompt.post_message(key)
    await chat.until(lambda: chat.app.prompt.text == "ab\ncd\n")
    assert chat.app.idle and chat.session.path == []


async def test_keys_can_be_swapped(chat: Driver) -> None:
    chat.session.set_enter_sends(False)
    chat.app.prompt.enter_sends = False
    await chat.press("a", "enter", "b")
    assert chat.app.prompt.text == "a\nb"
    await chat.press("ctrl+j")
    await chat.until(lambda: len(chat.texts) == 2)
    assert chat.texts[0] == "a\nb"


async def test_an_empty_prompt_sends_nothing(chat: Driver) -> None:
    await chat.press("enter", "space", "enter")
    await chat.pilot.pause(0.05)
    assert chat.session.path == [] and chat.app.idle


# -- following ---------------------------------------------------------------------------------


async def test_the_view_follows_only_a_reader_at_the_end(tmp_path: Path) -> None:
    # More than a busy machine shows before the reader has looked back and returned.
    lines = "\n\n".join(f"line {n}" for n in range(4000))
    async with driven(tmp_path, FakeSource([lines], delay=0.004)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        view = chat.app.transcript
        await chat.until(lambda: view.max_scroll_y > 30)
        await chat.until(lambda: view.scroll_y >= view.max_scroll_y - 2)
        await chat.press("pageup")
        await chat.until(lambda: view.scroll_y < view.max_scroll_y - 5)
        there, end = view.scroll_y, view.max_scroll_y
        await chat.until(lambda: view.max_scroll_y > end + 20)
        assert view.scroll_y == there  # it stayed where the reader is
        await chat.press("ctrl+end")
        await chat.until(lambda: view.scroll_y >= view.max_scroll_y - 2)
        end = view.max_scroll_y
        await chat.until(lambda: view.max_scroll_y > end + 20)
        await chat.until(lambda: view.scroll_y >= view.max_scroll_y - 2)
        await chat.press("escape")
        await chat.until(lambda: chat.app.idle)


# -- turns, forks, versions --------------------------------------------------------------------


async def test_reply_again_and_switch_versions(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["first", "second", "third"])) as chat:
        await chat.say("Q")
        await chat.last_reply()
        await chat.press("r")
        await chat.until(lambda: chat.texts == ["Q", "second"] and chat.app.idle)
        await chat.until(lambda: chat.shown == ["Q", "second"])
        assert "‹ 2/2 ›" in chat.app.transcript.turns[1].meta().plain
        await chat.last_reply()
        await chat.press("left")
        await chat.until(lambda: chat.shown == ["Q", "first"])
        assert isinstance(chat.app.focused, ReplyTurn)
        assert "‹ 1/2 ›" in chat.app.focused.meta().plain
        await chat.press("right")
        await chat.until(lambda: chat.shown == ["Q", "second"])
        assert [row.kind for row in chat.session.store.feedback.rows()] == ["regeneration"]


async def test_edit_forks_and_the_old_branch_can_be_shown(chat: Driver) -> None:
    await chat.say("Q1")
    await chat.say("Q2")
    await chat.last_reply()
    await chat.press("up", "up", "up")
    assert isinstance(chat.app.focused, UserTurn)
    await chat.press("e")
    screen = await chat.screen(EditorScreen)
    assert screen.query_one(TextArea).text == "Q1"
    screen.query_one(TextArea).load_text("Q1 in other words")
    await chat.press("ctrl+s")
    await chat.until(lambda: len(chat.texts) == 2 and chat.app.idle)
    assert chat.texts[0] == "Q1 in other words"
    await chat.until(lambda: chat.shown == chat.texts)
    await chat.last_reply()
    await chat.press("up", "left")
    await chat.until(lambda: chat.shown[:1] == ["Q1"] and len(chat.shown) == 4)


async def test_an_edit_can_be_given_up(chat: Driver) -> None:
    await chat.say("Q1")
    await chat.last_reply()
    await chat.press("e")
    await chat.screen(EditorScreen)
    await chat.press("escape")
    await chat.main()
    assert chat.texts[0] == "Q1" and len(chat.session.versions[chat.session.path[0].id]) == 1


async def test_turns_are_selected_with_the_arrows(chat: Driver) -> None:
    await chat.say("Q1")
    await chat.last_reply()
    turns = chat.app.transcript.turns
    assert chat.app.focused is turns[1]
    await chat.press("up", "up", "up")
    assert chat.app.focused is turns[0]
    await chat.press("down", "down")
    await chat.until(lambda: chat.app.prompt.has_focus)
    await chat.press("up", "escape")
    await chat.until(lambda: chat.app.prompt.has_focus)


async def test_a_long_conversation_is_laid_out_in_part(tmp_path: Path) -> None:
    source = FakeSource()
    session = make_session(tmp_path, source)
    session.use_model(session.open_model(None))
    for number in range(45):
        talk(session, f"Q{number}")
    key = session.conversation.id if session.conversation else 0
    session.new()
    async with driven(tmp_path, source, session=session) as chat:
        await chat.app.open_conversation(key)
        await chat.until(lambda: len(chat.app.transcript.turns) == 40)
        assert chat.app.query(Earlier) and chat.shown[-2] == "Q44"
        chat.app.prompt.load_text("Q45")
        await chat.press("enter")
        await chat.until(lambda: chat.app.idle and len(chat.texts) == 92)
        assert len(chat.app.query(Earlier)) == 1
        chat.app.query_one(Earlier).focus()
        await chat.press("enter")
        await chat.until(lambda: len(chat.app.transcript.turns) == 92)
        assert chat.shown[0] == "Q0" and not chat.app.query(Earlier)


# -- feedback ----------------------------------------------------------------------------------


async def test_thumbs_are_kept_said_and_taken_back(chat: Driver) -> None:
    await chat.say("Q")
    await chat.last_reply()
    await chat.press("plus")
    await chat.until(lambda: chat.told)
    assert "only on this device" in chat.told[-1] and "selm feedback export" in chat.told[-1]
    assert [row.kind for row in chat.session.store.feedback.rows()] == ["up"]
    await chat.until(lambda: "▲ good" in chat.app.transcript.turns[1].meta().plain)
    await chat.press("minus")
    await chat.until(lambda: "▼ bad" in chat.app.transcript.turns[1].meta().plain)
    assert "▲" not in chat.app.transcript.turns[1].meta().plain
    await chat.press("minus")
    await chat.until(lambda: chat.told[-1] == "Taken back.")
    assert chat.session.store.feedback.rows() == []


async def test_a_correction_is_prefilled_kept_and_goes_on(chat: Driver) -> None:
    await chat.say("Q")
    await chat.last_reply()
    await chat.press("x")
    screen = await chat.screen(EditorScreen)
    area = screen.query_one(TextArea)
    assert area.text == "Hello from the fake engine." and area.has_focus
    assert "only on this device" in str(screen.query_one(".note", Static).render())
    await chat.press(*" Yes")
    await chat.press("ctrl+s")
    await chat.until(lambda: chat.texts == ["Q", "Hello from the fake engine. Yes"])
    await chat.until(lambda: "your correction" in chat.app.transcript.turns[1].meta().plain)
    (row,) = chat.session.store.feedback.rows()
    assert row.correction == "Hello from the fake engine. Yes"
    await chat.last_reply()
    await chat.press("left")
    await chat.until(lambda: "✎ corrected" in chat.app.transcript.turns[1].meta().plain)


async def test_feedback_needs_a_reply(chat: Driver) -> None:
    await chat.app.run_action("good")
    assert chat.told == ["There is no reply yet."]
