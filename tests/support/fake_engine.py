"""A scripted engine that speaks the protocol of `selm_edge.backends.base`, for tests.

It needs no core and no file.
It is not a model: replies come from a script, one word a token. What the runtime must get right
around an engine is real: prompts count against the context, stop strings end a reply and are not
part of it, `cancel` works from another thread in the middle of a reply, a deadline ends one, the
session remembers its tokens so that prefix reuse can be checked.

    engine = FakeEngine(["Hello there.", "Second reply."], delay=0.01)
    model = Model(engine)                     # selm_edge.model.Model
    backend = FakeBackend(engine)             # load(path) gives the engine, whatever the path

The script is a list (the replies in turn, the last one again when it runs out) or a function from
the prompt's text to the reply.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence

from selm_edge.backends.base import (
    Constraint,
    Draft,
    GenerationStats,
    LogitRows,
    MetadataValue,
    Sampling,
)
from selm_edge.errors import ContextError, ModelError, SelmError

Script = Sequence[str] | Callable[[str], str]

_SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
_CUTS = re.compile("(" + "|".join(map(re.escape, _SPECIAL)) + ")")
_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
BOS, EOS, EOT = 0, 1, 3


class FakeTokenizer:
    """One word (with the space before it) is one token; ids in the order of first appearance."""

    vocab_size = 4096

    def __init__(self, *, add_bos: bool = False) -> None:
        self.add_bos = add_bos
        self._texts: list[str] = list(_SPECIAL)
        self._ids: dict[str, int] = {text: i for i, text in enumerate(_SPECIAL)}
        self._lock = threading.Lock()

    @property
    def bos(self) -> int | None:
        return BOS

    @property
    def eos(self) -> int | None:
        return EOS

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        ids = [BOS] if add_special and self.add_bos else []
        for part in _CUTS.split(text) if parse_special else [text]:
            words = [part] if part in _SPECIAL else _WORDS.findall(part)
            ids += [self._id(word) for word in words]
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return "".join(self._texts[i] for i in ids if special or i >= len(_SPECIAL))

    def token_text(self, token: int) -> str:
        return self._texts[token]

    def control_tokens(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(_SPECIAL)}

    def is_end(self, token: int) -> bool:
        return token in (EOS, EOT)

    def _id(self, word: str) -> int:
        with self._lock:
            if word not in self._ids:
                assert len(self._texts) < self.vocab_size, "the fake vocabulary is full"
                self._ids[word] = len(self._texts)
                self._texts.append(word)
            return self._ids[word]


class FakeStream:
    """A reply being made, a word at a time."""

    def __init__(
        self,
        session: FakeSession,
        prompt: Sequence[int],
        reply: str,
        *,
        max_tokens: int | None,
        stop: Sequence[str],
        deadline: float | None,
        cached: int,
        draft: Draft = "auto",
        expert: str | None = None,
    ) -> None:
        self._session = session
        self._draft = draft
        self._expert = expert
        self.speaker: str | None = None
        self._stats = GenerationStats(prompt_tokens=len(prompt), cached_tokens=cached)
        self._limit = max_tokens
        self._ends = time.monotonic() + deadline if deadline is not None else None
        cut = min((at for s in stop if (at := reply.find(s)) >= 0), default=len(reply))
        self._words = session.engine.tokenizer.encode(reply[:cut], add_special=False)
        self._started = time.monotonic()

    @property
    def stats(self) -> GenerationStats:
        return self._stats

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        stats, session = self._stats, self._session
        if stats.finish_reason is not None:
            raise StopIteration
        wait = session.engine.first_delay if stats.tokens == 0 else session.engine.delay
        cancelled = session.cancelled.wait(wait) if wait else session.cancelled.is_set()
        if cancelled:
            stats.finish_reason = "cancelled"
        elif self._ends is not None and time.monotonic() >= self._ends:
            stats.finish_reason = "deadline"
        elif stats.tokens >= len(self._words):
            stats.finish_reason = "stop"
        elif self._limit is not None and stats.tokens >= self._limit:
            stats.finish_reason = "length"
        elif session.position >= session.engine.context:
            stats.finish_reason = "context"
        if stats.finish_reason is not None:
            session.cancelled.clear()
            session.busy = False
            raise StopIteration
        token = self._words[stats.tokens]
        session.tokens.append(token)
        self._note(stats, session.engine)
        stats.tokens += 1
        now = time.monotonic()
        if stats.tokens == 1:
            stats.time_to_first_token = stats.prompt_seconds = now - self._started
        stats.decode_steps = stats.tokens - 1
        stats.decode_seconds = max(1e-6, now - self._started - stats.prompt_seconds)
        return session.engine.tokenizer.decode([token], special=True)

    def _note(self, stats: GenerationStats, engine: FakeEngine) -> None:
        """Experts take turns, some words each; three in five guesses are right."""
        if engine.experts:
            turn = stats.tokens // engine.words_each % len(engine.experts)
            self.speaker = name = self._expert or engine.experts[turn]
            stats.experts = {**stats.experts, name: stats.experts.get(name, 0) + 1}
        if engine.drafts and self._draft != "off":
            stats.drafted = stats.tokens
            stats.accepted = stats.tokens * 3 // 5
        stats.mean_layers = engine.mean_layers

    def cancel(self) -> None:
        if self._stats.finish_reason is None:
            self._session.cancelled.set()

    def close(self) -> None:
        if self._stats.finish_reason is None:
            self._stats.finish_reason = "cancelled"
            self._session.busy = False
            self._session.cancelled.clear()


class FakeSession:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.tokens: list[int] = []
        self.cancelled = threading.Event()
        self.busy = False
        self.closed = False

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def state_bytes(self) -> int:
        return 16 * len(self.tokens)

    def eval(self, ids: Sequence[int], logits: LogitRows = "all") -> memoryview:
        """Logits that favour the token after each one: the row of token t peaks at t + 1."""
        if self.position + len(ids) > self.engine.context:
            raise ContextError(len(ids), self.engine.context - self.position)
        self.tokens += ids
        vocab = self.engine.tokenizer.vocab_size
        asked = list(ids) if logits == "all" else list(ids)[-1:] if logits == "last" else []
        values = array("f", bytes(4 * vocab * len(asked)))
        for row, token in enumerate(asked):
            values[row * vocab + (token + 1) % vocab] = 1.0
        if not asked:
            return memoryview(values)
        return memoryview(values.tobytes()).cast("f", (len(asked), vocab))

    def truncate(self, length: int) -> int:
        del self.tokens[length:]
        return self.position

    def cancel(self) -> None:
        self.cancelled.set()

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int | None,
        stop: Sequence[str],
        deadline: float | None,
        draft: Draft = "auto",
        expert: str | None = None,
        constraint: Constraint | None = None,
    ) -> FakeStream:
        if constraint is not None:
            raise SelmError("the fake engine holds no reply to anything")
        if expert is not None and expert not in self.engine.experts:
            raise SelmError(f"the model has no expert {expert!r}")
        if len(prompt) >= self.engine.context:
            raise ContextError(len(prompt), self.engine.context - 1)
        same = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(self.tokens, prompt, strict=False)
        )
        cached = min(sum(1 for _ in same), len(prompt) - 1)
        self.tokens = list(prompt)
        self.busy = True
        text = self.engine.tokenizer.decode(prompt, special=True)
        self.engine.prompts.append(text)
        self.engine.samplings.append(sampling)
        self.engine.asked.append((draft, expert))
        return FakeStream(
            self,
            prompt,
            self.engine.reply_to(text),
            max_tokens=max_tokens,
            stop=stop,
            deadline=deadline,
            cached=max(0, cached),
            draft=draft,
            expert=expert,
        )

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    """See the module's text. `prompts`, `samplings` and `asked` (draft, expert) record what was
    asked for, in order.

    delay: seconds before each word (slow motion); first_delay: before the first one (defaults to
    `delay`); experts: their names, who speak `words_each` words in turn; drafts: whether words are
    guessed ahead; mean_layers: what the figures say.
    """

    name = "fake"

    def __init__(
        self,
        replies: Script = ("Hello from the fake engine.",),
        *,
        delay: float = 0.0,
        first_delay: float | None = None,
        context: int = 4096,
        metadata: Mapping[str, MetadataValue] | None = None,
        add_bos: bool = False,
        experts: Sequence[str] = (),
        words_each: int = 6,
        drafts: bool = False,
        mean_layers: float | None = None,
    ) -> None:
        self.replies = replies
        self.experts = list(experts)
        self.words_each = words_each
        self.drafts = drafts
        self.mean_layers = mean_layers
        self.asked: list[tuple[Draft, str | None]] = []
        self.delay = delay
        self.first_delay = delay if first_delay is None else first_delay
        self.context = context
        self.threads = 1
        self.metadata: Mapping[str, MetadataValue] = {
            "general.architecture": "fake",
            "general.name": "Fake",
            **({"selm.expert.names": self.experts} if experts else {}),
            **(metadata or {}),
        }
        self.tokenizer = FakeTokenizer(add_bos=add_bos)
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.sessions: list[FakeSession] = []
        self.closed = False
        self._turn = 0

    def reply_to(self, prompt: str) -> str:
        if callable(self.replies):
            return self.replies(prompt)
        reply = self.replies[min(self._turn, len(self.replies) - 1)]
        self._turn += 1
        return reply

    def session(self) -> FakeSession:
        self.sessions.append(FakeSession(self))
        return self.sessions[-1]

    def embed(self, ids: Sequence[int]) -> list[float]:
        """A unit vector of 8 numbers that depends on the tokens alone."""
        vector = [1.0 + sum(i * (k + 1) % 7 for i in ids) for k in range(8)]
        norm = sum(x * x for x in vector) ** 0.5
        return [x / norm for x in vector]

    def close(self) -> None:
        self.closed = True


class FakeBackend:
    """`load` gives `engine` for any path that exists (or any path, with `strict=False`)."""

    name = "fake"

    def __init__(
        self, engine: FakeEngine | None = None, *, load_delay: float = 0.0, strict: bool = False
    ) -> None:
        self.engine = engine or FakeEngine()
        self.load_delay = load_delay
        self.strict = strict
        self.loaded: list[str] = []

    def available(self) -> str | None:
        return None

    def load(self, path: str, *, threads: int | None = None, context: int = 4096) -> FakeEngine:
        if self.strict:
            from pathlib import Path

            if not Path(path).is_file():
                raise ModelError(path, "no such file")
        time.sleep(self.load_delay)
        self.loaded.append(path)
        return self.engine
