"""The scrolling column of turns."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message as Event
from textual.widget import Widget
from textual.widgets import Static

from selm_edge.chat.text import EXAMPLES
from selm_edge.chat.widgets.turns import ContextDivider, Earlier, ReplyTurn, Turn, UserTurn

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession
    from selm_edge.feedback.log import Kind
    from selm_edge.store.conversations import Message

PAGE = 40
"""Turns laid out at once; older ones wait for the reader to ask."""


class Example(Static, can_focus=True):
    """A question to begin with."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", show=False),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]

    class Chosen(Event):
        def __init__(self, text: str) -> None:
            self.text = text
            super().__init__()

    def __init__(self, text: str) -> None:
        super().__init__(f"›  {text}", markup=False, classes="example")
        self.text = text

    def action_choose(self) -> None:
        self.post_message(self.Chosen(self.text))

    def on_click(self) -> None:
        self.action_choose()


class EmptyPage(Vertical):
    """What a new conversation shows: what this is, and ways to begin."""

    WORDS = (
        "[b $primary]Hello.[/]\n\n"
        "Everything you write stays on this device.\n"
        "Ask something below, or begin with one of these:"
    )

    def __init__(self) -> None:
        super().__init__(id="empty")

    def compose(self) -> ComposeResult:
        yield Static(self.WORDS, id="empty-words")
        for text in EXAMPLES:
            yield Example(text)


class Transcript(VerticalScroll, can_focus=False):
    """Shows the branch of a session. It follows what is written while the reader is at the end."""

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._shown: list[Key] = [("empty", 0)]
        self._first: int | None = None  # the oldest turn that is laid out
        self._laying_out = asyncio.Lock()

    def compose(self) -> ComposeResult:
        yield EmptyPage()  # part of the first frame: mounting it later costs another pass

    def on_mount(self) -> None:
        self.anchor()

    def on_resize(self) -> None:
        # Moved by the anchor while it is laid out anew, the bar would stay drawn as it was.
        self.call_after_refresh(self.vertical_scrollbar.refresh)

    @property
    def turns(self) -> list[Turn]:
        return list(self.query(Turn))

    async def show(self, session: ChatSession, *, whole: bool = False) -> None:
        """Bring the column to the branch on show; what stays is not laid out again."""
        async with self._laying_out:  # a reply that ends and what ended it both ask for this
            await self._show(session, whole)

    async def _show(self, session: ChatSession, whole: bool) -> None:
        path = session.path
        hidden = 0 if whole else self._hidden(path)
        self._first = path[hidden].id if path else None
        cut = _first_sent(session)
        wanted: list[Key] = [("earlier", hidden)] if hidden else []
        for message in path[hidden:]:
            if message.id == cut:
                wanted.append(("cut", cut))
            wanted.append(("turn", message.id))
        wanted = wanted or [("empty", 0)]
        same = 0
        while same < min(len(wanted), len(self._shown)) and wanted[same] == self._shown[same]:
            same += 1
        messages = {message.id: message for message in path}
        with self.app.batch_update():
            for child in list(self.children)[same:]:
                await child.remove()
            for child in self.children:
                if isinstance(child, Turn) and child.message_id in messages:
                    message = messages[child.message_id]
                    child.show(message, *_around(session, message))
            if wanted[same:]:
                await self.mount_all(_widget(session, key, messages) for key in wanted[same:])
        self._shown = wanted

    def _hidden(self, path: Sequence[Message]) -> int:
        ids = [message.id for message in path]
        if self._first in ids:
            return ids.index(self._first)
        return 0 if len(path) <= PAGE + PAGE // 2 else len(path) - PAGE

    async def add(self, turn: Turn) -> None:
        """Mount a turn that is being made; it becomes one of the others once it has its message."""
        for page in self.query(EmptyPage):
            await page.remove()
            self._shown = []
        await self.mount(turn)

    async def colour(self, session: ChatSession) -> None:
        """Show replies by who spoke them, or as Markdown, as the session now wants it."""
        async with self._laying_out:
            for turn in self.query(ReplyTurn):
                if turn.message is not None:
                    await turn.colour(session.coloured(turn.message))

    def adopt(self, message: Message) -> None:
        """The last turn mounted by `add` is this message now."""
        self._shown.append(("turn", message.id))
        if self._first is None:
            self._first = message.id


Key = tuple[str, int]


def _widget(session: ChatSession, key: Key, messages: Mapping[int, Message]) -> Widget:
    kind, number = key
    if kind == "turn":
        return turn_for(session, messages[number])
    if kind == "cut":
        return ContextDivider()
    return Earlier(number) if kind == "earlier" else EmptyPage()


def turn_for(session: ChatSession, message: Message) -> Turn:
    versions, marks, sources = _around(session, message)
    turn: Turn
    if message.role == "user":
        turn = UserTurn(message, message.text, versions)
    else:
        turn = ReplyTurn(message, versions, session.coloured(message))
    turn.marks, turn.sources = marks, sources
    return turn


def _around(session: ChatSession, message: Message) -> tuple[list[int], set[Kind], str]:
    versions = session.versions.get(message.id, [])
    return versions, set(session.marks.get(message.id, ())), session.memory.sources_line(message)


def _first_sent(session: ChatSession) -> int | None:
    """The turn above which the divider stands."""
    sent = session.sent(session.path)
    return sent[0].id if sent and len(sent) < len(session.path) else None
