"""Opening the user's data for a command: with its passphrase where it is encrypted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selm_edge.cli.common import note
from selm_edge.cli.passphrase import passphrase_for

if TYPE_CHECKING:
    from selm_edge.memory.memories import Memories
    from selm_edge.store.opening import Store


def open_data(*, create: bool = True, passphrase: str | None = None) -> Store:
    """The store in use. Where there is no file yet, an empty one in memory unless ``create``.
    The passphrase is asked for where it is needed and not given."""
    from selm_edge import paths
    from selm_edge.store.database import Database
    from selm_edge.store.opening import Store, open_store

    path = paths.database_file()
    if not create and not path.exists():
        return Store(Database(None))
    return open_store(path, passphrase or passphrase_for(path))


def open_memories(store: Store, *, quiet: bool = False) -> Memories:
    """Its memories, with the embedder that is set; without one, the reason is told."""
    from selm_edge import config
    from selm_edge.memory.opening import memories_of

    memories, problem = memories_of(store, config.load().embedder)
    if problem and not quiet:
        note(f"memory is searched by words alone: {problem}")
    return memories
