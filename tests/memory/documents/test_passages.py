"""Passages: nothing is lost, sizes hold, lines and pages are right, cuts fall on edges."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.bundled import DEFAULT

from selm_edge import Tokenizer
from selm_edge.memory.documents.blocks import Block, Unit
from selm_edge.memory.documents.code import read_code
from selm_edge.memory.documents.hygiene import tidy
from selm_edge.memory.documents.markdown import read_markdown
from selm_edge.memory.documents.passages import (
    LARGEST,
    OVERLAP,
    SMALLEST,
    Passage,
    passages,
)
from selm_edge.memory.documents.sentences import sentences
from selm_edge.memory.documents.text import read_table, read_text
from selm_edge.memory.documents.tokens import estimate

ROOT = Path(__file__).parents[3]
READERS: dict[str, Callable[[str], object]] = {
    "text": read_text,
    "markdown": read_markdown,
    "code": read_code,
    "table": read_table,
}
QUIET = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

word = st.text(string.ascii_letters + string.digits + "äñ漢字éЖ,;()'\"|`#-=*<>[]!", min_size=1,
               max_size=14)  # fmt: skip
sentence = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(word, min_size=1, max_size=40),
    st.sampled_from([".", "!", "?", "。", "", " ..."]),
)
paragraph = st.builds(
    lambda sentences, glue: glue.join(sentences),
    st.lists(sentence, min_size=1, max_size=40),
    st.sampled_from([" ", "\n", "  "]),
)
part = st.one_of(
    paragraph,
    st.builds(lambda text, n: "#" * n + " " + text, sentence, st.integers(1, 6)),
    st.builds(lambda text: "```python\n" + text + "\n```", paragraph),
    st.builds(lambda row, n: "|a|b|\n|---|---|\n" + f"|{row}|x|\n" * n, word, st.integers(1, 80)),
    st.builds(lambda text, n: text * n, word, st.integers(1, 900)),  # a word without end
    st.just("    indented\n\n\n        deeper"),
)
document = st.builds("\n\n".join, st.lists(part, min_size=1, max_size=12)).map(tidy)


def signs(text: str) -> str:
    return "".join(text.split())


def is_within(needle: str, pieces: list[str]) -> bool:
    """Whether ``needle`` can be read in the pieces one after the other: each goes on from what
    was read, after what it repeats."""
    read = 0
    for piece in pieces:
        # Where the piece goes on: the place from which the most of the rest stands there.
        head = needle[read : read + 12]
        shared = [
            len(commonprefix([piece[at:], needle[read:]]))  # noqa: RUF071 - of letters
            for at in range(len(piece))
            if piece.startswith(head, at) or needle.startswith(piece[at:], read)
        ]
        read += max(shared, default=0)
    return read == len(needle)


@pytest.mark.parametrize("reader", sorted(READERS))
@given(text=document)
@example(text="0;" * 31 + "\n\n" + ";0;" * 199)  # as long as a passage, after an empty line
@QUIET
def test_nothing_is_lost_and_nothing_is_too_large(reader: str, text: str) -> None:
    blocks: list[Block] = list(READERS[reader](text))  # type: ignore[call-overload]
    found = list(passages(blocks))
    whole = signs("".join(block.text for block in blocks))
    assert is_within(whole, [signs(one.text) for one in found])
    for one in found:
        assert one.text.strip()
        assert estimate(one.text) <= one.tokens <= LARGEST
        assert len(one.text) <= 17 * LARGEST


@pytest.mark.parametrize("reader", ["text", "code", "table"])
@given(text=document)
@QUIET
def test_readers_keep_every_sign(reader: str, text: str) -> None:
    """But for the lines that underline headings in a plain text."""
    blocks: list[Block] = list(READERS[reader](text))  # type: ignore[call-overload]
    if reader == "text":
        rule = re.compile(r"(?m)^[ \t]*(=|-|~|\^|\*)\1{2,}[ \t]*$")
        text = rule.sub("", text)
        blocks = [replace(block, text=rule.sub("", block.text)) for block in blocks]
    assert signs("".join(block.text for block in blocks)) == signs(text)


@pytest.mark.parametrize("reader", sorted(READERS))
@given(text=document)
@QUIET
def test_lines_are_those_of_the_file(reader: str, text: str) -> None:
    blocks: list[Block] = list(READERS[reader](text))  # type: ignore[call-overload]
    lines = text.split("\n")
    for one in passages(blocks):
        assert one.line is not None and one.line_end is not None
        assert 1 <= one.line <= one.line_end <= len(lines)
        there = "\n".join(lines[one.line - 1 : one.line_end])
        words = one.text.split()
        # Repeated table headers and closing fences apart, its first and last word stand there.
        if reader in ("text", "code"):
            assert words[0] in there and words[-1] in there


@given(text=document, size=st.integers(1, 9))
@QUIET
def test_any_way_of_counting(text: str, size: int) -> None:
    def count(part: str) -> int:
        return -(-len(part.encode()) // size)

    for one in passages(read_markdown(text), count):
        assert count(one.text) <= LARGEST


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
@QUIET
def test_sentences_stay_whole(lengths: list[int]) -> None:
    made = [
        " ".join(f"w{number}x{at}" for at in range(length)) + "."
        for number, length in enumerate(lengths)
    ]
    made = [one[0].upper() + one[1:] for one in made]
    found = list(passages(read_text(" ".join(made))))
    for one in found:
        assert [one.text[a:b] for a, b in sentences(one.text)] == [
            whole for whole in made if whole in one.text
        ]


def test_a_small_document_is_one_passage() -> None:
    text = "# One\n\nA few words.\n\n# Two\n\nMore words.\n\n## Three\n\n- an item\n"
    assert len(list(passages(read_markdown(text)))) == 1


def prose(words: int, name: str = "w") -> str:
    return ". ".join(
        " ".join(f"{name}{number} and so" for number in range(at, at + 4)).capitalize()
        for at in range(0, words // 3, 4)
    ) + "."  # fmt: skip


def test_headings_are_the_first_choice() -> None:
    sections = [f"# Part {n}\n\n" + "\n\n".join(prose(60, f"p{n}x{k}") for k in range(3))
                for n in range(6)]  # fmt: skip
    found = list(passages(read_markdown("\n\n".join(sections))))
    assert [one.heading for one in found] == [f"Part {n}" for n in range(6)]
    assert all(one.text.startswith(f"Part {n}\n\n") for n, one in enumerate(found))


def test_only_a_cut_paragraph_overlaps() -> None:
    long = prose(1500)
    found = list(passages(read_text(f"Before it.\n\n{long}\n\nAfter it.")))
    assert len(found) > 3
    for one, following in pairwise(found):
        ends = [one.text[a:b] for a, b in sentences(one.text)]
        starts = [following.text[a:b] for a, b in sentences(following.text)]
        shared = [text for text in starts if text in ends]
        assert shared == ends[-len(shared) :] == starts[: len(shared)]
        assert 0 < estimate(" ".join(shared)) <= OVERLAP + 1
    parts = "\n\n".join(prose(150, f"q{n}x") for n in range(9))
    found = list(passages(read_text(parts)))
    assert "\n\n".join(one.text for one in found) == parts


def test_sizes_are_200_to_400() -> None:
    texts = ["\n\n".join(prose(length, f"k{k}x") for k in range(20)) for length in (30, 90, 400)]
    for text in texts:
        sizes = [one.tokens for one in passages(read_text(text))]
        assert all(SMALLEST <= size <= LARGEST for size in sizes)


def test_a_paragraph_that_fits_is_not_cut() -> None:
    text = "\n\n".join(prose(length, f"z{n}x") for n, length in enumerate([40, 150, 40, 160, 20]))
    blocks = [block.text for block in read_text(text)]
    found = [one.text for one in passages(read_text(text))]
    assert all(any(block in one for one in found) for block in blocks)


def test_tables_repeat_their_header_and_fences_their_language() -> None:
    rows = "\n".join(f"| row {n} | value {n * n} |" for n in range(200))
    found = list(passages(read_markdown(f"| name | value |\n| --- | --- |\n{rows}\n")))
    assert len(found) > 3
    for one in found:
        lines = one.text.split("\n")
        assert lines[:2] == ["| name | value |", "| --- | --- |"]
        assert all(line.startswith("| row") and line.endswith("|") for line in lines[2:])
    assert sum(one.text.count("| row ") for one in found) == 200
    code = "\n".join(f"value_{n} = compute({n})" for n in range(200))
    found = list(passages(read_markdown(f"Text.\n\n```python\n{code}\n```\n\nEnd.")))
    fenced = [one for one in found if "value_" in one.text]
    assert len(fenced) > 3
    assert all(one.text.count("```") == 2 and "```python\n" in one.text for one in fenced)
    assert sum(one.text.count("compute(") for one in found) == 200


def test_code_is_cut_between_definitions() -> None:
    functions = [
        f"def function_{n}(value):\n" + "".join(f"    value += {k} * {n}\n\n" for k in range(9))
        + "    return value\n" for n in range(20)
    ]  # fmt: skip
    text = "import os\n\n\n" + "\n\n".join(functions)
    found = list(passages(read_code(text)))
    assert len(found) > 2
    for one in found[1:]:
        assert one.text.startswith("def function_")
        assert text.split("\n")[(one.line or 0) - 1].startswith("def function_")


def test_pages_and_units_are_not_mixed() -> None:
    pages = [Block("prose", prose(100, f"n{n}x"), page=n) for n in range(1, 7)]
    assert [one.page for one in passages(pages)] == [1, 2, 3, 4, 5, 6]
    short = [Block("prose", "A word.", page=n) for n in range(1, 4)]
    assert [one.text for one in passages(short)] == ["A word.\n\nA word.\n\nA word."]
    units = [
        Block("heading", f"Title {n}", n, n, level=1, unit=Unit(f"c{n}", n)) if half == 0
        else Block("prose", f"Text {n}.", n, n)
        for n in range(4) for half in range(2)
    ]  # fmt: skip
    found = list(passages(units))
    assert [one.text for one in found] == [f"Title {n}\n\nText {n}." for n in range(4)]
    assert [(one.unit.cursor if one.unit else None, one.number) for one in found] == [
        (f"c{n}", 0) for n in range(4)
    ]


def test_only_a_window_is_read_ahead() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield Block("prose", prose(90, f"e{taken}x"), taken, taken)

    stream = passages(endless())  # type: ignore[arg-type]
    found: list[Passage] = [next(stream) for _ in range(50)]
    assert found[-1].number == 49
    assert taken < 50 * 5 + 20


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "selm_edge/catalog.py"])
def test_the_estimate_is_close_to_a_tokenizer(name: str) -> None:
    """The bundled model's vocabulary is small, so its count is higher, always by about as much."""
    text = source(name)
    tokenizer = Tokenizer.load(DEFAULT)
    ratio = len(tokenizer.tokenize(text, add_special=False)) / estimate(text)
    assert 1.2 < ratio < 2.1


@pytest.mark.parametrize("vocabulary", ["qwen2", "phi-3"])
@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "selm_edge/catalog.py"])
def test_the_estimate_is_within_a_quarter_of_the_common_tokenizers(
    name: str, vocabulary: str
) -> None:
    folder = os.environ.get("SELM_SHARED_DATA", "")
    path = Path(folder) / "tokenizers" / f"ggml-vocab-{vocabulary}.gguf"
    if not folder or not path.exists():
        pytest.skip("SELM_SHARED_DATA does not name a folder with this vocabulary")
    text = source(name)
    ratio = len(Tokenizer.load(path).tokenize(text, add_special=False)) / estimate(text)
    assert 0.75 < ratio < 1.25


def source(name: str) -> str:
    path = ROOT / name
    if not path.exists():
        pytest.skip("the sources are not here")
    return path.read_text()
