"""Where things are kept, and whether they can be.

`SELM_HOME` puts everything in one directory; otherwise each system's own places are used
(platformdirs). Nothing happens at import. A home that cannot be written is no error here: it is
reported, and callers go on in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

APP = "selm"


@dataclass(frozen=True)
class Place:
    """A directory and its state. ``problem`` is None when it can be written."""

    purpose: str
    path: Path
    problem: str | None

    @property
    def writable(self) -> bool:
        return self.problem is None


def home() -> Path | None:
    """SELM_HOME, where set."""
    value = os.environ.get("SELM_HOME", "").strip()
    return Path(value).expanduser().absolute() if value else None


def data_dir() -> Path:
    """Conversations, memory, feedback, the list of models. Not created by asking."""
    root = home()
    if root is not None:
        return root
    from platformdirs import user_data_path

    return user_data_path(APP, appauthor=False)


def config_file() -> Path:
    root = home()
    if root is not None:
        return root / "config.json"
    from platformdirs import user_config_path

    return user_config_path(APP, appauthor=False) / "config.json"


def database_file() -> Path:
    """Conversations and feedback."""
    return data_dir() / "selm.db"


def bundled_dir() -> Path:
    """The models inside the package."""
    return Path(__file__).parent / "models"


def ensure_dir(path: Path) -> str | None:
    """Make a private directory (0700); the reason if it cannot be made or written, else None.

    One that exists keeps its permissions: they are its owner's choice.
    """
    import tempfile

    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path) as probe:  # permission bits do not tell all
            probe.write(b"selm")
    except OSError as error:
        return f"{error.strerror or error} ({error.filename or path})"
    return None


def check(path: Path) -> str | None:
    """Like `ensure_dir`, but leaves no new directory behind."""
    import tempfile

    at = path
    while not at.exists() and at.parent != at:
        at = at.parent
    try:
        if not at.is_dir():
            return f"{at} is not a directory"
        with tempfile.TemporaryFile(dir=at) as probe:
            probe.write(b"selm")
    except OSError as error:
        return f"{error.strerror or error} ({at})"
    return None


def places() -> list[Place]:
    """Every directory in use, for `selm doctor`."""
    found = [("data", data_dir()), ("configuration", config_file().parent)]
    return [Place(purpose, path, check(path)) for purpose, path in found]


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file so that a reader, or a crash, sees the old one or the new one, whole.

    The new one is for its owner only (0600). OSError where it cannot be written; the old one is
    untouched then.
    """
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines((text,) if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    if os.name == "posix":  # the new name must be on the disk too
        with contextlib.suppress(OSError):
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
