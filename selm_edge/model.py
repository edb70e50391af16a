"""A model to talk to: what every backend shares above its engine.

with Model.load("model.gguf") as model:
    for piece in model.chat([{"role": "user", "content": "Hi"}], stream=True):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from selm_edge.backends.base import (
    DRAFTS,
    MAX_SECONDS,
    MAX_TOKENS,
    Adaptable,
    AdapterInfo,
    Constraint,
    Draft,
    Engine,
    EngineSession,
    EngineTokenizer,
    MetadataValue,
    Sampling,
    check_range,
)
from selm_edge.errors import ContextError, SelmError
from selm_edge.reply import Prompt, Reply
from selm_edge.session import Session
from selm_edge.templates import ChatTemplate, Message, Notice, defused
from selm_edge.trimming import cut_points, first_that_fits, reply_room

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Overflow = Literal["error", "trim"]
_Path = TypeVar("_Path", str, os.PathLike[str], Path)


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keywords."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    seed: int | None
    logit_bias: Mapping[int, float]


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, engine: EngineTokenizer) -> None:
        self.engine = engine

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a GGUF file with a vocabulary; it needs no tensors. ModelError if it has none."""
        from selm_edge.backends.native import NativeTokenizer

        return cls(NativeTokenizer.open(os.fspath(path)))

    def __len__(self) -> int:
        return self.engine.vocab_size

    @property
    def bos(self) -> int | None:
        return self.engine.bos

    @property
    def eos(self) -> int | None:
        return self.engine.eos

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """add_special: with the beginning-of-text token where the model wants one;
        parse_special: read ``<|im_end|>`` and the like as the tokens they name."""
        return self.engine.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """special: write control tokens out instead of leaving them away."""
        return self.engine.decode(ids, special=special)


class Model:
    """An open model. Several threads may use it; each reply runs on a session of its own."""

    def __init__(self, engine: Engine, path: str | None = None) -> None:
        self.engine = engine
        self.path = path
        self.tokenizer = Tokenizer(engine.tokenizer)
        self.template = ChatTemplate.of(engine.metadata, engine.tokenizer)
        self.sampling = Sampling.recommended(engine.metadata)
        """What a reply is sampled with where nothing else is asked for."""
        self.adapters: Mapping[str, float] = {}
        """File names of the adapters in use, with the scale of each."""
        self._idle: EngineSession | None = None  # the last reply's, whose tokens may be reused
        self._lock = threading.RLock()  # a reply may be collected, and closed, at any line
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        threads: int | None = None,
        context: int = 4096,
        backend: str | None = None,
    ) -> Model:
        """Open a GGUF file, or the folder of an ONNX model. ModelError says file, offset and cause.

        threads: None for all the cores this process may use; context: positions, no more than the
        model was trained with; backend: a name from `selm_edge.backends.names()`, None for the one
        that the file is for.
        """
        from selm_edge import backends

        if context < 1 or (threads is not None and threads < 1):
            raise ValueError("context and threads are at least 1")
        name = os.path.abspath(os.fspath(path))  # noqa: PTH100 (bytes in, bytes out)
        chosen = backends.get(backend or backends.name_for(name))
        engine = chosen.load(name, threads=threads, context=context)
        return cls(engine, name)

    # ---- What it is ----------------------------------------------------------------------------

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """The file's key-value pairs; arrays as lists."""
        return self.engine.metadata

    @property
    def name(self) -> str:
        """What the file calls itself, else its file name."""
        name = self.metadata.get("general.name")
        if isinstance(name, str) and name.strip():
            return name.strip()
        return os.path.basename(self.path) if self.path else "model"  # noqa: PTH119

    @property
    def context(self) -> int:
        return self.engine.context

    @property
    def full_context(self) -> bool:
        """Whether the context is all that the model was trained with, so that it cannot grow."""
        trained = self._size("context_length")
        return trained is not None and self.context >= trained > 0

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of its experts; none for most models."""
        names = self.metadata.get("selm.expert.names")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def layers(self) -> int | None:
        """How many layers it has, where its file says so."""
        return self._size("block_count")

    def _size(self, name: str) -> int | None:
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.{name}")
        return value if isinstance(value, int) else None

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        return self.tokenizer.tokenize(text, add_special, parse_special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        return self.tokenizer.detokenize(ids, special)

    def session(self, snapshot: str | os.PathLike[str] | None = None) -> Session:
        """A fresh, empty one, or one that goes on from what `Session.save` wrote."""
        session = Session(self._engine().session())
        if snapshot is not None:
            try:
                session.load(snapshot)
            except BaseException:
                session.close()
                raise
        return session

    def set_adapters(self, adapters: Mapping[_Path, float]) -> Sequence[AdapterInfo]:
        """From the next reply on, LoRA files (llama.cpp's format) by the scale of each (1: as it
        was trained) are added to the weights, in place of those before; none takes them away.
        Nothing is opened anew, but a conversation is read again. Embeddings stay the model's own.
        Returns what the files say of themselves.

        SelmError where one is for another model, with the tensor and both shapes.
        """
        engine = self._engine()
        for path, scale in adapters.items():
            check_range(f"the scale of {os.fspath(path)}", scale, float, -100, 100)
        if not isinstance(engine, Adaptable):
            raise SelmError(f"the {engine.name} backend takes no adapters\nChoose native.")
        files = [(os.path.abspath(path), scale) for path, scale in adapters.items()]  # noqa: PTH100
        found = engine.set_adapters(files)
        self.adapters = {
            os.path.basename(os.fspath(path)): scale  # noqa: PTH119
            for path, scale in adapters.items()
        }
        return found

    def embed(self, text: str) -> list[float]:
        """A vector of length 1 for the text: [n_embd]."""
        return self._engine().embed(self.tokenize(text))

    # ---- Prompts -------------------------------------------------------------------------------

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        on_overflow: Overflow = "error",
        max_tokens: int | None = None,
        **variables: Any,
    ) -> Prompt:
        """Messages as the model reads them.

        Control tokens written out in what users, files and tools say are defused. A prompt that
        leaves no room for a reply is a ContextError, or with "trim" the oldest turns go, never the
        system prompt nor the last message: `trimmed_turns` and a notice say how many. Trimming
        leaves room for `max_tokens`, at most half the context (if None, 256 or a quarter of it).
        """
        control = self.engine.tokenizer.control_tokens()
        clean = [defused(message, control) for message in messages]
        if not clean:
            raise ValueError("no messages")
        prompt = self._encode_chat(clean, variables)
        room = self.context - 1
        if on_overflow == "error":
            if len(prompt) > room:
                larger = "" if self.full_context else "choose a larger context, "
                hint = (
                    f"Shorten the text, start a new conversation, {larger}"
                    "or let the oldest turns go (on_overflow='trim')."
                )
                raise ContextError(len(prompt), room, hint, most=self.full_context)
            return prompt
        room = self.context - reply_room(self.context, max_tokens)
        return prompt if len(prompt) <= room else self._trimmed(clean, prompt, room, variables)

    def _trimmed(
        self, messages: list[Message], full: Prompt, room: int, variables: Mapping[str, Any]
    ) -> Prompt:
        """The prompt without as few of the oldest turns as make it fit `room`."""
        head = 1 if messages[0]["role"] == "system" else 0
        cuts = cut_points([message["role"] for message in messages], head)
        prompts: dict[int, Prompt] = {}

        def without(cut: int) -> Prompt:
            if cut not in prompts:
                prompts[cut] = self._encode_chat([*messages[:head], *messages[cut:]], variables)
            return prompts[cut]

        turns = first_that_fits(cuts, lambda cut: len(without(cut)) <= room) + 1
        turns = min(turns, len(cuts))  # where none leaves room for a long reply, the shortest
        prompt = without(cuts[turns - 1]) if turns else full
        if len(prompt) >= self.context:
            hint = "The last message alone does not fit: shorten it."
            raise ContextError(len(prompt), self.context - 1, hint, most=self.full_context)
        if turns:
            gone = len(full) - len(prompt)
            prompt.trimmed_turns, prompt.trimmed_tokens = turns, gone
            text = (
                f"The conversation no longer fits: the oldest {_count(turns, 'turn')}"
                f" ({gone} tokens) were left out."
            )
            prompt.notices += (Notice("trimmed", text),)
        return prompt

    def _encode_chat(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> Prompt:
        rendered = self.template.render(messages, **variables)
        ids = self.tokenize(rendered.text, add_special=False, parse_special=True)
        start = self.tokenize("", add_special=True)[:1]
        if start and start[0] == self.tokenizer.bos and ids[:1] != start:
            ids = start + ids  # templates of models that begin with it mostly write it themselves
        return Prompt(ids, stop=rendered.stop, notices=rendered.notices)

    def text_prompt(
        self,
        text: str | Sequence[int],
        *,
        on_overflow: Overflow = "error",
        max_tokens: int | None = None,
    ) -> Prompt:
        """Plain text (or tokens) to go on from; ``<|im_end|>`` and the like are read as tokens.

        "trim" lets the oldest tokens go, but for the beginning-of-text one.
        """
        ids = self.tokenize(text, parse_special=True) if isinstance(text, str) else list(text)
        if not ids:
            ids = [token for token in (self.tokenizer.bos, self.tokenizer.eos) if token is not None]
            ids = ids[:1]
        room = self.context - reply_room(self.context, max_tokens)
        if on_overflow == "error" or len(ids) <= room:
            if len(ids) >= self.context:
                hint = "Shorten the text, or let its beginning go (on_overflow='trim')."
                raise ContextError(len(ids), self.context - 1, hint, most=self.full_context)
            return Prompt(ids)
        first = ids[:1] if ids[0] == self.tokenizer.bos else []
        room -= len(first)
        kept = first + ids[len(ids) - room :] if room > 0 else first
        gone = len(ids) - len(kept)
        notice = Notice("trimmed", f"The text does not fit: its first {gone} tokens were left out.")
        return Prompt(kept, notices=(notice,), trimmed_tokens=gone)

    # ---- Replies -------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int] | Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
        on_overflow: Overflow = "error",
        sampling: Sampling | None = None,
        session: Session | None = None,
        draft: Draft = "auto",
        expert: str | None = None,
        schema: Mapping[str, Any] | str | None = None,
        grammar: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Go on from a prompt; iterate over the reply for its pieces.

        max_tokens: None goes on until the model ends or the context is full; stop: text (or texts)
        that ends the reply and is not part of it; deadline: seconds from now; sampling (else what
        the model's file recommends) and/or single options of it; session: one of your own, else
        the model takes care of that.
        draft: how tokens may be guessed ahead, which changes the speed and nothing else, except
        "calibrated", where what an exit is sure of stays unverified; expert: the name of the one
        that speaks, None for whom the model chooses token by token. SelmError where the model or
        its backend has no such expert or exits, or no calibration of these.
        schema: a JSON Schema (parsed, or its text) that the reply is valid JSON of; grammar: in
        llama.cpp's GBNF, what the reply is a text of. A reply that `max_tokens` or the context cuts
        is only its beginning. SelmError where it cannot be held to that, with the place.
        ValueError names a number out of its range.
        """
        if draft not in DRAFTS:
            raise ValueError(f"draft is one of {', '.join(DRAFTS)}, not {draft!r}")
        if max_tokens is not None:
            check_range("max_tokens", max_tokens, int, 1, MAX_TOKENS)
        if deadline is not None:
            check_range("deadline", max(deadline, 0), float, 0, MAX_SECONDS)  # past is at once
        if isinstance(stop, str):
            stop = (stop,)  # its letters, one by one, are hardly meant
        if not isinstance(prompt, Prompt):
            prompt = self.text_prompt(prompt, on_overflow=on_overflow, max_tokens=max_tokens)
        chosen = replace(sampling or self.sampling, **options)
        if chosen.seed is None:
            chosen = replace(chosen, seed=int.from_bytes(os.urandom(4), "little"))
        lent = session.engine if session is not None else self._take()
        try:
            stream = lent.generate(
                prompt.ids,
                chosen,
                max_tokens=max_tokens,
                stop=(*prompt.stop, *stop),
                deadline=deadline,
                draft=draft,
                expert=None if expert == "auto" else expert,  # no expert is called that
                constraint=_constraint(schema, grammar),
            )
        except BaseException:
            if session is None:
                self._give_back(lent)
            raise
        release = (lambda: self._give_back(lent)) if session is None else None
        return Reply(stream, prompt, chosen, release)

    def chat(
        self,
        messages: Sequence[Message],
        stream: bool = False,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
        on_overflow: Overflow = "error",
        sampling: Sampling | None = None,
        session: Session | None = None,
        draft: Draft = "auto",
        expert: str | None = None,
        schema: Mapping[str, Any] | str | None = None,
        grammar: str | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """The model's reply to a conversation; without `stream` all of it is there on return.

        messages: ``{"role": ..., "content": ...}``, oldest first; variables: for the model's
        template. The rest as for `generate`.
        """
        prompt = self.chat_prompt(
            messages, on_overflow=on_overflow, max_tokens=max_tokens, **(variables or {})
        )
        reply = self.generate(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            deadline=deadline,
            sampling=sampling,
            session=session,
            draft=draft,
            expert=expert,
            schema=schema,
            grammar=grammar,
            **options,
        )
        return reply if stream else reply.finish()

    # ---- Sessions and the end ------------------------------------------------------------------

    def _engine(self) -> Engine:
        if self._closed:
            raise ValueError("the model is closed")
        return self.engine

    def _take(self) -> EngineSession:
        engine = self._engine()
        with self._lock:
            session, self._idle = self._idle, None
        return session if session is not None else engine.session()

    def _give_back(self, session: EngineSession) -> None:
        with self._lock:  # keep the newest: it most likely holds the next prompt's beginning
            old, self._idle = self._idle, None if self._closed else session
        for done in (old, session if self._closed else None):
            if done is not None:
                done.close()

    def close(self) -> None:
        """Let go of the file and the memory; more than once is fine."""
        with self._lock:
            closed, self._closed = self._closed, True
            idle, self._idle = self._idle, None
        if idle is not None:
            idle.close()
        if not closed:
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _constraint(schema: Mapping[str, Any] | str | None, grammar: str | None) -> Constraint | None:
    if schema is not None and grammar is not None:
        raise ValueError("a reply is held to a schema or to a grammar, not to both")
    if grammar is not None:
        return Constraint("gbnf", grammar)
    if schema is None:
        return None
    return Constraint("schema", schema if isinstance(schema, str) else json.dumps(schema))
