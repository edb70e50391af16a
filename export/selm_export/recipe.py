"""A recipe file, read and checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from selm_export.data.corpus import READERS
from selm_export.data.packing import Packing
from selm_export.errors import RecipeError
from selm_export.network import Shape
from selm_export.optimise import Rates
from selm_export.train import Phase, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
GENERATORS = ("arithmetic", "notes", "copy", "identity")


@dataclass(frozen=True)
class Vocabulary:
    size: int
    repeat: dict[str, int]
    generated: int


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    data: Path
    seed: int
    held_out_share: float
    vocabulary: Vocabulary
    settings: Settings
    packing: Packing
    tokens: int
    exits: Phase  # that teaches a finished model to speak early
    sampling: dict[str, float]  # what the file recommends
    remarks: str  # on how the shipped run went, for the card
    questions: int  # of each kind in the evaluation
    table: dict[str, Any]  # the file as read, for hashing

    def sources(self) -> list[str]:
        """Every file source that a phase uses, in a fixed order."""
        used = {s for phase in (*self.settings.phases, self.exits) for s in phase.shares}
        return [s for s in READERS if s in used]


Made = TypeVar("Made")


def _make(kind: type[Made], table: dict[str, Any], path: Path, where: str) -> Made:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - known)
    if unknown:
        raise RecipeError(path, f"[{where}] has an unknown key {unknown[0]!r}", "Remove it")
    try:
        return kind(**table)
    except TypeError as error:
        raise RecipeError(path, f"[{where}]: {error}", "Add what is missing") from error


def read_recipe(path: Path, data: Path | None = None) -> Recipe:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(path, "the recipe does not exist", "Give a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, f"is no TOML ({error})", "Mend it") from error
    try:
        return _recipe(path, table, data)
    except KeyError as error:
        raise RecipeError(path, f"lacks the key {error}", "Add it") from error


def _recipe(path: Path, table: dict[str, Any], data: Path | None) -> Recipe:
    train = dict(table["train"])
    packing = _make(Packing, train.pop("packing", {}), path, "train.packing")
    rates = _make(Rates, train.pop("rates", {}), path, "train.rates")
    phases = tuple(_make(Phase, p, path, "train.phases") for p in train.pop("phases"))
    tokens = int(train.pop("tokens"))
    _check_phases(path, phases)
    exits = phases[-1]
    if "exits" in table:
        exits = _make(Phase, {**table["exits"], "until": 1.0}, path, "exits")
        _check_phases(path, (exits,), "exits")
    shape = replace(
        _make(Shape, table["model"], path, "model"), vocab=int(table["vocabulary"]["size"])
    )
    seed = int(table.get("seed", 1))
    settings = _make(
        Settings, {**train, "shape": shape, "phases": phases, "rates": rates, "seed": seed},
        path, "train",
    )  # fmt: skip
    return Recipe(
        name=table["name"],
        title=table["title"],
        data=data or Path(table["data"]),
        seed=seed,
        held_out_share=float(table["split"]["share"]),
        vocabulary=_make(Vocabulary, table["vocabulary"], path, "vocabulary"),
        settings=settings,
        packing=packing,
        tokens=tokens,
        exits=exits,
        sampling=_sampling(path, table.get("sampling", {})),
        remarks=" ".join(str(table.get("remarks", "")).split()),
        questions=int(table["evaluate"]["questions"]),
        table=table,
    )


def _sampling(path: Path, table: dict[str, Any]) -> dict[str, float]:
    for name, value in table.items():
        if name not in SAMPLING or isinstance(value, bool) or not isinstance(value, int | float):
            raise RecipeError(
                path, f"[sampling] {name} = {value!r} is no setting",
                f"Numbers for {', '.join(SAMPLING)}",
            )  # fmt: skip
    return table


def _check_phases(path: Path, phases: tuple[Phase, ...], where: str = "train.phases") -> None:
    if not phases or abs(phases[-1].until - 1.0) > 1e-9:
        raise RecipeError(path, "the last phase does not end at 1.0", "Set until = 1.0")
    for phase in phases:
        if phase.follow < 1 or (phase.follow > 1 and where != "exits"):
            raise RecipeError(
                path, f"[{where}] has follow = {phase.follow}",
                "At least 1 in [exits], and nowhere else",
            )  # fmt: skip
        for name in phase.shares:
            if name not in READERS and name not in GENERATORS:
                raise RecipeError(
                    path, f"the source {name!r} is unknown",
                    f"Known: {', '.join([*READERS, *GENERATORS])}",
                )  # fmt: skip
