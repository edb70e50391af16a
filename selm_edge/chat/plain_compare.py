"""Two replies as lines, one after the other, of which one is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selm_edge.chat.compare import BACK
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.chat.compare import Comparison
    from selm_edge.chat.plain import PlainChat
    from selm_edge.store.conversations import Message


def compare(chat: PlainChat, reply: Message, how: str) -> None:
    """``/compare``. ValueError where nobody is there to choose."""
    session = chat.session
    if how == BACK:
        chat.say(session.compare.take_back(reply))
        return
    if not chat.interactive:
        raise ValueError("to take one of two replies takes somebody at the keyboard")
    found = session.compare.begin(reply, how)
    choice: int | None = None
    try:
        choice = _choice(chat, found)
    finally:
        words = session.compare.settle(found, choice)
        problems = session.compare.end(found)
    for line in (words, *problems):
        if line:
            chat.say(line)


def _choice(chat: PlainChat, found: Comparison) -> int | None:
    compare = chat.session.compare
    for number, side in enumerate(found.sides, 1):
        if side.message is not None:
            chat.say(f"Reply {number}: {side.text}")
            continue
        reply = chat.replying = compare.reply(found, side)
        try:
            failure = chat.stream(reply, f"Reply {number}")
        finally:
            chat.replying = None
        chat.say()
        if failure is not None:
            raise SelmError(f"the reply broke off: {failure}") from failure
        compare.made(side, reply)
        if not side.whole:  # stopped
            return None
    if found.same:
        return None
    answer = (chat.read("1 or 2 takes one, Enter neither: ") or "").strip()
    return int(answer) - 1 if answer in ("1", "2") else None
