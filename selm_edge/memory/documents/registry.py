"""The table ``document``: which files are in memory, in which state, and where reading goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selm_edge.memory.documents.folders import Found

if TYPE_CHECKING:
    from selm_edge.memory.documents.passages import Passage
    from selm_edge.memory.memories import Memories

_CUTTING = 1
"""Raised when passages are cut in another way: where reading stopped counts passages."""


@dataclass(frozen=True)
class Resume:
    """Where reading goes on. ``cursor`` and ``number``: the unit, and the passage in it, that come
    next. ``started`` (ms) and ``before`` (the last memory's id then) tell the passages of an
    older version from those of this one."""

    started: int
    before: int
    cursor: str | None = None
    number: int = 0
    cutting: int = _CUTTING


@dataclass(frozen=True)
class Known:
    """A document in memory. ``resume`` is None where it is complete or must be read anew."""

    id: int
    path: Path
    sha256: str
    size: int
    modified: int
    complete: bool
    resume: Resume | None


class Registry:
    """The documents of one space."""

    def __init__(self, memories: Memories, space: int) -> None:
        self._memories = memories
        self._database = memories.database
        self._space = space

    def get(self, path: Path) -> Known | None:
        """What is known of a file; None if nothing."""
        rows = self._database.rows(
            _SELECT + " where space = ? and path = ?", (self._space, str(path))
        )
        return _known(rows[0]) if rows else None

    def below(self, roots: Sequence[Path]) -> list[Known]:
        """The documents at these paths and in these folders."""
        rows = self._database.rows(_SELECT + " where space = ? order by path", (self._space,))
        found = [_known(row) for row in rows]
        return [one for one in found if any(one.path.is_relative_to(root) for root in roots)]

    def touch(self, known: Known, found: Found) -> None:
        """The same content, saved again."""
        with self._database.write() as connection:
            connection.execute(
                "update document set size = ?, modified = ?, updated = ? where id = ?",
                (found.size, found.modified, _now(), known.id),
            )

    def begin(self, found: Found, kind: str, sha256: str) -> tuple[int, Resume]:
        """A new document, or a new version of a known one, whose passages stay for now."""
        now = _now()
        with self._database.write() as connection:
            last = self._database.one("select ifnull(max(id), 0) from memory")
            resume = Resume(started=now, before=last[0] if last else 0)
            connection.execute(
                "insert into document(space, path, kind, sha256, size, modified, state, resume,"
                " created, updated) values(?, ?, ?, ?, ?, ?, 'reading', ?, ?, ?)"
                " on conflict(space, path) do update set kind = excluded.kind,"
                " sha256 = excluded.sha256, size = excluded.size, modified = excluded.modified,"
                " state = 'reading', resume = excluded.resume, updated = excluded.updated",
                (
                    self._space, str(found.path), kind, sha256, found.size, found.modified,
                    json.dumps(asdict(resume)), now, now,
                ),
            )  # fmt: skip
            row = self._database.one(
                "select id from document where space = ? and path = ?",
                (self._space, str(found.path)),
            )
        return (row[0] if row else 0), resume

    def store(self, document: int, path: Path, passages: Sequence[Passage], resume: Resume) -> None:
        """Passages of the file. Those that an older version has too stay what they are, in their
        new place; the others are embedded and added."""
        from selm_edge.memory.memories import Passage as Stored

        fresh = self._moved(document, passages, resume) if resume.before else list(passages)
        self._memories.add_many(
            [
                Stored(one.text, one.heading or None, one.page, one.line, one.line_end)
                for one in fresh
            ],
            space=self._space,
            source=str(path),
            document=document,
        )

    def _moved(self, document: int, passages: Sequence[Passage], resume: Resume) -> list[Passage]:
        from selm_edge.memory.memories import digest

        now = max(_now(), resume.started)  # the clock may have been set back
        fresh: list[Passage] = []
        with self._database.write() as connection:
            for one in passages:
                connection.execute(
                    "update memory set heading = ?, page = ?, line = ?, line_end = ?, updated = ?"
                    " where space = ? and kind = 'passage' and sha256 = ?"
                    " and ifnull(document, 0) = ?",
                    (
                        one.heading or None, one.page, one.line, one.line_end, now, self._space,
                        digest(one.text), document,
                    ),
                )  # fmt: skip
                if not connection.changes():
                    fresh.append(one)
        return fresh

    def save(self, document: int, resume: Resume) -> None:
        """Remember where reading goes on. What is stored after this is found to be there already
        when it is read again, so this may come late but never early."""
        with self._database.write() as connection:
            connection.execute(
                "update document set resume = ?, updated = ? where id = ?",
                (json.dumps(asdict(resume)), _now(), document),
            )

    def finish(self, document: int, resume: Resume) -> None:
        """All passages stand: those of an older version go, and the document is complete."""
        old = self._database.rows(
            "select id from memory where document = ? and id <= ? and updated < ?",
            (document, resume.before, resume.started),
        )
        if old:
            self._memories.forget([row[0] for row in old])
        with self._database.write() as connection:
            connection.execute(
                "update document set state = 'complete', resume = null, updated = ? where id = ?",
                (_now(), document),
            )


_SELECT = "select id, path, sha256, size, modified, state, resume from document"


def _known(row: tuple[Any, ...]) -> Known:
    key, path, sha256, size, modified, state, resume = row
    complete = state == "complete"
    return Known(
        key, Path(path), sha256, size, modified, complete, None if complete else _resume(resume)
    )


def _resume(text: str | None) -> Resume | None:
    try:
        resume = Resume(**json.loads(text or ""))
    except (ValueError, TypeError):
        return None
    return resume if resume.cutting == _CUTTING else None


def _now() -> int:
    return time.time_ns() // 1_000_000
