"""Several connections read one file at once: only what is committed, and they can write nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import apsw
import pytest

from selm_edge.store import keys
from selm_edge.store.database import Database
from selm_edge.store.errors import StoreError
from selm_edge.store.reading import Reader
from selm_edge.store.rekeying import change_passphrase

PLACE = "insert into memory(space, kind, text, sha256, source, created, updated)"
COUNT = "select count(*) from memory"


def add(connection: apsw.Connection, text: str) -> None:
    connection.execute(f"{PLACE} values(1, 'fact', ?, ?, 'chat', 1, 1)", (text, text.encode()))


def counted(reader: Reader) -> int:
    found = reader.one(COUNT)
    assert found is not None
    return int(found[0])


@pytest.fixture(params=[None, "a passphrase"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:  # fmt: skip  # noqa: E501
    monkeypatch.setattr(keys, "ARGON2_MEMORY_KIB", 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    made = Database(tmp_path / "selm.db", passphrase=request.param)
    with made.write() as connection:
        add(connection, "one")
    return made


def test_two_read_at_the_same_time(database: Database) -> None:
    both = threading.Barrier(2, timeout=20)

    def read(reader: Reader) -> int:
        both.wait()  # broken, unless the other is in here, too
        return counted(reader)

    assert [begun.result() for begun in [database.begin(read), database.begin(read)]] == [1, 1]
    database.close()


def test_what_is_not_committed_is_seen_from_inside_alone(database: Database) -> None:
    with database.write() as connection:
        add(connection, "two")
        assert database.begin(counted).result() == 2  # this connection's own
        other = Database(database.path, passphrase="a passphrase" if database.encrypted else None)
        assert other.begin(counted).result() == 1
    assert other.begin(counted).result() == database.begin(counted).result() == 2
    database.close()
    other.close()


def test_a_reader_writes_nothing_and_says_why_it_failed(database: Database) -> None:
    with pytest.raises(StoreError) as refused:
        database.begin(lambda reader: reader.rows("delete from memory")).result()
    assert refused.value.path == database.path
    with pytest.raises(StoreError, match="no such table"):
        database.begin(lambda reader: reader.rows("select * from nowhere")).result()
    assert database.begin(counted).result() == 1
    database.close()


def test_a_memory_database_reads_here_and_now() -> None:
    database = Database(None)
    with database.write() as connection:
        add(connection, "one")
    here = threading.get_ident()
    assert database.begin(lambda _: threading.get_ident()).result() == here
    assert database.begin(counted).result() == 1
    with pytest.raises(StoreError, match="no such table"):
        database.begin(lambda reader: reader.rows("select * from nowhere")).result()


def test_closed_readers_leave_the_file(database: Database) -> None:
    old = "a passphrase" if database.encrypted else None
    assert database.path is not None
    database.begin(counted).result()
    with pytest.raises(StoreError, match="another program"):
        change_passphrase(database.path, old, "new")
    database.close()
    change_passphrase(database.path, old, "new")
    again = Database(database.path, passphrase="new")
    assert again.begin(counted).result() == 1
    again.close()
