"""`selm` and `selm chat`: which face the chat shows here."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from selm_edge import paths
from selm_edge.chat.preferences import Preferences

if TYPE_CHECKING:
    from selm_edge.backends.base import Draft
    from selm_edge.chat.session import ChatSession


def run_chat(
    model: str | None = None,
    plain: bool = False,
    draft: Draft = "auto",
    expert: str = "auto",
    passphrase: str | None = None,
) -> None:
    """Open the chat until the user leaves.

    model: a name or the path of a GGUF file; plain: lines instead of a full screen; draft, expert:
    how tokens are guessed ahead, and who speaks, as for `Model.generate`; passphrase: of the data,
    where that is encrypted. Without a
    terminal that can move its cursor, the chat is plain by itself. Exits with 1 where the plain
    chat was fed by a pipe and something in it failed.
    """
    if plain or no_screen():
        from selm_edge.chat.plain import run_plain

        code = run_plain(_session(Preferences(), draft, expert, passphrase), model)
        if code:
            sys.exit(code)
        return
    from selm_edge.chat.tui import ChatApp

    preferences = Preferences()
    app = ChatApp(
        lambda: _session(preferences, draft, expert, passphrase), model, preferences.config.theme
    )
    try:
        app.run()
    finally:
        app.shut_down()


def _session(
    preferences: Preferences, draft: Draft, expert: str, passphrase: str | None
) -> ChatSession:
    # Imported when it is opened, after the first frame.
    from selm_edge.chat.models import CatalogSource
    from selm_edge.chat.session import ChatSession
    from selm_edge.store.opening import open_store_or_memory

    store = open_store_or_memory(paths.database_file(), passphrase)
    session = ChatSession(store, CatalogSource(preferences), preferences)
    session.draft, session.experts.asked = draft, expert
    return session


def no_screen() -> bool:
    """Whether there is no terminal here, or one that can only write lines."""
    # The error stream too: it is where the screen is drawn.
    if not all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return True
    return os.name == "posix" and os.environ.get("TERM", "dumb") in ("", "dumb")
