"""The keys that matter now, for the last line of the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selm_edge.chat.widgets.question import KEYS, QuietQuestion
from selm_edge.chat.widgets.turns import ReplyTurn, Turn

if TYPE_CHECKING:
    from textual.widget import Widget

    from selm_edge.chat.session import ChatSession

Hint = tuple[str, str]
"""A key and its word."""

REPLYING: list[Hint] = [("Esc", "stop"), ("PgUp", "read above"), ("F1", "help")]


def hints(
    focused: Widget | None, session: ChatSession | None, *, enter_sends: bool, message: bool
) -> list[Hint]:
    """The most important first. ``session`` once it is open; ``message`` while one is shown."""
    if isinstance(focused, QuietQuestion):
        return [*KEYS, ("↓", "back")]
    if isinstance(focused, Turn):
        return _of_turn(focused, session)
    send, line = ("Enter", "Ctrl+J") if enter_sends else ("Ctrl+J", "Enter")
    found = [(send, "send"), ("F1", "help"), ("F2", "chats")]
    if message:
        found.insert(0, ("Esc", "puts the message away"))
    if session is not None and session.path:
        found += [("↑", "turns"), ("Ctrl+N", "new")]
    found += [("Ctrl+P", "actions"), (line, "new line"), ("F3", "model")]
    return [*found, ("F4", "settings"), ("Ctrl+Q", "quit")]


def _of_turn(turn: Turn, session: ChatSession | None) -> list[Hint]:
    found = [("c", "copy"), ("r", "again"), ("Esc", "back")]
    if isinstance(turn, ReplyTurn):
        if session is not None and session.adapters.used:
            found.insert(0, ("a", "compare"))
        found = [("+", "good"), ("-", "bad"), ("x", "correct"), *found]
        if turn.sources:
            found.insert(0, ("s", "sources"))
    else:
        found = [("e", "edit"), *found]
    if len(turn.versions) > 1:
        found.insert(0, ("← →", "versions"))
    return [*found, ("k", "copy code"), ("w", "to a file")]
