"""Settings: the system prompt, sampling, limits, and the keys that send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Input, Static, Switch, TextArea

from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.config import number_problem
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession


@dataclass(frozen=True)
class Field:
    """One number. ``help`` fits on the line beside it."""

    name: str
    title: str
    help: str
    whole: bool = False


SAMPLING = (
    Field("temperature", "Temperature", "0 takes the likeliest word; 1 is lively"),
    Field("top_k", "Top-k", "among this many words; 0 is off", whole=True),
    Field("top_p", "Top-p", "among words that make up this share"),
    Field("min_p", "Min-p", "not words this much rarer than the best"),
    Field("typical_p", "Typical", "words of typical surprise; 1 is off"),
    Field("repeat_penalty", "Repetition", "above 1 avoids words already used"),
    Field("frequency_penalty", "Frequency", "grows with each use of a word"),
    Field("presence_penalty", "Presence", "the same for any use of a word"),
    Field("seed", "Seed", "empty draws one for each reply", whole=True),
)
LIMITS = (
    Field("max_tokens", "Longest reply", "tokens", whole=True),
    Field("context", "Context", "tokens read at once; reopens the model", whole=True),
)


class SettingsScreen(Dialog[bool]):
    """Gives True where something was changed and kept."""

    # No priority: it would overtake letters that are still on their way to the box.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+s,f10", "save", "Keep", show=False)]

    def __init__(self, session: ChatSession, field: str = "") -> None:
        super().__init__()
        self.session = session
        self._focus = field

    def compose(self) -> ComposeResult:
        values = self._shown = {name: _text(value) for name, value in self._values().items()}
        with Box("Settings", "Ctrl+S keeps them · Esc goes back", classes="large"):
            yield Static("", id="settings-error", markup=False)
            yield TextArea(
                self.session.system or "",
                id="set-system",
                soft_wrap=True,
                highlight_cursor_line=False,
                placeholder="What the model is told before every conversation",
            )
            yield Static("Sampling", classes="heading")
            yield from self._rows(SAMPLING, values)
            yield Static("Limits", classes="heading")
            yield from self._rows(LIMITS, values)
            yield Static("Keys", classes="heading")
            with Horizontal(classes="row"):
                yield Static("Enter sends", classes="name")
                yield Switch(self.session.enter_sends, id="set-enter")
                yield Static("else Ctrl+J sends and Enter begins a line", classes="hint")
            if self.session.experts.names:
                yield Static("Experts", classes="heading")
                with Horizontal(classes="row"):
                    yield Static("Colours", classes="name")
                    yield Switch(self.session.colours, id="set-colours")
                    yield Static("show who spoke, in place of Markdown", classes="hint")

    def _rows(self, fields: tuple[Field, ...], values: Mapping[str, str]) -> ComposeResult:
        for field in fields:
            with Horizontal(classes="row"):
                yield Static(field.title, classes="name")
                yield Input(
                    values[field.name],
                    id=f"set-{field.name}",
                    compact=True,
                    select_on_focus=True,
                )
                yield Static(field.help, classes="hint", markup=False)

    def _values(self) -> dict[str, Any]:
        config = self.session.preferences.config
        limits = {"max_tokens": self.session.max_tokens, "context": config.context}
        return vars(self.session.sampling) | limits

    def on_mount(self) -> None:
        self.query_one("#set-system", TextArea).border_title = "System prompt"
        self.query_one(f"#set-{self._focus or 'system'}").focus()

    def action_save(self) -> None:
        """Keep what was changed here, or say what is wrong and where."""
        numbers: dict[str, Any] = {}
        for field in (*SAMPLING, *LIMITS):
            box = self.query_one(f"#set-{field.name}", Input)
            if box.value.strip() == self._shown[field.name]:
                continue
            value, problem = _read(field, box.value.strip())
            if problem:
                line = self.query_one("#settings-error", Static)
                line.update(problem)
                line.add_class("shown")
                line.scroll_visible(animate=False)
                box.focus()
                return
            numbers[field.name] = value
        limits = {f.name: numbers.pop(f.name) for f in LIMITS if f.name in numbers}
        system = self.query_one("#set-system", TextArea).text
        enter = self.query_one("#set-enter", Switch).value
        try:
            if enter != self.session.enter_sends:
                self.session.set_enter_sends(enter)
            for switch in self.query("#set-colours").results(Switch):
                if switch.value != self.session.colours:
                    self.session.set_colours(switch.value)
            if system != (self.session.system or ""):
                self.session.set_system(system)
            if numbers:
                self.session.set_sampling(numbers)
            if limits:
                self.session.preferences.change(**limits)
        except SelmError as error:
            self.notify(str(error), severity="warning", markup=False)
        self.dismiss(True)


def _text(value: float | None) -> str:
    """A number as it stands in its box; empty where there is none."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _read(field: Field, text: str) -> tuple[int | float | None, str]:
    """The number in a box, or None where it is empty; else what is wrong with it."""
    if not text:
        return None, ""
    try:
        value: int | float = int(text) if field.whole else float(text)
    except ValueError:
        kind = "whole number" if field.whole else "number"
        return None, f"{field.title}: {text!r} is not a {kind}."
    problem = number_problem(field.name, value)
    return (None, f"{field.title}: {problem}.") if problem else (value, "")
