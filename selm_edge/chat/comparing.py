"""The window with two replies beside each other: made one after the other, then one is taken."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from textual import work

from selm_edge.chat.asking import Asking
from selm_edge.chat.threads import in_thread, pieces_from_thread
from selm_edge.chat.window import EXPECTED
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.chat.compare import Comparison, Side
    from selm_edge.chat.screens.compare import CompareScreen
    from selm_edge.store.conversations import Message

    Answer = asyncio.Future[int | None]


class Comparing(Asking):
    """See `selm_edge.chat.compare` for what is compared and what becomes of it."""

    @work(group="ask", exit_on_error=False)
    async def compare(self, reply: Message, how: str) -> None:
        """Make the replies, let the user take one. Stopped, the talk goes on as it was."""
        if not self.idle:
            return
        self._begin()
        found: Comparison | None = None
        try:
            if await self._model_is_ready():
                found = await in_thread(self.session.compare.begin, reply, how)
                if words := await self._taken(found):
                    self.tell(words)
        except EXPECTED as error:
            self.refused(error)
        finally:
            if found is not None:
                self._as_before(found)
            await self._end()

    async def _taken(self, found: Comparison) -> str:
        """What came of it, in words."""
        from selm_edge.chat.screens.compare import CompareScreen

        answer: Answer = asyncio.get_running_loop().create_future()

        def answered(number: int | None) -> None:
            if not answer.done():  # it is cancelled where the window closes
                answer.set_result(number)
            if self._reply is not None:
                self._reply.cancel()

        screen = CompareScreen(found.question)
        await self.push_screen(screen, answered)
        choice: int | None = None
        try:
            choice = await self._choice(found, screen, answer)
        finally:
            if self.is_running and self.screen is screen:  # stopped from elsewhere, or by an error
                self.pop_screen()
            words = await self.patiently(lambda: self.session.compare.settle(found, choice))
        return words

    async def _choice(self, found: Comparison, screen: CompareScreen, answer: Answer) -> int | None:
        for number, side in enumerate(found.sides):
            if side.message is not None:
                await screen.finish(number, side.text)
            else:
                await self._make(found, side, screen, number, answer)
            if answer.done() or not side.whole:  # put away, or the reply was stopped
                return None
        screen.ask(same=found.same)
        return await answer

    async def _make(
        self, found: Comparison, side: Side, screen: CompareScreen, number: int, answer: Answer
    ) -> None:
        """One of the replies, as it is written."""
        self._question = None  # what is cut off by the end of the window is not kept
        self._thread_done.clear()
        try:
            reply = self._reply = self.session.compare.reply(found, side)
        except Exception as error:  # whatever the engine says to these settings
            raise SelmError(f"the reply could not begin: {error}") from error
        self.set_status(state="replying")
        failure: Exception | None = None
        try:
            async for piece in pieces_from_thread(reply, self._thread_done):
                if not answer.done():
                    await screen.write(number, piece)
        except Exception as error:
            failure = error
        self._reply = None  # not where the window is closing: `shut_down` looks after it
        if failure is not None:
            raise SelmError(f"the reply broke off: {failure}") from failure
        self.session.compare.made(side, reply)
        if not answer.done():
            await screen.finish(number, side.text)

    def _as_before(self, found: Comparison) -> None:
        with suppress(*EXPECTED):
            for problem in self.session.compare.end(found):
                self.banner(problem, error=True)
