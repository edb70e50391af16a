"""Opening the user's data for a command: with its passphrase where it is encrypted."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selm_edge.cli.common import note

if TYPE_CHECKING:
    from selm_edge.memory.memories import Memories
    from selm_edge.store.opening import Store

PASSPHRASE_VARIABLE = "SELM_PASSPHRASE"


def passphrase_for(path: Path) -> str | None:
    """What opens the file: from the environment, else asked for; None where it is not encrypted.

    Without a terminal to ask at, None too: opening the file then says what is missing.
    """
    from selm_edge.store.keys import state_of

    if state_of(path) != "encrypted":
        return None
    return os.environ.get(PASSPHRASE_VARIABLE) or _ask("Passphrase")


def new_passphrase() -> str:
    """Asked for twice; UsageError where nobody can be asked."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    first = given or _ask("New passphrase")
    if not first:
        raise click.UsageError(f"no terminal to ask at: set {PASSPHRASE_VARIABLE}")
    if not given and _ask("Once more") != first:
        raise click.UsageError("the two are not the same; nothing was changed")
    return first


def _ask(words: str) -> str | None:
    if not (sys.stdin and sys.stdin.isatty()):
        return None
    text: str = click.prompt(words, hide_input=True, err=True, default="", show_default=False)
    return text or None


def open_data(*, create: bool = True) -> Store:
    """The store in use. Where there is no file yet, an empty one in memory unless ``create``."""
    from selm_edge import paths
    from selm_edge.store.database import Database
    from selm_edge.store.opening import Store, open_store

    path = paths.database_file()
    if not create and not path.exists():
        return Store(Database(None))
    return open_store(path, passphrase_for(path))


def open_memories(store: Store, *, quiet: bool = False) -> Memories:
    """Its memories, with the embedder that is set; without one, the reason is told."""
    from selm_edge import config
    from selm_edge.memory.opening import memories_of

    memories, problem = memories_of(store, config.load().embedder)
    if problem and not quiet:
        note(f"memory is searched by words alone: {problem}")
    return memories
