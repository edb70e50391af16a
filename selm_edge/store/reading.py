"""Queries: what every connection to the file answers, and several connections at once.

SQLite answers one query at a time on a connection, with one core. What must look at much of a large
file looks at its parts at the same time, each on a connection of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import apsw

from selm_edge.store.errors import StoreError

_MOST_CORES = 4
_TOKENIZER = ("porter", ["unicode61", "remove_diacritics", "2"])  # that of memory_fts

Row = tuple[Any, ...]
Params = Sequence[Any]
T = TypeVar("T")


class Reader:
    """Queries on one connection to the file at ``path`` (None: in memory), one at a time.

    Raises `StoreError` for everything that SQLite or the disk refuses.
    """

    def __init__(self, path: Path | None, connection: apsw.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()

    def rows(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows of a query."""
        with self._lock, explained(self.path):
            return list(self._connection.execute(sql, tuple(params)))

    def one(self, sql: str, params: Params = ()) -> Row | None:
        """The first row of a query, or None."""
        found = self.rows(sql, params)
        return found[0] if found else None

    def stems(self, text: str) -> list[tuple[int, int, str]]:
        """The words of ``text`` as the index of memories has them: first byte, byte after the last,
        stem."""
        with self._lock, explained(self.path):
            tokenizer = self._connection.fts5_tokenizer(*_TOKENIZER)
            found = tokenizer(text.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None)
        return cast("list[tuple[int, int, str]]", found)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class Readers:
    """Threads, at most one a core, that each read the file on a connection of their own.

    ``connect`` opens one more; connections are kept until `close`.
    """

    def __init__(self, connect: Callable[[], apsw.Connection], path: Path) -> None:
        self._connect, self._path = connect, path
        self._mine = threading.local()
        self._all: list[Reader] = []
        cores = min(os.cpu_count() or 1, _MOST_CORES)
        self._threads = ThreadPoolExecutor(cores, thread_name_prefix="reader")

    def begin(self, read: Callable[[Reader], T]) -> Future[T]:
        """What ``read`` finds, once it has."""
        return self._threads.submit(lambda: read(self._reader()))

    def close(self) -> None:
        """What is under way is waited for; nothing begins any more."""
        self._threads.shutdown(cancel_futures=True)
        for reader in self._all:
            reader.close()

    def _reader(self) -> Reader:
        mine: Reader | None = getattr(self._mine, "reader", None)
        if mine is None:
            with explained(self._path):
                mine = self._mine.reader = Reader(self._path, self._connect())
            self._all.append(mine)
        return mine


def done(read: Callable[[Reader], T], reader: Reader) -> Future[T]:
    """As `Readers.begin`, but here and now."""
    found: Future[T] = Future()
    try:
        found.set_result(read(reader))
    except Exception as error:
        found.set_exception(error)
    return found


@contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """SQLite's exceptions in words that say what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise StoreError(path, "full", "the disk is full", _FULL_HINT) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreError(
            path, "busy", "another program keeps it locked", "Close that program and try again."
        ) from error
    except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError) as error:
        raise StoreError(
            path, "readonly", f"cannot be written: {error}", "Set SELM_HOME to a folder that can."
        ) from error
    except (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError) as error:
        raise StoreError(
            path,
            "damaged",
            f"the file is damaged: {error}",
            "It was left as it is. `selm memory repair` saves what can be read of it.",
        ) from error
    except apsw.IOError as error:
        # A quota or a file size limit is an I/O error to SQLite, a full disk to its user.
        raise StoreError(
            path, "full", f"the disk refuses to write ({error})", _FULL_HINT
        ) from error

    except apsw.Error as error:
        raise StoreError(
            path, "io", f"SQLite refused: {error}", "`selm doctor` checks the file."
        ) from error


_FULL_HINT = "Everything saved before is safe. Make room, then start again."
