"""Texts to vectors, for finding what means the same in other words.

with open_embedder("builtin") as embedder:
    vector = embedder.embed(["The car needs new tyres."])[0]
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from selm_edge import paths
from selm_edge.catalog import file_of, sha256_of
from selm_edge.errors import ModelError, SelmError, UnsupportedModelError

if TYPE_CHECKING:
    from typing_extensions import Self

BUILTIN = "builtin"
OFF = "off"

_FILE = "selm-embedder.gguf"
_BATCH = 1024  # texts at a time in the core: between two, Ctrl-C is heard
_CHARACTERS_PER_TOKEN = 64  # no text has more than this on average
_HASH = Callable[[Path], str]


class Embedder(Protocol):
    """What turns texts into vectors. Vectors of one ``id`` may be compared, others never."""

    @property
    def id(self) -> str:
        """The file's SHA-256, how its tokens become one vector, and ``dim``."""
        ...

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> list[bytes | None]:
        """For each text float32 [dim], little-endian, of length 1; None where a text has no vector
        (it is empty, or no word of it is known), which is never to be stored."""
        ...

    def close(self) -> None:
        """Let go of the file; more than once is fine."""
        ...


class _Closing(ABC):
    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StaticEmbedder(_Closing):
    """A file of architecture ``selm-embedder``: a row of numbers for each piece of a word, a text
    is their sum. Thousands of texts a second on one core; any number of threads may use it.

    ModelError says file, place and cause; UnsupportedModelError that it is another kind of file.
    """

    def __init__(self, path: str | os.PathLike[str], *, sha256: _HASH = sha256_of) -> None:
        _require_core()
        from selm_edge import _core

        self.path = os.path.abspath(os.fspath(path))  # noqa: PTH100 (as Model.load has it)
        try:
            self._core: _core.StaticEmbedder | None = _core.StaticEmbedder(os.fsencode(self.path))
        except _core.CoreError as error:
            raise _error(self.path, error) from None
        self.dim = self._core.dim
        self.id = f"{_hash(self.path, sha256)}:sum:{self.dim}"

    def embed(self, texts: Sequence[str]) -> list[bytes | None]:
        from selm_edge import _core

        core = self._core  # outlives a close() meanwhile
        if core is None:
            raise ValueError("the embedder is closed")
        vectors: list[bytes | None] = []
        try:
            for start in range(0, len(texts), _BATCH):
                vectors += core.embed(list(texts[start : start + _BATCH]))
        except _core.CoreError as error:
            raise _error(self.path, error) from None
        return vectors

    def close(self) -> None:
        self._core = None


class ModelEmbedder(_Closing):
    """Any model that `selm_edge.Model` opens: the mean of its last hidden states, of length 1.

    Slow beside a `StaticEmbedder`. Of a text that is longer than the model's context (at most 4096
    tokens) only the beginning counts.
    """

    def __init__(self, path: str | os.PathLike[str], *, sha256: _HASH = sha256_of) -> None:
        from selm_edge.model import Model

        self.path = os.path.abspath(os.fspath(path))  # noqa: PTH100
        self._closed = False
        try:
            self._model = Model.load(self.path)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                self.path, error.cause, offset=error.offset, hint=_CHOOSE
            ) from None
        try:
            probe = self._vector("dimension")
            if probe is None:
                raise ModelError(self.path, "gives no vectors", hint=_CHOOSE)
            self.dim = len(probe)
            self.id = f"{_hash(self.path, sha256)}:mean:{self.dim}"
        except BaseException:
            self._model.close()
            raise

    def embed(self, texts: Sequence[str]) -> list[bytes | None]:
        if self._closed:
            raise ValueError("the embedder is closed")
        vectors = (self._vector(text) for text in texts)
        return [None if vector is None else _packed(vector) for vector in vectors]

    def close(self) -> None:
        self._closed = True
        self._model.close()

    def _vector(self, text: str) -> list[float] | None:
        context = self._model.context
        # Cut before it is read too: of a text of 100 MB only the beginning is made into tokens.
        ids = self._model.tokenize(text[: context * _CHARACTERS_PER_TOKEN])[:context]
        if not text.strip() or not ids:
            return None
        vector = self._model.engine.embed(ids)
        if not all(map(math.isfinite, vector)):
            raise ModelError(self.path, "gives a vector that is not finite", hint=_CHOOSE)
        return vector if any(vector) else None


def open_embedder(
    choice: str | os.PathLike[str] | None = None, *, sha256: _HASH = sha256_of
) -> StaticEmbedder | ModelEmbedder | None:
    """The embedder that a setting names: "builtin" (or None) the one inside the package, "off"
    none, else the path of an embedder's file or of a model.

    sha256: how a file is hashed, for those who remember the hashes of large ones. ModelError (or
    another SelmError) names the file, the cause and what to do next.
    """
    if choice == OFF:
        return None
    if choice is None or choice == BUILTIN:
        return StaticEmbedder(_builtin(), sha256=sha256)
    path = Path(choice).expanduser()
    if not path.is_dir():
        try:
            return StaticEmbedder(path, sha256=sha256)
        except UnsupportedModelError:  # another kind of file: a model, or one that neither reads
            pass
    return ModelEmbedder(path, sha256=sha256)


_CHOOSE = f"Choose another file, {BUILTIN!r} for the one of the package, or {OFF!r}: memory is then"
_CHOOSE += " searched by words alone."
_HINTS = {
    "io": f"Check the path, and that you may read the file; or: {_CHOOSE}",
    "format": f"The file is damaged: fetch or make it again. Or: {_CHOOSE}",
}


def _builtin() -> Path:
    path = paths.bundled_dir() / _FILE
    if not path.exists():
        hint = f"Install it again: pip install --force-reinstall selm-edge. Or: {_CHOOSE}"
        raise ModelError(str(path), "is missing from the installation", hint=hint)
    return path


def _require_core() -> None:
    from selm_edge.backends.native import NativeBackend

    missing = NativeBackend().available()
    if missing is not None:
        raise SelmError(missing)


def _error(path: str, error: Exception) -> SelmError:
    from selm_edge.backends.native import file_error

    found = file_error(path, error)
    if not isinstance(found, ModelError):
        return found
    hint = _HINTS.get(error.args[0], _CHOOSE)
    return type(found)(path, found.cause, offset=found.offset, hint=hint)


def _hash(path: str, sha256: _HASH) -> str:
    try:
        return sha256(file_of(Path(path)))
    except OSError as error:
        raise ModelError(path, error.strerror or str(error), hint=_HINTS["io"]) from None


def _packed(vector: Sequence[float]) -> bytes:
    return array("f", vector).tobytes()  # the core runs on little-endian processors only
