"""The two quiet lines at the bottom: how the model is doing, and which keys matter now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual.content import Content
from textual.widgets import Static

from selm_edge.chat.text import meter
from selm_edge.clean import clean_line


@dataclass
class Status:
    """``state`` is ``loading``, ``ready``, ``replying`` or ``none``; tokens where known."""

    model: str = ""
    state: str = "loading"
    speed: float | None = None
    used: int | None = None
    context: int | None = None


class StatusLine(Static):
    """``● model   21.3 tok/s   context ▰▰▱▱▱ 31%``, shorter where the window is narrow."""

    _DOTS: ClassVar[dict[str, tuple[str, str]]] = {
        "loading": ("◌ ", "$text-warning"),
        "ready": ("● ", "$text-success"),
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
            "none": "No model · F3 chooses one",
        }.get(status.state, name)
        left = Content.assemble(self._DOTS[status.state], state)
        parts = [left]
        if status.speed:
            parts.append(Content(f"{status.speed:.1f} tok/s"))
        if status.used is not None and status.context:
            parts.append(self._meter(status.used, status.context, width))
        line = Content("   ").join(parts)
        return line if line.cell_length <= width else Content("   ").join([left, *parts[2:]])

    def _meter(self, used: int, context: int, width: int) -> Content:
        share = used / context
        style = "$text-error" if share > 0.9 else "$text-warning" if share > 0.75 else ""
        if width < 60:
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
