"""Feedback as first-class rows: a thumb, a correction, a regeneration.

A call that returned is a row on the disk (``synchronous=FULL``); it survives ``kill -9``.
Each row carries what training needs, so it stays useful when its conversation is gone.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selm_edge.store.database import Database, Row

Kind = Literal["up", "down", "correction", "regeneration"]
Turns = Sequence[Mapping[str, str]]
"""Turns as ``{"role": ..., "content": ...}``."""

_COLUMNS = (
    "id, uid, kind, created, superseded_by, conversation, message, messages, prompt, reply,"
    " correction, sampling, seed, model, model_sha256, template_id, tokens_per_second, app_version"
)


@dataclass(frozen=True)
class ReplyRecord:
    """A reply and how it was made: ``messages`` as sent (system first), ``prompt`` as rendered."""

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


@dataclass(frozen=True)
class Feedback:
    """One row. ``superseded_by`` is the newer row about the same reply, if any. Times in ms."""

    id: int
    uid: str
    kind: Kind
    created: int
    superseded_by: int | None
    record: ReplyRecord
    correction: str | None
    app_version: str


class FeedbackLog:
    """All feedback of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, kind: Kind, record: ReplyRecord, *, correction: str | None = None) -> Feedback:
        """Store one row; it is on the disk on return.

        A new thumb supersedes the older one on the same reply, a new correction the older one;
        the older row stays, marked.
        """
        if (kind == "correction") != (correction is not None):
            raise ValueError("a correction, and only a correction, carries a corrected text")
        with self.database.write() as connection:
            connection.execute(
                f"insert into feedback({_COLUMNS}) values(null,{','.join('?' * 17)})",
                (
                    uuid.uuid4().hex,
                    kind,
                    time.time_ns() // 1_000_000,
                    None,
                    record.conversation,
                    record.message,
                    _dump([dict(turn) for turn in record.messages]),
                    record.prompt,
                    record.reply,
                    correction,
                    _dump(record.sampling),
                    record.seed,
                    record.model,
                    record.model_sha256,
                    record.template_id,
                    record.tokens_per_second,
                    app_version(),
                ),
            )
            key = connection.last_insert_rowid()
            if record.message is not None and kind != "regeneration":
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

    def stats(self) -> dict[str, Any]:
        """Counts of what is in force, in all and by model."""
        counts: dict[str, int] = dict.fromkeys(("up", "down", "correction", "regeneration"), 0)
        by_model: dict[str, dict[str, int]] = {}
        for kind, model, number in self.database.rows(
            "select kind, coalesce(model, 'unknown'), count(*) from feedback"
            " where superseded_by is null group by 1, 2 order by 2, 1"
        ):
            counts[kind] += number
            by_model.setdefault(model, {})[kind] = number
        superseded = self.database.rows(
            "select count(*) from feedback where superseded_by is not null"
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
    (key, uid, kind, created, superseded_by, conversation, message, messages, prompt, reply) = row[
        :10
    ]
    correction, sampling, seed, model, sha256, template_id, speed, version = row[10:]
    record = ReplyRecord(
        messages=json.loads(messages),
        reply=reply,
        prompt=prompt,
        conversation=conversation,
        message=message,
        sampling=None if sampling is None else json.loads(sampling),
        seed=seed,
        model=model,
        model_sha256=sha256,
        template_id=template_id,
        tokens_per_second=speed,
    )
    return Feedback(key, uid, kind, created, superseded_by, record, correction, version)


def _dump(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
