"""HTML: what a page shows, as headings, paragraphs, lists, tables and preformatted lines."""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import accumulate, islice

from selm_edge.memory.documents.blocks import Block, BlockKind, words
from selm_edge.memory.documents.html_hidden import (
    NEVER_SHOWN,
    Colour,
    StyleSheet,
    colour,
    colours,
    is_hidden,
    same_colour,
)
from selm_edge.memory.documents.hygiene import tidy, tidy_line

_VOID = words("area base br col embed hr img input link meta param source track wbr frame")
_BREAKING = words(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption"
    " figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre"
    " section summary table tbody tfoot thead tr ul caption"
)
"""Elements that begin and end on a line of their own."""
_CLOSED_BY = {  # an open element of the key ends where one of these begins
    "p": _BREAKING - {"body", "html", "tbody", "tfoot", "thead", "tr", "caption"},
    "li": frozenset({"li"}),
    "dt": frozenset({"dt", "dd"}),
    "dd": frozenset({"dt", "dd"}),
    "tr": frozenset({"tr", "tbody", "tfoot"}),
    "td": frozenset({"td", "th", "tr", "tbody", "tfoot"}),
    "th": frozenset({"td", "th", "tr", "tbody", "tfoot"}),
    "thead": frozenset({"tbody", "tfoot"}),
    "tbody": frozenset({"tbody", "tfoot"}),
    "option": frozenset({"option", "optgroup"}),
}
_SCOPES = {"li": ("ul", "ol", "menu"), "dt": ("dl",), "dd": ("dl",)}
_IN_HEAD = words("base link meta noscript script style template title")
_TABLE = words("table caption colgroup thead tbody tfoot tr td th template")
_INLINE = words(
    "a abbr b bdi bdo big cite code del dfn em font i ins kbd label mark q s samp small span strike"
    " strong sub sup tt u var"
)
_HEADING = re.compile(r"h[1-6]\Z")
_SPACE = re.compile(r"[ \t\n\r\f]+")
_FEED = 64 * 1024  # characters
_LONGEST_ALT = 300
_DEEPEST = 100  # open elements that an end tag looks through: pages are made to be slow


class _Shown(HTMLParser):
    """Follows which elements are open and whether they are seen."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sheet = StyleSheet()
        # tag, whether it hides its content, text colour, background
        self._open: list[tuple[str, bool, Colour | None, Colour | None]] = []
        self._count: dict[str, int] = {}
        self._hidden = 0
        self._css: list[str] | None = None
        self.title = ""

    @property
    def hidden(self) -> bool:
        return self._hidden > 0

    def read(self, text: str) -> None:
        """All of a page. An unclosed tag or comment at its end is dropped, as browsers do.

        The parser begins an unclosed construct again with each piece: pieces grow with what is
        waiting, so that the work stays in proportion to the text.
        """
        at = 0
        while at < len(text):
            size = max(_FEED, len(self.rawdata))
            self.feed(text[at : at + size])
            at += size
        rest, self.rawdata = self.rawdata, ""
        if rest.startswith("<!--"):
            self.unclosed_comment()
        elif rest and "<" not in rest:
            self.handle_data(rest if self.cdata_elem else entities.unescape(rest))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._close_implied(tag)
        attributes = {name: value or "" for name, value in attrs}
        gone, ink, ground = self._looks(tag, attributes)
        if tag in _VOID:
            if not gone and not self.hidden:
                self.element(tag, attributes)
            return
        if tag == "style":
            self._css = []
        self._open.append((tag, gone, ink, ground))
        self._count[tag] = self._count.get(tag, 0) + 1
        if not self.hidden and not gone:
            self.begins(tag, attributes)
        self._hidden += gone

    def _looks(
        self, tag: str, attributes: dict[str, str]
    ) -> tuple[bool, Colour | None, Colour | None]:
        """Whether an element hides its content, its text colour and its background."""
        if tag == "link" and "stylesheet" in attributes.get("rel", "").lower():
            self.sheet.foreign = True
        gone = tag in NEVER_SHOWN
        ink, ground = self._open[-1][2:] if self._open else (None, None)
        if attributes or not self.sheet.empty:
            style = self.sheet.style(tag, attributes)
            gone = gone or is_hidden(attributes, style)
            stated_ink, stated_ground = colours(tag, attributes, style)
            if stated_ink or stated_ground:
                ink, ground = colour(stated_ink) or ink, colour(stated_ground) or ground
                paper = ground or (None if self.sheet.foreign else (255, 255, 255))
                gone = gone or same_colour(ink, paper)
        return gone, ink, ground

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)  # in HTML the slash means nothing
        if tag in ("svg", "math", "path", "iframe", "script", "style", "template"):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._count.get(tag):
            if tag in ("p", "br") and not self.hidden:
                self.element("br", {})
            return
        if not self._ends_here(tag):
            return
        while True:
            name = self._open[-1][0]
            self._pop()
            if name == tag:
                return

    def _ends_here(self, tag: str) -> bool:
        """Whether an end tag reaches its element. It does not out of a table's cell, nor, for
        an inline element, out of a block: else a stray ``</b>`` would show what is hidden."""
        for name, *_ in islice(reversed(self._open), _DEEPEST):
            if name == tag:
                return True
            if name in _TABLE and tag not in _TABLE:
                return False
            if name in _BREAKING and tag not in _BREAKING and tag not in _TABLE:
                return False
        return False

    def handle_data(self, data: str) -> None:
        if self._css is not None:
            self._css.append(data)
        elif self._open and self._open[-1][0] == "title" and not self._count.get("svg"):
            self.title += data[:1000]
        elif not self.hidden:
            self.shown(data)

    def _pop(self) -> None:
        tag, gone, _, _ = self._open.pop()
        self._count[tag] -= 1
        self._hidden -= gone
        if tag == "style" and self._css is not None:
            self.sheet.add("".join(self._css))
            self._css = None
        if not gone and not self.hidden:
            self.ends(tag)

    def _close_implied(self, tag: str) -> None:
        """Ends what HTML ends by itself: a paragraph where a list begins, a row by the next."""
        if self._count.get("head") and tag not in _IN_HEAD:
            while self._count["head"]:
                self._pop()
        for open_tag, closers in _CLOSED_BY.items():
            if not self._count.get(open_tag) or tag not in closers:
                continue
            limits = _SCOPES.get(open_tag, ("table", "template", "button"))
            for back in range(len(self._open) - 1, max(len(self._open) - 50, -1), -1):
                name = self._open[back][0]
                if name in limits:
                    break
                if name == open_tag:
                    while len(self._open) > back:
                        self._pop()
                    break

    # -- what a reader makes of it -------------------------------------------------------------

    def begins(self, tag: str, attributes: dict[str, str]) -> None:
        """An element that is seen begins."""

    def ends(self, tag: str) -> None:
        """An element that is seen ends."""

    def element(self, tag: str, attributes: dict[str, str]) -> None:
        """An element without content that is seen."""

    def shown(self, data: str) -> None:
        """Text that is seen."""

    def unclosed_comment(self) -> None:
        """A comment that never ends."""


class _Blocks(_Shown):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[Block] = []
        self._text: list[str] = []
        self._line = 0
        self._heading = 0
        self._pre = 0
        self._tables = 0
        self._rows: list[str] = []
        self._cells: list[str] = []
        self._lists = 0
        self._expansion: list[str] = []

    def begins(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "table":
            self._flush()
            self._tables += 1
        elif tag in ("td", "th", "tr"):
            self._cell()
        elif tag in ("ul", "ol", "menu", "dl"):
            self._flush() if not self._lists else self._break()
            self._lists += 1
        elif tag == "li":
            self._break()
            self._say("- ")
        elif _HEADING.match(tag):
            self._flush()
            self._heading = int(tag[1])
        elif tag == "pre":
            self._flush()
            self._pre += 1
        elif tag in _BREAKING:
            self._edge()
        if tag == "abbr":
            self._expansion.append(attributes.get("title", "").strip())

    def ends(self, tag: str) -> None:
        if tag == "table":
            self._row()
            self._tables -= 1
            if not self._tables:
                self._flush_table()
        elif tag in ("td", "th"):
            self._cell()
        elif tag in ("tr", "caption"):
            self._row()
        elif tag in ("ul", "ol", "menu", "dl"):
            self._lists -= 1
            self._flush() if not self._lists else self._break()
        elif _HEADING.match(tag):
            self._flush()
            self._heading = 0
        elif tag == "pre":
            self._flush()
            self._pre -= 1
        elif tag in _BREAKING:
            self._edge()
        elif tag == "abbr" and self._expansion:
            longer = self._expansion.pop()
            if longer and longer not in "".join(self._text[-3:]):
                self._say(f" ({longer})")

    def element(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "br":
            self._break()
        elif tag == "hr":
            self._flush()
        elif tag == "img":
            alt = _SPACE.sub(" ", attributes.get("alt", "")).strip()
            if 0 < len(alt) <= _LONGEST_ALT and (" " in alt or alt.isalpha()):
                self._say(f" {alt} ")

    def shown(self, data: str) -> None:
        if not self._text and not self._rows and not self._cells:
            bare = data.lstrip()
            self._line = self.getpos()[0] + data.count("\n", 0, len(data) - len(bare))
            if not bare:
                return
        self._say(data if self._pre else _SPACE.sub(" ", data))

    def close_all(self) -> list[Block]:
        while self._open:
            self._pop()
        self._flush()
        return self.done

    # -- building ------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        if not self._text and not self._rows and not self._cells and not text.isspace():
            self._line = self._line or self.getpos()[0]
        self._text.append(text)

    def _break(self) -> None:
        if self._text and self._text[-1] != "- ":
            self._text.append("\n")

    def _edge(self) -> None:
        """A block element begins or ends: within a list or a table only a new line."""
        if self._tables or self._lists or self._pre:
            self._break()
        else:
            self._flush()

    def _taken(self) -> str:
        text = "".join(self._text)
        self._text.clear()
        if self._pre:
            return text.strip("\n")
        lines = (" ".join(line.split(" ")).strip() for line in text.split("\n"))
        return "\n".join(_SPACE.sub(" ", line) for line in lines if line and line != "-")

    def _flush(self) -> None:
        if self._tables:
            self._break()
            return
        text = self._taken()
        kind: BlockKind = "prose"
        if self._heading:
            kind, text = "heading", " ".join(text.split())
        elif self._pre or text.startswith("- "):
            kind = "lines"
        self._add(kind, text, level=self._heading)

    def _add(self, kind: BlockKind, text: str, *, level: int = 0, head: str = "") -> None:
        text = tidy(text).strip("\n")
        if text.strip():
            line = self._line or 1
            end = max(line, self.getpos()[0])
            self.done.append(
                Block(kind, text, line, end, level=level, head=tidy(head), exact=False)
            )
        self._line = 0

    def _cell(self) -> None:
        text = " ".join(self._taken().split())
        if text:
            self._cells.append(text)

    def _row(self) -> None:
        self._cell()
        if self._cells:
            self._rows.append(" | ".join(self._cells))
            self._cells = []

    def _flush_table(self) -> None:
        self._row()
        rows, self._rows = self._rows, []
        if rows:
            head = rows[0] if len(rows) > 1 and " | " in rows[0] else ""
            self._add("lines", "\n".join(rows), head=head)


def read_html(text: str) -> Iterator[Block]:
    """The page's blocks; ``line`` is where a block begins in the source. The title is the first
    heading where the page has no main heading of its own."""
    reader = _Blocks()
    reader.read(text)
    blocks = reader.close_all()
    title = tidy_line(reader.title)
    if title and not any(block.kind == "heading" and block.level == 1 for block in blocks):
        yield Block("heading", title, 1, 1, level=1, exact=False)
    yield from blocks


class _Unseen(_Shown):
    """Where the tags, the comments and the hidden elements of a text are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.spans: list[tuple[int, int, str]] = []
        self._source = text
        self._starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        self._since: int | None = None

    def _at(self) -> int:
        line, column = self.getpos()
        return self._starts[line - 1] + column

    def _behind(self, mark: str, start: int) -> int:
        found = self._source.find(mark, start)
        return len(self._source) if found < 0 else found + len(mark)

    def _drop(self, start: int, end: int, fill: str = "") -> None:
        if self._since is None:
            self.spans.append((start, end, fill))

    def _show_again(self, at: int) -> None:
        if self._since is not None:
            self.spans.append((self._since, at, ""))
            self._since = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        at = self._at()
        if not self.hidden:
            self._show_again(at)
            if attrs or tag in _INLINE or tag in _BREAKING or tag in _VOID:
                raw = self.get_starttag_text() or ""
                self._drop(at, at + len(raw), "" if tag in _INLINE else " ")
        elif self._since is None:
            self._since = at

    def handle_endtag(self, tag: str) -> None:
        super().handle_endtag(tag)
        at = self._at()
        if not self.hidden and self._since is not None:
            self._show_again(self._behind(">", at))
        elif tag in _INLINE or tag in _BREAKING:
            self._drop(at, self._behind(">", at), "" if tag in _INLINE else " ")

    def handle_comment(self, data: str) -> None:
        at = self._at()
        self._drop(at, self._behind(">", min(at + len("<!") + len(data), len(self._source))))

    def handle_decl(self, decl: str) -> None:
        self._drop(self._at(), self._behind(">", self._at()))

    def unknown_decl(self, data: str) -> None:
        self._drop(self._at(), self._behind(">", self._at() + len(data)))

    def handle_pi(self, data: str) -> None:
        self._drop(self._at(), self._behind(">", self._at() + len(data)))

    def unclosed_comment(self) -> None:
        self._drop(self._at(), len(self._source))

    def finish(self) -> list[tuple[int, int, str]]:
        self._show_again(len(self._source))
        return self.spans


def unseen(text: str) -> list[tuple[int, int, str]]:
    """What of a text with HTML in it a page does not show: tags, comments, hidden elements, as
    (start, end, what stands there instead), in order and apart."""
    finder = _Unseen(text)
    finder.read(text)
    return finder.finish()
