"""`selm memory`: what the device remembers, seen, searched and changed from the shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import FAILED, Function, json_option, note, plain, show_json
from selm_edge.cli.data import open_data, open_memories
from selm_edge.cli.feedback import Since, day
from selm_edge.cli.memory_files import (
    decrypt,
    embedder,
    encrypt,
    export,
    import_,
    ingest,
    rekey,
)
from selm_edge.cli.memory_health import check, repair
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from selm_edge.memory.memories import Added, Filters, Kind, Memories, Memory
    from selm_edge.memory.recall import Recalled

KINDS = ("fact", "correction", "turn", "passage")
STATUSES = ("active", "superseded", "never")


@click.group()
def memory() -> None:
    """Remember, find again, change and forget.

    Everything stays in one file on this device. Nothing is written but by your own act, and what
    is forgotten leaves the disk.

    \b
    Examples:
      selm memory add "My sister Nora is allergic to walnuts."
      selm memory ingest ~/contracts --space work
      selm memory search "what must Nora not eat"
      selm memory forget 12
    """


for _command in (ingest, export, import_, embedder, encrypt, decrypt, rekey, check, repair):
    memory.add_command(_command)


def _space_option(help_text: str) -> Callable[[Function], Function]:
    return click.option("--space", metavar="NAME", help=help_text)


def filter_options(function: Function) -> Function:
    """--kind, --space, --since, --until, --limit"""
    for option in reversed(
        (
            click.option("--kind", type=click.Choice(KINDS), multiple=True,
                         help="Only these; repeatable."),
            _space_option("Only of this person or project."),
            click.option("--since", type=Since(), help="Only from this day or moment on."),
            click.option("--until", type=Since(), help="Only before this day or moment."),
            click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True,
                         help="At most so many."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def _space(memories: Memories, name: str | None, *, create: bool = False) -> int | None:
    return memories.space(name, create=create).id if name else None


def _filters(memories: Memories, options: dict[str, Any]) -> Filters:
    from selm_edge.memory.memories import Filters

    return Filters(
        _space(memories, options["space"]), options["kind"] or None,
        options["since"], options["until"],
    )  # fmt: skip


# -- writing ---------------------------------------------------------------------------------------


@memory.command()
@click.argument("text", nargs=-1, required=True)
@_space_option("The person or project it belongs to; made if it is new.")
@click.option("--pin", is_flag=True, help="Recall it first, whatever is asked.")
@click.option(
    "--corrects",
    type=int,
    multiple=True,
    metavar="ID",
    help="It takes the place of this memory; repeatable.",
)
@click.option("--anyway", is_flag=True, help="Also where something very like it is remembered.")
@json_option
def add(text: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Remember a fact.

    What is remembered already is not stored twice. Where something very like it is, you are asked
    whether the new text takes its place.
    """
    from selm_edge.memory.memories import PERSONAL

    memories = open_memories(open_data())
    fact = " ".join(text)
    where = _space(memories, options["space"], create=True) or PERSONAL
    kind: Kind = "correction" if options["corrects"] else "fact"

    def store(anyway: bool) -> Added:
        return memories.add(
            fact, kind=kind, space=where, source="shell", pinned=options["pin"],
            corrects=options["corrects"], anyway=anyway,
        )  # fmt: skip

    added = store(options["anyway"])
    if added.outcome == "near" and not as_json and sys.stdin.isatty():
        click.echo("Something like it is remembered:\n" + _lines(added.near))
        words = "r replaces it, k keeps both, Enter leaves it as it is"
        answer = click.prompt(words, default="", show_default=False).strip().lower()
        if answer == "r":
            added = memories.supersede(added.near[0].id, fact, source="shell")
        elif answer == "k":
            added = store(True)
    if as_json:
        show_json({"outcome": added.outcome, "near": [_as_json(one) for one in added.near],
                   "memory": _as_json(added.memory)})  # fmt: skip
    elif added.outcome == "near":
        note("not stored: something very like it is remembered. --corrects ID replaces it,"
             " --anyway keeps both:\n" + _lines(added.near))  # fmt: skip
    else:
        known = "remembered" if added.outcome == "new" else "known already"
        click.echo(f"{known}: {_line(added.memory)}")
    return FAILED if added.outcome == "near" else 0


@memory.command()
@click.argument("number", type=int, metavar="ID")
@click.argument("text", nargs=-1, required=True)
@click.option(
    "--correct",
    is_flag=True,
    help="Keep the old text, marked as superseded, instead of changing it.",
)
@json_option
def edit(number: int, text: tuple[str, ...], correct: bool, as_json: bool) -> None:
    """Change the text of a memory."""
    memories = open_memories(open_data())
    if correct:
        changed = memories.supersede(number, " ".join(text), source="shell").memory
    else:
        changed = memories.edit(number, " ".join(text))
    _told(changed, as_json)


@memory.command()
@click.argument("number", type=int, metavar="ID")
@click.option("--undo", is_flag=True, help="Take the pin out again.")
@json_option
def pin(number: int, undo: bool, as_json: bool) -> None:
    """Recall a memory first, whatever is asked."""
    _told(open_memories(open_data()).pin(number, not undo), as_json)


@memory.command()
@click.argument("number", type=int, metavar="ID")
@click.option("--undo", is_flag=True, help="Recall it again.")
@json_option
def never(number: int, undo: bool, as_json: bool) -> None:
    """Keep a memory, but never recall it."""
    memories = open_memories(open_data())
    _told(memories.set_status(number, "active" if undo else "never"), as_json)


@memory.command()
@click.argument("numbers", type=int, nargs=-1, metavar="[ID]...")
@click.option("--document", metavar="PATH", help="All passages of this document.")
@click.option("--space", metavar="NAME", help="Everything of this person or project.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def forget(
    numbers: tuple[int, ...], document: str | None, space: str | None, yes: bool, as_json: bool
) -> None:
    """Delete for real: no byte of it stays on the disk. Your own files are not touched."""
    memories = open_memories(open_data(), quiet=True)
    if sum((bool(numbers), bool(document), bool(space))) != 1:
        raise click.UsageError("say what: numbers of memories, --document PATH or --space NAME")
    what, act = _to_forget(memories, numbers, document, space)
    if not yes:
        click.confirm(f"Forget {plain(what)}?", abort=True, err=True)
    gone = act()
    if as_json:
        show_json({"forgotten": what, "bytes_gone": gone})
        return
    later = "" if gone else " Its bytes leave the disk when other windows close."
    click.echo(f"forgotten: {plain(what)}.{later}")


def _to_forget(
    memories: Memories, numbers: tuple[int, ...], document: str | None, space: str | None
) -> tuple[str, Any]:
    """What is meant, in words, and what does it."""
    if document:
        path = str(Path(document).expanduser().absolute())
        row = memories.database.one(
            "select id, path from document where path in (?, ?)", (document, path)
        )
        if row is None:
            raise SelmError(f"no document {document} is remembered\n`selm memory stats` lists them")
        return f"the document {row[1]}", lambda: memories.forget_document(row[0])
    if space:
        found = memories.space(space)
        words = f"the space {found.name} with {found.memories} memories"
        return words, lambda: memories.forget_space(found.id)
    known = [memories.get(number) for number in numbers]
    words = "; ".join(_line(one) for one in known[:3]) + (" ..." if len(known) > 3 else "")
    return words, lambda: memories.forget(numbers)


# -- finding ---------------------------------------------------------------------------------------


@memory.command()
@click.argument("query", nargs=-1, required=True)
@filter_options
@json_option
def search(query: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """What is remembered about a question, best first, by words and by meaning."""
    from selm_edge.memory.recall import recall

    memories = open_memories(open_data(create=False))
    chosen = _filters(memories, options)
    found = recall(
        memories, " ".join(query), space=chosen.space, kinds=chosen.kinds, since=chosen.since,
        until=chosen.until, limit=options["limit"], relevant_only=False,
    )  # fmt: skip
    if as_json:
        show_json([_recalled(one) for one in found])
        return
    if not found:
        click.echo("nothing found")
    for one in found:
        ranks = f"words {one.lexical_rank or '-'}, meaning {one.vector_rank or '-'}"
        click.echo(f"{_line(one.memory)}\n       {ranks}, score {one.score:.3f}")


@memory.command("list")
@filter_options
@click.option(
    "--status", type=click.Choice(STATUSES), multiple=True, help="Default: what can be recalled."
)
@click.option("--pinned", is_flag=True, help="Only what is pinned.")
@json_option
def list_(as_json: bool, status: tuple[Any, ...], pinned: bool, **options: Any) -> None:
    """The memories, the newest first."""
    from dataclasses import replace

    memories = open_memories(open_data(create=False), quiet=True)
    chosen = replace(
        _filters(memories, options), statuses=status or ("active",), pinned=pinned or None
    )
    found = memories.list(chosen, options["limit"])
    if as_json:
        show_json([_as_json(one) for one in found])
        return
    if not found:
        click.echo('nothing is remembered yet. Try: selm memory add "..."')
    for one in found:
        click.echo(_line(one))


@memory.command()
@click.argument("number", type=int, metavar="ID")
@json_option
def show(number: int, as_json: bool) -> None:
    """One memory, whole, with where it came from."""
    one = open_memories(open_data(create=False), quiet=True).get(number)
    if as_json:
        show_json(_as_json(one))
        return
    click.echo(_line(one, whole=True))
    click.echo(plain(f"from {place(one)}, {day(one.created)}, {one.status}"))


@memory.command()
@json_option
def stats(as_json: bool) -> None:
    """How much there is, by kind, space and document."""
    memories = open_memories(open_data(create=False), quiet=True)
    values = memories.stats()
    spaces = memories.spaces()
    documents = memories.database.rows(
        "select document.path, document.state, count(memory.id) from document"
        " left join memory on memory.document = document.id group by document.id order by 1"
    )
    if as_json:
        show_json({**values, "spaces": [vars(space) for space in spaces],
                   "documents": [dict(zip(("path", "state", "passages"), row, strict=True))
                                 for row in documents]})  # fmt: skip
        return
    for name, value in values.items():
        words = (
            ", ".join(f"{n} {k}" for k, n in value.items()) if isinstance(value, dict) else value
        )
        click.echo(plain(f"{name.replace('_', ' '):<12} {words if words is not None else 'no'}"))
    for space in spaces:
        click.echo(plain(f"space {space.name}: {space.memories}"))
    for path, state, count in documents:
        click.echo(plain(f"document {path}: {count} passages ({state})"))


@memory.group()
def space() -> None:
    """Spaces: people or projects whose memories are kept apart."""


@space.command("list")
@json_option
def space_list(as_json: bool) -> None:
    """All spaces with their number of memories."""
    found = open_memories(open_data(create=False), quiet=True).spaces()
    if as_json:
        show_json([vars(one) for one in found])
        return
    for one in found:
        click.echo(plain(f"{one.memories:>7}  {one.name}"))


@space.command("add")
@click.argument("name")
def space_add(name: str) -> None:
    """Make a space."""
    found = open_memories(open_data(), quiet=True).space(name, create=True)
    click.echo(plain(f"space {found.name}"))


@space.command("rename")
@click.argument("name")
@click.argument("new")
def space_rename(name: str, new: str) -> None:
    """Give a space another name."""
    memories = open_memories(open_data(), quiet=True)
    memories.rename_space(memories.space(name).id, new)
    click.echo(plain(f"space {memories.space(new).name}"))


# -- words -----------------------------------------------------------------------------------------


def place(one: Memory) -> str:
    """Where it came from: ``contract.pdf, p. 3`` or ``chat``."""
    if one.kind != "passage":
        return one.source
    where = f"p. {one.page}" if one.page else f"line {one.line}" if one.line else ""
    return ", ".join(part for part in (one.source, one.heading, where) if part)


def _line(one: Memory, *, whole: bool = False) -> str:
    text = " ".join(one.text.split())
    if not whole and len(text) > 90:
        text = text[:89] + "…"
    marks = ("pinned " if one.pinned else "") + ("" if one.status == "active" else one.status + " ")
    source = f"  [{Path(one.source).name}]" if one.kind == "passage" else ""
    return plain(f"{one.id:>6}  {day(one.created)}  {one.kind:<10} {marks}{text}{source}")


def _lines(found: Sequence[Memory]) -> str:
    return "\n".join(map(_line, found))


def _told(one: Memory, as_json: bool) -> None:
    if as_json:
        show_json(_as_json(one))
    else:
        click.echo(_line(one))


def _as_json(one: Memory) -> dict[str, Any]:
    return dict(vars(one))


def _recalled(one: Recalled) -> dict[str, Any]:
    """As `selm memory search --json` promises: id, kind, text, source, score and the two ranks."""
    return {
        **_as_json(one.memory), "score": one.score, "bm25_rank": one.lexical_rank,
        "vector_rank": one.vector_rank, "cosine": one.cosine, "words": list(one.words),
        "age_ms": one.age_ms,
    }  # fmt: skip
