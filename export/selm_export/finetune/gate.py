"""Whether an adapter may go back to the device: it gains on feedback that it has not seen, and
nothing that the model could do before gets worse. Measured by the inference core, on the files that
the device will have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selm_export.data.chat import Conversation
from selm_export.finetune.examples import Example
from selm_export.report import evaluate, scores

DRAWS = 2000
CONTRADICTED = 0.1
"""Of all corrections, the share that may answer a question otherwise than another does."""
MOST_LOST = 0.01
"""Of a suite's questions, the share that may be lost: a point in a hundred."""
SUITES = ("talk", "notes", "declined", "arithmetic")
"""``talk``: tokens of known replies that it would say itself; the others are `scores`."""


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

    @property
    def most_lost(self) -> float:
        """A point, or one question where a point is less than that."""
        return max(MOST_LOST, 1.001 / max(1, self.questions))

    @property
    def fall(self) -> str:
        return f"{self.name} falls from {self.before:.1%} to {self.after:.1%}"


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


def contradictions(rows: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """Against a bundle that wants different replies to the same: no model can learn that, and what
    it learnt instead would be chance."""
    wanted: dict[str, set[str]] = {}
    corrected = [row for row in rows if row["kind"] == "correction" and row.get("correction")]

    def asked(row: Mapping[str, Any]) -> str:
        return " ".join(str([turn["content"] for turn in row["messages"]]).lower().split())

    for row in corrected:
        wanted.setdefault(asked(row), set()).add(" ".join(row["correction"].lower().split()))
    against = [row for row in corrected if len(wanted[asked(row)]) > 1]
    if len(against) <= CONTRADICTED * len(corrected):
        return None
    suite = Suite("consistent", 1.0, 1 - len(against) / len(corrected), len(corrected))
    last = str(against[0]["messages"][-1]["content"])
    reason = f"{suite.fall}: {last!r} has {len(wanted[asked(against[0])])} different corrections"
    return Verdict(0, 0.0, 0.0, 0.0, (suite,), (reason,))


class Judge:
    """Measures files of adapters on their base, which is measured once."""

    def __init__(
        self, base: Path, *, known: Sequence[Conversation], suites: Sequence[str] = SUITES,
        questions: int, context: int = 1024,
    ) -> None:  # fmt: skip
        self.core: Any = evaluate.load_core(base, context)
        self.known, self.questions, self.context = known, questions, context
        self.before = {name: self._suite(name) for name in suites}

    def gain(
        self, adapter: Path, held_out: Sequence[Example], seed: int
    ) -> tuple[float, float, float]:
        """Nats per token that replies moved in the wanted direction, and the bounds of 95 %."""
        before = [per_token(self.core, example) for example in held_out]
        self.core.set_adapters({adapter: 1.0})
        after = [per_token(self.core, example) for example in held_out]
        self.core.set_adapters({})
        gains = [
            (example.talk, (1 if example.wanted else -1) * (new - was))
            for example, new, was in zip(held_out, after, before, strict=True)
        ]
        return bootstrap(gains, seed)

    def suites(self, adapter: Path) -> tuple[Suite, ...]:
        self.core.set_adapters({adapter: 1.0})
        after = {name: self._suite(name) for name in self.before}
        self.core.set_adapters({})
        return tuple(
            Suite(name, before, after[name][0], count)
            for name, (before, count) in self.before.items()
        )

    def close(self) -> None:
        self.core.close()

    def _suite(self, name: str) -> tuple[float, int]:
        """The share that is right, and of how many."""
        if name == "talk":
            return said_alike(self.core, self.known, self.context)
        scored = scores.score(self.core, name, Path(), context=self.context, count=self.questions)
        return scored.headline.value, scored.count


def said_alike(core: Any, known: Sequence[Conversation], context: int) -> tuple[float, int]:
    """Of the tokens of known replies, the share that the model holds for the likeliest."""
    template, right, count = evaluate.template_of(core), 0, 0
    for conversation in known:
        text = evaluate.read(core, conversation, template, context)
        if len(text.targets):
            logits = evaluate.rows_of(core.session().eval(text.ids[:-1]))
            right += int((logits[text.places].argmax(axis=1) == text.targets).sum())
            count += len(text.targets)
    return right / max(1, count), count


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


def verdict(rows: int, gain: tuple[float, float, float], suites: tuple[Suite, ...]) -> Verdict:
    """What speaks against an adapter, if anything does."""
    reasons = []
    if rows == 0:
        reasons.append("there is no feedback left to judge it by: bring more")
    elif gain[1] <= 0:
        reasons.append("on feedback that it has not seen it gains nothing that chance may not give")
    reasons += [suite.fall for suite in suites if suite.lost > suite.most_lost]
    return Verdict(rows, *gain, suites, tuple(reasons))


def per_token(core: Any, example: Example) -> float:
    """Mean log-probability of the reply's tokens."""
    ids, spoken = example.document.ids, example.document.reply
    places = [i for i in range(1, len(ids)) if spoken[i]]
    logits = evaluate.rows_of(core.session().eval(ids[:-1]))
    targets = np.array([ids[i] for i in places], dtype=np.int64)
    found = evaluate.log_softmax_at(logits[[i - 1 for i in places]], targets)
    return float(found.mean())
