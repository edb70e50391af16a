"""Whether an adapter may go back to the device: it gains on feedback that it has not seen, and
nothing that the model could do before gets worse. Measured by the inference core, on the files that
the device will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selm_export.finetune.examples import Example
from selm_export.report import evaluate, scores

DRAWS = 2000
MOST_LOST = 0.01
"""Of a suite's questions, the share that may be lost: a point in a hundred."""
SUITES = ("notes", "declined", "arithmetic")


@dataclass(frozen=True)
class Suite:
    """Right answers as shares, before and with the adapter."""

    name: str
    before: float
    after: float
    questions: int

    @property
    def lost(self) -> float:
        return self.before - self.after


@dataclass(frozen=True)
class Verdict:
    """``gain``: nats per token that replies moved in the wanted direction, of rows that were not
    learnt from; ``low`` and ``high`` hold 95 % of the bootstrap's draws. ``reasons`` against it."""

    rows: int
    gain: float
    low: float
    high: float
    suites: tuple[Suite, ...]
    reasons: tuple[str, ...] = field(default=())

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        return {"accepted": self.accepted, **asdict(self)}


def judge(
    base: Path, adapter: Path, held_out: Sequence[Example], *, suites: Sequence[str] = SUITES,
    questions: int = 200, context: int = 1024, data: Path | None = None, seed: int = 1,
) -> Verdict:  # fmt: skip
    """``data``: a prepared folder, for suites that are not made up."""
    core: Any = evaluate.load_core(base, context)
    before = [_per_token(core, example) for example in held_out]
    old = {name: _share(core, name, questions, context, data) for name in suites}
    core.set_adapters({adapter: 1.0})
    after = [_per_token(core, example) for example in held_out]
    found = tuple(
        Suite(name, *old[name][:1], *_share(core, name, questions, context, data)[:1], old[name][1])
        for name in suites
    )
    core.close()
    gains = [
        (1 if example.wanted else -1) * (new - was)
        for example, new, was in zip(held_out, after, before, strict=True)
    ]
    gain, low, high = bootstrap([(e.talk, g) for e, g in zip(held_out, gains, strict=True)], seed)
    return Verdict(len(gains), gain, low, high, found, tuple(_against(len(gains), low, found)))


def bootstrap(gains: Sequence[tuple[str, float]], seed: int) -> tuple[float, float, float]:
    """The mean and the bounds of 95 % of its draws; conversations are drawn, as replies of one
    resemble each other."""
    talks: dict[str, list[float]] = {}
    for talk, gain in gains:
        talks.setdefault(talk, []).append(gain)
    if not talks:
        return 0.0, 0.0, 0.0
    sums = np.array([sum(values) for values in talks.values()])
    counts = np.array([len(values) for values in talks.values()])
    drawn = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def _against(rows: int, low: float, suites: Sequence[Suite]) -> list[str]:
    reasons = []
    if rows == 0:
        reasons.append("there is no feedback left to judge it by: bring more")
    elif low <= 0:
        reasons.append("on feedback that it has not seen it gains nothing that chance may not give")
    reasons += [
        f"{suite.name} falls from {suite.before:.1%} to {suite.after:.1%}"
        for suite in suites
        if suite.lost > MOST_LOST
    ]
    return reasons


def _per_token(core: Any, example: Example) -> float:
    """Mean log-probability of the reply's tokens."""
    ids, spoken = example.document.ids, example.document.reply
    places = [i for i in range(1, len(ids)) if spoken[i]]
    logits = evaluate.rows_of(core.session().eval(ids[:-1]))
    targets = np.array([ids[i] for i in places], dtype=np.int64)
    found = evaluate.log_softmax_at(logits[[i - 1 for i in places]], targets)
    return float(found.mean())


def _share(
    core: Any, name: str, questions: int, context: int, data: Path | None
) -> tuple[float, int]:
    scored = scores.score(core, name, data or Path(), context=context, count=questions)
    return scored.headline.value, scored.count
