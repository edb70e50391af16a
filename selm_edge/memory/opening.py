"""The memories of a store, with the embedder that the user chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selm_edge.errors import SelmError
from selm_edge.memory.memories import Memories

if TYPE_CHECKING:
    from selm_edge.store.opening import Store

BUILTIN, OFF = "builtin", "off"


def memories_of(store: Store, embedder: str | None) -> tuple[Memories, str | None]:
    """``embedder``: "builtin" (None too), "off", or the path of a GGUF file.

    With the reason why there are no vectors, None where there are or where none are wanted.
    """
    if embedder == OFF:
        return Memories(store.database), None
    from selm_edge.memory.embedder import open_embedder

    try:
        memories = Memories(store.database, open_embedder(embedder or BUILTIN))
    except SelmError as error:
        return Memories(store.database), str(error)
    return memories, memories.vectors_problem
