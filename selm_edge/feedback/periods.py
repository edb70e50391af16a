"""Figures over time: things that have a moment, put into days, weeks, months or years."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeVar

Unit = Literal["day", "week", "month", "year"]
MOST = 30
"""Periods at most, but for years: as many as a terminal shows side by side."""


class Dated(Protocol):
    """``created`` in milliseconds since 1970; the ``model`` by its name."""

    @property
    def created(self) -> int: ...
    @property
    def model(self) -> str | None: ...


class Figures(Protocol):
    def as_json(self) -> dict[str, Any]: ...


I = TypeVar("I", bound=Dated)  # noqa: E741
F = TypeVar("F", bound=Figures)


@dataclass(frozen=True)
class OverTime(Generic[F]):
    """A figure of all things, of those of each period (by its first day, in local time, empty ones
    too), and of each model."""

    whole: F
    unit: Unit
    periods: tuple[tuple[date, F], ...]
    models: Mapping[str, F]

    def as_json(self) -> dict[str, Any]:
        periods = [{"start": day.isoformat(), **found.as_json()} for day, found in self.periods]
        models = {model: found.as_json() for model, found in self.models.items()}
        return {
            **self.whole.as_json(), "unit": self.unit, "periods": periods, "by_model": models
        }  # fmt: skip


def over_time(things: Sequence[I], figure: Callable[[Sequence[I]], F]) -> OverTime[F]:
    """Days where these are at most `MOST`, else weeks (from Monday), months or years."""
    days = [datetime.fromtimestamp(thing.created / 1000).date() for thing in things]
    unit, starts = _periods(days)
    members: list[list[I]] = [[] for _ in starts]
    models: dict[str, list[I]] = {}
    for thing, day in zip(things, days, strict=True):
        members[bisect_right(starts, day) - 1].append(thing)
        models.setdefault(thing.model or "unknown", []).append(thing)
    return OverTime(
        figure(things),
        unit,
        tuple((start, figure(found)) for start, found in zip(starts, members, strict=True)),
        {model: figure(found) for model, found in sorted(models.items())},
    )


def _periods(days: Sequence[date]) -> tuple[Unit, list[date]]:
    if not days:
        return "day", []
    first, last = min(days), max(days)
    for unit, begin, after in _UNITS:
        starts = [begin(first)]
        while len(starts) <= MOST and (following := after(starts[-1])) <= last:
            starts.append(following)
        if len(starts) <= MOST:
            return unit, starts
    return "year", [date(year, 1, 1) for year in range(first.year, last.year + 1)]


def _next_month(day: date) -> date:
    return (day + timedelta(days=31)).replace(day=1)


_UNITS: tuple[tuple[Unit, Callable[[date], date], Callable[[date], date]], ...] = (
    ("day", lambda day: day, lambda day: day + timedelta(days=1)),
    ("week", lambda day: day - timedelta(days=day.weekday()), lambda day: day + timedelta(days=7)),
    ("month", lambda day: day.replace(day=1), _next_month),
)
