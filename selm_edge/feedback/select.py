"""Which replies are worth asking about: what the model was unsure of, what is new, and what is
typical of many others.

Each candidate's score is its uncertainty times its novelty (nothing for what is like a reply that
was rated, in full from a distance of `NEW` on). Among those of the highest scores the best comes
first; each next one is the one that adds most to how well the pool's scores are covered, every
candidate by the likest that was chosen of its nearest (greedy facility location). So the centres of
what the model is unsure of come first, the largest first, and no question twice. Those that lie
farthest from each other (k-centre) would be the odd ones, which teach less than a random choice:
scripts/active_selection.py measures it.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

POOL = 10
"""Candidates looked at for each one chosen."""
LEAST = 500
"""Candidates looked at for however few: of less, the likest to many is not typical of much."""
NEW = 0.25
"""One less the cosine to the nearest rated, from which on a candidate is as new as can be."""
NEAREST = 32
"""A candidate is covered by one of so many at most."""
_RESCORED = 8  # of the rated, the nearest by their signs are compared exactly

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
    are chosen. Ties go to the higher score, then to the smaller key.
    """
    best = _best(candidates, rated, max(LEAST, POOL * count)) if count > 0 else []
    pool, scores = [candidates[i] for i, _ in best], [score for _, score in best]
    likest = [0.0] * len(pool)  # of each candidate to what is chosen
    covered = _covered(pool)

    def gain(place: int) -> float:
        return sum(scores[j] * max(alike - likest[j], 0.0) for j, alike in covered[place])

    # Gains only fall, so one worked out anew that is still the largest is the largest of all.
    heap = [(-math.inf if i == 0 else -gain(i), i) for i in range(len(pool))]
    heapq.heapify(heap)
    chosen: list[Candidate] = []
    while heap and len(chosen) < count:
        place = heap[0][1]
        now = (-gain(place) if chosen else -math.inf, place)
        if now > heap[0]:
            heapq.heapreplace(heap, now)
            continue
        heapq.heappop(heap)
        chosen.append(pool[place])
        for j, alike in covered[place]:
            likest[j] = max(likest[j], alike)
    return chosen


def _best(
    candidates: Sequence[Candidate], rated: Sequence[Vector], count: int
) -> list[tuple[int, float]]:
    """The places of those with the highest scores, best first, each with its score. A score is no
    more than the uncertainty, so most are never compared with anything.
    """
    order = sorted(
        range(len(candidates)), key=lambda i: (-candidates[i].uncertainty, candidates[i].key)
    )
    known = [_signs(vector) for vector in rated]
    found: list[tuple[float, int, int]] = []  # by score and key, as a heap: the worst first
    for i in order:
        candidate = candidates[i]
        if len(found) >= count and candidate.uncertainty < found[0][0]:
            break
        score = candidate.uncertainty * _novelty(candidate.vector, rated, known)
        heapq.heappush(found, (score, -candidate.key, i))
        if len(found) > count:
            heapq.heappop(found)
    return [(i, score) for score, _, i in sorted(found, reverse=True)]


def _novelty(vector: Vector | None, rated: Sequence[Vector], known: Sequence[int]) -> float:
    if vector is None:
        return 1.0
    near = _nearest(_signs(vector), known, _RESCORED)
    far = min((1.0 - _cosine(vector, rated[i]) for i in near), default=1.0)
    return min(max(far, 0.0) / NEW, 1.0)


def _covered(pool: Sequence[Candidate]) -> list[list[tuple[int, float]]]:
    """For each candidate those that it covers, itself too, and how like they are."""
    covered = [[(i, 1.0)] for i in range(len(pool))]
    having = [(i, vector) for i, c in enumerate(pool) if (vector := c.vector) is not None]
    signs = [_signs(vector) for _, vector in having]
    for (j, vector), own in zip(having, signs, strict=True):
        for place in _nearest(own, signs, NEAREST):
            i, other = having[place]
            if i != j:
                covered[i].append((j, max(_cosine(vector, other), 0.0)))
    return covered


def _signs(vector: Vector) -> int:
    """A bit for each number: counting those that differ takes a hundredth of a cosine's time."""
    return int("1" + "".join(["1" if x > 0 else "0" for x in vector]), 2)


def _nearest(signs: int, others: Iterable[int], count: int) -> list[int]:
    """The places of those of whose signs the fewest differ, of equal ones the first."""
    differ = sorted([((signs ^ other).bit_count(), i) for i, other in enumerate(others)])
    return [i for _, i in differ[:count]]


def _cosine(one: Vector, other: Vector) -> float:
    total: float = sum(map(operator.mul, one, other))
    return total


def unsure(entropy: float | None, margin: float | None) -> float:
    """The uncertainty of a reply from what is known of it, 0 to 1: what its margin lacks of 1, else
    from the entropy in nats; 0 where neither is known or they make no sense.

    The margin comes first: entropy is high too where many likely words mean the same.
    """
    if margin is not None and math.isfinite(margin):
        return min(max(1.0 - margin, 0.0), 1.0)
    if entropy is not None and math.isfinite(entropy):
        return 1.0 - math.exp(-max(entropy, 0.0))
    return 0.0
