"""Finding damage, and making a sound file of what can still be read.

SQLite notices most damage only when it reads the page, and a full check reads them all: too slow
for every start. So damage shows as a StoreError (``damaged``), and `check` is asked for. The words
and the vectors are made from the rows and can be made again; only rows are worth rescuing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from selm_edge.store import keys, salvage, vector_table
from selm_edge.store.database import DAMAGED_SUFFIX, REPAIRED_SUFFIX, Database
from selm_edge.store.errors import StoreError
from selm_edge.store.reading import explained

WORD_INDEXES = ("message_fts", "title_fts", "memory_fts")
# In this order, so that what a row refers to comes before it.
TABLES = ("setting", "space", "document", "conversation", "message", "memory", "feedback")
_MOST_SAID = 20


@dataclass(frozen=True)
class Health:
    """What `check` found: nothing where all three are empty or 0."""

    file: tuple[str, ...] = ()
    """Damage of pages, rows or their indexes, as SQLite puts it: `repair` is needed."""
    words: tuple[str, ...] = ()
    """Word indexes that do not fit their rows: `rebuild_words` is enough."""
    vectors: str | None = None
    """What is wrong with the vectors: they have to be made again."""
    altered: tuple[int, ...] = ()
    """Memories whose text is not what was stored; only their owner can tell what it was."""

    @property
    def sound(self) -> bool:
        return not (self.file or self.words or self.vectors or self.altered)


@dataclass(frozen=True)
class Repaired:
    """``kept`` is the damaged file, set aside; ``rescued`` rows by table."""

    kept: Path
    rescued: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    """Rows that the counters say there were, now gone: lost, or deleted long before."""


def check(database: Database) -> Health:
    """Read everything once and compare. Minutes for gigabytes."""
    found: list[str] = []
    try:
        rows = database.rows(f"pragma integrity_check({_MOST_SAID})")
        found = [str(row[0]) for row in rows if row[0] != "ok"]
    except StoreError as error:
        found = [str(error)]
    own = [line for line in found if not any(name in line for name in WORD_INDEXES)]
    words = tuple(name for name in WORD_INDEXES if not _words_fit(database, name))
    try:
        altered = tuple(_altered(database))
    except StoreError as error:
        altered = ()
        own.append(str(error))
    return Health(tuple(own), words, _vectors_problem(database), altered)


def rebuild_words(database: Database) -> None:
    """Make the word indexes again from the rows, which are not touched."""
    with database.write() as connection:
        for name in WORD_INDEXES:
            connection.execute(f"insert into {name}({name}) values('rebuild')")


def repair(path: Path, passphrase: str | None = None) -> Repaired:
    """Set the file aside and put one in its place with every row that can be read.

    Vectors are made again afterwards (`selm_edge.memory.embedding`). StoreError where nothing can
    be read (the file stays as it was), or another program has it open.
    """
    keys.check_state(path, passphrase)
    made = path.with_name(path.name + REPAIRED_SUFFIX)
    kept = path.with_name(path.name + DAMAGED_SUFFIX + time.strftime("%Y%m%d-%H%M%S"))
    _remove(made)
    with _locked(path, passphrase):
        try:
            _set_aside(path, kept)
            result = _rescue(kept, made, path, passphrase)
        except BaseException:
            _remove(made)
            _remove(kept)
            raise
    # The old WAL goes first: SQLite would play it into whatever file lies beside it.
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    made.replace(path)
    return result


# -- checking --------------------------------------------------------------------------------------


def _words_fit(database: Database, name: str) -> bool:
    if not database.has_table(name):
        return True
    try:
        with database.write() as connection:
            connection.execute(f"insert into {name}({name}, rank) values('integrity-check', 1)")
    except StoreError:
        return False
    return True


def _vectors_problem(database: Database) -> str | None:
    if not database.has_table(vector_table.TABLE) or database.vectors_problem is not None:
        return None
    try:
        strays = database.one(
            f"select count(*) from {vector_table.TABLE}_rowids where rowid not in"
            " (select id from memory where status = 'active')"
        )
        # Every chunk is read, as any search does.
        width = database.one(f"select vec_length(vector) from {vector_table.TABLE} limit 1")
        if width is not None:
            database.rows(
                f"select id from {vector_table.TABLE} where vector match vec_int8(zeroblob(?))"
                " and k = 1",
                (width[0],),
            )
    except StoreError as error:
        return str(error)
    return f"{strays[0]} vectors of memories that are gone" if strays and strays[0] else None


def _altered(database: Database) -> Iterator[int]:
    from selm_edge.memory.memories import digest

    last = 0
    while True:
        rows = database.rows(
            "select id, text, sha256 from memory where id > ? order by id limit 1000", (last,)
        )
        if not rows:
            return
        for key, text, sha256 in rows:
            last = key
            if digest(text) != sha256:
                yield key


# -- rescuing --------------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path, passphrase: str | None) -> Iterator[None]:
    """Nobody else has the file open. One too damaged to be locked, nobody can write to."""
    with explained(path):
        lock = apsw.Connection(str(path))
        try:
            lock.set_busy_timeout(1000)
            if passphrase is not None:
                keys.unlock(lock, keys.key_for(path, passphrase))
            with suppress(apsw.NotADBError, apsw.CorruptError, apsw.SQLError, apsw.IOError):
                lock.pragma("locking_mode", "exclusive")
                lock.execute("begin immediate; rollback")
            yield
        finally:
            lock.close()


def _set_aside(path: Path, kept: Path) -> None:
    """A copy of the file and its WAL as they are, on the disk."""
    with explained(path):
        for end in ("", "-wal"):
            source = path.with_name(path.name + end)
            if not source.exists():
                continue
            target = kept.with_name(kept.name + end)
            handle = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "wb") as file:
                if end:
                    file.write(source.read_bytes())
                else:
                    for block in keys.blocks_of(source):
                        file.write(block)
                file.flush()
                os.fsync(file.fileno())


def _rescue(kept: Path, made: Path, path: Path, passphrase: str | None) -> Repaired:
    """Read the copy (never the file itself) into a new file ``made``."""
    work = kept.with_name(kept.name + ".tmp")
    rescued: dict[str, int] = {}
    missing: dict[str, int] = {}
    try:
        for end in ("", "-wal"):
            source = kept.with_name(kept.name + end)
            if source.exists():
                shutil.copyfile(source, work.with_name(work.name + end))
        if passphrase is None:
            salvage.restore_header(work)
        new = Database(made, passphrase=passphrase)
        try:
            with new.write() as connection:
                connection.execute("pragma defer_foreign_keys = 1")
                # Of an encrypted file first what is proven to be as written, then what can be read.
                for proven in (True, False) if passphrase is not None else (False,):
                    damaged = salvage.open_damaged(work, path, passphrase, proven=proven)
                    try:
                        _copy(damaged, connection, strays=not proven)
                        counted = {table: salvage.counted(damaged, table) for table in TABLES}
                    finally:
                        damaged.close()
                for table in TABLES:
                    rescued[table] = _rows_in(connection, table)
                    missing[table] = max(0, counted[table] - rescued[table])
                if not any(rescued[table] for table in ("conversation", "memory", "feedback")):
                    raise salvage.hopeless(path)
                _mend(connection)
        finally:
            new.alone()  # no WAL beside a file that is about to be moved
            new.close()
    finally:
        _remove(work)
    return Repaired(kept, rescued, missing)


def _copy(damaged: apsw.Connection, connection: apsw.Connection, *, strays: bool) -> None:
    """Every row that is not there yet; ``strays``: also from pages that no table leads to."""
    broken = [table for table in TABLES if not _copy_table(damaged, connection, table)]
    if not strays:
        return
    if not salvage.list_is_whole(damaged):
        _copy_strays(damaged, connection)
        return
    for table in broken:
        if table != "setting":
            for row in salvage.stray_rows(damaged, connection, table):
                _insert(connection, "ignore", table, salvage.columns_of(connection, table), row)


def _copy_table(damaged: apsw.Connection, connection: apsw.Connection, table: str) -> bool:
    """Whether it could be read without a break."""
    columns = salvage.columns_in_both(damaged, connection, table)
    verb = "replace" if table in {"space", "setting"} else "ignore"  # a new file has some of these
    whole = bool(columns)
    for row in salvage.readable(damaged, table, columns) if columns else ():
        if row is None:
            whole = False
        else:
            _insert(connection, verb, table, columns, row)
    return whole


def _copy_strays(damaged: apsw.Connection, connection: apsw.Connection) -> None:
    """From the pages alone, where SQLite does not find all tables any more."""
    bare = salvage.without_list(damaged)
    try:
        for table in TABLES[1:]:
            for row in salvage.stray_rows(bare, connection, table):
                _insert(connection, "ignore", table, salvage.columns_of(connection, table), row)
    finally:
        bare.close()


def _insert(
    connection: apsw.Connection, verb: str, table: str, columns: Sequence[str], row: Sequence[Any]
) -> None:
    # Bytes may have been flipped into what no row of ours can be.
    with suppress(apsw.ConstraintError, apsw.MismatchError):
        connection.execute(
            f"insert or {verb} into {table}({','.join(columns)})"
            f" values({','.join('?' * len(columns))})",
            tuple(row),
        )


def _rows_in(connection: apsw.Connection, table: str) -> int:
    return int(str(next(connection.execute(f"select count(*) from {table}"))[0]))


def _mend(connection: apsw.Connection) -> None:
    """What referred to a lost row: a turn becomes a first one, a conversation gets a new head."""
    connection.execute("insert or ignore into space values(1, 'personal', unixepoch() * 1000)")
    connection.execute(
        "insert into conversation(id, title, created, updated)"
        " select conversation, 'Rescued', min(created), max(created) from message"
        " where conversation not in (select id from conversation) group by conversation"
    )
    connection.execute("update memory set embedded = 0")
    connection.execute("delete from setting where key = 'memory.embedder'")
    lost = "not in (select id from"
    for table, column, other in (
        ("message", "parent", "message"),
        ("message", "context_from", "message"),
        ("conversation", "leaf", "message"),
        ("conversation", "space", "space"),
        ("memory", "document", "document"),
        ("memory", "message", "message"),
        ("memory", "superseded_by", "memory"),
        ("feedback", "superseded_by", "feedback"),
    ):
        connection.execute(
            f"update or ignore {table} set {column} = null where {column} {lost} {other})"
        )
    connection.execute(
        "update conversation set leaf = (select max(id) from message"
        " where message.conversation = conversation.id) where leaf is null"
    )
    for table in ("memory", "document"):
        connection.execute(
            f"insert or ignore into space(id, name, created) select distinct space,"
            f" 'rescued ' || space, unixepoch() * 1000 from {table}"
            f" where space {lost} space)"
        )


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)
