"""One SQLite file: opening, migrating, writing, and really deleting.

Every process opens the file for itself and several may write at once. The settings are the ones
that were measured: WAL with ``synchronous=FULL`` (a commit is on the disk when the call returns),
a busy timeout of 5 seconds, and ``secure_delete`` (freed cells are zeroed).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from selm_edge.store import keys, vector_table
from selm_edge.store.errors import StoreError
from selm_edge.store.migrations import MIGRATIONS
from selm_edge.store.reading import Reader, Readers, T, done, explained

APPLICATION_ID = 0x53454C4D  # "SELM": how a file of ours is told from another program's
BUSY_TIMEOUT_MS = 5000
_BUSY_TRIES = 6  # a writer that lost the race for 5 s queues again: 30 s before anyone is told
_CACHE_KIB = 16 * 1024
_ALONE_TIMEOUT_MS = 1000
_OPEN_TRIES = 5  # a file exchanged at each of them is not in good hands
# URI: so that a copy can be written under another key. A path itself never begins with "file:".
_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
DAMAGED_SUFFIX = ".damaged-"
REKEYED_SUFFIX = ".new-key"
REPAIRED_SUFFIX = ".repaired"


class Database(Reader):
    """A connection to the file at ``path``, or to memory where it is None.

    ``passphrase`` opens an encrypted file and makes a new one encrypted (`selm_edge.store.keys`).
    Usable from several threads; one statement or transaction runs at a time.
    Raises `StoreError` for everything that SQLite or the disk refuses, cause ``key`` where the
    passphrase is wrong, missing or not wanted.
    """

    def __init__(
        self,
        path: Path | None,
        migrations: Sequence[str] = MIGRATIONS,
        *,
        passphrase: str | None = None,
    ) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._readers: Readers | None = None
        self.vectors_problem: str | None = None
        """Why this connection has no vector search; None where it has."""
        self._migrations = migrations
        self._unpurged = False
        self._patience = (BUSY_TIMEOUT_MS, _BUSY_TRIES)
        self._key: str | None = None
        if path is not None:
            _make_private(path)
        for attempt in range(_OPEN_TRIES):
            if self._open(passphrase, last=attempt == _OPEN_TRIES - 1):
                break
        try:
            self._migrate()
            self.vectors_problem = vector_table.load(self._connection)
            self._tidy()
        except BaseException:
            self._connection.close()
            raise

    def _open(self, passphrase: str | None, *, last: bool) -> bool:
        """False where the file was exchanged meanwhile: given a new key, or made by another."""
        path = self.path
        with explained(path):
            if path is not None:
                keys.check_state(path, passphrase)
                if passphrase is not None:
                    self._key = keys.key_for(path, passphrase)
            before = _number_of(path)
            self._connection = apsw.Connection(
                str(path.absolute()) if path else ":memory:", flags=_FLAGS
            )
        try:
            with explained(path):
                if self._key is not None:
                    keys.unlock(self._connection, self._key)
                self._check_owner()  # first: another program's file is not even switched to WAL
                self._configure()
        except BaseException as error:
            self._connection.close()
            if not last and isinstance(error, StoreError) and self._exchanged(before):
                return False
            if self._key is not None and isinstance(error.__cause__, apsw.NotADBError):
                raise keys.wrong_key(path) from error
            raise
        # In WAL mode nobody can exchange the file under this connection any more.
        if last or not self._exchanged(before):
            return True
        self._connection.close()
        return False

    def _exchanged(self, before: int | None) -> bool:
        if self.path is None:
            return False
        if self._key is not None:
            salt = keys.salt_of(self.path)
            if salt is not None and salt != keys.salt_in(self._key):
                return True
        return _number_of(self.path) != before

    @property
    def encrypted(self) -> bool:
        return self._key is not None

    def has_table(self, name: str) -> bool:
        return self.one("select 1 from sqlite_master where name = ?", (name,)) is not None

    # -- reading and writing -------------------------------------------------------------------

    def begin(self, read: Callable[[Reader], T]) -> Future[T]:
        """``read`` beside what this thread does, on a connection and a core of its own.

        It sees what is committed. So inside a transaction, and where the database is in memory,
        it is done here and now.
        """
        with self._lock:
            if self.path is not None and not self._connection.in_transaction:
                if self._readers is None:
                    self._readers = Readers(self._beside, self.path)
                return self._readers.begin(read)
        return done(read, self)

    def _beside(self) -> apsw.Connection:
        """Another connection to the same file, for queries alone."""
        connection = apsw.Connection(self._connection.filename, flags=_FLAGS)
        try:
            if self._key is not None:
                keys.unlock(connection, self._key)
            connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            connection.pragma("cache_size", -_CACHE_KIB)
            connection.pragma("temp_store", 2)
            connection.pragma("trusted_schema", 0)
            connection.pragma("query_only", 1)
            vector_table.load(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def write(self) -> Iterator[apsw.Connection]:
        """A transaction: committed to the disk on leaving, undone on any exception.

        It takes the write lock at once, so two processes queue instead of failing midway.
        A ``write`` inside another joins it.
        """
        with self._lock, explained(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            self._begin()
            try:
                yield self._connection
                self._connection.execute("commit")
            except BaseException:
                # A full disk may have rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                raise

    def _begin(self) -> None:
        _, tries = self._patience
        for attempt in range(tries):
            try:
                self._connection.execute("begin immediate")
                return
            except apsw.BusyError:
                if attempt == tries - 1:
                    raise

    def wait_at_most(self, milliseconds: int) -> None:
        """For who cannot stand still: how long a write waits for another process's lock."""
        self._patience = (milliseconds, 1)
        with self._lock:
            self._connection.set_busy_timeout(milliseconds)

    # -- deleting for real ---------------------------------------------------------------------

    def purge(self) -> bool:
        """Make what was deleted leave the disk: the WAL is emptied and old backups removed.

        False while another process still reads an older state; `close` then tries again, and
        SQLite itself does it when the last process closes the file.
        """
        if self.path is None:
            return True
        for copy in (*self.backups(), *self.set_aside()):
            with suppress(OSError):
                copy.unlink()
        with self._lock, explained(self.path):
            try:
                self._connection.pragma("busy_timeout", 1000)
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                self._unpurged = True
                return False
            finally:
                self._connection.pragma("busy_timeout", self._patience[0])
        self._unpurged = False
        return True

    def backups(self) -> list[Path]:
        """Copies made before migrations, oldest first."""
        if self.path is None:
            return []
        return sorted(self.path.parent.glob(self.path.name + ".before-v*"))

    def set_aside(self) -> list[Path]:
        """Damaged files that a repair kept beside its result, oldest first."""
        if self.path is None:
            return []
        return sorted(self.path.parent.glob(self.path.name + DAMAGED_SUFFIX + "*"))

    # -- life ----------------------------------------------------------------------------------

    def copy_to_memory(self) -> Database:
        """The same data with nothing behind it, to go on with when the disk refuses."""
        copy = Database(None, self._migrations)
        with self._lock, explained(self.path):
            if self._key is None:
                _copy(self._connection, copy._connection)
            else:  # SQLite's backup goes between files of one kind only
                image = bytearray(self._connection.serialize("main"))
                image[18:20] = b"\1\1"  # memory has no WAL
                copy._connection.deserialize("main", bytes(image))
        copy.vectors_problem = vector_table.load(copy._connection)
        return copy

    def alone(self) -> apsw.Connection:
        """The connection with the whole file locked, and no WAL beside it, until it is closed.

        StoreError (busy) where another process has the file open.
        """
        with self._lock, explained(self.path):
            self._connection.set_busy_timeout(_ALONE_TIMEOUT_MS)
            self._connection.pragma("locking_mode", "exclusive")
            self._connection.pragma("journal_mode", "delete")
            self._connection.execute("begin exclusive; commit")
            return self._connection

    def close(self) -> None:
        with self._lock:
            if self._readers is not None:
                self._readers.close()
                self._readers = None
            if self._unpurged:
                with suppress(StoreError):
                    self.purge()
            self._connection.close()

    # -- opening -------------------------------------------------------------------------------

    def _configure(self) -> None:
        connection = self._connection
        connection.pragma("cache_size", -_CACHE_KIB)
        connection.pragma("secure_delete", 1)
        connection.pragma("foreign_keys", 1)
        connection.pragma("temp_store", 2)  # no copy of anyone's words in /tmp
        connection.pragma("trusted_schema", 0)
        if self.path is None:
            return
        self._enter_wal()
        connection.pragma("synchronous", "FULL")
        if connection.readonly("main"):
            raise apsw.ReadOnlyError("attempt to write a readonly database")

    def _enter_wal(self) -> None:
        # The switch to WAL ignores the busy timeout where two processes make the file at once.
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                self._connection.pragma("journal_mode", "wal")
                return
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _check_owner(self) -> None:
        self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        # Objects first: a process that is making the file now commits both together.
        objects = next(iter(self._connection.execute("select count(*) from sqlite_master")))[0]
        if objects and self._connection.pragma("application_id") != APPLICATION_ID:
            raise StoreError(
                self.path,
                "foreign",
                "this is another program's database",
                "Move it away, or set SELM_HOME to another folder.",
            )

    def _migrate(self) -> None:
        version = self._version()
        newest = len(self._migrations)
        if version > newest:
            raise StoreError(
                self.path,
                "newer",
                f"written by a newer SELM Edge (schema {version}, this one knows {newest})",
                "Update SELM Edge. The file was not touched.",
            )
        if version == newest:
            return
        if version > 0:
            self._back_up(version)
        with self.write() as connection:
            # Another process may have migrated while this one waited for the lock.
            for number in range(self._version() + 1, newest + 1):
                connection.execute(self._migrations[number - 1])
                connection.pragma("user_version", number)
            connection.pragma("application_id", APPLICATION_ID)

    def _tidy(self) -> None:
        """What an interrupted change of the key, or repair, left; none can be under way beside
        this connection. A journal that was to be played back has been, at the first read."""
        if self.path is not None:
            names = [suffix + end for suffix in (REKEYED_SUFFIX, REPAIRED_SUFFIX)
                     for end in ("", "-journal", "-wal", "-shm")]  # fmt: skip
            for name in (*names, "-journal"):
                with suppress(OSError):
                    self.path.with_name(self.path.name + name).unlink()

    def _version(self) -> int:
        with explained(self.path):
            return int(self._connection.pragma("user_version"))

    def _back_up(self, version: int) -> None:
        if self.path is None:
            return
        target = self.path.with_name(f"{self.path.name}.before-v{version + 1}")
        partial = target.with_name(target.name + f".{os.getpid()}.tmp")
        with explained(target):
            try:
                os.close(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
                copy = apsw.Connection(str(partial))
                try:
                    if self._key is not None:
                        keys.unlock(copy, self._key)
                    _copy(self._connection, copy)
                    copy.pragma("journal_mode", "delete")
                finally:
                    copy.close()
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)


def _copy(source: apsw.Connection, target: apsw.Connection) -> None:
    with target.backup("main", source, "main") as backup:
        while not backup.done:
            backup.step(256)


def _number_of(path: Path | None) -> int | None:
    """Which file lies there: two of one name have different numbers."""
    try:
        return path.stat().st_ino if path else None
    except OSError:
        return None


def _make_private(path: Path) -> None:
    """The folder for its owner only (0700), the file too (0600); SQLite gives the WAL the same."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            # Never opened when it exists: closing it would drop the locks of this process on it.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        if os.name == "posix":
            for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                _narrow(file)
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise StoreError(
            path, "readonly", f"cannot be written: {cause}", "Set SELM_HOME to a folder that can."
        ) from error


def _narrow(file: Path) -> None:
    """An older file that others could read becomes the owner's only, where it is ours."""
    with suppress(OSError):
        state = file.stat()
        if state.st_mode & 0o077 and state.st_uid == os.getuid():
            file.chmod(0o600)
