"""The chat as lines of text: for screen readers, pipes and terminals that cannot do more.

No colours, no cursor movement, nothing that changes after it was written. Each speaker is named.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from selm_edge.chat.commands import COMMANDS, Command, parse_slash, unknown_slash
from selm_edge.chat.session import ChatSession
from selm_edge.chat.text import (
    ENDINGS,
    ago,
    amount,
    free_path,
    overflow_words,
    source_words,
    spoken_path,
    write_new,
)
from selm_edge.clean import clean, clean_line
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.assistant import Plan, Reply
    from selm_edge.store.conversations import Conversation, Message

_PASTE_SECONDS = 0.03
"""Lines that follow each other faster than this on a terminal are one paste."""


class PlainChat:
    """Reads lines, writes lines. ``interactive`` where a person sits at the other end."""

    def __init__(
        self, session: ChatSession, source: TextIO, out: TextIO, *, interactive: bool
    ) -> None:
        self.session = session
        self.source = source
        self.out = out
        self.interactive = interactive
        self.failed = False
        self._listed: list[int] = []
        self._leaving = False
        self.replying: Reply | None = None
        session.on_problem = lambda problem: self.say(f"From here on nothing is saved. {problem}")

    # -- the loop ------------------------------------------------------------------------------

    def run(self, model: str | None = None) -> int:
        """Until /quit or the end of the input. 1 where a pipe's question failed, else 0."""
        for problem in self.session.problems():
            self.say(f"Note: {problem}")
        if self.session.store.problem is not None:
            self.say(f"Nothing will be saved. {self.session.store.problem}")
        self._open_model(model)
        if self.interactive:
            self.say("Write a message and press Enter. /help lists the commands, /quit leaves.")
        while True:
            try:
                text = self.read("You: ")
            except KeyboardInterrupt:
                if self._leaving:
                    break
                self.say("\nControl C stops a reply. /quit leaves.")
                continue
            if text is None:
                break
            if (text.strip() and not self._handle(text.strip())) or self._leaving:
                break
        return 1 if self.failed and not self.interactive else 0

    def leave(self, *_: object) -> None:
        """For SIGTERM and SIGHUP: a reply is stopped and kept first, all else ends at once."""
        self._leaving = True
        if self.replying is None:
            raise KeyboardInterrupt
        self.replying.cancel()

    def _handle(self, text: str) -> bool:
        """Do one message or command; False to leave."""
        command = parse_slash(text)
        try:
            if command is not None:
                if command[0].name == "quit":
                    return False
                self._run(*command)
            elif problem := unknown_slash(text):
                raise ValueError(problem)
            else:
                self._ask(text)
        except (SelmError, ValueError, OSError) as error:
            self.failed = True
            self.say(f"Error: {error}")
        return True

    def _run(self, command: Command, argument: str) -> None:
        action: Callable[[str], None] = getattr(self, f"do_{command.name}")
        action(argument)

    def say(self, text: str = "") -> None:
        self.out.write(clean(text) + "\n")
        self.out.flush()

    def read(self, prompt: str) -> str | None:
        """One message: a line, lines joined by a backslash at their end, or a paste."""
        lines: list[str] = []
        while True:
            line = self._line(prompt if not lines else "")
            if line is None:
                return "\n".join(lines) if lines else None
            joined = line.endswith("\\")
            lines.append(line[:-1] if joined else line)
            if not joined and not self._more_is_waiting():
                return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        if self.interactive and self.source is sys.stdin:
            try:
                return input(prompt)
            except EOFError:
                return None
        if self.interactive:
            self.out.write(prompt)
            self.out.flush()
        line = self.source.readline()
        return line.rstrip("\r\n") if line else None

    def _more_is_waiting(self) -> bool:
        if not self.interactive or os.name != "posix":
            return False
        try:
            return bool(select.select([self.source], [], [], _PASTE_SECONDS)[0])
        except (OSError, ValueError):
            return False

    # -- asking --------------------------------------------------------------------------------

    def _open_model(self, name_or_path: str | None) -> None:
        try:
            model = self.session.open_model(name_or_path)
        except (SelmError, ValueError) as error:
            self.failed = True
            kept = self.session.model
            self.say(f"Error: {error}" + (f"\nStill using {kept.name}." if kept else ""))
            return
        self.session.use_model(model)
        threading.Thread(target=self.session.hash_model, daemon=True, name="hash").start()
        if self.interactive:
            self.say(f"Model: {clean_line(model.name)}, {model.context:,} tokens of context.")
        for wrong in model.problems:
            self.say(wrong)
        if problem := self.session.experts.missing():
            self.failed = True
            self.say(f"Error: {problem}")

    def _ask(self, text: str) -> None:
        plan, drop = self._fitting(text)
        if plan is not None:
            question = self.session.ask(text)
            self._reply(question, self._without(question, drop) if drop else plan)
            if self.interactive:
                self._propose(text)

    def _ask_again(self, question: Message) -> None:
        plan, drop = self._fitting(None)
        if plan is not None:
            self._reply(question, self._without(question, drop) if drop else plan)

    def _without(self, question: Message, drop: int) -> Plan:
        self.session.leave_out(question, drop)
        self.say(f"Note: the oldest {amount(drop, 'turn')} are no longer sent to the model.")
        return self.session.plan(self.session.path)

    def _fitting(self, text: str | None) -> tuple[Plan | None, int]:
        """A plan that fits, or one with turns to leave out, or None where the user gives up."""
        from selm_edge.chat.overflow import larger_context

        while True:
            plan = self.session.plan(self.session.path, text)
            overflow, model = plan.overflow, self.session.model
            if overflow is None or model is None:
                return plan, 0
            words = overflow_words(overflow)
            if not self.interactive:
                raise ValueError(f"{words} Nothing was sent.")
            larger = larger_context(overflow, model.trained_context)
            choices = {}
            if overflow.drop is not None:
                choices["drop"] = f"leave out the oldest {amount(overflow.drop, 'turn')}"
                if text is not None:
                    choices["new"] = "ask it in a new conversation"
            if larger is not None:
                choices["larger"] = f"open the model with room for {larger:,} tokens"
            self.say(words)
            choice = self._choose(choices)
            if choice == "drop" and overflow.drop is not None:
                return plan, overflow.drop
            if choice == "new":
                self.session.new()
            elif choice == "larger" and larger is not None:
                self.session.use_model(self.session.open_model(model.spec, larger))
            else:
                return None, 0

    def _choose(self, choices: dict[str, str]) -> str | None:
        names = list(choices)
        for number, words in enumerate(choices.values(), 1):
            self.say(f"{number}: {words}")
        answer = (self.read("Number, or Enter to go back: ") or "").strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        return None

    def _reply(self, question: Message, plan: Plan) -> None:
        for notice in plan.notices:
            self.say(f"Note: {notice.message}")
        reply = self.replying = self.session.reply(plan)
        try:
            failure = self.stream(reply)
            if reply.text or failure is None:
                self.session.keep(question, reply)
        finally:
            self.replying = None
        self.out.write("\n")
        self.out.flush()
        if failure is not None:
            raise SelmError(f"the reply broke off: {failure}") from failure
        if reply.finish_reason in ENDINGS:
            self.say(f"Note: {ENDINGS[reply.finish_reason]}.")
        if self.interactive and plan.recalled:
            self.say("Sources: " + "; ".join(map(source_words, plan.recalled)))

    def stream(self, reply: Reply, name: str = "Assistant") -> BaseException | None:
        """Write the pieces as they come; Ctrl+C stops the compute at once and keeps them."""
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()

        def work() -> None:
            try:
                for piece in reply:
                    pieces.put(piece)
            except BaseException as error:
                pieces.put(error)
            else:
                pieces.put(None)

        threading.Thread(target=work, daemon=True, name="reply").start()
        gone: OSError | None = None
        piece: str | BaseException | None = f"{name}: " if self.interactive else ""
        while isinstance(piece, str):
            try:
                if gone is None:
                    self.out.write(piece)
                    self.out.flush()
                piece = pieces.get()
            except KeyboardInterrupt:
                reply.cancel()
                piece = ""
            except OSError as error:  # nobody reads any more; what there is, is kept
                reply.cancel()
                gone, piece = error, ""
        return piece or gone

    # -- conversations -------------------------------------------------------------------------

    def do_new(self, argument: str) -> None:
        self.session.new()
        self.say("New conversation.")

    def do_conversations(self, argument: str) -> None:
        self._show([(found, "") for found in self.session.store.conversations.recent(50)])

    def do_search(self, words: str) -> None:
        hits = self.session.store.conversations.search(words, 50)
        self._show([(hit.conversation, hit.snippet) for hit in hits])

    def _show(self, found: list[tuple[Conversation, str]]) -> None:
        self._listed = [conversation.id for conversation, _ in found]
        if not found:
            self.say("No conversations.")
        for number, (conversation, snippet) in enumerate(found, 1):
            facts = f"{amount(conversation.turns, 'turn')}, {ago(conversation.updated)}"
            end = f": {clean_line(snippet)}" if snippet else ""
            self.say(f"{number}: {clean_line(conversation.title)} ({facts}){end}")

    def do_open(self, number: str) -> None:
        if not self._listed:
            self._listed = [c.id for c in self.session.store.conversations.recent(50)]
        if not number.isdecimal() or not 1 <= int(number) <= len(self._listed):
            raise ValueError(f"give a number of the list, 1 to {len(self._listed)}")
        self.session.open(self._listed[int(number) - 1])
        self._transcript()

    def _transcript(self) -> None:
        conversation = self.session.conversation
        self.say(f"Conversation: {clean_line(conversation.title) if conversation else ''}")
        first = self.session.sent(self.session.path)[:1]
        for turn in self.session.path:
            if first and turn.id == first[0].id and turn is not self.session.path[0]:
                self.say("Note: turns above are no longer sent to the model.")
            versions = self.session.versions.get(turn.id, [])
            place = f" (version {versions.index(turn.id) + 1} of {len(versions)})"
            who = "You" if turn.role == "user" else "Assistant"
            self.say(f"{who}{place if len(versions) > 1 else ''}: {turn.text}")

    def _current(self) -> int:
        if self.session.conversation is None:
            raise ValueError("there is no conversation yet: ask something first")
        return self.session.conversation.id

    def do_rename(self, title: str) -> None:
        self.session.rename(self._current(), title)
        self.say(f"Title: {clean_line(title)}")

    def do_delete(self, argument: str) -> None:
        key = self._current()
        rows = self.session.store.feedback.count(key)
        given = f" and {amount(rows, 'piece')} of feedback given in it" if rows else ""
        if argument != "yes":
            self.say(f"This deletes the conversation{given} for ever.")
            if (self.read("Write yes to delete: ") or "").strip() != "yes":
                self.say("Kept.")
                return
        gone = self.session.delete(key)
        later = "" if gone else " Its bytes leave the disk when the other window closes."
        self.say(f"Deleted.{later}")

    def do_export(self, path: str) -> None:
        self._current()
        target = spoken_path(path) if path else free_path(Path.cwd() / self.session.export_name())
        self.say(f"Written: {self.session.export(target)}")

    # -- turns ---------------------------------------------------------------------------------

    def _last_reply(self) -> Message:
        reply = self.session.last_reply
        if reply is None:
            raise ValueError("there is no reply yet")
        return reply

    def do_regenerate(self, argument: str) -> None:
        if not self.session.path:
            raise ValueError("there is nothing to reply to yet")
        self.session.reply_again(self.session.path[-1])
        self._ask_again(self.session.path[-1])

    def do_edit(self, text: str) -> None:
        question = self.session.last_question
        if question is None:
            raise ValueError("there is no question yet")
        text = text or self._lines(f"Your question was: {question.text}")
        if text:
            self._ask_again(self.session.edit(question, text))

    def do_previous(self, argument: str) -> None:
        self._switch(-1)

    def do_next(self, argument: str) -> None:
        self._switch(+1)

    def _switch(self, step: int) -> None:
        """Another version of the last turn that has versions."""
        for turn in reversed(self.session.path):
            if len(self.session.versions.get(turn.id, [])) > 1:
                if not self.session.switch(turn, step):
                    raise ValueError("there is no version further that way")
                self._transcript()
                return
        raise ValueError("no turn has another version; /edit and /regenerate make them")

    def do_good(self, argument: str) -> None:
        stands = self.session.feedback.rate(self._last_reply(), "up")
        self.say(f"Good reply. {self.session.feedback.kept_words}" if stands else "Taken back.")

    def do_bad(self, argument: str) -> None:
        stands = self.session.feedback.rate(self._last_reply(), "down")
        more = " /correct lets you write the better reply."
        self.say(
            f"Bad reply. {self.session.feedback.kept_words}{more}" if stands else "Taken back."
        )

    def do_correct(self, text: str) -> None:
        reply = self._last_reply()
        text = text or self._lines(f"The reply was: {reply.text}")
        if text:
            feedback = self.session.feedback
            feedback.correct(reply, text)
            self.say(f"Your correction is kept; the talk goes on with it. {feedback.kept_words}")

    def do_stats(self, argument: str) -> None:
        from selm_edge.chat.stats import ChatStats, lines_of

        if argument not in ("", "fluency"):
            raise ValueError("statistics of what? /stats, or /stats fluency")
        stats = ChatStats(self.session)
        found = stats.report(lambda: False)
        if argument:
            self.say("Fluency is measured. Control C shows what there is.")
            found = stats.with_fluency(found, lambda: False, lambda *_: None)
        for line in lines_of(found):
            self.say(line)

    def do_compare(self, how: str) -> None:
        from selm_edge.chat.plain_compare import compare

        compare(self, self._last_reply(), how)

    def _lines(self, before: str) -> str:
        self.say(before)
        self.say("Write the new text; a line with only a full stop ends it.")
        lines: list[str] = []
        while (line := self._line("")) is not None and line != ".":
            lines.append(line)
        return "\n".join(lines).strip()

    def do_copy(self, argument: str) -> None:
        what, _, path = argument.partition(" ")
        text = self.session.text_of(what)
        if path.strip():
            self.say(f"Written: {write_new(spoken_path(path), text + chr(10))}")
        elif self.interactive and os.environ.get("TERM", "dumb") not in ("", "dumb"):
            import base64

            code = base64.b64encode(text.encode()).decode()
            self.out.write(f"\x1b]52;c;{code}\a")
            self.say("Copied, where the terminal allows it.")
        else:
            raise ValueError("this terminal has no clipboard; give a file: /copy last FILE")

    # -- memory --------------------------------------------------------------------------------

    def do_remember(self, text: str) -> None:
        text = text or self._lines("What should be remembered?")
        if text:
            self._remember(text)

    def _remember(self, text: str, corrects: Sequence[int] = ()) -> None:
        memory = self.session.memory
        added = memory.remember(text, corrects=corrects)
        if added.outcome == "near":
            self.say("Something like it is remembered:")
            choices = {str(one.id): f"put it in place of: {clean_line(one.text)}"
                       for one in added.near}  # fmt: skip
            choice = self._choose({**choices, "both": "keep both"})
            if choice is None:
                self.say("Nothing was changed.")
                return
            added = memory.decided(text, choice)
        self.say(memory.kept_words(added))

    def _propose(self, text: str) -> None:
        """Ask whether what the user said of themselves is to be kept."""
        for proposal in self.session.memory.proposals(text):
            self.say(f"Remember “{clean_line(proposal.text)}”?")
            answer = (self.read("y keeps it, Enter does not: ") or "").strip().lower()
            if answer in ("y", "yes"):
                corrected = self.session.memory.corrected_by(proposal)
                if corrected:
                    self.say(f"It takes the place of: {clean_line(corrected[0].text)}")
                self._remember(proposal.text, [one.id for one in corrected])

    def do_memory(self, argument: str) -> None:
        memory = self.session.memory
        if argument in ("on", "off"):
            self.say(memory.switch(argument == "on"))
            return
        found = memory.search(argument)
        if not found:
            self.say("Nothing found." if argument else "Nothing is remembered yet.")
        for source in found:
            self.say(f"{source.memory.id}: {source_words(source)}")
        if not argument:
            state = "on" if memory.on else "off"
            self.say(f"Recall is {state} in this conversation; the space is {memory.space_name}.")
            self.say("/memory WORDS searches, /memory on and /memory off switch, /forget deletes.")

    def do_sources(self, argument: str) -> None:
        sources = self.session.memory.sources(self._last_reply())
        if not sources:
            self.say("This reply was made without anything from memory.")
        for source in sources:
            self.say(source_words(source, whole=True))

    def do_forget(self, words: str) -> None:
        if not words:
            raise ValueError("forget what? /forget WORDS, or /forget NUMBER of /memory")
        memory = self.session.memory
        if words.isdecimal():
            chosen: int | None = memory.memories.get(int(words)).id
        else:
            found = memory.search(words)[:9]
            if not found:
                raise ValueError("nothing that is remembered matches these words")
            choice = self._choose({str(s.memory.id): source_words(s) for s in found})
            chosen = int(choice) if choice else None
        if chosen is None:
            self.say("Kept.")
            return
        gone = memory.forget([chosen])
        later = "" if gone else " Its bytes leave the disk when the other window closes."
        self.say(f"Forgotten.{later}")

    def do_space(self, name: str) -> None:
        if name:
            self.say(self.session.memory.enter(name))
            return
        for space in self.session.memory.memories.spaces():
            here = ", here" if space.id == self.session.memory.space else ""
            self.say(f"{clean_line(space.name)}: {amount(space.memories, 'memory')}{here}")

    # -- model and settings --------------------------------------------------------------------

    def do_model(self, name_or_path: str) -> None:
        if name_or_path:
            before = self.session.model
            self._open_model(name_or_path)
            if self.session.model is not None and self.session.model is not before:
                self.session.preferences.change(model=self.session.model.spec)
            return
        current = self.session.model
        for choice in self.session.models.choices():
            here = ", in use" if current and current.path == choice.path else ""
            problem = f" ({choice.problem})" if choice.problem else ""
            self.say(f"{clean_line(choice.name)}{here}{problem}")
        self.say("/model NAME or /model PATH opens one.")

    def do_settings(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name:
            self.say(self.session.change_setting(name, value.strip()))
            return
        for key, now in vars(self.session.sampling).items():
            if key != "logit_bias":
                self.say(f"{key}: {'new for each reply' if now is None else now}")
        self.say(f"max_tokens: {self.session.max_tokens}")
        self.say(f"context: {self.session.preferences.config.context}")
        self.say("/set NAME VALUE changes one; /set NAME default takes it back.")

    def do_system(self, text: str) -> None:
        if text:
            self.session.set_system(text)
            self.say("The system prompt holds from the next question on.")
        else:
            self.say(f"System prompt: {self.session.system or 'none'}")

    def do_adapter(self, words: str) -> None:
        self.say(self.session.adapters.change(words))

    def do_expert(self, name: str) -> None:
        self.say(self.session.experts.choose(name) if name else self.session.experts.words())

    def do_theme(self, argument: str) -> None:
        self.say("There are no colours here.")

    def do_colours(self, argument: str) -> None:
        self.do_theme(argument)

    def do_help(self, argument: str) -> None:
        for command in COMMANDS:
            if command.slash and command.name not in ("theme", "colours"):
                usage = f"/{command.slash} {command.argument}".rstrip()
                self.say(f"{usage}: {command.help}")
        self.say("A backslash at the end of a line goes on on the next. Control C stops a reply.")


def run_plain(session: ChatSession, model: str | None = None) -> int:
    """The plain chat on this process's input and output, until the user leaves."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  line editing and history for input()
    chat = PlainChat(session, sys.stdin, sys.stdout, interactive=interactive)
    if os.name == "posix":
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, chat.leave)
    try:
        return chat.run(model)
    except KeyboardInterrupt:  # while a model was opened
        return 130
    finally:
        session.close()
