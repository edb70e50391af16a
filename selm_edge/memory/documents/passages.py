"""Passages: what is remembered, found and cited of a document, 200 to 400 tokens each.

Blocks become pieces: a paragraph, a heading, a line of code, or a sentence where the paragraph is
too long for one passage. Each piece knows how good a place there is to cut before it. A window of
pieces, a little more than a passage, slides over the document, and is cut at the best place that
leaves a passage of the right size. So whatever the document's length, only a window is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile

from selm_edge.memory.documents.blocks import Block, Unit
from selm_edge.memory.documents.sentences import sentences, slices
from selm_edge.memory.documents.tokens import estimate

LARGEST = 400
"""Tokens that a passage has at most."""
SMALLEST = 200
"""Tokens that a passage has at least, but for the last of a unit and those before a page's end or
a paragraph that must not be cut."""
OVERLAP = 60
"""Tokens of a cut paragraph that the next passage repeats, in whole sentences (15 %)."""

_LONGEST_HEADING = 60  # tokens; a longer one is a paragraph
_PATH_LENGTH = 300  # characters

# How good a place for a cut there is before a piece; headings are their level, 1 to 6.
_PAGE, _PARAGRAPH, _BLANK, _DEEP_BLANK, _SENTENCE, _WORD, _AFTER_HEADING = 0, 7, 8, 9, 10, 11, 12

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document.

    ``heading`` is the path of headings that holds for all of it, as "Chapter › Section"; ``page``
    the one it begins on; ``line`` and ``line_end`` the lines of the file; ``tokens`` what its
    parts have, one by one. ``unit`` is where the unit (an article) began and ``number`` which
    passage of it this is, from 0: together, where to go on.
    """

    text: str
    heading: str
    page: int | None
    line: int | None
    line_end: int | None
    tokens: int
    unit: Unit | None
    number: int


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    gap: str  # what stood before it in its block
    tokens: int  # of both
    rank: int
    line: int | None
    line_end: int | None
    block: Block
    path: tuple[str, ...]
    first: bool  # of its block
    last: bool
    repeated: bool = False


def passages(blocks: Iterable[Block], count_tokens: Count = estimate) -> Iterator[Passage]:
    """The passages of a document, in order; every character of it is in one of them.

    A document, article or page that fits one passage is one passage. Only a paragraph that is
    longer than a passage is cut, between sentences, and then the next passage repeats the last
    of them. A sentence is cut only where it is longer than a passage itself. Tables repeat their
    header and fences their opening line on every part.
    """
    unit: Unit | None = None
    pending: list[Block] = []

    def flushed() -> Iterator[Passage]:
        nonlocal pending
        taken, pending = pending, []
        yield from _pack(_pieces(taken, count_tokens), unit, count_tokens)

    # A unit without a cursor of its own is the whole document: that one is streamed.
    source = iter(blocks)
    for block in source:
        if block.unit is not None:
            yield from flushed()
            unit = block.unit
        pending.append(block)
        if unit is None:
            yield from _pack(_pieces(_chained(pending, source), count_tokens), None, count_tokens)
            return
    yield from flushed()


def _chained(first: list[Block], rest: Iterator[Block]) -> Iterator[Block]:
    yield from first
    yield from rest


# -- pieces --------------------------------------------------------------------------------------


def _pieces(blocks: Iterable[Block], count: Count) -> Iterator[_Piece]:
    path: list[tuple[int, str]] = []
    headings = 0  # tokens of the headings that stand right before
    page: int | None = None
    for block in blocks:
        rank = _AFTER_HEADING if headings else _PARAGRAPH
        if block.page != page:
            page, rank, headings = block.page, _PAGE, 0
        if block.kind == "heading":
            tokens = count("\n\n" + block.text)
            if tokens <= _LONGEST_HEADING:
                path = [entry for entry in path if entry[0] < block.level]
                path.append((block.level, block.text))
                if headings + tokens > LARGEST // 2:
                    headings = 0
                rank = rank if headings or rank == _PAGE else block.level
                headings += tokens
                names = tuple(name for _, name in path)
                yield _whole(block, tokens, rank, names)
                continue
        names = tuple(name for _, name in path)
        tokens = count("\n\n" + block.text)
        if tokens + headings <= LARGEST:
            yield _whole(block, tokens, rank, names)
        elif block.kind == "lines":
            yield from _lines(block, rank, names, count)
        else:
            yield from _sentences(block, rank, names, count)
        headings = 0


def _whole(block: Block, tokens: int, rank: int, path: tuple[str, ...]) -> _Piece:
    return _Piece(
        block.text, "\n\n", tokens, rank, block.line, block.line_end, block, path, True, True
    )


def _sentences(block: Block, rank: int, path: tuple[str, ...], count: Count) -> Iterator[_Piece]:
    text, cuts = block.text, list[_Cut]()
    for start, end in sentences(text):
        tokens = count("\n\n" + text[start:end])
        if tokens <= LARGEST:
            cuts.append(_Cut(start, end, _SENTENCE, tokens))
            continue
        for at, until in slices(text[start:end], OVERLAP, count):
            tokens = count("\n\n" + text[start + at : start + until])
            cuts.append(_Cut(start + at, start + until, _WORD if at else _SENTENCE, tokens))
    yield from _cuts(block, cuts, rank, path)


def _lines(block: Block, rank: int, path: tuple[str, ...], count: Count) -> Iterator[_Piece]:
    text, cuts, at, read = block.text, list[_Cut](), 0, 0
    room = LARGEST - sum(count(f"\n{part}\n") for part in _around(block, count) if part)
    for line in text.split("\n"):
        end = at + len(line.rstrip())
        if end > at:
            depth = len(line) - len(line.lstrip())
            blank = text.count("\n", read, at) > 1
            how = _SENTENCE if not blank else _BLANK if depth <= 4 else _DEEP_BLANK
            if 0 < at <= len(block.head) + 1:
                how = _AFTER_HEADING  # a header stays with its first row
            parts = [(0, end - at)]
            if count("\n" + text[read:end]) > room:  # with the empty lines before it
                parts = list(slices(text[at:end], LARGEST // 8, count))
            for start, until in parts:
                tokens = count("\n" + text[read : at + until])
                rank_here = how if start <= depth else _WORD
                cuts.append(_Cut(at + start, at + until, rank_here, tokens))
                read = at + until
        at += len(line) + 1
    yield from _cuts(block, cuts, rank, path)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part of a block's text; ``tokens`` with what stands before it."""

    start: int
    end: int
    rank: int
    tokens: int


def _cuts(block: Block, cuts: list[_Cut], rank: int, path: tuple[str, ...]) -> Iterator[_Piece]:
    text, line, at = block.text, block.line, 0
    for number, cut in enumerate(cuts):
        gap = "\n\n" if number == 0 else text[at : cut.start]
        if number and block.kind != "lines" and gap:
            gap = "\n" if "\n" in gap else " "
        first_line, last_line = line, block.line_end
        if block.exact and line is not None:
            first_line = line + text.count("\n", at, cut.start)
            last_line = line = first_line + text.count("\n", cut.start, cut.end)
        yield _Piece(
            text[cut.start : cut.end], gap, cut.tokens, rank if number == 0 else cut.rank,
            first_line, last_line, block, path, number == 0, number == len(cuts) - 1,
        )  # fmt: skip
        at = cut.end


# -- packing -------------------------------------------------------------------------------------


def _pack(pieces: Iterator[_Piece], unit: Unit | None, count: Count) -> Iterator[Passage]:
    """The passages of one unit."""
    window: list[_Piece] = []
    held, more, number = 0, True, 0
    while True:
        while more and held <= LARGEST + SMALLEST:
            piece = next(pieces, None)
            if piece is None:
                more = False
            else:
                window.append(piece)
                held += piece.tokens
        if not window:
            return
        whole = not more and number == 0 and held <= LARGEST
        cut = len(window) if whole else _cut(window, more, count)
        yield _passage(window[:cut], unit, number, count)
        number += 1
        window = _repeated(window, cut) + window[cut:]
        held = sum(piece.tokens for piece in window)


def _cut(window: list[_Piece], more: bool, count: Count) -> int:
    """How many pieces make the next passage."""
    end = next((at for at, piece in enumerate(window) if at and piece.rank == _PAGE), len(window))
    closed = end < len(window) or not more
    totals = [0, *accumulate(piece.tokens for piece in window[:end])]
    opening = _tokens_around(window[0], count)[0] if not window[0].first else 0
    total = totals[end] + opening
    if closed and total <= LARGEST:
        return end
    sizes: dict[int, int] = {}
    for at in range(1, end):
        before = window[at - 1]
        closing = 0 if before.last else _tokens_around(before, count)[1]
        if opening + totals[at] + closing > LARGEST:
            if opening + totals[at] > LARGEST:
                break
            continue
        if not before.repeated:
            sizes[at] = totals[at]
    if not sizes:
        return 1
    fair = {at: size for at, size in sizes.items() if size >= SMALLEST}
    balanced = {at: size for at, size in fair.items() if total - size >= SMALLEST}
    choice = (balanced if closed else fair) or fair
    if not choice:
        kept = [at for at in sizes if window[at].rank != _AFTER_HEADING]
        return max(kept or sizes)
    best = min(window[at].rank for at in choice)
    places = [at for at in choice if window[at].rank == best]
    if closed and total <= 2 * LARGEST and len(places) > 1 and best >= _PARAGRAPH:
        return min(places, key=lambda at: abs(2 * sizes[at] - total))
    return max(places)


def _repeated(window: list[_Piece], cut: int) -> list[_Piece]:
    """The sentences before a cut that are said again behind it."""
    if cut >= len(window) or window[cut].first or window[cut].block.kind == "lines":
        return []
    kept: list[_Piece] = []
    size = 0
    for piece in reversed(window[:cut]):
        size += piece.tokens
        if piece.block is not window[cut].block or size > (OVERLAP if kept else OVERLAP * 5 // 3):
            break
        kept.insert(0, replace(piece, repeated=True, rank=_SENTENCE))
    if sum(piece.tokens for piece in kept) + window[cut].tokens > LARGEST or len(kept) == cut:
        return []
    return kept


def _tokens_around(piece: _Piece, count: Count) -> tuple[int, int]:
    """What repeating the block's head, and its tail, costs where the block is cut."""
    head, tail = _around(piece.block, count)
    return (count(head + "\n") if head else 0), (count("\n" + tail) if tail else 0)


def _around(block: Block, count: Count) -> tuple[str, str]:
    """The block's head and tail, unless they are too long to be repeated."""
    if not block.head or len(block.head) + len(block.tail) > 16 * OVERLAP:
        return "", ""
    if count(block.head) + count(block.tail) > OVERLAP:
        return "", ""
    return block.head, block.tail


def _passage(pieces: list[_Piece], unit: Unit | None, number: int, count: Count) -> Passage:
    first, last = pieces[0], pieces[-1]
    parts = [first.text]
    tokens = sum(piece.tokens for piece in pieces)
    if not first.first and (head := _around(first.block, count)[0]):
        parts.insert(0, head + "\n")
        tokens += count(parts[0])
    for piece in pieces[1:]:
        parts += (piece.gap, piece.text)
    if not last.last and (tail := _around(last.block, count)[1]):
        parts.append("\n" + tail)
        tokens += count(parts[-1])
    lines = [piece.line_end for piece in pieces if piece.line_end is not None]
    return Passage(
        text="".join(parts),
        heading=_heading([piece.path for piece in pieces]),
        page=first.block.page,
        line=first.line,
        line_end=max(lines, default=None),
        tokens=tokens,
        unit=unit,
        number=number,
    )


def _heading(paths: list[tuple[str, ...]]) -> str:
    """The headings that hold for all pieces; of a long path the inner ones."""
    first, last = min(paths), max(paths)
    same = takewhile(lambda names: names[0] == names[1], zip(first, last, strict=False))
    shared = [name for name, _ in same]
    while len(shared) > 1 and len(" › ".join(shared)) > _PATH_LENGTH:
        del shared[0]
    return " › ".join(shared)[:_PATH_LENGTH]
