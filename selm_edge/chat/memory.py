"""Memory as the chat uses it: what a question recalls, and what the user keeps by an act of theirs.

What was recalled for a question is stored with its reply as numbers of memories, never as text: a
later turn shows the same lines again, and what was forgotten meanwhile is gone from them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selm_edge.chat.text import source_words
from selm_edge.errors import SelmError
from selm_edge.memory.memories import PERSONAL, Added, Filters, Memories, Memory
from selm_edge.memory.prompting import framed, line_of
from selm_edge.memory.recall import Recalled, recall

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession
    from selm_edge.memory.proposals import Proposal
    from selm_edge.store.conversations import Conversations, Message
    from selm_edge.store.database import Database


@dataclass(frozen=True)
class Source:
    """A memory given to the model with a question; passages have the number that replies cite.

    ``why`` is how it was found, for a question that is asked now; None for an earlier one.
    """

    memory: Memory
    number: int | None
    why: Recalled | None = None

    @property
    def line(self) -> str:
        return line_of(self.memory, self.number)


class ChatMemory:
    """The memories of the conversation on show."""

    def __init__(self, session: ChatSession) -> None:
        self.session = session
        self._opened: tuple[Database, Memories] | None = None
        self._on = True  # for the conversation that begins with the next question
        self._space = PERSONAL
        self.stopped = threading.Event()
        """Set by who does not want to wait until a file is read."""
        self.problem: str | None = None
        """Why recall goes by words alone, once it was used; None while it goes by meaning too."""

    @property
    def memories(self) -> Memories:
        """Of the store in use: another one after the disk refused."""
        database = self.session.store.database
        if self._opened is None or self._opened[0] is not database:
            from selm_edge.memory.opening import memories_of

            chosen = self.session.preferences.config.embedder
            memories, self.problem = memories_of(self.session.store, chosen)
            self._opened = (database, memories)
        return self._opened[1]

    # -- settings of the conversation ----------------------------------------------------------

    @property
    def on(self) -> bool:
        """Whether questions recall anything."""
        conversation = self.session.conversation
        return conversation.memory if conversation else self._on

    @property
    def space(self) -> int:
        conversation = self.session.conversation
        return (conversation.space or PERSONAL) if conversation else self._space

    @property
    def space_name(self) -> str:
        return next((s.name for s in self.memories.spaces() if s.id == self.space), "personal")

    def switch(self, on: bool) -> str:
        """On or off for this conversation; what now holds, in words."""
        conversation = self.session.conversation
        if conversation is None:
            self._on = on
        else:
            self.session.saving(lambda: self._conversations.set_memory(conversation.id, on))
            self.session.reload()
        if on:
            return "Questions recall what is remembered."
        return "This conversation recalls nothing. What is remembered stays."

    def enter(self, name: str) -> str:
        """Go to a space, here and in new conversations; it is made if it is new. In words."""
        known = {space.id for space in self.memories.spaces()}
        space = self.session.saving(lambda: self.memories.space(name, create=True))
        self._space = space.id
        conversation = self.session.conversation
        if conversation is not None:
            self.session.saving(lambda: self._conversations.set_space(conversation.id, space.id))
            self.session.reload()
        new = "" if space.id in known else " (new)"
        return f"Memories are now those of {space.name}{new}."

    def begin(self, conversation: int) -> None:
        """A new conversation takes what was chosen for it before its first question."""
        if not self._on:
            self._conversations.set_memory(conversation, False)
        if self._space != PERSONAL:
            self._conversations.set_space(conversation, self._space)

    @property
    def _conversations(self) -> Conversations:
        return self.session.store.conversations

    # -- recalling -----------------------------------------------------------------------------

    def recall(
        self,
        question: str,
        known: Sequence[Source],
        context: int,
        free: int,
        count_tokens: Callable[[str], int],
    ) -> list[Source]:
        """What goes before ``question``, but for what earlier questions gave (``known``).

        ``free`` of the ``context`` tokens are not taken yet.
        """
        from selm_edge.memory.asking import gather, named_files

        files, model = named_files(question), self.session.model
        if not files and not (self.on and self._any()):
            return []
        found = self.session.saving(
            lambda: gather(
                self.memories, question, space=self.space, context=context, free=free,
                count_tokens=count_tokens, files=files,
                known={source.memory.id for source in known}, cancelled=self.stopped.is_set,
                sparing=model is not None and model.reads_notes,
            )
        )  # fmt: skip
        number = max((source.number or 0 for source in known), default=0)
        sources: list[Source] = []
        for one in found:  # passages are numbered on from those before earlier questions
            passage = one.memory.kind == "passage"
            number += passage
            sources.append(Source(one.memory, number if passage else None, one.why))
        return sources

    def names_files(self, question: str) -> bool:
        """Whether files are to be read first."""
        from selm_edge.memory.asking import named_files

        with suppress(SelmError):  # said when it is planned
            return bool(named_files(question))
        return False

    def _any(self) -> bool:
        """Whether anything is remembered: the embedder need not be opened for nothing."""
        return bool(self.session.store.database.rows("select 1 from memory limit 1"))

    def sources(self, message: Message) -> list[Source]:
        """What was given to the model for a reply, as far as it is remembered still."""
        stored = message.facts.recalled or ()
        numbers = {entry["memory"]: entry.get("number") for entry in stored}
        return [Source(one, numbers[one.id]) for one in self.memories.get_many(list(numbers))]

    def sources_line(self, message: Message) -> str:
        """The same in a line, for under the reply."""
        if not message.facts.recalled:
            return ""
        return " · ".join(map(source_words, self.sources(message)))

    def turns(self, path: Sequence[Message]) -> tuple[list[dict[str, str]], list[Source]]:
        """The turns as the model gets them, and the memories that stand in them."""
        turns: list[dict[str, str]] = []
        known: list[Source] = []
        for turn in path:
            sources = self.sources(turn) if turn.facts.recalled else []
            if sources and turns:
                turns[-1]["content"] = self.with_sources(sources, turns[-1]["content"])
                known += sources
            turns.append({"role": turn.role, "content": turn.text})
        return turns, known

    def with_sources(self, sources: Sequence[Source], question: str) -> str:
        """The user's turn as sent; explained to a model that was not trained on such lines."""
        model = self.session.model
        lines = [source.line for source in sources]
        return framed(lines, question, explained=model is not None and not model.reads_notes)

    # -- keeping -------------------------------------------------------------------------------

    def remember(self, text: str, *, corrects: Sequence[int] = (), anyway: bool = False) -> Added:
        """Keep a fact in the space of the conversation; see `Memories.add`."""
        question = self.session.last_question
        return self.session.saving(
            lambda: self.memories.add(
                text,
                kind="correction" if corrects else "fact",
                space=self.space,
                message=question.id if question else None,
                corrects=corrects,
                anyway=anyway,
            )
        )

    def proposals(self, text: str) -> list[Proposal]:
        """What of the user's own words may be worth keeping, and is not kept yet."""
        from selm_edge.memory.memories import digest
        from selm_edge.memory.proposals import proposals

        if not self.on:
            return []
        found = proposals(text)
        known = [
            row[0]
            for one in found
            for row in self.memories.database.rows(
                "select sha256 from memory where sha256 = ? and space = ?",
                (digest(one.text), self.space),
            )
        ]
        return [one for one in found if digest(one.text) not in known]

    def corrected_by(self, proposal: Proposal) -> list[Memory]:
        """What a proposed correction most likely corrects: nothing, or one memory."""
        if proposal.kind != "correction":
            return []
        found = recall(
            self.memories, proposal.text, space=self.space, kinds=("fact", "correction"), limit=1
        )
        return [one.memory for one in found]

    def edit(self, memory: int, text: str) -> Memory:
        """See `Memories.edit`."""
        return self.session.saving(lambda: self.memories.edit(memory, text))

    def correct(self, memory: int, text: str) -> Memory:
        """The new memory; see `Memories.supersede`."""
        return self.session.saving(lambda: self.memories.supersede(memory, text)).memory

    def pin(self, memory: int, pinned: bool) -> Memory:
        """See `Memories.pin`."""
        return self.session.saving(lambda: self.memories.pin(memory, pinned))

    def silence(self, memory: int, silent: bool) -> Memory:
        """Never recall it, or recall it again."""
        status: Literal["never", "active"] = "never" if silent else "active"
        return self.session.saving(lambda: self.memories.set_status(memory, status))

    def forget(self, memories: Sequence[int]) -> bool:
        """See `Memories.forget`."""
        return self.session.saving(lambda: self.memories.forget(memories))

    def decided(self, text: str, choice: str) -> Added:
        """Keep what was too like something: ``both``, or in place of the memory of that number."""
        if choice == "both":
            return self.remember(text, anyway=True)
        return self.remember(text, corrects=[int(choice)])

    def kept_words(self, added: Added) -> str:
        """What became of a fact, and where it is kept."""
        known = "Known already." if added.outcome == "duplicate" else "Remembered."
        return f"{known} {self.where_words}"

    @property
    def where_words(self) -> str:
        """Where it is kept, in a sentence."""
        if self.session.store.saving:
            return "It stays on this device; /forget deletes it for real."
        return "Kept until you quit: nothing is being saved."

    # -- looking -------------------------------------------------------------------------------

    def around(self, memory: Memory) -> tuple[Memory | None, Memory | None]:
        """The passages before and after one in its document."""
        if memory.document is None:
            return None, None
        rows = self.memories.database.rows(
            "select max(case when id < ?1 then id end), min(case when id > ?1 then id end)"
            " from memory where document = ?2",
            (memory.id, memory.document),
        )
        found = {one.id: one for one in self.memories.get_many([key for key in rows[0] if key])}
        before, after = rows[0]
        return found.get(before), found.get(after)

    def search(self, words: str, limit: int = 50) -> list[Source]:
        """What of this space matches, best first; the newest facts and corrections where
        ``words`` is empty."""
        if not words.strip():
            filters = Filters(self.space, ("fact", "correction", "turn"))
            return [Source(one, None) for one in self.memories.list(filters, limit)]
        found = recall(self.memories, words, space=self.space, limit=limit, relevant_only=False)
        return [Source(one.memory, None, one) for one in found]
