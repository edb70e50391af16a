"""Searches values of a recipe, with Optuna: TPE proposes, Hyperband ends what does not get on.

Several processes take part in one study by
running the same command: trials are kept in a journal file. Each trial is a whole run of the recipe
in a folder of its own; steps that a trial's values do not concern are done once, for all of them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from selm_edge.locking import lock
from selm_export.errors import RecipeError
from selm_export.ledger import Ledger
from selm_export.pipeline import Pipeline
from selm_export.recipe import Recipe, read_recipe

Say = Callable[[str], None]
JOURNAL = "study.journal"


@dataclass(frozen=True)
class Range:
    """``base.train.rate=0.001..0.01`` (log where ends are more than tenfold apart), ``route.epochs
    =1..8`` (integers where both ends are), or ``linearize.feature_map=hedgehog,favor+``."""

    place: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: optuna.Trial) -> Any:
        if self.choices:
            return trial.suggest_categorical(self.place, self.choices)
        assert self.low is not None and self.high is not None
        log = self.low > 0 and self.high > 10 * self.low
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.place, self.low, self.high, log=log)
        return trial.suggest_float(self.place, self.low, self.high, log=log)


def read_range(text: str) -> Range:
    place, sign, values = text.partition("=")
    try:
        if not sign or not place:
            raise ValueError
        if ".." in values:
            low, high = (json.loads(part) for part in values.split("..", 1))
            if not low < high:
                raise ValueError
            return Range(place, low, high)
        return Range(place, choices=tuple(_value(part) for part in values.split(",")))
    except (ValueError, TypeError):
        raise RecipeError(
            text, "is no range of values", "Write STEP.KEY=LOW..HIGH or STEP.KEY=ONE,ANOTHER"
        ) from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Goal:
    """``step.figure``, inner ones with more dots: a number of the report, to be made small."""

    step: str
    figure: tuple[str, ...]

    @staticmethod
    def read(text: str) -> Goal:
        step, *figure = text.split(".")
        if not figure:
            raise RecipeError(text, "is no figure", "Write STEP.FIGURE, such as base.bits_per_byte")
        return Goal(step, tuple(figure))

    def of(self, ledger: Ledger) -> float:
        value: Any = ledger.entries.get(self.step, {}).get("line", {}).get("figures", {})
        for key in self.figure:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = ledger.entries.get(self.step, {}).get("line", {}).get("figures", {})
            raise RecipeError(
                ".".join((self.step, *self.figure)), "is no number of the report",
                f"Figures of {self.step}: {', '.join(known) or 'none'}",
            )  # fmt: skip
        return float(value)


class _Pruned(Exception):
    """What a trial has reached so far is too little."""


class Tuner:
    def __init__(
        self, path: Path, ranges: list[Range], goal: Goal, folder: Path,
        *, changes: Mapping[str, Any], say: Say,
    ) -> None:  # fmt: skip
        self.path, self.ranges, self.goal, self.folder = path, ranges, goal, folder
        self.changes, self.say = dict(changes), say
        recipe = read_recipe(path, self.changes)  # what is wrong is said before anything runs
        if goal.step not in [step.name for step in recipe.steps]:
            raise RecipeError(path, f"has no step {goal.step!r}", "Name a step's figure")
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        # A seed of its own for each process, or all would propose the same.
        sampler = optuna.samplers.TPESampler(
            multivariate=True, seed=recipe.seed * 1009 + os.getpid()
        )
        self.study = optuna.create_study(
            storage=storage, study_name=recipe.name, load_if_exists=True, direction="minimize",
            sampler=sampler, pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=27),
        )  # fmt: skip

    def run(self, trials: int) -> dict[str, Any]:
        """Until the study has so many trials that ended; the best one's values."""
        self._enqueue_defaults()
        while self._ended() < trials:
            self.study.optimize(self._trial, n_trials=1, catch=())
        best = self.study.best_trial
        return {"best": best.value, "values": best.params, "trial": best.number,
                "trials": self._ended()}  # fmt: skip

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def _enqueue_defaults(self) -> None:
        """The recipe's own values are the first trial, so that the best is never worse."""
        if self.study.get_trials(deepcopy=False):
            return
        known = {r.place: _of_recipe(read_recipe(self.path, self.changes), r) for r in self.ranges}
        self.study.enqueue_trial({k: v for k, v in known.items() if v is not None})

    def _trial(self, trial: optuna.Trial) -> float:
        values = {r.place: r.suggest(trial) for r in self.ranges}
        recipe = read_recipe(self.path, {**self.changes, **values})
        work = self.folder / f"trial-{trial.number}"
        self._share_finished(recipe, work)
        told = 0

        def heard(text: str) -> None:
            """The loop's measurements in the middle of a run are what Hyperband judges by."""
            nonlocal told
            _, found, value = text.partition("bits per byte ")
            if found and value:
                trial.report(float(value.split(",")[0]), told)
                told += 1
                if trial.should_prune():
                    raise _Pruned

        shown = ", ".join(f"{place} {value}" for place, value in values.items())
        try:
            done = Pipeline(recipe, work, heard).run(last=self.goal.step)
        except _Pruned:
            self.say(f"trial {trial.number}: {shown}: ended early")
            raise optuna.TrialPruned from None
        except RecipeError as error:  # these values do not work: NaN, a shape that cannot be
            self.say(f"trial {trial.number}: {shown}: {error}")
            raise optuna.TrialPruned from error
        if not done:
            raise KeyboardInterrupt
        value = self.goal.of(Ledger(work))
        self.say(f"trial {trial.number}: {shown}: {value:.4f}")
        return value

    def _share_finished(self, recipe: Recipe, work: Path) -> None:
        """Steps before the first that a value concerns are the same in every trial."""
        shared = self.folder / "shared"
        concerned = {r.place.split(".")[0] for r in self.ranges}
        names = []
        for step in recipe.steps:
            if step.name in concerned or step.name == self.goal.step:
                break
            names.append(step.name)
        if not names or work.exists():
            return
        # One process runs them, however long that takes; the others find them done.
        with lock(self.folder / "shared.lock", patience=math.inf):
            Pipeline(recipe, shared, self.say).run(last=names[-1])
            shutil.copytree(shared, work)


def _of_recipe(recipe: Recipe, wanted: Range) -> Any:
    """The value that the recipe has now, if it is within the range."""
    name, *keys = wanted.place.split(".")
    value: Any = next((step.settings for step in recipe.steps if step.name == name), None)
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    if wanted.choices:
        return value if value in wanted.choices else None
    inside = isinstance(value, int | float) and wanted.low is not None and wanted.high is not None
    return value if inside and wanted.low <= value <= wanted.high else None
