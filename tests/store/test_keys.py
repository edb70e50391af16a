"""A file with a passphrase: nothing readable on the disk, the wrong key shows nothing, and a change
of the key that is killed leaves a file that the old or the new one opens."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from collections.abc import Generator
from pathlib import Path

import apsw
import pytest
from support.processes import run_python

from selm_edge.store import keys
from selm_edge.store.database import Database
from selm_edge.store.errors import StoreError
from selm_edge.store.migrations import MIGRATIONS
from selm_edge.store.opening import open_store, open_store_or_memory
from selm_edge.store.rekeying import change_passphrase

WORD = b"zanzibar"


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real cost is paid once, in `test_the_key_is_argon2id`; here it would only take time."""
    monkeypatch.setattr(keys, "ARGON2_MEMORY_KIB", 64)


def filled(path: Path, passphrase: str | None = None) -> None:
    store = open_store(path, passphrase)
    talk = store.conversations.create().id
    store.conversations.add(talk, None, "user", "hello zanzibar")
    store.close()


def texts(path: Path, passphrase: str | None = None) -> list[str]:
    store = open_store(path, passphrase)
    found = [turn.text for turn in store.conversations.tree(1)]
    store.close()
    return found


def readable(folder: Path) -> list[str]:
    return [f.name for f in sorted(folder.iterdir()) if WORD in f.read_bytes()]


def test_the_key_is_argon2id(monkeypatch: pytest.MonkeyPatch) -> None:
    from argon2.low_level import Type, hash_secret_raw

    monkeypatch.undo()
    assert (keys.ARGON2_MEMORY_KIB, keys.ARGON2_PASSES, keys.ARGON2_LANES) == (65536, 3, 4)
    salt = bytes(range(16))
    raw = hash_secret_raw("caf\u00e9".encode(), salt, 3, 65536, 4, 32, Type.ID)
    assert keys.make_key("cafe\u0301", salt) == f"x'{raw.hex()}{salt.hex()}'"
    assert keys.salt_in(keys.make_key("other", salt)) == salt


def test_nothing_is_readable_without_the_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "home" / "selm.db"
    store = open_store(path, "open sesame")
    talk = store.conversations.create().id
    store.conversations.add(talk, None, "user", "hello zanzibar")
    assert store.database.encrypted
    assert readable(path.parent) == []  # the WAL is there, too
    assert path.with_name("selm.db-wal").stat().st_size > 0
    store.close()
    assert readable(path.parent) == [] and b"SQLite" not in path.read_bytes()
    assert path.read_bytes()[:16] == keys.salt_of(path)
    assert texts(path, "open sesame") == ["hello zanzibar"]
    with pytest.raises(apsw.NotADBError):
        list(apsw.Connection(str(path)).execute("select * from message"))


@pytest.mark.parametrize("wrong", ["Open sesame", "open sesame ", "x"])
def test_a_wrong_passphrase_says_so_and_shows_nothing(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "selm.db"
    filled(path, "open sesame")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="passphrase is wrong") as caught:
        open_store(path, wrong)
    assert caught.value.cause == "key" and path.read_bytes() == before
    fallback = open_store_or_memory(path, wrong)
    assert not fallback.saving and fallback.conversations.recent() == []


def test_a_missing_or_needless_passphrase_says_so(tmp_path: Path) -> None:
    locked, plain = tmp_path / "locked.db", tmp_path / "plain.db"
    filled(locked, "open sesame")
    filled(plain)
    with pytest.raises(StoreError, match="opens with its passphrase") as caught:
        open_store(locked)
    assert caught.value.cause == "key"
    with pytest.raises(StoreError, match="is not encrypted") as caught:
        open_store(plain, "open sesame")
    assert caught.value.cause == "key"
    with pytest.raises(ValueError, match="at least one letter"):
        open_store(tmp_path / "new.db", "")


def test_a_file_that_is_made_meanwhile_is_not_taken_for_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "selm.db"
    path.touch()
    read = keys.blocks_of

    def blocks(path: Path) -> Generator[bytes, None, None]:
        yield from read(path)
        path.write_bytes(b"SQLite format 3\0" + bytes(keys.PAGE_SIZE - 16))  # another's first page

    monkeypatch.setattr(keys, "blocks_of", blocks)
    assert keys.state_of(path) == "new"
    assert keys.state_of(path) == "plain"


def test_encrypt_change_decrypt(tmp_path: Path) -> None:
    path = tmp_path / "home" / "selm.db"
    filled(path)
    (path.parent / "selm.db.before-v4").write_bytes(b"a backup with zanzibar")
    change_passphrase(path, None, "one")
    assert readable(path.parent) == [] and texts(path, "one") == ["hello zanzibar"]
    with pytest.raises(StoreError, match="passphrase is wrong"):
        change_passphrase(path, "two", "three")
    change_passphrase(path, "one", "two")
    with pytest.raises(StoreError, match="passphrase is wrong"):
        texts(path, "one")
    assert texts(path, "two") == ["hello zanzibar"]
    change_passphrase(path, "two", None)
    assert texts(path) == ["hello zanzibar"]
    assert sorted(f.name for f in path.parent.iterdir()) == ["selm.db"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StoreError, match="no such file"):
        change_passphrase(tmp_path / "missing.db", None, "x")


def test_what_was_plain_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    filled(path)
    other_name = tmp_path / "same-file"
    other_name.hardlink_to(path)
    change_passphrase(path, None, "one")
    assert set(other_name.read_bytes()) == {0}


def test_a_file_in_use_keeps_its_key(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    filled(path)
    other = open_store(path)
    with pytest.raises(StoreError, match="another program keeps it locked") as caught:
        change_passphrase(path, None, "one")
    assert caught.value.cause == "busy"
    other.conversations.create("still saved")
    other.close()
    assert texts(path) == ["hello zanzibar"]


def test_the_backup_before_a_migration_is_encrypted_too(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    old = Database(path, MIGRATIONS[:2], passphrase="one")
    old.rows("insert into conversation(title, created, updated) values('zanzibar', 1, 1)")
    old.close()
    new = Database(path, passphrase="one")
    (backup,) = new.backups()
    assert readable(tmp_path) == []
    again = Database(backup, MIGRATIONS[:2], passphrase="one")
    assert again.rows("select title from conversation") == [("zanzibar",)]


def test_going_on_in_memory_keeps_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    filled(path, "one")
    store = open_store(path, "one")
    store.go_on_in_memory(StoreError(path, "full", "the disk is full", ""))
    assert [turn.text for turn in store.conversations.tree(1)] == ["hello zanzibar"]
    store.conversations.create("not saved")
    assert not store.saving and readable(tmp_path) == []


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Every page has an HMAC: what a plain file would show as another letter is an error here."""
    path = tmp_path / "selm.db"
    filled(path, "one")
    whole = path.read_bytes()
    chance = random.Random(2)
    for page in range(1, len(whole) // 4096):
        broken = bytearray(whole)
        broken[page * 4096 + chance.randrange(4096)] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        try:
            store = open_store(path, "one")
            for (name,) in store.database.rows(
                "select name from sqlite_master where type = 'table' and sql like 'CREATE TABLE%'"
            ):
                store.database.rows(f'select * from "{name}"')
            assert store.database.rows("pragma integrity_check") != [("ok",)]
            store.close()
        except StoreError as error:
            assert error.cause in {"damaged", "key"}


_REKEY = """
import sys
from pathlib import Path
from selm_edge.store import keys
keys.ARGON2_MEMORY_KIB = 64
from selm_edge.store.rekeying import change_passphrase
print("ready", flush=True)
change_passphrase(Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3] or None)
"""


@pytest.mark.parametrize(("old", "new"), [(None, "one"), ("one", "two"), ("two", None)])
def test_killed_at_any_moment_the_old_or_the_new_key_opens(
    tmp_path: Path, old: str | None, new: str | None
) -> None:
    path = tmp_path / "selm.db"
    filled(path, old)
    whole = path.read_bytes()
    chance = random.Random(4)
    seen = set()
    for _ in range(12):
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(whole)
        worker = run_python(_REKEY, str(path), old or "", new or "")
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.08)
        os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()
        opened = []
        for key in (old, new):
            try:
                assert texts(path, key) == ["hello zanzibar"]
                opened.append(key)
            except StoreError as error:
                assert error.cause == "key", error
        assert len(opened) == 1
        seen.add(opened[0])
        left = {f.name for f in tmp_path.iterdir()} - {"selm.db"}
        assert left == set()  # half a copy is gone with the next opening
    assert seen <= {old, new}


_OPENING = """
import sys
from pathlib import Path
from selm_edge.store import keys
keys.ARGON2_MEMORY_KIB = 64
from selm_edge.store.opening import open_store
for number in range(20):
    store = open_store(Path(sys.argv[1]), "one")
    store.conversations.create(f"{sys.argv[2]}-{number}")
    store.close()
"""


def test_many_make_and_open_one_encrypted_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "selm.db"
    workers = [run_python(_OPENING, str(path), str(n)) for n in range(4)]
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        assert (worker.returncode, err) == (0, "")
    store = open_store(path, "one")
    assert len(store.conversations.recent()) == 80
    assert store.database.rows("pragma integrity_check") == [("ok",)]
