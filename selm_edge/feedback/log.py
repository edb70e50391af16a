"""Feedback as first-class rows: a thumb, a correction, a regeneration, one of two replies.

A call that returned is a row on the disk (``synchronous=FULL``); it survives ``kill -9``.
Each row carries what training needs, so it stays useful when its conversation is gone.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from selm_edge.store.database import Database
from selm_edge.store.reading import Row

Kind = Literal["up", "down", "correction", "regeneration", "preference"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Turns = Sequence[Mapping[str, str]]
"""Turns as ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class ReplyRecord:
    """A reply and how it was made: ``messages`` as sent (system first), ``prompt`` as rendered.

    ``recalled`` are ids of the memories that were sent along, never their texts. ``adapter``,
    ``experts``, ``entropy`` and ``margin`` as in `ReplyFacts`.
    """

    messages: Turns
    reply: str
    prompt: str | None = None
    conversation: int | None = None
    message: int | None = None
    sampling: Mapping[str, Any] | None = None
    seed: int | None = None
    model: str | None = None
    model_sha256: str | None = None
    template_id: str | None = None
    tokens_per_second: float | None = None
    adapter: Mapping[str, float] | None = None
    experts: Mapping[str, Any] | None = None
    entropy: float | None = None
    margin: float | None = None
    recalled: Sequence[int] | None = None


_RECORD = tuple(field.name for field in fields(ReplyRecord))
_JSON = frozenset(("messages", "sampling", "adapter", "experts", "recalled"))
_SHARED = frozenset(("messages", "prompt", "conversation"))  # by the two replies of a preference
_COLUMNS = (
    "id, uid, kind, created, superseded_by, correction, rejected, consent, app_version, "
    + ", ".join(_RECORD)
)


@dataclass(frozen=True)
class Feedback:
    """One row. ``superseded_by`` is the newer row about the same reply, if any. Times in ms.

    ``consent``: whether it may leave this device in an export. ``rejected``: of a preference, the
    reply that was not taken; ``record`` is the one that was.
    """

    id: int
    uid: str
    kind: Kind
    created: int
    superseded_by: int | None
    record: ReplyRecord
    correction: str | None
    app_version: str
    consent: bool = True
    rejected: ReplyRecord | None = None


class FeedbackLog:
    """All feedback of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(
        self,
        kind: Kind,
        record: ReplyRecord,
        *,
        correction: str | None = None,
        rejected: ReplyRecord | None = None,
        consent: bool = True,
    ) -> Feedback:
        """Store one row; it is on the disk on return.

        A new thumb supersedes the older one on the same reply, a new correction the older one;
        the older row stays, marked. A preference supersedes nothing: what was better than one
        reply may be worse than the next.
        """
        if (kind == "correction") != (correction is not None):
            raise ValueError("a correction, and only a correction, carries a corrected text")
        if (kind == "preference") != (rejected is not None):
            raise ValueError("a preference, and only a preference, has a reply that was rejected")
        now, values = time.time_ns() // 1_000_000, [getattr(record, name) for name in _RECORD]
        made = [_dump(v) if name in _JSON else v for name, v in zip(_RECORD, values, strict=True)]
        row = (
            None, uuid.uuid4().hex, kind, now, None, correction, _dump_other(rejected),
            int(consent), app_version(), *made,
        )  # fmt: skip
        with self.database.write() as connection:
            marks = ",".join("?" * len(row))
            connection.execute(f"insert into feedback({_COLUMNS}) values({marks})", row)
            key = connection.last_insert_rowid()
            if record.message is not None and kind in ("up", "down", "correction"):
                connection.execute(
                    "update feedback set superseded_by = ? where message = ? and id < ?"
                    f" and superseded_by is null and kind in ({_group(kind)})",
                    (key, record.message, key),
                )
        return self.rows(ids=[key])[0]

    def withdraw(self, message: int, kinds: Sequence[Kind]) -> int:
        """The user takes feedback on a reply back: its rows are deleted. Returns how many."""
        marks = ",".join("?" * len(kinds))
        with self.database.write() as connection:
            connection.execute(
                f"delete from feedback where message = ? and kind in ({marks})", (message, *kinds)
            )
            return connection.changes()

    def rows(
        self,
        *,
        kinds: Sequence[Kind] | None = None,
        since: int | None = None,
        superseded: bool = False,
        ids: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> list[Feedback]:
        """Rows, oldest first; with ``limit`` the newest that many. ``since`` in ms."""
        conditions, values = ["1"], list[Any]()
        if not superseded and ids is None:
            conditions.append("superseded_by is null")
        for column, wanted in (("kind", kinds), ("id", ids)):
            if wanted is not None:
                conditions.append(f"{column} in ({','.join('?' * len(wanted))})")
                values.extend(wanted)
        if since is not None:
            conditions.append("created >= ?")
            values.append(since)
        rows = self.database.rows(
            f"select {_COLUMNS} from feedback where {' and '.join(conditions)}"
            " order by id desc limit ?",
            (*values, -1 if limit is None else limit),
        )
        return [_feedback(row) for row in reversed(rows)]

    def marks(self, conversation: int) -> dict[int, set[Kind]]:
        """For each reply of a conversation, the kinds of feedback in force."""
        found: dict[int, set[Kind]] = {}
        for message, kind in self.database.rows(
            "select message, kind from feedback where conversation = ? and message is not null"
            " and superseded_by is null",
            (conversation,),
        ):
            found.setdefault(message, set()).add(kind)
        return found

    def correction(self, message: int) -> str | None:
        """The newest corrected text of a reply."""
        found = self.database.one(
            "select correction from feedback where message = ? and kind = 'correction'"
            " order by id desc limit 1",
            (message,),
        )
        return None if found is None else str(found[0])

    def count(self, conversation: int | None = None) -> int:
        found = self.database.one(
            "select count(*) from feedback where ?1 is null or conversation = ?1", (conversation,)
        )
        return int(found[0]) if found else 0

    def stats(self, since: int = 0) -> dict[str, Any]:
        """Counts of what is in force, in all and by model. ``since`` in ms."""
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        by_model: dict[str, dict[str, int]] = {}
        for kind, model, number in self.database.rows(
            "select kind, coalesce(model, 'unknown'), count(*) from feedback"
            " where superseded_by is null and created >= ? group by 1, 2 order by 2, 1",
            (since,),
        ):
            counts[kind] += number
            by_model.setdefault(model, {})[kind] = number
        superseded = self.database.rows(
            "select count(*) from feedback where superseded_by is not null and created >= ?",
            (since,),
        )[0][0]
        return {
            "total": sum(counts.values()),
            **counts,
            "superseded": superseded,
            "by_model": by_model,
        }


def app_version() -> str:
    """The installed version, found without importing the package's other parts."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("selm-edge")
    except PackageNotFoundError:
        return "development"


def _group(kind: Kind) -> str:
    return "'correction'" if kind == "correction" else "'up','down'"


def _feedback(row: Row) -> Feedback:
    key, uid, kind, created, superseded_by, correction, rejected, consent, version, *made = row
    values = [_load(v) if name in _JSON else v for name, v in zip(_RECORD, made, strict=True)]
    record = ReplyRecord(*values)
    return Feedback(
        key, uid, kind, created, superseded_by, record, correction, version, bool(consent),
        _load_other(rejected, record),
    )  # fmt: skip


def _dump_other(record: ReplyRecord | None) -> str | None:
    """The reply that was rejected, without what it shares with the other."""
    if record is None:
        return None
    return _dump({name: getattr(record, name) for name in _RECORD if name not in _SHARED})


def _load_other(text: str | None, chosen: ReplyRecord) -> ReplyRecord | None:
    if text is None:
        return None
    told = {name: value for name, value in json.loads(text).items() if name in _RECORD}
    return replace(chosen, **told)


def _load(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _dump(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=dict)
