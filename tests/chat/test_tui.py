"""The app, driven by keys as a person would: every action, and what must never happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.chatting import FakeSource, make_session, talk
from support.fake_engine import FakeStream
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static, TextArea

from selm_edge.chat.commands import COMMANDS
from selm_edge.chat.screens.ask import DeleteScreen, TextScreen
from selm_edge.chat.screens.conversations import ConversationsScreen
from selm_edge.chat.screens.editor import EditorScreen
from selm_edge.chat.screens.help import HelpScreen
from selm_edge.chat.screens.models import ModelScreen
from selm_edge.chat.screens.overflow import OverflowScreen
from selm_edge.chat.screens.settings import SettingsScreen
from selm_edge.chat.session import ChatSession
from selm_edge.chat.tui import ChatApp
from selm_edge.chat.widgets.status import Hints, StatusLine
from selm_edge.chat.widgets.transcript import EmptyPage
from selm_edge.chat.widgets.turns import ContextDivider, Earlier, ReplyTurn, Turn, UserTurn

CODE = "Here:\n\n```py\nprint(1)\n```\n\nand\n\n```sh\nls\n```\n\nDone."


async def wait_until(pilot: Pilot[None], condition: Callable[[], Any], seconds: float = 20) -> None:
    """Let the app work until the condition holds; one pause is never known to be enough."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true; screen: {pilot.app.screen}"
        await pilot.pause(0.01)


class Driver:
    """An app under test, its session, and what a person does with it."""

    def __init__(self, app: ChatApp, pilot: Pilot[None], source: FakeSource) -> None:
        self.app, self.pilot, self.source = app, pilot, source
        self.told: list[str] = []

    @property
    def session(self) -> ChatSession:
        return self.app.session

    async def until(self, condition: Callable[[], Any]) -> None:
        await wait_until(self.pilot, condition)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def ready(self) -> None:
        await self.until(lambda: self.session.model is not None and self.app.idle)

    async def say(self, text: str) -> None:
        """Write and send, and wait until the reply is kept."""
        before = len(self.session.path)
        self.app.prompt.focus()
        self.app.prompt.load_text(text)
        await self.press("enter")
        await self.until(lambda: self.app.idle and len(self.session.path) > before)
        await self.until(lambda: len(self.app.transcript.turns) == len(self.session.path))

    async def screen(self, kind: type) -> Any:
        await self.until(lambda: isinstance(self.app.screen, kind) and self.app.screen.focused)
        return self.app.screen

    async def main(self) -> None:
        await self.until(lambda: self.app.screen is self.app.main)

    async def choose(self, option: str) -> None:
        """Choose an option of the list on the screen on top by its id."""
        options = self.app.screen.query_one(OptionList)
        options.highlighted = options.get_option_index(option)
        options.focus()
        await self.press("enter")

    async def last_reply(self) -> None:
        """Select the last turn."""
        self.app.prompt.focus()
        await self.press("up")
        await self.until(lambda: isinstance(self.app.focused, Turn))

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.session.path]

    @property
    def banner(self) -> str:
        banner = self.app.main.query_one("#banner", Static)
        return str(banner.render()) if banner.has_class("shown") else ""

    @property
    def shown(self) -> list[str]:
        return [turn.text for turn in self.app.transcript.turns]  # type: ignore[attr-defined]


@asynccontextmanager
async def driven(
    folder: Path,
    source: FakeSource | None = None,
    *,
    size: tuple[int, int] = (80, 24),
    session: ChatSession | None = None,
    model: str | None = None,
    wait: bool = True,
) -> AsyncIterator[Driver]:
    source = source or FakeSource()
    session = session or make_session(folder, source)
    app = ChatApp(session, model)
    try:
        async with app.run_test(size=size) as pilot:
            driver = Driver(app, pilot, source)
            tell = app.tell
            app.tell = lambda text, **options: (driver.told.append(text), tell(text, **options))  # type: ignore[method-assign,assignment,return-value]
            if wait:
                await driver.ready()
            yield driver
    finally:
        app.shut_down()


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[Driver]:
    async with driven(tmp_path) as driver:
        yield driver


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
    async with driven(tmp_path, FakeSource(load_delay=0.3), model="broken", wait=False) as chat:
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
    lines = "\n\n".join(f"line {n}" for n in range(400))
    async with driven(tmp_path, FakeSource([lines], delay=0.002)) as chat:
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


# -- conversations -----------------------------------------------------------------------------


async def three_conversations(chat: Driver) -> None:
    for question in ("Kettles and lime", "Tulips in autumn", "Sums"):
        await chat.press("ctrl+n")
        await chat.say(question)


async def test_conversations_are_listed_searched_and_opened(chat: Driver) -> None:
    await three_conversations(chat)
    await chat.press("f2")
    screen = await chat.screen(ConversationsScreen)
    options = screen.query_one(OptionList)
    assert options.option_count == 3 and options.has_focus
    await chat.press("slash", *"tulip")
    await chat.until(lambda: options.option_count == 1)
    await chat.press("enter", "enter")
    await chat.main()
    await chat.until(lambda: chat.shown[:1] == ["Tulips in autumn"])
    await chat.press("ctrl+f")
    screen = await chat.screen(ConversationsScreen)
    assert screen.query_one(Input).has_focus
    await chat.press(*'"no such', "escape")
    await chat.main()


async def test_rename_and_delete_in_the_list(chat: Driver) -> None:
    await three_conversations(chat)
    await chat.press("f2")
    await chat.screen(ConversationsScreen)
    await chat.press("r")
    screen = await chat.screen(TextScreen)
    screen.query_one(Input).value = "Numbers"
    await chat.press("enter")
    await chat.screen(ConversationsScreen)
    await chat.until(lambda: chat.session.store.conversations.recent()[0].title == "Numbers")
    await chat.press("d")
    screen = await chat.screen(DeleteScreen)
    assert "cannot be undone" in str(screen.query_one(".note", Static).render())
    await chat.press("enter")  # the first choice is to keep it
    await chat.screen(ConversationsScreen)
    assert len(chat.session.store.conversations.recent()) == 3
    await chat.press("d")
    await chat.screen(DeleteScreen)
    await chat.choose("all")
    await chat.screen(ConversationsScreen)
    await chat.until(lambda: len(chat.session.store.conversations.recent()) == 2)
    await chat.press("escape")
    await chat.main()
    await chat.until(lambda: chat.app.query(EmptyPage))  # the one on show is gone


async def test_delete_the_one_on_show_and_keep_its_feedback(chat: Driver) -> None:
    await chat.say("Q")
    await chat.last_reply()
    await chat.press("plus")
    chat.app.prompt.load_text("/delete")
    chat.app.prompt.focus()
    await chat.press("enter")
    await chat.screen(DeleteScreen)
    await chat.choose("keep")
    await chat.main()
    await chat.until(lambda: chat.session.conversation is None)
    assert any("No byte" in told for told in chat.told)
    assert chat.session.store.feedback.count() == 1


async def test_export_by_key_by_list_and_by_command(chat: Driver, tmp_path: Path) -> None:
    await chat.say("Q")
    await chat.press("ctrl+s")
    screen = await chat.screen(TextScreen)
    assert screen.query_one(Input).value.endswith("q.md")
    screen.query_one(Input).value = str(tmp_path / "a.json")
    await chat.press("enter")
    await chat.until((tmp_path / "a.json").exists)
    await chat.press("f2")
    await chat.screen(ConversationsScreen)
    await chat.press("e")
    screen = await chat.screen(TextScreen)
    screen.query_one(Input).value = str(tmp_path / "b.md")
    await chat.press("enter")
    await chat.until((tmp_path / "b.md").exists)
    await chat.screen(ConversationsScreen)
    await chat.press("escape")
    await chat.main()
    chat.app.prompt.load_text(f"/export {tmp_path / 'no' / 'such' / 'c.md'}")
    await chat.press("enter")
    await chat.until((tmp_path / "no" / "such" / "c.md").exists)


async def test_rename_by_command_and_by_dialog(chat: Driver) -> None:
    await chat.app.run_action("rename")
    await chat.until(lambda: chat.told and "ask something first" in chat.told[-1])
    await chat.say("Q")
    chat.app.prompt.load_text("/rename A better title")
    await chat.press("enter")
    await chat.until(lambda: "A better title" in str(chat.app.query_one("#top", Static).render()))
    chat.app.prompt.load_text("/rename")
    await chat.press("enter")
    screen = await chat.screen(TextScreen)
    assert screen.query_one(Input).value == "A better title"
    await chat.press("escape")
    await chat.main()


# -- copying -----------------------------------------------------------------------------------


async def test_copy_the_turn_the_code_and_to_a_file(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource([CODE])) as chat:
        await chat.say("Q")
        await chat.last_reply()
        await chat.press("c")
        assert chat.app.clipboard == CODE
        await chat.press("k")
        assert chat.app.clipboard == "ls"
        await chat.press("k")
        assert chat.app.clipboard == "print(1)"
        await chat.press("up", "c")
        assert chat.app.clipboard == "Q"
        await chat.press("w")
        screen = await chat.screen(TextScreen)
        screen.query_one(Input).value = str(tmp_path / "turn.md")
        await chat.press("enter")
        await chat.until((tmp_path / "turn.md").exists)
        assert (tmp_path / "turn.md").read_text() == "Q\n"
        await chat.main()
        for command, expected in (("last", CODE), ("code", "ls")):
            chat.app.prompt.focus()
            chat.app.prompt.load_text(f"/copy {command}")
            await chat.press("enter")
            await chat.until(lambda expected=expected: chat.app.clipboard == expected)  # type: ignore[misc]
        chat.app.prompt.load_text(f"/copy all {tmp_path / 'all.md'}")
        await chat.press("enter")
        await chat.until((tmp_path / "all.md").exists)
        chat.app.prompt.load_text("/copy nonsense")
        await chat.press("enter")
        await chat.until(lambda: "last, code, all" in chat.told[-1])


async def test_links_are_copied_and_never_opened(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["See [here](https://example.org/x)."])) as chat:
        opened: list[str] = []
        chat.app.open_url = lambda url, **_: opened.append(url)  # type: ignore[method-assign]
        await chat.say("Q")
        from textual.widgets import Markdown

        view = chat.app.query_one(Markdown)
        view.post_message(Markdown.LinkClicked(view, "https://example.org/x"))
        await chat.until(lambda: chat.app.clipboard == "https://example.org/x")
        assert opened == []


async def test_terminal_control_of_a_model_is_not_shown(tmp_path: Path) -> None:
    source = FakeSource(["before \x1b]52;c;ZXZpbA==\x07\x1b[2J after"])
    async with driven(tmp_path, source) as chat:
        await chat.say("Q \x1b[31m")
        assert [text.strip() for text in chat.shown] == ["Q", "before  after"]
        assert "\x1b" not in "".join(chat.shown)


# -- models ------------------------------------------------------------------------------------


async def test_models_are_picked_and_remembered(chat: Driver) -> None:
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    assert screen.query_one(OptionList).option_count == 2
    await chat.choose("other")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "other")
    assert chat.session.preferences.config.model == "other"
    await chat.until(lambda: "other" in chat.app.status_line.line(80).plain)


async def test_a_model_by_its_path(chat: Driver) -> None:
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    screen.query_one(Input).focus()
    await chat.press(*"~/x/mine.gguf", "enter")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "mine")
    assert chat.source.opened[-1][0] == str(Path.home() / "x" / "mine.gguf")


async def test_a_bad_model_says_why_and_the_old_one_stays(chat: Driver) -> None:
    chat.app.prompt.load_text("/model /models/broken.gguf")
    await chat.press("enter")
    await chat.until(lambda: "magic" in chat.banner)
    assert "byte 0" in chat.banner and "Still using selm-mini" in chat.banner
    await chat.say("still there?")
    assert chat.texts[-1] == "Hello from the fake engine."


async def test_files_can_be_browsed(chat: Driver, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "found.gguf").write_bytes(b"GGUF")
    (tmp_path / "m" / "notes.txt").write_text("x")
    await chat.press("f3")
    screen = await chat.screen(ModelScreen)
    screen.query_one(Input).value = str(tmp_path / "m")
    await chat.press("f3")
    from selm_edge.chat.screens.models import GgufTree

    await chat.until(lambda: screen.query(GgufTree))
    tree = screen.query_one(GgufTree)
    await chat.until(lambda: len(tree.root.children) == 1)
    assert str(tree.root.children[0].label) == "found.gguf"
    await chat.press("down", "enter")
    await chat.until(lambda: chat.session.model and chat.session.model.name == "found")


async def test_a_model_can_be_changed_while_a_reply_is_made(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(["word " * 2000], delay=0.005)) as chat:
        chat.app.prompt.load_text("Q")
        await chat.press("enter")
        await chat.until(lambda: chat.app._reply and chat.app._reply.text)
        chat.app.load_model("other")
        await chat.until(lambda: chat.session.model and chat.session.model.name == "other")
        assert chat.session.path[1].facts.finish_reason == "cancelled"
        assert chat.source.engines[0].closed


# -- settings ----------------------------------------------------------------------------------


async def test_settings_are_kept_and_used(chat: Driver) -> None:
    await chat.press("f4")
    screen = await chat.screen(SettingsScreen)
    screen.query_one("#set-system", TextArea).load_text("Be brief.")
    screen.query_one("#set-temperature", Input).value = "0"
    screen.query_one("#set-seed", Input).value = "7"
    await chat.press("ctrl+s")
    await chat.main()
    await chat.say("Q")
    assert chat.source.engine.samplings[-1].temperature == 0
    assert chat.source.engine.samplings[-1].seed == 7
    assert "Be brief." in chat.source.engine.prompts[-1]


async def test_a_wrong_setting_is_said_and_nothing_is_kept(chat: Driver) -> None:
    for field, value, words in (
        ("temperature", "hot", "not a number"),
        ("top_k", "1.5", "not a whole number"),
        ("top_p", "7", "from 0 to 1"),
        ("context", "3", "from 16 to"),
    ):
        await chat.press("f4")
        screen = await chat.screen(SettingsScreen)
        screen.query_one(f"#set-{field}", Input).value = value
        await chat.press("ctrl+s")
        line = screen.query_one("#settings-error", Static)
        await chat.until(lambda line=line, words=words: words in str(line.render()))  # type: ignore[misc]
        assert screen.query_one(f"#set-{field}", Input).has_focus
        await chat.press("escape")
        await chat.main()
    assert chat.session.preferences.config.sampling == {}


async def test_settings_by_command(chat: Driver) -> None:
    for command, words in (
        ("/set temperature 0.2", "temperature is 0.2"),
        ("/set temperature default", "temperature is 0.7"),
        ("/set temperature 1000", "temperature is a number"),
        ("/set nonsense 1", "context, max_tokens"),
        ("/set max_tokens 99", "max_tokens is 99"),
        ("/set enter_sends no", "Ctrl+J sends"),
        ("/set enter_sends yes", "Enter sends"),
        ("/system Be kind.", "system prompt holds"),
    ):
        chat.app.prompt.load_text(command)
        chat.app.prompt.enter_sends = True
        await chat.press("enter")
        await chat.until(lambda words=words: chat.told and words in chat.told[-1])  # type: ignore[misc]
    assert chat.session.system == "Be kind." and chat.session.max_tokens == 99


async def test_a_larger_context_reopens_the_model(chat: Driver) -> None:
    await chat.press("f4")
    screen = await chat.screen(SettingsScreen)
    screen.query_one("#set-context", Input).value = "8192"
    await chat.press("ctrl+s")
    await chat.until(lambda: chat.source.opened[-1] == ("selm-mini", 8192))
    await chat.until(lambda: chat.session.model and chat.session.model.context == 8192)


async def test_the_theme_is_kept(tmp_path: Path) -> None:
    async with driven(tmp_path) as chat:
        assert chat.app.theme == "selm-dark"
        chat.app.theme = "nord"
        await chat.until(lambda: chat.session.preferences.config.theme == "nord")
    async with driven(tmp_path) as chat:
        assert chat.app.theme == "nord"


# -- what no longer fits -----------------------------------------------------------------------


async def full_chat(chat: Driver) -> None:
    chat.app.load_model("selm-mini", 400)
    await chat.until(lambda: chat.session.model and chat.session.model.context == 400)
    for number in range(5):
        await chat.say(f"Question {number}")
    chat.app.prompt.focus()
    chat.app.prompt.load_text("word " * 60)
    await chat.press("enter")
    await chat.screen(OverflowScreen)


LONG = ["reply " * 40]


async def test_the_oldest_turns_stay_out_marked(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        assert len(chat.session.path) == 10  # nothing has happened yet
        await chat.choose("drop")
        await chat.until(lambda: chat.app.idle and len(chat.session.path) == 12)
        await chat.until(lambda: len(chat.app.query(ContextDivider)) == 1)
        assert "Question 0" not in chat.source.engine.prompts[-1]
        assert chat.shown[0] == "Question 0"


async def test_the_question_can_go_to_a_new_conversation(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        await chat.choose("new")
        await chat.until(lambda: chat.app.idle and len(chat.session.path) == 2)
        assert len(chat.session.store.conversations.recent()) == 2


async def test_the_context_can_grow(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        await chat.choose("larger")
        await chat.until(lambda: chat.app.idle and len(chat.session.path) == 12)
        assert chat.session.model and chat.session.model.context == 800
        assert not chat.app.query(ContextDivider)


async def test_one_can_go_back_and_nothing_is_lost(tmp_path: Path) -> None:
    async with driven(tmp_path, FakeSource(LONG)) as chat:
        await full_chat(chat)
        await chat.press("escape")
        await chat.until(lambda: chat.app.idle)
        assert chat.app.prompt.text == ("word " * 60).strip()
        assert len(chat.session.path) == 10


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


# -- every action can be reached ---------------------------------------------------------------


async def test_every_action_exists_and_is_in_the_palette_and_the_help(chat: Driver) -> None:
    palette = {command.title for command in chat.app.get_system_commands(chat.app.screen)}
    for command in COMMANDS:
        if command.where != "prompt":
            assert hasattr(chat.app, f"action_{command.name}"), command.name
        if command.palette:
            assert any(title.startswith(command.title) for title in palette), command.name
    await chat.press("f1")
    await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
    screen = chat.app.screen
    words = " ".join(str(line.render()) for line in screen.query(".words").results(Static))
    for command in COMMANDS:
        assert command.title in words and command.help in words
    await chat.press("pagedown", "down", "escape")
    await chat.main()


async def test_the_palette_runs_an_action(chat: Driver) -> None:
    await chat.press("ctrl+p")
    await chat.until(lambda: chat.app.screen is not chat.app.main)
    await chat.press(*"settings")
    from textual.command import CommandList

    await chat.until(lambda: chat.app.screen.query_one(CommandList).option_count == 1)
    await chat.press("enter")
    await chat.screen(SettingsScreen)


async def test_slash_commands(chat: Driver) -> None:
    await chat.say("Q")
    chat.app.prompt.load_text("/nonsense")
    await chat.press("enter")
    await chat.until(lambda: "no command /nonsense" in chat.told[-1])
    assert chat.app.prompt.text == "/nonsense"
    chat.app.prompt.load_text("/usr/bin is a path, not a command")
    await chat.press("enter")
    await chat.until(lambda: len(chat.texts) == 4 and chat.app.idle)
    chat.app.prompt.load_text("/edit Other words")
    await chat.press("enter")
    await chat.until(lambda: chat.app.idle and "Other words" in chat.texts)
    chat.app.prompt.load_text("/correct Better.")
    await chat.press("enter")
    await chat.until(lambda: chat.texts[-1] == "Better.")
    chat.app.prompt.load_text("/search better")
    await chat.press("enter")
    screen = await chat.screen(ConversationsScreen)
    assert screen.query_one(OptionList).option_count == 1
    await chat.press("escape")
    await chat.main()
    chat.app.prompt.load_text("/new")
    await chat.press("enter")
    await chat.until(lambda: chat.session.conversation is None)
    chat.app.prompt.load_text("/open 1")
    await chat.press("enter")
    await chat.until(lambda: chat.texts and chat.texts[-1] == "Better.")
    chat.app.prompt.load_text("/open 99")
    await chat.press("enter")
    await chat.until(lambda: "from 1 to 1" in chat.told[-1])


async def test_many_windows_do_not_leak_threads(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    for _ in range(3):
        async with driven(tmp_path) as chat:
            await chat.say("Q")
    end = time.monotonic() + 10
    while threading.active_count() > before + 4 and time.monotonic() < end:
        await asyncio.sleep(0.05)  # the loop's own executor keeps a few
    assert threading.active_count() <= before + 4
