"""Where sentences end, in any language that marks it; and cutting what is too long to be one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Span = tuple[int, int]

_END = re.compile(
    r"(?<![.!?…])[.!?…]+[\"'”\u2019»)\]]*(?=\s)"  # end marks, closing quotes, space
    r"|[。\uff01\uff1f｡]+[」』”\u2019\uff09]*"  # without space in Chinese and Japanese
    r"|[।॥؟\u06d4][\"'”\u2019)]*(?=\s)"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|No|Nr|Fig|Figs|Eq|Vol|pp|cf|ca|approx|Inc"
    r"|Ltd|Co|Corp|Gen|Col|Lt|Sgt|Rev|Hon|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|e\.g|i\.e"
    r"|al|z\.B|d\.h|bzw|usw|u\.a|p|n\.b|v|M|Mme)|(?:\b[A-Za-z]\.)+[A-Za-z])\.\Z"
)
_LONGEST_WORD = 400  # characters that are searched for a space


def sentences(text: str) -> list[Span]:
    """The sentences of a paragraph, without the space between them.

    Where it is not clear whether one ends (an abbreviation, a small letter follows), it goes on.
    """
    spans, start = list[Span](), 0
    for end in _END.finditer(text):
        at = end.end()
        following = _next_sign(text, at)
        if following.islower():
            continue
        mark = end.group()
        if mark == "." and _ABBREVIATION.search(text, max(start, at - 12), at):
            continue
        _keep(spans, text, start, at)
        start = at
    _keep(spans, text, start, len(text))
    return spans


def _next_sign(text: str, at: int) -> str:
    for sign in text[at : at + 40]:
        if not sign.isspace():
            return sign
    return ""


def _keep(spans: list[Span], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start < end:
        spans.append((start, end))


def slices(text: str, most: int, count: Callable[[str], int]) -> Iterator[Span]:
    """``text`` in parts of at most ``most`` tokens, cut between words where there are any."""
    start = 0
    while start < len(text):
        if text[start].isspace():
            start += 1
            continue
        end = _word_end(text, start, min(len(text), start + most * 4))
        while count(text[start:end]) > most and end - start > 1:
            end = _word_end(text, start, start + (end - start) // 2)
        kept = end
        while text[kept - 1].isspace():
            kept -= 1
        yield start, kept
        start = end


def _word_end(text: str, start: int, end: int) -> int:
    """The last end of a word at or before ``end``; ``end`` where a single word reaches it."""
    if end >= len(text) or text[end].isspace():
        return end
    for at in range(end - 1, max(start, end - _LONGEST_WORD), -1):
        if text[at].isspace():
            return at
    return end
