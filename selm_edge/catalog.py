"""The models that this installation knows: those inside the package and those added by path.

A GGUF file, or an ONNX folder by its ``model.json``, is registered where it lies, never copied, and
never deleted by us. The list is `models.json` in the data directory; it is replaced atomically
under a lock file, so two processes or a killed one cannot tear it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selm_edge import paths
from selm_edge.errors import ModelError, SelmError
from selm_edge.locking import lock

_NAME = re.compile(r"[\w][\w.+-]{0,99}")


@dataclass(frozen=True)
class Entry:
    """A known model. ``sha256`` is None until it has been computed (by `verify`)."""

    name: str
    path: Path
    size: int
    sha256: str | None = None
    bundled: bool = False
    licence: str | None = None
    description: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> str | None:
        """What is visibly wrong without reading the file, or None."""
        try:
            size = size_of(self.path)
        except OSError as error:
            return error.strerror or str(error)
        if size != self.size:
            return f"has {size} bytes; it had {self.size} when it was added"
        return None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "problem": self.problem}


Entries = list[Entry]
Texts = list[str]  # (inside the class, `list` is its method)


@dataclass(frozen=True)
class Verdict:
    """Of one `verify`: each check by name, None where it passed, else the reason."""

    entry: Entry
    checks: dict[str, str | None]

    @property
    def ok(self) -> bool:
        return all(reason is None for reason in self.checks.values())


class Catalog:
    """The list, read afresh at each call. ``warnings`` says what was wrong with it."""

    def __init__(self, directory: Path | None = None, bundled: Path | None = None) -> None:
        self.file = (directory or paths.data_dir()) / "models.json"
        self._bundled = bundled or paths.bundled_dir()
        self.warnings: Texts = []

    # ---- Reading -------------------------------------------------------------------------------

    def list(self) -> Entries:
        """All models, the user's first (they may take a bundled one's name)."""
        mine = self._registered()
        names = {entry.name for entry in mine}
        return mine + [entry for entry in self._shipped() if entry.name not in names]

    def find(self, name: str) -> Entry | None:
        return next((entry for entry in self.list() if entry.name == name), None)

    def resolve(self, model: str | None) -> Entry:
        """A name, a path to a GGUF file or an ONNX folder, or None for the default: the bundled
        model.

        SelmError says what there is instead.
        """
        known = self.list()
        if model is None:
            default = next((e for e in known if e.bundled), known[0] if known else None)
            if default is None:
                raise SelmError(
                    "there is no model yet.\nAdd one: selm models add PATH/TO/model.gguf"
                )
            return default
        for entry in known:
            if entry.name == model:
                return entry
        path = Path(model).expanduser()
        if path.suffix == ".gguf" or path.exists() or os.sep in model:
            path = file_of(path).absolute()
            try:
                size = size_of(path)
            except OSError as error:
                reason = error.strerror or str(error)
                raise ModelError(str(path), reason, hint="Check the path.") from None
            return Entry(name_of(path), path, size)
        names = ", ".join(entry.name for entry in known) or "none yet"
        raise SelmError(
            f"no model called {model!r}; there are: {names}.\n"
            "Give a name, or the path of a GGUF file or an ONNX folder."
        )

    def _registered(self) -> Entries:
        self.warnings = []
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            self.warnings.append(
                f"{self.file}: cannot be read, so added models are missing: {error}"
            )
            return []
        rows = data.get("models") if isinstance(data, dict) else None
        if not isinstance(rows, list):
            self.warnings.append(f"{self.file}: is not a list of models")
            return []
        entries = []
        for i, row in enumerate(rows):
            try:
                entries.append(
                    Entry(
                        name=str(row["name"]),
                        path=Path(row["path"]),
                        size=int(row["size"]),
                        sha256=row.get("sha256"),
                    )
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self.warnings.append(f"{self.file}: entry {i} makes no sense: {error!r}")
        return entries

    def _shipped(self) -> Entries:
        entries: Entries = []
        cards = self._bundled.glob("*.json") if self._bundled.is_dir() else ()
        for card in sorted(cards, key=lambda path: path.stem):
            try:
                row = json.loads(card.read_text(encoding="utf-8"))
                if row.get("kind") == "embedder":  # for the memory: no model to talk to
                    continue
                name, file, size = str(row.pop("name")), str(row.pop("file")), int(row.pop("size"))
                place = 0 if row.pop("default", False) else len(entries)  # the first is it
                entries.insert(
                    place,
                    Entry(
                        name=name,
                        path=self._bundled / file,
                        size=size,
                        sha256=row.pop("sha256", None),
                        bundled=True,
                        licence=row.pop("license", None),
                        description=row.pop("title", None),
                        details=row,
                    ),
                )
            except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
                self.warnings.append(f"{card}: cannot be used: {error!r}")
        return entries

    # ---- Changing ------------------------------------------------------------------------------

    def add(self, path: str | os.PathLike[str], name: str | None = None) -> Entry:
        """Register a GGUF file or an ONNX folder where it lies, once it opened without an error.

        One that only another backend runs is registered with a warning.

        ModelError for a file that cannot be used, SelmError for a name that is taken or bad.
        """
        file = file_of(Path(path).expanduser()).absolute()
        chosen = name or re.sub(r"[^\w.+-]+", "-", name_of(file)).strip("-.") or "model"
        if not _NAME.fullmatch(chosen):
            raise SelmError(f"{chosen!r} is no name: letters, digits, and . _ + - between them")
        unsupported = _open(file)
        entry = Entry(chosen, file, size_of(file))
        with self._changing() as rows:
            for row in rows:
                if row.name == chosen and row.path != file:
                    raise SelmError(
                        f"{chosen!r} is already {row.path}.\n"
                        f"Choose another name (--name), or: selm models remove {chosen}"
                    )
            rows[:] = [row for row in rows if row.name != chosen] + [entry]
        if unsupported:
            self.warnings.append(unsupported)
        return entry

    def remove(self, name: str) -> Entry:
        """Forget a registered model. Its file stays where it is."""
        with self._changing() as rows:
            found = next((row for row in rows if row.name == name), None)
            if found is None:
                if any(entry.name == name for entry in self._shipped()):
                    raise SelmError(f"{name} is part of the package and stays")
                names = ", ".join(row.name for row in rows) or "none"
                raise SelmError(f"no added model is called {name!r}; there are: {names}")
            rows.remove(found)
        return found

    def verify(self, name: str) -> Verdict:
        """Size, SHA-256 and opening (with a look at every block's scales) of a model."""
        entry = self.resolve(name)
        checks: dict[str, str | None] = {"size": entry.problem}
        try:
            digest = sha256_of(entry.path)
        except OSError as error:
            checks["sha256"] = error.strerror or str(error)
        else:
            same = entry.sha256 is None or digest == entry.sha256
            checks["sha256"] = None if same else f"is {digest}, should be {entry.sha256}"
            if entry.sha256 is None and entry.problem is None:
                self._remember(entry, digest)
        try:
            _open(entry.path, check_weights=True)
            checks["opens"] = None
        except SelmError as error:
            checks["opens"] = str(error)
        return Verdict(entry, checks)

    def _remember(self, entry: Entry, digest: str) -> None:
        """The first verification fixes the sum; where the list cannot be written, it does not."""
        with contextlib.suppress(SelmError), self._changing() as rows:
            rows[:] = [
                Entry(row.name, row.path, row.size, digest)
                if (row.name, row.path) == (entry.name, entry.path)
                else row
                for row in rows
            ]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Entries]:
        """The registered models, to be changed in place; written if the block succeeds."""
        reason = paths.ensure_dir(self.file.parent)
        if reason is not None:
            raise SelmError(
                f"the list of models cannot be changed: {reason}.\n"
                "Set SELM_HOME to a directory you may write, or give the model's path each time."
            )
        with lock(self.file.with_suffix(".lock")):
            rows = self._registered()
            if self.warnings:
                raise SelmError("\n".join(self.warnings) + "\nMove that file away, then add again.")
            yield rows
            data = {
                "models": [
                    {"name": r.name, "path": str(r.path), "size": r.size, "sha256": r.sha256}
                    for r in rows
                ]
            }
            try:
                text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
                paths.write_atomically(self.file, text)
            except OSError as error:
                raise SelmError(f"{self.file}: the list was not saved: {error}") from None


def file_of(path: Path) -> Path:
    """The file that stands for a model: of an ONNX folder the ``model.json``, which has the hashes
    of the others."""
    from selm_edge.backends.onnx_folder import is_folder, manifest_of

    return manifest_of(str(path)) if is_folder(str(path)) else path


def _is_onnx(file: Path) -> bool:
    return file.name == "model.json"


def name_of(file: Path) -> str:
    """What a model is called if nobody says."""
    return file.absolute().parent.name if _is_onnx(file) else file.stem


def size_of(file: Path) -> int:
    """In bytes, of all its files. OSError where one is missing."""
    if not _is_onnx(file):
        return file.stat().st_size
    return sum(part.stat().st_size for part in (file, *_beside(file)))


def _beside(manifest: Path) -> list[Path]:
    """What else belongs to an ONNX model, in so far as its ``model.json`` can be read."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return [manifest.parent / Path(name).name for name in files]
    except (ValueError, KeyError, TypeError):
        return []


def sha256_of(path: Path) -> str:
    """Of one file: of an ONNX model the ``model.json``."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open(path: Path, *, check_weights: bool = False) -> str | None:
    """Open and close. The message for a valid file that needs another backend, else None."""
    from selm_edge.backends.native import NativeBackend, NativeEngine
    from selm_edge.errors import UnsupportedModelError

    if not path.is_file():
        raise ModelError(str(path), "no such file", hint="Check the path.")
    if _is_onnx(path):
        from selm_edge.backends.onnx import OnnxBackend

        OnnxBackend().load(str(path), threads=1, context=16).close()
        return None
    missing = NativeBackend().available()
    if missing is not None:
        raise SelmError(missing)
    try:
        NativeEngine(str(path), threads=None, context=16, check_weights=check_weights).close()
    except UnsupportedModelError as error:
        return str(error)
    return None
