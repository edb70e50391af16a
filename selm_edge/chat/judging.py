"""Asking for a judgement: of which earlier reply, and how seldom.

Somebody who talks to a program does not want to be examined by it: it asks about one reply, at most
once a day and once a visit, and a week later after it was told "not now".
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from selm_edge.feedback.unrated import Turn, unrated, worth_asking

if TYPE_CHECKING:
    from selm_edge.chat.session import ChatSession

SETTING = "ask_feedback"
STATE = "asked_feedback"
"""A setting, too: {"at": when it asked last, "declined": whether that was declined, "not": the
replies that it does not ask about again}. Times in ms."""

_HOUR, _DAY = 3_600_000, 86_400_000
ENOUGH = 10
"""Unrated replies; among fewer there is little to choose."""
FIRST_USE = _HOUR
"""After the first conversation began, nobody is asked for that long."""
RECENT = 30 * _DAY
"""What is older, hardly anybody remembers."""
PAUSE, AFTER_DECLINED = _DAY, 7 * _DAY
_MOST = 200  # replies not to ask about again: the newest

Answer = Literal["up", "down"]


class ChatJudging:
    """``asked``: whether it has been, in this visit."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self.asked = False

    @property
    def on(self) -> bool:
        return self._session.store.settings.get(SETTING, True) is not False

    def switch(self, on: bool) -> str:
        """What now holds, in words."""
        session = self._session
        session.saving(lambda: session.store.settings.set(SETTING, on))
        return "The chat asks about a reply now and then." if on else "The chat does not ask."

    def question(self) -> Turn | None:
        """A reply to ask about now, if any. Looks at all unrated ones: for a worker."""
        store, now = self._session.store, time.time_ns() // 1_000_000
        if self.asked or not self.on or not store.saving:
            return None
        state = self._state
        pause = AFTER_DECLINED if state.get("declined") else PAUSE
        first = store.database.one("select min(created) from conversation")
        if now - state.get("at", 0) < pause or not first or now - (first[0] or now) < FIRST_USE:
            return None
        since = now - RECENT
        if len(unrated(store.database, since=since)) < ENOUGH:
            return None
        last = self._session.last_reply  # it is before the user's eyes, with its own keys
        leave = {*state.get("not", ()), *([last.id] if last else [])}
        embedder = self._session.memory.memories.embedder
        found = worth_asking(store.database, embedder, 1, since=since, without=leave)
        return found[0] if found else None

    def shown(self) -> None:
        """It was asked; however it is answered, the pause begins."""
        self.asked = True
        self._keep(at=time.time_ns() // 1_000_000, declined=False)

    def decline(self, turn: Turn) -> None:
        """Not now; and never again about this one."""
        self._keep(declined=True, **{"not": [*self._state.get("not", ()), turn.message][-_MOST:]})

    def answer(self, turn: Turn, kind: Answer) -> None:
        """A thumb for a reply of any conversation."""
        self._session.feedback.keep(kind, self._session.store.conversations.message(turn.message))
        self._session.reload()

    def correct(self, turn: Turn, text: str) -> None:
        """What it should have been, as feedback alone: that talk has gone on with what it was."""
        reply = self._session.store.conversations.message(turn.message)
        self._session.feedback.keep("correction", reply, text)
        self._session.reload()

    @property
    def _state(self) -> dict[str, Any]:
        state = self._session.store.settings.get(STATE)
        return state if isinstance(state, dict) else {}

    def _keep(self, **changes: Any) -> None:
        session = self._session
        session.saving(lambda: session.store.settings.set(STATE, {**self._state, **changes}))
