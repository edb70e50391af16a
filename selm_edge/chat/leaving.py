"""When the terminal's window is closed, or the system ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress


def hear_signals(leave: Callable[[], None]) -> None:
    """Have ``leave`` called, in the event loop that runs now, instead of ending at once."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return

    def heard(name: int) -> None:
        if name == signal.SIGHUP:
            _let_go_of_the_terminal()
        leave()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, heard, name)


def _let_go_of_the_terminal() -> None:
    """Nobody reads any more, and a write that fails would keep the window from closing."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        with suppress(OSError):
            os.dup2(nowhere, stream)
    os.close(nowhere)
