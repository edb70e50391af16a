"""The window with a question on its way to a reply."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from textual import work

from selm_edge.chat.threads import in_thread, pieces_from_thread
from selm_edge.chat.widgets.status import NO_FIGURES
from selm_edge.chat.widgets.transcript import Example
from selm_edge.chat.widgets.turns import ReplyTurn, UserTurn
from selm_edge.chat.window import EXPECTED, ChatWindow
from selm_edge.errors import SelmError
from selm_edge.store.errors import NotFound

if TYPE_CHECKING:
    from selm_edge.assistant import Plan, Reply
    from selm_edge.store.conversations import Message

    Decision = tuple[Plan, int]


class Asking(ChatWindow):
    """What is asked is stored and sent; what is replied is streamed and stored."""

    def on_example_chosen(self, event: Example.Chosen) -> None:
        if self.idle:
            self.prompt.focus()
            self.ask(event.text)

    @work(group="ask", exit_on_error=False)
    async def ask(self, text: str) -> None:
        """A question from the prompt to its reply. Until it is stored, it goes back if stopped."""
        if not self.idle:
            return
        self._begin()
        question: Message | None = None
        try:
            decision = await self._planned(text)
            if decision is not None:
                plan, drop = decision
                question = self.session.ask(text)
                self.proposed = self.session.memory.proposals(text)
                await self._reply_to(question, plan, drop)
        except EXPECTED as error:
            kept = question is not None and not isinstance(error, NotFound)
            self.refused(error, "Your question is kept: r on it tries again." if kept else "")
        finally:
            if question is None:
                self._give_back(text)
            await self._end()

    @work(group="ask", exit_on_error=False)
    async def ask_again(self, question: Message) -> None:
        """A reply to a question that is stored already: after an edit, or for another version."""
        if not self.idle:
            return
        self._begin()
        try:
            await self.transcript.show(self.session)
            if await self._model_is_ready():
                decision = await self._resolve(None)
                if decision is not None:
                    await self._reply_to(question, *decision)
        except EXPECTED as error:
            self.refused(error)
        finally:
            await self._end()

    def _give_back(self, text: str) -> None:
        if self._quitting:  # there is no prompt any more; it is the question of the next visit
            with suppress(*EXPECTED):
                self.session.ask(text)
        elif self.is_running and not self.prompt.text:
            self.prompt.load_text(text)
            self.prompt.move_cursor(self.prompt.document.end)

    async def _planned(self, text: str) -> Decision | None:
        """What to send for a new question; None where it goes back to the prompt."""
        if self.session.model is None:
            question, waiting = UserTurn(None, text), ReplyTurn(None)
            waiting.waiting = "Waiting for the model…"
            await self.transcript.add(question)
            await self.transcript.add(waiting)
            try:
                ready = await self._model_is_ready()
            finally:
                await question.remove()
                await waiting.remove()
            if not ready:
                return None
        return await self._resolve(text)

    async def _resolve(self, text: str | None) -> Decision | None:
        """Plan what to send after the branch on show; ask the user where it does not fit.

        ``text`` is the new question, None where the branch ends with it. The second value is how
        many of the oldest turns the user lets go.
        """
        from selm_edge.chat.screens.overflow import OverflowScreen

        while True:
            plan = await self._plan(text)
            overflow, model = plan.overflow, self.session.model
            if overflow is None or model is None:
                return plan, 0
            screen = OverflowScreen(overflow, model.trained_context, new=text is not None)
            try:
                choice = await self.push_screen_wait(screen)
            except asyncio.CancelledError:  # the question was stopped
                if self.is_running and self.screen is screen:
                    self.pop_screen()
                raise
            if choice == "drop":
                return plan, overflow.drop or 0
            if choice == "new":
                self.session.new()
                await self.transcript.show(self.session)
            elif isinstance(choice, int):
                self.load_model(model.spec, choice)
                await self._model_settled.wait()
            else:
                return None

    async def _plan(self, text: str | None = None) -> Plan:
        """Plan with the model in use; once more where it was changed while that went on."""
        while True:
            model = self.session.model
            if text is not None and self.session.memory.names_files(text):
                self.set_status(state="reading")
            try:
                plan = await in_thread(self.session.plan, list(self.session.path), text)
            except Exception:
                if model is self.session.model:
                    raise
                continue  # it was closed in the middle
            if self.session.made(plan):
                return plan

    async def _reply_to(self, question: Message, plan: Plan, drop: int = 0) -> None:
        """Stream the reply to a stored question and keep what there is when it ends.

        drop: the oldest turns that the user lets go, from this question on.
        """
        if drop:
            self.session.leave_out(question, drop)
            plan = await self._plan()
        for notice in plan.notices:
            self.banner(notice.message)
        await self.transcript.show(self.session)
        turn = ReplyTurn(None)
        await self.transcript.add(turn)
        self.transcript.anchor()
        self.refresh_top()
        self._thread_done.clear()
        while not self.session.made(plan):  # another model was opened since
            decision = await self._resolve(None)
            if decision is None:
                raise SelmError("nothing was sent")
            plan, drop = decision
            if drop:
                self.session.leave_out(question, drop)
                plan = await self._plan()
        reply = self._reply = self._begin_reply(plan)
        self._question = question
        self.set_status(state="replying", used=plan.tokens, **NO_FIGURES)
        by_expert = self.session.colours and bool(self.session.experts.names)
        ticking = self.set_interval(0.25, self._tick)
        failure: Exception | None = None
        try:
            async for piece in pieces_from_thread(reply, self._thread_done):
                await turn.write(piece, self.session.experts.so_far(reply) if by_expert else None)
        except Exception as error:  # the engine's: the text so far is kept whatever it was
            failure = error
        finally:
            ticking.stop()
        self._tick()
        if failure is not None:
            self.banner(f"The reply broke off: {failure}", error=True)
        if failure is not None and not reply.text:
            self._reply = None
            await turn.remove()
            return
        try:
            message = await self._keep(question, reply)
        except EXPECTED:
            self._reply = None
            raise
        self._reply = None  # not where the window is closing: `shut_down` looks after it
        self.transcript.adopt(message)
        versions = self.session.versions.get(message.id, [])
        turn.sources = self.session.memory.sources_line(message)
        await turn.finish(message, versions, self.session.coloured(message))

    def _begin_reply(self, plan: Plan) -> Reply:
        try:
            return self.session.reply(plan)
        except Exception as error:  # whatever the engine says to these settings
            raise SelmError(f"the reply could not begin: {error}") from error

    async def _keep(self, question: Message, reply: Reply) -> Message:
        """Store a reply."""
        return await self.patiently(lambda: self.session.keep(question, reply))

    def _tick(self) -> None:
        reply = self._reply
        if reply is not None:
            stats, model = reply.stats, self.session.model
            self.set_status(
                speed=stats.tokens_per_second or None,
                used=reply.plan.tokens + stats.tokens,
                experts=stats.experts,
                drafts=stats.accepted / stats.drafted if stats.drafted else None,
                mean_layers=stats.mean_layers,
                layers=model.assistant.model.layers if model else None,
            )
