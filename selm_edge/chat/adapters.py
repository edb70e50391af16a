"""Adapters in a chat: which are in use on the model, changed between two questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.adapters import AdapterShelf
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
            if shelf.find(name).model_sha256 != digest:
                raise SelmError(f"{name} is for another model than {model.name}")
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

    def _model(self) -> OpenModel:
        if self._session.model is None:
            raise SelmError("there is no model open")
        return self._session.model

    def _shelf(self) -> AdapterShelf:
        from selm_edge.adapters import AdapterShelf

        return AdapterShelf()


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
