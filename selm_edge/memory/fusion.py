"""Two rankings of what is remembered, by words and by vectors, made one.

Scores are fused, not ranks: how far the best stands out is what tells how much to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence

LEXICAL = 0.5  # weight of the words; what is left is the vectors'


def fuse(
    lexical: Sequence[tuple[int, float]],
    vector: Sequence[tuple[int, float]],
    question: str = "",
) -> list[tuple[int, float]]:
    """The ids of both, best first, each with a score from 0 to 1.

    ``lexical`` has (id, BM25), higher better, ``vector`` (id, cosine), each at most some 60 to 100,
    best first; either may be empty. ``question`` is the user's, as typed: what is in it (a code, a
    name) decides how far the words are trusted.
    """
    most = max((score for _, score in lexical), default=0.0)
    words = {key: score / most for key, score in lexical} if most > 0 else {}
    cosines = dict(vector)
    least = min(cosines.values(), default=0.0)
    scores = {
        key: LEXICAL * words.get(key, 0.0) + (1 - LEXICAL) * max(0.0, cosines.get(key, least))
        for key in {**words, **cosines}
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
