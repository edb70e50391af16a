"""What to do when the conversation no longer fits: nothing is left out unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from selm_edge.chat.overflow import larger_context
from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.chat.text import amount, overflow_words

if TYPE_CHECKING:
    from selm_edge.assistant import Overflow

Choice = str | int
"""``"drop"``, ``"new"``, or the size of a larger context."""


class OverflowScreen(Dialog[Choice]):
    """Asks; None goes back to the question."""

    def __init__(self, overflow: Overflow, trained_context: int | None, *, new: bool) -> None:
        super().__init__()
        self._overflow = overflow
        self._larger = larger_context(overflow, trained_context)
        self._new = new and overflow.drop is not None

    def compose(self) -> ComposeResult:
        drop = self._overflow.drop
        with Box("This no longer fits", "Enter chooses · Esc goes back"):
            yield Static(overflow_words(self._overflow), classes="note", markup=False)
            options = []
            if drop is not None:
                words = f"Leave out the oldest {amount(drop, 'turn')} (they stay here, marked)"
                options.append(Option(words, id="drop"))
            if self._new:
                options.append(Option("Ask it in a new conversation", id="new"))
            if self._larger is not None:
                words = f"Open the model with room for {self._larger:,} tokens"
                options.append(Option(words, id="larger"))
            options.append(Option("Go back and shorten it", id="back"))
            yield OptionList(*options)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        choice = event.option.id
        self.dismiss(self._larger if choice == "larger" else None if choice == "back" else choice)
