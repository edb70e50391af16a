"""A recipe file, read and checked: which stages, from what, with which settings."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from selm_export.errors import RecipeError
from selm_export.stages import STAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OF_RECIPE = ("name", "title", "seed", "remarks", "stages")
OF_STEP = ("stage", "name", "from")


@dataclass(frozen=True)
class Step:
    """One entry of ``[[stages]]``: what it is called, what it does, and on which steps' results."""

    name: str
    stage: str
    inputs: tuple[str, ...]
    settings: Any  # the stage's own ``Settings``
    table: dict[str, Any]  # as written, for hashing


@dataclass(frozen=True)
class Recipe:
    path: Path
    name: str
    title: str
    seed: int
    remarks: str  # on how the shipped run went, for the card
    steps: tuple[Step, ...]


def stage_module(name: str) -> ModuleType:
    return import_module(f"selm_export.stages.{name}")


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """``changes`` are values by place, ``base.train.tokens``, that win over the file's; without a
    step's name before it, a key is the recipe's own."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(path, "the recipe does not exist", "Give a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, f"is no TOML ({error})", "Mend it") from error
    _only(path, "the recipe", table, OF_RECIPE)
    for place, value in (changes or {}).items():
        _change(path, table, place, value)
    steps: list[Step] = []
    for number, entry in enumerate(table.get("stages", []), start=1):
        steps.append(_step(path, entry, number, steps))
    if not steps:
        raise RecipeError(path, "has no [[stages]]", 'Add one, such as stage = "data"')
    name = str(table.get("name", path.stem))
    return Recipe(
        path, name, str(table.get("title", name)), int(table.get("seed", 1)),
        " ".join(str(table.get("remarks", "")).split()), tuple(steps),
    )  # fmt: skip


def _only(path: Path, where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise RecipeError(
                path, f"{where} has an unknown key {key!r}", f"Known: {', '.join(known)}"
            )


def _change(path: Path, table: dict[str, Any], place: str, value: Any) -> None:
    first, _, rest = place.partition(".")
    if not rest:
        _only(path, "the recipe", {first: value}, OF_RECIPE)
        table[first] = value
        return
    for entry in table.get("stages", []):
        if entry.get("name", entry.get("stage")) == first:
            *inner, last = rest.split(".")
            for key in inner:
                entry = entry.setdefault(key, {})  # noqa: PLW2901
            entry[last] = value
            return
    names = ", ".join(e.get("name", e.get("stage", "?")) for e in table.get("stages", []))
    raise RecipeError(path, f"has no step {first!r} to change {place}", f"Steps: {names}")


def _step(path: Path, entry: dict[str, Any], number: int, before: list[Step]) -> Step:
    stage = entry.get("stage")
    if stage not in STAGES:
        raise RecipeError(
            path, f"[[stages]] number {number} has stage = {stage!r}", f"Known: {', '.join(STAGES)}"
        )
    name = str(entry.get("name", stage))
    where = f"the step {name!r}"
    known = {step.name: step for step in before}
    if name in known or not name or "/" in name or name.startswith("."):
        raise RecipeError(path, f"{where} has a name that is taken or no file name", "Change it")
    given = entry.get("from", _before(before) if stage != "data" else [])
    inputs = (given,) if isinstance(given, str) else tuple(given)
    for source in inputs:
        if source not in known:
            raise RecipeError(
                path, f"{where} is from {source!r}, which no step before it is called",
                f"Steps before it: {', '.join(known) or 'none'}",
            )  # fmt: skip
    own = {key: value for key, value in entry.items() if key not in OF_STEP}
    settings = build(stage_module(stage).Settings, own, path, where)
    return Step(name, stage, inputs, settings, own)


def _before(steps: list[Step]) -> list[str]:
    """What a step that does not say goes on from: the one before, unless that made data."""
    return [steps[-1].name] if steps and steps[-1].stage != "data" else []


Made = TypeVar("Made")


def build(kind: type[Made], table: Mapping[str, Any], path: Path, where: str) -> Made:
    """A dataclass from a table of TOML: every key known, every value of the field's type."""
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    _only(path, where, table, tuple(names))
    values = {k: _value(hints[k], v, path, f"{where}, key {k!r}") for k, v in table.items()}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise RecipeError(path, f"{where} lacks the key {each.name!r}", "Add it")
    made = kind(**values)
    fault = made.faults() if hasattr(made, "faults") else None
    if fault:
        raise RecipeError(path, f"{where}: {fault}", "Mend it")
    return made


def _value(hint: Any, value: Any, path: Path, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        hint = next(each for each in inner if each is not type(None))
        return _value(hint, value, path, where)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return build(hint, value, path, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], each, path, where) for each in value)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _value(inner[1], each, path, where) for key, each in value.items()}
    return _plain(hint, value, path, where)


def _plain(hint: Any, value: Any, path: Path, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return path.parent / value  # beside the recipe
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    fits = hint is Any or (isinstance(hint, type) and isinstance(value, hint))
    if fits and (hint is bool or hint is Any or not isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise RecipeError(path, f"{where}: {value!r} is no {wanted}", "Mend it")
