"""Reading rows out of a damaged file: around what is broken, and from pages nothing leads to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from selm_edge.store import keys
from selm_edge.store.errors import StoreError

UNREADABLE = (apsw.Error, UnicodeDecodeError)
_HEADER = b"SQLite format 3\0" + bytes.fromhex("1000020200402020")


def hopeless(path: Path) -> StoreError:
    return StoreError(
        path,
        "damaged",
        "the list of tables is damaged: no row can be found",
        "The file was left as it is. Take it back from a backup, or move it away to begin anew.",
    )


def restore_header(file: Path) -> None:
    """The first bytes are the same in every file of ours, so damage there can be undone."""
    with file.open("rb+") as handle:
        handle.write(_HEADER)


def open_damaged(
    work: Path, path: Path, passphrase: str | None, *, proven: bool
) -> apsw.Connection:
    """A copy of the file, to be read only. ``proven``: of an encrypted one, only pages whose HMAC
    is right; else also what a few wrong bytes spoil no more than their surroundings of."""
    connection = apsw.Connection(str(work))
    try:
        if passphrase is not None:
            connection.pragma("hmac_check", int(proven))  # before the key, or it is too late
            keys.unlock(connection, keys.key_for(work, passphrase))
        # Where one entry of the list of tables cannot be read, the others still are.
        connection.pragma("writable_schema", 1)
        connection.pragma("cell_size_check", 1)
        list(connection.execute("pragma schema_version"))
    except apsw.NotADBError as error:
        connection.close()
        raise (keys.wrong_key(path) if passphrase is not None else hopeless(path)) from error
    except UNREADABLE as error:
        connection.close()
        raise hopeless(path) from error
    return connection


def list_is_whole(damaged: apsw.Connection) -> bool:
    """Whether the list of tables can be read to its end."""
    try:
        list(damaged.execute("select sql from sqlite_master"))
    except UNREADABLE:
        return False
    return True


def columns_of(connection: apsw.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in connection.execute(f"pragma table_info({table})")]


def columns_in_both(damaged: apsw.Connection, connection: apsw.Connection, table: str) -> list[str]:
    """An older file has fewer columns, one with a damaged list of tables perhaps none."""
    try:
        there = set(columns_of(damaged, table))
    except UNREADABLE:
        return []
    return [name for name in columns_of(connection, table) if name in there]


def counted(damaged: apsw.Connection, table: str) -> int:
    with suppress(*UNREADABLE):
        for row in damaged.execute("select seq from sqlite_sequence where name = ?", (table,)):
            return int(str(row[0]))
    return 0


def readable(
    damaged: apsw.Connection, table: str, columns: Sequence[str]
) -> Iterator[list[Any] | None]:
    """Every row that can be read, whatever lies broken between them; None for each such place."""
    fields = as_bytes(columns)
    if table == "setting":  # has no row numbers
        yield from _readable_settings(damaged, fields)
        return
    last = max(counted(damaged, table), _greatest(damaged, table))
    ranges = [(-1, last + 1)]
    while ranges:
        low, high = ranges.pop()
        sql = f"select rowid, {fields} from {table} where rowid > ? and rowid < ? order by rowid"
        for order in ("", " desc"):
            broken = False
            rows = _until_broken(damaged, sql + order, (low, high))
            for row in rows:
                if row is None:
                    broken = True
                    yield None
                    break
                low, high = (row[0], high) if not order else (low, row[0])
                yield _decoded(row[1:])
            if not broken:
                low = high
                break
        if high - low > 2:
            middle = (low + high) // 2
            ranges += [(low, middle + 1), (middle, high)]
        elif high - low == 2:
            one = f"select rowid, {fields} from {table} where rowid = ?"
            for row in _until_broken(damaged, one, (low + 1,)):
                if row is not None:
                    yield _decoded(row[1:])


def as_bytes(columns: Sequence[str]) -> str:
    """To select: each column's kind and value, texts as bytes, which may be no UTF-8 any more."""
    return ", ".join(
        f"typeof({name}), case typeof({name}) when 'text' then cast({name} as blob) else {name} end"
        for name in columns
    )


def _readable_settings(damaged: apsw.Connection, fields: str) -> Iterator[list[Any]]:
    for order in ("", " desc"):
        for row in _until_broken(damaged, f"select {fields} from setting order by key{order}", ()):
            if row is None:
                break
            yield _decoded(row)
        else:
            return


def _until_broken(
    damaged: apsw.Connection, sql: str, params: Sequence[Any]
) -> Iterator[Sequence[Any] | None]:
    """The rows up to the first that cannot be read; then None."""
    try:
        yield from damaged.execute(sql, tuple(params))
    except UNREADABLE:
        yield None


def _greatest(damaged: apsw.Connection, table: str) -> int:
    try:
        for row in damaged.execute(f"select max(rowid) from {table}"):
            return int(str(row[0] or 0))
    except UNREADABLE:
        pass
    return 0


def _decoded(row: Sequence[Any]) -> list[Any]:
    return [
        value.decode("utf-8", "replace") if kind == "text" else value
        for kind, value in zip(row[::2], row[1::2], strict=True)
    ]


# -- rows whose way is lost ------------------------------------------------------------------------

_BATCH = 256  # pages looked at with one reading of the list of tables
# What tells a row of ours from other bytes that happen to lie in a table's page.
_PLAUSIBLE = {
    "space": "typeof(name) = 'text' and typeof(created) = 'integer'",
    "document": "state in ('reading', 'complete') and typeof(path) = 'text'",
    "conversation": "typeof(title) = 'text' and named in (0, 1) and created > 1000000000000",
    "message": "role in ('user', 'assistant') and typeof(conversation) = 'integer'",
    "memory": "kind in ('fact', 'correction', 'turn', 'passage') and length(sha256) = 32",
    "feedback": "kind in ('up', 'down', 'correction', 'regeneration', 'preference')"
    " and typeof(uid) = 'text'",
}


def without_list(damaged: apsw.Connection) -> apsw.Connection:
    """The same pages in memory, decrypted, with an empty list of tables; unreadable ones as zeros.

    In memory, so that nothing of an encrypted file is written out readable.
    """
    image = bytearray(damaged.serialize("main"))
    empty = apsw.Connection(":memory:")
    empty.execute("create table t(x); drop table t")
    first = bytearray(empty.serialize("main")[: keys.PAGE_SIZE])
    first[20] = image[20]  # bytes that encryption keeps free at the end of each page
    first[105:107] = (keys.PAGE_SIZE - first[20]).to_bytes(
        2, "big"
    )  # where its entries would begin
    first[28:32] = (len(image) // keys.PAGE_SIZE).to_bytes(4, "big")
    first[32:40] = bytes(8)  # no free pages
    first[92:96] = first[24:28]  # these figures are up to date
    image[: keys.PAGE_SIZE] = first
    empty.deserialize("main", bytes(image))
    return empty


def stray_rows(
    damaged: apsw.Connection, connection: apsw.Connection, table: str
) -> Iterator[list[Any]]:
    """The rows on any page of the file that look like this table's, with all its columns.

    SQLite reads a table from whatever page the list of tables names as its root. So every page is
    named once, under a name of its own; the list here is that of a copy. ``connection`` is to a
    sound file, for the columns.
    """
    pages = int(str(next(damaged.execute("pragma page_count"))[0]))
    columns = columns_of(connection, table)
    # A row written before a column was added has its default.
    definition = ", ".join(
        f"{name} integer primary key" if key else f"{name} default {default or 'null'}"
        for _, name, _, _, default, key in connection.execute(f"pragma table_info({table})")
    )
    for first in range(2, pages + 1, _BATCH):
        batch = range(first, min(first + _BATCH, pages + 1))
        try:
            _name_pages(damaged, batch, definition)
        except UNREADABLE:
            return  # the list of tables itself takes no more entries
        for page in batch:
            sql = f"select {as_bytes(columns)} from stray_{page} where {_PLAUSIBLE[table]}"
            for row in _until_broken(damaged, sql, ()):
                if row is not None:
                    yield _decoded(row)


def _name_pages(damaged: apsw.Connection, pages: Sequence[int], definition: str) -> None:
    damaged.pragma("writable_schema", 1)
    # Numbers below 0: the list is read in their order, and what follows damage in it is not.
    damaged.execute("delete from sqlite_master where rowid < 0")
    damaged.executemany(
        "insert into sqlite_master(rowid, type, name, tbl_name, rootpage, sql)"
        " values(?, 'table', ?, ?, ?, ?)",
        [
            (
                -page,
                f"stray_{page}",
                f"stray_{page}",
                page,
                f"create table stray_{page}({definition})",
            )
            for page in pages
        ],
    )
    damaged.execute("pragma writable_schema = reset")
    damaged.pragma("writable_schema", 1)
