"""`selm memory check|repair`: is the file sound, and what can be saved of one that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from selm_edge.cli.common import FAILED, json_option, note, plain, show_json
from selm_edge.cli.data import open_data, open_memories
from selm_edge.cli.memory_files import embed
from selm_edge.cli.passphrase import passphrase_for
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from pathlib import Path

    from selm_edge.memory.memories import Memories
    from selm_edge.store.repair import Health, Repaired


@click.command()
@json_option
def check(as_json: bool) -> int:
    """Read the whole file and say what is damaged; nothing is changed.

    Exit code 1 where something is. Minutes for a file of gigabytes.
    """
    from selm_edge.store.repair import check as look

    health = look(open_data(create=False).database)
    if as_json:
        show_json({"sound": health.sound, **vars(health)})
    else:
        for line in _words(health):
            click.echo(plain(line))
        click.echo("`selm memory repair` mends it." if _mendable(health) else _verdict(health))
    return 0 if health.sound else FAILED


def _words(health: Health) -> list[str]:
    found = [f"damaged: {line}" for line in health.file]
    found += [f"the word index {name} does not fit its rows" for name in health.words]
    if health.vectors:
        found.append(f"the vectors: {health.vectors}")
    if health.altered:
        found.append(_altered(health))
    return found


def _altered(health: Health) -> str:
    ids = ", ".join(map(str, health.altered))
    return f"not the text that was stored: {ids} (`selm memory show ID`, then edit or forget it)"


def _mendable(health: Health) -> bool:
    return bool(health.file or health.words or health.vectors)


def _verdict(health: Health) -> str:
    return "sound" if health.sound else "Nothing else is wrong."


@click.command()
@json_option
def repair(as_json: bool) -> None:
    """Mend what `check` finds; rows that can be read are all kept.

    Indexes are made again in place. Where rows or pages are damaged, the file is set aside beside
    the new one, with every row that can still be read in it.
    """
    from selm_edge import paths
    from selm_edge.store.errors import StoreError
    from selm_edge.store.repair import check as look
    from selm_edge.store.repair import repair as rescue

    path = paths.database_file()
    if not path.exists():
        raise SelmError(f"{path}: there is no such file; nothing to repair")
    health: Health | None = None
    result: Repaired | None = None
    passphrase = passphrase_for(path, tried=False)
    try:
        store = open_data(passphrase=passphrase)
        try:
            health = look(store.database)
        finally:
            store.close()
    except StoreError as error:
        if error.cause != "damaged":
            raise
    if health is None or health.file:
        result = rescue(path, passphrase)
    memories = open_memories(open_data(passphrase=passphrase))
    if health is not None and result is None:
        _remake(memories, health)
    embed(memories)
    _tell(path, health, result, as_json)


def _remake(memories: Memories, health: Health) -> None:
    from selm_edge.memory.embedding import adopt
    from selm_edge.store.repair import rebuild_words

    if health.words:
        rebuild_words(memories.database)
    if health.vectors:
        memories.index.drop()
        if memories.embedder is not None:
            adopt(memories)


def _tell(path: Path, health: Health | None, result: Repaired | None, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "kept": None if result is None else str(result.kept),
                "rescued": {} if result is None else result.rescued,
                "missing": {} if result is None else result.missing,
                "rebuilt": [] if health is None or result is not None else _words(health),
            }
        )
        return
    if result is None:
        assert health is not None
        for line in _words(health):
            click.echo(plain(line))
        click.echo("made again" if _mendable(health) else "nothing to repair")
        return
    for table, count in result.rescued.items():
        lost = result.missing.get(table, 0)
        if count or lost:
            click.echo(f"{table:<13} {count:>8,} kept" + (f", {lost:,} gone" if lost else ""))
    note(f"the damaged file is kept as {result.kept}; forgetting anything removes it")
    if any(result.missing.values()):
        note("gone: lost now, or deleted before")
    click.echo(plain(f"{path} is sound again."))
