"""The turns of a conversation as they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from selm_edge.chat.commands import COMMANDS
from selm_edge.chat.text import MARKS, figures
from selm_edge.clean import clean

if TYPE_CHECKING:
    from textual.widgets import Markdown
    from textual.widgets.markdown import MarkdownStream

    from selm_edge.chat.experts import Spoken
    from selm_edge.chat.widgets.spoken import SpokenText
    from selm_edge.feedback.log import Kind
    from selm_edge.store.conversations import Message

_TURN_KEYS = [
    Binding(command.keys, f"app.{command.name}", command.title, show=False)
    for command in COMMANDS
    if command.where == "turn"
]


class Turn(Widget, can_focus=True):
    """One turn. ``message`` is None while it is being made."""

    DEFAULT_CSS = """
    Turn {
        width: 100%; max-width: 104; height: auto; margin: 0 1 1 1; padding: 0 1;
        border-left: blank;
        & .meta { height: auto; color: $text-disabled; }
        &:focus { border-left: outer $accent; background: $accent 5%; }
        &:focus .meta { color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *_TURN_KEYS,
        Binding("up", "app.select_turn(-1)", show=False),
        Binding("down", "app.select_turn(1)", show=False),
        Binding("enter", "app.focus_prompt", show=False),
    ]

    def __init__(self, message: Message | None, versions: list[int] | None = None) -> None:
        super().__init__()
        self.message = message
        self.versions = versions or []
        self.marks: set[Kind] = set()
        self.sources = ""
        """What of memory a reply was given, in a line."""

    @property
    def message_id(self) -> int | None:
        return self.message.id if self.message else None

    def meta(self) -> Content:
        """The quiet line below the text."""
        raise NotImplementedError

    def version(self) -> str:
        """``‹ 2/3 ›`` where there are versions."""
        if self.message is None or len(self.versions) < 2:
            return ""
        return f"‹ {self.versions.index(self.message.id) + 1}/{len(self.versions)} ›"

    def show(self, message: Message, versions: list[int], marks: set[Kind], sources: str) -> None:
        """Bring it up to date where only what surrounds the text has changed."""
        before = (self.message, self.versions, self.marks, self.sources)
        if before != (message, versions, marks, sources):
            self.message, self.versions, self.marks = message, versions, set(marks)
            self.sources = sources
            self.refresh_meta()

    def refresh_meta(self) -> None:
        content = self.meta()
        for line in self.query(".meta").results(Static):  # none before it is composed
            line.update(content)
            line.set_class(not content.plain, "none")


class UserTurn(Turn):
    """A question."""

    DEFAULT_CSS = """
    UserTurn {
        background: $surface; border-left: outer $primary 60%;
        &:focus { border-left: outer $accent; background: $accent 12%; }
        & .question { height: auto; }
        & .meta.none { display: none; }
    }
    """

    def __init__(
        self, message: Message | None, text: str, versions: list[int] | None = None
    ) -> None:
        super().__init__(message, versions)
        self.text = clean(text)

    def compose(self) -> ComposeResult:
        yield Static(self.text, markup=False, classes="question")
        content = self.meta()
        yield Static(content, classes="meta" if content.plain else "meta none")

    def meta(self) -> Content:
        return Content.styled(self.version(), "$foreground 65%")


class ReplyTurn(Turn):
    """A reply: Markdown, streamed while it is made, and a line of figures.

    Where ``spoken`` is given, plain text coloured by expert stands in place of the Markdown.
    """

    DEFAULT_CSS = """
    ReplyTurn {
        & .waiting { height: 1; color: $text-muted; }
        & Markdown { padding: 0; background: transparent; }
        & MarkdownH1, & MarkdownH2, & MarkdownH3 {
            content-align: left middle; margin: 0 0 1 0; border: none;
            text-style: bold; color: $primary; background: transparent;
        }
        & MarkdownH1 { text-style: bold underline; }
        & MarkdownFence { margin: 0 0 1 0; background: $panel; color: $foreground; }
        & MarkdownFence > Label { padding: 0 1; }
        & MarkdownBulletList, & MarkdownOrderedList, & MarkdownTable { margin: 0 0 1 0; }
        & MarkdownBlockQuote { margin: 0 0 1 0; background: transparent; }
    }
    """

    def __init__(
        self,
        message: Message | None,
        versions: list[int] | None = None,
        spoken: Spoken | None = None,
    ) -> None:
        super().__init__(message, versions)
        self.waiting = "Thinking…"
        self.spoken = spoken
        self._stream: MarkdownStream | None = None

    @property
    def text(self) -> str:
        return self.message.text if self.message else ""

    def compose(self) -> ComposeResult:
        if self.message is None:
            yield Static(self.waiting, classes="waiting", markup=False)
        elif self.spoken is not None:
            yield _spoken_text(self.spoken)
        else:
            yield markdown(clean(self.message.text) or "*(no words)*")
        yield Static(self.meta(), classes="meta")

    def meta(self) -> Content:
        if self.message is None:
            return Content("")
        parts: list[Any] = [figures(self.message)]
        marks = [words for kind, words in MARKS.items() if kind in self.marks]
        if version := self.version():
            parts.append(("   " + version, "$foreground 65%"))
        for mark in marks:
            parts.append(("   " + mark, "$text-accent"))
        if self.sources:
            parts.append((f"\nfrom memory: {self.sources}", "$foreground 65%"))
        return Content.assemble(*parts)

    async def write(self, piece: str, spoken: Spoken | None = None) -> None:
        """Append a piece of the reply; or show all of it by who spoke it, where that is given."""
        if spoken is not None:
            await self._show_spoken(spoken)
            return
        if self._stream is None:
            from textual.widgets import Markdown

            body = markdown("")
            await self._put(body)
            self._stream = Markdown.get_stream(body)
        await self._stream.write(piece)

    async def finish(
        self, message: Message, versions: list[int], spoken: Spoken | None = None
    ) -> None:
        """The reply is whole: lay it out once more from its whole text."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        self.message, self.versions, self.spoken = message, versions, spoken
        await self._lay_out(message.text)
        self.refresh_meta()

    async def colour(self, spoken: Spoken | None) -> None:
        """Show a whole reply by who spoke it, or as Markdown again."""
        if spoken != self.spoken:
            self.spoken = spoken
            await self._lay_out(clean(self.text))

    async def _lay_out(self, text: str) -> None:
        if self.spoken is not None:
            await self._show_spoken(self.spoken)
            return
        text = text or "*(no words)*"
        found = self.query("Markdown").results()
        if (body := cast("Markdown | None", next(found, None))) is not None:
            # Fences that were open while streaming are only right after a full parse.
            await body.update(text)
        else:
            await self._put(markdown(text))

    async def _show_spoken(self, spoken: Spoken) -> None:
        found = self.query("SpokenText").results()
        if (body := cast("SpokenText | None", next(found, None))) is not None:
            body.show(spoken)
        else:
            await self._put(_spoken_text(spoken))

    async def _put(self, body: Widget) -> None:
        """Show that, in place of what stood there."""
        await self.query(".waiting, Markdown, SpokenText").remove()
        await self.mount(body, before=0)


class ContextDivider(Static):
    """Marks where the model's memory of the conversation begins."""

    DEFAULT_CSS = """
    ContextDivider {
        width: 100%; max-width: 104; height: auto; margin: 0 1 1 1;
        color: $text-warning; text-align: center;
    }
    """

    def __init__(self) -> None:
        super().__init__("╌╌ turns above are no longer sent to the model ╌╌", markup=False)


class Earlier(Static, can_focus=True):
    """Stands for the turns of a long conversation that are not laid out yet."""

    DEFAULT_CSS = """
    Earlier {
        width: 100%; max-width: 104; height: auto; margin: 0 1 1 1;
        color: $text-muted; text-align: center;
        &:focus, &:hover { color: $text; background: $surface; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "app.show_earlier", show=False),
        Binding("up", "app.show_earlier", show=False),
        Binding("down", "app.select_turn(1)", show=False),
    ]

    def __init__(self, count: int) -> None:
        super().__init__(f"▲ {count} earlier turns · Enter shows them", markup=False)

    async def on_click(self) -> None:
        await self.run_action("app.show_earlier")


def _spoken_text(spoken: Spoken) -> SpokenText:
    from selm_edge.chat.widgets.spoken import SpokenText

    body = SpokenText()
    body.show(spoken)
    return body


def markdown(text: str) -> Markdown:
    # Imported with the first reply, not with the first frame. Links are shown, never opened.
    from textual.widgets import Markdown

    return Markdown(text or None, open_links=False)
