"""`selm bench`: how fast this machine runs a model, alone or against llama.cpp."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import human_bytes, json_option, note, plain, show_json
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.catalog import Entry

_WORKER = Path(__file__).with_name("bench_worker.py")
_BEST_BUILD = (
    'CC=clang CXX=clang++ CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=OFF"'
    " pip install --no-binary llama-cpp-python llama-cpp-python"
)


@click.command()
@click.option("--model", "-m", metavar="NAME|PATH", help="Default: the preferred model.")
@click.option("--against", type=click.Choice(["llama-cpp"]), help="Measure that engine too.")
@click.option(
    "--prompt", type=click.IntRange(1), default=256, show_default=True, help="Tokens read at once."
)
@click.option(
    "--generate",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="Tokens read one by one after them.",
)
@click.option(
    "--depth",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tokens that the context holds before them.",
)
@click.option(
    "--hog",
    type=click.IntRange(0, 4096),
    default=0,
    show_default=True,
    help="Busy processes beside the engines.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Each engine's turns; the medians count.",
)
@click.option(
    "--threads", type=click.IntRange(1, 4096), help="Default: the cores this process may use."
)
@click.option(
    "--replies",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead, answer its prompts (one a line, \\n for a new line within; or .jsonl with"
    " messages) with tokens guessed ahead and without, --generate tokens at most; or by each"
    " expert alone and by whoever should speak.",
)
@click.option(
    "--llama-python",
    metavar="PATH",
    envvar="SELM_LLAMA_PYTHON",
    help="The Python that has llama-cpp-python, if it is another one.",
)
@json_option
def bench(
    model: str | None,
    against: str | None,
    replies: Path | None,
    llama_python: str | None,
    **options: Any,
) -> None:
    """Measure tokens a second, memory and the share of the machine's bandwidth used.

    Each engine runs in a process of its own; their rounds alternate, after one that does not
    count. Tokens are evaluated one by one and none is guessed ahead, so that what one token costs
    can be compared. The first token is timed from the opening of the file, which is in the page
    cache. The peer should be its best build:

    \b
      CC=clang CXX=clang++ CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=OFF" \\
        pip install --no-binary llama-cpp-python llama-cpp-python

    \b
    Examples:
      selm bench
      selm bench --model qwen --against llama-cpp --json
      selm bench --model qwen --depth 8192 --prompt 512
      selm bench --replies prompts.txt --generate 200
    """
    from selm_edge import _core
    from selm_edge import config as preferences
    from selm_edge.backends.native import NativeEngine
    from selm_edge.catalog import Catalog

    config = preferences.load()
    entry = Catalog().resolve(model or config.model)
    NativeEngine(str(entry.path), threads=None, context=16).close()  # says what is wrong with it
    if replies is not None:
        _bench_replies(entry, replies, options["threads"] or config.threads or 0, options)
        return
    prompt, generate, depth = options["prompt"], options["generate"], options["depth"]
    path, shape = str(entry.path), [str(prompt), str(generate), str(depth)]
    cores = options["threads"] or config.threads or 0  # 0: the core looks what it may use
    load = _load_average()
    _read_once(entry.path)
    with contextlib.ExitStack() as stack:
        own = _worker(sys.executable, "native", [path, str(cores), *shape])
        workers = {"native": stack.enter_context(own)}
        cores = workers["native"].facts["threads"]
        if against:
            python = llama_python or sys.executable
            _require_llama(python)
            peer = _worker(python, "llama-cpp", [path, str(cores), *shape])
            workers["llama_cpp"] = stack.enter_context(peer)
        with _hogs(options["hog"]):
            timings, bandwidth = _alternate(
                workers, options["rounds"], lambda: _core.measure_bandwidth(cores)
            )
        figures = {
            name: _figures(worker, timings[name], prompt, generate, workers["native"].facts)
            for name, worker in workers.items()
        }
    result: dict[str, Any] = {
        "model": entry.name,
        "path": path,
        "file_bytes": entry.size,
        "threads": cores,
        "load_average": load,
        "prompt": prompt,
        "generate": generate,
        "depth": depth,
        "hog": options["hog"],
        **figures,
        "stream_gb_per_s": round(bandwidth, 2),
    }
    if against:
        ours, theirs = figures["native"], figures["llama_cpp"]
        result["ratio"] = {
            kind: round(ours[f"{kind}_tps"] / theirs[f"{kind}_tps"], 3)
            for kind in ("prefill", "decode")
        }
        result["ratio"]["first_token"] = round(ours["first_token_s"] / theirs["first_token_s"], 3)
    if load is not None and load > 0.5:
        note(f"other work was running (load average {load:.1f}): the figures are lower for it")
    if options["as_json"]:
        show_json(result)
    else:
        _report(result)


def _bench_replies(entry: Entry, file: Path, threads: int, options: dict[str, Any]) -> None:
    from selm_edge.cli import bench_replies

    prompts = bench_replies.read_prompts(file)
    _read_once(entry.path)
    compared = bench_replies.compare(
        entry.path, prompts, threads, options["generate"], options["rounds"]
    )
    result = {"model": entry.name, "path": str(entry.path), **compared}
    if options["as_json"]:
        show_json(result)
    else:
        bench_replies.report(result)


def _load_average() -> float | None:
    """Processes that wanted a core in the last minute, where the system says so."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _read_once(path: Path) -> None:
    """So that every engine finds the file in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


class _Worker:
    """A process with an open model."""

    def __init__(self, process: subprocess.Popen[str], kind: str) -> None:
        self._process = process
        self._kind = kind
        self.facts: dict[str, Any] = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer says why
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        reason = self._process.stderr.read().strip().splitlines()
        raise SelmError(
            f"the {self._kind} engine ended with code {code}: {reason[-1] if reason else 'silent'}"
        )


@contextlib.contextmanager
def _worker(python: str, kind: str, shape: list[str]) -> Iterator[_Worker]:
    # The native one imports the package that is running here; the other needs its file alone.
    start = ["-m", "selm_edge.cli.bench_worker"] if kind == "native" else [str(_WORKER)]
    process = subprocess.Popen(
        [python, *start, kind, *shape],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _Worker(process, kind)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _hogs(count: int) -> Iterator[None]:
    """So many processes that want a core all the time."""
    busy = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(busy, stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _require_llama(python: str) -> None:
    probe = [python, "-c", "import llama_cpp"]
    try:
        found = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError as error:
        raise SelmError(f"{python}: {error.strerror or error}") from None
    if not found:
        raise SelmError(f"llama-cpp-python is not installed in {python}:\n{_BEST_BUILD}")


def _alternate(
    workers: dict[str, _Worker], rounds: int, bandwidth: Callable[[], float]
) -> tuple[dict[str, list[dict[str, float]]], float]:
    """One round of each in turn, then a look at the memory's speed, which changes as neighbours
    come and go; the first of each warms up and does not count."""
    timings: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    speeds = []
    for i in range(rounds + 1):
        for name, worker in workers.items():
            timing = worker.ask("run")
            if i > 0:
                timings[name].append(timing)
        if i > 0:
            speeds.append(bandwidth())
    return timings, statistics.median(speeds)


def _figures(
    worker: _Worker,
    timings: list[dict[str, float]],
    prompt: int,
    generate: int,
    native: dict[str, Any],
) -> dict[str, Any]:
    prefill = [prompt / timing["prefill_s"] for timing in timings]
    decode = [generate / timing["decode_s"] for timing in timings]
    decode_tps = statistics.median(decode)
    peak = worker.ask("quit")["peak_rss_mb"]
    return {
        "prefill_tps": round(statistics.median(prefill), 2),
        "decode_tps": round(decode_tps, 2),
        "decode_gb_per_s": round(decode_tps * native["weight_bytes"] / 1e9, 2),
        "load_s": round(worker.facts["load_s"], 4),
        "first_token_s": round(worker.facts["first_token_s"], 4),
        "peak_rss_mb": peak and round(peak, 1),
        "threads": worker.facts["threads"],
        "build": worker.facts["build"],
        "rounds": [
            {"prefill_tps": round(p, 2), "decode_tps": round(d, 2)}
            for p, d in zip(prefill, decode, strict=True)
        ],
    }


def _report(result: dict[str, Any]) -> None:
    click.echo(
        plain(
            f"{result['model']} ({human_bytes(result['file_bytes'])}), {result['threads']} threads,"
            f" prompt {result['prompt']}, generate {result['generate']}"
            + (f", depth {result['depth']}" if result["depth"] else "")
            + (f", beside {result['hog']} busy processes" if result["hog"] else "")
        )
    )
    click.echo(f"{'':12}{'prefill':>12}{'decode':>12}{'GB/s':>8}{'first token':>13}{'memory':>11}")
    for name in ("native", "llama_cpp"):
        if name not in result:
            continue
        row = result[name]
        click.echo(
            f"{name:12}{row['prefill_tps']:>8.1f} t/s{row['decode_tps']:>8.1f} t/s"
            f"{row['decode_gb_per_s']:>8.1f}{row['first_token_s']:>11.2f} s"
            f"{row['peak_rss_mb'] or 0:>8.0f} MB"
        )
    if "ratio" in result:
        ratio = result["ratio"]
        click.echo(
            f"{'ratio':12}{ratio['prefill']:>11.2f}x{ratio['decode']:>11.2f}x{ratio['first_token']:>19.2f}x"
        )
    click.echo(f"read bandwidth of this machine: {result['stream_gb_per_s']:.1f} GB/s")
    for name in ("native", "llama_cpp"):
        if name in result:
            click.echo(plain(f"{name}: {result[name]['build']}"))
    if "ratio" in result and "OPENMP = 1" in result["llama_cpp"]["build"]:
        note(f"the peer is not its best build (it uses OpenMP); that is: {_BEST_BUILD}")
