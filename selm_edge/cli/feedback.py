"""`selm feedback`: what was said about replies, and training data made of it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import json_option, plain, show_json
from selm_edge.cli.data import open_data
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.feedback.log import Feedback

_KINDS = ("up", "down", "correction", "regeneration")


@click.group()
def feedback() -> None:
    """List, count and export your feedback.

    It stays on this device: `export` writes a file here, and sends nothing.

    \b
    Examples:
      selm feedback list --kind correction
      selm feedback stats
      selm feedback export --format dpo --output corrections.jsonl
    """


class Since(click.ParamType[int]):
    """A day or a moment as milliseconds since 1970; without a zone it is local time."""

    name = "DATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(datetime.fromisoformat(value).timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is no date; write it as 2026-01-31 or 2026-01-31T12:00", param)


_since = click.option("--since", type=Since(), help="Only from this day or moment on.")


@feedback.command("list")
@click.option("--kind", type=click.Choice(_KINDS), multiple=True, help="Only these; repeatable.")
@_since
@click.option("--limit", type=click.IntRange(1), help="Only the newest that many.")
@click.option("--all", "superseded", is_flag=True, help="Also what a newer opinion replaced.")
@json_option
def list_(
    kind: tuple[Any, ...], since: int | None, limit: int | None, superseded: bool, as_json: bool
) -> None:
    """The rows, oldest first."""
    rows = open_data(create=False).feedback.rows(
        kinds=kind or None, since=since, superseded=superseded, limit=limit
    )
    if as_json:
        show_json([_as_json(row) for row in rows])
        return
    if not rows:
        click.echo("no feedback yet. In the chat: ↑ selects a reply, then + or - or x")
    for row in rows:
        text = row.correction if row.correction is not None else row.record.reply
        line = " ".join(text.split())
        short = line if len(line) <= 60 else line[:59] + "…"
        click.echo(plain(f"{row.id:>5}  {day(row.created)}  {row.kind:<12}  {short}"))


@feedback.command()
@json_option
def stats(as_json: bool) -> None:
    """How much there is, by kind and by model."""
    counts = open_data(create=False).feedback.stats()
    if as_json:
        show_json(counts)
        return
    for name in ("total", *_KINDS, "superseded"):
        click.echo(f"{name:<13} {counts[name]:>6}")
    for model, kinds in counts["by_model"].items():
        words = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        click.echo(plain(f"{model}: {words}"))


@feedback.command()
@click.option(
    "--format",
    "shape",
    type=click.Choice(("sft", "kto", "dpo")),
    default="kto",
    show_default=True,
    help="sft: texts to imitate. kto: wanted and unwanted replies. dpo: a correction beside its"
    " reply.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; default: stdout.")
@_since
@json_option
def export(shape: Any, output: Path | None, since: int | None, as_json: bool) -> None:
    """Training examples as JSON Lines. The file is written whole or not at all."""
    from selm_edge.feedback.export import lines, write

    rows = open_data(create=False).feedback.rows(since=since)
    if output is None:
        for line in lines(rows, shape):
            show_json(line, indent=None)
        return
    try:
        count = write(rows, shape, output.expanduser())
    except OSError as error:
        raise SelmError(
            f"{output} cannot be written: {error.strerror or error}\n"
            "Choose a file in a folder that exists and that you may write."
        ) from None
    if as_json:
        show_json({"file": str(output), "format": shape, "examples": count})
    else:
        click.echo(f"{count} examples written to {plain(str(output))}")


def _as_json(row: Feedback) -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(row)
    return {**values.pop("record"), **values}


def day(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M")
