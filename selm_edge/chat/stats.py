"""The measures of the stored conversations, as the chat shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from selm_edge.chat.session import NoModel
from selm_edge.clean import clean_line
from selm_edge.feedback import fluency
from selm_edge.feedback.report import Report, report

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession
    from selm_edge.model import Model

Cancelled = Callable[[], bool]


class ChatStats:
    """Slow, all of it: for a thread. ``cancelled`` ends it with what there is so far."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session

    def report(self, cancelled: Cancelled) -> Report:
        """All but fluency."""
        memory = self._session.memory
        embedder = memory.memories.embedder
        why = memory.problem or "the embedder is switched off; `selm memory embedder` says more"
        database = self._session.store.database
        return report(database, embedder, no_embedder=why, cancelled=cancelled)

    def with_fluency(
        self, found: Report, cancelled: Cancelled, progress: Callable[[int, int], None]
    ) -> Report:
        """With the perplexity of the newest replies under the chat's model, without adapters.
        ``progress`` hears how many of how many replies are done. `NoModel` where none is open."""
        model, name = self._base()
        database = self._session.store.database
        stored = fluency.replies(database)
        measured: list[fluency.Measured] = []
        try:
            for one in fluency.measured(model, database, stored, cancelled=cancelled):
                measured.append(one)
                progress(len(measured), len(stored))
        except (
            KeyboardInterrupt
        ):  # of the plain mode, which waits for this: what there is, is shown
            pass
        finally:
            if self._session.model is None or model is not self._session.model.assistant.model:
                model.close()
        return replace(found, fluency=fluency.fluency(measured), judge=name)

    def _base(self) -> tuple[Model, str]:
        """The open model; where it has adapters, which belong to all of its sessions, its file
        opened once more without them."""
        opened = self._session.model
        if opened is None:
            raise NoModel("no model is open\nChoose one with F3 or /model.")
        if not opened.assistant.model.adapters:
            return opened.assistant.model, opened.name
        again = self._session.models.open(opened.spec, opened.context).assistant.model
        if again.adapters:
            again.set_adapters({})
        return again, opened.name


def lines_of(found: Report) -> Iterator[str]:
    """The same in lines for who hears them: the values of each plot in place of it."""
    for section in found.sections:
        yield f"{section.title}. {' '.join(section.words)}"
        yield from map(clean_line, section.models)
        for plot in section.plots:
            yield f"{plot.caption}: {plot.spoken}"
