"""The window: its parts, the model that opens behind it, and a question on its way to a reply.

`selm_edge.chat.tui` adds what the user can do besides asking.

The first frame needs no model and no Markdown: the model opens in a thread, the other screens and
the Markdown widget are imported when they are first shown.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from textual import work
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.widgets import Static
from textual.worker import Worker, WorkerState, get_current_worker

from selm_edge.chat.commands import COMMANDS
from selm_edge.chat.themes import DEFAULT, THEMES
from selm_edge.chat.threads import in_thread, pieces_from_thread
from selm_edge.chat.widgets.prompt import Prompt
from selm_edge.chat.widgets.status import NO_FIGURES, Hints, StatusLine
from selm_edge.chat.widgets.transcript import Example, Transcript
from selm_edge.chat.widgets.turns import ReplyTurn, Turn, UserTurn
from selm_edge.clean import clean, clean_line
from selm_edge.errors import SelmError
from selm_edge.store.errors import NotFound, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from textual.actions import ActionParseResult
    from textual.dom import DOMNode
    from textual.events import DescendantBlur, DescendantFocus, Resize
    from textual.screen import Screen
    from textual.widgets import Markdown

    from selm_edge.assistant import Plan, Reply
    from selm_edge.chat.session import ChatSession
    from selm_edge.memory.proposals import Proposal
    from selm_edge.store.conversations import Message

    Decision = tuple[Plan, int]

T = TypeVar("T")
EXPECTED = (SelmError, ValueError, OSError)
"""What a disk, a file or a person's input may answer: it is said, and the chat goes on."""
BUSY_MS = 1000
"""How long the screen may stand still for a lock that another program holds."""
BUSY_TRIES = 20
"""How often a reply that is made asks for the lock before the chat goes on in memory."""
SMALLEST = (24, 8)
"""Columns and rows below which there is no room to talk."""


class ChatWindow(App[None]):
    """One window over one `ChatSession`."""

    TITLE = "SELM Edge"
    CSS_PATH = Path(__file__).with_name("style.tcss")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(command.keys, command.name, command.title, show=False)
        for command in COMMANDS
        if command.where == "anywhere" and command.keys
    ]
    AUTO_FOCUS = "#prompt"

    def __init__(
        self,
        session: ChatSession | Callable[[], ChatSession],
        model: str | None = None,
        theme: str | None = None,
    ) -> None:
        """``session`` may be what opens one: then the first frame does not wait for the disk."""
        super().__init__()
        self._session = session
        if not callable(session):
            self._adopt(session)
            theme = theme or session.preferences.config.theme
        self._wanted_model = model
        self._model_settled = asyncio.Event()
        self._load = 0  # the number of the load chosen last: the others are out of date
        self._asking: Worker[None] | None = None
        self._reply: Reply | None = None
        self._question: Message | None = None  # the one that `_reply` is to
        self._thread_done = threading.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._quitting = False
        self._leaving: asyncio.Task[None] | None = None
        self.proposed: list[Proposal] = []  # of the user's last words: worth remembering?
        for ours in THEMES:
            self.register_theme(ours)
        self.theme = theme if theme in self.available_themes else DEFAULT

    @property
    def session(self) -> ChatSession:
        """The talk; opened when it is first asked for."""
        if callable(self._session):
            self._session = self._session()
            self._adopt(self._session)
        return self._session

    def _adopt(self, session: ChatSession) -> None:
        session.on_problem = self.disk_refused
        session.store.database.wait_at_most(BUSY_MS)

    @property
    def _opened(self) -> bool:
        return not callable(self._session)

    # -- layout --------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with Vertical(id="head"):
            yield Static("selm  ·  New conversation", id="top", markup=False)
            yield Static("", id="banner", markup=False)
        yield Transcript()
        with Vertical(id="bottom"):
            yield Prompt()
            yield StatusLine()
            yield Hints()

    @property
    def main(self) -> Screen[None]:
        """The screen with the conversation, whatever lies over it."""
        return self.screen_stack[0]

    @property
    def prompt(self) -> Prompt:
        return self.main.query_one(Prompt)

    @property
    def transcript(self) -> Transcript:
        return self.main.query_one(Transcript)

    @property
    def status_line(self) -> StatusLine:
        return self.main.query_one(StatusLine)

    async def on_ready(self) -> None:
        """The first frame is on the screen: now the disk, then the model."""
        self._hear_signals()
        self.theme_changed_signal.subscribe(self, lambda theme: self._keep_theme(theme.name))
        self.prompt.enter_sends = self.session.enter_sends
        wrong = self.session.problems()
        if self.session.store.problem is not None:
            self.disk_refused(self.session.store.problem, *wrong)
        elif wrong:
            self.banner("\n".join(wrong))
        self.load_model(self._wanted_model)
        await self.refresh_conversation()

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        tiny = width < SMALLEST[0] or height < SMALLEST[1]
        self.main.set_class(tiny, "tiny")
        self.main.set_class(not tiny and height < 14, "low")
        self.main.set_class(height >= 32, "tall")
        self.main.query(Prompt).set_class(height < 12, "small")
        if tiny and not self.main.query("#tiny"):
            words = f"Too small to chat.\nMake it {SMALLEST[0]}×{SMALLEST[1]} or more."
            self.main.mount(Static(words, id="tiny", markup=False))

    async def refresh_conversation(self, *, whole: bool = False) -> None:
        """Show the session's conversation as it is now."""
        await self.transcript.show(self.session, whole=whole)
        self.refresh_top()
        self.measure_context()
        self.show_hints()

    def refresh_top(self) -> None:
        conversation = self.session.conversation
        title = clean_line(conversation.title) if conversation else "New conversation"
        saved = "" if self.session.store.saving else "  ·  not saved"
        for top in self.main.query("#top").results(Static):
            top.update(f"selm  ·  {title}{saved}")

    def banner(self, text: str, *, error: bool = False) -> None:
        """A message that stays until Esc, or until the next one."""
        for banner in self.main.query("#banner").results(Static):  # none while closing
            banner.update(clean(text))
            banner.set_class(error, "error")
            banner.add_class("shown")
        self.show_hints()

    def tell(self, text: str, *, warning: bool = False) -> None:
        """A message that passes."""
        self.notify(clean(text), severity="warning" if warning else "information", markup=False)

    def disk_refused(self, problem: StoreError, *more: str) -> None:
        self.banner("\n".join(["From here on nothing is saved.", str(problem), *more]), error=True)
        self.refresh_top()

    # -- the boundary: what may go wrong in an action or a worker never ends the chat -----------

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Every key and every entry of the palette comes through here."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except EXPECTED as error:
            self.refused(error)
            if isinstance(error, NotFound):
                await self.refresh_conversation()
            return True

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Our workers are started with ``exit_on_error=False``: this is where their errors go."""
        if event.state is not WorkerState.ERROR or event.worker.exit_on_error:
            return
        error = event.worker.error
        if not isinstance(error, EXPECTED):
            raise error or RuntimeError("a worker failed")
        self.refused(error)

    def refused(self, error: BaseException, more: str = "") -> None:
        """Say it where the user looks now. What another window deleted leaves the page too."""
        words = f"{error}\n{more}".strip()
        if self.screen is self.main:
            self.banner(words, error=True)
        else:
            self.tell(words, warning=True)
        if isinstance(error, NotFound):
            self.session.reload()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self.show_hints()

    def on_descendant_blur(self, event: DescendantBlur) -> None:
        self.show_hints()

    def show_hints(self) -> None:
        """The keys that matter now."""
        focused = self.main.focused
        if not self.idle:
            hints = [("Esc", "stop"), ("PgUp", "read above"), ("F1", "help")]
        elif isinstance(focused, Turn):
            hints = self._turn_hints(focused)
        else:
            send, line = ("Enter", "Ctrl+J") if self.prompt.enter_sends else ("Ctrl+J", "Enter")
            hints = [(send, "send"), ("F1", "help"), ("F2", "chats")]
            if self.main.query("#banner.shown"):
                hints.insert(0, ("Esc", "puts the message away"))
            if self._opened and self.session.path:
                hints += [("↑", "turns"), ("Ctrl+N", "new")]
            hints += [("Ctrl+P", "actions"), (line, "new line"), ("F3", "model")]
            hints += [("F4", "settings"), ("Ctrl+Q", "quit")]
        with suppress(NoMatches):
            self.main.query_one(Hints).show(*hints)

    def _turn_hints(self, turn: Turn) -> list[tuple[str, str]]:
        hints = [("c", "copy"), ("r", "again"), ("Esc", "back")]
        if isinstance(turn, ReplyTurn):
            hints = [("+", "good"), ("-", "bad"), ("x", "correct"), *hints]
            if turn.sources:
                hints.insert(0, ("s", "sources"))
        else:
            hints = [("e", "edit"), *hints]
        if len(turn.versions) > 1:
            hints.insert(0, ("← →", "versions"))
        return [*hints, ("k", "copy code"), ("w", "to a file")]

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every action, for the palette."""
        for command in COMMANDS:
            if command.palette:
                title = f"{command.title}  ({command.shown})" if command.shown else command.title
                yield SystemCommand(title, command.help, self._runner(command.name))

    def _runner(self, name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await self.run_action(name)

        return run

    # -- the model -----------------------------------------------------------------------------

    def load_model(self, name_or_path: str | None, context: int | None = None) -> None:
        """Open a model beside the one in use, and use it once it is open."""
        self._load += 1
        self._model_settled.clear()
        self._load_model(self._load, name_or_path, context)

    @work(group="model", exit_on_error=False)
    async def _load_model(self, load: int, name_or_path: str | None, context: int | None) -> None:
        self.set_status(state="loading", model=Path(name_or_path or "").stem)
        try:
            model = await in_thread(self.session.open_model, name_or_path, context)
        except Exception as error:  # whatever a backend or its library raises: the chat stays
            if load == self._load:
                before = self.session.model
                kept = f"\nStill using {before.name}." if before else ""
                self.banner(f"{error}{kept}", error=True)
        else:
            if load == self._load and self._reply is not None:
                self._reply.cancel()
                await self._idle.wait()
            if load != self._load:  # another one was chosen meanwhile
                model.assistant.close()
                return
            chosen = self.session.model is not None or name_or_path is not None
            self.session.use_model(model)
            if chosen:
                self._remember(model.spec)
            for problem in [*model.problems, self.session.experts.missing()]:
                if problem:
                    self.banner(problem, error=True)
            self._hash_model()
        finally:
            if load == self._load:
                self._settle_model()
        self.measure_context()

    def _settle_model(self) -> None:
        current = self.session.model
        self.set_status(
            state="ready" if current else "none",
            model=current.name if current else "",
            context=current.context if current else None,
            **NO_FIGURES,
        )
        self._model_settled.set()

    def _remember(self, spec: str) -> None:
        try:
            self.session.preferences.change(model=spec)
        except SelmError as error:
            self.tell(str(error), warning=True)

    @work(group="hash", exit_on_error=False)
    async def _hash_model(self) -> None:
        with suppress(SelmError):
            await in_thread(self.session.hash_model)

    def set_status(self, **values: object) -> None:
        for line in self.main.query(StatusLine):  # none while closing
            for name, value in values.items():
                setattr(line.status, name, value)
            line.redraw()

    @work(group="measure", exclusive=True, exit_on_error=False)
    async def measure_context(self) -> None:
        """How much of the context the branch on show takes."""
        if self.session.model is None or not self.idle:
            return
        used = 0
        if self.session.path:
            with suppress(SelmError, ValueError):
                used = (await in_thread(self.session.plan, list(self.session.path))).tokens
        self.set_status(used=used)

    # -- asking and replying -------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """No question is on its way and no reply is being made."""
        return self._idle.is_set()

    def on_example_chosen(self, event: Example.Chosen) -> None:
        if self.idle:
            self.prompt.focus()
            self.ask(event.text)

    @work(group="ask", exit_on_error=False)
    async def ask(self, text: str) -> None:
        """A question from the prompt to its reply. Until it is stored, it goes back if stopped."""
        if not self.idle:
            return
        self._begin()
        question: Message | None = None
        try:
            decision = await self._planned(text)
            if decision is not None:
                plan, drop = decision
                question = self.session.ask(text)
                self.proposed = self.session.memory.proposals(text)
                await self._reply_to(question, plan, drop)
        except EXPECTED as error:
            kept = question is not None and not isinstance(error, NotFound)
            self.refused(error, "Your question is kept: r on it tries again." if kept else "")
        finally:
            if question is None:
                self._give_back(text)
            await self._end()

    @work(group="ask", exit_on_error=False)
    async def ask_again(self, question: Message) -> None:
        """A reply to a question that is stored already: after an edit, or for another version."""
        if not self.idle:
            return
        self._begin()
        try:
            await self.transcript.show(self.session)
            if await self._model_is_ready():
                decision = await self._resolve(None)
                if decision is not None:
                    await self._reply_to(question, *decision)
        except EXPECTED as error:
            self.refused(error)
        finally:
            await self._end()

    def _begin(self) -> None:
        self._asking = get_current_worker()
        self.session.memory.stopped = threading.Event()
        self._idle.clear()
        self.main.query("#banner").remove_class("shown")
        self.show_hints()

    async def _end(self) -> None:
        self._asking = None
        self._idle.set()
        if not self._quitting and self.is_running:
            self.set_status(state="ready" if self.session.model else "none")
            await self.refresh_conversation()
            self.show_proposal()

    def show_proposal(self) -> None:
        """Offer to remember what the user said; Ctrl+R keeps it, Esc or the next question not."""
        if self.proposed and not self.main.query("#banner.shown"):
            words = clean_line(self.proposed[0].text)
            self.banner(f"Remember “{words}”?  Ctrl+R keeps it.")

    def _give_back(self, text: str) -> None:
        if self._quitting:  # there is no prompt any more; it is the question of the next visit
            with suppress(*EXPECTED):
                self.session.ask(text)
        elif self.is_running and not self.prompt.text:
            self.prompt.load_text(text)
            self.prompt.move_cursor(self.prompt.document.end)

    async def _model_is_ready(self) -> bool:
        if self.session.model is None:
            await self._model_settled.wait()
        return self.session.model is not None

    async def _planned(self, text: str) -> Decision | None:
        """What to send for a new question; None where it goes back to the prompt."""
        if self.session.model is None:
            question, waiting = UserTurn(None, text), ReplyTurn(None)
            waiting.waiting = "Waiting for the model…"
            await self.transcript.add(question)
            await self.transcript.add(waiting)
            try:
                ready = await self._model_is_ready()
            finally:
                await question.remove()
                await waiting.remove()
            if not ready:
                return None
        return await self._resolve(text)

    async def _resolve(self, text: str | None) -> Decision | None:
        """Plan what to send after the branch on show; ask the user where it does not fit.

        ``text`` is the new question, None where the branch ends with it. The second value is how
        many of the oldest turns the user lets go.
        """
        from selm_edge.chat.screens.overflow import OverflowScreen

        while True:
            plan = await self._plan(text)
            overflow, model = plan.overflow, self.session.model
            if overflow is None or model is None:
                return plan, 0
            screen = OverflowScreen(overflow, model.trained_context, new=text is not None)
            try:
                choice = await self.push_screen_wait(screen)
            except asyncio.CancelledError:  # the question was stopped
                if self.is_running and self.screen is screen:
                    self.pop_screen()
                raise
            if choice == "drop":
                return plan, overflow.drop or 0
            if choice == "new":
                self.session.new()
                await self.transcript.show(self.session)
            elif isinstance(choice, int):
                self.load_model(model.spec, choice)
                await self._model_settled.wait()
            else:
                return None

    async def _plan(self, text: str | None = None) -> Plan:
        """Plan with the model in use; once more where it was changed while that went on."""
        while True:
            model = self.session.model
            if text is not None and self.session.memory.names_files(text):
                self.set_status(state="reading")
            try:
                plan = await in_thread(self.session.plan, list(self.session.path), text)
            except Exception:
                if model is self.session.model:
                    raise
                continue  # it was closed in the middle
            if self.session.made(plan):
                return plan

    async def _reply_to(self, question: Message, plan: Plan, drop: int = 0) -> None:
        """Stream the reply to a stored question and keep what there is when it ends.

        drop: the oldest turns that the user lets go, from this question on.
        """
        if drop:
            self.session.leave_out(question, drop)
            plan = await self._plan()
        for notice in plan.notices:
            self.banner(notice.message)
        await self.transcript.show(self.session)
        turn = ReplyTurn(None)
        await self.transcript.add(turn)
        self.transcript.anchor()
        self.refresh_top()
        self._thread_done.clear()
        while not self.session.made(plan):  # another model was opened since
            decision = await self._resolve(None)
            if decision is None:
                raise SelmError("nothing was sent")
            plan, drop = decision
            if drop:
                self.session.leave_out(question, drop)
                plan = await self._plan()
        reply = self._reply = self._begin_reply(plan)
        self._question = question
        self.set_status(state="replying", used=plan.tokens, **NO_FIGURES)
        by_expert = self.session.colours and bool(self.session.experts.names)
        ticking = self.set_interval(0.25, self._tick)
        failure: Exception | None = None
        try:
            async for piece in pieces_from_thread(reply, self._thread_done):
                await turn.write(piece, self.session.experts.so_far(reply) if by_expert else None)
        except Exception as error:  # the engine's: the text so far is kept whatever it was
            failure = error
        finally:
            ticking.stop()
        self._tick()
        if failure is not None:
            self.banner(f"The reply broke off: {failure}", error=True)
        if failure is not None and not reply.text:
            self._reply = None
            await turn.remove()
            return
        try:
            message = await self._keep(question, reply)
        except EXPECTED:
            self._reply = None
            raise
        self._reply = None  # not where the window is closing: `shut_down` looks after it
        self.transcript.adopt(message)
        versions = self.session.versions.get(message.id, [])
        turn.sources = self.session.memory.sources_line(message)
        await turn.finish(message, versions, self.session.coloured(message))

    def _begin_reply(self, plan: Plan) -> Reply:
        try:
            return self.session.reply(plan)
        except Exception as error:  # whatever the engine says to these settings
            raise SelmError(f"the reply could not begin: {error}") from error

    async def _keep(self, question: Message, reply: Reply) -> Message:
        """Store a reply."""
        return await self.patiently(lambda: self.session.keep(question, reply))

    async def patiently(self, write: Callable[[], T]) -> T:
        """Store what was made: it waits for another program's lock, and is never lost."""
        for _ in range(BUSY_TRIES):
            try:
                return write()
            except StoreError as error:
                busy = error
                if error.cause != "busy":
                    raise
            await asyncio.sleep(0.2)
        self.session.stop_saving(busy)
        return write()

    def _tick(self) -> None:
        reply = self._reply
        if reply is not None:
            stats, model = reply.stats, self.session.model
            self.set_status(
                speed=stats.tokens_per_second or None,
                used=reply.plan.tokens + stats.tokens,
                experts=stats.experts,
                drafts=stats.accepted / stats.drafted if stats.drafted else None,
                mean_layers=stats.mean_layers,
                layers=model.assistant.model.layers if model else None,
            )

    def stop_reply(self) -> bool:
        """Stop the reply, or the question on its way to one; False where there is neither."""
        if self._reply is not None:
            self._reply.cancel()
        elif self._asking is not None:
            self.session.memory.stopped.set()  # a file that is being read
            self._asking.cancel()  # what was not sent goes back to the prompt
        return not self.idle

    async def finish_reply(self) -> None:
        """Stop what is on its way and wait until its text is kept."""
        if self.stop_reply():
            await self._idle.wait()

    # -- leaving -------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        """The terminal's window is closed, or the system ends: leave as by Ctrl+Q."""
        if os.name != "posix" or threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(name, self._signalled, name)

    def _signalled(self, name: int) -> None:
        if name == signal.SIGHUP:
            _let_go_of_the_terminal()
        if self._leaving is None:
            self._leaving = asyncio.create_task(self.action_quit())

    async def action_quit(self) -> None:
        self._quitting = True
        await self.finish_reply()
        self.exit()

    def shut_down(self) -> None:
        """After the app has ended, in whatever way: the compute stops, the partial text is kept."""
        if not self._opened:
            return
        reply = self._reply
        if reply is not None:
            reply.cancel()
            self._thread_done.wait(10)
            if reply.text and self._question is not None:
                with suppress(SelmError):
                    self.session.keep(self._question, reply)
        self.session.close()

    def _keep_theme(self, name: str) -> None:
        if name != (self.session.preferences.config.theme or DEFAULT):
            try:
                self.session.preferences.change(theme=name)
            except SelmError as error:
                self.tell(str(error), warning=True)

    def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        self.copy_to_clipboard(event.href)
        self.tell(f"Copied the link: {event.href}")


def _let_go_of_the_terminal() -> None:
    """Nobody reads any more, and a write that fails would keep the window from closing."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        with suppress(OSError):
            os.dup2(nowhere, stream)
    os.close(nowhere)
