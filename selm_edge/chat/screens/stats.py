"""How good the stored conversations were: figures and plots over time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.widgets import Static

from selm_edge.chat.screens.dialog import Box, Dialog
from selm_edge.chat.threads import in_thread
from selm_edge.clean import clean_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from selm_edge.chat.stats import ChatStats
    from selm_edge.feedback.report import Plot, Report, Section

_KEYS = "f fluency · ↑↓ scroll · Esc back"


class StatsScreen(Dialog[None]):
    """Opens at once and fills when the figures are there. ``f`` measures fluency; Esc stops that,
    and shows what was measured, else closes. ``busy``: whether the model is at work."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "fluency", show=False),
        Binding("q,enter", "cancel", show=False),
        Binding("up", "page(-1)", show=False),
        Binding("down", "page(1)", show=False),
        Binding("pageup", "page(-10)", show=False),
        Binding("pagedown,space", "page(10)", show=False),
    ]

    def __init__(
        self, stats: ChatStats, busy: Callable[[], bool], *, fluency: bool = False
    ) -> None:
        super().__init__()
        self._stats, self._busy, self._fluency = stats, busy, fluency
        self._stopped = threading.Event()
        self._measuring = False
        self._report: Report | None = None

    def compose(self) -> ComposeResult:
        with Box("How good the conversations were", _KEYS, classes="large"):
            yield Vertical(Static("Reading the conversations …", markup=False), id="stats")

    async def on_mount(self) -> None:
        self._read()

    def on_unmount(self) -> None:
        self._stopped.set()  # a thread that still reads need not go on

    async def on_resize(self, event: Resize) -> None:
        await self._draw()

    @work(exit_on_error=False)
    async def _read(self) -> None:
        self._report = await in_thread(self._stats.report, self._stopped.is_set)
        await self._draw()
        if self._fluency:
            self.action_fluency()

    def action_fluency(self) -> None:
        if self._report is None or self._measuring:
            return
        if self._busy():
            self.notify("The model is at work. When it is ready, f measures fluency.", markup=False)
        else:
            self._measure(self._report)

    @work(exit_on_error=False)
    async def _measure(self, report: Report) -> None:
        self._measuring = True
        self._stopped.clear()
        self._say("fluency: begins · Esc stops")
        try:
            self._report = await in_thread(
                self._stats.with_fluency, report, self._stopped.is_set, self._progress
            )
        finally:
            self._measuring = False
            self._say("")
        await self._draw()
        self.query_one(Box).scroll_end(animate=False)

    def _progress(self, done: int, total: int) -> None:
        """Called in the thread."""
        words = f"fluency: {done} of {total} replies · Esc shows what there is"
        self.app.call_later(self._say, words)

    def _say(self, words: str) -> None:
        """Below, where it is seen however far one has scrolled; nothing gives the keys back."""
        if self.is_attached:
            self.query_one(Box).border_subtitle = words or _KEYS

    def action_cancel(self) -> None:
        if self._measuring and not self._stopped.is_set():
            self._stopped.set()
        else:
            self.dismiss(None)

    def action_page(self, lines: int) -> None:
        self.query_one(Box).scroll_relative(y=lines, animate=False)

    async def _draw(self) -> None:
        """The sections, as wide as there is room."""
        if self._report is None:
            return
        width = max(20, self.query_one("#stats").size.width)
        parts = [part for one in self._report.sections for part in _parts(one, width)]
        place = self.query_one("#stats", Vertical)
        await place.remove_children()
        await place.mount(*parts)


def _parts(section: Section, width: int) -> list[Static]:
    models = " · ".join(map(clean_line, section.models))
    words = Content.assemble(
        clean_line(" ".join(section.words)), (f"\n{models}" if models else "", "$foreground 65%")
    )
    return [
        Static(section.title, classes="heading", markup=False),
        Static(words, classes="words"),
        *(Static(_drawn(plot, width), classes="plot") for plot in section.plots),
    ]


def _drawn(plot: Plot, width: int) -> Content:
    *rows, axis, labels = plot.lines(width)
    parts: list[tuple[str, str]] = [(f"{plot.caption}\n", "$foreground 65%")]
    for row in rows:
        label, line, bars = row.partition("│")
        parts += [(label + line, "$foreground 50%"), (f"{bars}\n", "$text-accent")]
    return Content.assemble(*parts, (f"{axis}\n{labels}", "$foreground 50%"))
