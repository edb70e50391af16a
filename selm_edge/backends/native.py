"""The package's own core, through the compiled `selm_edge._core`."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from selm_edge.backends.base import (
    AdapterInfo,
    Constraint,
    Draft,
    FinishReason,
    GenerationStats,
    LogitRows,
    MetadataValue,
    Sampling,
)
from selm_edge.backends.constraints import Constraints
from selm_edge.errors import (
    Cancelled,
    ContextError,
    ModelError,
    SelmError,
    SnapshotError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from selm_edge import _core

_FINISH: tuple[FinishReason | None, ...] = (
    None,
    "stop",
    "length",
    "context",
    "cancelled",
    "deadline",
)
_AT_BYTE = re.compile(r"\bat byte (\d+)(: )?")
_HINTS = {
    "io": "Check the path, and that you may read the file.",
    "format": "The file is damaged or is no GGUF model: fetch or export it again.",
    "out_of_memory": "Choose a smaller context, or a smaller model.",
}
_NO_EXITS = {
    "exit": "Choose draft lookup or off instead; auto uses exits where there are some.",
    "calibrated": "Choose draft auto instead, or run `selm-export calibrate` on the file.",
}
_ADAPTER_HINT = "Give a LoRA file that was made for this very model (general.type = adapter)."
_MOST_ADAPTERS = 8
_NO_EXPERT = "Choose one that it has, or auto."
_SAVE_HINTS = {
    "io": "Choose another place, or make room in it; a file of that name is as it was.",
}
_LOAD_HINTS = {
    "io": "Check the path, and that you may read the file.",
    "format": "Begin a new session, and save that.",
    "unsupported": "Open what it was saved with, or begin a new session.",
    "context_full": "Load the model with a larger context.",
}


def file_error(path: str, error: Exception) -> SelmError:
    """What a failed open means, with the byte offset that the core's message names."""
    status, message = error.args
    found = _AT_BYTE.search(message)
    offset = int(found[1]) if found else None
    cause = message[found.end() :] if found and found.start() == 0 else message
    kind = UnsupportedModelError if status == "unsupported" else ModelError
    hint = _other_backend() if status == "unsupported" else _HINTS.get(status)
    return kind(path, cause, offset=offset, hint=hint)


def _other_backend() -> str:
    """What may run a file that the core does not."""
    from selm_edge.backends.llama_cpp import INSTALL, LlamaCppBackend

    if LlamaCppBackend().available() is None:
        return "The llama-cpp backend may run it: --backend llama-cpp (backend='llama-cpp')."
    return f"The llama-cpp backend may run it: {INSTALL}, then --backend llama-cpp."


def call_error(error: Exception) -> Exception:
    status, message = error.args
    if status == "cancelled":
        return Cancelled("stopped")
    if status == "deadline":
        return Cancelled("stopped at its deadline")
    if status == "invalid_argument":
        return ValueError(message)
    return SelmError(message)


def _snapshot_error(path: str, error: Exception, hints: Mapping[str, str]) -> Exception:
    status, message = error.args
    if status in hints:
        return SnapshotError(path, message, hints[status])
    return call_error(error)


class Metadata(Mapping[str, MetadataValue]):
    """A file's key-value pairs, each read when asked for: vocabularies have 150,000 entries."""

    def __init__(self, model: _core.Model) -> None:
        self._model = model
        self._index = model.meta_index()
        self._read: dict[str, MetadataValue] = {}

    def __getitem__(self, key: str) -> MetadataValue:
        if key not in self._read:
            from selm_edge import _core

            at = self._index[key]
            try:
                self._read[key] = self._model.meta_value(at)
            except _core.CoreError as error:
                raise SelmError(f"{key} cannot be read: {error.args[1]}") from None
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index


class NativeTokenizer:
    def __init__(self, tokenizer: _core.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.info = tokenizer.info
        self._control: dict[str, int] | None = None

    @classmethod
    def open(cls, path: str) -> NativeTokenizer:
        """From any GGUF file with a vocabulary, tensors or not."""
        from selm_edge import _core

        try:
            return cls(_core.Tokenizer(os.fsencode(path)))
        except _core.CoreError as error:
            raise file_error(path, error) from None

    @property
    def vocab_size(self) -> int:
        return self.info.size

    @property
    def bos(self) -> int | None:
        return self.info.bos if self.info.bos >= 0 else None

    @property
    def eos(self) -> int | None:
        return self.info.eos if self.info.eos >= 0 else None

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        raw = text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8
        return self._tokenizer.encode(raw, add_special, parse_special)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        from selm_edge import _core

        try:
            return self._tokenizer.decode(list(ids), special).decode("utf-8", "replace")
        except _core.CoreError as error:
            raise call_error(error) from None

    def token_text(self, token: int) -> str:
        from selm_edge import _core

        try:
            return self._tokenizer.token(token)[0]
        except _core.CoreError as error:
            raise call_error(error) from None

    def is_end(self, token: int) -> bool:
        return self._tokenizer.is_end(token)

    def control_tokens(self) -> Mapping[str, int]:
        if self._control is None:
            self._control = self._tokenizer.control_tokens()
        return self._control


@dataclass(frozen=True)
class Shape:
    """What a session has to know of its model."""

    experts: Sequence[str] = ()
    """Their names, in the model's order."""
    layers: int = 0
    exit: int = 0
    """The layer after which the first exit speaks; 0: there is none."""


class Adapters:
    """What the sessions of a model add to its weights; another list each time that changes."""

    def __init__(self) -> None:
        self.now: list[tuple[_core.Adapter, float]] = []


class NativeStream:
    """One reply of the core."""

    def __init__(
        self,
        generation: _core.Generation,
        session: _core.Session,
        shape: Shape,
    ) -> None:
        self._generation = generation
        self._session = session
        self._shape = shape
        self._spoke: dict[str, int] = {}
        self._done = False
        self.speaker: str | None = None

    @property
    def stats(self) -> GenerationStats:
        now = self._generation.stats
        skipped = self._shape.layers - self._shape.exit
        return GenerationStats(
            prompt_tokens=now.prompt_tokens,
            cached_tokens=now.cached_tokens,
            tokens=now.tokens,
            decode_steps=now.decode_steps,
            prompt_seconds=now.prompt_seconds,
            decode_seconds=now.decode_seconds,
            time_to_first_token=now.first_token_seconds,
            finish_reason=_FINISH[now.finish],
            drafted=now.drafted_tokens,
            accepted=now.accepted_tokens,
            experts=dict(self._spoke),
            early=now.early_tokens,
            mean_layers=self._shape.layers - now.early_tokens * skipped / (now.decode_steps + 1),
            mean_entropy=now.mean_entropy,
            mean_margin=now.mean_margin,
        )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        from selm_edge import _core

        while not self._done:
            try:
                piece, token, finish = self._generation.next()
            except _core.CoreError as error:
                self._done = True
                raise call_error(error) from None
            if token >= 0 and self._shape.experts:
                self._note_speaker()
            self._done = finish != 0
            if piece:  # a token may hold half a character, or a stop string's beginning
                return piece
        raise StopIteration

    def _note_speaker(self) -> None:
        """Whose the token is that was just given: who spoke after the one before it."""
        from selm_edge import _core

        now = self._generation.stats
        try:
            index = self._session.speaker(now.prompt_tokens + now.tokens - 2)
        except _core.CoreError:  # closed meanwhile: the reply goes on, nobody is asked any more
            self.speaker = None
            return
        self.speaker = None
        if 0 <= index < len(self._shape.experts):
            self.speaker = name = self._shape.experts[index]
            self._spoke[name] = self._spoke.get(name, 0) + 1

    def cancel(self) -> None:
        if not self._done:
            self._generation.cancel()

    def close(self) -> None:
        self._done = True
        self._generation.close()


class NativeSession:
    def __init__(
        self, session: _core.Session, shape: Shape, adapters: Adapters, constraints: Constraints
    ) -> None:
        self._session = session
        self._shape = shape
        self._adapters = adapters
        self._constraints = constraints
        self._adapted: list[tuple[_core.Adapter, float]] = []  # what this session adds
        self._expert: str | None = None  # the only one that speaks

    @property
    def position(self) -> int:
        return self._session.position

    @property
    def state_bytes(self) -> int:
        return self._session.state_bytes

    @property
    def threads(self) -> int:
        return self._session.threads

    def eval(self, ids: Sequence[int], logits: LogitRows = "all") -> memoryview:
        from selm_edge import _core

        try:
            self._session.set_deadline(0)  # the last reply's is not this one's
            self._adapt()
            floats = self._session.eval(list(ids), logits)
        except _core.CoreError as error:
            if error.args[0] == "context_full":
                room = self._session.context - self._session.position
                raise ContextError(len(ids), room) from None
            raise call_error(error) from None
        return floats.view()

    def truncate(self, length: int) -> int:
        from selm_edge import _core

        try:
            return self._session.truncate(length)
        except _core.CoreError as error:
            raise call_error(error) from None

    def save(self, path: str) -> None:
        from selm_edge import _core

        try:
            self._session.set_deadline(0)  # the last reply's is not this one's
            self._session.save(os.fsencode(path))
        except _core.CoreError as error:
            raise _snapshot_error(path, error, _SAVE_HINTS) from None

    def load(self, path: str) -> None:
        from selm_edge import _core

        try:
            self._session.restore_file(os.fsencode(path))
        except _core.CoreError as error:
            raise _snapshot_error(path, error, _LOAD_HINTS) from None

    def fork(self) -> NativeSession:
        from selm_edge import _core

        try:
            self._session.set_deadline(0)  # the last reply's is not this one's
            fork = NativeSession(
                self._session.fork(), self._shape, self._adapters, self._constraints
            )
            fork._expert, fork._adapted = self._expert, self._adapted
            return fork
        except _core.CoreError as error:
            raise call_error(error) from None

    def cancel(self) -> None:
        self._session.cancel()

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
        ignore_end: bool = False,
    ) -> NativeStream:
        from selm_edge import _core

        session = self._session
        grammar = None if constraint is None else self._constraints.get(constraint)
        bias = cast("Any", dict(sampling.logit_bias))  # the stub's key type takes no plain int
        try:
            session.set_deadline(0)
            self._choose(expert)
            if self._adapt():  # what was read without them is read again
                session.truncate(0)
            session.clear_cancel()
            session.set_deadline(0 if deadline is None else max(1, round(deadline * 1000)))
            generation = _core.Generation(
                session,
                list(prompt),
                core_sampling(sampling),
                logit_bias=bias,
                stop=list(stop),
                max_tokens=max_tokens or 0,
                ignore_end=ignore_end,
                draft=draft,
                grammar=grammar,
            )
        except _core.CoreError as error:
            if error.args[0] == "context_full":
                raise ContextError(len(prompt), session.context - 1) from None
            if draft in ("exit", "calibrated") and "exits" in error.args[1]:
                raise SelmError(f"{error.args[1]}\n{_NO_EXITS[draft]}") from None
            raise call_error(error) from None
        return NativeStream(generation, session, self._shape)

    def _adapt(self) -> bool:
        """The model's adapters are this session's; whether that is new."""
        wanted = self._adapters.now
        if wanted is self._adapted or not (wanted or self._adapted):
            return False
        self._session.set_adapters(wanted)
        self._adapted = wanted
        return True

    def _choose(self, expert: str | None) -> None:
        """From now on that expert speaks, or whoever the model decides.

        What another one read is read again: who spoke last counts where experts are sticky, and a
        reply must not depend on what the session was used for before.
        """
        experts = self._shape.experts
        if expert is not None and expert not in experts:
            there = f"it has {', '.join(experts)}" if experts else "it has no experts"
            raise SelmError(f"the model has no expert {expert!r}: {there}\n{_NO_EXPERT}")
        if expert != self._expert:
            self._session.set_expert(expert)
            self._session.truncate(0)
            self._expert = expert

    def close(self) -> None:
        self._session.close()


def core_sampling(sampling: Sampling) -> _core.Sampling:
    from selm_edge import _core

    out = _core.Sampling()
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "frequency_penalty",
        "presence_penalty",
        "penalty_last_n",
    ):
        setattr(out, name, getattr(sampling, name))
    out.seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed
    return out


class NativeEngine:
    """An open model. Sessions hold it, so closing it while one runs is safe."""

    name = "native"

    def __init__(
        self, path: str, *, threads: int | None, context: int, check_weights: bool = False
    ) -> None:
        from selm_edge import _core

        self.path = path
        try:
            self._model = _core.Model(os.fsencode(path), check_weights=check_weights)
            self.info = self._model.info
            self.metadata: Mapping[str, MetadataValue] = Metadata(self._model)
            self.tokenizer = NativeTokenizer(self._model.tokenizer())
            self._constraints = Constraints(self._model.tokenizer())
        except _core.CoreError as error:
            raise file_error(path, error) from None
        names = self.metadata.get("selm.expert.names")
        experts = [str(name) for name in names] if isinstance(names, list) else []
        exits = self.metadata.get("selm.exit.layers")
        first = exits[0] if isinstance(exits, list) and exits else 0
        self._adapters = Adapters()
        self._shape = Shape(experts, self.info.n_layer, first if isinstance(first, int) else 0)
        trained = self.info.n_ctx_train
        self.context = min(context, trained) if trained else context
        self._threads = threads or 0
        self._core_threads = 0  # what the core chose, once it has (it also knows of quotas)
        self._embedder: _core.Session | None = None
        self._embed_lock = threading.Lock()

    @property
    def threads(self) -> int:
        return self._threads or self._core_threads or allowed_cores()

    def session(self) -> NativeSession:
        session = self._session(self.context)
        return NativeSession(session, self._shape, self._adapters, self._constraints)

    def set_adapters(self, adapters: Sequence[tuple[str, float]]) -> Sequence[AdapterInfo]:
        from selm_edge import _core

        opened = []
        for path, scale in adapters:
            try:
                opened.append((_core.Adapter(self._model, os.fsencode(path)), scale))
            except _core.CoreError as error:
                raise SelmError(f"{path}: {error.args[1]}\n{_ADAPTER_HINT}") from None
        if len(opened) > _MOST_ADAPTERS:
            raise SelmError(f"{len(opened)} adapters at once; the most is {_MOST_ADAPTERS}")
        self._adapters.now = opened
        return [AdapterInfo(one.name, one.base_sha256, one.rank) for one, _ in opened]

    def _session(self, context: int) -> _core.Session:
        from selm_edge import _core

        try:
            session = _core.Session(self._model, context=context, threads=self._threads)
        except _core.CoreError as error:
            if error.args[0] == "out_of_memory":
                raise SelmError(f"{error.args[1]}\n{_HINTS['out_of_memory']}") from None
            raise call_error(error) from None
        self._core_threads = session.threads
        return session

    def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean of the final hidden states, of length 1: [n_embd]."""
        from selm_edge import _core

        if not 0 < len(ids) <= self.context:
            raise ContextError(len(ids), self.context)
        with self._embed_lock:  # a small session of its own, grown when a text needs it
            if self._embedder is None or self._embedder.context < len(ids):
                room = 1 << max(8, (len(ids) - 1).bit_length())
                self._embedder = self._session(min(room, self.context))
            try:
                return [float(x) for x in self._embedder.embed(list(ids)).view()]
            except _core.CoreError as error:
                raise call_error(error) from None

    def close(self) -> None:
        with self._embed_lock:
            self._embedder = None
        self._model.close()


def allowed_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NativeBackend:
    name = "native"

    def available(self) -> str | None:
        try:
            from selm_edge import _core  # noqa: F401
        except ImportError as error:
            return (
                f"the compiled core is missing ({error}); install the package:"
                " pip install --force-reinstall selm-edge"
            )
        return None

    def load(self, path: str, *, threads: int | None = None, context: int = 4096) -> NativeEngine:
        missing = self.available()
        if missing is not None:
            raise SelmError(missing)
        if os.path.isdir(path):  # noqa: PTH112 (bytes in, bytes out)
            hint = "The onnx backend runs folders: --backend onnx (backend='onnx')."
            raise UnsupportedModelError(path, "is a folder, not a GGUF file", hint=hint)
        return NativeEngine(path, threads=threads, context=context)
