"""The chat as a Textual app: what the user can do, each action under its name in `commands`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual import work

from selm_edge.chat.commands import Command, parse_slash, unknown_slash
from selm_edge.chat.comparing import Comparing
from selm_edge.chat.offers import Offers
from selm_edge.chat.text import code_blocks, free_path, spoken_path, write_new
from selm_edge.chat.widgets.prompt import Prompt
from selm_edge.chat.widgets.question import QuietQuestion
from selm_edge.chat.widgets.transcript import Example
from selm_edge.chat.widgets.turns import Earlier, Turn
from selm_edge.chat.window import EXPECTED
from selm_edge.clean import clean_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from textual.widget import Widget

    from selm_edge.chat.memory import Source
    from selm_edge.feedback.log import Kind
    from selm_edge.store.conversations import Message, Role


class ChatApp(Comparing, Offers):
    """The window with all of its actions."""

    async def on_prompt_sent(self, event: Prompt.Sent) -> None:
        text = event.text.strip()
        command = parse_slash(text)
        if command is not None:
            self.prompt.clear()
            if not await self.run_slash(*command):
                self._give_back(text)
        elif problem := unknown_slash(text):
            self.tell(problem, warning=True)
        elif not self.idle:
            self.tell("A reply is being made. Esc stops it.", warning=True)
        else:
            self.ask(self.prompt.take().strip())

    async def run_slash(self, command: Command, argument: str) -> bool:
        """A command typed in the prompt; with an argument it asks for nothing more.

        False where it could not be done.
        """
        direct: Callable[[str], Awaitable[None]] | None
        direct = getattr(self, f"slash_{command.name}", None)
        if direct is None or not argument:
            await self.run_action(command.name)
            return True
        return await self.run_slash_safely(direct, argument)

    # -- moving --------------------------------------------------------------------------------

    def action_stop(self) -> None:
        """Esc: stop the reply; else leave a turn; else put a message away."""
        if self.stop_reply():
            self.set_status(state="ready" if self.session.model else "loading")
        elif not isinstance(self.main.focused, Prompt):
            self.prompt.focus()
        elif self.main.query("#banner.shown") or not self.decline_question():
            self.main.query("#banner").remove_class("shown")
            self.show_hints()

    def action_focus_prompt(self) -> None:
        self.prompt.focus()

    def action_scroll_transcript(self, pages: int) -> None:
        view = self.transcript
        view.scroll_relative(y=pages * max(1, view.size.height - 2), animate=False)

    def on_prompt_left_upwards(self) -> None:
        stops = [*self.transcript.turns, *self.main.query(QuietQuestion)]
        if stops:
            stops[-1].focus()
        else:
            examples = list(self.transcript.query(Example))
            if examples:
                examples[-1].focus()

    def action_select_turn(self, step: int) -> None:
        """The turn above or below the selected one; below the last is the prompt."""
        stops: list[Widget] = [*self.transcript.query(Earlier), *self.transcript.turns]
        stops += self.main.query(QuietQuestion)
        focused = self.main.focused
        if focused not in stops:
            return
        at = stops.index(focused) + step
        if at >= len(stops):
            self.prompt.focus()
        elif at >= 0:
            stops[at].focus()

    async def action_show_earlier(self) -> None:
        first = next(iter(self.transcript.turns), None)
        await self.refresh_conversation(whole=True)
        again = [
            turn for turn in self.transcript.turns if first and turn.message_id == first.message_id
        ]
        if again:
            again[0].focus()

    # -- conversations -------------------------------------------------------------------------

    async def action_new(self) -> None:
        await self.finish_reply()
        self.session.new()
        await self.refresh_conversation()
        self.prompt.focus()

    async def open_conversation(self, conversation: int) -> None:
        await self.finish_reply()
        self.session.open(conversation)
        await self.refresh_conversation()
        self.transcript.anchor()
        self.prompt.focus()

    def action_conversations(self) -> None:
        self.browse_conversations("")

    def action_search(self) -> None:
        self.browse_conversations("", searching=True)

    async def slash_search(self, words: str) -> None:
        self.browse_conversations(words)

    async def slash_open(self, number: str) -> None:
        listed = self.session.store.conversations.recent()
        if not number.isdecimal() or not 1 <= int(number) <= len(listed):
            raise ValueError(f"give a number from 1 to {len(listed)}")
        await self.open_conversation(listed[int(number) - 1].id)

    def action_open(self) -> None:
        self.action_conversations()

    @work(group="browse", exit_on_error=False)
    async def browse_conversations(self, words: str, searching: bool = False) -> None:
        from selm_edge.chat.screens.conversations import ConversationsScreen

        chosen = await self.push_screen_wait(
            ConversationsScreen(self.session, words, searching=searching)
        )
        if chosen is not None:
            await self.open_conversation(chosen)
        else:  # the one on show may have been renamed or deleted there
            self.session.reload()
            await self.refresh_conversation()

    def _need_conversation(self) -> int | None:
        if self.session.conversation is None:
            self.tell("There is no conversation yet: ask something first.", warning=True)
            return None
        return self.session.conversation.id

    @work(group="dialog", exit_on_error=False)
    async def action_rename(self) -> None:
        from selm_edge.chat.screens.ask import TextScreen

        if self._need_conversation() and self.session.conversation:
            title = await self.push_screen_wait(
                TextScreen("Rename this conversation", self.session.conversation.title)
            )
            if title and title.strip():
                await self.slash_rename(title)

    async def slash_rename(self, title: str) -> None:
        key = self._need_conversation()
        if key is not None:
            self.session.rename(key, title)
            self.refresh_top()

    @work(group="dialog", exit_on_error=False)
    async def action_delete(self) -> None:
        from selm_edge.chat.screens.ask import DeleteScreen

        key = self._need_conversation()
        if key is None:
            return
        keep = await self.push_screen_wait(DeleteScreen(self.session, key))
        if keep is not None:
            await self.finish_reply()
            gone = self.session.delete(key, keep_feedback=keep)
            self.tell_deleted(gone)
            await self.refresh_conversation()

    def tell_deleted(self, gone: bool) -> None:
        if gone:
            self.tell("Deleted. No byte of it stays in the file.")
        else:
            self.tell("Deleted. Its bytes leave the disk when the other window closes.")

    @work(group="dialog", exit_on_error=False)
    async def action_export(self) -> None:
        from selm_edge.chat.screens.ask import TextScreen

        if self._need_conversation() is not None:
            path = await self.push_screen_wait(
                TextScreen(
                    "Export to a file",
                    str(free_path(Path.cwd() / self.session.export_name())),
                    "A name that ends in .json gets every branch and figure.",
                )
            )
            if path:
                await self.run_slash_safely(self.slash_export, path)

    async def slash_export(self, path: str) -> None:
        written = self.session.export(spoken_path(path))
        self.tell(f"Written: {written}")

    async def run_slash_safely(
        self, function: Callable[[str], Awaitable[None]], argument: str
    ) -> bool:
        try:
            await function(argument)
        except EXPECTED as error:
            self.tell(str(error), warning=True)
            return False
        return True

    # -- turns ---------------------------------------------------------------------------------

    def target(self, role: Role | None = None) -> Message | None:
        """The turn an action is about: the selected one, else the last (of that role).

        A selected turn of the other role stands for its neighbour: the question of a reply, the
        reply to a question.
        """
        path = self.session.path
        focused = self.main.focused
        selected = focused.message_id if isinstance(focused, Turn) else None
        at = next((i for i, turn in enumerate(path) if turn.id == selected), None)
        if at is None:
            found = [turn for turn in path if role in (None, turn.role)]
            return found[-1] if found else None
        if role in (None, path[at].role):
            return path[at]
        near = at + (1 if role == "assistant" else -1)
        return path[near] if 0 <= near < len(path) else None

    def _target_or_tell(self, role: Role | None = None) -> Message | None:
        if not self.idle:
            self.tell("A reply is being made. Esc stops it.", warning=True)
            return None
        found = self.target(role)
        if found is None:
            noun = {"assistant": "reply", "user": "question"}.get(role or "", "turn")
            self.tell(f"There is no {noun} yet.", warning=True)
        return found

    def action_regenerate(self) -> None:
        message = self._target_or_tell()
        if message is not None:
            self.session.reply_again(message)
            self.prompt.focus()
            self.ask_again(self.session.path[-1])

    @work(group="dialog", exit_on_error=False)
    async def action_edit(self) -> None:
        from selm_edge.chat.screens.editor import EditorScreen

        message = self._target_or_tell("user")
        if message is not None:
            text = await self.push_screen_wait(
                EditorScreen(
                    "Edit the question", message.text, "The old branch stays: ← shows it again."
                )
            )
            if text and text.strip() and text != message.text:
                self._ask_edited(message, text.strip())

    async def slash_edit(self, text: str) -> None:
        message = self._target_or_tell("user")
        if message is not None:
            self._ask_edited(message, text)

    def _ask_edited(self, message: Message, text: str) -> None:
        question = self.session.edit(message, text)
        self.prompt.focus()
        self.ask_again(question)

    async def action_previous(self) -> None:
        await self._switch(-1)

    async def action_next(self) -> None:
        await self._switch(+1)

    async def _switch(self, step: int) -> None:
        message = self._target_or_tell()
        if message is None:
            return
        at = [turn.id for turn in self.session.path].index(message.id)
        if not self.session.switch(message, step):
            if len(self.session.versions.get(message.id, [])) < 2:
                self.tell("This turn has one version. e edits, r replies again.")
            return
        await self.refresh_conversation()
        shown = self.session.path[at].id
        for turn in self.transcript.turns:
            if turn.message_id == shown:
                turn.focus()

    # -- feedback ------------------------------------------------------------------------------

    async def action_good(self) -> None:
        await self._rate("up")

    async def action_bad(self) -> None:
        await self._rate("down")

    async def _rate(self, kind: Kind) -> None:
        message = self._target_or_tell("assistant")
        if message is None:
            return
        stands = self.session.feedback.rate(message, kind)
        await self.refresh_conversation()
        if not stands:
            self.tell("Taken back.")
            return
        words = self.session.feedback.kept_words
        if kind == "down":
            words += " x lets you write the better reply."
        self.tell(("Good reply. " if kind == "up" else "Bad reply. ") + words)

    @work(group="dialog", exit_on_error=False)
    async def action_correct(self) -> None:
        from selm_edge.chat.screens.editor import EditorScreen

        message = self._target_or_tell("assistant")
        if message is not None:
            before = self.session.store.feedback.correction(message.id)
            text = await self.push_screen_wait(
                EditorScreen(
                    "Correct the reply",
                    before or message.text,
                    "The talk goes on with your text. " + self.session.feedback.kept_words,
                )
            )
            if text and text.strip() and text != message.text:
                await self._correct(message, text)

    async def slash_correct(self, text: str) -> None:
        message = self._target_or_tell("assistant")
        if message is not None:
            await self._correct(message, text)

    async def _correct(self, message: Message, text: str) -> None:
        self.session.feedback.correct(message, text.strip())
        await self.refresh_conversation()
        self.tell("Your correction is kept. The reply as it was stays: ← shows it.")

    def action_stats(self) -> None:
        self._show_stats()

    async def slash_stats(self, argument: str) -> None:
        if argument != "fluency":
            raise ValueError("statistics of what? /stats, or /stats fluency")
        self._show_stats(fluency=True)

    @work(group="browse", exit_on_error=False)
    async def _show_stats(self, fluency: bool = False) -> None:
        from selm_edge.chat.screens.stats import StatsScreen
        from selm_edge.chat.stats import ChatStats

        await self.push_screen_wait(
            StatsScreen(ChatStats(self.session), lambda: not self.idle, fluency=fluency)
        )

    async def action_compare(self) -> None:
        await self.slash_compare("")

    async def slash_compare(self, how: str) -> None:
        from selm_edge.chat.compare import BACK

        message = self._target_or_tell("assistant")
        if message is None:
            return
        if how == BACK:
            self.tell(self.session.compare.take_back(message))
            await self.refresh_conversation()
        else:
            self.prompt.focus()
            self.compare(message, how)

    # -- memory --------------------------------------------------------------------------------

    @work(group="dialog", exit_on_error=False)
    async def action_remember(self) -> None:
        """Keep what was proposed last; where nothing was, ask for a fact."""
        if self.proposed:
            proposal = self.proposed.pop(0)
            corrected = self.session.memory.corrected_by(proposal)
            await self._keep_fact(proposal.text, [one.id for one in corrected])
            self.main.query("#banner").remove_class("shown")
            self.show_proposal()
            return
        from selm_edge.chat.screens.ask import TextScreen

        note = self.session.memory.where_words
        text = await self.push_screen_wait(TextScreen("Remember", "", note))
        if text and text.strip():
            await self._keep_fact(text)

    async def slash_remember(self, text: str) -> None:
        self._keep_fact_soon(text)

    @work(group="dialog", exit_on_error=False)
    async def _keep_fact_soon(self, text: str) -> None:
        await self._keep_fact(text)

    async def _keep_fact(self, text: str, corrects: Sequence[int] = ()) -> None:
        memory = self.session.memory
        added = memory.remember(text, corrects=corrects)
        if added.outcome == "near":
            from selm_edge.chat.screens.memory import NearScreen

            choice = await self.push_screen_wait(NearScreen(text, added))
            if choice is None:
                return
            added = memory.decided(text, choice)
        self.tell(memory.kept_words(added))

    def action_memory(self) -> None:
        self._browse_memory("")

    async def slash_memory(self, argument: str) -> None:
        if argument in ("on", "off"):
            self.tell(self.session.memory.switch(argument == "on"))
        else:
            self._browse_memory(argument)

    def action_forget(self) -> None:
        self._browse_memory("")

    async def slash_forget(self, words: str) -> None:
        self._browse_memory(words)

    def action_sources(self) -> None:
        message = self._target_or_tell("assistant")
        if message is not None:
            self._browse_memory("", self.session.memory.sources(message))

    @work(group="browse", exit_on_error=False)
    async def _browse_memory(self, words: str, sources: Sequence[Source] | None = None) -> None:
        from selm_edge.chat.screens.memory import MemoryScreen

        await self.push_screen_wait(MemoryScreen(self.session.memory, words, sources))
        await self.refresh_conversation()  # a source may be gone

    @work(group="dialog", exit_on_error=False)
    async def action_space(self) -> None:
        from selm_edge.chat.screens.ask import TextScreen

        memory = self.session.memory
        names = ", ".join(clean_line(space.name) for space in memory.memories.spaces())
        note = f"There are: {names}. A new name makes a new one."
        name = await self.push_screen_wait(TextScreen("Space", memory.space_name, note))
        if name and name.strip():
            await self.slash_space(name)

    async def slash_space(self, name: str) -> None:
        self.tell(self.session.memory.enter(name))

    # -- copying -------------------------------------------------------------------------------

    def action_copy(self) -> None:
        message = self.target() if isinstance(self.main.focused, Turn) else self.target("assistant")
        if message is not None:
            self._copy(message.text, "the turn")

    def action_copy_code(self) -> None:
        """The last block; pressed again on the same turn, the one before."""
        message = self.target("assistant")
        blocks = code_blocks(message.text) if message else []
        if not blocks or message is None:
            self.tell("There is no code block here.", warning=True)
            return
        key, at = getattr(self, "_copied_block", (None, 0))
        at = (at - 1) % len(blocks) if key == message.id else len(blocks) - 1
        self._copied_block = (message.id, at)
        self._copy(blocks[at], f"code block {at + 1} of {len(blocks)}")

    def _copy(self, text: str, what: str) -> None:
        self.copy_to_clipboard(text)
        self.tell(f"Copied {what}. Where a terminal forbids that, w writes it to a file.")

    async def slash_copy(self, argument: str) -> None:
        """``[last|code|all] [FILE]``"""
        what, _, path = argument.partition(" ")
        text = self.session.text_of(what)
        if path.strip():
            self._write(spoken_path(path), text)
        else:
            self._copy(text, what)

    @work(group="dialog", exit_on_error=False)
    async def action_save_turn(self) -> None:
        from selm_edge.chat.screens.ask import TextScreen

        message = self.target()
        if message is not None:
            path = await self.push_screen_wait(
                TextScreen("Write this turn to a file", str(free_path(Path.cwd() / "reply.md")))
            )
            if path:
                self._write(spoken_path(path), message.text)

    def _write(self, path: Path, text: str) -> None:
        self.tell(f"Written: {write_new(path, text + chr(10))}")

    # -- model, settings, help -----------------------------------------------------------------

    @work(group="dialog", exit_on_error=False)
    async def action_model(self) -> None:
        from selm_edge.chat.screens.models import ModelScreen

        chosen = await self.push_screen_wait(ModelScreen(self.session))
        if chosen:
            self.load_model(chosen)

    async def slash_model(self, name_or_path: str) -> None:
        self.load_model(name_or_path)

    @work(group="dialog", exit_on_error=False)
    async def action_settings(self, field: str = "") -> None:
        from selm_edge.chat.screens.settings import SettingsScreen

        context = self.session.preferences.config.context
        if await self.push_screen_wait(SettingsScreen(self.session, field)):
            self.prompt.enter_sends = self.session.enter_sends
            await self.transcript.colour(self.session)
            model = self.session.model
            if model and self.session.preferences.config.context != context:
                self.load_model(model.spec)
            self.measure_context()
            self.show_hints()

    async def slash_settings(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        self.tell(self.session.change_setting(name, value.strip()))
        await self.transcript.colour(self.session)

    def action_system(self) -> None:
        self.action_settings("system")

    async def slash_system(self, text: str) -> None:
        self.session.set_system(text)
        self.tell("The system prompt holds from the next question on.")

    def action_adapter(self) -> None:
        self.tell(self.session.adapters.words())

    async def slash_adapter(self, words: str) -> None:
        self.tell(self.session.adapters.change(words))

    def action_expert(self) -> None:
        self.tell(self.session.experts.words())

    async def slash_expert(self, name: str) -> None:
        self.tell(self.session.experts.choose(name))

    async def action_colours(self) -> None:
        words = self.session.set_colours(not self.session.colours)
        await self.transcript.colour(self.session)
        self.tell(words)

    def action_command_palette(self) -> None:
        from selm_edge.chat.screens.palette import Palette

        self.push_screen(Palette())

    def action_theme(self) -> None:
        self.search_themes()

    def action_help(self) -> None:
        from selm_edge.chat.screens.help import HelpScreen

        self.push_screen(HelpScreen())
