"""One writer at a time on a file of this user, also across processes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from selm_edge.errors import SelmError


@contextlib.contextmanager
def lock(path: Path, patience: float = 5.0) -> Iterator[None]:
    """One writer at a time. The system lets go of a killed process's lock."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise SelmError(f"{path}: {error.strerror or error}") from None
    try:
        ends = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > ends:
                raise SelmError(f"another process holds {path}; try again")
            time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
