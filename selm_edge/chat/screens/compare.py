"""Two replies beside each other, one of which is taken. Which is which is not said."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.events import Resize
from textual.widgets import Static

from selm_edge.chat.screens.dialog import Dialog
from selm_edge.chat.widgets.turns import markdown
from selm_edge.clean import clean, clean_line

if TYPE_CHECKING:
    from textual.widgets import Markdown
    from textual.widgets.markdown import MarkdownStream

BESIDE = 100
"""Columns from which two replies stand beside each other; below, one above the other."""


class Candidate(VerticalScroll):
    """One of the replies. Its focus is what Enter takes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "screen.select(0)", show=False),
        Binding("right", "screen.select(1)", show=False),
        Binding("enter", "screen.take", show=False),
    ]

    def __init__(self, number: int) -> None:
        super().__init__(classes="candidate")
        self.number = number
        self.border_title = str(number + 1)
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        yield Static("…", classes="waiting", markup=False)

    async def write(self, piece: str) -> None:
        from textual.widgets import Markdown

        if self._stream is None:
            self._stream = Markdown.get_stream(await self._body())
        await self._stream.write(piece)
        if not self.has_focus:  # who has selected it reads elsewhere in it
            self.scroll_end(animate=False)

    async def finish(self, text: str) -> None:
        """It is whole: laid out once more from its whole text, read from its beginning."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        await (await self._body()).update(clean(text))
        self.scroll_home(animate=False)

    async def _body(self) -> Markdown:
        """Where the text stands, in place of the dots that waited for it."""
        await self.query(".waiting").remove()
        for body in self.query("Markdown").results():
            return cast("Markdown", body)
        made = markdown("")
        await self.mount(made)
        return made


class CompareScreen(Dialog[int]):
    """Gives the number of the reply that was taken, 0 or 1; None where neither was."""

    AUTO_FOCUS = ""  # neither is suggested
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "take(0)", show=False),
        Binding("2", "take(1)", show=False),
        Binding("left", "select(0)", show=False),
        Binding("right", "select(1)", show=False),
        Binding("0,n", "cancel", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question
        self._asked = False
        self._sides = (Candidate(0), Candidate(1))

    def compose(self) -> ComposeResult:
        with Container(classes="dialog compare") as box:
            box.border_title, box.border_subtitle = "Which reply is better?", "Esc stops"
            yield Static(clean_line(self._question), classes="note", markup=False)
            with Container(classes="sides"):
                yield from self._sides

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.width < BESIDE, "stacked")

    async def write(self, number: int, piece: str) -> None:
        """A piece of the reply that is being made."""
        await self._sides[number].write(piece)

    async def finish(self, number: int, text: str) -> None:
        await self._sides[number].finish(text)

    def ask(self, *, same: bool) -> None:
        """Both are there: one may be taken now."""
        self._asked = not same
        words = "1 or 2 takes one · ← → selects, ↑ ↓ reads, Enter takes · Esc neither"
        for box in self.query(".compare"):
            box.border_subtitle = "They are the same, word for word · Esc closes" if same else words

    def action_select(self, number: int) -> None:
        self._sides[number].focus()

    def action_take(self, number: int | None = None) -> None:
        if number is None:
            number = next((side.number for side in self._sides if side.has_focus), None)
        if self._asked and number is not None:
            self.dismiss(number)
