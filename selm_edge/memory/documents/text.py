"""Plain text: paragraphs between blank lines, underlined headings, tables of values."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selm_edge.memory.documents.blocks import Block, BlockKind

_UNDERLINE = re.compile(r"(=|-|~|\^|\*)\1{2,}\s*\Z")
_LONGEST_HEADING = 120  # characters


def read_text(text: str) -> Iterator[Block]:
    """Paragraphs; a line underlined with ``===`` or ``---`` is a heading."""
    levels: dict[str, int] = {}  # underlines in the order of their first use, as in reST
    for line, lines in paragraphs(text):
        if is_underlined(lines):
            mark = lines[1].strip()[0]
            level = levels.setdefault(mark, min(len(levels) + 1, 6))
            yield block("heading", lines[:1], line, level=level, line_end=line + 1)
            if lines[2:]:
                yield block("prose", lines[2:], line + 2)
        else:
            yield block("prose", lines, line)


def read_table(text: str) -> Iterator[Block]:
    """Comma or tab separated values: rows stay whole, the first is repeated where it is cut."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        return
    first, last = filled[0], filled[-1]
    yield block("lines", lines[first : last + 1], first + 1, head=lines[first].rstrip())


def block(
    kind: BlockKind,
    lines: list[str],
    line: int,
    *,
    level: int = 0,
    line_end: int | None = None,
    head: str = "",
    tail: str = "",
) -> Block:
    """A block of the file's own ``lines``, the first of which is number ``line``."""
    text = "\n".join(part.rstrip() for part in lines)
    if line_end is None:
        line_end = line + len(lines) - 1
    if kind == "heading":
        text = " ".join(text.split())
    return Block(kind, text, line, line_end, level=level, head=head, tail=tail)


def paragraphs(text: str) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines that are not blank, each with the number of its first line."""
    start, run = 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            if not run:
                start = number
            run.append(line)
        elif run:
            yield start, run
            run = []
    if run:
        yield start, run


def is_underlined(lines: list[str]) -> bool:
    """Whether the first line is a heading by the second."""
    return (
        len(lines) > 1
        and _UNDERLINE.fullmatch(lines[1].strip()) is not None
        and 0 < len(lines[0].strip()) <= _LONGEST_HEADING
        and _UNDERLINE.fullmatch(lines[0].strip()) is None
    )
