"""Conversations as trees of turns.

An edit or a regeneration adds a sibling; nothing is overwritten. What is on show is the path from
the root to ``leaf``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from selm_edge.store import vector_table
from selm_edge.store.database import Database
from selm_edge.store.errors import NotFound
from selm_edge.store.reading import Row

Role = Literal["user", "assistant"]
TITLE_LENGTH = 60


@dataclass(frozen=True)
class ReplyFacts:
    """What is known of how a reply was made; None where it is not.

    ``system`` is the system prompt as sent, empty where there was none. ``recalled`` has the
    memories sent with the question: {"memory": id, "number": as shown}, never their texts.
    ``adapter`` names the adapters in use with their scales. ``experts`` tells who spoke, of a model
    that has experts: {"tokens": {name: how many}, "runs": [[name, characters], ...]}. ``entropy``
    (nats) and ``margin`` are means over the reply's tokens: how sure the model was.

    The fields are the columns of a message, by name and in order.
    """

    model: str | None = None
    model_sha256: str | None = None
    template_id: str | None = None
    sampling: Mapping[str, Any] | None = None
    seed: int | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    finish_reason: str | None = None
    system: str | None = None
    recalled: Sequence[Mapping[str, int]] | None = None
    adapter: Mapping[str, float] | None = None
    experts: Mapping[str, Any] | None = None
    entropy: float | None = None
    margin: float | None = None


_FACTS = tuple(field.name for field in fields(ReplyFacts))
_JSON = frozenset(("sampling", "recalled", "adapter", "experts"))
_COLUMNS = "id, conversation, parent, role, text, context_from, created, " + ", ".join(_FACTS)


@dataclass(frozen=True)
class Message:
    """One turn. ``context_from`` is set on the turn from which older ones were left out."""

    id: int
    conversation: int
    parent: int | None
    role: Role
    text: str
    context_from: int | None
    created: int
    facts: ReplyFacts = field(default_factory=ReplyFacts)


@dataclass(frozen=True)
class Conversation:
    """``system`` and ``sampling`` are None where the user's defaults hold. Times in ms.

    ``memory``: whether memories are recalled in it; ``space`` None is the personal one.
    """

    id: int
    title: str
    named: bool
    system: str | None
    sampling: Mapping[str, Any] | None
    leaf: int | None
    created: int
    updated: int
    turns: int = 0
    memory: bool = True
    space: int | None = None


@dataclass(frozen=True)
class Hit:
    """A conversation found by a search; ``snippet`` is the passage, ``message`` its turn."""

    conversation: Conversation
    message: int | None
    snippet: str


class Conversations:
    """All conversations of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- conversations -------------------------------------------------------------------------

    def create(
        self,
        title: str = "New conversation",
        *,
        system: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Conversation:
        now = _now()
        with self.database.write() as connection:
            connection.execute(
                "insert into conversation(title, system, sampling, created, updated)"
                " values(?, ?, ?, ?, ?)",
                (title, _dump(system), _dump(sampling), now, now),
            )
            key = connection.last_insert_rowid()
        return self.get(key)

    def get(self, conversation: int) -> Conversation:
        found = self.database.one(_CONVERSATION + " where c.id = ?", (conversation,))
        if found is None:
            raise NotFound(f"there is no conversation {conversation} (any more)")
        return _conversation(found)

    def recent(self, limit: int = 200, offset: int = 0) -> list[Conversation]:
        """The most recently used first."""
        rows = self.database.rows(
            _CONVERSATION + " order by c.updated desc, c.id desc limit ? offset ?", (limit, offset)
        )
        return [_conversation(row) for row in rows]

    def rename(self, conversation: int, title: str) -> None:
        """The user's own title; empty titles are refused."""
        title = " ".join(title.split())
        if not title:
            raise ValueError("a title needs at least one letter")
        self._update(conversation, "title = ?, named = 1", (title,))

    def set_system(self, conversation: int, system: str | None) -> None:
        self._update(conversation, "system = ?", (_dump(system),))

    def set_sampling(self, conversation: int, sampling: Mapping[str, Any] | None) -> None:
        self._update(conversation, "sampling = ?", (_dump(sampling),))

    def set_memory(self, conversation: int, on: bool) -> None:
        """Whether memories are recalled in it."""
        self._update(conversation, "memory = ?", (on,))

    def set_space(self, conversation: int, space: int | None) -> None:
        """Whose memories it recalls and adds to; None: the personal ones."""
        self._update(conversation, "space = ?", (space,))

    def delete(self, conversation: int, *, keep_feedback: bool = False) -> bool:
        """Remove it and, unless kept, the feedback given in it, so that no byte stays on the disk.

        Its turns kept as memories go with it; facts and corrections told in it stay
        (`Memories.forget_conversation` removes them).
        True when the bytes are gone now, False when another process still holds an older view
        (they leave with its end).
        """
        with self.database.write() as connection:
            if not keep_feedback:
                connection.execute("delete from feedback where conversation = ?", (conversation,))
            turns = connection.execute(
                "select id from memory where kind = 'turn'"
                " and message in (select id from message where conversation = ?)",
                (conversation,),
            )
            ids = [row[0] for row in turns]
            vector_table.delete_memories(connection, ids, self.database.vectors_problem is None)
            connection.execute("delete from conversation where id = ?", (conversation,))
            if not connection.changes():
                raise NotFound(f"there is no conversation {conversation} (any more)")
        return self.database.purge()

    def _update(self, conversation: int, assignment: str, values: Sequence[Any]) -> None:
        with self.database.write() as connection:
            connection.execute(
                f"update conversation set {assignment} where id = ?", (*values, conversation)
            )
            if not connection.changes():
                raise NotFound(f"there is no conversation {conversation} (any more)")

    # -- turns ---------------------------------------------------------------------------------

    def add(
        self,
        conversation: int,
        parent: int | None,
        role: Role,
        text: str,
        *,
        context_from: int | None = None,
        facts: ReplyFacts | None = None,
    ) -> Message:
        """Append a turn under ``parent`` (None: the beginning) and show the branch it ends."""
        facts = facts or ReplyFacts()
        now = _now()
        with self.database.write() as connection:
            self.get(conversation)  # another process may have deleted it
            if parent is not None and self.message(parent).conversation != conversation:
                raise ValueError("the parent belongs to another conversation")
            values = [getattr(facts, name) for name in _FACTS]
            told = [
                _dump(v) if name in _JSON else v for name, v in zip(_FACTS, values, strict=True)
            ]
            row = (None, conversation, parent, role, text, context_from, now, *told)
            marks = ",".join("?" * len(row))
            connection.execute(f"insert into message({_COLUMNS}) values({marks})", row)
            key = connection.last_insert_rowid()
            title = _title_from(text) if role == "user" and parent is None else None
            connection.execute(
                "update conversation set leaf = ?, updated = ?,"
                " title = case when named or ? is null then title else ? end where id = ?",
                (key, now, title, title, conversation),
            )
        return self.message(key)

    def message(self, key: int) -> Message:
        found = self.database.one(f"select {_COLUMNS} from message where id = ?", (key,))
        if found is None:
            raise NotFound(f"there is no turn {key} (any more)")
        return _message(found)

    def path(self, conversation: int) -> list[Message]:
        """The turns on show, oldest first."""
        return self._up_from("(select leaf from conversation where id = ?)", conversation)

    def path_to(self, message: int) -> list[Message]:
        """The turns up to this one and with it, oldest first."""
        return self._up_from("?", message)

    def _up_from(self, end: str, value: int) -> list[Message]:
        rows = self.database.rows(
            "with recursive up(id, parent, depth) as ("
            f"  select id, parent, 0 from message where id = {end}"
            "  union all"
            "  select m.id, m.parent, depth + 1 from message m join up on m.id = up.parent)"
            f" select {_COLUMNS} from message join (select id as i, depth from up) on i = id"
            " order by depth desc",
            (value,),
        )
        return [_message(row) for row in rows]

    def tree(self, conversation: int) -> list[Message]:
        """Every turn of every branch, in the order of writing."""
        rows = self.database.rows(
            f"select {_COLUMNS} from message where conversation = ? order by id", (conversation,)
        )
        return [_message(row) for row in rows]

    def sibling_table(self, path: Sequence[Message]) -> dict[int, list[int]]:
        """Ids of the versions of each turn of a path, oldest first, itself included; by turn."""
        if not path:
            return {}
        rows = self.database.rows(
            "select id, parent, role from message where conversation = ? order by id",
            (path[0].conversation,),
        )
        groups: dict[tuple[int | None, str], list[int]] = {}
        for key, parent, role in rows:
            groups.setdefault((parent, role), []).append(key)
        return {turn.id: groups[turn.parent, turn.role] for turn in path}

    def show(self, message: int) -> None:
        """Show the branch through ``message``, down to its newest end."""
        found = self.database.one(
            "with recursive down(id, depth) as ("
            "  select ?, 0 union all"
            "  select (select max(id) from message where parent = down.id), depth + 1 from down"
            "    where down.id is not null)"
            " select id from down where id is not null order by depth desc limit 1",
            (message,),
        )
        leaf = found[0] if found else message
        owner = self.message(message).conversation
        with self.database.write() as connection:
            connection.execute("update conversation set leaf = ? where id = ?", (leaf, owner))

    def show_end(self, message: int) -> None:
        """Show the branch that ends at ``message``; what follows it stays stored."""
        owner = self.message(message).conversation
        with self.database.write() as connection:
            connection.execute("update conversation set leaf = ? where id = ?", (message, owner))

    def set_context_from(self, message: int, first: int) -> None:
        """Mark that from ``message`` on, turns before ``first`` are no longer sent."""
        with self.database.write() as connection:
            connection.execute("update message set context_from = ? where id = ?", (first, message))

    # -- search --------------------------------------------------------------------------------

    def search(self, query: str, limit: int = 50) -> list[Hit]:
        """Conversations whose title or turns hold every word of ``query``, best first.

        The words are quoted, so nothing in them is search syntax; the last may be unfinished.
        """
        match = quote_terms(query)
        if not match:
            return [Hit(found, None, "") for found in self.recent(limit)]
        rows = self.database.rows(
            "select conversation, id, snippet(message_fts, 0, '', '', '…', 12), rank"
            " from message_fts join message on message.id = message_fts.rowid"
            " where message_fts match ? order by rank limit ?",
            (match, limit * 4),
        )
        titles = self.database.rows(
            "select rowid, null, title, rank from title_fts where title_fts match ?"
            " order by rank limit ?",
            (match, limit),
        )
        best: dict[int, tuple[int | None, str]] = {}
        for conversation, message, snippet, _ in [*titles, *rows]:
            known = best.get(conversation)
            if known is None or (known[0] is None and message is not None):
                best[conversation] = (message, " ".join(snippet.split()))
        return [
            Hit(self.get(conversation), message, snippet)
            for conversation, (message, snippet) in list(best.items())[:limit]
        ]


def quote_terms(query: str) -> str:
    """User text as an FTS5 query: each word a quoted string, the last one a prefix."""
    words = [word.replace('"', '""') for word in query.replace("\0", " ").split()]
    return " ".join(f'"{word}"' for word in words) + "*" if words else ""


_CONVERSATION = (
    "select c.id, c.title, c.named, c.system, c.sampling, c.leaf, c.created, c.updated,"
    " (select count(*) from message m where m.conversation = c.id), c.memory, c.space"
    " from conversation c"
)


def _conversation(row: Row) -> Conversation:
    key, title, named, system, sampling, leaf, created, updated, turns, memory, space = row
    return Conversation(
        key,
        title,
        bool(named),
        _load(system),
        _load(sampling),
        leaf,
        created,
        updated,
        turns,
        bool(memory),
        space,
    )


def _message(row: Row) -> Message:
    key, conversation, parent, role, text, context_from, created, *told = row
    values = [_load(v) if name in _JSON else v for name, v in zip(_FACTS, told, strict=True)]
    facts = ReplyFacts(*values)
    return Message(key, conversation, parent, role, text, context_from, created, facts)


def _title_from(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= TITLE_LENGTH:
        return line or "New conversation"
    return line[: TITLE_LENGTH - 1].rsplit(" ", 1)[0] + "…"


def _dump(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _load(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None  # a damaged cell: the defaults hold, the rest of the row is still good


def _now() -> int:
    return time.time_ns() // 1_000_000
