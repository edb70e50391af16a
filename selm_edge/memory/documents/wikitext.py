"""Wikitext to plain text: what an article says, without its markup.

One pass over the text with a stack of what is open, so the work stays in proportion to the length
whatever is nested or never closed. A line end inside of what is taken out leaves a mark, so that
each line knows its number. Templates are left out, but for those whose
parameter is the text itself ("{{convert|5|km}}", "{{lang|fr|oui}}").
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from selm_edge.memory.documents.blocks import Block, BlockKind, words
from selm_edge.memory.documents.hygiene import tidy, tidy_line

FOLD = "\ue000"
"""Stands for a line end that was taken out: a sign for private use, which no text needs."""

_TOKEN = re.compile(
    r"<!--"
    r"|<(?P<close>/?)(?P<tag>[a-zA-Z][a-zA-Z0-9]*)\b(?P<rest>[^<>]*)>"
    r"|\{\{+|\}\}+"
    r"|\[\[|\]\]"
    r"|^[ \t:]*\{\||^[ \t]*\|\}(?!\})"
    r"|\[(?=(?:https?:|ftp:)?//)",
    re.MULTILINE,
)
_DROPPED = words(
    "ref math chem gallery timeline score imagemap templatestyles graph mapframe maplink indicator"
    " syntaxhighlight source hiero ce categorytree inputbox section references"
)
"""Tags whose content is not prose."""
_SPACED = words("br hr p div li td tr th blockquote")
_KEPT_TEMPLATES = {
    "lang": -1, "nowrap": -1, "nobr": -1, "nobold": -1, "small": -1, "smaller": -1, "big": -1,
    "abbr": 1, "tooltip": 1, "transl": -1, "transliteration": -1, "nihongo": 1, "ill": 1,
    "interlanguage link": 1, "sub": -1, "sup": -1, "em": -1, "strong": -1, "quote": 1,
    "blockquote": 1, "cquote": 1, "quotation": 1, "midsize": -1, "vanchor": 1, "langx": -1,
    "small caps": 1, "smallcaps": 1,
}  # fmt: skip
"""Templates that are their own text: which of their parameters it is."""
_MARKS = {
    "snd": " \u2013 ", "spnd": " \u2013 ", "spaced ndash": " \u2013 ", "ndash": "\u2013",
    "en dash": "\u2013", "mdash": "—", "em dash": "—", "nbsp": " ", "spaces": " ", "'": "'",
    "=": "=", "!": "|", "dot": " · ", "pi": "π", "euro": "€", "degree": "°",
}  # fmt: skip
"""Templates that stand for a sign."""
_DATED = {"as of": "as of ", "circa": "c. ", "c.": "c. ", "ca.": "c. "}
_UNITS = frozenset({"convert", "cvt"})
_RANGE_WORDS = {
    "-": "\u2013", "\u2013": "\u2013", "to": " to ", "and": " and ", "or": " or ", "x": " × ",
    "by": " by ", "to(-)": " to ",
}  # fmt: skip
_NAMESPACED = re.compile(r":?\s*([\w -]{1,40}?)\s*:")
_MEDIA = words(
    "file image media category datei bild kategorie fichier catégorie archivo imagen categoría"
    " immagine categoria ficheiro imagem bestand afbeelding plik grafika файл изображение"
    " категория 文件 檔案 分类 分類 ファイル 画像 カテゴリ"
)
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,10})?\s*:(?!\s)")
_HEADING = re.compile(r"(={1,6})(.{1,500}?)\1\s*\Z")
_QUOTES = re.compile(r"'{2,5}")
_MAGIC = re.compile(r"__[A-Z]{3,30}__")
_ITEM = re.compile(r"([*#:;]+)\s*")
_LINE_ENTITY = re.compile(r"&(?:#0*1[03]|#[xX]0*[aAdD]|NewLine);?")
_EMPTY_BRACKETS = re.compile(r"\(\s*(?:[;,]\s*)*\)")
_AFTER_BRACKET = re.compile(r"\(\s*[;,]\s*")
_DEEPEST = 60
_END_SECTIONS = (
    "references",
    "external links",
    "see also",
    "further reading",
    "citations",
    "notes and references",
)
"""Sections that are lists of links: nothing is left of them but their heading."""


class _Open:
    """Something open: its mark, what it holds so far, and a tag's name."""

    __slots__ = ("mark", "parts", "tag")

    def __init__(self, mark: str, tag: str = "") -> None:
        self.mark = mark
        self.tag = tag
        self.parts: list[str] = []


def read_wikitext(title: str, text: str, line: int, title_line: int) -> Iterator[Block]:
    """The blocks of an article: its title as the first heading, its sections below it.

    ``line`` is the number of the first line of ``text`` in its file. An article without a word of
    prose has no blocks.
    """
    title = tidy_line(title)
    heading = Block("heading", title, title_line, title_line, level=1)
    waiting = [heading]
    for block in _blocks(plain(text), line):
        if block.kind == "heading":
            waiting = [kept for kept in waiting if kept.level < block.level] + [block]
        else:
            yield from waiting
            waiting = []
            yield block


def plain(text: str) -> str:
    """Wikitext without brackets, braces and tags. Line ends inside of what was taken out are FOLD.
    Headings, quotes and marks of lists are left as they are."""
    text = text.replace(FOLD, "")
    stack = [_Open("")]
    endless: set[str] = set()  # tags that are known not to end any more
    at = 0
    for token in _TOKEN.finditer(text):
        if token.start() < at:
            continue
        stack[-1].parts.append(text[at : token.start()])
        at = token.end()
        mark = token.group()
        if mark == "<!--":
            end = text.find("-->", at)
            at = _skipped(stack, text, at, len(text) if end < 0 else end + 3)
        elif token["tag"]:
            at = _tag(stack, text, token, endless)
        elif mark == "[":
            at = _external(stack, text, at)
        elif mark.startswith(("{{", "}}")):
            _braces(stack, mark)
        elif mark.endswith(("[[", "{|")):
            _push(stack, mark[-2:])
        else:
            _close(stack, mark[-2:])
    stack[-1].parts.append(text[at:])
    while len(stack) > 1:
        _unclosed(stack)
    return "".join(stack[0].parts)


def _skipped(stack: list[_Open], text: str, start: int, end: int) -> int:
    stack[-1].parts.append(FOLD * text.count("\n", start, end))
    return end


def _tag(stack: list[_Open], text: str, token: re.Match[str], endless: set[str]) -> int:
    """What a tag leaves of itself: nothing or a space. Returns where to go on: behind its end
    where its content goes too."""
    tag, at = token["tag"].lower(), _skipped(stack, text, token.start(), token.end())
    opens = not token["close"] and not token["rest"].rstrip().endswith("/")
    if tag in _DROPPED and opens and tag not in endless:
        end = re.compile(rf"</{tag}\s*>", re.IGNORECASE).search(text, at)
        if end:
            return _skipped(stack, text, at, end.end())
        endless.add(tag)
    if tag in _SPACED:
        stack[-1].parts.append(" ")
    return at


def _push(stack: list[_Open], mark: str) -> None:
    if len(stack) > _DEEPEST:  # nobody writes this: it stays as it is
        stack[-1].parts.append(mark)
    else:
        stack.append(_Open(mark))


def _braces(stack: list[_Open], run: str) -> None:
    """Two braces at a time; where their number is odd, one is text, inside of the others."""
    if run[0] == "}" and len(run) % 2:
        stack[-1].parts.append("}")
    for _ in range(len(run) // 2):
        if run[0] == "{":
            _push(stack, "{{")
        else:
            _close(stack, "}}")
    if run[0] == "{" and len(run) % 2:
        stack[-1].parts.append("{")


_PAIRS = {"]]": "[[", "}}": "{{", "|}": "{|"}


def _close(stack: list[_Open], mark: str) -> None:
    opening = _PAIRS.get(mark)
    depth = next((at for at in range(len(stack) - 1, 0, -1) if stack[at].mark == opening), 0)
    # A template may not be ended by what stands inside of a table in it, and so on.
    barrier = any(stack[at].mark == "{|" for at in range(depth + 1, len(stack)))
    if not depth or (barrier and mark == "]]"):
        stack[-1].parts.append(mark)
        return
    while len(stack) - 1 > depth:
        _unclosed(stack)
    content = "".join(stack.pop().parts)
    if mark == "}}":
        kept = _template(content)
    elif mark == "]]":
        kept = _link(content)
    else:
        kept = ""
    lines = content.count("\n") + content.count(FOLD) - kept.count("\n") - kept.count(FOLD)
    stack[-1].parts.append(kept + FOLD * lines)


def _unclosed(stack: list[_Open]) -> None:
    """What never ends was no markup: it is text, but for tables, which end with the article."""
    entry = stack.pop()
    content = "".join(entry.parts)
    if entry.mark == "{|":
        content = FOLD * (content.count("\n") + content.count(FOLD))
    else:
        content = entry.mark + content
    stack[-1].parts.append(content)


def _template(content: str) -> str:
    """What a template says, where that can be known without its definition."""
    name, *parameters = content.split("|")
    name = " ".join(name.replace(FOLD, " ").replace("_", " ").split()).lower()
    if name in _MARKS and not parameters:
        return _MARKS[name]
    values = [value.strip(f" \n{FOLD}") for value in parameters if not _named(value)]
    if name in _UNITS:
        return _measure(values)
    if name == "frac" and 1 <= len(values) <= 3:
        return " ".join([*values[:-2], "/".join(values[-2:])])
    if name in _DATED:
        return _DATED[name] + " ".join(values)
    at = 1 if name.startswith("lang-") else _KEPT_TEMPLATES.get(name)
    if at is None or not values:
        return ""
    return values[at] if at < 0 else values[at - 1] if at <= len(values) else ""


def _named(parameter: str) -> bool:
    return re.match(r"\s*[\w -]{1,30}=", parameter) is not None


def _measure(values: list[str]) -> str:
    """``5|km|mi`` is "5 km", ``5|-|6|km`` "5-6 km"."""
    if len(values) < 2:
        return ""
    if len(values) >= 4 and values[1] in _RANGE_WORDS:
        return f"{values[0]}{_RANGE_WORDS[values[1]]}{values[2]} {values[3]}"
    return f"{values[0]} {values[1]}"


def _link(content: str) -> str:
    """What a link shows: nothing for files, categories and other languages."""
    target, *labels = content.split("|")
    found = _NAMESPACED.match(target)
    if found and found.group(1).lower() in _MEDIA and not target.lstrip().startswith(":"):
        return ""
    if not labels and _LANGUAGE_LINK.match(target):
        return ""
    if labels:
        # [[Paris|]] shows what stands before a bracket or comma
        return labels[-1] or re.split(r"\s*[(,]", target.split(":")[-1])[0]
    return target.lstrip(": ").replace("_", " ")


def _external(stack: list[_Open], text: str, at: int) -> int:
    """``[https://… words]`` shows the words; an address alone shows nothing."""
    end = text.find("]", at, at + 2000)
    line_end = text.find("\n", at, at + 2000)
    if end < 0 or (0 <= line_end < end):
        stack[-1].parts.append("[")
        return at
    space = text.find(" ", at, end)
    return end + 1 if space < 0 else _label(stack, text, space + 1, end)


def _label(stack: list[_Open], text: str, start: int, end: int) -> int:
    label = text[start:end]
    if any(mark in label for mark in ("{{", "[[", "<")):  # markup in it: it is read as text
        return start
    stack[-1].parts.append(label)
    return end + 1


# -- lines to blocks -----------------------------------------------------------------------------


def _blocks(text: str, line: int) -> Iterator[Block]:
    run: list[str] = []
    start, skipping = line, 0  # skipping: the level of a section that is left out

    def flushed(end: int) -> Iterator[Block]:
        if run and not skipping:
            kind: BlockKind = "lines" if run[0].startswith("- ") else "prose"
            yield Block(kind, "\n".join(run), start, end, exact=end - start + 1 == len(run))
        run.clear()

    number = last = line
    for raw in _bare(text).split("\n"):
        here, number = number, number + 1 + raw.count(FOLD)
        shown = raw.replace(FOLD, "").strip()
        found = _HEADING.match(shown) if shown.startswith("=") else None
        content = "" if found else _line(shown)
        if not content:
            yield from flushed(last)
        if found:
            level = len(found.group(1))
            name = " ".join(found.group(2).split())
            if not skipping or level <= skipping:
                skipping = level if name.lower() in _END_SECTIONS else 0
                if name and not skipping:
                    yield Block("heading", name, here, here, level=max(level, 2))
        elif content:
            if run and content.startswith("- ") != run[-1].startswith("- "):
                yield from flushed(last)
            if not run:
                start = here
            run.append(content)
            last = number - 1
    yield from flushed(last)


def _bare(text: str) -> str:
    """Without quotes, entities and magic words; tidy, with every line where it was."""
    text = _MAGIC.sub("", _QUOTES.sub("", text))
    if "&" in text:
        text = html.unescape(_LINE_ENTITY.sub(" ", text))
    return tidy(text)


def _line(shown: str) -> str:
    """A line of text, "- " before the items of lists; "" where nothing is left of it."""
    item = _ITEM.match(shown)
    dash = ""
    if item:
        dash = "- " if item.group(1)[0] in "*#" else ""
        shown = shown[item.end() :]
    if "(" in shown:
        shown = _AFTER_BRACKET.sub("(", _EMPTY_BRACKETS.sub("", shown))
    shown = " ".join(shown.split()).replace(" ,", ",").replace(" .", ".")
    return dash + shown if any(map(str.isalnum, shown)) else ""
