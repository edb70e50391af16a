"""A passphrase for the whole file: AES-256 in SQLCipher's scheme, the key made by Argon2id.

The salt is the first 16 bytes of the file, where SQLCipher keeps it, so one file is all there is.
Every page carries an HMAC: a wrong key or a changed byte is noticed, never read as data.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import apsw

from selm_edge.store.errors import StoreError

# RFC 9106's second recommended choice: 64 MiB, 3 passes, 4 lanes. About 0.1 s on a laptop.
ARGON2_MEMORY_KIB = 64 * 1024
ARGON2_PASSES = 3
ARGON2_LANES = 4
SALT_BYTES = 16
_KEY_BYTES = 32
_BLOCK = 1 << 20
PAGE_SIZE = 4096
_PLAIN_HEADER = b"SQLite format 3\0"

State = Literal["new", "plain", "encrypted"]


def state_of(path: Path) -> State:
    """What lies at ``path``, told by its beginning.

    A header with a few wrong bytes is a damaged plain file; so is one that is not whole pages.
    """
    head, size = _beginning(path)
    if not head:  # whatever the size says: another process may be making the file this moment
        return "new"
    alike = sum(a == b for a, b in zip(head, _PLAIN_HEADER, strict=False))
    return "plain" if alike >= len(_PLAIN_HEADER) // 2 or size % PAGE_SIZE else "encrypted"


def key_for(path: Path, passphrase: str) -> str:
    """The raw key with its salt, as the ``key`` pragma takes it; a new file gets a new salt.

    Letters that look the same are made the same first (NFKC), whatever keyboard wrote them.
    ValueError for an empty passphrase.
    """
    return make_key(passphrase, salt_of(path) or os.urandom(SALT_BYTES))


def salt_of(path: Path) -> bytes | None:
    """The salt of an encrypted file."""
    return _beginning(path)[0] if state_of(path) == "encrypted" else None


def make_key(passphrase: str, salt: bytes) -> str:
    """`key_for` with a given salt."""
    from argon2.low_level import Type, hash_secret_raw

    if not passphrase:
        raise ValueError("a passphrase needs at least one letter")
    key = hash_secret_raw(
        unicodedata.normalize("NFKC", passphrase).encode(),
        salt,
        time_cost=ARGON2_PASSES,
        memory_cost=ARGON2_MEMORY_KIB,
        parallelism=ARGON2_LANES,
        hash_len=_KEY_BYTES,
        type=Type.ID,
    )
    return f"x'{key.hex()}{salt.hex()}'"


def unlock(connection: apsw.Connection, key: str) -> None:
    """Give the key before anything else is asked; whether it fits shows at the first read."""
    connection.pragma("cipher", "sqlcipher")
    connection.execute(f'pragma key = "{key}"')


def salt_in(key: str) -> bytes:
    """The salt that a key of `make_key` carries."""
    return bytes.fromhex(key[2 + 2 * _KEY_BYTES : -1])


def check_state(path: Path, passphrase: str | None) -> None:
    """StoreError where a passphrase is missing or not wanted."""
    state = state_of(path)
    if state == "encrypted" and passphrase is None:
        raise StoreError(
            path,
            "key",
            "the file is encrypted: it opens with its passphrase",
            "Nothing was read. If you never set one, it is another program's file or damaged.",
        )
    if state == "plain" and passphrase is not None:
        raise StoreError(
            path,
            "key",
            "the file is not encrypted, but a passphrase was given",
            "Open it without one, or encrypt it first.",
        )


def wrong_key(path: Path | None) -> StoreError:
    return StoreError(
        path,
        "key",
        "the passphrase is wrong (or the file's first page is damaged)",
        "Nothing was read and nothing was changed. Try again.",
    )


def blocks_of(path: Path) -> Generator[bytes, None, None]:
    """The bytes of a database file, read beside connections of this process.

    Through SQLite: closing any other handle of an open database drops the locks that this process
    holds on it (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    file = apsw.VFSFile("", str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY, 0])
    try:
        size = file.xFileSize()
        for at in range(0, size, _BLOCK):
            yield file.xRead(min(_BLOCK, size - at), at)
    finally:
        file.xClose()


def _beginning(path: Path) -> tuple[bytes, int]:
    """The first 16 bytes, and then the size; nothing where there is no file."""
    if not path.exists():
        return b"", 0
    blocks = blocks_of(path)
    head = next(blocks, b"")[:SALT_BYTES]
    blocks.close()
    return head, path.stat().st_size
