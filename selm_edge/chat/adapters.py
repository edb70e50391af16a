"""Adapters in a chat: which are in use on the model, changed between two questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from selm_edge.adapters import Adapter, AdapterShelf
    from selm_edge.catalog import Entry
    from selm_edge.chat.models import OpenModel
    from selm_edge.chat.session import ChatSession

NONE, BACK = "none", "back"


class ChatAdapters:
    """What ``/adapter`` does. Each method says in words what now holds."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session

    def change(self, words: str) -> str:
        """``NAME [SCALE]`` uses one beside the others, ``none`` none, ``back`` undoes the last
        change, nothing tells what there is."""
        if not words:
            return self.words()
        model, shelf = self._model(), self._shelf()
        entry, digest = _entry(model)
        name, _, scale = words.partition(" ")
        if name == BACK:
            shelf.rollback(digest)
        elif name == NONE:
            shelf.disable_all(digest)
        elif name in shelf.in_use(digest) and not scale:
            shelf.disable(name)
        else:
            _of_this_model(shelf, name, model, digest)
            shelf.enable(name, _number(scale) if scale else 1.0)
        from selm_edge.adapters import apply

        problems = apply(model.assistant.model, entry, shelf)
        used = ", ".join(shelf.in_use(digest)) or "none"
        return " ".join([f"Adapters in use: {used}.", *problems])

    def words(self) -> str:
        """What is in use, and what could be."""
        model, shelf = self._model(), self._shelf()
        _, digest = _entry(model)
        known = [a.name for a in shelf.all() if a.model_sha256 == digest]
        if not known:
            return f"{model.name} has no adapters. selm models adapter add FILE adds one."
        used = shelf.in_use(digest)
        now = ", ".join(used) if used else "none"
        return f"In use: {now}. There are: {', '.join(known)}. /adapter NAME uses one or leaves it."

    @property
    def used(self) -> bool:
        """Whether the model answers with any."""
        model = self._session.model
        return model is not None and bool(model.assistant.model.adapters)

    def with_and_without(
        self, name: str = ""
    ) -> tuple[Mapping[Path, float], Mapping[Path, float], str]:
        """Two sets of files for `Model.set_adapters`, and what sets them apart: the adapter of that
        name, whether it is in use or not; without a name, all that are in use."""
        model, shelf = self._model(), self._shelf()
        entry, digest = _entry(model)
        files, used = dict(shelf.for_model(entry)), shelf.in_use(digest)
        if shelf.warnings:
            raise SelmError("\n".join(shelf.warnings))
        if not name:
            if not files:
                raise SelmError(f"no adapter is in use on {model.name}: /adapter NAME uses one")
            return files, {}, ", ".join(used)
        path = shelf.path_of(_of_this_model(shelf, name, model, digest))
        without = {file: scale for file, scale in files.items() if file != path}
        return {**without, path: used.get(name, 1.0)}, without, name

    def restore(self) -> list[str]:
        """What is in use by the list is added to the model again, and nothing else. What could not
        be, in sentences."""
        from selm_edge.adapters import apply

        model = self._model()
        return apply(model.assistant.model, _entry(model)[0], self._shelf())

    def _model(self) -> OpenModel:
        if self._session.model is None:
            raise SelmError("there is no model open")
        return self._session.model

    def _shelf(self) -> AdapterShelf:
        from selm_edge.adapters import AdapterShelf

        return AdapterShelf()


def _of_this_model(shelf: AdapterShelf, name: str, model: OpenModel, digest: str) -> Adapter:
    found = shelf.find(name)
    if found.model_sha256 != digest:
        raise SelmError(f"{name} is for another model than {model.name}")
    return found


def _entry(model: OpenModel) -> tuple[Entry, str]:
    """The model as the shelf knows it, and its hash: found once, and kept with the model."""
    from selm_edge.catalog import Entry, sha256_of, size_of

    path = Path(model.path)
    if model.sha256 is None:
        model.sha256 = sha256_of(path)
    return Entry(model.name, path, size_of(path), model.sha256), model.sha256


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SelmError(f"{text!r} is no scale: write a number, as in /adapter july 0.5") from None
