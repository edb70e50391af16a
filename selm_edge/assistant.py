"""From a conversation to a reply, with no user interface.

An `Assistant` holds an open model. `plan` says what would be sent and whether
it fits; when it does not, `Overflow` says which turns would have to stay out, and the caller asks
its user. Nothing is ever left out silently. `reply` streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from selm_edge.backends.base import Draft, GenerationStats, Sampling
from selm_edge.clean import Cleaner
from selm_edge.errors import ContextError
from selm_edge.trimming import cut_points, first_that_fits, reply_room

if TYPE_CHECKING:
    from selm_edge import reply
    from selm_edge.model import Model
    from selm_edge.reply import Prompt
    from selm_edge.templates import Notice

Turn = Mapping[str, str]
"""``{"role": "user" | "assistant", "content": text}``"""


@dataclass(frozen=True)
class Overflow:
    """The prompt and room for a reply need ``needed`` tokens of ``context``.

    ``drop`` is how many of the oldest turns must stay out for the rest to fit; None where even the
    last question alone does not.
    """

    needed: int
    context: int
    drop: int | None


@dataclass(frozen=True)
class Plan:
    """What would be sent: ``turns`` with the system prompt in front, ``tokens`` long.

    ``prompt`` is None where the turns do not fit at all.
    """

    turns: Sequence[Turn]
    tokens: int
    context: int
    prompt: Prompt | None
    overflow: Overflow | None = None
    recalled: Sequence[Any] = ()
    """What stands before the last question, for who planned it: the chat's sources."""
    assistant: Assistant | None = field(default=None, compare=False, repr=False)
    """Who made it: the token ids mean something else to another model."""

    @property
    def notices(self) -> Sequence[Notice]:
        return self.prompt.notices if self.prompt else ()


class Assistant:
    """One model answering. A longer chat only adds its new turns: the model keeps the rest."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def context(self) -> int:
        """Positions for prompt and reply together."""
        return self.model.context

    @property
    def room(self) -> int:
        """Tokens kept free for a reply."""
        return reply_room(self.context)

    def plan(self, turns: Sequence[Turn], system: str | None = None) -> Plan:
        """Count what sending ``turns`` would take; the last of them is the question."""
        messages = _with_system(turns, system)
        tokens, prompt = self._count(messages)
        overflow = None
        if tokens + self.room > self.context:
            drop = self._fewest_to_drop(turns, system)
            overflow = Overflow(tokens + self.room, self.context, drop)
        return Plan(messages, tokens, self.context, prompt, overflow, assistant=self)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that stands inside a turn."""
        return len(self.model.tokenize(text, add_special=False))

    def text_of(self, plan: Plan) -> str | None:
        """The prompt exactly as the model reads it, control tokens written out."""
        return self.model.detokenize(plan.prompt.ids, special=True) if plan.prompt else None

    def _fewest_to_drop(self, turns: Sequence[Turn], system: str | None) -> int | None:
        def fits(cut: int) -> bool:
            tokens, _ = self._count(_with_system(turns[cut:], system))
            return tokens + self.room <= self.context

        cuts = cut_points([turn["role"] for turn in turns])
        fewest = first_that_fits(cuts, fits)
        return cuts[fewest] if fewest < len(cuts) else None

    def _count(self, messages: Sequence[Turn]) -> tuple[int, Prompt | None]:
        try:
            prompt = self.model.chat_prompt(messages)
        except ContextError as error:
            return error.needed, None
        return len(prompt), prompt

    def reply(
        self,
        plan: Plan,
        sampling: Sampling,
        *,
        max_tokens: int | None = None,
        draft: Draft = "auto",
        expert: str | None = None,
    ) -> Reply:
        """Begin the reply to a ``plan`` of this assistant; ContextError where it does not fit."""
        if plan.assistant not in (None, self):
            raise ValueError("this was planned for another model: plan it again")
        if plan.prompt is None:
            raise ContextError(plan.tokens, plan.context - 1)
        made = self.model.generate(
            plan.prompt, max_tokens=max_tokens, sampling=sampling, draft=draft, expert=expert
        )
        return Reply(made, plan)

    def close(self) -> None:
        """Free the model."""
        self.model.close()


class Reply:
    """A reply being made: iterate for pieces that are safe to show; `cancel` from any thread.

    ``runs`` is the text by the expert that spoke it, None where the model has no experts.
    """

    def __init__(self, made: reply.Reply, plan: Plan) -> None:
        self.plan = plan
        self.text = ""
        self.runs: list[tuple[str | None, str]] = []
        self._made = made
        self._cancelled = False

    @property
    def stats(self) -> GenerationStats:
        return self._made.stats

    @property
    def sampling(self) -> Sampling:
        """With the seed that was drawn."""
        return self._made.sampling

    @property
    def finish_reason(self) -> str:
        return self.stats.finish_reason or ("cancelled" if self._cancelled else "error")

    def __iter__(self) -> Iterator[str]:
        cleaner = Cleaner()
        try:
            for piece in self._made:
                if shown := cleaner.feed(piece):
                    self._add(shown)
                    yield shown
            if rest := cleaner.finish():
                self._add(rest)
                yield rest
        finally:
            self._made.close()

    def _add(self, text: str) -> None:
        self.text += text
        speaker = self._made.speaker
        if self.runs and self.runs[-1][0] == speaker:
            self.runs[-1] = (speaker, self.runs[-1][1] + text)
        else:
            self.runs.append((speaker, text))

    def cancel(self) -> None:
        """Stop the compute; the text so far stays."""
        self._cancelled = True
        self._made.cancel()


def _with_system(turns: Sequence[Turn], system: str | None) -> list[Turn]:
    head: list[Turn] = [{"role": "system", "content": system}] if system else []
    return [*head, *turns]


def sampling_to_dict(sampling: Sampling) -> dict[str, Any]:
    """As stored with a reply: plain values, the seed apart."""
    values = asdict(sampling)
    values["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    del values["seed"]
    return values
