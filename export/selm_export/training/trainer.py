"""The loop: draw, learn, step, save. One process or several (torchrun).

Every process draws the same micro-batches and learns from its own share of each step, with
dropout seeded by the micro-batch, so that one process and several compute the same sums.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selm_export.data.packing import Batch
from selm_export.errors import RecipeError
from selm_export.training.optimizer import optimizers, set_rates
from selm_export.training.processes import on_cpu, processes
from selm_export.training.settings import Phase, Progress, Training
from selm_export.training.tasks import rows_of

Say = Callable[[str], None]
Streams = Callable[[Phase, int], Iterator[Batch]]
Measure = Callable[[], Mapping[str, float]]  # of the averaged weights, in the middle of a run
SAVE_SECONDS = 120.0
TELL_SECONDS = 20.0


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


class Trainer:
    """``task`` gives the sum of the weighted losses of a micro-batch; ``trained`` are the
    parameters to move, by name (all others stay as they are). ``folder`` keeps the run's
    checkpoint and log, from which it goes on."""

    def __init__(
        self, task: nn.Module, trained: Mapping[str, nn.Parameter], streams: Streams,
        training: Training, folder: Path, *, seed: int, say: Say,
    ) -> None:  # fmt: skip
        self.training, self.streams, self.folder = training, streams, folder
        self.seed, self.say = seed, say
        self.trained = dict(trained)
        for parameter in task.parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        processes()
        self.accelerator = Accelerator(cpu=on_cpu())
        if training.micro_batches % self.accelerator.num_processes:
            raise RecipeError(
                folder, f"{training.micro_batches} micro-batches do not share evenly among"
                f" {self.accelerator.num_processes} processes", "Set micro_batches to a multiple",
            )  # fmt: skip
        self.optimizers = optimizers(self.trained, training)
        self.task, *prepared = self.accelerator.prepare(task, *self.optimizers)
        self.prepared = prepared
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.progress = Progress()
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, measure: Measure | None = None, measure_seconds: float = 300.0) -> bool:
        """True when the whole run is done, false when it was asked to stop before."""
        training, progress = self.training, self.progress
        stopper = Stopper()
        clock = _Clock(progress.share)
        stream = self._stream(progress.drawn)
        try:
            while progress.share < 1.0 and not self._any(stopper.asked):
                while progress.share >= training.phases[progress.phase].until:
                    progress.phase, progress.drawn = progress.phase + 1, 0
                    stream = self._stream(0)
                line = self._step(stream)
                progress.share = min(1.0, progress.step / training.steps)
                if self.accelerator.is_main_process:
                    if measure and clock.due("measure", measure_seconds):
                        line |= self.measured(measure)
                    self._tell(line, clock)
                    if clock.due("save", SAVE_SECONDS):
                        self.save()
        finally:
            stopper.restore()
        if self.accelerator.is_main_process:
            self.save()
        self.accelerator.wait_for_everyone()
        return progress.share >= 1.0

    def measured(self, measure: Measure) -> dict[str, float]:
        with self.averaged():
            found = dict(measure())
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items())
        self.say(f"  {self.progress.tokens / 1e6:.2f}M tokens: {told}")
        return found

    def averaged(self) -> _Swapped:
        """The running mean in the parameters' place, for a while."""
        return _Swapped(self.trained, self.average)

    def keep_average(self) -> None:
        """The running mean in the parameters' place, for good: what the run has made."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.average[name])

    def _any(self, asked: bool) -> bool:
        """Whether any process was asked to stop: all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _stream(self, skip: int) -> Iterator[Batch]:
        number = self.progress.phase
        return itertools.islice(self.streams(self.training.phases[number], number), skip, None)

    def _step(self, stream: Iterator[Batch]) -> dict[str, float]:
        training, progress, accelerator = self.training, self.progress, self.accelerator
        began = time.time()
        noise = training.phases[progress.phase].noise
        chosen = list(itertools.islice(stream, training.micro_batches))
        total = max(1e-6, sum(float(b.weights.sum()) for b in chosen))
        world, rank = accelerator.num_processes, accelerator.process_index
        own = [(i, b) for i, b in enumerate(chosen) if i % world == rank]
        loss = torch.zeros((), device=accelerator.device)
        for i, batch in own:
            torch.manual_seed(self.seed * 1_000_003 + progress.step * 64 + i)
            last = i == own[-1][0]
            with nullcontext() if last else accelerator.no_sync(self.task):
                rows = rows_of(batch, accelerator.device)
                with torch.autocast(rows.ids.device.type, torch.bfloat16, enabled=training.bf16):
                    part = self.task(rows, noise) / total
                accelerator.backward(part * world)  # gradients are averaged over processes
                loss += part.detach()
        loss = accelerator.reduce(loss, "sum") if world > 1 else loss
        norm = float(accelerator.clip_grad_norm_(list(self.trained.values()), training.clip))
        if not (math.isfinite(float(loss)) and math.isfinite(norm)):
            raise RecipeError(
                self.folder, f"the loss is {float(loss)} and the gradient {norm} at step"
                f" {progress.step}", "Lower the rates, or raise warmup_steps; what was saved before"
                " that step is still there",
            )  # fmt: skip
        factor = training.rate_factor(progress.step, progress.share)
        set_rates(self.optimizers, factor)
        for optimizer in self.prepared:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._follow(min(training.average, (progress.step + 1) / (progress.step + 10)))
        progress.loss = round(float(loss), 4)
        progress.step += 1
        progress.drawn += len(chosen)
        progress.tokens += sum(int((b.documents >= 0).sum()) for b in chosen)
        progress.seconds += time.time() - began
        return {
            "step": progress.step, "tokens": progress.tokens, "phase": progress.phase,
            "loss": progress.loss, "norm": round(norm, 3), "rate": round(factor, 4),
            "seconds": round(progress.seconds, 1),
        }  # fmt: skip

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        for name, parameter in self.trained.items():
            self.average[name].lerp_(parameter.detach(), 1 - keep)

    def _tell(self, line: dict[str, float], clock: _Clock) -> None:
        share = self.progress.share
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"share": round(share, 5)}) + "\n")
        if clock.due("tell", TELL_SECONDS):
            self.say(
                f"  {share:.0%}, loss {line['loss']:.3f},"
                f" {self.progress.tokens / max(1e-9, self.progress.seconds):,.0f} tokens/s,"
                f" {clock.left(share)} left"
            )

    def save(self) -> None:
        """Written beside the target and renamed: a kill at any moment leaves a whole file."""
        writing = self.checkpoint.with_suffix(".writing")
        state: dict[str, Any] = {
            "parameters": {name: p.detach() for name, p in self.trained.items()},
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": asdict(self.progress),
        }
        try:
            torch.save(state, writing)
            with writing.open("rb") as file:
                os.fsync(file.fileno())
            writing.replace(self.checkpoint)
        except (OSError, RuntimeError) as error:
            writing.unlink(missing_ok=True)
            raise RecipeError(
                self.checkpoint, f"cannot be written ({error})",
                "Make room on the disk, then run the same command again: it goes on from what was"
                " saved before",
            ) from error  # fmt: skip

    @torch.no_grad()
    def _resume(self) -> None:
        try:
            # To plain memory first: of several processes without a GPU each calls its device cpu:N,
            # which nothing can be loaded to.
            found = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RecipeError(
                self.checkpoint, f"is no checkpoint ({error})", "Remove it to start over"
            ) from error
        if {n: v.shape for n, v in found["parameters"].items()} != {
            n: v.shape for n, v in self.trained.items()
        }:
            raise RecipeError(self.checkpoint, "is of another model", "Remove it to start over")
        for name, parameter in self.trained.items():
            parameter.copy_(found["parameters"][name])
            self.average[name].copy_(found["average"][name])
        for optimizer, state in zip(self.optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.progress = Progress(**found["progress"])


class _Clock:
    """When something was last done, and how long the rest will take."""

    def __init__(self, share: float) -> None:
        self.began, self.from_share = time.time(), share
        self.last: dict[str, float] = {}

    def due(self, name: str, seconds: float) -> bool:
        now = time.time()
        if now - self.last.setdefault(name, self.began) < seconds:
            return False
        self.last[name] = now
        return True

    def left(self, share: float) -> str:
        gone = max(1e-9, share - self.from_share)
        return duration((time.time() - self.began) / gone * (1 - share))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Swapped:
    def __init__(self, trained: Mapping[str, nn.Parameter], other: Mapping[str, Tensor]) -> None:
        self.trained, self.other = trained, other

    def __enter__(self) -> None:
        self.own = {name: p.data for name, p in self.trained.items()}
        for name, parameter in self.trained.items():
            parameter.data = self.other[name]

    def __exit__(self, *problem: object) -> None:
        for name, parameter in self.trained.items():
            parameter.data = self.own[name]
