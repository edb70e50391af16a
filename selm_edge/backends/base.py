"""The one protocol that every engine serves, so chat, memory and feedback work on each.

A *backend* opens files (`Backend.load`); what it opens is an `Engine`. `selm_edge.model.Model`
wraps an Engine with what is the same for all: chat templates, overflow rules, convenience.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args, runtime_checkable

FinishReason = Literal["stop", "length", "context", "cancelled", "deadline"]
LogitRows = Literal["all", "last", "none"]
Draft = Literal["auto", "off", "exit", "lookup", "calibrated"]
"""How tokens may be guessed ahead and then verified: by `lookup` of where the last ones stood
before, through trained exits (`exit`), by both (`auto`), or not at all. Only the speed depends on
it."""
MetadataValue = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]

SAMPLING_RANGES: Mapping[str, tuple[type, float, float]] = {  # name: type, least, most
    "temperature": (float, 0.0, 100.0),
    "top_k": (int, 0, (1 << 31) - 1),
    "top_p": (float, 0.0, 1.0),
    "min_p": (float, 0.0, 1.0),
    "typical_p": (float, 0.0, 1.0),
    "repeat_penalty": (float, 0.01, 100.0),
    "frequency_penalty": (float, -100.0, 100.0),
    "presence_penalty": (float, -100.0, 100.0),
    "penalty_last_n": (int, 0, (1 << 31) - 1),
    "seed": (int, 0, (1 << 63) - 1),  # what SQLite can keep with a reply
}
MAX_TOKENS = (1 << 32) - 1
"""The most that a reply can be asked to have; what the core counts with."""


@dataclass(frozen=True)
class Constraint:
    """What a reply has to be: JSON that a schema accepts, or a text of a grammar (GBNF)."""

    kind: Literal["schema", "gbnf"]
    text: str


MAX_SECONDS = 1e6
"""The longest deadline."""
DRAFTS: tuple[Draft, ...] = get_args(Draft)


def range_problem(name: str, value: object, kind: type, least: float, most: float) -> str | None:
    """Why that is no number in the range (not-a-number is none), or None if it is one."""
    right = isinstance(value, Integral if kind is int else Real)
    if isinstance(value, bool) or not right or not least <= value <= most:  # type: ignore[operator]
        noun, form = ("whole number", "d") if kind is int else ("number", "g")
        return f"{name} is a {noun} from {least:{form}} to {most:{form}}"
    return None


def check_range(name: str, value: object, kind: type, least: float, most: float) -> None:
    """ValueError names what is out of its range, and the range."""
    problem = range_problem(name, value, kind, least, most)
    if problem is not None:
        raise ValueError(f"{problem}, not {value!r}")


RECOMMENDED = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "penalty_last_n",
}
"""GGUF keys in which a file says how its makers would sample from it, with our names of them."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    The order is: bias, penalties, top-k, typical, top-p, min-p, temperature.
    """

    temperature: float = 0.7
    """0 is greedy."""
    top_k: int = 40
    """0 turns it off."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    """None draws a fresh seed for each reply."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def recommended(cls, metadata: Mapping[str, MetadataValue]) -> Sampling:
        """What a file recommends, where it does so with a sane value; else the defaults."""
        found: dict[str, Any] = {}
        for key, name in RECOMMENDED.items():
            value = metadata.get(key)
            if value is not None and not range_problem(name, value, *SAMPLING_RANGES[name]):
                found[name] = value
        return cls(**found)

    def __post_init__(self) -> None:
        """ValueError names the setting that is out of its range, and the range."""
        for name, (kind, least, most) in SAMPLING_RANGES.items():
            if name != "seed" or self.seed is not None:
                check_range(name, getattr(self, name), kind, least, most)


@dataclass
class GenerationStats:
    """Figures of one reply, complete once it has finished. Times in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    decode_steps: int = 0
    """Evaluations that `decode_seconds` holds; the first token comes with the prompt's."""
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    time_to_first_token: float = 0.0
    finish_reason: FinishReason | None = None
    drafted: int = 0
    """Tokens that were guessed ahead."""
    accepted: int = 0
    """Of those, the ones that were right."""
    early: int = 0
    """Tokens that an exit said and the whole model did not verify (draft "calibrated")."""
    experts: dict[str, int] = field(default_factory=dict)
    """Tokens by the expert that spoke them; empty where the model has no experts."""
    mean_layers: float | None = None
    """Layers that a token went through, on average; None where the engine does not say."""
    mean_entropy: float | None = None
    """How unsure the model was of its tokens, in nats on average; None where the engine does not
    say. At temperature 1, before penalties and grammars."""
    mean_margin: float | None = None
    """By how much its likeliest token was likelier than the second, on average."""

    @property
    def tokens_per_second(self) -> float:
        """Evaluations after the prompt's, a second."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds > 0 else 0.0


@runtime_checkable
class TokenStream(Protocol):
    """A reply being made: iterate for pieces of valid UTF-8 text."""

    @property
    def stats(self) -> GenerationStats: ...
    @property
    def speaker(self) -> str | None:
        """The expert that spoke the last piece (its last token); None without experts."""
        ...

    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...
    def cancel(self) -> None:
        """Stop the compute within one layer; from any thread. The text so far stays."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class EngineSession(Protocol):
    """One sequence and its cache."""

    @property
    def position(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    def eval(self, ids: Sequence[int], logits: LogitRows = "all") -> memoryview:
        """Append tokens; logits as float32 [len(ids), vocab], [1, vocab] or [0, vocab]."""
        ...

    def truncate(self, length: int) -> int:
        """Forget all but the first `length` tokens, or more; how many are left."""
        ...

    def cancel(self) -> None: ...
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
    ) -> TokenStream:
        """Reply to a prompt, reusing the part of it that the session already holds.

        expert: the only one that speaks; None leaves it to the model. SelmError where the engine or
        the model cannot do that, cannot guess ahead in the way asked for, or cannot hold the reply
        to the constraint.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Snapshots(Protocol):
    """A session whose state can be kept: what an `EngineSession` may be beside."""

    def save(self, path: str) -> None:
        """Write the state to a file, whole or not at all. SnapshotError says why it could not."""
        ...

    def load(self, path: str) -> None:
        """Go on from a file's state instead. After a SnapshotError all is as before."""
        ...

    def fork(self) -> EngineSession:
        """Another session in the same state."""
        ...


@dataclass(frozen=True)
class AdapterInfo:
    """Of an adapter's file: ``base_sha256`` is of the model's file it was trained on, "" where the
    file does not say; ``rank`` is the largest of its pairs."""

    name: str
    base_sha256: str
    rank: int


@runtime_checkable
class Adaptable(Protocol):
    """A model whose weights can be added to without opening it anew: what an `Engine` may be."""

    def set_adapters(self, adapters: Sequence[tuple[str, float]]) -> Sequence[AdapterInfo]:
        """From the next token on, of every session: LoRA files and their scales, all there are.

        SelmError names the file, and the tensor that does not fit; then all is as before.
        """
        ...


@runtime_checkable
class EngineTokenizer(Protocol):
    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, special: bool = False) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    def token_text(self, token: int) -> str:
        """As the file writes it."""
        ...

    def is_end(self, token: int) -> bool:
        """Does it end a reply (end of text, turn or message)?"""
        ...

    def control_tokens(self) -> Mapping[str, int]:
        """The texts that mean something to the model rather than to a reader."""
        ...


@runtime_checkable
class Engine(Protocol):
    """An open model."""

    @property
    def name(self) -> str:
        """The backend's name: ``native``, ``llama-cpp``, ``onnx``."""
        ...

    @property
    def metadata(self) -> Mapping[str, MetadataValue]: ...
    @property
    def tokenizer(self) -> EngineTokenizer: ...
    @property
    def context(self) -> int: ...
    @property
    def threads(self) -> int: ...
    def session(self) -> EngineSession: ...
    def embed(self, ids: Sequence[int]) -> list[float]: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """Opens files."""

    name: str

    def available(self) -> str | None:
        """None when it can be used here, else the reason and the command that installs it."""
        ...

    def load(self, path: str, *, threads: int | None, context: int) -> Engine:
        """Raises ModelError or UnsupportedModelError."""
        ...
