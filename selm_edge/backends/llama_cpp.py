"""llama.cpp, through llama-cpp-python: for files that the package's own core does not run.

An optional extra (``pip install 'selm-edge[llama]'``). It uses the low-level calls of that package,
so that cancelling, deadlines, prefix reuse and the order of the samplers are as everywhere else.
"""

from __future__ import annotations

import collections
import ctypes
import ctypes.util
import os
import sys
import threading
from array import array
from collections.abc import Mapping, Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any

from selm_edge.backends.base import (
    Constraint,
    Draft,
    LogitRows,
    MetadataValue,
    Sampling,
)
from selm_edge.backends.native import allowed_cores
from selm_edge.backends.streaming import ReplyStream, Voice
from selm_edge.errors import Cancelled, ContextError, ModelError, SelmError

INSTALL = "pip install 'selm-edge[llama]'"
_NATIVE = "\nThe native backend does: --backend native (backend='native')."
_BATCH = 512
_ABORTED = 2  # what llama_decode returns then

_lib: Any = None
_log: collections.deque[str] = collections.deque(maxlen=20)
_keep: list[object] = []  # callbacks that the library holds


def _library() -> Any:
    """The llama_cpp module, its log kept instead of printed."""
    global _lib  # noqa: PLW0603
    if _lib is None:
        lib = import_module("llama_cpp")

        def take(level: int, text: bytes, _data: object) -> None:
            _log.append(text.decode("utf-8", "replace").strip())

        callback = lib.llama_log_callback(take)
        _keep.append(callback)
        lib.llama_log_set(callback, None)
        lib.llama_backend_init()
        _lib = lib
    return _lib


def system_info() -> str:
    """How that build of llama.cpp was made and what it uses."""
    text: bytes = _library().llama_print_system_info()
    return text.decode()


class _Flag:
    """A byte that llama.cpp looks at between operations; when it is not zero, it stops.

    The look must not enter Python (it happens thousands of times a token), so the callback is C's
    `strlen`: 0 for an empty text, 1 for the flag set.
    """

    def __init__(self, lib: Any) -> None:
        self.byte = ctypes.create_string_buffer(2)
        name = "msvcrt" if sys.platform == "win32" else ctypes.util.find_library("c")
        self.callback = ctypes.cast(ctypes.CDLL(name).strlen, lib.ggml_abort_callback)

    def set(self) -> None:
        self.byte[0] = b"\x01"

    def clear(self) -> None:
        self.byte[0] = b"\x00"

    def __bool__(self) -> bool:
        return bool(self.byte[0] != b"\x00")


class LlamaCppTokenizer:
    def __init__(self, lib: Any, model: Any) -> None:
        self._lib = lib
        self._model = model  # keeps the vocabulary alive
        self._vocab = lib.llama_model_get_vocab(model.handle)
        self._control: dict[str, int] | None = None

    @property
    def vocab_size(self) -> int:
        return int(self._lib.llama_vocab_n_tokens(self._vocab))

    @property
    def bos(self) -> int | None:
        return _token(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int | None:
        return _token(self._lib.llama_vocab_eos(self._vocab))

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        ids = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), ids, room, add_special, parse_special
        )
        if count < 0:
            raise SelmError("llama.cpp could not tokenize the text")
        return list(ids[:count])

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        if ids and ids[0] == self.bos and not special:
            ids = ids[1:]  # else the space that SPM puts before the text stays
        if not ids:
            return ""
        tokens = (self._lib.llama_token * len(ids))(*ids)
        room = 16 + 16 * len(ids)
        for _ in range(2):
            out = ctypes.create_string_buffer(room)
            size = self._lib.llama_detokenize(
                self._vocab, tokens, len(ids), out, room, False, special
            )
            if size >= 0:
                return out.raw[:size].decode("utf-8", "replace")
            room = -size
        raise SelmError("llama.cpp could not write the tokens as text")

    def piece(self, token: int) -> bytes:
        for room in (64, 4096):
            out = ctypes.create_string_buffer(room)
            size = self._lib.llama_token_to_piece(self._vocab, token, out, room, 0, False)
            if size >= 0:
                return out.raw[:size]
        return b""

    def token_text(self, token: int) -> str:
        text: bytes | None = self._lib.llama_vocab_get_text(self._vocab, token)
        return (text or b"").decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def control_tokens(self) -> Mapping[str, int]:
        if self._control is None:
            is_control = self._lib.llama_vocab_is_control
            self._control = {
                self.token_text(i): i for i in range(self.vocab_size) if is_control(self._vocab, i)
            }
        return self._control


class _Handle:
    """A model of the library; freed when nobody uses it any more."""

    def __init__(self, lib: Any, handle: Any) -> None:
        self._lib = lib
        self.handle = handle

    def __del__(self) -> None:
        self._lib.llama_model_free(self.handle)


class LlamaCppSession:
    def __init__(self, engine: LlamaCppEngine, *, context: int, embeddings: bool = False) -> None:
        lib = engine.lib
        self._lib = lib
        self._model = engine.model
        self._tokenizer = engine.tokenizer
        self._flag = _Flag(lib)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch = context, min(_BATCH, context)
        params.n_threads = params.n_threads_batch = engine.threads
        params.abort_callback = self._flag.callback
        params.abort_callback_data = ctypes.cast(self._flag.byte, ctypes.c_void_p)
        if embeddings:
            params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_MEAN
            params.n_batch = params.n_ubatch = context  # a pooled text is one piece
        self._context = lib.llama_init_from_model(self._model.handle, params)
        if not self._context:
            raise SelmError(f"llama.cpp could not make a context: {_last_error()}")
        self.context = context
        self.layers = float(lib.llama_model_n_layer(self._model.handle))
        self.speaker: str | None = None  # these models have no experts
        self.tokens: list[int] = []
        self.chunk = int(params.n_batch)
        self._batch = lib.llama_batch_init(self.chunk, 0, 1)

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def state_bytes(self) -> int:
        return int(self._lib.llama_state_seq_get_size(self._context, 0))

    def eval(self, ids: Sequence[int], logits: LogitRows = "all") -> memoryview:
        if len(ids) > self.context - len(self.tokens):
            raise ContextError(len(ids), self.context - len(self.tokens))
        before, columns = len(self.tokens), self._tokenizer.vocab_size
        out = array("f")
        for start in range(0, len(ids), self.chunk):
            chunk = ids[start : start + self.chunk]
            last = start + len(chunk) == len(ids)
            rows = range(len(chunk)) if logits == "all" else [len(chunk) - 1]
            wanted = set(rows) if logits == "all" or (logits == "last" and last) else set()
            if self.decode(chunk, wanted) != 0:
                self.truncate(before)
                aborted = bool(self._flag)
                self._flag.clear()
                raise (
                    Cancelled("stopped")
                    if aborted
                    else SelmError(f"llama.cpp failed: {_last_error()}")
                )
            for row in sorted(wanted):
                values = self._lib.llama_get_logits_ith(self._context, row)
                out.frombytes(ctypes.string_at(values, 4 * columns))
        count = len(out) // columns
        rows_of = memoryview(out).cast("B")
        return rows_of.cast("f", (count, columns)) if count else rows_of.cast("f")  # type: ignore[return-value]

    def decode(self, ids: Sequence[int], wanted: set[int]) -> int:
        """Append up to a batch of tokens, with logits of the wanted ones; 0 if all went well."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, len(self.tokens) + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i in wanted
        status = int(self._lib.llama_decode(self._context, batch))
        if status == 0:
            self.tokens += ids
        return status

    def embed(self, ids: Sequence[int]) -> list[float]:
        self.truncate(0)
        if self.decode(ids, set(range(len(ids)))) != 0:
            raise SelmError(f"llama.cpp failed: {_last_error()}")
        size = self._lib.llama_model_n_embd(self._model.handle)
        vector = [float(x) for x in self._lib.llama_get_embeddings_seq(self._context, 0)[:size]]
        norm = sum(x * x for x in vector) ** 0.5 or 1.0
        return [x / norm for x in vector]

    def truncate(self, length: int) -> int:
        memory = self._lib.llama_get_memory(self._context)
        if not self._lib.llama_memory_seq_rm(memory, 0, length, -1):
            # States that cannot go back (recurrent models) start again.
            self._lib.llama_memory_clear(memory, True)
            kept, self.tokens = self.tokens[:length], []
            for start in range(0, len(kept), self.chunk):
                self.decode(kept[start : start + self.chunk], set())
            return self.position
        del self.tokens[length:]
        return self.position

    def cancel(self) -> None:
        self._flag.set()

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
            raise SelmError(
                f"the llama-cpp backend holds no reply to a {constraint.kind}.{_NATIVE}"
            )
        if draft not in ("auto", "off"):
            raise SelmError(
                f"the llama-cpp backend guesses no tokens ahead (draft {draft}).{_NATIVE}"
            )
        if expert is not None:
            raise SelmError(f"the llama-cpp backend knows no experts ({expert!r}).{_NATIVE}")
        if len(prompt) >= self.context:
            raise ContextError(len(prompt), self.context - 1)
        self._flag.clear()
        sampler = _sampler(self._lib, sampling, self._tokenizer.vocab_size)
        voice = Voice(
            lambda: int(self._lib.llama_sampler_sample(sampler, self._context, -1)),
            self._tokenizer.is_end,
            self._tokenizer.piece,
            close=lambda: self._lib.llama_sampler_free(sampler),
        )
        return ReplyStream(self, prompt, voice, max_tokens=max_tokens, stop=stop, deadline=deadline)

    # What a stream needs.

    def read(self, ids: Sequence[int], logits: bool) -> bool:
        before = len(self.tokens)
        status = self.decode(ids, {len(ids) - 1} if logits else set())
        if status == _ABORTED or (status != 0 and self.cancelled):
            self.truncate(before)
            return False
        if status != 0:
            raise SelmError(f"llama.cpp failed: {_last_error()}")
        return True

    @property
    def cancelled(self) -> bool:
        return bool(self._flag)

    def clear_cancel(self) -> None:
        self._flag.clear()

    def close(self) -> None:
        context, self._context = self._context, None
        if context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(context)

    def __del__(self) -> None:
        if getattr(self, "_batch", None) is not None:
            self.close()


class LlamaCppEngine:
    name = "llama-cpp"

    def __init__(self, path: str, *, threads: int | None, context: int) -> None:
        self.lib = lib = _library()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        if not Path(path).is_file():
            raise ModelError(path, "no such file", hint="Check the path.")
        _log.clear()
        handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            raise ModelError(
                path,
                f"llama.cpp does not open it: {_last_error()}",
                hint="The file may be damaged, or newer than the installed llama-cpp-python.",
            )
        self.model = _Handle(lib, handle)
        self.tokenizer = LlamaCppTokenizer(lib, self.model)
        self.metadata = self._read_metadata()
        trained = int(lib.llama_model_n_ctx_train(handle))
        self.context = min(context, trained) if trained > 0 else context
        self.threads = threads or allowed_cores()
        self._embedder: LlamaCppSession | None = None
        self._lock = threading.Lock()

    def session(self) -> LlamaCppSession:
        return LlamaCppSession(self, context=self.context)

    def embed(self, ids: Sequence[int]) -> list[float]:
        if not 0 < len(ids) <= self.context:
            raise ContextError(len(ids), self.context)
        with self._lock:
            if self._embedder is None or self._embedder.context < len(ids):
                room = min(1 << max(8, (len(ids) - 1).bit_length()), self.context)
                self._embedder = LlamaCppSession(self, context=room, embeddings=True)
            return self._embedder.embed(ids)

    def close(self) -> None:
        with self._lock:
            self._embedder = None

    def _read_metadata(self) -> Mapping[str, MetadataValue]:
        """Single values; llama.cpp hands them out as text, arrays not at all."""
        lib, handle = self.lib, self.model.handle
        found: dict[str, MetadataValue] = {}
        buffer = ctypes.create_string_buffer(1 << 18)
        for i in range(lib.llama_model_meta_count(handle)):
            lib.llama_model_meta_key_by_index(handle, i, buffer, len(buffer))
            key = buffer.value.decode("utf-8", "replace")
            lib.llama_model_meta_val_str_by_index(handle, i, buffer, len(buffer))
            found[key] = _typed(key, buffer.value.decode("utf-8", "replace"))
        return found


class LlamaCppBackend:
    name = "llama-cpp"

    def available(self) -> str | None:
        if util.find_spec("llama_cpp") is None:
            return f"llama-cpp-python is not installed: {INSTALL}"
        return None

    def load(self, path: str, *, threads: int | None = None, context: int = 4096) -> LlamaCppEngine:
        missing = self.available()
        if missing is not None:
            raise SelmError(f"the llama-cpp backend cannot be used: {missing}")
        return LlamaCppEngine(path, threads=threads, context=context)


def _token(token: int) -> int | None:
    return int(token) if token >= 0 else None


def _typed(key: str, text: str) -> MetadataValue:
    if key.startswith(("general.", "tokenizer.")) and not key.endswith(("_id", "version", "type")):
        return text
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _last_error() -> str:
    """The last complaints of the library, which has no other way to give a reason."""
    wrong = [line for line in _log if "error" in line.lower() or "fail" in line.lower()]
    return "; ".join((wrong or list(_log))[-2:]) or "it does not say why"


def _sampler(lib: Any, sampling: Sampling, n_vocab: int) -> Any:
    """The chain, in the order that `Sampling` names."""
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        lib.llama_sampler_chain_add(chain, sampler)

    if sampling.logit_bias:
        items = sampling.logit_bias.items()
        biases = (lib.llama_logit_bias * len(items))(*(lib.llama_logit_bias(*i) for i in items))
        add(lib.llama_sampler_init_logit_bias(n_vocab, len(items), biases))
    penalties = (
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if penalties != (1.0, 0.0, 0.0):
        make = lib.llama_sampler_init_penalties
        size = (n_vocab,) if len(make.argtypes) == 5 else ()  # newer releases ask for it
        add(make(*size, sampling.penalty_last_n, *penalties))
    if sampling.temperature <= 0:
        add(lib.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        add(lib.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1:
        add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    add(lib.llama_sampler_init_temp(sampling.temperature))
    seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed
    add(lib.llama_sampler_init_dist(seed & 0xFFFFFFFF))
    return chain
