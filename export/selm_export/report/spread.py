"""Figures with their ±: how far chance may have moved them.

The unit that varies is the document (the question, the conversation), not the token: tokens of one
document resemble each other, and an error counted over tokens would be too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """``error`` is one standard error; NaN where a single document says nothing of it."""

    value: float
    error: float

    def as_json(self) -> dict[str, Any]:
        """NaN and infinity, which JSON has not, as None."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def ratio(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """The mean per unit counted, sum(sums) / sum(counts), of n documents; its error is that of a
    ratio estimate, by linearisation (Cochran, Sampling Techniques, 3rd edition, section 6.3):

        error = sqrt(n / (n - 1) * sum((x_i - r c_i)^2)) / sum(c)
    """
    n, total = len(sums), math.fsum(counts)
    if not total:
        return Estimate(math.nan, math.nan)
    value = math.fsum(sums) / total
    if n < 2:
        return Estimate(value, math.nan)
    squares = math.fsum((x - value * c) ** 2 for x, c in zip(sums, counts, strict=True))
    return Estimate(value, math.sqrt(n / (n - 1) * squares) / total)


def mean(values: Sequence[float]) -> Estimate:
    """Of one value a document."""
    return ratio(values, [1.0] * len(values))


def exponential(log: Estimate) -> Estimate:
    """Of a mean logarithm; the error to first order."""
    value = math.exp(min(log.value, 700.0))
    return Estimate(value, value * log.error)


def root(square: Estimate) -> Estimate:
    """Of a mean square; the error to first order."""
    value = math.sqrt(square.value)
    return Estimate(value, square.error / (2 * value) if value else square.error)
