"""One talk between a person and a model: every action of the chat, with no user interface.

Both the Textual app and the plain mode are faces of this. Nothing here is slow but opening a model
and iterating a `Reply`; both may run in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selm_edge.backends.base import SAMPLING_RANGES, Sampling
from selm_edge.chat.adapters import ChatAdapters
from selm_edge.chat.compare import ChatCompare
from selm_edge.chat.experts import Experts, Spoken, trace_of
from selm_edge.chat.feedback import ChatFeedback, is_correction
from selm_edge.chat.judging import ChatJudging
from selm_edge.chat.memory import ChatMemory
from selm_edge.chat.models import ModelSource, OpenModel, file_sha256
from selm_edge.chat.preferences import Preferences
from selm_edge.errors import SelmError
from selm_edge.feedback.log import Kind
from selm_edge.store.conversations import Conversation, Message, ReplyFacts
from selm_edge.store.errors import NotFound, StoreError

if TYPE_CHECKING:
    from selm_edge.assistant import Plan, Reply
    from selm_edge.backends.base import Draft
    from selm_edge.store.opening import Store

T = TypeVar("T")
DEFAULT_MAX_TOKENS = 1024
"""A small model that cannot find an end should not write for minutes."""


class NoModel(SelmError):
    """A reply was asked for while no model is open."""


class ChatSession:
    """The conversation on show, its model and its settings.

    ``path`` is the branch on show; ``conversation`` is None until the first question, so an empty
    conversation is never stored. ``on_problem`` hears when the disk stops taking writes. ``draft``
    is for `Model.generate`; it and the choice of an expert hold until the chat ends.
    """

    def __init__(
        self,
        store: Store,
        models: ModelSource,
        preferences: Preferences,
        *,
        on_problem: Callable[[StoreError], None] | None = None,
    ) -> None:
        self.store = store
        self.models = models
        self.preferences = preferences
        self.on_problem = on_problem
        self.model: OpenModel | None = None
        self.conversation: Conversation | None = None
        self.path: list[Message] = []
        self.versions: dict[int, list[int]] = {}
        self.marks: dict[int, set[Kind]] = {}
        self.draft: Draft = "auto"
        self.experts = Experts()
        self.memory = ChatMemory(self)
        self.feedback = ChatFeedback(self)
        self.adapters = ChatAdapters(self)
        self.compare = ChatCompare(self)
        self.judging = ChatJudging(self)

    # -- conversations -------------------------------------------------------------------------

    def new(self) -> None:
        """An empty page; the conversation is stored with its first question."""
        self.conversation = None
        self.path, self.versions, self.marks = [], {}, {}

    def open(self, conversation: int) -> None:
        self.conversation = self.store.conversations.get(conversation)
        self._reload()

    def rename(self, conversation: int, title: str) -> None:
        self.saving(lambda: self.store.conversations.rename(conversation, title))
        if self.conversation and self.conversation.id == conversation:
            self._reload()

    def delete(self, conversation: int, *, keep_feedback: bool = False) -> bool:
        """Delete for real; True when no byte is left on the disk already."""
        gone = self.saving(
            lambda: self.store.conversations.delete(conversation, keep_feedback=keep_feedback)
        )
        if self.conversation and self.conversation.id == conversation:
            self.new()
        return gone

    def export(self, path: Path, conversation: int | None = None) -> Path:
        """The one on show (or another) as Markdown, or as JSON where the name ends so.

        SelmError where the file exists.
        """
        from selm_edge.store.export import export

        if conversation is None:
            if self.conversation is None:
                raise NotFound("there is nothing to export yet")
            conversation = self.conversation.id
        return export(self.store.conversations, conversation, path)

    def export_name(self, suffix: str = ".md") -> str:
        from selm_edge.store.export import file_name

        return file_name(self.conversation, suffix) if self.conversation else f"chat{suffix}"

    def text_of(self, what: str) -> str:
        """What ``/copy`` copies: the ``last`` reply, its last ``code`` block, or ``all`` of it."""
        from selm_edge.chat.text import code_blocks
        from selm_edge.store.export import to_markdown

        if what == "all" and self.conversation is not None:
            return to_markdown(self.store.conversations, self.conversation.id)
        reply = self.last_reply
        if reply is None:
            raise NotFound("there is no reply yet")
        if what in ("", "last"):
            return reply.text
        if what != "code":
            raise ValueError("copy what? One of: last, code, all")
        blocks = code_blocks(reply.text)
        if not blocks:
            raise NotFound("the last reply has no code block")
        return blocks[-1]

    def _reload(self) -> None:
        if self.conversation is None:
            return
        conversations = self.store.conversations
        self.conversation = conversations.get(self.conversation.id)
        self.path = conversations.path(self.conversation.id)
        self.versions = conversations.sibling_table(self.path)
        self.marks = self.store.feedback.marks(self.conversation.id)

    def reload(self) -> None:
        """Read again what another process may have changed; a deleted one becomes a new page."""
        try:
            self._reload()
        except NotFound:
            self.new()

    # -- turns ---------------------------------------------------------------------------------

    @property
    def last_reply(self) -> Message | None:
        return next((turn for turn in reversed(self.path) if turn.role == "assistant"), None)

    @property
    def last_question(self) -> Message | None:
        return next((turn for turn in reversed(self.path) if turn.role == "user"), None)

    def turn(self, message: int) -> Message:
        """A turn of the branch on show."""
        for turn in self.path:
            if turn.id == message:
                return turn
        raise NotFound(f"turn {message} is not on show")

    def before(self, message: Message) -> list[Message]:
        """The turns of the branch on show that come before one of it, or a version of one."""
        ids = [turn.id for turn in self.path]
        return self.path[: ids.index(message.parent) + 1] if message.parent in ids else []

    def plan(self, path: Sequence[Message], question: str | None = None) -> Plan:
        """What would be sent after ``path``, with ``question`` as the last turn if given.

        A question without a reply yet gets what is remembered about it, as far as there is room.
        """
        if self.model is None:
            raise NoModel("no model is open")
        turns, known = self.memory.turns(self.sent(path))
        if question is not None:
            turns.append({"role": "user", "content": question})
        assistant = self.model.assistant
        plan = assistant.plan(turns, self.system)
        if not turns or turns[-1]["role"] != "user" or plan.overflow is not None:
            return plan
        asked = turns[-1]["content"]
        free = plan.context - plan.tokens - assistant.room
        found = self.memory.recall(asked, known, plan.context, free, assistant.count_tokens)
        if not found:
            return plan
        turns[-1] = {"role": "user", "content": self.memory.with_sources(found, asked)}
        return replace(assistant.plan(turns, self.system), recalled=found)

    def sent(self, path: Sequence[Message]) -> list[Message]:
        """The turns of ``path`` that the model still gets: from its last `context_from` on."""
        start = next((t.context_from for t in reversed(path) if t.context_from is not None), None)
        ids = [turn.id for turn in path]
        return list(path[ids.index(start) :]) if start in ids else list(path)

    def ask(self, text: str) -> Message:
        """Store a question at the end of the branch on show."""

        def store() -> Message:
            if self.conversation is None:
                # With the settings in force: a later change of the defaults leaves it alone.
                self.conversation = self.store.conversations.create(
                    system=self.system or "", sampling=dict(self._own_sampling)
                )
                self.memory.begin(self.conversation.id)
            parent = self.path[-1].id if self.path else None
            return self.store.conversations.add(self.conversation.id, parent, "user", text)

        message = self.saving(store)
        self._reload()
        return message

    def edit(self, message: Message, text: str) -> Message:
        """A question in other words: a sibling; the old branch stays and can be shown again."""
        added = self.saving(
            lambda: self.store.conversations.add(message.conversation, message.parent, "user", text)
        )
        self._reload()
        return added

    def reply_again(self, message: Message) -> None:
        """Make room for another reply beside this one, and record that it was asked for."""
        if message.role == "assistant":
            if not is_correction(message):  # the user's own text says nothing of the model
                self.feedback.keep("regeneration", message)
            end = message.parent
        else:
            end = message.id
        if end is not None:
            self.saving(lambda: self.store.conversations.show_end(end))
        self._reload()

    def switch(self, message: Message, step: int) -> bool:
        """Show the branch of the next (+1) or previous (-1) version; False at the end."""
        versions = self.versions.get(message.id, [message.id])
        at = versions.index(message.id) + step
        if not 0 <= at < len(versions):
            return False
        self.saving(lambda: self.store.conversations.show(versions[at]))
        self._reload()
        return True

    def leave_out(self, message: Message, turns: int) -> None:
        """From ``message`` on, the oldest ``turns`` of what is now sent stay out, visibly."""
        first = self.sent(self.path)[turns]
        self.saving(lambda: self.store.conversations.set_context_from(message.id, first.id))
        self._reload()

    def made(self, plan: Plan) -> bool:
        """Whether the model in use made this plan: another one's token ids mean nothing to it."""
        return self.model is not None and plan.assistant is self.model.assistant

    def reply(self, plan: Plan, seed: int | None = None) -> Reply:
        """Begin the reply to a plan; iterate it, then `keep` it. ``seed``: another than is set."""
        if self.model is None:
            raise NoModel("no model is open")
        return self.model.assistant.reply(
            plan,
            self.sampling if seed is None else replace(self.sampling, seed=seed),
            max_tokens=self.max_tokens,
            draft=self.draft,
            expert=self.experts.asked,
        )

    def keep(self, question: Message, reply: Reply) -> Message:
        """Store a reply, whole or partial, under its question."""
        facts = self.facts_of(reply)
        message = self.saving(
            lambda: self.store.conversations.add(
                question.conversation, question.id, "assistant", reply.text, facts=facts
            )
        )
        self._reload()
        return message

    def facts_of(self, reply: Reply) -> ReplyFacts:
        """How a reply was made, by the model as it is now."""
        stats = reply.stats
        return ReplyFacts(
            **self._model_facts(),
            sampling=_plain(reply.sampling),
            seed=reply.sampling.seed,
            prompt_tokens=stats.prompt_tokens or reply.plan.tokens,
            tokens=stats.tokens,
            tokens_per_second=round(stats.tokens_per_second, 2),
            finish_reason=reply.finish_reason,
            system=next((t["content"] for t in reply.plan.turns if t["role"] == "system"), ""),
            recalled=[
                {"memory": source.memory.id, "number": source.number}
                for source in reply.plan.recalled
            ],
            adapter=self.model.assistant.model.adapters or None if self.model else None,
            experts=trace_of(reply),
            entropy=_rounded(stats.mean_entropy),
            margin=_rounded(stats.mean_margin),
        )

    # -- settings ------------------------------------------------------------------------------

    @property
    def system(self) -> str | None:
        """The system prompt: the conversation's own, else the user's default."""
        own = self.conversation.system if self.conversation else None
        chosen = own if own is not None else self.preferences.config.system
        return chosen if chosen and chosen.strip() else None

    def set_system(self, text: str) -> None:
        """For this conversation if there is one, and for new ones."""
        if self.conversation is not None:
            key = self.conversation.id
            self.saving(lambda: self.store.conversations.set_system(key, text))
            self._reload()
        self.preferences.change(system=text.strip() or None)

    @property
    def sampling(self) -> Sampling:
        """What the user set, over what the open model recommends."""
        model = self.model.assistant.model if self.model else None
        return sampling_from(self._own_sampling, model.sampling if model else Sampling())

    @property
    def _own_sampling(self) -> Mapping[str, Any]:
        own = self.conversation.sampling if self.conversation else None
        return own if own is not None else self.preferences.config.sampling

    def set_sampling(self, changes: Mapping[str, Any]) -> None:
        """Change these for this conversation and for new ones; None is the model's own."""
        if self.conversation is not None:
            key, chosen = self.conversation.id, _with(self._own_sampling, changes)
            self.saving(lambda: self.store.conversations.set_sampling(key, chosen))
            self._reload()
        self.preferences.change(sampling=_with(self.preferences.config.sampling, changes))

    @property
    def max_tokens(self) -> int:
        """The longest reply, in tokens."""
        return self.preferences.config.max_tokens or DEFAULT_MAX_TOKENS

    @property
    def enter_sends(self) -> bool:
        """Whether Enter sends (and Ctrl+J begins a line), or the other way round."""
        return self.store.settings.get("enter_sends", True) is not False

    def set_enter_sends(self, on: bool) -> None:
        self.saving(lambda: self.store.settings.set("enter_sends", on))

    @property
    def colours(self) -> bool:
        """Whether replies are shown by who spoke which words."""
        return self.store.settings.get("colour_experts", False) is True

    def set_colours(self, on: bool) -> str:
        """What now holds, in words."""
        self.saving(lambda: self.store.settings.set("colour_experts", on))
        if not on:
            return "Replies are shown as Markdown."
        more = "" if self.experts.names else f" {self.experts.words()}"
        return f"Replies show which expert spoke.{more}"

    def coloured(self, message: Message) -> Spoken | None:
        """Who spoke a reply, where that is to be shown and known."""
        return self.experts.spoken(message) if self.colours else None

    def change_setting(self, name: str, text: str) -> str:
        """``/set NAME VALUE``: what now holds, in words. ValueError says what is possible."""
        from selm_edge.config import number_problem

        if name == "enter_sends":
            self.set_enter_sends(_yes(text))
            return f"Enter {'sends' if self.enter_sends else 'begins a line; Ctrl+J sends'}."
        if name == "colour_experts":
            return self.set_colours(_yes(text))
        if name == "share_feedback":
            return self.feedback.share(_yes(text))
        if name == "ask_feedback":
            return self.judging.switch(_yes(text))
        limit = name in ("context", "max_tokens")
        if not limit and name not in SAMPLING_RANGES:
            raise ValueError(
                f"there is no setting {name}; there are: {', '.join(SAMPLING_RANGES)},"
                " context, max_tokens, enter_sends, colour_experts, share_feedback,"
                " ask_feedback"
            )
        value = None if text in ("", "default") else _number(name, text)
        problem = None if value is None else number_problem(name, value)
        if problem:
            raise ValueError(problem)
        if limit:
            self.preferences.change(**{name: value})
            return self._limit_words(name)
        self.set_sampling({name: value})
        now = getattr(self.sampling, name)
        return f"{name} is {'drawn afresh for each reply' if now is None else now}."

    def _limit_words(self, name: str) -> str:
        if name == "max_tokens":
            return f"max_tokens is {self.max_tokens:,} tokens."
        size, model = self.preferences.config.context, self.model
        words = f"context is {size:,} tokens when a model is opened."
        if model is not None and model.trained_context and model.trained_context < size:
            words += f" {model.name} was trained for {model.trained_context:,} and reads no more."
        return words

    # -- models --------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What is wrong with the settings and the list of models, in sentences."""
        return [*self.preferences.config.problems, *self.models.problems()]

    def open_model(self, name_or_path: str | None, context: int | None = None) -> OpenModel:
        """Open a model (slow); the one in use stays until `use_model`. Raises ModelError."""
        config = self.preferences.config
        return self.models.open(name_or_path or config.model, context or config.context)

    def use_model(self, model: OpenModel) -> None:
        """Answer with this model from now on; the one before is closed."""
        before, self.model = self.model, model
        self.experts.model = model
        if before is not None:
            before.assistant.close()

    def hash_model(self) -> None:
        """Find the hash of the model's file (slow the first time: for a worker)."""
        model = self.model
        if model is not None and model.sha256 is None:
            with suppress(StoreError):  # nothing is lost without it
                model.sha256 = file_sha256(model.path, self.store.settings)

    def _model_facts(self) -> dict[str, str | None]:
        if self.model is None:
            return {}
        return {
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "template_id": self.model.template_id,
        }

    def close(self) -> None:
        if self.model is not None:
            self.model.assistant.close()
            self.model = self.experts.model = None
        self.store.close()

    # -- when the disk refuses -----------------------------------------------------------------

    def saving(self, write: Callable[[], T]) -> T:
        """Do a write; where the disk refuses, go on in memory, say so once, and do it there.

        A lock that another program holds is only reported: it passes.
        """
        try:
            return write()
        except StoreError as problem:
            if problem.cause == "busy" or not self.store.saving:
                raise
            self.stop_saving(problem)
            return write()

    def stop_saving(self, problem: StoreError) -> None:
        """Go on in memory with all that there is, and say so."""
        self.store.go_on_in_memory(problem)
        if self.on_problem is not None:
            self.on_problem(problem)


def sampling_from(values: Mapping[str, Any], sampling: Sampling) -> Sampling:
    """``sampling`` with stored values; what is unknown or of another type is left out."""
    known = {entry.name: getattr(sampling, entry.name) for entry in fields(Sampling)}
    good: dict[str, Any] = {}
    for name, value in values.items():
        if name == "logit_bias" and isinstance(value, Mapping):
            good[name] = {int(token): float(bias) for token, bias in value.items()}
        elif name == "seed" and isinstance(value, int):
            good[name] = value
        elif isinstance(known.get(name), float) and isinstance(value, int | float):
            good[name] = float(value)
        elif isinstance(known.get(name), int) and isinstance(value, int):
            good[name] = value
    return replace(sampling, **good)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _number(name: str, text: str) -> int | float:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise ValueError(f"{name}: {text!r} is not a number")


def _with(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def _yes(text: str) -> bool:
    if text.lower() in ("yes", "on", "true", "1"):
        return True
    if text.lower() in ("no", "off", "false", "0"):
        return False
    raise ValueError("say yes or no")


def _plain(sampling: Sampling) -> dict[str, Any]:
    from selm_edge.assistant import sampling_to_dict

    return sampling_to_dict(sampling)
