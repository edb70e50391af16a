"""Short questions: a line of text, and whether to delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.chat.text import amount
from selm_edge.clean import clean_line

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession


class TextScreen(Dialog[str]):
    """Asks for one line; None where the user goes back."""

    def __init__(self, title: str, value: str = "", note: str = "") -> None:
        super().__init__()
        self._title, self._value, self._note = title, value, note

    def compose(self) -> ComposeResult:
        with Box(self._title, "Enter keeps it · Esc goes back"):
            if self._note:
                yield Static(self._note, classes="note", markup=False)
            yield Input(clean_line(self._value), select_on_focus=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class DeleteScreen(Dialog[bool]):
    """Asks before deleting: False deletes the feedback too, True keeps it, None goes back."""

    def __init__(self, session: ChatSession, conversation: int) -> None:
        super().__init__()
        self._conversation = session.store.conversations.get(conversation)
        self._feedback = session.store.feedback.count(conversation)

    def compose(self) -> ComposeResult:
        turns = amount(self._conversation.turns, "turn")
        with Box("Delete this conversation?", "Enter chooses · Esc goes back"):
            yield Static(
                f"{clean_line(self._conversation.title)}\n"
                f"{turns} in all versions. This cannot be undone.",
                classes="note",
                markup=False,
            )
            options = [Option("Keep it", id="back")]
            if self._feedback:
                rows = amount(self._feedback, "piece")
                options.append(Option("Delete it and the feedback given in it", id="all"))
                options.append(Option(f"Delete it, keep {rows} of feedback", id="keep"))
            else:
                options.append(Option("Delete it", id="all"))
            yield OptionList(*options)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss({"back": None, "all": False, "keep": True}[event.option.id or "back"])
