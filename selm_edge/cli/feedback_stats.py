"""`selm feedback stats`: counts, and the measures of conversations in words and as plots."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import INTERRUPTED, note, open_model, plain, show_json
from selm_edge.cli.data import open_data

if TYPE_CHECKING:
    from selm_edge.feedback.report import Plot, Report, Section
    from selm_edge.store.opening import Store

_CLEAR = "\r\x1b[K"
_WIDEST = 100


def stats(
    since: int | None, plot: bool, judge: str | None, limit: int | None, as_json: bool
) -> int:
    """Print them; the exit status. ``judge`` is the model that fluency is measured with, empty for
    the preferred one, None for no such measure."""
    if limit is not None and judge is None:
        raise click.UsageError("--limit is for --fluency: how many replies it reads")
    store, start = open_data(create=False), since or 0
    counts = store.feedback.stats(start)
    interrupted = False
    found: Report | None = None
    if plot or as_json or judge is not None:
        found = _report(store, start)
        if judge is not None:
            found, interrupted = _with_fluency(found, store, judge, start, limit)
    if as_json and found is not None:
        show_json({**counts, **found.as_json()})
        return INTERRUPTED if interrupted else 0
    _tell(counts)
    if found is not None:
        for section in found.sections:
            if plot or section.title == "Fluency":
                _show(section, plot)
    return INTERRUPTED if interrupted else 0


def _report(store: Store, since: int) -> Report:
    from selm_edge import config
    from selm_edge.feedback.report import report
    from selm_edge.memory.opening import memories_of

    memories, problem = memories_of(store, config.load().embedder)
    why = problem or "the embedder is switched off; `selm memory embedder builtin` turns it on"
    return report(store.database, memories.embedder, since=since, no_embedder=why)


def _with_fluency(
    found: Report, store: Store, judge: str, since: int, limit: int | None
) -> tuple[Report, bool]:
    """What was measured until Ctrl+C, and whether it was pressed."""
    from selm_edge import config
    from selm_edge.feedback import fluency

    stored = fluency.replies(store.database, since=since, limit=limit or fluency.NEWEST)
    entry, model = open_model(config.load(), model=judge or None)
    live = sys.stderr.isatty()
    measured: list[fluency.Measured] = []
    interrupted = False
    with model:
        try:
            for one in fluency.measured(model, store.database, stored):
                measured.append(one)
                if live:
                    words = f"fluency: {len(measured)} of {len(stored)} replies"
                    click.echo(f"{_CLEAR}{words}", nl=False, err=True)
        except KeyboardInterrupt:
            interrupted = True
    if live:
        click.echo(_CLEAR, nl=False, err=True)
    if interrupted:
        note(f"stopped: {len(measured)} of {len(stored)} replies were measured")
    return replace(found, fluency=fluency.fluency(measured), judge=entry.name), interrupted


def _tell(counts: dict[str, Any]) -> None:
    from selm_edge.feedback.log import KINDS

    for name in ("total", *KINDS, "superseded"):
        click.echo(f"{name:<13} {counts[name]:>6}")
    for model, kinds in counts["by_model"].items():
        words = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        click.echo(plain(f"{model}: {words}"))


def _show(section: Section, plot: bool) -> None:
    """A measure: its words, and below them its plots; their values where no plot can be written."""
    width = min(_WIDEST, shutil.get_terminal_size((80, 24)).columns) if _terminal() else 80
    click.echo(f"\n{_styled(section.title, bold=True)}")
    click.echo(plain(click.wrap_text(" ".join(section.words), width)))
    for line in section.models:
        click.echo(plain(f"  {line}"))
    for one in section.plots if plot else ():
        click.echo(f"\n{one.caption}")
        for line in _lines(one, width):
            click.echo(line)


def _lines(plot: Plot, width: int) -> list[str]:
    lines = plot.lines(width)
    try:
        "\n".join(lines).encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return click.wrap_text(plot.spoken, width).splitlines()
    return [_styled(line, fg="green") if "└" not in line else line for line in lines]


def _styled(text: str, **style: Any) -> str:
    """With colours on a terminal, unless its user wants none (no-color.org)."""
    return click.style(text, **style) if _terminal() and not os.environ.get("NO_COLOR") else text


def _terminal() -> bool:
    return sys.stdout.isatty()
