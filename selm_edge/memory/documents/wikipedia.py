"""Wikipedia's XML dumps, plain or bzip2: articles, one after the other, whatever the size.

The dump is one document, its articles are units in it. A reading begins again at an article: at
its byte in a plain file; in a bzip2 file at the stream that holds it (the "multistream" dumps have
one for each hundred articles), and where the file is one stream, what comes before is unpacked
once more but not read. The parser is expat, which is fed a piece at a time. A document type is
refused before any of it is read, and with it every entity but the five of XML.
"""

from __future__ import annotations

import bz2
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

from selm_edge.memory.documents.blocks import (
    Block,
    Check,
    Document,
    DocumentError,
    Unit,
    no_check,
)
from selm_edge.memory.documents.wikitext import read_wikitext

_PIECE = 256 * 1024  # bytes read, or unpacked, at once
_LONGEST_ARTICLE = 4 * 1024 * 1024  # characters; MediaWiki itself allows 2 MB
_LARGEST_TAG = 16 * 1024 * 1024  # bytes that the parser may hold without making anything of them
_DEEPEST = 32
_LARGEST_RATIO = 400  # unpacked to packed: text reaches 10, dumps with repetitions 30
_HINT = "A dump from dumps.wikimedia.org, such as ...-pages-articles.xml.bz2, is read as it is."


@dataclass(frozen=True)
class _Place:
    """Where an article begins: ``stream`` the byte of the file where its bzip2 stream begins (0 in
    a plain file), ``offset`` the unpacked byte after that, ``line`` the lines before it."""

    stream: int
    offset: int
    line: int

    def cursor(self) -> str:
        return json.dumps([self.stream, self.offset, self.line])

    @staticmethod
    def parse(cursor: str) -> _Place:
        stream, offset, line = (int(number) for number in json.loads(cursor))
        return _Place(stream, offset, line)


@dataclass
class _Article:
    title: str
    text: str
    title_line: int
    line: int
    place: _Place
    position: int


def is_dump(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes is a dump, plain or packed."""
    if beginning.startswith(b"BZh"):
        try:
            beginning = bz2.BZ2Decompressor().decompress(beginning, 4096)
        except (OSError, ValueError):
            return False
    return b"<mediawiki" in beginning[:4096]


def read_dump(path: Path, cursor: str | None = None, check: Check = no_check) -> Document:
    """The dump as a document, from the article at ``cursor`` on."""
    document = Document(path, "wikipedia", iter(()))
    document.blocks = _blocks(path, cursor, document.notices, check)
    return document


def _blocks(path: Path, cursor: str | None, notices: list[str], check: Check) -> Iterator[Block]:
    start = _Place.parse(cursor) if cursor else _Place(0, 0, 0)
    found = False
    try:
        with path.open("rb") as file:
            for article in _Reader(path, file, start, notices, check).articles():
                unit: Unit | None = Unit(article.place.cursor(), article.position)
                for block in read_wikitext(
                    article.title, article.text, article.line, article.title_line
                ):
                    yield Block(
                        block.kind, block.text, block.line, block.line_end, None, block.level,
                        unit, exact=block.exact,
                    )  # fmt: skip
                    unit, found = None, True
    except OSError as error:
        raise DocumentError(path, f"cannot be read: {error.strerror or error}") from error
    if not found and cursor is None:
        raise DocumentError(path, "holds no articles", _HINT)


class _Reader:
    """Feeds the parser and collects what it finds."""

    def __init__(
        self, path: Path, file: BinaryIO, start: _Place, notices: list[str], check: Check
    ) -> None:
        self._path = path
        self._file = file
        self._start = start
        self._notices = notices
        self._check = check
        self._done: list[_Article] = []
        self._depth = 0
        self._name: str | None = None
        self._kept: list[str] = []
        self._length = 0
        self._fields: dict[str, str] = {}
        self._lines = {"title": 0, "text": 0}
        self._place = start
        self._streams: list[tuple[int, int]] = []  # (unpacked byte, byte of the file)
        self._parser = self._new_parser()
        if cursor_given := start != _Place(0, 0, 0):
            self._parser.Parse(b"<mediawiki>", False)
        self._prefix = len(b"<mediawiki>") if cursor_given else 0

    def _new_parser(self) -> expat.XMLParserType:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.buffer_size = 64 * 1024
        parser.StartElementHandler = self._begins
        parser.EndElementHandler = self._ends
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype
        return parser

    def articles(self) -> Iterator[_Article]:
        """Articles as they are completed; raises DocumentError where the file is not a dump."""
        fed = 0
        for piece in self._pieces():
            self._feed(piece)
            fed += len(piece)
            if fed - max(self._parser.CurrentByteIndex, 0) > _LARGEST_TAG:
                raise self._refused("one tag is larger than 16 MB")
            yield from self._done
            self._done.clear()
        self._feed(b"", last=True)
        yield from self._done

    def _feed(self, piece: bytes, last: bool = False) -> None:
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as error:
            where = self._start.line + error.lineno
            what = expat.errors.messages[error.code]
            if last:
                self._notices.append("the dump ends early: it may be a part of a download")
                return
            raise self._refused(f"not well-formed XML in line {where} ({what})") from error

    def _refused(self, cause: str) -> DocumentError:
        return DocumentError(self._path, cause, _HINT)

    # -- bytes ---------------------------------------------------------------------------------

    def _pieces(self) -> Iterator[bytes]:
        packed = self._file.read(3) == b"BZh"
        self._file.seek(self._start.stream if packed else self._start.offset)
        if not packed:
            while piece := self._file.read(_PIECE):
                self._check()
                yield piece
            return
        skip = self._start.offset
        for piece in self._unpacked():
            self._check()
            if skip >= len(piece):
                skip -= len(piece)
            else:
                yield piece[skip:]
                skip = 0

    def _unpacked(self) -> Iterator[bytes]:
        unpacker = bz2.BZ2Decompressor()
        origin = self._start.stream
        self._streams = [(0, origin)]
        total, data, read = 0, b"", origin
        try:
            while True:
                if unpacker.eof:
                    data = unpacker.unused_data or self._file.read(_PIECE)
                    read = self._file.tell()
                    if not data:
                        return
                    self._streams.append((total, read - len(data)))
                    unpacker = bz2.BZ2Decompressor()
                elif unpacker.needs_input:
                    data = self._file.read(_PIECE)
                    read = self._file.tell()
                    if not data:
                        self._notices.append("the file ends early: a part of a download?")
                        return
                else:
                    data = b""
                piece = unpacker.decompress(data, _PIECE)
                total += len(piece)
                if total > _LARGEST_RATIO * (read - origin) + 64 * _PIECE:
                    raise self._refused("unpacks to far more than a dump does")
                yield piece
        except (OSError, EOFError, ValueError) as error:
            raise self._refused(f"the bzip2 data is damaged ({error})") from error

    def _here(self) -> _Place:
        """Where the element begins that the parser is at."""
        offset = self._parser.CurrentByteIndex - self._prefix
        line = self._start.line + self._parser.CurrentLineNumber - 1
        if not self._streams:
            return _Place(0, self._start.offset + offset, line)
        offset += self._start.offset  # the parser did not see what was skipped
        while len(self._streams) > 1 and self._streams[1][0] <= offset:
            del self._streams[0]  # articles come in order
        unpacked, stream = self._streams[0]
        return _Place(stream, offset - unpacked, line)

    # -- elements ------------------------------------------------------------------------------

    def _doctype(self, *_: object) -> None:
        raise self._refused("has a document type, which may define entities without end")

    def _begins(self, name: str, _: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refused("not a dump: its elements are nested too deeply")
        if self._depth == 1 and name != "mediawiki":
            raise self._refused(f"not a dump: it is an XML file of kind {name[:40]!r}")
        if self._depth == 2 and name == "page":
            self._fields = {}
            self._place = self._here()
        if name == "redirect":
            self._fields["redirect"] = "yes"
        if name in ("title", "ns", "text", "model"):
            self._name, self._kept, self._length = name, [], 0
            self._lines[name] = self._start.line + self._parser.CurrentLineNumber

    def _characters(self, data: str) -> None:
        if self._name is not None and self._length <= _LONGEST_ARTICLE:
            self._kept.append(data)
            self._length += len(data)

    def _ends(self, name: str) -> None:
        self._depth -= 1
        if name == self._name:
            self._fields[name] = "".join(self._kept)
            self._name, self._kept = None, []
        elif self._depth == 1 and name == "page":
            self._take()

    def _take(self) -> None:
        fields = self._fields
        text = fields.get("text", "")
        if (
            fields.get("ns", "0").strip() != "0"
            or "redirect" in fields
            or fields.get("model", "wikitext") != "wikitext"
            or text[:12].upper().lstrip().startswith("#REDIRECT")
        ):
            return
        if len(text) > _LONGEST_ARTICLE:
            title = fields.get("title", "")[:80]
            self._notices.append(f"the article {title!r} is too long: its end is left out")
            text = text[:_LONGEST_ARTICLE]
        position = self._file.tell() if self._streams else self._place.offset
        self._done.append(
            _Article(
                fields.get("title", ""),
                text,
                self._lines["title"],
                self._lines["text"],
                self._place,
                position,
            )
        )
