"""What a report is made from: ``report.json``, which a run writes line by line as stages finish.

A list with one object a stage, in the order in which they ran:

    {"name": "small", "stage": "prune", "from": ["teacher"], "seconds": 61.2, "peak_mb": 812.5,
     "figures": {...}}

``from`` names the stages that it was made from, what it changed first; without it a file's way from
the teacher is not known. All but ``name`` may be missing or null. The
``figures`` are whatever the stage returned; those that the report knows by name:

    file_bytes, parameters    of what the stage made
    reference                 the name of the stage (or file) that ``quality`` compares with
    quality                   {"replies": {...}, "all": {...}} (quality.py); a stage that measures
                              less may give mean_kld, kld_99 and same_top_token by themselves
    bits_per_byte             of held-out replies (evaluate.py)
    scores                    {task: {...}} (scores.py)
    routing                   (routing.py)
    speed                     {"prompt", "decode", "peak_mb", ...} (speed.py)
    routes                    an early route against a full one: {"early", "full", "replies": {...}}
    builds                    {name: {...}}: files that it made or measured, each with the figures
                              above and ``from``, the stage that made it
    error                     why it failed

All others are shown as they are. A figure with its ± is {"value": 0.1, "error": 0.02}. Nothing here
fails on a figure that is missing, null, no number or of another form: a report of a run that went
wrong must tell what there is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.errors import RecipeError

KNOWN = frozenset(
    ("file_bytes", "parameters", "reference", "quality", "bits_per_byte", "scores", "routing",
     "speed", "routes", "builds", "error")
)  # fmt: skip
# Stages that make another model, and not a file of the same one: they name a way.
SHAPING = (
    "base",
    "expert",
    "delta",
    "route",
    "distill",
    "prune",
    "factorize",
    "linearize",
    "exits",
)


@dataclass(frozen=True)
class Figure:
    value: float
    error: float = math.nan

    @property
    def known(self) -> bool:
        return math.isfinite(self.value)


MISSING = Figure(math.nan)


def figure(raw: Any) -> Figure:
    """A number, or a value with its error; `MISSING` where it is neither."""
    if isinstance(raw, Mapping):
        value, error = figure(raw.get("value")).value, figure(raw.get("error")).value
        return Figure(value, error)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return MISSING
    return Figure(float(raw))


def table(raw: Any) -> Mapping[str, Any]:
    return raw if isinstance(raw, Mapping) else {}


def at(raw: Any, *keys: str) -> Any:
    for key in keys:
        raw = table(raw).get(key)
    return raw


def quality_of(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """At the places of replies."""
    found = table(figures.get("quality"))
    return table(found["replies"]) if "replies" in found else found or figures


def size_of(figures: Mapping[str, Any]) -> Figure:
    """Of its file. ``bytes`` beside ``bits_per_weight`` is that too."""
    if "file_bytes" not in figures and "bits_per_weight" in figures:
        return figure(figures.get("bytes"))
    return figure(figures.get("file_bytes"))


@dataclass(frozen=True)
class Stage:
    name: str
    kind: str
    sources: tuple[str, ...] | None  # None: it does not say
    seconds: Figure
    peak_mb: Figure
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Build:
    """A file that a device could run. ``way``: what was done to the teacher's shape on the way to
    it; nothing for a file that was only quantised, None where that is not known."""

    name: str
    way: tuple[str, ...] | None
    figures: Mapping[str, Any]

    @property
    def size(self) -> Figure:
        return size_of(self.figures)

    @property
    def kld(self) -> Figure:
        return figure(quality_of(self.figures).get("mean_kld"))

    @property
    def path(self) -> str:
        if self.way is None:
            return "way unknown"
        return " + ".join((*self.way, "quantised")) if self.way else "quantised only"


def read(path: Path) -> list[Stage]:
    """RecipeError where the file is missing or is no list of stages."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            path, "does not exist", "Run the stages before the report, which write it"
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(path, f"cannot be read ({error})", "Run the stages again") from error
    return stages(raw, path)


def stages(raw: Any, where: Path | str = "report.json") -> list[Stage]:
    if not isinstance(raw, list) or not all(isinstance(line, Mapping) for line in raw):
        raise RecipeError(where, "is no list of stages", "Run the stages again, which write it")
    found = []
    for number, line in enumerate(raw, start=1):
        sources = line.get("from")
        found.append(
            Stage(
                str(line.get("name") or f"stage {number}"), str(line.get("stage") or "unknown"),
                tuple(map(str, sources)) if isinstance(sources, list) else None,
                figure(line.get("seconds")), figure(line.get("peak_mb")),
                table(line.get("figures")),
            )
        )  # fmt: skip
    return found


def builds(lines: Sequence[Stage]) -> list[Build]:
    """Every file with a size that some stage made or measured, the smallest first. A stage that
    only measures (``builds``) has the last word on a file's figures."""
    by_name = {line.name: line for line in lines}
    teachers = _references(lines)
    found: dict[str, Build] = {}
    for line in lines:
        own = line.figures.get("builds")
        for name, figures in table(own).items():
            maker = str(table(figures).get("from") or line.name)
            found[str(name)] = Build(str(name), _way(maker, by_name, teachers), table(figures))
        if own is None and line.kind == "quantize":
            found.setdefault(
                line.name, Build(line.name, _way(line.name, by_name, teachers), line.figures)
            )
    return sorted(
        found.values(), key=lambda b: (b.size.value if b.size.known else math.inf, b.name)
    )


def _references(lines: Sequence[Stage]) -> set[str]:
    every = [line.figures for line in lines]
    every += [table(b) for line in lines for b in table(line.figures.get("builds")).values()]
    return {str(figures["reference"]) for figures in every if figures.get("reference")}


def _way(name: str, by_name: Mapping[str, Stage], teachers: set[str]) -> tuple[str, ...] | None:
    """The kinds of the stages between a teacher and this one, the first first; from the beginning
    where it does not come from a teacher."""
    kinds: list[str] = []
    while name not in teachers:
        line = by_name.get(name)
        if line is None or line.sources is None or len(kinds) > len(by_name):
            return None
        kinds += [line.kind] if line.kind in SHAPING else []
        if not line.sources:
            break
        name = line.sources[0]
    return tuple(reversed(kinds))
