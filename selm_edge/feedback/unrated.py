"""Replies that nobody has judged, and which of them are worth asking about."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selm_edge.feedback.select import Candidate, choose, unsure

if TYPE_CHECKING:
    from selm_edge.memory.embedder import Embedder
    from selm_edge.store.database import Database

MOST = 5000
"""Unrated replies looked at: the newest."""
JUDGED = 300
"""Rated replies that they are compared with: the newest."""
_JUDGEMENTS = "'up', 'down', 'correction', 'preference'"


@dataclass(frozen=True)
class Turn:
    """A reply with its question. ``message`` is the reply's id; times in ms."""

    message: int
    question: str
    reply: str
    created: int
    model: str | None
    entropy: float | None
    uncertainty: float


def unrated(database: Database, *, since: int = 0, conversation: int | None = None) -> list[Turn]:
    """The newest replies of the model that nobody has judged, oldest first."""
    rows = database.rows(
        "select m.id, q.text, m.text, m.created, m.model, m.entropy, m.margin"
        " from message m join message q on q.id = m.parent"
        " where m.role = 'assistant' and m.finish_reason in ('stop', 'length') and m.created >= ?1"
        " and (?2 is null or m.conversation = ?2) and length(m.text) > 0"
        " and m.id not in (select message from feedback where message is not null"
        f"                  and kind in ({_JUDGEMENTS})"
        "   union all select rejected ->> 'message' from feedback"
        "             where rejected ->> 'message' is not null)"
        " order by m.id desc limit ?3",
        (since, conversation, MOST),
    )
    return [
        Turn(key, question, reply, created, model, entropy, unsure(entropy, margin))
        for key, question, reply, created, model, entropy, margin in reversed(rows)
    ]


def worth_asking(
    database: Database,
    embedder: Embedder | None,
    count: int,
    *,
    since: int = 0,
    without: Collection[int] = (),
) -> list[Turn]:
    """At most ``count`` of them, the most informative first; none of the replies ``without``."""
    turns = [turn for turn in unrated(database, since=since) if turn.message not in without]
    judged = database.rows(
        "select messages ->> '$[#-1].content', reply from feedback"
        f" where kind in ({_JUDGEMENTS}) order by id desc limit ?",
        (JUDGED,),
    )
    vectors = _vectors(embedder, [(turn.question, turn.reply) for turn in turns])
    rated = [v for v in _vectors(embedder, [(q or "", r) for q, r in judged]) if v is not None]
    candidates = [
        Candidate(i, turn.uncertainty, vector)
        for i, (turn, vector) in enumerate(zip(turns, vectors, strict=True))
    ]
    return [turns[found.key] for found in choose(candidates, rated, count)]


def messages_of(database: Database, message: int) -> list[dict[str, Any]]:
    """The talk up to a reply and with it, as it was sent: the system prompt first."""
    rows = database.rows(
        "with recursive path(id, parent, role, text, depth) as ("
        " select id, parent, role, text, 0 from message where id = ?"
        " union all select m.id, m.parent, m.role, m.text, path.depth + 1"
        " from message m join path on m.id = path.parent)"
        " select role, text from path order by depth desc",
        (message,),
    )
    turns = [{"role": role, "content": text} for role, text in rows]
    system = database.one("select system from message where id = ?", (message,))
    if system is not None and system[0]:
        turns.insert(0, {"role": "system", "content": system[0]})
    return turns


def _vectors(
    embedder: Embedder | None, pairs: Sequence[tuple[str, str]]
) -> list[Sequence[float] | None]:
    if embedder is None or not pairs:
        return [None] * len(pairs)
    found = embedder.embed([f"{question}\n{reply}" for question, reply in pairs])
    return [None if vector is None else array("f", vector) for vector in found]
