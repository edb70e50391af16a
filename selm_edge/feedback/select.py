"""Which replies are worth asking about: what the model was unsure of, and what is new.

Each candidate's score is its uncertainty (mean token entropy) times its novelty (one less the
likeness to the nearest reply that was rated). Of the ten times as many best ones those are chosen
that lie farthest from each other and from what was rated (greedy k-centre; Sener and Savarese,
arXiv 1708.00489): uncertainty alone picks the same question many times over, and noise.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

POOL = 10
"""Candidates looked at for each one chosen."""

Vector = Sequence[float]


@dataclass(frozen=True)
class Candidate:
    """``vector`` of length 1, None where the text has none; ``uncertainty`` at least 0."""

    key: int
    uncertainty: float
    vector: Vector | None = None


def choose(candidates: Sequence[Candidate], rated: Sequence[Vector], count: int) -> list[Candidate]:
    """At most ``count`` candidates, the most informative first.

    ``rated`` are the vectors of replies that have been judged. Without vectors the most uncertain
    are chosen. Ties go to the smaller key.
    """
    distance = dict(_best(candidates, rated, POOL * count))
    pool = list(distance)
    chosen: list[Candidate] = []
    while pool and len(chosen) < count:
        # The first is the best by score; the others are those farthest from all chosen so far.
        best = pool[0] if not chosen else max(pool, key=distance.__getitem__)
        pool.remove(best)
        chosen.append(candidates[best])
        vector = candidates[best].vector
        if vector is not None:
            for i in pool:
                distance[i] = min(distance[i], _distance(candidates[i].vector, vector))
    return chosen


def _best(
    candidates: Sequence[Candidate], rated: Sequence[Vector], count: int
) -> list[tuple[int, float]]:
    """The places of those with the highest scores, best first, each with how far it lies from what
    was rated. A score is no more than the uncertainty, so most are never compared with anything.
    """
    order = sorted(
        range(len(candidates)), key=lambda i: (-candidates[i].uncertainty, candidates[i].key)
    )
    found: list[tuple[float, int, int, float]] = []  # by score and key, as a heap: the worst first
    for i in order:
        candidate = candidates[i]
        if len(found) >= count and candidate.uncertainty < found[0][0]:
            break
        far = _from_nearest(candidate, rated)
        heapq.heappush(found, (candidate.uncertainty * min(far, 1.0), -candidate.key, i, far))
        if len(found) > count:
            heapq.heappop(found)
    return [(i, far) for _, _, i, far in sorted(found, reverse=True)]


def _from_nearest(candidate: Candidate, others: Sequence[Vector]) -> float:
    return min((_distance(candidate.vector, other) for other in others), default=1.0)


def _distance(one: Vector | None, other: Vector) -> float:
    """One less the cosine; 1 for what has no vector."""
    return 1.0 if one is None else 1.0 - sum(map(operator.mul, one, other))


def unsure(entropy: float | None, margin: float | None) -> float:
    """The uncertainty of a reply from what is known of it: entropy in nats, else what the margin
    says; 0 where neither is known or they make no sense."""
    value = entropy if entropy is not None else None if margin is None else 1.0 - margin
    return max(value, 0.0) if value is not None and math.isfinite(value) else 0.0
