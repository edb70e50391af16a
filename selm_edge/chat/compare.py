"""Two replies to one question, of which the user takes one: what it says of the model is feedback.

The usual question is whether an adapter made the model better. Then both replies are made anew, one
with it and one without, from the same seed, and nobody is told which is which before the choice.
Else another reply is made beside the one on show.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selm_edge.chat.feedback import is_correction
from selm_edge.chat.text import overflow_words
from selm_edge.errors import SelmError
from selm_edge.store.errors import NotFound

if TYPE_CHECKING:
    from selm_edge.assistant import Plan, Reply
    from selm_edge.chat.models import OpenModel
    from selm_edge.chat.session import ChatSession
    from selm_edge.store.conversations import Message, ReplyFacts

AGAIN, BACK = "again", "back"


@dataclass
class Side:
    """One of the two. ``message`` where it is stored already; else ``text`` and ``facts`` once it
    is made. ``adapters`` to make it with; None: those in use."""

    label: str
    adapters: Mapping[Path, float] | None = None
    message: Message | None = None
    text: str = ""
    facts: ReplyFacts | None = None

    @property
    def whole(self) -> bool:
        """Only what the model ended by itself, or at its limit, can be judged."""
        if self.message is not None:
            return True
        ended = self.facts is not None and self.facts.finish_reason in ("stop", "length", "context")
        return ended and bool(self.text.strip())


@dataclass
class Comparison:
    """``sides`` in the order in which they are shown; ``reply`` was on show before, ``leaf`` is the
    end of its branch. ``about`` names what is compared, empty where nothing but chance is."""

    reply: Message
    leaf: int
    question: str
    plan: Plan
    model: OpenModel
    sides: tuple[Side, Side]
    seed: int
    about: str = ""

    @property
    def same(self) -> bool:
        """Nothing to choose between."""
        one, two = self.sides
        return one.whole and two.whole and one.text.strip() == two.text.strip()


class ChatCompare:
    """What ``/compare`` does. Nothing is stored before `settle`, and then all of it at once."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session

    def begin(self, reply: Message, how: str = "") -> Comparison:
        """What to compare a reply with. ``how``: ``again`` makes another one beside it, the name of
        an adapter compares with and without that; empty: with and without what is in use, and
        where nothing is, again. May read the model's file: for a worker."""
        session = self._session
        model, before = session.model, session.before(reply)
        if model is None or not before:
            raise NotFound("there is no reply to compare")
        about = ""
        if how not in ("", AGAIN) or (not how and session.adapters.used):
            with_it, without, about = session.adapters.with_and_without(how)
            sides = [Side(f"with {about}", with_it), Side(f"without {about}", without)]
        elif is_correction(reply):
            raise ValueError("this is your own text, not the model's; ← shows the model's reply")
        else:
            stored = Side("the reply that was there", message=reply, text=reply.text)
            sides = [stored, Side("the new reply")]
        random.shuffle(sides)  # whoever always takes the first says nothing
        plan = session.plan(before)
        if plan.overflow is not None:
            raise SelmError(f"{overflow_words(plan.overflow)} /regenerate asks what to leave out.")
        # One seed for both. Not the one that may be set: with that, the reply that is on show
        # would be made again, and known again.
        seed = int.from_bytes(os.urandom(4), "little")
        leaf, question = session.path[-1].id, before[-1].text
        return Comparison(reply, leaf, question, plan, model, (sides[0], sides[1]), seed, about)

    def reply(self, found: Comparison, side: Side) -> Reply:
        """Begin one of the replies; iterate it, then it is `made`."""
        if self._session.model is not found.model:
            raise SelmError("another model was opened meanwhile: compare anew")
        if side.adapters is not None:
            found.model.assistant.model.set_adapters(side.adapters)
        return self._session.reply(found.plan, found.seed)

    def made(self, side: Side, reply: Reply) -> None:
        """What has come of it, with the model still as it was made."""
        side.text, side.facts = reply.text, self._session.facts_of(reply)

    def settle(self, found: Comparison, choice: int | None) -> str:
        """Keep what is whole as versions and, where one was taken, that as feedback; the talk goes
        on with it. What to say of it; empty where there is nothing to say."""
        session = self._session
        if found.same:
            return "Both replies are the same, word for word: nothing was kept."
        if choice is None and not any(side.facts and side.whole for side in found.sides):
            return ""
        shared = session.feedback.shared

        def write() -> None:
            store = session.store
            with store.database.write():
                store.conversations.message(found.reply.id)  # may be deleted in another window
                kept = [_stored(session, found, side) for side in found.sides]
                taken = None if choice is None else kept[choice]
                other = None if choice is None else kept[1 - choice]
                if taken is not None and other is not None:
                    store.feedback.add(
                        "preference",
                        session.feedback.record(taken),
                        rejected=session.feedback.record(other),
                        consent=shared,
                    )
                if taken is None or taken.id == found.reply.id:
                    store.conversations.show_end(found.leaf)
                else:
                    store.conversations.show(taken.id)

        session.saving(write)
        session.reload()
        return self._words(found, choice)

    def end(self, found: Comparison) -> list[str]:
        """The model answers as it did before. What is not as it was, in sentences."""
        if found.about and self._session.model is found.model:
            return self._session.adapters.restore()
        return []

    def take_back(self, reply: Message) -> str:
        """The choice that a reply was taken by is forgotten; both replies stay."""
        session = self._session
        if "preference" not in session.marks.get(reply.id, ()):
            raise ValueError("this reply was not taken from two")
        session.saving(lambda: session.store.feedback.withdraw(reply.id, ["preference"]))
        session.reload()
        return "Taken back."

    def _words(self, found: Comparison, choice: int | None) -> str:
        if choice is None:
            return "Undecided: the talk goes on as it was. The new replies are versions of it."
        words = f"You took {found.sides[choice].label}."
        if found.about:
            words = f"You took the reply {found.sides[choice].label}."
            won, of = self._won(found)
            if of > 1:
                words += f" Of {of} such choices {found.about} won {won}."
        return f"{words} {self._session.feedback.kept_words}"

    def _won(self, found: Comparison) -> tuple[int, int]:
        """Of the choices between the same two ways to answer, how many the adapter has won."""
        made = {side.label: side.facts for side in found.sides}
        with_it, without = (
            facts.adapter if facts is not None else None
            for facts in (made[f"with {found.about}"], made[f"without {found.about}"])
        )
        rows = self._session.store.feedback.rows(kinds=["preference"])
        pairs = [(row.record.adapter, row.rejected and row.rejected.adapter) for row in rows]
        won = pairs.count((with_it, without))
        return won, won + pairs.count((without, with_it))


def _stored(session: ChatSession, found: Comparison, side: Side) -> Message | None:
    """The reply as a version of the turn; None where it was not made whole."""
    if side.message is not None:
        return side.message
    if not side.whole:
        return None
    return session.store.conversations.add(
        found.reply.conversation, found.reply.parent, "assistant", side.text, facts=side.facts
    )
