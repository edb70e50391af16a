"""What is remembered: adding, finding again, editing, pinning, superseding, forgetting.

Nothing is written but by the user's act. An exact duplicate is never stored twice; a near one is
reported, for the user to decide. A correction supersedes what it corrects: the old memory stays,
marked, and is no longer recalled.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from selm_edge.clean import clean
from selm_edge.errors import SelmError
from selm_edge.memory import lexical
from selm_edge.memory.vectors import ToStore, VectorIndex
from selm_edge.store import vector_table
from selm_edge.store.database import Database
from selm_edge.store.errors import NotFound
from selm_edge.store.reading import Row

if TYPE_CHECKING:
    import apsw

    from selm_edge.memory.embedder import Embedder

Kind = Literal["fact", "correction", "turn", "passage"]
Status = Literal["active", "superseded", "never"]
Outcome = Literal["new", "duplicate", "near"]

PERSONAL = 1  # the space that always is
MOST_CHARACTERS = 20_000
# Two facts this alike are one fact said twice, or one and its correction. By the shipped embedder
# nine pairs that say the same in other words have 0.80 to 0.98, eight that do not at most 0.70; of
# 102 facts of the measure 7 have another above 0.8 and 2 above 0.85 (codes with two digits
# exchanged).
NEAR_COSINE = 0.8
NEAR_WORDS = 0.75  # the same without vectors: words in common of all their words
_NEAR_SHOWN = 3
_NAMES = (
    "id kind space text source document heading page line line_end message created updated pinned"
    " status superseded_by"
)
_COLUMNS = ", ".join(f"memory.{name}" for name in _NAMES.split())


@dataclass(frozen=True)
class Memory:
    """One thing remembered. Times in milliseconds since 1970.

    ``source`` is "chat", "shell", "import" or a document's path; ``message`` the turn it came
    from; ``line`` to ``line_end`` and ``page`` (from 1) the place in a document.
    """

    id: int
    kind: Kind
    space: int
    text: str
    source: str
    document: int | None
    heading: str | None
    page: int | None
    line: int | None
    line_end: int | None
    message: int | None
    created: int
    updated: int
    pinned: bool
    status: Status
    superseded_by: int | None


@dataclass(frozen=True)
class Added:
    """What became of an `Memories.add`.

    ``outcome`` is "new" (stored as ``memory``), "duplicate" (``memory`` was there and says the
    same) or "near": nothing was stored, ``near`` may say the same, nearest first.
    """

    memory: Memory
    outcome: Outcome
    near: tuple[Memory, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A piece of a document to store; lines and pages count from 1."""

    text: str
    heading: str | None = None
    page: int | None = None
    line: int | None = None
    line_end: int | None = None


@dataclass(frozen=True)
class Space:
    """A person or a project, whose memories are kept apart."""

    id: int
    name: str
    created: int
    memories: int


@dataclass(frozen=True)
class Filters:
    """Which memories: None means any. ``since`` and ``until`` (not included) bound ``created``."""

    space: int | None = None
    kinds: Sequence[Kind] | None = None
    since: int | None = None
    until: int | None = None
    statuses: Sequence[Status] | None = ("active",)
    pinned: bool | None = None
    document: int | None = None
    conversation: int | None = None

    def sql(self) -> tuple[str, list[Any]]:
        """A condition on the table ``memory`` and its values."""
        parts = ["1"]
        values: list[Any] = []
        # The plus sends SQLite to the few pinned ones, not through all of the space.
        plus = "+" if self.pinned else ""
        for condition, value in (
            (f"{plus}memory.space = ?", self.space),
            ("memory.created >= ?", self.since),
            ("memory.created < ?", self.until),
            ("memory.document = ?", self.document),
            ("memory.message in (select id from message where conversation = ?)",
             self.conversation),
        ):  # fmt: skip
            if value is not None:
                parts.append(condition)
                values.append(value)
        if self.pinned is not None:
            parts.append(f"memory.pinned = {self.pinned:d}")  # as the partial index has it
        for column, chosen in (("kind", self.kinds), ("status", self.statuses)):
            if chosen is not None:
                parts.append(f"memory.{column} in ({','.join('?' * len(chosen))})")
                values += chosen
        return " and ".join(parts), values


class Memories:
    """All memories of one database. ``embedder`` None: words only, no vectors."""

    def __init__(self, database: Database, embedder: Embedder | None = None) -> None:
        self.database = database
        self.embedder = embedder
        self.index = VectorIndex(database)
        if embedder is not None and self.index.problem is None and self.index.made_by is None:
            with database.write():
                if self.index.made_by is None:  # another process may have been first
                    self.index.create(embedder.id, embedder.dim)

    # -- vectors -------------------------------------------------------------------------------

    @property
    def vectors_problem(self) -> str | None:
        """Why recall goes by words alone; None while vectors are on."""
        if self.embedder is None:
            return "no embedder is set"
        if self.index.problem is not None:
            return self.index.problem
        if self.index.made_by != self.embedder.id:
            return "the stored vectors were made by another embedder: embed again to use this one"
        return None

    def embed(self, texts: Sequence[str]) -> list[bytes | None]:
        """A float32 vector for each text; None for a text that has none, for all where vectors
        are off."""
        if self.embedder is None or self.vectors_problem is not None:
            return [None] * len(texts)
        return list(self.embedder.embed(texts))

    def store_vectors(self, connection: apsw.Connection, rows: Sequence[ToStore]) -> None:
        """Store these and mark their memories as embedded; nothing where vectors are off."""
        if self.vectors_problem is not None:
            return
        self.index.put(connection, rows)
        connection.executemany(
            "update memory set embedded = 1 where id = ?", [(row[0],) for row in rows]
        )

    # -- adding --------------------------------------------------------------------------------

    def add(
        self,
        text: str,
        *,
        kind: Kind = "fact",
        space: int = PERSONAL,
        source: str = "chat",
        message: int | None = None,
        pinned: bool = False,
        corrects: Sequence[int] = (),
        anyway: bool = False,
    ) -> Added:
        """Remember ``text``, superseding the memories ``corrects``.

        Where something near it is remembered and neither ``corrects`` nor ``anyway`` says what to
        do, nothing is stored and ``near`` shows it. SelmError for an empty or too long text.
        """
        text = _checked(text)
        vector = self.embed([text])[0]
        if kind in {"fact", "correction"} and not corrects and not anyway:
            known = self._same(kind, space, text)
            near = [] if known else self._near(text, vector, space)
            if near:
                return Added(near[0], "near", tuple(near))
        with self.database.write() as connection:
            known = self._same(kind, space, text)
            if known is None:
                now = _now()
                connection.execute(
                    "insert into memory(kind, space, text, sha256, source, message, created,"
                    " updated, pinned) values(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (kind, space, text, digest(text), source, message, now, now, pinned),
                )
                key = connection.last_insert_rowid()
                self._store_vector(connection, key, vector)
                outcome: Outcome = "new"
            else:
                key = known.id
                # Said again after it had been superseded: it holds again.
                outcome = "new" if known.status == "superseded" else "duplicate"
                if outcome == "new":
                    self._revive(connection, known)
            self._mark_superseded(connection, [one for one in corrects if one != key], key)
        return Added(self.get(key), outcome)

    def add_many(
        self,
        passages: Sequence[Passage],
        *,
        kind: Kind = "passage",
        space: int = PERSONAL,
        source: str,
        document: int | None = None,
    ) -> list[int]:
        """Store these in one transaction; the ids of the new ones (duplicates are left out).

        The embedding comes before the transaction, so that other writers wait only for the disk.
        """
        texts = [_checked(passage.text) for passage in passages]
        to_embed = [
            with_heading(passage.heading, text)
            for passage, text in zip(passages, texts, strict=True)
        ]
        vectors = self.embed(to_embed)
        now = _now()
        ids: list[int] = []
        embedded: list[ToStore] = []
        with self.database.write() as connection:
            for passage, text, vector in zip(passages, texts, vectors, strict=True):
                new = connection.execute(
                    "insert into memory(kind, space, text, sha256, source, document, heading, page,"
                    " line, line_end, created, updated) values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    " on conflict do nothing returning id",
                    (kind, space, text, digest(text), source, document,
                     clean(passage.heading) if passage.heading else None,
                     passage.page, passage.line, passage.line_end, now, now),
                ).fetchall()  # fmt: skip
                for row in new:
                    key = int(row[0])  # type: ignore[arg-type]
                    ids.append(key)
                    embedded.append((key, space, kind, now, vector))
            self.store_vectors(connection, embedded)
        return ids

    def supersede(self, old: int, text: str, *, source: str = "chat") -> Added:
        """Store ``text`` as the correction of ``old``, in its space."""
        before = self.get(old)
        if digest(_checked(text)) == digest(before.text):
            raise SelmError("the correction says the same as what it corrects")
        return self.add(text, kind="correction", space=before.space, source=source, corrects=[old])

    def near(self, text: str, space: int = PERSONAL) -> list[Memory]:
        """Facts and corrections that may say the same as ``text``, nearest first."""
        return self._near(_checked(text), self.embed([text])[0], space)

    def _store_vector(self, connection: apsw.Connection, key: int, vector: bytes | None) -> None:
        memory = self.get(key)
        row = (key, memory.space, memory.kind, memory.created, vector)
        self.store_vectors(connection, [row])

    def _revive(self, connection: apsw.Connection, memory: Memory) -> None:
        connection.execute(
            "update memory set status = 'active', superseded_by = null, updated = ? where id = ?",
            (_now(), memory.id),
        )
        vector = self.embed([with_heading(memory.heading, memory.text)])[0]
        self._store_vector(connection, memory.id, vector)

    def _mark_superseded(self, connection: apsw.Connection, old: Sequence[int], new: int) -> None:
        for key in old:
            connection.execute(
                "update memory set status = 'superseded', superseded_by = ? where id = ?",
                (new, key),
            )
            if not connection.changes():
                raise NotFound(f"there is no memory {key} (any more)")
            self._drop_vector(connection, key)

    def _drop_vector(self, connection: apsw.Connection, key: int) -> None:
        """What is never recalled needs no vector; a later one is made from the text."""
        self.index.remove(connection, key)
        connection.execute("update memory set embedded = 0 where id = ?", (key,))

    def _same(self, kind: Kind, space: int, text: str) -> Memory | None:
        """The exact duplicate; what a fact says, a correction may have said already."""
        kinds = ("fact", "correction") if kind in {"fact", "correction"} else (kind, kind)
        row = self.database.one(
            f"select {_COLUMNS} from memory where space = ? and kind in (?, ?) and sha256 = ?"
            " and ifnull(document, 0) = 0 order by status limit 1",
            (space, *kinds, digest(text)),
        )
        return _memory(row) if row else None

    def _near(self, text: str, vector: bytes | None, space: int) -> list[Memory]:
        if vector is not None:
            filters = (space, ("fact", "correction"), None, None)
            found = self.index.search(vector, _NEAR_SHOWN, filters)
            return self.get_many([key for key, cosine in found if cosine >= NEAR_COSINE])
        query = lexical.plan(self.database, text)
        if query is None:
            return []
        condition, values = Filters(space, ("fact", "correction")).sql()
        rows = self.database.rows(
            f"select {_COLUMNS} from memory_fts cross join memory on memory.id = memory_fts.rowid"
            f" where memory_fts match ? and {condition} limit 200",
            (query.match, *values),
        )
        words = set(lexical.words_of(text))
        found_by_words = [
            (overlap(words, set(lexical.words_of(row[3]))), _memory(row)) for row in rows
        ]
        found_by_words.sort(key=lambda pair: -pair[0])
        near = [memory for share, memory in found_by_words if share >= NEAR_WORDS]
        return near[:_NEAR_SHOWN]

    # -- reading -------------------------------------------------------------------------------

    def get(self, memory: int) -> Memory:
        found = self.get_many([memory])
        if not found:
            raise NotFound(f"there is no memory {memory} (any more)")
        return found[0]

    def get_many(self, memories: Sequence[int]) -> list[Memory]:
        """Those that (still) are, in the order asked for."""
        rows = self.database.rows(
            f"select {_COLUMNS} from memory where id in (select value from json_each(?))",
            (json.dumps(list(memories)),),
        )
        by_id = {row[0]: _memory(row) for row in rows}
        return [by_id[key] for key in memories if key in by_id]

    def list(
        self, filters: Filters | None = None, limit: int = 200, offset: int = 0
    ) -> list[Memory]:
        """The most recently changed first."""
        condition, values = (filters or Filters()).sql()
        rows = self.database.rows(
            f"select {_COLUMNS} from memory where {condition}"
            " order by updated desc, id desc limit ? offset ?",
            (*values, limit, offset),
        )
        return [_memory(row) for row in rows]

    def count(self, filters: Filters | None = None) -> int:
        condition, values = (filters or Filters()).sql()
        found = self.database.one(f"select count(*) from memory where {condition}", values)
        return int(found[0]) if found else 0

    def stats(self) -> Mapping[str, Any]:
        """Figures for a page of statistics: counts by kind and status, vectors, bytes."""
        by = self.database.rows("select kind, status, count(*) from memory group by 1, 2")
        unembedded = self.database.one(
            "select count(*) from memory where embedded = 0 and status = 'active'"
        )
        documents = self.database.one("select count(*) from document")
        size = self.database.one(
            "select page_count * page_size from pragma_page_count, pragma_page_size"
        )
        return {
            "memories": sum(row[2] for row in by),
            "kinds": {kind: sum(n for k, _, n in by if k == kind) for kind, _, _ in by},
            "statuses": {status: sum(n for _, s, n in by if s == status) for _, status, _ in by},
            "documents": documents[0] if documents else 0,
            "spaces": len(self.spaces()),
            "vectors": self.index.count(),
            "to_embed": unembedded[0] if unembedded else 0,
            "vectors_off": self.vectors_problem,
            "bytes": size[0] if size else 0,
        }

    # -- changing ------------------------------------------------------------------------------

    def edit(self, memory: int, text: str) -> Memory:
        """Another text for the same memory. SelmError where another memory already says it."""
        text = _checked(text)
        before = self.get(memory)
        vector = self.embed([with_heading(before.heading, text)])[0]
        with self.database.write() as connection:
            before = self.get(memory)
            twin = self.database.one(
                "select id from memory where space = ? and kind = ? and sha256 = ?"
                " and ifnull(document, 0) = ? and id <> ?",
                (before.space, before.kind, digest(text), before.document or 0, memory),
            )
            if twin:
                raise SelmError(f"memory {twin[0]} says this already; forget one of the two")
            connection.execute(
                "update memory set text = ?, sha256 = ?, updated = ? where id = ?",
                (text, digest(text), _now(), memory),
            )
            self._drop_vector(connection, memory)
            if before.status == "active":
                self._store_vector(connection, memory, vector)
        return self.get(memory)

    def pin(self, memory: int, pinned: bool = True) -> Memory:
        """Pinned memories are recalled first, whatever is asked."""
        self.get(memory)
        with self.database.write() as connection:
            connection.execute("update memory set pinned = ? where id = ?", (pinned, memory))
        return self.get(memory)

    def set_status(self, memory: int, status: Literal["active", "never"]) -> Memory:
        """``never``: kept and shown, but never recalled; ``active``: as any other."""
        before = self.get(memory)
        with self.database.write() as connection:
            if status == "active":
                if before.status != "active":
                    self._revive(connection, before)
            else:
                connection.execute(
                    "update memory set status = ?, updated = ? where id = ?",
                    (status, _now(), memory),
                )
                self._drop_vector(connection, memory)
        return self.get(memory)

    # -- forgetting ----------------------------------------------------------------------------

    def forget(self, memories: Sequence[int]) -> bool:
        """Remove them, their words in the index and their vectors, so that no byte stays.

        True when the bytes are gone now, False when another process still holds an older view
        (they leave with its end). Ids that are no more are passed over.
        """
        with self.database.write() as connection:
            self._delete(connection, memories)
        return self.database.purge()

    def forget_document(self, document: int) -> bool:
        """The document and all its passages, as `forget`. Its file is not touched."""
        with self.database.write() as connection:
            self._delete(connection, self._ids("document = ?", document))
            connection.execute("delete from document where id = ?", (document,))
            if not connection.changes():
                raise NotFound(f"there is no document {document} (any more)")
        return self.database.purge()

    def forget_conversation(self, conversation: int) -> bool:
        """All memories that came from its turns, as `forget`."""
        return self.forget(
            self._ids("message in (select id from message where conversation = ?)", conversation)
        )

    def _delete(self, connection: apsw.Connection, memories: Sequence[int]) -> None:
        vector_table.delete_memories(connection, memories, self.index.problem is None)

    def _ids(self, condition: str, value: int) -> Sequence[int]:
        rows = self.database.rows(f"select id from memory where {condition}", (value,))
        return [row[0] for row in rows]

    # -- spaces --------------------------------------------------------------------------------

    def spaces(self) -> Sequence[Space]:
        """In the order they were made; the personal one is first."""
        rows = self.database.rows(
            "select id, name, created, (select count(*) from memory where space = space.id)"
            " from space order by id"
        )
        return [Space(*row) for row in rows]

    def space(self, name: str, *, create: bool = False) -> Space:
        """The space of this name, in any case of letters; made where ``create`` says so."""
        name = _space_name(name)
        found = [space for space in self.spaces() if space.name.casefold() == name.casefold()]
        if found:
            return found[0]
        if not create:
            known = ", ".join(space.name for space in self.spaces())
            raise NotFound(f"there is no space {name!r}; there are: {known}")
        with self.database.write() as connection:
            connection.execute(
                "insert into space(name, created) values(?, ?) on conflict do nothing",
                (name, _now()),
            )
        return self.space(name)

    def rename_space(self, space: int, name: str) -> None:
        name = _space_name(name)
        with self.database.write() as connection:
            if any(s.name.casefold() == name.casefold() and s.id != space for s in self.spaces()):
                raise SelmError(f"there is a space {name!r} already")
            connection.execute("update space set name = ? where id = ?", (name, space))
            if not connection.changes():
                raise NotFound(f"there is no space {space} (any more)")

    def forget_space(self, space: int) -> bool:
        """The space with all its memories and documents, as `forget`; not the personal one."""
        if space == PERSONAL:
            raise SelmError("the personal space stays; forget its memories instead")
        with self.database.write() as connection:
            self._delete(connection, self._ids("space = ?", space))
            connection.execute("delete from document where space = ?", (space,))
            connection.execute("delete from space where id = ?", (space,))
            if not connection.changes():
                raise NotFound(f"there is no space {space} (any more)")
        return self.database.purge()


# -- texts -----------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """What two texts have in common when they say the same letter by letter.

    Compatible letters made equal (NFKC), no case, single spaces, no punctuation at the ends.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(" .,;:!?\"'\u201c\u201d\u2018\u2019")


def digest(text: str) -> bytes:
    """SHA-256 of the normalised text: the same for exact duplicates."""
    return hashlib.sha256(normalised(text).encode("utf-8", "replace")).digest()


def overlap(one: Set[str], other: Set[str]) -> float:
    """Of two texts' words, what share of all is in both: 0 to 1."""
    return len(one & other) / len(one | other) if one and other else 0.0


def with_heading(heading: str | None, text: str) -> str:
    """What is embedded: the heading is part of what a passage is about."""
    return f"{heading}\n{text}" if heading else text


def _checked(text: str) -> str:
    text = clean(text).strip()
    if not normalised(text):
        raise SelmError("there is nothing to remember in an empty text")
    if len(text) > MOST_CHARACTERS:
        raise SelmError(
            f"a memory holds at most {MOST_CHARACTERS} characters, this has {len(text)};"
            " attach it as a file instead"
        )
    return text


def _space_name(name: str) -> str:
    name = " ".join(clean(name).split())
    if not name:
        raise SelmError("a space needs a name")
    return name


def _memory(row: Row) -> Memory:
    memory = Memory(*row)
    return replace(memory, pinned=bool(memory.pinned))


def _now() -> int:
    return time.time_ns() // 1_000_000
