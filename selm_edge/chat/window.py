"""The window: its parts, the model that opens behind it, and how it is left.

`selm_edge.chat.asking` adds a question on its way to a reply, `selm_edge.chat.tui` what the user
can do besides asking.

The first frame needs no model and no Markdown: the model opens in a thread, the other screens and
the Markdown widget are imported when they are first shown.
"""

from __future__ import annotations

import asyncio
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
from selm_edge.chat.hints import REPLYING, hints
from selm_edge.chat.leaving import hear_signals
from selm_edge.chat.themes import DEFAULT, THEMES
from selm_edge.chat.threads import in_thread
from selm_edge.chat.widgets.prompt import Prompt
from selm_edge.chat.widgets.status import NO_FIGURES, Hints, StatusLine
from selm_edge.chat.widgets.transcript import Transcript
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

    from selm_edge.assistant import Reply
    from selm_edge.chat.session import ChatSession
    from selm_edge.memory.proposals import Proposal
    from selm_edge.store.conversations import Message

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
        hear_signals(self._leave)
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
        if self.idle:
            found = hints(
                self.main.focused,
                self.session if self._opened else None,
                enter_sends=self.prompt.enter_sends,
                message=bool(self.main.query("#banner.shown")),
            )
        else:
            found = REPLYING
        with suppress(NoMatches):
            self.main.query_one(Hints).show(*found)

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

    # -- a question or a reply on its way ------------------------------------------------------

    @property
    def idle(self) -> bool:
        """No question is on its way and no reply is being made."""
        return self._idle.is_set()

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

    async def _model_is_ready(self) -> bool:
        if self.session.model is None:
            await self._model_settled.wait()
        return self.session.model is not None

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

    def _leave(self) -> None:
        """As by Ctrl+Q, once."""
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
