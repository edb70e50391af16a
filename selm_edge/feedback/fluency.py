"""How expected the words of stored replies are to a model: their perplexity.

A base model, without adapters, makes a judge that stays the same while adapters come and go. Low is
fluent; very low is a reply that says what everybody would (a loop has the lowest of all).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selm_edge.errors import ContextError
from selm_edge.feedback.periods import OverTime, over_time
from selm_edge.feedback.unrated import messages_of

if TYPE_CHECKING:
    from selm_edge.model import Model
    from selm_edge.reply import Prompt
    from selm_edge.session import Session
    from selm_edge.store.database import Database

NEWEST = 50
"""Replies that are measured where nobody says how many."""
# The core reads that many tokens at once, and between two of them Ctrl+C is heard.
_PROMPT_PIECE = 256
_REPLY_PIECE = 16  # with the very arithmetic that a reply is written with
_LARGEST = 600.0  # exp() of a sum of a vocabulary of logits up to here is a float


@dataclass(frozen=True)
class Perplexity:
    """``perplexity`` of all tokens of the replies: exp of their mean negative log-likelihood, 1 to
    the size of the vocabulary; None where no reply could be measured. ``left_out``: replies whose
    question does not fit into the context."""

    replies: int
    tokens: int
    perplexity: float | None
    left_out: int

    def as_json(self) -> dict[str, Any]:
        return {
            "replies": self.replies, "tokens": self.tokens, "perplexity": self.perplexity,
            "left_out": self.left_out,
        }  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A reply of a conversation, by the id of its ``message``; times in ms."""

    message: int
    text: str
    created: int
    model: str | None


@dataclass(frozen=True)
class Measured:
    """The negative log-likelihood of a reply's ``tokens``, in nats, together; 0 of 0 where its
    question does not fit into the context."""

    created: int
    model: str | None
    nats: float
    tokens: int


def replies(database: Database, *, since: int = 0, limit: int = NEWEST) -> list[Stored]:
    """The newest replies that a model wrote to the end or to the limit, newest first."""
    rows = database.rows(
        "select id, text, created, model from message where role = 'assistant'"
        " and finish_reason in ('stop', 'length') and length(text) > 0 and created >= ?"
        " order by id desc limit ?",
        (since, limit),
    )
    return [Stored(*row) for row in rows]


def measured(
    model: Model,
    database: Database,
    stored: Iterable[Stored],
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Measured]:
    """One after the other, each in a session of its own.

    A reply is read as it was asked for: the system prompt and the turns before it, the oldest left
    out where they do not fit, and what was recalled from memory left out, for its text may be
    forgotten. Of a reply that is longer than the context its beginning counts. ``cancelled`` is
    asked between pieces of text and ends it.
    """
    for one in stored:
        ids = model.tokenize(one.text, add_special=False)
        prompt = _prompt(model, messages_of(database, one.message)[:-1], len(ids))
        ids = ids[: model.context - len(prompt)] if prompt else []
        nats: float | None = 0.0
        if prompt and ids:
            with model.session() as session:
                nats = _nats(session, prompt.ids, ids, cancelled)
        if nats is None:
            return
        yield Measured(one.created, one.model, nats, len(ids))


def _prompt(model: Model, turns: Sequence[dict[str, Any]], room: int) -> Prompt | None:
    """None where the question is too long, or was deleted meanwhile."""
    try:
        return model.chat_prompt(turns, on_overflow="trim", max_tokens=room + 1) if turns else None
    except ContextError:
        return None


def fluency(found: Sequence[Measured]) -> OverTime[Perplexity]:
    """Perplexity (Jelinek et al. 1977, doi 10.1121/1.2016299): lower is more expected."""
    return over_time(found, _perplexity)


def _perplexity(found: Sequence[Measured]) -> Perplexity:
    whole = [one for one in found if one.tokens]
    tokens = sum(one.tokens for one in whole)
    mean = math.fsum(one.nats for one in whole) / tokens if tokens else None
    return Perplexity(
        len(whole), tokens, None if mean is None else math.exp(min(mean, _LARGEST)),
        len(found) - len(whole),
    )  # fmt: skip


def _nats(
    session: Session, prompt: Sequence[int], reply: Sequence[int], cancelled: Callable[[], bool]
) -> float | None:
    """Of the tokens of ``reply`` after ``prompt``; None where it was cancelled."""
    nats: list[float] = []
    for start in range(0, len(prompt), _PROMPT_PIECE):
        if cancelled():
            return None
        piece = prompt[start : start + _PROMPT_PIECE]
        last = start + len(piece) == len(prompt)
        rows = session.eval(piece, "last" if last else "none")
    nats.append(_surprise(rows, 0, reply[0]))
    for start in range(0, len(reply) - 1, _REPLY_PIECE):
        if cancelled():
            return None
        # The last token of all has nothing to foretell.
        piece = reply[start : min(start + _REPLY_PIECE, len(reply) - 1)]
        rows = session.eval(piece)
        nats += [_surprise(rows, i, reply[start + i + 1]) for i in range(len(piece))]
    return math.fsum(nats)


def _surprise(rows: memoryview, row: int, token: int) -> float:
    """-log softmax of one row of logits [tokens, vocab] at ``token``, in double."""
    size = rows.shape[1] if rows.shape else 0
    logits = rows.cast("B").cast("f")[row * size : (row + 1) * size].tolist()
    top = max(logits)
    if abs(top) > _LARGEST:  # so rare that the others need not pay for it
        logits = [logit - top for logit in logits]
    return math.log(sum(map(math.exp, logits))) - logits[token]
