"""Errors that name the file, the cause and the next step."""

from __future__ import annotations


class SelmError(Exception):
    """Anything that SELM Edge reports to its user. ``str(error)`` is fit to be shown."""


class ModelError(SelmError):
    """A model file that cannot be used.

    ``path`` is the file, ``offset`` the byte where the fault was found (``None`` where there is no
    such place), ``cause`` what is wrong, ``hint`` what to do next.
    """

    def __init__(
        self, path: str, cause: str, *, offset: int | None = None, hint: str | None = None
    ) -> None:
        self.path = path
        self.cause = cause
        self.offset = offset
        self.hint = hint
        where = f"{path} (byte {offset})" if offset is not None else path
        super().__init__(f"{where}: {cause}" + (f"\n{hint}" if hint else ""))


class UnsupportedModelError(ModelError):
    """A valid file that this backend does not run; ``hint`` names one that does."""


class SnapshotError(SelmError):
    """A session's snapshot that cannot be written, or is not one for this session.

    ``path`` is the file, ``cause`` what is wrong, ``hint`` what to do next.
    """

    def __init__(self, path: str, cause: str, hint: str) -> None:
        self.path = path
        self.cause = cause
        self.hint = hint
        super().__init__(f"{path}: {cause}\n{hint}")


class ContextError(SelmError):
    """A prompt that does not fit: ``needed`` tokens, ``available`` positions.

    ``most`` is whether the context is already as large as the model was trained with.
    """

    def __init__(
        self, needed: int, available: int, hint: str | None = None, *, most: bool = False
    ) -> None:
        self.needed = needed
        self.available = available
        self.most = most
        super().__init__(
            f"the prompt needs {needed} tokens but the context has room for {available}"
            + (" (all that this model was trained with)" if most else "")
            + (f"\n{hint}" if hint else "")
        )


class Cancelled(SelmError):
    """The work was stopped by its caller."""
