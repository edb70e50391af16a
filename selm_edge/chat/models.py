"""Which models can be picked, and opening one: what the chat needs from the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from selm_edge.assistant import Assistant
    from selm_edge.chat.preferences import Preferences
    from selm_edge.model import Model
    from selm_edge.store.settings import Settings


@dataclass(frozen=True)
class ModelChoice:
    """A model on offer; ``size`` in bytes, ``problem`` where its file is visibly wrong."""

    name: str
    path: str
    bundled: bool = False
    size: int = 0
    problem: str | None = None


@dataclass
class OpenModel:
    """An open model and what is recorded with its replies. ``spec`` opens it again."""

    name: str
    path: str
    spec: str
    assistant: Assistant
    template_id: str | None = None
    trained_context: int | None = None
    sha256: str | None = None
    reads_notes: bool = True
    """Trained on memories as lines ``N: ...``, as small models are: it gets few of them. To others
    they are explained."""
    problems: tuple[str, ...] = ()
    """What is not as the user wanted it, in sentences: adapters that could not be added."""

    @property
    def context(self) -> int:
        return self.assistant.context


class ModelSource(Protocol):
    """Where models come from. A test gives its own."""

    def choices(self) -> list[ModelChoice]:
        """What can be picked by name."""
        ...

    def problems(self) -> list[str]:
        """What is wrong with the list of models, in sentences."""
        ...

    def open(self, name_or_path: str | None, context: int) -> OpenModel:
        """Open a model by name or by path; None is the default. Raises SelmError."""
        ...


class CatalogSource:
    """The models of this installation, and any file or ONNX folder by its path, where it lies."""

    def __init__(self, preferences: Preferences) -> None:
        self.preferences = preferences

    def choices(self) -> list[ModelChoice]:
        from selm_edge.catalog import Catalog

        return [
            ModelChoice(entry.name, str(entry.path), entry.bundled, entry.size, entry.problem)
            for entry in Catalog().list()
        ]

    def problems(self) -> list[str]:
        from selm_edge.catalog import Catalog

        catalog = Catalog()
        catalog.list()
        return catalog.warnings

    def open(self, name_or_path: str | None, context: int) -> OpenModel:
        from selm_edge import adapters
        from selm_edge.catalog import Catalog
        from selm_edge.model import Model

        config = self.preferences.config
        entry = Catalog().resolve(name_or_path)
        model = Model.load(
            entry.path, threads=config.threads, context=context, backend=config.backend
        )
        known = entry.bundled or Catalog().find(entry.name) is not None
        spec = entry.name if known else str(entry.path)
        found = opened(model, entry.name, str(entry.path), spec, entry.sha256)
        found.reads_notes = bool(entry.details.get("notes_prefix", entry.bundled))
        found.problems = tuple(adapters.apply(model, entry))
        return found


def opened(model: Model, name: str, path: str, spec: str, sha256: str | None = None) -> OpenModel:
    """An open model with what is recorded of it."""
    from selm_edge.assistant import Assistant

    architecture = model.metadata.get("general.architecture")
    trained = model.metadata.get(f"{architecture}.context_length")
    source = model.template.source
    template = "sha256:" + hashlib.sha256(source.encode()).hexdigest()[:16] if source else "chatml"
    return OpenModel(
        name=name,
        path=path,
        spec=spec,
        assistant=Assistant(model),
        template_id=template,
        trained_context=trained if isinstance(trained, int) else None,
        sha256=sha256,
    )


def file_sha256(path: str, settings: Settings) -> str | None:
    """The file's hash, remembered while its size, time and inode stay; None where unreadable.

    Reads the whole file the first time: for a worker, not for the screen's thread.
    """
    from selm_edge.catalog import sha256_of

    try:
        status = Path(path).stat()
        mark = [status.st_ino, status.st_size, status.st_mtime_ns]
        known = settings.get(f"sha256:{path}")
        if isinstance(known, dict) and known.get("mark") == mark:
            return str(known["sha256"])
        digest = sha256_of(Path(path))
    except OSError:
        return None
    settings.set(f"sha256:{path}", {"mark": mark, "sha256": digest})
    return digest
