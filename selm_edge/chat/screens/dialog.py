"""The frame that the small screens share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.worker import Worker, WorkerState

from selm_edge.clean import clean
from selm_edge.errors import SelmError

T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A box over the conversation. Esc closes it with None."""

    CSS_PATH = Path(__file__).with_name("dialog.tcss")
    AUTO_FOCUS = "*"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Back", show=False)]

    def action_cancel(self) -> None:
        self.dismiss(None)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An error in a worker of this screen, where it was started with ``exit_on_error=False``:
        what may be expected is said, the rest is a fault."""
        if event.state is WorkerState.ERROR and not event.worker.exit_on_error:
            error = event.worker.error
            if not isinstance(error, SelmError | ValueError | OSError):
                raise error or RuntimeError("a worker failed")
            self.notify(clean(str(error)), severity="warning", markup=False)


class Box(VerticalScroll, can_focus=False):
    """The frame: its title above, its keys below."""

    def __init__(self, title: str, keys: str, *, classes: str = "") -> None:
        super().__init__(classes=f"dialog {classes}")
        self.border_title = title
        self.border_subtitle = keys
