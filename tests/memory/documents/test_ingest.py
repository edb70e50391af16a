"""Files into memory: unchanged ones skipped, changed ones replaced, any interruption survived."""

from __future__ import annotations

import bz2
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from support.pdf_files import pdf

from selm_edge.memory.documents import ingest as ingest_module
from selm_edge.memory.documents.ingest import Progress, Report, ingest
from selm_edge.memory.documents.passages import passages
from selm_edge.memory.documents.reading import load, open_document
from selm_edge.memory.memories import Filters, Memories, normalised
from selm_edge.store.database import Database
from selm_edge.store.errors import StoreError


class FakeEmbedder:
    """Vectors from a hash; counts how much it was asked."""

    id = "fake"
    dim = 8

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, texts: Sequence[str]) -> list[bytes]:
        import struct

        self.batches.append(len(texts))
        made: list[bytes] = []
        for text in texts:
            values = [byte + 1 for byte in hashlib.sha256(text.encode()).digest()[: self.dim]]
            length = sum(value * value for value in values) ** 0.5
            made.append(struct.pack(f"<{self.dim}f", *(value / length for value in values)))
        return made

    def close(self) -> None:
        pass


@pytest.fixture
def memories(tmp_path: Path) -> Memories:
    return Memories(Database(tmp_path / "selm.db"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "docs"
    path.mkdir()
    return path


def text_of(seed: int, paragraphs: int = 12) -> str:
    chance = random.Random(seed)
    words = [f"word{n}" for n in range(400)]
    return "\n\n".join(
        " ".join(chance.choices(words, k=chance.randrange(20, 120))).capitalize() + "."
        for _ in range(paragraphs)
    )


def stored(memories: Memories, path: Path) -> list[str]:
    rows = memories.database.rows(
        "select memory.text from memory join document on document.id = memory.document"
        " where document.path = ? order by line, page, memory.id",
        (str(path),),
    )
    return [row[0] for row in rows]


def expected(path: Path) -> list[str]:
    return [one.text.strip() for one in passages(open_document(load(path)).blocks)]


def state(memories: Memories) -> list[tuple[object, ...]]:
    return memories.database.rows("select path, state, resume from document order by path")


def test_a_folder(memories: Memories, folder: Path) -> None:
    (folder / "a.txt").write_text(text_of(1))
    (folder / "sub").mkdir()
    (folder / "sub/b.md").write_text("# Title\n\n" + text_of(2))
    (folder / "c.pdf").write_bytes(pdf(["Page one.", "Page two."]))
    (folder / "d.bin").write_bytes(b"\x7fELF" + bytes(4000))
    (folder / "empty.txt").write_text("\n\n")
    (folder / ".hidden").write_text("x")
    report = ingest(memories, [folder])
    assert report.added == [folder / "a.txt", folder / "c.pdf", folder / "sub/b.md"]
    assert [(one.path.name, one.reason.split(".")[0]) for one in report.failed] == [
        ("d.bin", "not text but a program")
    ]
    assert [(one.path.name, one.reason) for one in report.skipped] == [
        (".hidden", "a hidden file"), ("empty.txt", "holds no text"),
    ]  # fmt: skip
    assert not report.interrupted and report.passages == memories.count()
    for path in report.added:
        assert stored(memories, path) == expected(path)
    assert [row[1:] for row in state(memories)] == [("complete", None)] * 3
    one = memories.list(Filters(kinds=("passage",)), limit=1000)
    assert {memory.source for memory in one} == {str(path) for path in report.added}
    assert next(m for m in one if m.source.endswith("b.md")).heading == "Title"
    assert next(m for m in one if m.source.endswith("c.pdf")).page == 1


def test_unchanged_files_are_not_read(
    memories: Memories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.txt").write_text(text_of(1))
    (folder / "b.txt").write_text(text_of(2))
    ingest(memories, [folder])
    before = memories.database.rows("select id, updated from memory")
    os.utime(folder / "b.txt", (1, 1))  # saved again, the same content: read, not stored
    read: list[Path] = []
    real = ingest_module.load
    monkeypatch.setattr(
        ingest_module, "load", lambda path, check: (read.append(path), real(path, check))[1]
    )
    report = ingest(memories, [folder])
    assert report.unchanged == [folder / "a.txt", folder / "b.txt"]
    assert read == [folder / "b.txt"]
    assert memories.database.rows("select id, updated from memory") == before
    read.clear()
    ingest(memories, [folder])
    assert read == []


def test_a_changed_file_is_replaced(memories: Memories, folder: Path) -> None:
    path = folder / "a.txt"
    parts = text_of(3, 30).split("\n\n")
    path.write_text("\n\n".join(parts))
    ingest(memories, [folder])
    before = {row[1]: row for row in memories.database.rows("select id, text, line from memory")}
    pinned = next(iter(before.values()))
    memories.pin(pinned[0])
    path.write_text("\n\n".join(["A new paragraph at the top.", *parts[:20], "And an end."]))
    report = ingest(memories, [folder])
    assert report.updated == [path] and report.added == []
    assert stored(memories, path) == expected(path)
    after = {row[1]: row for row in memories.database.rows("select id, text, line from memory")}
    kept = before.keys() & after.keys()
    assert kept and all(before[text][0] == after[text][0] for text in kept)
    assert all(after[text][2] == before[text][2] + 2 for text in kept)  # in its new place
    words = parts[25].split()[3:9]
    found = memories.database.rows(
        "select count(*) from memory_fts where memory_fts match ?", ('"' + " ".join(words) + '"',)
    )
    assert found == [(0,)]


def test_old_passages_stand_until_the_new_ones_do(
    memories: Memories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH", 2)
    path = folder / "a.txt"
    path.write_text(text_of(4, 40))
    ingest(memories, [folder])
    old = stored(memories, path)
    path.write_text(text_of(5, 40))
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > 14

    assert ingest(memories, [folder], cancelled=cancelled).interrupted
    there = stored(memories, path)
    assert set(old) < set(there) and len(there) > len(old)
    assert state(memories)[0][1] == "reading"
    assert ingest(memories, [folder]).updated == [path]
    assert stored(memories, path) == expected(path)
    # changed again while it was half read
    path.write_text(text_of(6, 40))
    calls = 0
    assert ingest(memories, [folder], cancelled=cancelled).interrupted
    path.write_text(text_of(7, 40))
    assert ingest(memories, [folder]).updated == [path]
    assert stored(memories, path) == expected(path)


def test_a_file_that_became_empty_or_unreadable(memories: Memories, folder: Path) -> None:
    path, other = folder / "a.txt", folder / "b.txt"
    for one in (path, other):
        one.write_text(text_of(8))
    ingest(memories, [folder])
    path.write_text("")
    other.write_bytes(b"\x7fELF" + bytes(4000))
    report = ingest(memories, [folder])
    assert report.updated == [path] and stored(memories, path) == []
    assert [one.path for one in report.failed] == [other]
    assert stored(memories, other)  # what was known of it stays


def wiki(articles: int) -> str:
    pages = [
        f"  <page><title>Article {n}</title><ns>0</ns><revision><text>{text_of(n, 6)}</text>"
        "</revision></page>\n" for n in range(articles)
    ]  # fmt: skip
    return "<mediawiki>\n" + "".join(pages) + "</mediawiki>\n"


def write_text(folder: Path) -> Path:
    path = folder / "a.txt"
    path.write_text(text_of(9, 60))
    return path


def write_pdf(folder: Path) -> Path:
    path = folder / "a.pdf"
    path.write_bytes(pdf([text_of(n, 1)[:700].replace(" ", "\n", 8) for n in range(30)]))
    return path


def write_dump(folder: Path) -> Path:
    path = folder / "a.xml"
    path.write_text(wiki(15))
    return path


def write_packed(folder: Path) -> Path:
    path = folder / "a.xml.bz2"
    text = wiki(15)
    cut = text.index("  <page><title>Article 7")
    path.write_bytes(bz2.compress(text[:cut].encode()) + bz2.compress(text[cut:].encode()))
    return path


@pytest.mark.parametrize("write", [write_text, write_pdf, write_dump, write_packed])
def test_stopped_again_and_again_it_goes_on(
    memories: Memories, folder: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH", 3)
    path = write(folder)
    chance = random.Random(1)
    most = 3 if write is write_pdf else 200  # a process is started for each
    stops = stored_in_all = 0
    while True:
        left = chance.randrange(5, 14)

        def cancelled() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        report = ingest(memories, [folder], cancelled=None if stops >= most else cancelled)
        stored_in_all += report.passages
        if not report.interrupted:
            break
        stops += 1
    assert stops > 2
    assert stored(memories, path) == expected(path)
    assert stored_in_all == len(expected(path))  # nothing was stored twice
    assert state(memories) == [(str(path), "complete", None)]


_WRITER = """
import signal, sys
from pathlib import Path
from selm_edge.memory.documents import ingest as module
from selm_edge.memory.memories import Memories
from selm_edge.store.database import Database
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
module.BATCH, module._SAVE_EVERY = 2, 0.0
memories = Memories(Database(Path(sys.argv[1])))
print("ready", flush=True)
module.ingest(memories, [Path(sys.argv[2])])
print("done", flush=True)
"""


def test_kill_9_loses_nothing(memories: Memories, folder: Path, tmp_path: Path) -> None:
    path = write_dump(folder)
    before = folder / "z.txt"
    before.write_text(text_of(10, 30))
    ingest(memories, [before])
    before.write_text(text_of(11, 30))
    chance = random.Random(3)
    deaths = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "selm.db"), str(folder)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0]
        deaths += "done" not in said
    ingest(memories, [folder])
    assert deaths > 1
    for one in (path, before):
        assert stored(memories, one) == expected(one)
    assert memories.database.rows("pragma integrity_check") == [("ok",)]
    count = memories.database.rows(
        "select count(*) from memory_fts where memory_fts match 'word1*'"
    )
    assert count[0][0] == memories.count()


def test_ctrl_c_ends_after_the_batch(memories: Memories, folder: Path, tmp_path: Path) -> None:
    path = folder / "a.xml"
    path.write_text(wiki(400))
    program = _WRITER.replace(
        "module.ingest(memories, [Path(sys.argv[2])])",
        "print(module.ingest(memories, [Path(sys.argv[2])]).interrupted, flush=True)",
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "selm.db"), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    writer.stdout.readline()
    deadline = time.monotonic() + 20
    while not memories.count() and time.monotonic() < deadline:
        time.sleep(0.02)
    writer.send_signal(signal.SIGINT)
    said, problems = writer.communicate(timeout=60)
    assert said.split() == ["True", "done"], problems
    assert state(memories)[0][1] == "reading"
    some = memories.count()
    assert 0 < some < len(expected(path))
    ingest(memories, [folder])
    assert stored(memories, path) == expected(path)


def test_two_at_once(memories: Memories, folder: Path, tmp_path: Path) -> None:
    write_dump(folder)
    (folder / "b.txt").write_text(text_of(12, 40))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "selm.db"), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) for _ in range(3)
    ]  # fmt: skip
    for writer in writers:
        said, problems = writer.communicate(timeout=120)
        assert said.split() == ["ready", "done"], problems
    for name in ("a.xml", "b.txt"):
        assert stored(memories, folder / name) == expected(folder / name)


def test_files_that_are_gone_are_reported_and_removed_on_request(
    memories: Memories, folder: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(text_of(ord(name[0])))
    other = folder.parent / "other.txt"
    other.write_text(text_of(20))
    ingest(memories, [folder, other])
    (folder / "a.txt").unlink()
    other.unlink()
    report = ingest(memories, [folder])
    assert (report.gone, report.removed) == ([folder / "a.txt"], False)
    assert stored(memories, folder / "a.txt")
    report = ingest(memories, [folder], remove_gone=True)
    assert (report.gone, report.removed) == ([folder / "a.txt"], True)
    assert stored(memories, folder / "a.txt") == []
    assert len(state(memories)) == 2
    assert ingest(memories, [other]).gone == [other]


def test_spaces_are_apart(memories: Memories, folder: Path) -> None:
    (folder / "a.txt").write_text(text_of(30))
    work = memories.space("work", create=True).id
    ingest(memories, [folder])
    ingest(memories, [folder], space=work)
    assert memories.count(Filters(space=1)) == memories.count(Filters(space=work)) > 0


def test_embedding_in_batches(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH", 16)
    embedder = FakeEmbedder()
    memories = Memories(Database(tmp_path / "vectors.db"), embedder)
    path = folder / "a.txt"
    path.write_text(text_of(31, 200))
    report = ingest(memories, [folder])
    assert report.passages > 32
    assert embedder.batches[:2] == [16, 16] and sum(embedder.batches) == report.passages
    if memories.vectors_problem is None:
        assert memories.stats()["vectors"] == report.passages
    # Of a changed file only what is new is embedded.
    parts = path.read_text().split("\n\n")
    path.write_text("\n\n".join([*parts, "One more paragraph."]))
    embedder.batches.clear()
    assert ingest(memories, [folder]).updated == [path]
    assert sum(embedder.batches) <= 3


def test_progress(memories: Memories, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_SHOW_EVERY", 0.0)
    monkeypatch.setattr(ingest_module, "BATCH", 4)
    (folder / "a.xml").write_text(wiki(10))
    (folder / "b.txt").write_text(text_of(32, 40))
    seen: list[Progress] = []
    threads: set[str] = set()

    def show(progress: Progress) -> None:
        seen.append(progress)
        threads.add(threading.current_thread().name)

    report = ingest(memories, [folder], progress=show)
    assert threads == {"selm-ingest"}
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    assert seen[-1].files == seen[-1].files_total == 2
    assert seen[-1].bytes == seen[-1].bytes_total == sizes
    assert seen[-1].passages == report.passages and seen[-1].seconds_left == 0
    for before, after in pairwise(seen):
        assert before.bytes <= after.bytes and before.passages <= after.passages
    assert any(0 < one.bytes < (folder / "a.xml").stat().st_size for one in seen)


def test_a_full_disk_is_said_and_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    path = folder / "a.txt"
    path.write_text(text_of(33, 4000))
    program = _WRITER.replace("module.BATCH, module._SAVE_EVERY = 2, 0.0", (
        "import resource; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500000, 1500000))"
    ))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "selm.db"), str(folder)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0 and "Everything saved before is safe" in done.stderr
    memories = Memories(Database(tmp_path / "selm.db"))
    assert memories.count() > 0
    ingest(memories, [folder])
    assert stored(memories, path) == expected(path)


def test_the_stores_refusal_is_raised(
    memories: Memories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.txt").write_text("Words.")

    def refuse(*_: object, **__: object) -> None:
        raise StoreError(None, "full", "the disk is full", "Make room.")

    monkeypatch.setattr(Memories, "add_many", refuse)
    with pytest.raises(StoreError, match="the disk is full"):
        ingest(memories, [folder])


def test_a_readers_fault_costs_one_file(
    memories: Memories, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.md").write_text("Words.")
    (folder / "b.txt").write_text("More words.")

    def broken(text: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("selm_edge.memory.documents.markdown.read_markdown", broken)
    report = ingest(memories, [folder])
    assert [(one.path.name, one.reason) for one in report.failed] == [
        ("a.md", "RuntimeError: a bug")
    ]
    assert report.added == [folder / "b.txt"]


def test_passages_that_say_nothing_are_left_out(memories: Memories, folder: Path) -> None:
    (folder / "a.txt").write_text("...\n\n" + "- " * 2000 + "\n\n" + text_of(34))
    report: Report = ingest(memories, [folder])
    assert report.failed == []
    assert all(normalised(text) for text in stored(memories, folder / "a.txt"))


def test_other_work_goes_first(memories: Memories, folder: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the priority of a thread is a matter of Linux")
    (folder / "a.txt").write_text(text_of(35))
    mine, seen = os.nice(0), set[int]()
    ingest(memories, [folder], progress=lambda _: seen.add(os.nice(0)))
    assert seen and all(niceness > mine or niceness == 19 for niceness in seen)
    assert os.nice(0) == mine
