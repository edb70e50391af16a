"""Wikipedia dumps: articles as text, resumed anywhere, bounded whatever is in the file."""

from __future__ import annotations

import bz2
import tracemalloc
from itertools import islice
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selm_edge.memory.documents import wikipedia
from selm_edge.memory.documents.blocks import Block, DocumentError
from selm_edge.memory.documents.passages import passages
from selm_edge.memory.documents.reading import load, open_document
from selm_edge.memory.documents.wikitext import FOLD, plain, read_wikitext

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n'
    "  <siteinfo>\n    <sitename>Wikipedia</sitename>\n  </siteinfo>\n"
)


def page(title: str, text: str, *, ns: int = 0, redirect: str = "", model: str = "wikitext") -> str:
    moved = f'    <redirect title="{redirect}" />\n' if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>7</id>\n{moved}"
        "    <revision>\n      <id>8</id>\n      <contributor><ip>::1</ip></contributor>\n"
        f"      <model>{model}</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="9" xml:space="preserve">{escape(text)}</text>\n'
        "      <sha1>x</sha1>\n    </revision>\n  </page>\n"
    )


ADA = """{{Short description|Mathematician}}
{{Infobox person
| name = Ada
| birth_date = {{birth date|1815|12|10|df=y}}
| spouse = {{marriage|[[William]]|1835}}
}}
[[File:Ada.jpg|thumb|upright|A [[portrait|painting]] of her<ref>no</ref>]]
'''Ada Lovelace''' ({{IPAc-en|x}}; 10 December 1815{{snd}}27 November 1852) was an ''English''
[[mathematician]]s' friend and [[Writer (profession)|writer]].<ref name="a">A book
on two lines</ref><ref name=b /> She walked {{convert|5|-|6|km|mi|abbr=on}} to {{lang|fr|Calais}}.

== Early life ==
<!-- hidden
comment -->She was born in [[London]]&nbsp;&mdash; see [http://example.org the site] [https://x.org].

* one ''item'' with {{nowrap|three words}}
* [[:Category:People|people]]

{| class="wikitable"
! a !! b
|-
| c || {| nested
| d
|}
|}
After the table.

=== Empty ===
== Later ==
:Indented <math>x^2</math> text<br />with a break.<gallery>
File:A.jpg|gone
</gallery>
== References ==
{{reflist}}
[[Category:People]] [[de:Ada Lovelace]]
"""

DUMP = (
    HEAD
    + page("Ada Lovelace", ADA)
    + page("AL", "#REDIRECT [[Ada Lovelace]]", redirect="Ada Lovelace")
    + page("Talk:Ada Lovelace", "Talk.", ns=1)
    + page("Module", "return 1", model="Scribunto")
    + page("Charles & Co.", "'''Charles''' built engines.")
    + page("Nothing", "{{disambiguation}}")
    + page("Last", "The last one.\n\nIt has two paragraphs.")
    + "</mediawiki>\n"
)


def write(tmp_path: Path, text: str, name: str = "wiki.xml") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def packed(tmp_path: Path, text: str, streams: int) -> Path:
    """bzip2 as the multistream dumps are: the head, then streams of whole pages."""
    pages = text.split("  <page>")
    chunks = [pages[0], *("  <page>" + one for one in pages[1:])]
    size = -(-len(chunks) // streams)
    parts = ["".join(chunks[at : at + size]) for at in range(0, len(chunks), size)]
    path = tmp_path / f"wiki-{streams}.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(part.encode()) for part in parts))
    return path


EXPECTED = [
    ("heading", "Ada Lovelace"),
    (
        "prose",
        "Ada Lovelace (10 December 1815 \u2013 27 November 1852) was an English\n"
        "mathematicians' friend and writer. She walked 5\u20136 km to Calais.",
    ),
    ("heading", "Early life"),
    ("prose", "She was born in London — see the site."),
    ("lines", "- one item with three words\n- people"),
    ("prose", "After the table."),
    ("heading", "Later"),
    ("prose", "Indented text with a break."),
    ("heading", "Charles & Co."),
    ("prose", "Charles built engines."),
    ("heading", "Last"),
    ("prose", "The last one."),
    ("prose", "It has two paragraphs."),
]


def shape(blocks: list[Block]) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks]


@pytest.mark.parametrize("streams", [0, 1, 3, 8])
def test_articles(tmp_path: Path, streams: int) -> None:
    path = packed(tmp_path, DUMP, streams) if streams else write(tmp_path, DUMP)
    document = open_document(load(path))
    found = list(document.blocks)
    assert document.kind == "wikipedia" and document.notices == []
    assert shape(found) == EXPECTED
    lines = DUMP.split("\n")
    for block in found:
        assert block.line is not None and block.line_end is not None
        there = " ".join(lines[block.line - 1 : block.line_end])
        assert escape(block.text.split()[-1].strip(".")) in there, block


@pytest.mark.parametrize("streams", [0, 1, 3, 8])
def test_reading_goes_on_at_any_article(tmp_path: Path, streams: int) -> None:
    path = packed(tmp_path, DUMP, streams) if streams else write(tmp_path, DUMP)
    found = list(open_document(load(path)).blocks)
    starts = [at for at, block in enumerate(found) if block.unit]
    assert len(starts) == 3
    for at in starts:
        unit = found[at].unit
        assert unit is not None
        assert list(open_document(load(path), unit.cursor).blocks) == found[at:]
    cursors = [block.unit.cursor or "" for block in found if block.unit]
    streams_used = {cursor.split(",")[0] for cursor in cursors}
    assert len(streams_used) == {0: 1, 1: 1, 3: 3, 8: 3}[streams]


def test_one_article_is_cited_as_such(tmp_path: Path) -> None:
    found = list(passages(open_document(load(write(tmp_path, DUMP))).blocks))
    assert [one.heading for one in found] == ["Ada Lovelace", "Charles & Co.", "Last"]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''''both''''' ''it'' '''b'''", "both it b"),
        ("[[a|b]] [[c]]s [[d (e)|]] [[#x|y]] [[Image:z.png|thumb|[[a]] b]]", "b cs d y"),
        ("a{{b|{{c|{{d}}}}|e=[[f|g]]}}h", "ah"),
        ("{{{1|default}}} x", "x"),
        ("a {{unclosed b", "a {{unclosed b"),
        ("a [[unclosed b", "a [[unclosed b"),
        ("a }} b ]] c", "a }} b ]] c"),
        ("a<ref>b<ref>c</ref>d", "ad"),
        ("a<ref>unclosed b", "aunclosed b"),
        ("a<!-- b <i --> c", "a c"),
        ("a<!-- unclosed", "a"),
        ("x<sub>2</sub> y<sup>3</sup><br/>z", "x2 y3 z"),
        ("[http://a.b c d] e [//f.g h] [i]", "c d e h [i]"),
        ("{{convert|12|ft|m}} and {{cvt|3|kg}}", "12 ft and 3 kg"),
        (
            "{{as of|2020}}, {{circa|1500}} {{lang-de|Haus}} {{frac|1|2}}",
            "as of 2020, c. 1500 Haus 1/2",
        ),
        ("a (; b) c () d ({{x}}, e)", "a (b) c d (e)"),
        ("&lt;b&gt; &amp;amp; &nbsp;x", "<b> &amp; x"),
        ("__NOTOC__ a", "a"),
        ("{|\n|a\n|}b", "b"),
        ("{{x|\n{|\n|a\n|}\n}}b", "b"),
        ("{| unclosed\n| a", ""),
        ("[[Bestand:x.png|thumb|y]] [[Категория:z]] a", "a"),
        ("----\na", "a"),
        ("; term\n: definition\n# one\n*#* two", "term\ndefinition\n- one\n- two"),
    ],
)
def test_wikitext(wikitext: str, text: str) -> None:
    blocks = [block for block in read_wikitext("T", wikitext, 1, 1) if block.kind != "heading"]
    assert "\n".join(block.text for block in blocks) == text


MARKS = (
    "{{ }} [[ ]] {| |} | \n = == ''' <ref> </ref> <ref/> <!-- --> <math> [http://a ] * : a b {{{"
    " }}} <br> < > & &amp; &#10; &#x85; \0 File: {{convert|1|2}} }"
)


@given(st.lists(st.sampled_from(MARKS.split(" ")), max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_wikitext_keeps_its_lines(parts: list[str]) -> None:
    text = "".join(parts)
    bare = plain(text)
    assert bare.count("\n") + bare.count(FOLD) == text.count("\n")
    for block in read_wikitext("T", text, 5, 5):
        assert block.text.strip()
        assert 5 <= (block.line or 0) <= (block.line_end or 0) <= 5 + text.count("\n")


@pytest.mark.parametrize(
    "unit", ["{{", "[[", "<ref>", "<!--", "{|\n", "[http://", "<a ", "'''", "{{a|", "}}", "|}\n",
             "[[File:", "=", "(", "<math>", "{{{", " ,", "\n=", "&"],
)  # fmt: skip
def test_nesting_without_end_takes_no_time(unit: str) -> None:
    """A third of a megabyte: in proportion to the length, or this test would take hours."""
    list(read_wikitext("T", unit * (300_000 // len(unit)) + " end", 1, 1))


# -- files that are no dumps, or hostile ---------------------------------------------------------

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE mediawiki [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB + DUMP.replace("Last", "&i;"), "document type"),
        ('<!DOCTYPE m SYSTEM "file:///etc/passwd">' + DUMP, "document type"),
        (HEAD + "<a>" * 100 + "</mediawiki>", "nested too deeply"),
        (HEAD + "<page>&undefined;</page></mediawiki>", "line 5 .*undefined entity"),
        (HEAD + "<page><title>a</page></mediawiki>", "mismatched tag"),
        (HEAD + page("Talk:A", "b", ns=1) + "</mediawiki>", "no articles"),
        ("<!-- <mediawiki> --><other/>", "kind 'other'"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    for path in (write(tmp_path, text), packed(tmp_path, text, 1)):
        with pytest.raises(DocumentError, match=said):
            list(open_document(load(path)).blocks)


def test_other_xml_is_source_code(tmp_path: Path) -> None:
    document = open_document(load(write(tmp_path, "<config>\n  <a>1</a>\n</config>\n")))
    assert (document.kind, document.language) == ("code", "xml")


def test_a_dump_that_ends_early_keeps_what_it_has(tmp_path: Path) -> None:
    text = DUMP[: DUMP.index("It has two")]
    for path in (write(tmp_path, text), packed(tmp_path, text, 3)):
        document = open_document(load(path))
        assert shape(list(document.blocks)) == EXPECTED[:10]
        assert "ends early" in document.notices[0]
    cut = packed(tmp_path, DUMP, 8)
    cut.write_bytes(cut.read_bytes()[:-40])
    document = open_document(load(cut))
    assert shape(list(document.blocks))[:10] == EXPECTED[:10]
    assert any("ends early" in notice for notice in document.notices)


def test_damaged_bzip2(tmp_path: Path) -> None:
    path = packed(tmp_path, DUMP, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DocumentError, match=r"bzip2 data is damaged|not text"):
        list(open_document(load(path)).blocks)


def test_a_bzip2_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xml.bz2"
    packer = bz2.BZ2Compressor()
    with path.open("wb") as file:
        file.write(packer.compress(HEAD.encode()))
        for _ in range(100):
            file.write(packer.compress(b" " * 1_000_000))
        file.write(packer.flush())
    assert path.stat().st_size < 10_000
    with pytest.raises(DocumentError, match="unpacks to far more"):
        list(open_document(load(path)).blocks)


def test_a_tag_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "_LARGEST_TAG", 1_000_000)
    path = write(tmp_path, HEAD + '<page a="' + "x" * 3_000_000 + '"></page></mediawiki>')
    with pytest.raises(DocumentError, match="one tag is larger"):
        list(open_document(load(path)).blocks)


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    path = tmp_path / "large.xml"
    body = "\n\n".join(
        f"Paragraph {n} of [[the]] article, {{{{gone}}}} with words." for n in range(20)
    )
    with path.open("w") as file:
        file.write(HEAD)
        for number in range(1500):
            file.write(page(f"Article {number}", body))
        file.write("</mediawiki>")
    assert path.stat().st_size > 1_800_000
    stream = passages(open_document(load(path)).blocks)
    assert len(list(islice(stream, 100))) == 100
    tracemalloc.start()
    list(islice(stream, 300))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 3_000_000
