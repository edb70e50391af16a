"""Every action and its key."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from selm_edge.chat.commands import COMMANDS, Command, Where
from selm_edge.chat.screens.dialog import Box, Dialog

_GROUPS: tuple[tuple[Where, str], ...] = (
    ("prompt", "While you write"),
    ("anywhere", "Anywhere"),
    ("turn", "On a selected turn (↑ from the prompt)"),
)


class HelpScreen(Dialog[None]):
    """One page, made from the table of commands."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1,q,enter", "cancel", show=False),
        Binding("up", "page(-1)", show=False),
        Binding("down", "page(1)", show=False),
        Binding("pageup", "page(-10)", show=False),
        Binding("pagedown,space", "page(10)", show=False),
    ]

    def compose(self) -> ComposeResult:
        with Box("Help", "↑↓ scroll · Esc closes", classes="large"):
            for number, (where, title) in enumerate(_GROUPS):
                first = "" if number else "first"
                yield Static(title, classes=f"heading {first}", markup=False)
                for command in COMMANDS:
                    if command.where == where:
                        with Horizontal(classes="help-line"):
                            yield Static(command.shown, classes="key", markup=False)
                            yield Static(_words(command), classes="words")

    def action_page(self, lines: int) -> None:
        self.query_one(Box).scroll_relative(y=lines, animate=False)


def _words(command: Command) -> Content:
    slash = f"  /{command.slash} {command.argument}".rstrip() if command.slash else ""
    return Content.assemble(
        (f"{command.title}. ", "bold"),
        (command.help, "$foreground 65%"),
        (slash, "$text-primary"),
    )
