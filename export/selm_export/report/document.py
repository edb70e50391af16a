"""A page of sections, as HTML and as Markdown.

Nothing in the HTML is fetched: styles and pictures stand in it, and its own security policy forbids
the rest. It is written so that it is well-formed XML too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""  # what it is called while it is folded away

    @property
    def texts(self) -> list[bool]:
        """Which columns hold words: the first, and those without a number."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.head))]
        numbers = [any(re.match(r"-?\d", cell) for cell in column) for column in columns]
        return [not some or i == 0 for i, some in enumerate(numbers)]


@dataclass(frozen=True)
class Picture:
    svg: str
    says: str


@dataclass(frozen=True)
class Items:
    items: Sequence[str]


Block = str | Table | Picture | Items


@dataclass
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)


# ---- HTML ----------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --ground: #ffffff; --line: #d5d8dc;
  --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --ground: #16181b; --line: #3a3f45; --soft: #202429; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 92rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p, li { max-width: 50rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.83rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.55rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { background: var(--soft); vertical-align: bottom; white-space: normal; }
.text { text-align: left; }
figure { margin: 1rem 0; max-width: 46rem; } figure svg { width: 100%; height: auto; }
figcaption { font-size: 0.87rem; opacity: 0.8; }
summary { cursor: pointer; margin: 0.4rem 0; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def _html_table(found: Table) -> str:
    marks = [' class="text"' if text else "" for text in found.texts]

    def row(tag: str, cells: Sequence[str]) -> str:
        inside = "".join(
            f"<{tag}{mark}>{html.escape(cell)}</{tag}>"
            for cell, mark in zip(cells, marks, strict=True)
        )
        return f"<tr>{inside}</tr>"

    body = "\n".join(row("td", cells) for cells in found.rows)
    text = (
        f'<div class="wide"><table><thead>{row("th", found.head)}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )
    if not found.folded:
        return text
    return f"<details><summary>{html.escape(found.folded)}</summary>\n{text}</details>"


def _html(block: Block) -> str:
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        caption = html.escape(block.says)
        return f"<figure>{block.svg}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, Items):
        inside = "".join(f"<li>{html.escape(item)}</li>" for item in block.items)
        return f"<ul>{inside}</ul>"
    return f"<p>{html.escape(block)}</p>"


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    name = html.escape(title)
    parts = []
    for section in sections:
        inside = "\n".join(map(_html, section.blocks))
        parts.append(f"<section><h2>{html.escape(section.title)}</h2>\n{inside}</section>")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}"/>\n'
        f"<title>{name}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


# ---- Markdown ------------------------------------------------------------------------------------


def _cell(text: str) -> str:
    """Escaped, so that a name is shown as it is."""
    text = re.sub(r"([\\|`*_\[\]])", r"\\\1", text)
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def _markdown_table(found: Table) -> str:
    ruler = ["---" if text else "---:" for text in found.texts]
    cells = [[*map(_cell, row)] for row in (found.head, *found.rows)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], ruler, *cells[1:]))
    return f"**{_cell(found.folded)}**\n\n{text}" if found.folded else text


def _markdown(block: Block) -> str:
    if isinstance(block, Table):
        return _markdown_table(block)
    if isinstance(block, Picture):
        return f"(Plot in the HTML page: {_cell(block.says)}.)"
    if isinstance(block, Items):
        return "\n".join(f"- {_cell(item)}" for item in block.items)
    return _cell(block)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {_cell(title)}"]
    for section in sections:
        parts.append(f"## {_cell(section.title)}")
        parts += map(_markdown, section.blocks)
    return "\n\n".join(parts) + "\n"
