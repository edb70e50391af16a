"""What the user thinks of replies, as the chat keeps it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from selm_edge.chat.text import KEPT, KEPT_HERE, KEPT_UNTIL_QUIT
from selm_edge.feedback.log import Kind, ReplyRecord
from selm_edge.store.errors import NotFound

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession
    from selm_edge.store.conversations import Message

SETTING = "share_feedback"


def is_correction(message: Message) -> bool:
    """Whether the text is the user's, written in place of a reply."""
    return message.facts.finish_reason == "corrected"


class ChatFeedback:
    """Thumbs and corrections of the replies of a chat."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session

    def rate(self, message: Message, kind: Kind) -> bool:
        """A thumb, ``up`` or ``down``; the same again takes it back. True when it now stands."""
        session = self._session
        if is_correction(message):
            raise ValueError("this is your own text, not the model's; ← shows the model's reply")
        stands = kind not in session.marks.get(message.id, ())
        if stands:
            self.keep(kind, message)
        else:
            session.saving(lambda: session.store.feedback.withdraw(message.id, ["up", "down"]))
        session.reload()
        return stands

    def correct(self, message: Message, text: str) -> Message:
        """Keep the user's better text: a row of feedback, and a version that the talk goes on with.

        The reply as it was stays as the other version. Correcting a correction is about the
        model's reply again.
        """
        session = self._session
        self.keep("correction", self._corrected(message), text)
        facts = replace(
            message.facts, finish_reason="corrected", experts=None, entropy=None, margin=None
        )
        added = session.saving(
            lambda: session.store.conversations.add(
                message.conversation, message.parent, "assistant", text, facts=facts
            )
        )
        session.reload()
        return added

    def _corrected(self, message: Message) -> Message:
        """The model's reply that a correction is about; the message itself where it is none."""
        if not is_correction(message):
            return message
        conversations = self._session.store.conversations
        feedback = self._session.store.feedback
        versions = conversations.sibling_table([message])[message.id]
        found = [
            sibling
            for sibling in map(conversations.message, versions)
            if not is_correction(sibling)
        ]
        if not found:
            raise NotFound("the model's reply to this question is not stored any more")
        same = [reply for reply in found if feedback.correction(reply.id) == message.text]
        return (same or found)[-1]

    def keep(self, kind: Kind, message: Message, correction: str | None = None) -> None:
        """One row about a reply, with all that is known of how it was made."""
        record, store, shared = self.record(message), self._session.store, self.shared

        def write() -> None:
            with store.database.write():
                store.conversations.message(message.id)  # may be deleted in another window
                store.feedback.add(kind, record, correction=correction, consent=shared)

        self._session.saving(write)

    def record(self, message: Message) -> ReplyRecord:
        """A reply with what was sent for it and how it was made."""
        # Without what was recalled: a copy of it here would outlive its being forgotten.
        session = self._session
        before = session.before(message)
        if not before and message.parent is not None:  # of a talk that is not on show
            before = session.store.conversations.path_to(message.parent)
        sent = session.sent(before)
        turns = [{"role": turn.role, "content": turn.text} for turn in sent]
        prompt: str | None = None
        facts, model = message.facts, session.model
        system = session.system if facts.system is None else facts.system
        sha256 = facts.model_sha256
        if model is not None and model.name == facts.model:
            sha256 = sha256 or model.sha256  # it may have been found after the reply
            if model.template_id == facts.template_id and model.sha256 in (None, sha256):
                plan = model.assistant.plan(turns, system or None)
                prompt = model.assistant.text_of(plan)
        if system:
            turns.insert(0, {"role": "system", "content": system})
        return ReplyRecord(
            messages=turns,
            reply=message.text,
            prompt=prompt,
            conversation=message.conversation,
            message=message.id,
            sampling=facts.sampling,
            seed=facts.seed,
            model=facts.model,
            model_sha256=sha256,
            template_id=facts.template_id,
            tokens_per_second=facts.tokens_per_second,
            adapter=facts.adapter,
            experts=facts.experts,
            entropy=facts.entropy,
            margin=facts.margin,
            recalled=[source["memory"] for source in facts.recalled or ()],
        )

    # -- what becomes of it --------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """Whether what is kept from now on may leave this device in an export."""
        return self._session.store.settings.get(SETTING, True) is not False

    def share(self, on: bool) -> str:
        """What now holds, in words."""
        session = self._session
        session.saving(lambda: session.store.settings.set(SETTING, on))
        return self.kept_words

    @property
    def kept_words(self) -> str:
        """Where feedback goes now, in a sentence."""
        if not self._session.store.saving:
            return KEPT_UNTIL_QUIT
        return KEPT if self.shared else KEPT_HERE
