"""The adapters of this installation: what was learnt from feedback, and what of it is in use.

An adapter (a LoRA file in llama.cpp's format) belongs to the model that it was trained on. It is
copied into the data directory, so that it stays when the folder it came in is gone. Which ones are
in use is kept for each model as a list of states, the last in force, so that there is a way back.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selm_edge import paths
from selm_edge.catalog import Entry, sha256_of
from selm_edge.errors import SelmError
from selm_edge.locking import lock

if TYPE_CHECKING:
    from selm_edge.model import Model

_NAME = re.compile(r"[\w][\w.+-]{0,99}")
_MOST_STATES = 50
Scales = dict[str, float]
"""Adapters by name, each with its scale; 1 is as it was trained."""


@dataclass(frozen=True)
class Adapter:
    """``model`` is the path of the model's file, ``model_sha256`` its hash when this was added."""

    name: str
    file: str
    size: int
    sha256: str
    model: str
    model_sha256: str
    model_name: str
    rank: int


class AdapterShelf:
    """The list, read afresh at each call. ``warnings`` says what was wrong with it."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or paths.data_dir()
        self.file = self.directory / "adapters.json"
        self.warnings: list[str] = []

    # ---- Reading -------------------------------------------------------------------------------

    def all(self) -> list[Adapter]:
        return self._read()[0]

    def find(self, name: str) -> Adapter:
        """SelmError says which there are."""
        return _named(name, self._read()[0])

    def path_of(self, adapter: Adapter) -> Path:
        return self.directory / "adapters" / adapter.file

    def in_use(self, model_sha256: str) -> Scales:
        """What is in force on the model with this hash."""
        states = self._read()[1].get(model_sha256) or [{}]
        return dict(states[-1])

    def for_model(self, entry: Entry) -> Mapping[Path, float]:
        """The files to add to a model that was just opened. ``warnings`` says what cannot be: the
        model's file is another by now, or an adapter's is gone."""
        adapters, states = self._read()
        found: dict[Path, float] = {}
        for digest, history in states.items():
            for name, scale in (history[-1] if history else {}).items():
                adapter = next((a for a in adapters if a.name == name), None)
                if adapter is None or not _is_of(adapter, entry):
                    continue
                if entry.sha256 not in (None, digest):
                    self.warnings.append(
                        f"{name} was made for another version of {entry.name}, and is left out"
                    )
                    continue
                path = self.path_of(adapter)
                try:
                    size = path.stat().st_size
                except OSError as error:
                    self.warnings.append(f"{name} is left out: {path}: {error.strerror}")
                    continue
                if size != adapter.size:
                    self.warnings.append(f"{name} is left out: {path} is not what was added")
                    continue
                found[path] = scale
        return found

    # ---- Changing ------------------------------------------------------------------------------

    def add(self, path: Path, entry: Entry, name: str | None = None) -> Adapter:
        """Copy a file here, once the model has opened with it. It is not in use yet.

        SelmError where it is for another model, or the name is taken by another file.
        """
        chosen = name or re.sub(r"[^\w.+-]+", "-", path.stem).strip("-.") or "adapter"
        if not _NAME.fullmatch(chosen):
            raise SelmError(f"{chosen!r} is no name: letters, digits, and . _ + - between them")
        model_sha256 = entry.sha256 or sha256_of(entry.path)
        rank = _try(path, entry, model_sha256)
        digest = sha256_of(path)
        made = Adapter(
            chosen, f"{chosen}-{digest[:12]}.gguf", path.stat().st_size, digest,
            str(entry.path.absolute()), model_sha256, entry.name, rank,
        )  # fmt: skip
        with self._changing() as (adapters, _):
            taken = next((a for a in adapters if a.name == chosen), None)
            if taken is not None and taken.sha256 != digest:
                raise SelmError(
                    f"{chosen!r} is another adapter already\n"
                    f"Choose another name (--name), or: selm models adapter remove {chosen}"
                )
            target = self.path_of(made)
            try:
                target.parent.mkdir(mode=0o700, exist_ok=True)
                writing = target.with_suffix(".writing")
                shutil.copyfile(path, writing)
                writing.replace(target)
            except OSError as error:
                raise SelmError(f"{target} cannot be written: {error.strerror or error}") from None
            adapters[:] = [a for a in adapters if a.name != chosen] + [made]
        return made

    def remove(self, name: str) -> Adapter:
        """Forget it and delete the copy; it is taken out of use first."""
        with self._changing() as (adapters, states):
            gone = _named(name, adapters)
            adapters.remove(gone)
            for history in states.values():
                history[:] = [{k: v for k, v in state.items() if k != name} for state in history]
        with contextlib.suppress(OSError):
            self.path_of(gone).unlink()
        return gone

    def enable(self, name: str, scale: float = 1.0) -> Scales:
        """Use it from now on; what is in use on its model then."""
        if not -100 <= scale <= 100:
            raise SelmError(f"the scale is {scale}; it must be between -100 and 100")
        return self._change(name, lambda now: {**now, name: scale})

    def disable(self, name: str) -> Scales:
        return self._change(name, lambda now: {k: v for k, v in now.items() if k != name})

    def disable_all(self, model_sha256: str) -> Scales:
        """Use none on this model: one step back."""
        with self._changing() as (_, states):
            return _step(states, model_sha256, {})

    def rollback(self, model_sha256: str) -> Scales:
        """Back to what was in use before the last change; SelmError where there was none."""
        with self._changing() as (_, states):
            history = states.get(model_sha256) or []
            if not history:
                raise SelmError("nothing was changed on this model: there is no way back to take")
            history.pop()
            return dict(history[-1]) if history else {}

    def _change(self, name: str, change: Any) -> Scales:
        with self._changing() as (adapters, states):
            adapter = _named(name, adapters)
            history = states.get(adapter.model_sha256) or [{}]
            return _step(states, adapter.model_sha256, change(history[-1]))

    def _read(self) -> tuple[list[Adapter], dict[str, list[Scales]]]:
        self.warnings = []
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
            adapters = [Adapter(**row) for row in data["adapters"]]
            states = {
                str(digest): [{str(k): float(v) for k, v in state.items()} for state in history]
                for digest, history in data["states"].items()
            }
        except FileNotFoundError:
            return [], {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.warnings.append(f"{self.file} cannot be read: {error}; no adapter is used")
            return [], {}
        return adapters, states

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[list[Adapter], dict[str, list[Scales]]]]:
        """What is there, to be changed in place; written if the block succeeds."""
        reason = paths.ensure_dir(self.directory)
        if reason is not None:
            raise SelmError(f"the list of adapters cannot be changed: {reason}")
        with lock(self.file.with_suffix(".lock")):
            adapters, states = self._read()
            if self.warnings:
                raise SelmError("\n".join(self.warnings) + "\nMove that file away, then try again.")
            yield adapters, states
            data = {"adapters": [asdict(a) for a in adapters], "states": states}
            try:
                paths.write_atomically(self.file, json.dumps(data, indent=2) + "\n")
            except OSError as error:
                raise SelmError(f"{self.file}: the list was not saved: {error}") from None


def _step(states: dict[str, list[Scales]], model_sha256: str, now: Scales) -> Scales:
    """What is in force from now on; no step of its own where nothing changes."""
    history = states.setdefault(model_sha256, [])
    if now != (history[-1] if history else {}):
        history.append(now)
        del history[:-_MOST_STATES]
    return dict(now)


def _named(name: str, adapters: list[Adapter]) -> Adapter:
    found = next((adapter for adapter in adapters if adapter.name == name), None)
    if found is None:
        names = ", ".join(adapter.name for adapter in adapters) or "none yet"
        raise SelmError(f"no adapter called {name!r}; there are: {names}")
    return found


def _is_of(adapter: Adapter, entry: Entry) -> bool:
    """Whether it was added for this model, by its hash or, where that is not known, its file."""
    if entry.sha256 is not None and entry.sha256 == adapter.model_sha256:
        return True
    return str(entry.path.absolute()) == adapter.model


def _try(path: Path, entry: Entry, model_sha256: str) -> int:
    """Open it on its model; the rank of its largest pair. SelmError says why it does not fit."""
    from selm_edge.model import Model

    with Model.load(entry.path, threads=1, context=16, backend="native") as model:
        (info,) = model.set_adapters({path: 1.0})
    if info.base_sha256 and info.base_sha256 != model_sha256:
        raise SelmError(
            f"{path} was trained on another model than {entry.name}"
            f" (SHA-256 {info.base_sha256[:12]}..., not {model_sha256[:12]}...)\n"
            "Name its model with --model, or train it anew on this one."
        )
    return info.rank


def apply(model: Model, entry: Entry, shelf: AdapterShelf | None = None) -> list[str]:
    """Add to an open model what is in use on it; what could not be, in sentences."""
    shelf = shelf or AdapterShelf()
    wanted = shelf.for_model(entry)
    problems = list(shelf.warnings)
    if wanted or model.adapters:
        try:
            model.set_adapters(wanted)
        except SelmError as error:
            if model.adapters:
                model.set_adapters({})
            problems.append(f"no adapter is used: {error}")
    return problems
