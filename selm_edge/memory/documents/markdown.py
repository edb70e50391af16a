"""Markdown: headings, fences, tables, lists, front matter; what a page would not show is left out.

A reading by lines, not a full CommonMark parser: passages need edges, not inline markup. Comments,
hidden HTML and addresses of images are removed, since who reads the page never sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from selm_edge.memory.documents.blocks import Block
from selm_edge.memory.documents.html import unseen
from selm_edge.memory.documents.text import block, is_underlined

_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|\Z)")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*\Z)|~{3,})(.*)")
_ITEM = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)])[ \t]+\S")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})\Z")
_COMMENT_LINK = re.compile(r" {0,3}\[[^\]]{0,200}\]:[ \t]*<?#>?[ \t]")  # [//]: # (a comment)
_IMAGE = re.compile(
    r"!\[([^\[\]\n]{0,1000})\](?:\((?:[^()\n]|\([^()\n]{0,200}\)){0,4000}\)|\[[^\]\n]{0,200}\])"
)
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)[^\n]{0,2000}?(?<!`)\1(?!`)")
_PARAGRAPH_ENDS = (_FENCE, _ATX, _RULE)


def read_markdown(text: str) -> Iterator[Block]:
    """Blocks with exact lines."""
    lines = _shown(text).split("\n")
    at = 0
    if lines and lines[0].rstrip() == "---":
        front = _front_matter(lines)
        if front:
            kept = lines[1:front]
            if any(line.strip() for line in kept):
                yield block("lines", *_stripped(kept, 2))
            at = front + 1
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif fence := _FENCE.match(line):
            end = _fence_end(lines, at, fence.group(1))
            yield _fenced(lines, at, end)
            at = end
        elif heading := _ATX.match(line):
            if title := _title(line[heading.end() :]):
                yield block("heading", [title], at + 1, level=len(heading.group(1)))
            at += 1
        elif is_underlined(lines[at : at + 2]) and lines[at + 1].strip()[0] in "=-":
            level = 1 if lines[at + 1].strip()[0] == "=" else 2
            yield block("heading", lines[at : at + 1], at + 1, level=level, line_end=at + 2)
            at += 2
        else:
            end = _paragraph_end(lines, at)
            yield from _paragraph(lines, at, end)
            at = end


def _front_matter(lines: list[str]) -> int:
    """The line that closes the front matter; 0 where there is none."""
    for number, line in enumerate(lines[1:200], 1):
        if line.rstrip() in ("---", "..."):
            return number
    return 0


def _stripped(lines: list[str], line: int) -> tuple[list[str], int]:
    """``lines`` without blank ones at the ends, and the number of the first that is left."""
    filled = [at for at, text in enumerate(lines) if text.strip()]
    return lines[filled[0] : filled[-1] + 1], line + filled[0]


def _fence_end(lines: list[str], at: int, mark: str) -> int:
    """Behind the closing fence, or the end of the file where it is missing."""
    closing = re.compile(rf" {{0,3}}{re.escape(mark[0])}{{{len(mark)},}}[ \t]*\Z")
    for number in range(at + 1, len(lines)):
        if closing.match(lines[number]):
            return number + 1
    return len(lines)


def _fenced(lines: list[str], at: int, end: int) -> Block:
    kept, line = _stripped(lines[at:end], at + 1)
    closed = len(kept) > 1 and kept[-1].strip()[:3] in ("```", "~~~")
    head = kept[0].rstrip()
    return block("lines", kept, line, head=head, tail=kept[-1].rstrip() if closed else "")


def _paragraph_end(lines: list[str], at: int) -> int:
    end = at + 1
    while end < len(lines) and lines[end].strip():
        if any(pattern.match(lines[end]) for pattern in _PARAGRAPH_ENDS):
            break
        end += 1
    return end


def _paragraph(lines: list[str], at: int, end: int) -> Iterator[Block]:
    run = [_inline(line) for line in lines[at:end]]
    if not any(line.strip() for line in run) or _RULE.match(run[0]):
        return
    run, line = _stripped(run, at + 1)
    if len(run) > 1 and "|" in run[0] and _is_row_rule(run[1]):
        yield block("lines", run, line, head=f"{run[0].rstrip()}\n{run[1].rstrip()}")
    else:
        yield block("lines" if _ITEM.match(run[0]) else "prose", run, line)


def _is_row_rule(line: str) -> bool:
    """``| --- | :-: |``"""
    return "|" in line and "-" in line and not line.strip("|:- \t")


def _title(text: str) -> str:
    text = _inline(text).strip()
    bare = text.rstrip("#")
    return bare.strip() if not bare or bare[-1] in " \t" else text


def _inline(line: str) -> str:
    """A line without addresses of images, and without the comments that link definitions hide."""
    if "]:" in line and _COMMENT_LINK.match(line):
        return ""
    return _IMAGE.sub(r"\1", line) if "![" in line else line


def _shown(text: str) -> str:
    """The text without what a page does not show; the lines keep their numbers."""
    return _without(text, unseen(_code_masked(text))) if "<" in text else text


def _code_masked(text: str) -> str:
    """The text with no tags inside code, every character in its place."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if fence := _FENCE.match(lines[at]):
            end = _fence_end(lines, at, fence.group(1))
            for number in range(at, end):
                lines[number] = lines[number].replace("<", " ")
            at = end
        else:
            if "`" in lines[at]:
                lines[at] = _CODE_SPAN.sub(lambda found: found.group().replace("<", " "), lines[at])
            at += 1
    return "\n".join(lines)


def _without(text: str, spans: list[tuple[int, int, str]]) -> str:
    """``text`` without the spans but with the line ends in them."""
    parts, at = list[str](), 0
    for start, end, fill in spans:
        parts += (text[at:start], "\n" * text.count("\n", start, end) or fill)
        at = max(at, end)
    parts.append(text[at:])
    return "".join(parts)
