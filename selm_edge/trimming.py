"""What stays out of a prompt that does not fit: always the oldest, never more than is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

REPLY_ROOM = 256
"""Tokens kept free for a reply of unknown length (at most a quarter of the context)."""


def reply_room(context: int, max_tokens: int | None = None) -> int:
    """Positions that a prompt should leave free; at most half the context."""
    if max_tokens is None:
        return max(1, min(REPLY_ROOM, context // 4))
    return max(1, min(max_tokens, context // 2))


def cut_points(roles: Sequence[str], start: int = 0) -> list[int]:
    """Where a conversation may begin instead of at ``start``: only with a question."""
    return [at for at in range(start + 1, len(roles)) if roles[at] == "user"]


def first_that_fits(points: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Index of the first point that fits, ``len(points)`` if none does; later ones fit better."""
    low, high = 0, len(points)
    while low < high:
        middle = (low + high) // 2
        if fits(points[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def cut_front(text: str, fits: Callable[[str], bool]) -> tuple[str, str] | None:
    """The end of ``text`` that fits and what was cut ("12 lines"); None where nothing fits.

    Whole lines go; where the last line alone is too long, its words; where a word is, its letters.
    """
    whole = text

    def kept(at: int) -> bool:
        return fits(text[at:])

    for noun, pattern in (("line", r"(?<=\n)[^\n]"), ("word", r"(?<=\s)\S"), ("character", "")):
        points: Sequence[int] = range(1, len(text))
        if pattern:
            points = [found.start() for found in re.finditer(pattern, text)]
        index = first_that_fits(points, kept)
        if index < len(points):
            text = text[points[index] :]
            gone = whole[: len(whole) - len(text)]
            count = {"line": gone.count("\n"), "word": len(gone.split())}.get(noun, len(gone))
            return text, f"{count} {noun}" if count == 1 else f"{count} {noun}s"
        if points and pattern:
            text = text[points[-1] :]
    return None
