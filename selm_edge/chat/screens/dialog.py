"""The frame that the small screens share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A box over the conversation. Esc closes it with None."""

    CSS_PATH = Path(__file__).with_name("dialog.tcss")
    AUTO_FOCUS = "*"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Back", show=False)]

    def action_cancel(self) -> None:
        self.dismiss(None)


class Box(VerticalScroll, can_focus=False):
    """The frame: its title above, its keys below."""

    def __init__(self, title: str, keys: str, *, classes: str = "") -> None:
        super().__init__(classes=f"dialog {classes}")
        self.border_title = title
        self.border_subtitle = keys
