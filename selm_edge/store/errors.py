"""What can go wrong between the program and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selm_edge.errors import SelmError

Cause = Literal["full", "readonly", "busy", "damaged", "foreign", "newer", "key", "io"]


class StoreError(SelmError):
    """The data file cannot do what was asked; what it held before is untouched.

    ``path`` is the file, ``cause`` one word for programs, ``str(error)`` a sentence for people.
    """

    def __init__(self, path: Path | None, cause: Cause, message: str, hint: str) -> None:
        self.path = path
        self.cause = cause
        self.hint = hint
        super().__init__(f"{path or 'memory'}: {message}\n{hint}")


class NotFound(SelmError):
    """An id that no row has (any more)."""
