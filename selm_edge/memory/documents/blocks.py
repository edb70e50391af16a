"""What a reader makes of a file: a stream of blocks, each knowing where it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from selm_edge.clean import clean_line
from selm_edge.errors import SelmError

BlockKind = Literal["heading", "prose", "lines"]

MAX_BYTES = 64 * 1024 * 1024
"""Largest file that is read whole; only dumps may be larger, since they are streamed."""


Check = Callable[[], None]
"""Called between pieces of long work; what it raises ends the work."""


def no_check() -> None:
    """Never ends anything."""


class DocumentError(SelmError):
    """A file that cannot be read as a document.

    ``path`` is the file, ``cause`` what is wrong, ``hint`` what to do next.
    """

    def __init__(self, path: Path, cause: str, hint: str = "") -> None:
        self.path = path
        self.cause = cause
        self.hint = hint
        super().__init__(f"{clean_line(str(path))}: {cause}" + (f"\n{hint}" if hint else ""))


def words(text: str) -> frozenset[str]:
    """A set of words, written as a sentence is."""
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph, or lines that belong together (code, a table, a list).

    ``text`` is tidy (`hygiene.tidy`), not empty, and has no blank line at its ends. ``line`` and
    ``line_end`` count from 1 in the file, ``page`` from 1; None where there is no such thing.
    ``unit`` begins a new unit (an article, a page): no passage holds two units, so that what is
    cited is right. ``head`` and ``tail`` are lines repeated around each piece where ``lines`` must
    be cut: a table's header, a fence. They are the beginning and the end of ``text``.
    """

    kind: BlockKind
    text: str
    line: int | None = None
    line_end: int | None = None
    page: int | None = None
    level: int = 0  # of a heading, 1 to 6
    unit: Unit | None = None
    head: str = ""
    tail: str = ""
    exact: bool = True  # each line of the text is a line of the file


@dataclass(frozen=True, slots=True)
class Unit:
    """Where a unit begins: ``cursor`` is what its reader needs to begin there again, ``position``
    the bytes of the file before it; None where the reader can only begin at the beginning."""

    cursor: str | None = None
    position: int | None = None


@dataclass
class Document:
    """A file being read. ``blocks`` may be taken once; reading happens as they are taken, and may
    raise DocumentError. ``notices`` is complete when they are all taken."""

    path: Path
    kind: Literal["text", "markdown", "html", "pdf", "code", "wikipedia"]
    blocks: Iterator[Block]
    language: str | None = None  # of source code, by the file's extension
    notices: list[str] = field(default_factory=list)
