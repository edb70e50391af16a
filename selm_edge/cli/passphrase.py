"""The passphrase of an encrypted file: from the environment, or asked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from selm_edge.errors import SelmError

VARIABLE = "SELM_PASSPHRASE"
NEW_VARIABLE = "SELM_NEW_PASSPHRASE"
_TRIES = 3


def passphrase_for(path: Path, *, tried: bool = True) -> str | None:
    """What opens the file; None where it is not encrypted.

    Asked for at a terminal, up to three times where it is wrong (then StoreError). Where nobody can
    be asked and ``SELM_PASSPHRASE`` is not set, None: opening the file then says what is missing.
    With ``tried`` false it is not tried on the file, which may be too damaged for that.
    """
    if not path.exists():
        return None
    from selm_edge.store.keys import state_of

    if state_of(path) != "encrypted":
        return None
    given = os.environ.get(VARIABLE)
    if given or not _can_ask():
        return given or None
    from selm_edge.store.errors import StoreError
    from selm_edge.store.opening import open_store

    for left in range(_TRIES - 1, -1, -1):
        asked = _ask("Passphrase: ")
        if not asked:
            break
        if not tried:
            return asked
        try:
            open_store(path, asked).close()
        except StoreError as error:
            if error.cause != "key" or not left:
                raise
            print("That is not the passphrase.", file=sys.stderr)
        else:
            return asked
    return None


def new_passphrase() -> str:
    """A new one, asked for twice; SelmError where that fails."""
    if given := os.environ.get(NEW_VARIABLE):
        return given
    if not _can_ask():
        raise SelmError(f"a passphrase is needed and nobody can be asked\nSet {NEW_VARIABLE}.")
    first = _ask("New passphrase: ")
    if not first:
        raise SelmError("no passphrase was given; nothing was changed")
    if _ask("Once more: ") != first:
        raise SelmError("the two are not the same; nothing was changed")
    return first


def _can_ask() -> bool:
    return bool(sys.stdin and sys.stdin.isatty())


def _ask(words: str) -> str:
    from getpass import getpass

    return getpass(words)
