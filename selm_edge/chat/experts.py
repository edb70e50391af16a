"""Which of a model's experts speaks in a chat, and who spoke its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.assistant import Reply
    from selm_edge.chat.models import OpenModel
    from selm_edge.store.conversations import Message


@dataclass(frozen=True)
class Spoken:
    """A reply by who spoke it: runs of text, each with its expert's name, and their tokens.

    ``names`` are all experts of the model, in its order.
    """

    names: Sequence[str]
    runs: Sequence[tuple[str | None, str]]
    tokens: Mapping[str, int]


class Experts:
    """``asked`` is the expert that speaks alone, ``auto`` where the model decides."""

    def __init__(self) -> None:
        self.model: OpenModel | None = None
        self.asked = "auto"

    @property
    def names(self) -> Sequence[str]:
        """Those of the model in use."""
        return self.model.assistant.model.experts if self.model else ()

    def choose(self, name: str) -> str:
        """Who speaks from now on, in words; SelmError where the model has none of that name."""
        if self.model is not None and name not in ("auto", *self.names):
            raise SelmError(f"{self.model.name} has no expert {name!r}. {self.words()}")
        self.asked = name
        return self.words()

    def missing(self) -> str | None:
        """What to say where the model in use has no such expert as was asked for.

        From then on the model decides who speaks.
        """
        try:
            self.choose(self.asked)
        except SelmError as problem:
            self.asked = "auto"
            return str(problem)
        return None

    def words(self) -> str:
        """Who speaks now, and who could."""
        if not self.names:
            return f"{self.model.name if self.model else 'The model'} has no experts."
        if self.asked in self.names:
            return f"{self.asked} speaks. /expert auto leaves it to the model."
        return f"The model decides who speaks: {', '.join(self.names)}."

    def so_far(self, reply: Reply) -> Spoken:
        """Who has spoken in a reply that is being made."""
        return Spoken(self.names, tuple(reply.runs), reply.stats.experts)

    def spoken(self, message: Message) -> Spoken | None:
        """Who spoke a reply, where that is known."""
        told = message.facts.experts
        try:
            tokens = {str(name): int(count) for name, count in (told or {})["tokens"].items()}
            runs, at = list[tuple[str | None, str]](), 0
            for name, length in (told or {})["runs"]:
                runs.append((name, message.text[at : at + length]))
                at += length
        except (KeyError, TypeError, ValueError, AttributeError):  # of a model without experts
            return None
        # Another model may be in use by now: its colours are those of its own experts.
        names = self.names if set(tokens) <= set(self.names) else tuple(tokens)
        return Spoken(names, tuple(runs), tokens) if at == len(message.text) else None


def trace_of(reply: Reply) -> dict[str, Any] | None:
    """Who spoke a reply, as it is stored with it: token counts, and runs of characters."""
    if not reply.stats.experts:
        return None
    return {
        "tokens": dict(reply.stats.experts),
        "runs": [[name, len(text)] for name, text in reply.runs],
    }
