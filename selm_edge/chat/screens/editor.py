"""A text to change: a question, or a reply as it should have been."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static, TextArea

from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.clean import clean


class EditorScreen(Dialog[str]):
    """Gives the changed text, or None."""

    # No priority: it would overtake letters that are still on their way to the box.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+s,f10", "save", "Keep", show=False)]

    def __init__(self, title: str, text: str, note: str) -> None:
        super().__init__()
        self._title, self._text, self._note = title, text, note

    def compose(self) -> ComposeResult:
        with Box(self._title, "Ctrl+S keeps it · Esc goes back", classes="large"):
            yield Static(self._note, classes="note", markup=False)
            yield TextArea(clean(self._text), soft_wrap=True, highlight_cursor_line=False)

    def on_mount(self) -> None:
        area = self.query_one(TextArea)
        area.move_cursor(area.document.end)

    def action_save(self) -> None:
        self.dismiss(self.query_one(TextArea).text)
