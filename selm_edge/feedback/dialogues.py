"""How good the stored conversations were, over time: four measures, each of which sees one thing.

- **satisfaction**: the share of judged replies that the user was content with (`satisfaction`).
- **corrections**: how near replies came to what the user wrote in their place: BLEU, precision,
  recall and F1 of words (`corrections`).
- **coherence**: whether a reply stays with what was asked, and the next question with the reply, by
  the likeness of their embeddings (`coherence`).
- **fluency**: how expected the words of replies are to a model (`selm_edge.feedback.fluency`).
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from selm_edge.feedback.overlap import Grams, overlap
from selm_edge.feedback.periods import OverTime, over_time

if TYPE_CHECKING:
    from selm_edge.feedback.log import Feedback
    from selm_edge.memory.embedder import Embedder
    from selm_edge.store.database import Database

MOST_DIALOGUES = 1000
"""Conversations that coherence looks at, the newest."""
_Z = 1.959964  # of a normal distribution 95 % lie within so many standard deviations


# ---- Satisfaction --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opinions:
    """How many replies were called good (``up``), bad (``down``), or ``corrected``, whatever their
    thumb. ``regenerated``, a weak "no", is beside these and part of no share."""

    up: int
    down: int
    corrected: int
    regenerated: int

    @property
    def judged(self) -> int:
        return self.up + self.down + self.corrected

    @property
    def share(self) -> float | None:
        """Of the judged replies those called good, 0 to 1; None where none was judged."""
        return self.up / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the share lies with a confidence of 95 %: Wilson's score interval (1927), which
        holds for few replies too."""
        n, share = self.judged, self.share
        if share is None:
            return None
        middle = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
        half = _Z / (1 + _Z * _Z / n) * math.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def as_json(self) -> dict[str, Any]:
        interval = self.interval
        return {"share": self.share, "interval": interval and list(interval), **asdict(self)}


@dataclass(frozen=True)
class _Opinion:
    created: int
    model: str | None
    kind: str


def satisfaction(rows: Sequence[Feedback]) -> OverTime[Opinions]:
    """Of the opinions in force (`FeedbackLog.rows`). A reply counts once: its correction speaks for
    it, as in an export."""
    corrected = {row.record.message for row in rows if row.kind == "correction"} - {None}
    opinions = [
        _Opinion(row.created, row.record.model, row.kind)
        for row in rows
        if row.kind not in ("up", "down") or row.record.message not in corrected
    ]
    return over_time(opinions, _opinions)


def _opinions(found: Sequence[_Opinion]) -> Opinions:
    def count(kind: str) -> int:
        return sum(one.kind == kind for one in found)

    return Opinions(count("up"), count("down"), count("correction"), count("regeneration"))


# ---- Corrections ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nearness:
    """How near replies came to their corrections. ``bleu`` of the corpus, 0 to 100, None where all
    replies are shorter than its 4 tokens; ``precision``, ``recall`` and ``f1`` of words, 0 to 1,
    the mean over replies. None of them where nothing was corrected."""

    corrections: int
    bleu: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Corrected:
    created: int
    model: str | None
    grams: Grams
    overlap: tuple[float, float, float]


def corrections(rows: Sequence[Feedback]) -> OverTime[Nearness]:
    """Of each correction in force: the reply against the user's text as its reference. 1 and 100
    would say that nothing had to be changed."""
    found = [
        _Corrected(
            row.created,
            row.record.model,
            Grams.of(row.record.reply, row.correction),
            overlap(row.record.reply, row.correction),
        )
        for row in rows
        if row.correction is not None
    ]
    return over_time(found, _nearness)


def _nearness(found: Sequence[_Corrected]) -> Nearness:
    if not found:
        return Nearness(0)
    grams = Grams.total(one.grams for one in found)
    precision, recall, f1 = map(fmean, zip(*(one.overlap for one in found), strict=True))
    return Nearness(len(found), grams.bleu if grams.long_enough else None, precision, recall, f1)


# ---- Coherence -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Likeness:
    """Cosines of the embeddings of neighbouring turns, -1 to 1, the mean over dialogues: a question
    and its reply (``answers``), a reply and the next question (``follows``; None where no dialogue
    goes on). ``chance`` is that of questions and the replies of the dialogue after theirs: what
    says how much of ``answers`` is the subject; None for a single dialogue."""

    dialogues: int
    answers: float | None = None
    follows: float | None = None
    chance: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Dialogue:
    created: int  # of its last turn
    model: str | None
    answers: float
    follows: float | None
    chance: float | None = None


@dataclass(frozen=True)
class _Turn:
    role: str
    text: str
    created: int
    model: str | None
    finish_reason: str | None

    @property
    def made(self) -> bool:
        """Whether a model wrote all of it: neither cut short nor the user's own correction."""
        return self.role == "assistant" and self.finish_reason in ("stop", "length")


def coherence(
    database: Database,
    embedder: Embedder,
    *,
    since: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> OverTime[Likeness]:
    """Of the branch on show of each conversation with a reply of a model, the newest
    `MOST_DIALOGUES`. Likeness of neighbours as a measure of coherence: Foltz, Kintsch and Landauer
    1998 (doi 10.1080/01638539809545029), there with other embeddings. ``since`` in ms.

    SelmError where the embedder cannot go on. ``cancelled`` ends it with what there is so far.
    """
    found: list[_Dialogue] = []
    before: Sequence[float] | None = None  # a question of the dialogue before
    for turns in _dialogues(database, since):
        if cancelled():
            break
        vectors = [
            None if vector is None else array("f", vector)
            for vector in embedder.embed([turn.text for turn in turns])
        ]
        answers, follows, asked, chance = list[float](), list[float](), None, None
        for i in range(1, len(turns)):
            one, other = vectors[i - 1], vectors[i]
            if one is None or other is None or not (turns[i].made or turns[i - 1].made):
                continue
            (answers if turns[i].made else follows).append(_cosine(one, other))
            if turns[i].made and asked is None:
                asked = one
                chance = None if before is None else _cosine(before, other)
        if answers:
            before = asked
            model = next((t.model for t in reversed(turns) if t.made), None)
            found.append(
                _Dialogue(
                    turns[-1].created, model, fmean(answers), fmean(follows) if follows else None,
                    chance,
                )
            )  # fmt: skip
    return over_time(found, _likeness)


def _dialogues(database: Database, since: int) -> Iterator[list[_Turn]]:
    """The turns on show of each conversation, oldest conversation first."""
    rows = database.rows(
        "with recursive newest(id, leaf) as ("
        "  select id, leaf from conversation where updated >= ? order by updated desc limit ?),"
        " up(conversation, id, parent, depth) as ("
        "  select newest.id, m.id, m.parent, 0 from newest join message m on m.id = newest.leaf"
        "  union all"
        "  select up.conversation, m.id, m.parent, depth + 1 from message m join up"
        "    on m.id = up.parent)"
        " select up.conversation, m.role, m.text, m.created, m.model, m.finish_reason"
        " from up join message m on m.id = up.id order by up.conversation, depth desc",
        (since, MOST_DIALOGUES),
    )
    for _, turns in groupby(rows, key=operator.itemgetter(0)):
        yield [_Turn(*turn[1:]) for turn in turns]


def _likeness(found: Sequence[_Dialogue]) -> Likeness:
    if not found:
        return Likeness(0)
    return Likeness(
        len(found),
        fmean(one.answers for one in found),
        _mean([one.follows for one in found]),
        _mean([one.chance for one in found]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(map(operator.mul, one, other))  # both are of length 1
