"""Files into memory: what is new or changed is read, cut into passages and stored.

It can be stopped at any moment, by Ctrl-C, by its caller or by a crash: what is stored stays, and
the next run goes on there. Nothing that a document says is ever stored as anything but a passage.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from selm_edge.errors import Cancelled
from selm_edge.memory.documents.blocks import Document, DocumentError
from selm_edge.memory.documents.folders import Found, find
from selm_edge.memory.documents.passages import Passage, passages
from selm_edge.memory.documents.reading import load, open_document
from selm_edge.memory.documents.registry import Known, Registry, Resume
from selm_edge.store.errors import StoreError

if TYPE_CHECKING:
    from selm_edge.memory.memories import Memories

BATCH = 128
"""Passages that are embedded and stored at once."""
_SAVE_EVERY = 1.0  # seconds between two notes of where reading goes on
_SHOW_EVERY = 0.1  # seconds between two calls of ``progress``
_NICENESS = 10


@dataclass(frozen=True)
class Progress:
    """How far it is. ``rate`` is in passages a second; ``seconds_left`` None while unknown."""

    path: Path
    files: int
    files_total: int
    bytes: int
    bytes_total: int
    passages: int
    rate: float
    seconds_left: float | None


@dataclass(frozen=True)
class Refused:
    """A file or folder that is not in memory, or not wholly, and why."""

    path: Path
    reason: str


@dataclass
class Report:
    """What became of every file. ``gone`` are documents whose file is no more; they are still in
    memory unless ``removed``. Seconds are of the clock; reading includes the cutting, storing the
    embedding."""

    added: list[Path] = field(default_factory=list)
    updated: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    failed: list[Refused] = field(default_factory=list)
    skipped: list[Refused] = field(default_factory=list)
    notices: list[Refused] = field(default_factory=list)
    gone: list[Path] = field(default_factory=list)
    removed: bool = False
    interrupted: bool = False
    passages: int = 0
    bytes: int = 0
    seconds: float = 0.0
    reading_seconds: float = 0.0
    storing_seconds: float = 0.0


def ingest(
    memories: Memories,
    paths: Sequence[Path],
    *,
    space: int = 1,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    remove_gone: bool = False,
) -> Report:
    """Bring the files at ``paths``, and all in the folders there, into memory.

    The work is done in a thread of low priority, which also calls ``progress`` and ``cancelled``.
    Ctrl-C ends it after the batch at hand; the report then says ``interrupted``. What is wrong
    with one file is in the report. Raises StoreError where the store refuses.
    """
    stop = threading.Event()
    run = _Run(memories, space, progress, lambda: stop.is_set() or bool(cancelled and cancelled()))
    failure: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        _be_patient()
        try:
            run.all([Path(path) for path in paths], remove_gone)
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    # Daemon: a second Ctrl-C ends the program at once; the store takes that as it takes a crash.
    threading.Thread(target=work, name="selm-ingest", daemon=True).start()
    # Not Thread.join: interrupted, it takes the thread for ended (CPython up to 3.12).
    while not done.is_set():
        try:
            done.wait(0.2)
        except KeyboardInterrupt:
            if stop.is_set():
                raise  # asked twice: not even the end of the batch is waited for
            stop.set()
    if failure:
        raise failure[0]
    return run.report


def _be_patient() -> None:
    """Let others go first. On Linux this is a matter of the thread; elsewhere it would be one of
    the whole process, and the chat with it."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.nice(_NICENESS)


class _Run:
    def __init__(
        self,
        memories: Memories,
        space: int,
        progress: Callable[[Progress], None] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.report = Report()
        self._memories = memories
        self._registry = Registry(memories, space)
        self._progress = progress
        self._stopped = stopped
        self._began = time.monotonic()
        self._shown = 0.0
        self._total = (0, 0)  # files, bytes
        self._done = [0, 0]
        self._worked = 0  # bytes that took time

    def all(self, paths: Sequence[Path], remove_gone: bool) -> None:
        report = self.report
        try:
            files: list[Found] = []
            for found in find(paths):
                self._check()
                if found.reason is None:
                    files.append(found)
                else:
                    report.skipped.append(Refused(found.path, found.reason))
            self._total = (len(files), sum(found.size for found in files))
            for found in files:
                self._check()
                self._one(found)
                self._done[0] += 1
                self._done[1] += found.size
                self._show(found, 0, last=self._done[0] == self._total[0])
            self._gone(paths, remove_gone)
        except Cancelled:
            report.interrupted = True
        report.seconds = time.monotonic() - self._began

    def _check(self) -> None:
        if self._stopped():
            raise Cancelled("stopped")

    # -- one file ------------------------------------------------------------------------------

    def _one(self, found: Found) -> None:
        """A file that fails is reported; only a store that fails, or a stop, ends the run."""
        report = self.report
        try:
            known = self._registry.get(found.path)
            if known and known.complete and _same_file(known, found):
                report.unchanged.append(found.path)
                return
            self._read(found, known)
            report.bytes += found.size
            self._worked += found.size
        except (StoreError, Cancelled):
            raise
        except DocumentError as error:
            reason = error.cause + (f". {error.hint}" if error.hint else "")
            report.failed.append(Refused(found.path, reason))
        except Exception as error:  # a reader's fault must not cost the other files
            report.failed.append(Refused(found.path, f"{type(error).__name__}: {error}"))

    def _read(self, found: Found, known: Known | None) -> None:
        source = load(found.path, self._check)
        same = known is not None and known.sha256 == source.sha256
        if known and same and known.complete:
            self._registry.touch(known, found)
            self.report.unchanged.append(found.path)
            return
        resume = known.resume if known and same else None
        document = open_document(source, resume.cursor if resume else None, self._check)
        reading = _Reading(found, source.sha256, document, known.id if known else None, resume)
        try:
            self._store_all(reading)
        except BaseException:
            self._note(reading)
            raise
        finally:
            self.report.notices += [Refused(found.path, text) for text in document.notices]
        if reading.key is None:
            self.report.skipped.append(Refused(found.path, "holds no text"))
            return
        self._begin(reading)  # a file without text any more is a new version too
        self._registry.finish(reading.key, reading.place)
        (self.report.updated if known else self.report.added).append(found.path)

    def _store_all(self, reading: _Reading) -> None:
        """All passages from where reading goes on, a batch at a time."""
        stream = reading.passages(self._check)
        while True:
            began = time.monotonic()
            batch = list(islice(stream, BATCH))
            read = time.monotonic()
            self.report.reading_seconds += read - began
            if not batch:
                return
            self._check()
            key = self._begin(reading)
            self._registry.store(key, reading.found.path, batch, reading.place)
            reading.stored(batch)
            if time.monotonic() - reading.saved > _SAVE_EVERY:
                self._note(reading)
            self.report.storing_seconds += time.monotonic() - read
            self.report.passages += len(batch)
            self._show(reading.found, reading.position)

    def _begin(self, reading: _Reading) -> int:
        if reading.key is None or not reading.begun:
            reading.key, reading.place = self._registry.begin(
                reading.found, reading.document.kind, reading.sha256
            )
            reading.begun = True
        return reading.key

    def _note(self, reading: _Reading) -> None:
        """Write down where reading goes on, if it got anywhere."""
        if reading.key is not None and reading.begun:
            self._registry.save(reading.key, reading.place)
            reading.saved = time.monotonic()

    # -- the rest ------------------------------------------------------------------------------

    def _gone(self, paths: Sequence[Path], remove: bool) -> None:
        roots = [path.resolve() for path in paths]
        for known in self._registry.below(roots):
            if not known.path.exists():
                self.report.gone.append(known.path)
                if remove:
                    self._memories.forget_document(known.id)
        self.report.removed = remove

    def _show(self, found: Found, position: int, last: bool = False) -> None:
        now = time.monotonic()
        if self._progress is None or (now - self._shown < _SHOW_EVERY and not last):
            return
        self._shown = now
        elapsed = max(now - self._began, 1e-6)
        done = self._done[1] + position
        worked = self._worked + position
        left = (self._total[1] - done) * elapsed / worked if worked else None
        self._progress(
            Progress(
                path=found.path,
                files=self._done[0],
                files_total=self._total[0],
                bytes=done,
                bytes_total=self._total[1],
                passages=self.report.passages,
                rate=self.report.passages / elapsed,
                seconds_left=left,
            )
        )


class _Reading:
    """One file on its way. ``key`` is the document's id; a new version has only ``begun`` when its
    first passages are about to be stored, so that a file that cannot be read changes nothing."""

    def __init__(
        self, found: Found, sha256: str, document: Document, key: int | None, resume: Resume | None
    ) -> None:
        self.found = found
        self.sha256 = sha256
        self.document = document
        self.key = key
        self.begun = resume is not None
        self.place = resume or Resume(started=0, before=0)
        self.position = 0
        self.saved = time.monotonic()

    def passages(self, check: Callable[[], None]) -> Iterator[Passage]:
        """What is not stored yet, but for passages that say nothing (a line of dashes)."""
        from selm_edge.memory.memories import normalised

        first, number = self.place.cursor, self.place.number
        for passage in passages(self.document.blocks):
            check()
            cursor = passage.unit.cursor if passage.unit else None
            if cursor == first and passage.number < number:
                continue
            if any(map(str.isalnum, passage.text)) or normalised(passage.text):
                yield passage

    def stored(self, batch: Sequence[Passage]) -> None:
        last = batch[-1]
        cursor = last.unit.cursor if last.unit else None
        self.position = last.unit.position or 0 if last.unit else 0
        self.place = replace(self.place, cursor=cursor, number=last.number + 1)


def _same_file(known: Known, found: Found) -> bool:
    return known.size == found.size and known.modified == found.modified
