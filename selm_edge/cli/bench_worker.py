"""One engine in a process of its own, measured on request: `selm bench` starts it.

    python bench_worker.py native|llama-cpp MODEL THREADS PROMPT GENERATE DEPTH

It prints a JSON line once the first token is through, then one for each line it reads: ``run``
measures one round, ``quit`` ends. The file stands alone, so that the other engine may live in
another Python environment.

Both engines evaluate the same fixed tokens, the prompt at once and then one by one with the logits
of each: what is timed is the forward pass, with no sampler, no text and no token guessed ahead
(only a `Generation` does that). DEPTH tokens stand in the context before them; they are read once
and not timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

FILL = 512  # tokens at a time


class Native:
    def __init__(self, path: str, threads: int, context: int) -> None:
        from selm_edge import _core

        model = _core.Model(path)
        self.session = _core.Session(model, context=context, threads=threads)
        self.vocab = model.info.n_vocab
        self.facts = {
            "build": f"selm {_core.version()}, {model.info.isa}",
            "weight_bytes": model.info.weight_bytes,
            "threads": self.session.threads,
        }

    def evaluate(self, tokens: Sequence[int]) -> object:
        return self.session.eval(tokens, "last")

    def truncate(self, length: int) -> None:
        kept = self.session.truncate(length)
        if kept < length:  # a state that does not grow may not reach so far back
            self.session.eval(some_tokens(self, length)[kept:], "none")


class LlamaCpp:
    def __init__(self, path: str, threads: int, context: int) -> None:
        import llama_cpp as lib  # type: ignore[import-not-found, unused-ignore]

        self.lib: Any = lib
        self._quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._quiet, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise SystemExit(f"llama.cpp does not open {path}")
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch = context, max(512, context)
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        self.context = lib.llama_init_from_model(model, options)
        if not self.context:
            raise SystemExit("llama.cpp could not make a context")
        self.vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self.batch = lib.llama_batch_init(context, 0, 1)
        self.position = 0
        self.facts = {
            "build": f"llama-cpp-python {lib.__version__}: "
            + lib.llama_print_system_info().decode().strip(" |\n"),
            "threads": threads,
        }

    def evaluate(self, tokens: Sequence[int]) -> object:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self.position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        if self.lib.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        self.position += len(tokens)
        return self.lib.llama_get_logits_ith(self.context, len(tokens) - 1)[0]

    def truncate(self, length: int) -> None:
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, length, -1)
        self.position = length


def some_tokens(engine: Native | LlamaCpp, count: int) -> list[int]:
    return [(i * 7919 + 13) % engine.vocab for i in range(count)]


def fill(engine: Native | LlamaCpp, depth: int) -> None:
    tokens = some_tokens(engine, depth)
    for start in range(0, depth, FILL):
        engine.evaluate(tokens[start : start + FILL])


def measure(engine: Native | LlamaCpp, prompt: int, generate: int, depth: int) -> dict[str, float]:
    """Seconds of one round."""
    tokens = some_tokens(engine, prompt + generate)
    engine.truncate(depth)
    began = time.perf_counter()
    engine.evaluate(tokens[:prompt])
    middle = time.perf_counter()
    for token in tokens[prompt:]:
        engine.evaluate([token])
    return {"prefill_s": middle - began, "decode_s": time.perf_counter() - middle}


def peak_rss_mb() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    kind, path = sys.argv[1], sys.argv[2]
    threads, prompt, generate, depth = map(int, sys.argv[3:7])
    context = depth + prompt + generate + 16
    began = time.perf_counter()
    engine = (Native if kind == "native" else LlamaCpp)(path, threads, context)
    loaded = time.perf_counter()
    engine.evaluate(some_tokens(engine, 1))
    first = time.perf_counter()
    say({"load_s": loaded - began, "first_token_s": first - began, **engine.facts})
    engine.truncate(0)
    fill(engine, depth)
    for line in sys.stdin:
        command = line.strip()
        if command == "run":
            say(measure(engine, prompt, generate, depth))
        elif command == "quit":
            say({"peak_rss_mb": peak_rss_mb()})
            return


if __name__ == "__main__":
    main()
