"""An embedder that needs no file: texts with the same words are near each other."""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Sequence
from functools import cache


@cache
def _direction(word: str, dim: int) -> tuple[int, ...]:
    bits = hashlib.shake_256(word.encode()).digest(dim // 8)
    return tuple(1 if bits[i // 8] >> (i % 8) & 1 else -1 for i in range(dim))


class WordEmbedder:
    """The sum of one fixed random direction for each word, brought to length 1."""

    def __init__(self, id: str = "words", dim: int = 256) -> None:
        self.id, self.dim = id, dim
        self.embedded = 0

    def embed(self, texts: Sequence[str]) -> list[bytes | None]:
        self.embedded += len(texts)
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> bytes | None:
        directions = [_direction(word, self.dim) for word in re.findall(r"\w+", text.lower())]
        total = [float(sum(column)) for column in zip(*directions, strict=True)]
        length = math.sqrt(sum(x * x for x in total))
        return array("f", [x / length for x in total]).tobytes() if length else None

    def close(self) -> None:
        pass
