"""Vectors for memories that have none yet: written while vectors were off, imported, or made by
another embedder. In pieces, so that it can be stopped at any moment and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable

from selm_edge.memory.memories import Memories, with_heading
from selm_edge.memory.vectors import ToStore

_PIECE = 256  # memories; one transaction each
Progress = Callable[[int, int], None]
"""Called with the memories done in this run and those it began with."""


def adopt(memories: Memories) -> None:
    """Throw away vectors of another embedder; `bring_up_to_date` makes those of this one.

    Nothing where the vectors are this embedder's already. ValueError without an embedder.
    """
    if memories.embedder is None:
        raise ValueError("there is no embedder to adopt")
    if memories.index.problem is None and memories.index.made_by != memories.embedder.id:
        memories.index.create(memories.embedder.id, memories.embedder.dim)


def to_embed(memories: Memories) -> int:
    """Active memories that still have no vector."""
    found = memories.database.one(
        "select count(*) from memory where embedded = 0 and status = 'active'"
    )
    return int(found[0]) if found else 0


def bring_up_to_date(
    memories: Memories,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Embed what has no vector; how many were done. Nothing where vectors are off."""
    if memories.vectors_problem is not None:
        return 0
    total = to_embed(memories)
    done = 0
    while not stopped():
        made = _embed_piece(memories)
        if not made:
            break
        done += made
        if progress is not None:
            progress(done, max(total, done))
    return done


def _embed_piece(memories: Memories) -> int:
    rows = memories.database.rows(
        "select id, space, kind, created, text, heading, sha256 from memory"
        " where embedded = 0 and status = 'active' order by id limit ?",
        (_PIECE,),
    )
    vectors = memories.embed([with_heading(row[5], row[4]) for row in rows])
    with memories.database.write() as connection:
        # Edited, forgotten or embedded by another process meanwhile: not this text any more.
        still = {
            row[0]
            for key, sha256 in ((row[0], row[6]) for row in rows)
            for row in connection.execute(
                "select id from memory where id = ? and sha256 = ? and embedded = 0"
                " and status = 'active'",
                (key, sha256),
            )
        }
        ready: list[ToStore] = [
            (row[0], row[1], row[2], row[3], vector)
            for row, vector in zip(rows, vectors, strict=True)
            if row[0] in still
        ]
        memories.store_vectors(connection, ready)
    return len(rows)
