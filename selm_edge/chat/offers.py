"""The window with what it offers once a reply is there: to remember a fact, to judge a reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import work

from selm_edge.chat.asking import Asking
from selm_edge.chat.threads import in_thread
from selm_edge.chat.widgets.question import QuietQuestion
from selm_edge.chat.window import EXPECTED
from selm_edge.clean import clean_line

if TYPE_CHECKING:
    from textual.timer import Timer

    from selm_edge.chat.judging import Answer
    from selm_edge.feedback.unrated import Turn

QUIET_SECONDS = 20.0
"""After a reply, before the chat may ask something."""


class Offers(Asking):
    """Nothing here takes the keyboard: who writes, writes on."""

    _quiet: Timer | None = None

    def _begin(self) -> None:
        super()._begin()
        self._wait_for_quiet(False)
        self._put_question_away()

    async def _end(self) -> None:
        await super()._end()
        if not self._quitting and self.is_running:
            self.show_proposal()
            self._wait_for_quiet(True)

    def show_proposal(self) -> None:
        """Offer to remember what the user said; Ctrl+R keeps it, Esc or the next question not."""
        if self.proposed and not self.main.query("#banner.shown"):
            words = clean_line(self.proposed[0].text)
            self.banner(f"Remember “{words}”?  Ctrl+R keeps it.")

    # -- was this right? -----------------------------------------------------------------------

    @property
    def question(self) -> QuietQuestion | None:
        """The one on show."""
        return next(iter(self.main.query(QuietQuestion)), None)

    def _wait_for_quiet(self, on: bool) -> None:
        if self._quiet is not None:
            self._quiet.stop()
        waits = on and not self.session.judging.asked
        self._quiet = self.set_timer(QUIET_SECONDS, self._quiet_moment) if waits else None

    @property
    def _is_quiet(self) -> bool:
        """Nothing is written, made, read in another screen, or waiting for an answer."""
        main = self.main
        busy = self.screen is not main or main.query("#banner.shown") or self.prompt.text
        return self.idle and not busy and not main.has_class("low") and not main.has_class("tiny")

    @work(group="quiet", exclusive=True, exit_on_error=False)
    async def _quiet_moment(self) -> None:
        if not self._is_quiet:
            self._wait_for_quiet(self.idle)
            return
        try:
            turn = await in_thread(self.session.judging.question)
            if turn is None or not self._is_quiet or self.question is not None:
                return
            self.session.judging.shown()
        except EXPECTED:  # it was not asked for: then it is not missed, either
            return
        await self.main.query_one("#bottom").mount(QuietQuestion(turn), before=0)

    def _put_question_away(self) -> None:
        question = self.question
        if question is not None:
            if question.has_focus:
                self.prompt.focus()
            question.remove()

    def decline_question(self) -> bool:
        """Esc; False where nothing is asked."""
        question = self.question
        if question is not None:
            self.session.judging.decline(question.turn)
            self._put_question_away()
        return question is not None

    def action_decline_question(self) -> None:
        self.decline_question()

    async def action_answer_question(self, kind: Answer) -> None:
        question = self.question
        if question is None:
            return
        self._put_question_away()
        self.session.judging.answer(question.turn, kind)
        await self.refresh_conversation()
        self.tell(f"{'Good' if kind == 'up' else 'Bad'} reply. {self.session.feedback.kept_words}")

    @work(group="dialog", exit_on_error=False)
    async def action_correct_question(self) -> None:
        question = self.question
        if question is not None:
            text = await self._corrected(question.turn)
            if text:
                self._put_question_away()
                self.session.judging.correct(question.turn, text)
                await self.refresh_conversation()
                self.tell(f"Your correction is kept. {self.session.feedback.kept_words}")

    async def _corrected(self, turn: Turn) -> str:
        from selm_edge.chat.screens.editor import EditorScreen

        asked = clean_line(turn.question)
        screen = EditorScreen("What it should have been", turn.reply, f"The question was: {asked}")
        text = (await self.push_screen_wait(screen) or "").strip()
        return "" if text == turn.reply.strip() else text
