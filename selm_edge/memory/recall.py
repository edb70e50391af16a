"""From a question to what is remembered about it.

Words (BM25) and vectors each give their ranking; both are fused. Pinned memories come first, then
the best, each as unlike the ones before it as it can be, until the limit or the budget is reached.
Where nothing is relevant, nothing is recalled.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from selm_edge.memory import lexical
from selm_edge.memory.fusion import fuse, names_code
from selm_edge.memory.memories import Filters, Kind, Memories, Memory, overlap
from selm_edge.memory.vectors import cosine
from selm_edge.store.reading import Reader, done

_NEWEST = 2000  # rows looked at where all words are common
DEPTH = 60  # candidates of each ranking
_MOST_PASSAGES = 2000  # of one document, compared with the question one by one
_WEIGHED = 32  # of the fused ones, how many are read and compared with each other
# From this fused score on a memory is about the question. On the dev half of the facts (465
# questions with an answer among 611 facts) 0.2 costs 2 % of the answers that are found, 0.25 9 %
# and 0.3 18 %; questions without an answer score as high as those with one. What shares a word with
# the question needs half; a question of nothing but small words ("How are you?") twice as much.
RELEVANT = 0.2
_SAME = 0.92  # alike enough to say the same: of two passages the second is left out
_RELATED = 0.5  # alike enough, by vectors or words, that a newer correction stands before a fact
_DIVERSITY = 0.3  # share of a score that likeness to what is chosen already can take


@dataclass(frozen=True)
class Recalled:
    """One memory found, and why: the places it had in each ranking (from 1), the words of the
    question it holds, its cosine with the question. ``age_ms`` counts from its last change."""

    memory: Memory
    score: float
    lexical_rank: int | None
    vector_rank: int | None
    age_ms: int
    cosine: float | None = None
    words: tuple[str, ...] = ()


def recall(
    memories: Memories,
    question: str,
    *,
    space: int | None = None,
    kinds: Sequence[Kind] | None = None,
    since: int | None = None,
    until: int | None = None,
    document: int | None = None,
    limit: int = 8,
    budget: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    relevant_only: bool = True,
) -> list[Recalled]:
    """What is remembered about ``question``, pinned first, then by relevance.

    ``budget`` is in tokens, as ``count_tokens`` counts a text; a memory that would pass it is left
    out. ``since`` and ``until`` bound the time of writing, in milliseconds. Superseded memories and
    those marked never to be recalled stay out. ``relevant_only`` False, for a search by the user
    in person, takes whatever matches best.
    """
    filters = Filters(space, kinds, since, until, document=document)
    pinned = memories.list(replace(filters, pinned=True), limit) if relevant_only else []
    found = _candidates(memories, question, filters, relevant_only)
    chosen = _diverse(memories, found, limit)
    head = [_with_rank(memory, found) for memory in pinned]
    known = {one.memory.id for one in head}
    ranked = [*head, *(one for one in chosen if one.memory.id not in known)][:limit]
    return _explained(memories, question, _within(ranked, budget, count_tokens))


Ranking = list[tuple[int, float]]
"""Memories and their scores, best first."""


def rankings(
    memories: Memories, question: str, filters: Filters
) -> tuple[Ranking, Ranking, Ranking]:
    """What matches ``question`` by words (BM25), by vectors (cosine), and by both."""
    database = memories.database
    read = partial(_by_words, question=question, filters=filters)
    # Words and vectors at once, where there is enough of them for a second connection.
    large = memories.vectors_problem is None and memories.index.large
    words = database.begin(read) if large else done(read, database)
    vector = memories.embed([question])[0]
    by_vector = [] if vector is None else _by_vector(memories, vector, filters)
    by_words = words.result()
    return by_words, by_vector, fuse(by_words, by_vector, question)


def _candidates(
    memories: Memories, question: str, filters: Filters, relevant_only: bool
) -> list[Recalled]:
    by_words, by_vector, fused = rankings(memories, question, filters)
    cosines = dict(by_vector)
    word_ranks = {key: rank for rank, (key, _) in enumerate(by_words, 1)}
    vector_ranks = {key: rank for rank, (key, _) in enumerate(by_vector, 1)}
    if relevant_only:
        fused = _relevant(question, by_words, by_vector, fused)
    scores = dict(fused[:_WEIGHED])
    now = time.time_ns() // 1_000_000
    return [
        Recalled(
            memory,
            scores[memory.id],
            word_ranks.get(memory.id),
            vector_ranks.get(memory.id),
            max(0, now - memory.updated),
            cosines.get(memory.id),
        )
        for memory in memories.get_many(list(scores))
    ]


def _by_vector(memories: Memories, vector: bytes, filters: Filters) -> Ranking:
    """Memories near in meaning, nearest first, and their cosine with the question."""
    bounds = (filters.space, filters.kinds, filters.since, filters.until)
    if filters.document is None:
        return memories.index.search(vector, DEPTH, bounds)
    passages = [one.id for one in memories.list(filters, _MOST_PASSAGES)]
    return memories.index.nearest_of(vector, passages)[:DEPTH]


def _relevant(question: str, by_words: Ranking, by_vector: Ranking, fused: Ranking) -> Ranking:
    """Without what is too unlike the question to be about it."""
    matched = dict(by_words)
    if not by_vector or names_code(question):
        return [one for one in fused if one[1] >= RELEVANT or one[0] in matched]
    least = RELEVANT if lexical.words_of(question) else 2 * RELEVANT
    return [one for one in fused if one[1] >= (least / 2 if one[0] in matched else least)]


def _by_words(reader: Reader, question: str, filters: Filters) -> Ranking:
    """Memories that hold words of the question, best BM25 first, and that BM25 (higher better)."""
    query = lexical.plan(reader, question)
    if query is None:
        return []
    condition, values = filters.sql()
    # "cross join": the index of words comes first, whatever SQLite thinks of the filters.
    if query.scored:
        sql = (
            "select memory.id, -rank from memory_fts"
            " cross join memory on memory.id = memory_fts.rowid"
            f" where memory_fts match ? and {condition} order by rank limit ?"
        )
    else:  # too many to score: the newest, all alike
        sql = (
            "select memory.id, 1.0 from (select rowid from memory_fts where memory_fts match ?"
            f" order by rowid desc limit {_NEWEST}) found"
            f" cross join memory on memory.id = found.rowid where {condition}"
            " order by memory.id desc limit ?"
        )
    rows = reader.rows(sql, (query.match, *values, DEPTH))
    return [(row[0], query.scale * float(row[1])) for row in rows]


# -- choosing --------------------------------------------------------------------------------------


def _diverse(memories: Memories, found: Sequence[Recalled], limit: int) -> list[Recalled]:
    """The best, each weighed down by its likeness to those before it (maximal marginal relevance).

    Of two that say the same only the better stays. A newer correction goes before the older fact it
    may be about; the fact stays, since likeness cannot tell a correction from another fact.
    """
    likeness = _Likeness(memories, found)
    rest = sorted(found, key=lambda one: -one.score)
    chosen: list[Recalled] = []
    while rest and len(chosen) < limit:
        best, nearest = _least_alike(rest, chosen, likeness)
        rest.remove(best)
        if nearest >= _SAME:
            continue
        correction = next((one for one in rest if _corrects(one, best, likeness)), None)
        if correction is not None:
            rest.remove(correction)
            insort(rest, best, key=lambda one: -one.score)
            best = replace(correction, score=max(best.score, correction.score))
        chosen.append(best)
    return chosen


def _least_alike(
    rest: Sequence[Recalled], chosen: Sequence[Recalled], likeness: _Likeness
) -> tuple[Recalled, float]:
    """Of ``rest`` (best score first) the one whose weighed score is highest, and its likeness to
    the nearest of ``chosen``. Weighing only takes away, so most are never compared with any."""
    best, most, alike = rest[0], -1.0, 0.0
    for one in rest:
        if one.score <= most:
            break
        nearest = max((likeness(one.memory, other.memory) for other in chosen), default=0.0)
        weighed = one.score * (1 - _DIVERSITY * nearest)
        if weighed > most:
            best, most, alike = one, weighed, nearest
    return best, alike


def _corrects(new: Recalled, old: Recalled, likeness: _Likeness) -> bool:
    return (
        new.memory.kind == "correction"
        and old.memory.kind in {"fact", "correction"}
        and new.memory.created > old.memory.created
        and likeness(new.memory, old.memory) >= _RELATED
    )


class _Likeness:
    """How alike two of the memories found are: by vectors, else by words; each is read, and each
    pair compared, once."""

    def __init__(self, memories: Memories, found: Sequence[Recalled]) -> None:
        ids = [one.memory.id for one in found]
        usable = memories.vectors_problem is None
        self._vectors = memories.index.vectors(ids) if usable else {}
        self._words: dict[int, frozenset[str]] = {}
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, one: Memory, other: Memory) -> float:
        pair = (one.id, other.id)
        if pair not in self._known:
            self._known[pair] = self._compared(one, other)
        return self._known[pair]

    def _compared(self, one: Memory, other: Memory) -> float:
        if one.id in self._vectors and other.id in self._vectors:
            return max(0.0, cosine(self._vectors[one.id], self._vectors[other.id]))
        return overlap(self._of(one), self._of(other))

    def _of(self, memory: Memory) -> frozenset[str]:
        if memory.id not in self._words:
            self._words[memory.id] = frozenset(lexical.words_of(memory.text))
        return self._words[memory.id]


def _within(
    ranked: Sequence[Recalled], budget: int | None, count_tokens: Callable[[str], int] | None
) -> list[Recalled]:
    if budget is None or count_tokens is None:
        return list(ranked)
    kept: list[Recalled] = []
    for one in ranked:
        tokens = count_tokens(one.memory.text)
        if tokens <= budget:
            kept.append(one)
            budget -= tokens
    return kept


# -- explaining ------------------------------------------------------------------------------------


def _with_rank(memory: Memory, found: Sequence[Recalled]) -> Recalled:
    """A pinned memory, with the ranks it has for this question if it has any."""
    for one in found:
        if one.memory.id == memory.id:
            return one
    age = max(0, time.time_ns() // 1_000_000 - memory.updated)
    return Recalled(memory, 0.0, None, None, age)


def _explained(memories: Memories, question: str, ranked: list[Recalled]) -> list[Recalled]:
    """With the words of the question that each holds, as the index matches them (by stem)."""
    reader = memories.database
    phrases = [[stem for _, _, stem in reader.stems(word)] for word in lexical.words_of(question)]
    phrases.sort(key=len, reverse=True)  # of what is written together, the whole before its parts
    return [replace(one, words=_held(reader, one.memory.text, phrases)) for one in ranked]


def _held(reader: Reader, text: str, phrases: Sequence[Sequence[str]]) -> tuple[str, ...]:
    raw, places = text.encode(), reader.stems(text)
    stems = [stem for _, _, stem in places]
    found: dict[str, None] = {}
    at = 0
    while at < len(stems):
        size = next((len(p) for p in phrases if p and stems[at : at + len(p)] == p), 0)
        if size:
            found[raw[places[at][0] : places[at + size - 1][1]].decode().casefold()] = None
        at += max(1, size)
    return tuple(found)
