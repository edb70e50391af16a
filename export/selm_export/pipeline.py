"""A recipe's steps, each run once, in a folder of its own."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from selm_export.errors import RecipeError
from selm_export.ledger import Ledger, hash_of
from selm_export.recipe import Recipe, Step, stage_module
from selm_export.report import step as step_quality
from selm_export.stages.job import Job
from selm_export.training.processes import processes
from selm_export.training.trainer import duration

Say = Callable[[str], None]
MADE_FROM = ".made-from"  # the hash of the inputs of what lies in a step's folder


@dataclass(frozen=True)
class Pipeline:
    recipe: Recipe
    work: Path
    say: Say
    keep: bool = False  # what an unfinished step left, though its inputs have changed

    def run(self, first: str | None = None, last: str | None = None) -> bool:
        """Runs what is not done, in order. ``first`` forces that step and all after it to run
        again; ``last`` is the last one to run. False when a step was stopped on the way."""
        self._check(first, last)
        self.work.mkdir(parents=True, exist_ok=True)
        together = processes()
        say = self.say if together.is_main_process else _silent
        names = [step.name for step in self.recipe.steps]
        forced = False
        for number, step in enumerate(self.recipe.steps, start=1):
            together.wait_for_everyone()
            ledger = Ledger(self.work)  # which the first process writes and all read
            forced = forced or step.name == first
            label = f"[{number}/{len(names)}] {step.name}"
            inputs = self._inputs(step, ledger)
            if not forced and ledger.done(step.name, inputs):
                say(f"{label}: done before")
            else:
                say(f"{label}: {step.stage}")
                began = time.time()
                if not self._step(step, inputs, ledger, together):
                    say(f"{label}: stopped; run the same command again to go on")
                    return False
                say(f"{label}: done in {duration(time.time() - began)}")
            if together.is_main_process:
                ledger.write_report(names)
            if step.name == last:
                break
        return True

    def plan(self, first: str | None = None, last: str | None = None) -> list[tuple[Step, bool]]:
        """Each step, and whether it would have to run: what comes after one that has to cannot be
        known, so it has to."""
        self._check(first, last)
        ledger = Ledger(self.work)
        found: list[tuple[Step, bool]] = []
        pending: set[str] = set()
        forced = False
        for step in self.recipe.steps:
            forced = forced or step.name == first
            needed = {*step.inputs, *self._data_steps(step)}
            due = forced or bool(needed & pending)
            due = due or not ledger.done(step.name, self._inputs(step, ledger))
            if due:
                pending.add(step.name)
            found.append((step, due))
            if step.name == last:
                break
        return found

    def _check(self, *names: str | None) -> None:
        known = [step.name for step in self.recipe.steps]
        for name in names:
            if name is not None and name not in known:
                raise RecipeError(
                    self.recipe.path, f"has no step {name!r}", f"Steps: {', '.join(known)}"
                )

    def _data_steps(self, step: Step) -> list[str]:
        """The data that a step reads: the last that was prepared before it."""
        before = []
        for each in self.recipe.steps:
            if each is step:
                break
            if each.stage == "data":
                before = [each.name]
        return before

    def _inputs(self, step: Step, ledger: Ledger) -> str:
        """Everything that decides a step's result: its keys, the seed, what earlier steps wrote,
        and the files that it names itself."""
        module = stage_module(step.stage)
        own = module.sources(step.settings) if hasattr(module, "sources") else None
        if step.stage == "report":  # it tells of every step
            up_to = self.recipe.steps[: self.recipe.steps.index(step)]
            made: Any = [ledger.entries.get(each.name, {}).get("line") for each in up_to]
        else:
            made = {n: ledger.digest(n) for n in (*step.inputs, *self._data_steps(step))}
        return hash_of([step.stage, step.table, self.recipe.seed, made, own])

    def _step(self, step: Step, inputs: str, ledger: Ledger, together: PartialState) -> bool:
        module = stage_module(step.stage)
        folder = self.work / step.name
        if together.is_main_process:
            self._make_room(folder, inputs)
        together.wait_for_everyone()
        data = self._data_steps(step)
        job = Job(
            step.name, tuple(self.work / name for name in step.inputs), folder,
            self.work / data[0] if data else folder, self.recipe.seed,
            self.say if together.is_main_process else _silent,
        )  # fmt: skip
        began, figures = time.time(), {}
        _forget_peak()
        try:
            if together.is_main_process or getattr(module, "PARALLEL", False):
                figures = module.run(job, step.settings)
        except OSError as error:
            raise RecipeError(
                folder, f"the step {step.name} could not write or read ({error})",
                "Make room or mend the path, then run the same command again: finished steps stay",
            ) from error  # fmt: skip
        together.wait_for_everyone()
        if figures is None:  # asked to stop; what it has learned is in the folder
            return False
        if together.is_main_process:
            figures = {**step_quality.measured(job, step.stage), **figures}
            line = {
                "stage": step.stage, "from": list(step.inputs),
                "seconds": round(time.time() - began, 1), "peak_mb": _peak_mb(), "figures": figures,
            }  # fmt: skip
            ledger.record(step.name, inputs, line)
        return True

    def _make_room(self, folder: Path, inputs: str) -> None:
        """What another recipe or other data left in a step's folder is set aside, not lost."""
        note = folder / MADE_FROM
        if folder.exists() and not self.keep:
            same = note.exists() and note.read_text(encoding="utf-8") == inputs
            if not same and any(folder.iterdir()):
                aside = folder.with_name(f".{folder.name}-before")
                _remove(aside)
                folder.replace(aside)
                self.say(f"  what was in {folder} is of another run: kept as {aside.name}")
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(inputs, encoding="utf-8")


def _silent(text: str) -> None:
    """Of all processes one speaks."""


def _remove(folder: Path) -> None:
    import shutil

    if folder.exists():
        shutil.rmtree(folder)


def _forget_peak() -> None:
    """Lets the kernel measure the next step's peak memory by itself, where it can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def _peak_mb() -> float:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(each for each in text.splitlines() if each.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
