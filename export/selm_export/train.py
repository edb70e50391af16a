"""The training loop: phases of data, warmup-stable-decay, checkpoints that resume exactly."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from selm_export.data.packing import Batch
from selm_export.deepen import deepen, is_shallower
from selm_export.errors import RecipeError
from selm_export.network import Network, Shape, initialise
from selm_export.optimise import FlatState, Rates, clip, step_rest
from selm_export.workers import Crew, Work


@dataclass(frozen=True)
class Phase:
    """Runs until the given share of the whole run is done."""

    until: float
    shares: dict[str, float]
    dropout: float = 0.0
    user_weight: float = 0.3
    follow: int = 1  # exits learn from all micro-batches, the end from every so many


@dataclass(frozen=True)
class Settings:
    shape: Shape
    phases: tuple[Phase, ...]
    rates: Rates = field(default_factory=Rates)
    micro_batches: int = 6  # per step
    warmup_steps: int = 40
    decay_share: float = 0.3  # the last part of the run, in which the rate falls to nothing
    clip: float = 1.0
    average: float = 0.98  # of the parameters' running mean, which is what is kept in the end
    seed: int = 1
    workers: int = 1
    fast: bool = True  # compile the forward and backward pass


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    share: float = 0.0  # of the whole run that is done, in [0, 1]
    phase: int = 0
    drawn: int = 0  # micro-batches drawn in this phase
    seconds: float = 0.0


class Budget:
    """How much of the run is done: by steps, or by the clock when it must end at a given time."""

    def __init__(self, steps: int | None, finish_by: float | None) -> None:
        self.steps, self.finish_by = steps, finish_by
        self.began, self.from_share = time.time(), 0.0

    def begin(self, share: float) -> None:
        self.began, self.from_share = time.time(), share

    def share(self, step: int) -> float:
        if self.finish_by is None:
            return min(1.0, step / max(1, self.steps or 1))
        length = max(1.0, self.finish_by - self.began)
        gone = (time.time() - self.began) / length
        return min(1.0, self.from_share + (1 - self.from_share) * gone)


def rate_factor(settings: Settings, step: int, share: float) -> float:
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    left = (1 - share) / settings.decay_share if settings.decay_share > 0 else 1.0
    return warm * max(0.01, min(1.0, left))


def save(path: Path, state: FlatState, progress: Progress, settings: Settings) -> None:
    """Writes beside the target and renames: a kill at any moment leaves a whole file."""
    temporary = path.with_suffix(".writing")
    torch.save(
        {
            "shape": asdict(settings.shape),
            "names": [part[0] for part in state.parts],
            "parameters": state.parameters,
            "first": state.first,
            "second": state.second,
            "average": state.average,
            "progress": asdict(progress),
        },
        temporary,
    )
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecipeError(path, f"is no checkpoint ({error})", "Remove it to start over") from error
    return found


def load_network(path: Path, averaged: bool = True) -> Network:
    """The model of a checkpoint, ready to evaluate."""
    found = load(path)
    network = Network(Shape(**found["shape"]))
    flat, start = found["average" if averaged else "parameters"], 0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
    return network.eval()


class Stopper:
    """SIGTERM and SIGINT ask for a clean end after the current step."""

    def __init__(self) -> None:
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


Source = Callable[[Phase, int], Iterator[Batch]]
Report = Callable[[Network, Progress], dict[str, float]]


class Trainer:
    """One run. ``source(phase, number)`` gives the micro-batches of a phase from its beginning,
    always the same ones."""

    def __init__(
        self, settings: Settings, source: Source, checkpoint: Path, log: Path,
        start: Network | None = None,
    ) -> None:  # fmt: skip
        """``start`` is a network to go on with, instead of a new one; one with exits learns from
        it, not from the text."""
        self.settings, self.source, self.checkpoint, self.log = settings, source, checkpoint, log
        network = start or Network(settings.shape)
        if start is None:
            initialise(network, settings.seed)
        self.state = FlatState(network, settings.workers)
        self.progress = Progress()
        if checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        found = load(self.checkpoint)
        if is_shallower(found, self.settings.shape):
            found = deepen(found, self.settings.shape)
        names = [part[0] for part in self.state.parts]
        if found["names"] != names or Shape(**found["shape"]) != self.settings.shape:
            raise RecipeError(self.checkpoint, "is of another model", "Remove it to start over")
        for name in ("parameters", "first", "second", "average"):
            getattr(self.state, name).copy_(found[name])
        self.progress = Progress(**found["progress"])

    def run(
        self,
        budget: Budget,
        report: Report | None = None,
        report_seconds: float = 300.0,
        save_seconds: float = 120.0,
        stop_at: int | None = None,
    ) -> bool:
        """True when the whole run is done, false when it was asked to stop before."""
        settings, progress = self.settings, self.progress
        budget.begin(progress.share)
        stopper = Stopper()
        crew = Crew(settings.shape, self.state, settings.workers, settings.rates, settings.fast)
        stream = self._stream(progress.phase, progress.drawn)
        reported = saved = time.time()
        try:
            while progress.share < 1.0 and not stopper.asked and progress.step != stop_at:
                while progress.share >= settings.phases[progress.phase].until:
                    progress.phase, progress.drawn = progress.phase + 1, 0
                    stream = self._stream(progress.phase, 0)
                line = self._step(crew, stream)
                progress.share = budget.share(progress.step)
                now = time.time()
                if report and now - reported > report_seconds:
                    line |= report(self._averaged(), progress)
                    reported = time.time()
                self._write(line)
                if now - saved > save_seconds:
                    save(self.checkpoint, self.state, progress, settings)
                    saved = time.time()
        finally:
            crew.close()
            stopper.restore()
        save(self.checkpoint, self.state, progress, settings)
        if report and progress.share >= 1.0:
            self._write({"step": progress.step} | report(self._averaged(), progress))
        return progress.share >= 1.0

    def _stream(self, phase: int, skip: int) -> Iterator[Batch]:
        return itertools.islice(self.source(self.settings.phases[phase], phase), skip, None)

    def _averaged(self) -> Network:
        network = Network(self.settings.shape)
        for name, value in self.state.view(self.state.average).items():
            network.get_parameter(name).data = value
        return network.eval()

    def _step(self, crew: Crew, stream: Iterator[Batch]) -> dict[str, float]:
        settings, progress, state = self.settings, self.progress, self.state
        began = time.time()
        phase = settings.phases[progress.phase]
        chosen = list(itertools.islice(stream, settings.micro_batches))
        scale = 1.0 / max(1e-6, sum(float(b.weights.sum()) for b in chosen))
        seed = settings.seed * 1_000_003 + progress.step * 64
        work: list[Work] = [
            ("learn", b, scale, phase.dropout, seed + i, 0 if i % phase.follow else phase.follow)
            for i, b in enumerate(chosen)
        ]
        state.clear()
        loss = crew.do(work)
        with torch.no_grad():
            norm = clip(state.gather(), settings.clip)
            factor = rate_factor(settings, progress.step, progress.share)
            step_rest(state, progress.step + 1, factor, settings.rates)
            crew.do([("matrix", i, factor) for i in state.matrices()])
            keep = min(settings.average, (progress.step + 1) / (progress.step + 10))
            state.average.lerp_(state.parameters, 1 - keep)
        progress.step += 1
        progress.drawn += len(chosen)
        progress.tokens += sum(int((b.documents >= 0).sum()) for b in chosen)
        progress.seconds += time.time() - began
        return {
            "step": progress.step, "tokens": progress.tokens, "share": round(progress.share, 4),
            "phase": progress.phase, "loss": round(loss, 4), "norm": round(norm, 3),
            "rate": round(factor, 4), "seconds": round(progress.seconds, 1),
        }  # fmt: skip

    def _write(self, line: dict[str, float]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
