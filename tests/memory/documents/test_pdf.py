"""PDF files: pages and paragraphs; damaged, encrypted and hostile ones fail alone and soon."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.pdf_files import bomb, loop, pdf

from selm_edge.memory.documents import pdf as reader
from selm_edge.memory.documents import pdf_worker
from selm_edge.memory.documents.blocks import Block, DocumentError
from selm_edge.memory.documents.passages import passages
from selm_edge.memory.documents.reading import load, open_document

pypdf = pytest.importorskip("pypdf")


def read(tmp_path: Path, data: bytes, name: str = "a.pdf") -> list[Block]:
    path = tmp_path / name
    path.write_bytes(data)
    return list(open_document(load(path)).blocks)


def test_pages_and_paragraphs(tmp_path: Path) -> None:
    made = pdf(
        [
            "A first line of text that is as long as lines are,\n"
            "a second line of text that is as long, too, and an\n"
            "end.\n"
            "The next paragraph begins here, and it has a hyphen-\n"
            "ated word in it and goes on over the end of the page",
            "until here (with brackets).\nA third paragraph has \\x1b in it, no escape.",
            "",
            "Page four.",
        ]
    )
    found = read(tmp_path, made, "named.txt")  # by its content, not by its name
    assert [(block.page, block.text) for block in found] == [
        (1, "A first line of text that is as long as lines are,\n"
            "a second line of text that is as long, too, and an\nend."),
        (1, "The next paragraph begins here, and it has a hyphenated word in it and goes on over"
            " the end of the page\nuntil here (with brackets)."),
        (2, "A third paragraph has \\x1b in it, no escape."),
        (4, "Page four."),
    ]  # fmt: skip


def test_each_passage_knows_its_page(tmp_path: Path) -> None:
    pages = [
        "\n".join(f"Page {page} has line {line} and some words more." for line in range(30))
        for page in range(1, 6)
    ]
    for one in passages(read(tmp_path, pdf(pages))):
        assert f"Page {one.page} has line" in one.text
        assert one.text.count(f"Page {one.page} has") == one.text.count("Page ")
        assert one.line is None


def test_encrypted_files(tmp_path: Path) -> None:
    def encrypted(user: str) -> bytes:
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(["Secret words."])))
        writer.encrypt(user, "owner", algorithm="RC4-128")
        out = io.BytesIO()
        writer.write(out)
        return out.getvalue()

    with pytest.raises(DocumentError, match="needs a password"):
        read(tmp_path, encrypted("user"))
    # With an owner's password only, everyone may read.
    assert [block.text for block in read(tmp_path, encrypted(""))] == ["Secret words."]


def test_a_scan_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="ocrmypdf"):
        read(tmp_path, pdf(["", ""]))


@pytest.mark.parametrize("data", [b"%PDF-1.7\n" + b"x" * 2000, b"%PDF-", loop()])
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"a\.pdf: (a damaged|holds no text)"):
        read(tmp_path, data)


def test_truncated_and_flipped_files_never_raise_anything_else(tmp_path: Path) -> None:
    whole = pdf([f"Page {n} is here." for n in range(5)], compress=False)
    chance = random.Random(4)
    kinds: set[bool] = set()
    for round_ in range(6):
        data = bytearray(whole)
        if round_ % 2:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(2):
                data[chance.randrange(10, len(data))] = chance.randrange(256)
        try:
            found = read(tmp_path, bytes(data))
            kinds.add(True)
            assert all(block.text.strip() for block in found)
        except DocumentError:
            kinds.add(False)
    assert kinds == {True, False}


def test_a_bomb_ends_itself_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PAGE_TIME", 3.0)
    monkeypatch.setattr(reader, "OPENING_TIME", 3.0)
    data = bomb(200_000_000)
    assert len(data) < 100_000
    with pytest.raises(DocumentError, match=r"takes too long|memory|damaged|no text|ended"):
        read(tmp_path, data)
    assert [block.text for block in read(tmp_path, pdf(["Still here."]))] == ["Still here."]


def test_a_page_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPENING_TIME", 2.0)
    slow = b"BT /F1 12 Tf " + b"[(word) 3 (word)] TJ 1 0 0 1 3 3 Tm " * 1_000_000 + b" ET"
    with pytest.raises(DocumentError, match="takes too long"):
        read(tmp_path, pdf([slow]))


def test_the_time_of_who_reads_is_not_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(reader, "PAGE_TIME", 1.0)
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf([f"Page {n}. " + "x" * 50 for n in range(3)]))
    for _ in open_document(load(path)).blocks:
        time.sleep(0.8)


def test_stopping_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf([f"Page {n} is here." for n in range(300)]))
    blocks = open_document(load(path)).blocks
    next(blocks)
    before = children()
    blocks.close()  # type: ignore[attr-defined]
    assert len(children()) == len(before) - 1


def children() -> list[str]:
    listing = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in listing.stdout.splitlines() if "pdf_worker" in line]


def test_without_pypdf_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    (blocked / "pypdf").mkdir(parents=True)
    (blocked / "pypdf" / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(blocked), *sys.path]))
    with pytest.raises(DocumentError, match=r"pip install 'selm-edge\[docs\]'"):
        read(tmp_path, pdf(["Text."]))


def test_many_pages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"page": n, "text": f"Page {n}."} for n in range(1, 4)] + [{"error": "pages"}]
    monkeypatch.setattr(reader._Worker, "entries", lambda self: iter(entries))
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(["x"]))
    document = open_document(load(path))
    assert len(list(document.blocks)) == 3
    assert "20,000 pages" in document.notices[0]
    assert pdf_worker.MAX_PAGES == 20_000
