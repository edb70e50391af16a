"""`selm memory ingest|export|import|embedder|encrypt|decrypt|rekey`: whole files of memories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import (
    FAILED,
    INTERRUPTED,
    human_bytes,
    json_option,
    note,
    plain,
    show_json,
)
from selm_edge.cli.data import open_data, open_memories
from selm_edge.cli.passphrase import new_passphrase, passphrase_for
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.memory.documents.ingest import Progress, Report
    from selm_edge.memory.memories import Memories

_CLEAR = "\r\033[K"


@click.command()
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH..."
)
@click.option("--space", metavar="NAME", help="The person or project; made if it is new.")
@click.option(
    "--remove-gone",
    is_flag=True,
    help="Forget documents below these folders whose file is no more.",
)
@json_option
def ingest(paths: tuple[Path, ...], space: str | None, remove_gone: bool, as_json: bool) -> int:
    """Remember documents: text, Markdown, HTML, PDF, source code, Wikipedia dumps, folders.

    Files that are remembered as they are take no time. Ctrl+C stops after the passages at hand;
    the same command goes on from there.

    \b
    Examples:
      selm memory ingest ~/contracts --space work
      selm memory ingest enwiki-latest-pages-articles.xml.bz2 --space wikipedia
    """
    from selm_edge.memory.documents.ingest import ingest as take_in
    from selm_edge.memory.memories import PERSONAL

    memories = open_memories(open_data())
    where = memories.space(space, create=True).id if space else PERSONAL
    live = sys.stderr.isatty()
    report = take_in(
        memories, [path.expanduser() for path in paths], space=where,
        progress=_show_progress if live else None, remove_gone=remove_gone,
    )  # fmt: skip
    if live:
        click.echo(_CLEAR, nl=False, err=True)
    if as_json:
        show_json(_report(report))
    else:
        _tell(report)
    return INTERRUPTED if report.interrupted else FAILED if report.failed else 0


def _show_progress(now: Progress) -> None:
    left = "" if now.seconds_left is None else f", {_time(now.seconds_left)} left"
    share = now.bytes / now.bytes_total if now.bytes_total else 0
    words = (
        f"{share:4.0%}  {now.passages:,} passages, {now.rate:,.0f}/s{left}"
        f"  {plain(now.path.name)[:40]}"
    )
    click.echo(f"{_CLEAR}{words}", nl=False, err=True)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _tell(report: Report) -> None:
    for refused in (*report.failed, *report.skipped, *report.notices):
        note(f"{refused.path}: {refused.reason}")
    if report.gone:
        verb = "forgotten" if report.removed else "still remembered (--remove-gone forgets them)"
        note(f"no more on the disk, {verb}: {', '.join(map(str, report.gone))}")
    counts = ", ".join(
        f"{len(files)} {word}"
        for word, files in (
            ("new", report.added), ("changed", report.updated), ("unchanged", report.unchanged),
            ("refused", report.failed), ("passed over", report.skipped),
        )
        if files
    )  # fmt: skip
    size = human_bytes(report.bytes)
    click.echo(f"{counts or 'no files'}: {report.passages:,} passages of {size}")
    if report.interrupted:
        click.echo("stopped; the same command goes on from here", err=True)


def _report(report: Report) -> dict[str, Any]:
    values = dict(vars(report))
    for name in ("added", "updated", "unchanged", "gone"):
        values[name] = [str(path) for path in values[name]]
    for name in ("failed", "skipped", "notices"):
        values[name] = [{"path": str(one.path), "reason": one.reason} for one in values[name]]
    return values


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the file where it exists.")
@json_option
def export(file: Path, overwrite: bool, as_json: bool) -> None:
    """Write everything remembered to a file of JSON lines, to keep or take elsewhere."""
    from selm_edge.memory.portable import export as write

    memories = open_memories(open_data(create=False), quiet=True)
    count = write(memories, file.expanduser(), overwrite=overwrite)
    if as_json:
        show_json({"file": str(file), "memories": count})
    else:
        click.echo(f"{count} memories written to {plain(str(file))}")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def import_(file: Path, as_json: bool) -> None:
    """Read a file of `export` in. What is remembered already stays as it is."""
    from selm_edge.memory.portable import import_file

    memories = open_memories(open_data())
    done = import_file(memories, file.expanduser())
    embed(memories)
    if as_json:
        show_json(vars(done))
    else:
        click.echo(f"{done.new} new, {done.known} known already")


@click.command()
@click.argument("choice", metavar="[builtin|off|FILE]", required=False)
@json_option
def embedder(choice: str | None, as_json: bool) -> None:
    """Show or choose what finds memories by their meaning.

    builtin is the one of the package; a FILE is any GGUF that this engine runs; off searches by
    words alone. Everything is embedded again; Ctrl+C stops, and the same command goes on.
    """
    from selm_edge.chat.preferences import Preferences
    from selm_edge.memory import embedding
    from selm_edge.memory.embedder import open_embedder
    from selm_edge.memory.opening import BUILTIN, OFF

    preferences = Preferences()
    if choice is not None:
        if choice not in (BUILTIN, OFF):
            choice = str(Path(choice).expanduser().absolute())
        opened = open_embedder(choice)  # refused here, before anything is changed
        if opened is not None:
            opened.close()
        preferences.change(embedder=None if choice == BUILTIN else choice)
    memories = open_memories(open_data(create=choice is not None))
    if choice is not None and memories.embedder is not None:
        embedding.adopt(memories)
        embed(memories)
    values = {
        "embedder": preferences.config.embedder or BUILTIN,
        "vectors": memories.index.count(),
        "to_embed": embedding.to_embed(memories),
        "problem": memories.vectors_problem,
    }
    if as_json:
        show_json(values)
        return
    for name, value in values.items():
        if value is not None:
            click.echo(plain(f"{name.replace('_', ' '):<9} {value}"))


def embed(memories: Memories) -> None:
    from selm_edge.memory.embedding import bring_up_to_date

    live = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        click.echo(f"{_CLEAR}embedding {done:,} of {total:,}", nl=False, err=True)

    bring_up_to_date(memories, show if live else None)
    if live:
        click.echo(_CLEAR, nl=False, err=True)


# -- the passphrase --------------------------------------------------------------------------------


@click.command()
def encrypt() -> None:
    """Protect the whole file (memory, conversations, feedback) with a passphrase.

    AES-256; the key is made from the passphrase by Argon2id. There is no way back in without it.
    """
    _rekey("encrypted", wanted="plain", new=True)


@click.command()
def decrypt() -> None:
    """Take the passphrase away."""
    _rekey("not encrypted any more", wanted="encrypted", new=False)


@click.command()
def rekey() -> None:
    """Give the file another passphrase."""
    _rekey("encrypted with the new passphrase", wanted="encrypted", new=True)


def _rekey(words: str, *, wanted: str, new: bool) -> None:
    from selm_edge import paths
    from selm_edge.store.keys import state_of
    from selm_edge.store.opening import open_store
    from selm_edge.store.rekeying import change_passphrase

    path = paths.database_file()
    if state_of(path) == "new":
        open_store(path).close()
    state = state_of(path)
    if state != wanted:
        raise SelmError(f"{path}: the file is {'' if state == 'encrypted' else 'not '}encrypted")
    old = passphrase_for(path)
    change_passphrase(path, old, new_passphrase() if new else None)
    click.echo(f"{plain(str(path))} is {words}.")
