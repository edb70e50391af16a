"""One line that asks about an earlier reply. It takes no keys before it is selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from selm_edge.clean import clean_line

if TYPE_CHECKING:
    from selm_edge.feedback.unrated import Turn

_HEAD = "Was this right?  "
KEYS = [("+", "yes"), ("-", "no"), ("x", "what it should have been"), ("Esc", "not now")]


class QuietQuestion(Static, can_focus=True):
    """``Was this right?  Where does Nils live? → In Oslo.   ↑ answers · Esc not now``"""

    DEFAULT_CSS = """
    QuietQuestion {
        width: 100%; max-width: 104; height: 1; margin: 0 1; padding: 0 2; color: $text-muted;
        &:focus { height: auto; max-height: 7; background: $accent 12%; color: $text; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,g", "app.answer_question('up')", show=False),
        Binding("minus,b", "app.answer_question('down')", show=False),
        Binding("x", "app.correct_question", show=False),
        Binding("escape", "app.decline_question", show=False),
        Binding("up", "app.select_turn(-1)", show=False),
        Binding("down", "app.select_turn(1)", show=False),
        Binding("enter", "app.focus_prompt", show=False),
    ]

    def __init__(self, turn: Turn) -> None:
        super().__init__(id="question")
        self.turn = turn

    def on_mount(self) -> None:
        self.redraw()

    def on_resize(self) -> None:
        self.redraw()

    def watch_has_focus(self, value: bool) -> None:
        super().watch_has_focus(value)
        self.redraw()

    def redraw(self) -> None:
        width = self.size.width or 76
        self.update(self.whole(width) if self.has_focus else self.line(width))

    def line(self, width: int) -> Content:
        """Both texts are cut to what there is room for: the reply to three fifths at the most where
        the question needs the rest."""
        keys = "   ↑ answers · Esc not now" if width >= 96 else "  ↑ · Esc not now"
        room = width - len(_HEAD) - len(keys) - 3
        question, reply = clean_line(self.turn.question), clean_line(self.turn.reply)
        question = _cut(question, max(8, room - min(len(reply), room * 3 // 5)))
        reply = _cut(reply, max(8, room - len(question)))
        said = Content.assemble((question, "$foreground 65%"), " → ", (reply, "$foreground"))
        return Content.assemble((_HEAD, "$text-accent"), said, (keys, "$foreground 65%"))

    def whole(self, width: int) -> Content:
        """As much as fits into the lines that it then has."""
        question = _cut(clean_line(self.turn.question), 2 * width - len(_HEAD) - 8)
        reply = _cut(clean_line(self.turn.reply), 4 * width)
        return Content.assemble(
            (_HEAD, "$text-accent"), (question, "$foreground 65%"), "\n", (reply, "$foreground")
        )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
