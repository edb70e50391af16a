"""onnxruntime, for the folders that ``selm-export onnx`` writes.

An optional extra (``pip install 'selm-edge[onnx]'``). Inputs and outputs are bound by their
addresses, so that caches and states pass from step to step uncopied and this package needs no
numpy (onnxruntime itself does); tokens are chosen by the core's sampler, so the same logits and
seed give the same reply as with the native backend.
"""

from __future__ import annotations

import ctypes
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module, util
from typing import Any

from selm_edge.backends.base import Constraint, Draft, LogitRows, MetadataValue, Sampling
from selm_edge.backends.native import allowed_cores, call_error, core_sampling
from selm_edge.backends.onnx_folder import AGAIN, OnnxFolder, StateTensor, read
from selm_edge.backends.streaming import ReplyStream, Voice
from selm_edge.errors import Cancelled, ContextError, ModelError, SelmError

INSTALL = "pip install 'selm-edge[onnx]'"
_NATIVE = "\nThe native backend does: --backend native (backend='native'), with the GGUF file."
_ELEMENTS = {"float32": (1, "f"), "int64": (7, "q")}  # onnx.TensorProto, array
_SPECIAL = ("bos", "eos", "eot")
# Control tokens that end a reply whatever the model's files say, as in the native backend.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<end_of_utterance>", "<|endoftext|>",
    "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<EOT>", "_<EOT>", "[EOT]",
    "<|eom_id|>", "</s>", "<eos>", "[EOS]", "<|return|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>",
)  # fmt: skip
_FATAL = 4  # of onnxruntime's levels: what is raised as an exception need not be printed too
_MARKS = 8  # places to go back to, where layers keep no state of every token


class OnnxTokenizer:
    """tokenizer.json through the `tokenizers` package, which it is written for."""

    def __init__(self, folder: OnnxFolder) -> None:
        tokenizers = import_module("tokenizers")
        self._open: Callable[[], Any] = partial(
            tokenizers.Tokenizer.from_file, str(folder.tokenizer)
        )
        try:
            self._reading = self._open()
        except Exception as error:  # that package raises no other kind
            cause = f"is no tokenizer that can be read: {error}"
            raise ModelError(str(folder.tokenizer), cause, hint=AGAIN) from None
        self._decoding = tokenizers.decoders.DecodeStream
        self.vocab_size = folder.vocabulary
        if (found := self._reading.get_vocab_size()) > folder.vocabulary:
            cause = f"has {found} tokens, and the model {folder.vocabulary}"
            raise ModelError(str(folder.tokenizer), cause, hint=AGAIN)
        added = self._reading.get_added_tokens_decoder()
        self._control = {token.content: i for i, token in added.items() if token.special}
        ids = [folder.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _SPECIAL]
        self.bos, self.eos, eot = (i if isinstance(i, int) else None for i in ids)
        ends = [i for text, i in self._control.items() if text in _ENDS]
        self._ends = {i for i in (self.eos, eot, *ends) if i is not None}
        self._before = self._put(folder, "bos", self.bos)
        self._after = self._put(folder, "eos", self.eos)

    @cached_property
    def _plain(self) -> Any:
        """One that reads <|im_end|> as the letters that it has; chats need it seldom."""
        tokenizer = self._open()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8
        tokenizer = self._reading if parse_special else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._before, *ids, *self._after] if add_special else ids

    @staticmethod
    def _put(folder: OnnxFolder, name: str, token: int | None) -> list[int]:
        """What stands around each text: as GGUF files say it, whatever tokenizer.json adds."""
        wanted = folder.metadata.get(f"tokenizer.ggml.add_{name}_token") is True
        return [token] if wanted and token is not None else []

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        text: str = self._reading.decode(list(ids), skip_special_tokens=not special)
        return text

    def token_text(self, token: int) -> str:
        return self._reading.id_to_token(token) or ""

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def control_tokens(self) -> Mapping[str, int]:
        return self._control

    def stream(self, before: Sequence[int]) -> Any:
        """That package's own, after a text's last tokens; half a character it would say again."""
        whole = not self.decode(before).endswith("\ufffd")
        return self._decoding(list(before) if whole else None, skip_special_tokens=True)

    def step(self, stream: Any, token: int) -> str | None:
        text: str | None = stream.step(self._reading, token)
        return text


class Pieces:
    """Tokens one by one to the text that each adds, as soon as its characters are whole."""

    def __init__(self, tokenizer: OnnxTokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(before)
        self._held: list[int] = []

    def feed(self, token: int) -> bytes:
        self._held.append(token)
        try:
            text = self._tokenizer.step(self._stream, token)
        except Exception:  # bytes that are no text, which that package may give up on
            text, self._stream = self._tokenizer.decode(self._held), self._tokenizer.stream(())
        if text is None:
            return b""
        self._held.clear()
        return bytes(text, "utf-8")

    def rest(self) -> bytes:
        return bytes(self._tokenizer.decode(self._held), "utf-8") if self._held else b""


@dataclass(frozen=True)
class Held:
    """A tensor in memory that ``owner`` keeps: what a step reads."""

    type: str
    shape: tuple[int, ...]
    address: int
    owner: object

    @classmethod
    def of(cls, kind: str, shape: Sequence[int], values: array[Any]) -> Held:
        return cls(kind, tuple(shape), values.buffer_info()[0], values)

    @classmethod
    def full(cls, state: StateTensor) -> Held:
        """Before the first token."""
        _, code = _ELEMENTS[state.type]
        shape = tuple(n or 0 for n in state.shape)
        count = 1
        for n in shape:
            count *= n
        start = state.start if code == "f" else int(state.start)
        return cls.of(state.type, shape, array(code, [start]) * max(1, count))  # never no address

    @property
    def size(self) -> int:
        """In bytes."""
        size = array(_ELEMENTS[self.type][1]).itemsize
        for n in self.shape:
            size *= n
        return size

    def rows(self, first: int, count: int, width: int) -> array[float]:
        """A copy of some of its rows, taken as [rows, width]."""
        out = array("f")
        out.frombytes(ctypes.string_at(self.address + 4 * first * width, 4 * count * width))
        return out

    def shortened(self, length: int) -> Held:
        """A copy of [1, heads, tokens, size] of the first tokens only."""
        _, heads, tokens, size = self.shape
        out = array("f")
        for head in range(heads):
            out.extend(self.rows(head * tokens, length, size))
        return Held.of(self.type, (1, heads, length, size), out or array("f", [0.0]))


@dataclass(frozen=True)
class Mark:
    """What was held after so many tokens, but for what grows with them and can be shortened."""

    length: int
    states: Mapping[str, Held]


class OnnxSession:
    """One sequence. What a step gives is never changed, only replaced: so going back is free."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self._folder = folder = engine.folder
        self.context, self.chunk = engine.context, engine.chunk
        self.layers = float(folder.number("block_count") or 0)
        self.tokens: list[int] = []
        self.speaker: str | None = None
        self._expert = -1  # the only one that speaks
        self._states = {state.input: Held.full(state) for state in folder.states}
        self._grows = {state.input for state in folder.states if None in state.shape}
        self._marks: deque[Mark] = deque(maxlen=_MARKS)
        self._logits = array("f")  # of the last token
        self._run = engine.runtime.RunOptions()  # its flag stops a run between two operations

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def state_bytes(self) -> int:
        return sum(held.size for held in self._states.values())

    def eval(self, ids: Sequence[int], logits: LogitRows = "all") -> memoryview:
        if len(ids) > self.context - len(self.tokens):
            raise ContextError(len(ids), self.context - len(self.tokens))
        before, states = len(self.tokens), self._states
        columns, out = self._folder.vocabulary, array("f")
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            rows = len(part) if logits == "all" else 0
            if logits == "last" and start + len(part) == len(ids):
                rows = 1
            try:
                found = self._step(part, rows)
                if found is None:
                    self.clear_cancel()
                    raise Cancelled("stopped")
            except BaseException:
                self._return_to(before, states)
                raise
            out.extend(found)
        count = len(out) // columns
        flat = memoryview(out).cast("B")
        return flat.cast("f", (count, columns)) if count else flat.cast("f")  # type: ignore[return-value]

    def read(self, ids: Sequence[int], logits: bool) -> bool:
        found = self._step(ids, 1 if logits else 0)
        if found is None:
            return False
        if logits:
            self._logits = found
        return True

    def _step(self, ids: Sequence[int], rows: int) -> array[float] | None:
        """Append up to a chunk of tokens; the logits of the last ``rows`` of them, None where it
        was cancelled. After that and any error all is as before."""
        folder, vocabulary = self._folder, self._folder.vocabulary
        if any(not 0 <= token < vocabulary for token in ids):
            raise ValueError(f"tokens are numbers from 0 to {vocabulary - 1}")
        outputs = self._evaluate(ids, ["logits", *(["speakers"] if self._engine.experts else [])])
        if outputs is None:
            return None
        before = self._mark()
        self.tokens += ids
        self._states = {state.input: outputs[state.output] for state in folder.states}
        if len(ids) > 1:
            self._marks += [before, self._mark()]
        if self._engine.experts:
            spoke = outputs[folder.outputs["speakers"]]
            last = ctypes.c_int64.from_address(spoke.address + 8 * (len(ids) - 1)).value
            self.speaker = self._engine.experts[last]
        return outputs[folder.outputs["logits"]].rows(len(ids) - rows, rows, vocabulary)

    def _evaluate(self, ids: Sequence[int], roles: Sequence[str]) -> dict[str, Held] | None:
        """The outputs of these roles and the states after ``ids``, by name."""
        folder, seen, count = self._folder, len(self.tokens), len(ids)
        given = {
            "ids": ([1, count], ids),
            "positions": ([1, count], range(seen, seen + count)),
            "mask": ([1, seen + count], [1] * (seen + count)),
            "seen": ([1], [seen]),
            "expert": ([1], [self._expert]),
        }
        inputs = dict(self._states)
        for role, name in folder.inputs.items():
            shape, values = given[role]
            inputs[name] = Held.of("int64", shape, array("q", values))
        binding = self._engine.session_of_runtime.io_binding()
        for name, held in inputs.items():
            binding.bind_input(
                name, "cpu", 0, _ELEMENTS[held.type][0], list(held.shape), held.address
            )
        kinds = {folder.outputs[role]: "float32" for role in roles}
        kinds |= {state.output: state.type for state in folder.states}
        for name in kinds:
            binding.bind_output(name, "cpu")
        try:
            self._engine.session_of_runtime.run_with_iobinding(binding, self._run)
        except Exception as error:  # onnxruntime's own kinds, which its package does not name
            if self.cancelled:
                return None
            raise SelmError(f"onnxruntime failed: {error}") from None
        found = binding.get_outputs()
        return {
            name: Held(kind, tuple(value.shape()), value.data_ptr(), value)
            for (name, kind), value in zip(kinds.items(), found, strict=True)
        }

    def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean of the final hidden states, of length 1."""
        self.truncate(0)
        width = self._folder.width
        total = [0.0] * width
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            outputs = self._evaluate(part, ["hidden"])
            assert outputs is not None  # nobody else has this session, to cancel it
            self.tokens += part
            self._states = {s.input: outputs[s.output] for s in self._folder.states}
            values = outputs[self._folder.outputs["hidden"]].rows(0, len(part), width)
            for row in range(0, len(values), width):
                total = [a + b for a, b in zip(total, values[row : row + width], strict=True)]
        norm = sum(x * x for x in total) ** 0.5 or 1.0
        return [x / norm for x in total]

    def _return_to(self, length: int, states: dict[str, Held]) -> None:
        """What was held after fewer tokens, and no mark after these."""
        del self.tokens[length:]
        self._states = states
        while self._marks and self._marks[-1].length > length:
            self._marks.pop()

    def _mark(self) -> Mark:
        kept = {name: held for name, held in self._states.items() if name not in self._grows}
        return Mark(len(self.tokens), kept)

    def truncate(self, length: int) -> int:
        """Caches of keys and values are shortened; other states go back to a mark before that."""
        if length >= len(self.tokens):
            return len(self.tokens)
        states = dict(self._states)
        if len(self._grows) < len(states):
            kept = [mark for mark in self._marks if mark.length <= length]
            start = {s.input: Held.full(s) for s in self._folder.states}
            mark = kept[-1] if kept else Mark(0, start)  # the first marks have been let go of
            length = mark.length
            states |= mark.states
        for name in self._grows:
            states[name] = self._states[name].shortened(length)
        self._return_to(length, states)
        return length

    def cancel(self) -> None:
        self._run.terminate = True

    @property
    def cancelled(self) -> bool:
        return bool(self._run.terminate)

    def clear_cancel(self) -> None:
        self._run.terminate = False

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
    ) -> ReplyStream:
        if constraint is not None:
            raise SelmError(f"the onnx backend holds no reply to a {constraint.kind}.{_NATIVE}")
        if draft not in ("auto", "off"):
            raise SelmError(f"the onnx backend guesses no tokens ahead (draft {draft}).{_NATIVE}")
        if len(prompt) >= self.context:
            raise ContextError(len(prompt), self.context - 1)
        self._choose(expert)
        self.clear_cancel()
        pieces = Pieces(self._engine.tokenizer, prompt[-16:])
        is_end = self._engine.tokenizer.is_end
        voice = Voice(self._picker(sampling), is_end, pieces.feed, pieces.rest)
        return ReplyStream(self, prompt, voice, max_tokens=max_tokens, stop=stop, deadline=deadline)

    def _choose(self, expert: str | None) -> None:
        """From now on that one speaks. What was read is read again, as in the native backend: who
        spoke last counts where experts are sticky."""
        experts = self._engine.experts
        if expert is not None and expert not in experts:
            there = f"it has {', '.join(experts)}" if experts else "it has no experts"
            raise SelmError(f"the model has no expert {expert!r}: {there}")
        chosen = -1 if expert is None else experts.index(expert)
        if chosen != self._expert:
            self.truncate(0)
            self._expert = chosen

    def _picker(self, sampling: Sampling) -> Callable[[], int]:
        """The core's sampler over the last logits; the n-th call uses the n-th random number."""
        from selm_edge import _core

        chosen, drawn = core_sampling(sampling), 0

        def pick() -> int:
            nonlocal drawn
            logits = self._logits
            if sampling.logit_bias:
                logits = logits[:]
                for token, bias in sampling.logit_bias.items():
                    logits[token] += bias
            try:
                token = _core.sample(chosen, logits, self.tokens, drawn)
            except _core.CoreError as error:
                raise call_error(error) from None
            drawn += 1
            return token

        return pick

    def close(self) -> None:
        """Whoever holds it may go on; its memory goes when nobody does."""


class OnnxEngine:
    name = "onnx"

    def __init__(self, path: str, *, threads: int | None, context: int) -> None:
        self.folder = folder = read(path)
        self.tokenizer = OnnxTokenizer(folder)
        self.metadata: Mapping[str, MetadataValue] = folder.metadata
        names = folder.metadata.get("selm.expert.names")
        self.experts = [str(name) for name in names] if isinstance(names, list) else []
        trained = folder.number("context_length")
        self.context = min(context, trained) if trained else context
        self.chunk = folder.chunk
        self.threads = threads or allowed_cores()
        self.runtime = import_module("onnxruntime")
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = _FATAL
        # Shapes change with each step: arenas and plans made for one are waste for the next.
        options.enable_mem_pattern = False
        # Where there is no VNNI, int8 products of this runtime may saturate unless told otherwise.
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self.session_of_runtime = self.runtime.InferenceSession(
                str(folder.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            cause = f"onnxruntime does not open it: {error}"
            raise ModelError(str(folder.graph), cause, hint=AGAIN) from None
        self._check_graph()

    def _check_graph(self) -> None:
        """It has the inputs and outputs that model.json names, and that vocabulary."""
        session, folder = self.session_of_runtime, self.folder
        there = {value.name: value.shape for value in session.get_outputs()}
        wanted = {state.output for state in folder.states} | set(folder.outputs.values())
        given = {state.input for state in folder.states} | set(folder.inputs.values())
        for name in (wanted - set(there)) | ({i.name for i in session.get_inputs()} ^ given):
            cause = f"does not fit its model.json: {name} is only in one of them"
            raise ModelError(str(folder.graph), cause, hint=AGAIN)
        columns = there[folder.outputs["logits"]][-1]
        if columns != folder.vocabulary:
            cause = f"has {columns} logits, and model.json {folder.vocabulary} tokens"
            raise ModelError(str(folder.graph), cause, hint=AGAIN)

    def session(self) -> OnnxSession:
        return OnnxSession(self)

    def embed(self, ids: Sequence[int]) -> list[float]:
        if not 0 < len(ids) <= self.context:
            raise ContextError(len(ids), self.context)
        return self.session().embed(ids)

    def close(self) -> None:
        """Sessions hold what they need; the rest goes with the last of them."""


class OnnxBackend:
    name = "onnx"

    def available(self) -> str | None:
        missing = [name for name in ("onnxruntime", "tokenizers") if util.find_spec(name) is None]
        if missing:
            return f"not installed: {' and '.join(missing)}; {INSTALL}"
        return None

    def load(self, path: str, *, threads: int | None = None, context: int = 4096) -> OnnxEngine:
        missing = self.available()
        if missing is not None:
            raise SelmError(f"the onnx backend cannot be used: {missing}")
        return OnnxEngine(path, threads=threads, context=context)
