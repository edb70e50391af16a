"""Slow work in threads of its own, so that the screen never waits and leaving never hangs.

Not the event loop's executor: a program that ends waits for that, and a model that is being opened
cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """The result of ``function(*args)``, computed in a daemon thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(action: Callable[[Any], None], value: object) -> None:
        if not future.done():
            action(value)

    def work() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            _tell(loop, settle, future.set_exception, error)
        else:
            _tell(loop, settle, future.set_result, result)

    threading.Thread(target=work, daemon=True, name=getattr(function, "__name__", "work")).start()
    return await future


async def pieces_from_thread(source: Iterable[str], done: threading.Event) -> AsyncIterator[str]:
    """Iterate ``source`` in a thread and yield its pieces here; those that came together, together.

    ``done`` is set when the thread has let go of the source. An exception of the source is raised
    here after the pieces before it.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

    def work() -> None:
        end: BaseException | None = None
        try:
            for piece in source:
                _tell(loop, queue.put_nowait, piece)
        except BaseException as error:
            end = error
        finally:
            done.set()
            _tell(loop, queue.put_nowait, end)

    threading.Thread(target=work, daemon=True, name="reply").start()
    while True:
        text = ""
        item = await queue.get()
        while isinstance(item, str):
            text += item
            if queue.empty():
                break
            item = queue.get_nowait()
        if text:
            yield text
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    with suppress(RuntimeError):  # the loop has ended: nobody waits any more
        loop.call_soon_threadsafe(function, *args)
