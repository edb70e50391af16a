"""Readers of text: encodings, hygiene, Markdown, HTML, tables, source code."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selm_edge.memory.documents.blocks import Block, DocumentError
from selm_edge.memory.documents.hygiene import strange_name, tidy
from selm_edge.memory.documents.passages import passages
from selm_edge.memory.documents.reading import load, open_document


def read(tmp_path: Path, name: str, data: str | bytes) -> list[Block]:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(open_document(load(path)).blocks)


def shape(blocks: list[Block]) -> list[tuple[str, str]]:
    return [
        (f"h{block.level}" if block.kind == "heading" else block.kind, block.text)
        for block in blocks
    ]


# -- hygiene -----------------------------------------------------------------------------------


@given(st.text())
@settings(max_examples=80, deadline=None)
def test_tidy_is_idempotent_and_keeps_the_lines(text: str) -> None:
    once = tidy(text)
    assert tidy(once) == once
    assert unicodedata.is_normalized("NFC", once)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    assert once.count("\n") == lines
    for sign in once:
        kind = unicodedata.category(sign)
        assert kind not in ("Cc", "Zl", "Zp", "Cs") or sign in "\n\t"


def test_joiners_stay_where_they_are_letters() -> None:
    persian = "می‌خواهم"
    assert tidy(persian) == persian
    assert tidy("pa\u200css\u200dword") == "password"


@pytest.mark.parametrize("name", ["a\nb.txt", "a\x1b[31mb.txt", "a\u202etxt.exe", "a\udcff.txt"])
def test_strange_names(name: str) -> None:
    assert strange_name(name)
    assert not strange_name("Ünïcode naïve — 漢字 ❤️ (1).txt")
    assert not strange_name(unicodedata.normalize("NFD", "Müller.txt"))


# -- encodings ---------------------------------------------------------------------------------

TEXT = "Grüße, naïve Ελληνικά 漢字 😀.\n\nZweiter Absatz."


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        unicodedata.normalize("NFD", TEXT).encode(),
    ],
)
def test_encodings(tmp_path: Path, data: bytes) -> None:
    found = read(tmp_path, "a.txt", data)
    assert [block.text for block in found] == TEXT.split("\n\n")
    assert [block.line for block in found] == [1, 3]


def test_western_text_is_read_with_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("“Café” costs 3 €\n".encode("cp1252"))
    document = open_document(load(path))
    assert [block.text for block in document.blocks] == ["“Café” costs 3 €"]
    assert "Windows-1252" in document.notices[0]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"\x7fELF" + bytes(range(256)) * 40, "a program"),
        ("a.md", b"PK\x03\x04" + os.urandom(4000), "zip"),
        ("a.py", b"\x89PNG\r\n\x1a\n" + os.urandom(4000), "image"),
        ("a", os.urandom(4000), "not text"),
        ("a.html", "plain".encode("utf-16-le") * 90, "not text"),
        ("a.pdf", b"just text", "not a PDF"),
        ("a.txt", codecs.BOM_UTF16_LE + os.urandom(3001), "not text"),
    ],
)
def test_binary_files_are_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        read(tmp_path, name, data)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none\.txt: cannot be read"):
        load(tmp_path / "none.txt")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(DocumentError, match="larger than 64 MB"):
        load(path)


# -- plain text and tables -----------------------------------------------------------------------


def test_plain_text(tmp_path: Path) -> None:
    text = "Title\n=====\n\nOne\ntwo.\n\n\nPart\n----\nThree.\n\n  Four.\n"
    found = read(tmp_path, "a.txt", text)
    assert shape(found) == [
        ("h1", "Title"), ("prose", "One\ntwo."), ("h2", "Part"), ("prose", "Three."),
        ("prose", "  Four."),
    ]  # fmt: skip
    assert [(block.line, block.line_end) for block in found] == [
        (1, 2), (4, 5), (8, 9), (10, 10), (12, 12),
    ]  # fmt: skip


def test_tables_of_values(tmp_path: Path) -> None:
    [table] = read(tmp_path, "a.csv", "\nname,year\nAda,1815\n\nAlan,1912\n")
    assert (table.kind, table.head) == ("lines", "name,year")
    assert (table.line, table.line_end) == (2, 5)


# -- Markdown ------------------------------------------------------------------------------------

MARKDOWN = """\
---
title: Notes
---
# First *part* ##

A paragraph
of two lines with `<!-- code -->` and <b>bold</b> words<!-- hidden -->.

Second
------
1. one
2. two

   more of two

```html
<!-- kept -->

<div hidden>kept</div>
```

| a | b |
|---|:-:|
| 1 | 2 |

***

#hashtag is no heading, and C# is a language. 2 < 3, vector<int> x;
![A map of the town](map.png "title") [a link](https://example.org)
"""


def test_markdown(tmp_path: Path) -> None:
    found = read(tmp_path, "a.md", MARKDOWN)
    assert shape(found) == [
        ("lines", "title: Notes"),
        ("h1", "First *part*"),
        ("prose", "A paragraph\nof two lines with `<!-- code -->` and bold words."),
        ("h2", "Second"),
        ("lines", "1. one\n2. two"),
        ("prose", "   more of two"),
        ("lines", "```html\n<!-- kept -->\n\n<div hidden>kept</div>\n```"),
        ("lines", "| a | b |\n|---|:-:|\n| 1 | 2 |"),
        (
            "prose",
            "#hashtag is no heading, and C# is a language. 2 < 3, vector<int> x;\n"
            "A map of the town [a link](https://example.org)",
        ),
    ]
    lines = MARKDOWN.split("\n")
    for block in found:
        first = re.sub(r"\W", "", block.text.split("\n")[0])
        assert block.line is not None
        assert first in re.sub(r"\W|<.*?>", "", lines[block.line - 1]) or "`" in block.text
    assert found[6].head == "```html" and found[6].tail == "```"


# What CommonMark and a browser show of these, word by word, as markdown-it-py renders them.
RENDERED = [
    "# A\n\ntext <!-- x --> more\n",
    "a <span hidden>gone</span> b\n",
    "<div style='display:none'>\n\n# gone\n\ngone\n\n</div>\n\nshown\n",
    "`<!-- kept -->` and ``<b>kept</b>``\n",
    "~~~\n<!-- kept -->\n~~~\n",
    "[//]: # (gone)\n\nshown\n",
    "<?php gone ?> shown\n",
    "a\n<!--\ngone\n\ngone\n-->\nshown\n",
    "```\nunclosed <!-- kept -->\n",
    "1 < 2 and 3 > 2\n",
    "    indented\n\ntext\n",
    "<p hidden>gone\n\n<p>shown\n",
]


@pytest.mark.parametrize("text", RENDERED)
def test_markdown_shows_what_a_renderer_shows(tmp_path: Path, text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").render(text)
    expected = seen_by_lxml(html)
    found = read(tmp_path, "a.md", text)
    assert letters("".join(block.text for block in found)) == expected


# -- HTML ----------------------------------------------------------------------------------------


def seen_by_lxml(html: str) -> str:
    """The letters of a page but for elements that are hidden, by another parser."""
    parser = pytest.importorskip("lxml.html")
    tree = parser.document_fromstring(html)
    gone = {"script", "style", "template", "svg", "select", "title"}
    for element in list(tree.iter()):
        style = (element.get("style") or "").replace(" ", "").lower()
        if (
            not isinstance(element.tag, str)
            or element.tag in gone
            or element.get("hidden") is not None
            or "display:none" in style
            or "gone" in (element.get("class") or "")
        ):
            tail = element.tail
            parent = element.getparent()
            if parent is None:
                continue
            before = element.getprevious()
            if before is not None:
                before.tail = (before.tail or "") + (tail or "")
            else:
                parent.text = (parent.text or "") + (tail or "")
            parent.remove(element)
    return letters("".join(tree.itertext()))


def letters(text: str) -> str:
    return re.sub(r"\W", "", text)


PAGE = """<!DOCTYPE html><html><head><title>The page</title>
<style>.gone { display: none }</style></head><body>
<h1>Main &amp; <em>only</em></h1>
<p>One <b>bold</b>er word.<br>New line.
<p>Two <span hidden>secret</span>words &#x2014; and
<abbr title="World Health Organization">WHO</abbr>.
<ul><li>first<li><p>second</p><ul><li>inner</ul></ul>
<h2>Table</h2>
<table><caption>Years</caption><tr><th>Name<th>Born<tr><td>Ada<td>1815<tr><td>Alan<td>1912
</table>
<div class="note gone">secret</div>
<pre>
def f():
    return 1
</pre>
<img src="a.png" alt="A red bicycle"><img src="b.png" alt="b.png">
<blockquote>Quoted.</blockquote></body></html>
"""


def test_html(tmp_path: Path) -> None:
    found = read(tmp_path, "a.html", PAGE)
    assert shape(found) == [
        ("h1", "Main & only"),
        ("prose", "One bolder word.\nNew line."),
        ("prose", "Two words — and WHO (World Health Organization)."),
        ("lines", "- first\n- second\n- inner"),
        ("h2", "Table"),
        ("lines", "Years\nName | Born\nAda | 1815\nAlan | 1912"),
        ("lines", "def f():\n    return 1"),
        ("prose", "A red bicycle"),
        ("prose", "Quoted."),
    ]
    assert [block.line for block in found] == [3, 4, 5, 7, 8, 9, 13, 16, 17]


def test_a_title_heads_a_page_without_a_heading(tmp_path: Path) -> None:
    found = read(tmp_path, "a.html", "<title>Rates\n of 2024</title><h2>Old</h2><p>None.")
    assert shape(found) == [("h1", "Rates of 2024"), ("h2", "Old"), ("prose", "None.")]


@pytest.mark.parametrize(
    "html",
    [
        PAGE,
        "<p>a<div>b</div>c",
        "<p>a<p hidden>gone<p>b",
        "<ul><li>a<ul><li hidden>gone<li>b</ul><li>c</ul>",
        "<table><tr><td hidden>gone<td>a<tr><td>b<table><tr><td>c</table>d</table>e",
        "<div hidden><p>gone<div>gone</div></div>shown",
        "<b>a<i>b</b>c</i>d",
        "a &lt;b&gt; &amp;amp; &copy; &#65; &nosuch; b",
        "<dl><dt>a<dd>b<dt hidden>gone<dd>c</dl>",
        "text <style>gone</style> text <script>if (a<b) gone()</script> more",
        "<select><option>gone<option>gone</select>shown",
        "<div><span hidden>gone</div>shown",
        "x<!-- gone --><!---->y<!-- gone -- gone -->z",
    ],
)
def test_html_shows_what_another_parser_shows(tmp_path: Path, html: str) -> None:
    found = read(tmp_path, "a.html", html)
    mine = letters("".join(block.text for block in found))
    for extra in ("WorldHealthOrganization", "Aredbicycle"):
        mine = mine.replace(extra, "")
    assert mine == seen_by_lxml(html)


TAGS = """<p> </p> <div> </div> <b> </b> <!-- --> <!-- <table> <tr> <td> </table> <li> <ul> </ul>
<span\thidden> </span> < > & &# &#x1b; </ <! <? <script> </script> <pre> </pre> " = a b"""


@given(
    st.lists(
        st.sampled_from(TAGS.split()),
        max_size=60,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_html_is_read(parts: list[str]) -> None:
    from selm_edge.memory.documents.html import read_html, unseen

    text = "".join(parts)
    for block in read_html(text):
        assert block.text.strip() and tidy(block.text) == block.text
    spans = unseen(text)
    ends = [0, *(end for _, end, _ in spans)]
    assert all(before <= start <= end for before, (start, end, _) in zip(ends, spans, strict=False))


# -- code, whole files ---------------------------------------------------------------------------


def test_source_code(tmp_path: Path) -> None:
    code = (
        "import os\n\n\n@decorated\ndef one():\n    a = 1\n\n    return a\n\n\nclass T:\n    x = 1"
    )
    path = tmp_path / "a.py"
    path.write_text(code)
    document = open_document(load(path))
    found = list(document.blocks)
    assert document.language == "python"
    assert [(block.line, block.text.split("\n")[0]) for block in found] == [
        (1, "import os"), (4, "@decorated"), (11, "class T:"),
    ]  # fmt: skip
    c = "int f(int a)\n{\n  a++;\n\n  return a;\n}\n\nint g(void)\n{\n  return 1;\n}\n"
    assert [block.line for block in read(tmp_path, "a.c", c)] == [1, 8]


def test_only_files_with_content_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(DocumentError, match="not a file with content"):
            load(path)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("a.txt", "."), ("a.txt", "a"), ("a.txt", "x. "), ("a.md", "!["), ("a.md", "`a "),
        ("a.md", "<!--"), ("a.md", "[x]: # "), ("a.html", "<a "), ("a.html", "<!--"),
        ("a.html", "<b></i>"), ("a.html", "<a b='"), ("a.html", "&"), ("a.html", "<li>"),
        ("a.py", "("), ("a.csv", ","),
    ],
)  # fmt: skip
def test_repetition_takes_no_time(tmp_path: Path, name: str, unit: str) -> None:
    """In proportion to the length; were it by its square, this would take minutes."""
    path = tmp_path / name
    path.write_text(unit * (100_000 // len(unit)))
    list(passages(open_document(load(path)).blocks))
