"""Encrypting a file, decrypting it, or giving it another passphrase.

A copy with the new key is written beside the file and takes its place in one step: interrupted at
any moment, there is the old file or the new one, whole. What lay there before is overwritten, as
far as the disk allows: flash and copying file systems may keep old blocks for a while.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import apsw

from selm_edge.store import keys
from selm_edge.store.database import REKEYED_SUFFIX, Database
from selm_edge.store.errors import StoreError
from selm_edge.store.reading import explained

_BLOCK = 1 << 20


def change_passphrase(path: Path, old: str | None, new: str | None) -> None:
    """Encrypt the file (``old`` None), decrypt it (``new`` None), or change its passphrase.

    StoreError, with the file as it was, where ``old`` is wrong (cause ``key``), another program has
    the file open (``busy``) or the disk is full. ValueError for an empty passphrase. Copies of the
    file under the old key (backups, files a repair set aside) are removed.
    """
    if not path.exists():
        raise StoreError(path, "io", "there is no such file", "Nothing was changed.")
    key = keys.make_key(new, os.urandom(keys.SALT_BYTES)) if new is not None else None
    database = Database(path, passphrase=old)  # brings the schema up to date, too
    try:
        stale = [*database.backups(), *database.set_aside()]
        with explained(path):
            connection = database.alone()
            copy = path.with_name(path.name + REKEYED_SUFFIX)
            _copy_with_key(connection, copy, key)
            _exchange(connection, copy, path)
    finally:
        database.close()
    for file in stale:
        with suppress(OSError):
            file.unlink()


def _copy_with_key(connection: apsw.Connection, copy: Path, key: str | None) -> None:
    copy.unlink(missing_ok=True)
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        parameters = f"?cipher=sqlcipher&hexkey={key.encode().hex()}" if key else "?key="
        connection.execute("vacuum into ?", (f"file:{quote(str(copy.absolute()))}{parameters}",))
        _check(copy, key)
        with copy.open("rb+") as file:  # VACUUM INTO leaves this to the system
            os.fsync(file.fileno())
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _check(copy: Path, key: str | None) -> None:
    """That the new key opens the copy, before anything depends on it."""
    connection = apsw.Connection(str(copy))
    try:
        if key is not None:
            keys.unlock(connection, key)
        list(connection.execute("select count(*) from sqlite_master"))
    finally:
        connection.close()
    if (keys.state_of(copy) == "encrypted") != (key is not None):
        raise apsw.IOError("the copy was not written as asked")


def _exchange(connection: apsw.Connection, copy: Path, path: Path) -> None:
    if os.name == "nt":  # no file can be replaced there while it is open
        connection.close()
        copy.replace(path)
        return
    # Opened before the step and closed after SQLite's own handle: closing one drops its locks.
    with path.open("rb+") as before:
        copy.replace(path)
        _sync_folder(path.parent)
        # Who waited for the old file's lock finds, before writing, that another lies there now.
        connection.close()
        _overwrite(before.fileno())


def _overwrite(file: int) -> None:
    left = os.fstat(file).st_size
    while left:
        left -= os.write(file, bytes(min(_BLOCK, left)))
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
