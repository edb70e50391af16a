"""PDF: pages as paragraphs, read by pypdf in a process of its own (`pdf_worker`)."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from selm_edge.memory.documents.blocks import MAX_BYTES, Block, Document, DocumentError
from selm_edge.memory.documents.hygiene import tidy

OPENING_TIME = 60.0
"""Seconds until the first page must have come."""
PAGE_TIME = 20.0
"""Seconds that a page may take."""
TOTAL_TIME = 1800.0
"""Seconds that a file may take."""

_INSTALL = "Install the reader for it: pip install 'selm-edge[docs]'"
_REASONS = {
    "missing": ("PDF files need pypdf, which is not installed", _INSTALL),
    "encrypted": ("encrypted: it needs a password", "Save a copy without a password, add that."),
    "cipher": (
        "encrypted in a way that needs one more package",
        "Save a copy without encryption, or: pip install cryptography",
    ),
    "memory": ("needs more memory than a document may", "It may be damaged, or made to do that."),
    "damaged": ("a damaged PDF file", "Open it in a viewer and print it to a new PDF file."),
    "time": ("takes too long to read", "Print the pages that matter to a new PDF file."),
    "died": ("reading it ended the reader", "Open it in a viewer and print it to a new PDF file."),
    "empty": (
        "holds no text: its pages may be pictures (a scan)",
        "Make the text readable first, for example with ocrmypdf.",
    ),
}
_ENDS = re.compile(r"[.!?:;。\uff01\uff1f]['\"”\u2019»)\]]*\s*\Z")
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010]\n(?=[^\W\d_])")


def read_pdf(path: Path, data: bytes) -> Document:
    """The document in ``data``; DocumentError, when its blocks are taken, says what is wrong."""
    document = Document(path, "pdf", iter(()))
    document.blocks = _blocks(path, data, document.notices)
    return document


def _blocks(path: Path, data: bytes, notices: list[str]) -> Iterator[Block]:
    held: Block | None = None  # the last paragraph: it may go on on the next page
    for number, text in _pages(path, data, notices):
        for block in _paragraphs(text, number):
            if held is None:
                held = block
            elif held.page != number and _goes_on(held.text, block.text):
                joined = _HYPHEN.sub("", f"{held.text}\n{block.text}")
                held = Block("prose", joined, page=held.page, exact=False)
            else:
                yield held
                held = block
    if held is None:
        raise _failed(path, "empty")
    yield held


def _goes_on(before: str, after: str) -> bool:
    """Whether a sentence goes on over the end of a page."""
    return after[:1].islower() and not _ENDS.search(before) and len(before) < 20_000


def _paragraphs(text: str, page: int) -> Iterator[Block]:
    """Paragraphs of a page: between blank lines, or after a short line that ends a sentence."""
    lines = [line.rstrip() for line in tidy(text).split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    usual = lengths[len(lengths) * 3 // 4] if lengths else 0
    run: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            run.append(line.strip())
        if run and (not line.strip() or (len(line) < usual * 0.7 and _ENDS.search(line))):
            yield Block("prose", _HYPHEN.sub("", "\n".join(run)), page=page, exact=False)
            run = []


# -- the other process ---------------------------------------------------------------------------


def _pages(path: Path, data: bytes, notices: list[str]) -> Iterator[tuple[int, str]]:
    with _Worker(path, data) as worker:
        total = 0
        for entry in worker.entries():
            page, text = entry.get("page"), entry.get("text")
            if "end" in entry:
                return
            if page is None:
                if entry["error"] != "pages":
                    raise _failed(path, str(entry["error"]), str(entry.get("detail", "")))
                notices.append("has more than 20,000 pages: the rest is not read")
                return
            if text is None:
                notices.append(f"page {page} could not be read: {entry['error']}")
                continue
            total += len(text)
            if total > MAX_BYTES:
                notices.append(f"more than 64 million characters: page {page} on is not read")
                return
            yield int(page), str(text)


def _failed(path: Path, code: str, detail: str = "") -> DocumentError:
    cause, hint = _REASONS[code]
    return DocumentError(path, f"{cause} ({detail})" if detail else cause, hint)


class _Worker:
    """The process that reads, ended when it takes too long or nobody waits any more."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._late = False
        self._done = threading.Event()

    def __enter__(self) -> _Worker:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "selm_edge.memory.documents.pdf_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._until = time.monotonic() + OPENING_TIME
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()

    def entries(self) -> Iterator[dict[str, Any]]:
        """What the worker says, until it ends; raises DocumentError where it was ended."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # a worker that is gone says why, or nothing
            process.stdin.write(self._data)
            process.stdin.close()
        left = TOTAL_TIME
        asked = time.monotonic()
        for line in process.stdout:
            self._until = math.inf  # what is done with the page is not the worker's time
            left -= time.monotonic() - asked
            if not line.endswith(b"\n"):
                break  # it was ended while it wrote this
            entry: dict[str, Any] = json.loads(line)
            yield entry
            asked = time.monotonic()
            self._until = asked + min(PAGE_TIME, left)
        raise _failed(self._path, "time" if self._late else "died")

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            if time.monotonic() > self._until:
                self._late = True
                self._process.kill()
                return
