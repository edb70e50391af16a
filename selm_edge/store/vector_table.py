"""The table of vectors as a part of the file: loading sqlite-vec, deleting, doing without.

How vectors are searched is `selm_edge.memory.vectors`' business. Here is what every writer of the
file must be able to do, with sqlite-vec or without: delete a memory and leave no vector of it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import apsw

TABLE = "memory_vector"


def load(connection: apsw.Connection) -> str | None:
    """Let this connection use sqlite-vec; why not, where it cannot.

    Loading extensions is allowed for this moment only. The package is found, not imported: its
    import brings numpy along where there is one.
    """
    package = find_spec("sqlite_vec")
    if package is None or package.origin is None:
        return "sqlite-vec is not installed"
    try:
        connection.enable_load_extension(True)
        try:
            connection.load_extension(str(Path(package.origin).with_name("vec0")))
        finally:
            connection.enable_load_extension(False)
    except (apsw.Error, AttributeError, OSError) as error:
        return f"sqlite-vec could not be loaded: {error}"
    return None


def exists(connection: apsw.Connection) -> bool:
    sql = "select 1 from sqlite_master where type = 'table' and name = ?"
    return bool(list(connection.execute(sql, (TABLE,))))


def drop(connection: apsw.Connection) -> None:
    """Remove the table and every byte in it, even without sqlite-vec and even when damaged.

    Without the entry of the virtual table, what it stored in are plain tables like any other.
    """
    connection.pragma("writable_schema", 1)
    try:
        connection.execute("delete from sqlite_master where name = ?", (TABLE,))
    finally:
        connection.execute("pragma writable_schema = reset")
    sql = "select name from sqlite_master where type = 'table' and name like ? escape '\\'"
    pattern = TABLE.replace("_", "\\_") + "\\_%"
    for (name,) in list(connection.execute(sql, (pattern,))):
        connection.execute(f'drop table "{name}"')


def delete_memories(
    connection: apsw.Connection, memories: Collection[int], usable: bool = True
) -> None:
    """Delete these rows with their vectors; the text index follows by trigger.

    Where the vectors cannot be reached one by one (``usable`` false: no sqlite-vec), all of them
    go: they can be made again from the texts.
    """
    if not memories:
        return
    ids = json.dumps(list(memories))
    if exists(connection):
        if usable:
            connection.execute(
                f"delete from {TABLE} where id in (select value from json_each(?))", (ids,)
            )
        else:
            drop(connection)
            connection.execute("update memory set embedded = 0 where embedded = 1")
    connection.execute("delete from memory where id in (select value from json_each(?))", (ids,))
