"""`selm feedback`: what was said about replies, and training data made of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import json_option, plain, show_json
from selm_edge.cli.data import open_data, open_memories
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.feedback.log import Feedback
    from selm_edge.feedback.redact import Redactor
    from selm_edge.store.opening import Store

_KINDS = ("up", "down", "correction", "regeneration", "preference")


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
        short = _short(text, 60)
        if row.rejected is not None:
            short = f"{_short(text, 28)} / not: {_short(row.rejected.reply, 24)}"
        click.echo(plain(f"{row.id:>5}  {day(row.created)}  {row.kind:<12}  {short}"))


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


@feedback.command()
@click.option(
    "--plot",
    is_flag=True,
    help="Also over time: how satisfied you were, how near replies came to your corrections, how"
    " well turns of a conversation belong together.",
)
@click.option(
    "--fluency",
    "judge",
    is_flag=False,
    flag_value="",
    metavar="[NAME|PATH]",
    help="Also how expected the words of replies are to a model (the preferred one where none is"
    " named), without adapters. It takes a while; Ctrl+C shows what there is.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="For --fluency: the newest that many replies; default 50.",
)
@_since
@json_option
@click.pass_context
def stats(  # noqa: PLR0917 (options)
    context: click.Context,
    plot: bool,
    judge: str | None,
    limit: int | None,
    since: int | None,
    as_json: bool,
) -> None:
    """How much there is, by kind and by model; and how good your conversations were.

    --json has all of it, fluency where it is asked for.

    \b
    Examples:
      selm feedback stats --plot
      selm feedback stats --plot --fluency selm-tiny --limit 200
    """
    from selm_edge.cli import feedback_stats

    context.exit(feedback_stats.stats(since, plot, judge, limit, as_json))


@feedback.command()
@click.option(
    "--format",
    "shape",
    type=click.Choice(("sft", "kto", "dpo", "messages", "bundle")),
    help="sft: texts to imitate. kto (the default): wanted and unwanted replies. dpo: a correction"
    " beside its reply, of two replies the better beside the other. messages: talks with all that"
    " is known. bundle: one checked file for `selm-export finetune`.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; default: stdout.")
@_since
@click.option(
    "--select",
    type=click.IntRange(1),
    metavar="N",
    help="Instead: the N unrated replies that it would help most to judge (as messages).",
)
@click.option(
    "--redact", is_flag=True, help="Take out names, mails, numbers and addresses, by rule."
)
@click.option("--yes", is_flag=True, help="Write without asking after what --redact found.")
@click.option("--encrypt", is_flag=True, help="A bundle that opens with a passphrase (AES-256).")
@json_option
def export(  # noqa: PLR0917 (options)
    shape: str | None,
    output: Path | None,
    since: int | None,
    select: int | None,
    redact: bool,
    yes: bool,
    encrypt: bool,
    as_json: bool,
) -> None:
    """Training data made of your feedback, as JSON Lines or as a bundle.

    Nothing is sent anywhere. What you rated with `/set share_feedback no` stays out of it. A file
    is written whole or not at all, and the same feedback gives the same lines each time.

    \b
    Examples:
      selm feedback export --format bundle --redact -o july.selm-feedback
      selm feedback export --select 20 -o to-judge.jsonl
    """
    _check_options(shape, output, select, redact, encrypt)
    from selm_edge.feedback.redact import Redactor

    target = _Target(output, Redactor(), yes, as_json)
    store = open_data(create=False)
    if select is not None:
        found = _to_judge(store, select, since, target.redactor if redact else None)
        target.lines(found, "messages")
        return
    from selm_edge.feedback.export import lines, redacted

    rows = [row for row in store.feedback.rows(since=since) if row.consent]
    if redact:
        rows = redacted(rows, target.redactor)
    if shape == "bundle":
        target.bundle(rows, redacted=redact, encrypted=encrypt)
    else:
        chosen: Any = shape or "kto"
        target.lines(list(lines(rows, chosen)), chosen)


def _check_options(
    shape: str | None, output: Path | None, select: int | None, redact: bool, encrypt: bool
) -> None:
    if select is not None and shape not in (None, "messages"):
        raise click.UsageError("--select is for --format messages: nobody has judged these replies")
    if shape == "bundle" and output is None:
        raise click.UsageError("a bundle is a file: say where with --output")
    if encrypt and shape != "bundle":
        raise click.UsageError("--encrypt is for --format bundle")


def _to_judge(
    store: Store, count: int, since: int | None, redactor: Redactor | None
) -> list[dict[str, Any]]:
    from selm_edge.feedback.unrated import messages_of, worth_asking

    memories = open_memories(store)
    found = []
    for turn in worth_asking(store.database, memories.embedder, count, since=since or 0):
        talk = messages_of(store.database, turn.message)
        found.append(
            {
                "id": f"message-{turn.message}",
                "messages": talk if redactor is None else redactor.turns(talk),
                "rating": None, "model": turn.model, "created": turn.created,
                "entropy": turn.entropy,
            }
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Target:
    """Where an export goes, and how its user wants to hear of it."""

    output: Path | None
    redactor: Redactor
    yes: bool
    as_json: bool

    def lines(self, found: list[dict[str, Any]], shape: str) -> None:
        _preview(self.redactor, self.yes or self.output is None)
        if self.output is None:
            for line in found:
                show_json(line, indent=None)
            return
        from selm_edge.feedback.export import write

        try:
            count = write(found, self.output.expanduser())
        except OSError as error:
            raise SelmError(
                f"{self.output} cannot be written: {error.strerror or error}\n"
                "Choose a file in a folder that exists and that you may write."
            ) from None
        if self.as_json:
            show_json({"file": str(self.output), "format": shape, "examples": count})
        else:
            click.echo(f"{count} examples written to {plain(str(self.output))}")

    def bundle(self, rows: list[Feedback], *, redacted: bool, encrypted: bool) -> None:
        from selm_edge.cli.passphrase import new_passphrase
        from selm_edge.feedback import bundle

        assert self.output is not None
        _preview(self.redactor, self.yes)
        passphrase = new_passphrase() if encrypted else None
        path = self.output.expanduser()
        manifest = bundle.write(map(bundle.row_of, rows), path, passphrase, redacted=redacted)
        if self.as_json:
            show_json({"file": str(self.output), "encrypted": encrypted, **manifest})
            return
        kinds = ", ".join(f"{number} {kind}" for kind, number in manifest["kinds"].items())
        where = plain(str(self.output))
        click.echo(f"{manifest['rows']} rows ({kinds or 'none'}) written to {where}")


_MOST_SHOWN = 40


def _preview(redactor: Redactor, yes: bool) -> None:
    """What was taken out, on the error stream; then the user says whether to go on."""
    found = dict.fromkeys((finding.placeholder, finding.text) for finding in redactor.seen)
    if not found:
        return
    click.echo(f"{len(redactor.seen)} details are taken out:", err=True)
    for placeholder, text in list(found)[:_MOST_SHOWN]:
        click.echo(plain(f"  {placeholder:<12} {text}"), err=True)
    if len(found) > _MOST_SHOWN:
        click.echo(f"  and {len(found) - _MOST_SHOWN} more", err=True)
    if yes:
        return
    click.echo("Rules do not find everything: read the file before you give it away.", err=True)
    if not (sys.stdin and sys.stdin.isatty()):
        raise SelmError("nobody can be asked whether that is all\nSay --yes to write it.")
    click.confirm("Write it?", abort=True, err=True)


def _as_json(row: Feedback) -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(row)
    return {**values.pop("record"), **values}


def day(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M")
