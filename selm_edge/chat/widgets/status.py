"""The two quiet lines at the bottom: how the model is doing, and which keys matter now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from textual.content import Content
from textual.widgets import Static

from selm_edge.chat.text import meter
from selm_edge.clean import clean_line


@dataclass
class Status:
    """``state`` is ``loading``, ``ready``, ``reading`` (a file that the question names),
    ``replying`` or ``none``; tokens where known."""

    model: str = ""
    state: str = "loading"
    speed: float | None = None
    used: int | None = None
    context: int | None = None
    experts: Mapping[str, int] = field(default_factory=dict)
    """Tokens of the last reply by who spoke them."""
    drafts: float | None = None
    """The share of tokens guessed ahead that were right."""
    mean_layers: float | None = None
    layers: int | None = None


NO_FIGURES: Mapping[str, Any] = {
    "speed": None, "experts": {}, "drafts": None, "mean_layers": None
}  # fmt: skip
"""A `Status` before the first token of a reply."""


class StatusLine(Static):
    """``● model   21.3 tok/s   medical 80%   drafts 62%   context ▰▰▱▱▱ 31%``.

    Where the window is narrow, the meter is shorter, then the last of the figures give way.
    """

    _DOTS: ClassVar[dict[str, tuple[str, str]]] = {
        "loading": ("◌ ", "$text-warning"),
        "ready": ("● ", "$text-success"),
        "reading": ("◌ ", "$text-warning"),
        "replying": ("● ", "$text-accent"),
        "none": ("○ ", "$text-error"),
    }

    def __init__(self) -> None:
        super().__init__(id="status")
        self.status = Status()

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        self.update(self.line(self.size.width or 80))

    def line(self, width: int) -> Content:
        status = self.status
        name = clean_line(status.model)
        state = {
            "loading": f"Loading {name}…" if name else "Loading the model…",
            "reading": "Reading the file… Esc stops",
            "none": "No model · F3 chooses one",
        }.get(status.state, name)
        left = Content.assemble(self._DOTS[status.state], state)
        figures = [Content(words) for words in self._figures()]
        line = self._joined(left, figures, short=width < 60)
        if line.cell_length > width:
            line = self._joined(left, figures, short=True)
        while line.cell_length > width and figures:
            figures.pop()
            line = self._joined(left, figures, short=True)
        return line

    def _joined(self, left: Content, figures: list[Content], *, short: bool) -> Content:
        status, end = self.status, []
        if status.used is not None and status.context:
            end.append(self._meter(status.used, status.context, short))
        return Content("   ").join([left, *figures, *end])

    def _figures(self) -> Iterator[str]:
        """What there is to say of the reply, the most telling first."""
        status = self.status
        if status.speed:
            yield f"{status.speed:.1f} tok/s"
        if status.experts:
            name = max(status.experts, key=lambda name: status.experts[name])
            share = status.experts[name] / sum(status.experts.values())
            yield clean_line(name) + (f" {share:.0%}" if len(status.experts) > 1 else "")
        if status.drafts is not None:
            yield f"drafts {status.drafts:.0%}"
        if status.mean_layers and status.layers and status.mean_layers < status.layers:
            yield f"layers {status.mean_layers:.1f}/{status.layers}"

    def _meter(self, used: int, context: int, short: bool) -> Content:
        share = used / context
        style = "$text-error" if share > 0.9 else "$text-warning" if share > 0.75 else ""
        if short:
            return Content.styled(f"{share:.0%} full", style)
        words = f"context {meter(used, context)} {share:.0%} of {context:,}"
        return Content.styled(words, style)


class Hints(Static):
    """The keys that matter now; the first ones stay where the window is narrow."""

    def __init__(self) -> None:
        super().__init__(id="hints")
        self._hints: tuple[tuple[str, str], ...] = ()

    def show(self, *hints: tuple[str, str]) -> None:
        """Each a key and its word."""
        if hints != self._hints:
            self._hints = hints
            self.redraw()

    def on_resize(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        width = self.size.width or 80
        line = Content("")
        for key, word in self._hints:
            part = Content.assemble((key, "$foreground 65%"), f" {word}")
            longer = Content("   ").join([line, part]) if line.plain else part
            if longer.cell_length > width:
                break
            line = longer
        self.update(line)
