"""Two rankings of what is remembered, by words and by vectors, made one.

Scores are added, not ranks: BM25 is large where a word of the question is rare and small where it
is common, and that is how far the words are to be trusted. Ranks forget it, and fused ranks did
worse than the vectors alone. The weights were chosen on the half of the facts, and of MedQuAD's
questions, that no figure is reported of (`selm-export evaluate --memory --split dev`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORDS = 0.003  # what one point of BM25 is worth beside the cosine, which is 1 at most
WORDS_OF_CODE = 0.03  # the same where the question names a code: nothing means nearly the same
MOST = 40.0  # BM25 of a long question grows with each of its words

_CODE = re.compile(r"\d")


def names_code(question: str) -> bool:
    """Whether something with a digit stands in it: an invoice, a part, an error, a time."""
    return _CODE.search(question) is not None


def fuse(
    lexical: Sequence[tuple[int, float]],
    vector: Sequence[tuple[int, float]],
    question: str = "",
) -> list[tuple[int, float]]:
    """The ids of both, best first, each with a score (about its cosine, more for its words).

    ``lexical`` has (id, BM25), higher better, ``vector`` (id, cosine), each best first; either may
    be empty. An id that only ``lexical`` has counts as the least alike that ``vector`` has: reading
    its vector for the exact cosine was measured and found nothing more.
    """
    weight = WORDS_OF_CODE if names_code(question) else WORDS
    words, cosines = dict(lexical), dict(vector)
    least = min(cosines.values(), default=0.0)
    scores = {
        key: max(0.0, cosines.get(key, least)) + weight * min(MOST, max(0.0, words.get(key, 0.0)))
        for key in {**words, **cosines}
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
