"""Where the user writes."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from selm_edge.clean import clean

_BURST_SECONDS = 0.004
"""Keys closer than this were not typed: they are a paste from a terminal that does not mark one."""


class Prompt(TextArea):
    """A text area that sends. Enter sends and Ctrl+J begins a line, or the other way round.

    A paste never sends, whatever it holds: neither a marked one (it comes as one event) nor one
    that arrives as a burst of keys.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("pageup", "app.scroll_transcript(-1)", show=False),
        Binding("pagedown", "app.scroll_transcript(1)", show=False),
        Binding("ctrl+home", "app.scroll_transcript(-1000)", show=False),
        Binding("ctrl+end", "app.scroll_transcript(1000)", show=False),
    ]
    _NEWLINES = frozenset({"ctrl+j", "shift+enter", "alt+enter"})

    class Sent(Message):
        """The user sends ``text``."""

        def __init__(self, text: str) -> None:
            self.text = text
            super().__init__()

    class LeftUpwards(Message):
        """Up was pressed on the first line: the user wants the turns above."""

    def __init__(self, *, enter_sends: bool = True) -> None:
        super().__init__(
            id="prompt", soft_wrap=True, highlight_cursor_line=False, placeholder="Write a message"
        )
        self.enter_sends = enter_sends
        self._last_key = 0.0

    async def _on_key(self, event: events.Key) -> None:
        burst = event.time - self._last_key < _BURST_SECONDS
        self._last_key = event.time
        sends = event.key == "enter" if self.enter_sends else event.key in self._NEWLINES
        if sends and not burst:
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Sent(self.text))
        elif event.key == "enter" or event.key in self._NEWLINES:
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.key == "up" and self.cursor_location[0] == 0 and not self.cursor_in_wrap():
            event.stop()
            event.prevent_default()
            self.post_message(self.LeftUpwards())

    def cursor_in_wrap(self) -> bool:
        """Whether the cursor is below the first row of a long first line."""
        return self.wrapped_document.location_to_offset(self.cursor_location).y > 0

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = clean(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        if text and not self.read_only:
            self.replace(text, *self.selection)
            self.move_cursor_relative()  # brings the end of the paste into view

    def take(self) -> str:
        """The text, and an empty prompt."""
        text = self.text
        self.clear()
        return text
