"""Choosing a token: each filter and penalty against numpy, distributions by chi-square.

The random numbers are a fixed function of seed and draw, so nothing here depends on luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from selm_edge import _core

Doubles = npt.NDArray[np.float64]
N_DRAWS = 4000


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int = 42
    history: Sequence[int] = field(default=())

    def core(self) -> _core.Sampling:
        out = _core.Sampling()
        for name in self.__dataclass_fields__:
            if name != "history":
                setattr(out, name, getattr(self, name))
        return out


def softmax(logits: Doubles, temperature: float = 1.0) -> Doubles:
    p = np.exp((logits - logits.max()) / temperature)
    return p / p.sum()


def penalised(logits: Doubles, o: Options) -> Doubles:
    """Repetition (CTRL, 1909.05858), frequency and presence penalties over the last tokens."""
    logits = logits.copy()
    recent = list(o.history)[-o.penalty_last_n :] if o.penalty_last_n else []
    for token in set(recent):
        scale = 1 / o.repeat_penalty if logits[token] > 0 else o.repeat_penalty
        logits[token] *= scale
        logits[token] -= recent.count(token) * o.frequency_penalty + o.presence_penalty
    return logits


def distribution(logits: Doubles, o: Options) -> Doubles:
    """Probability of each token: penalties, top-k, typical, top-p, min-p, temperature."""
    logits = penalised(logits, o)
    kept = np.argsort(-logits, kind="stable")
    if o.top_k:
        kept = kept[: o.top_k]
    if o.typical_p < 1:  # nearest to the expected surprise first (2202.00666)
        p = softmax(logits[kept])
        surprise = -np.log(p)
        order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
        kept = kept[order[: int((np.cumsum(p[order]) < o.typical_p).sum()) + 1]]
        kept = kept[np.argsort(-logits[kept], kind="stable")]
    if o.top_p < 1:
        kept = kept[: int((np.cumsum(softmax(logits[kept])) < o.top_p).sum()) + 1]
    if o.min_p > 0:
        p = softmax(logits[kept])
        kept = kept[p >= o.min_p * p.max()]
    out = np.zeros(len(logits))
    out[kept] = softmax(logits[kept], o.temperature)
    return out


def draws(logits: npt.ArrayLike, o: Options, n: int = N_DRAWS) -> list[int]:
    values, sampling, history = np.asarray(logits).tolist(), o.core(), list(o.history)
    return [_core.sample(sampling, values, history, draw) for draw in range(n)]


def chi_square(counts: npt.NDArray[np.int64], p: Doubles) -> tuple[float, int]:
    """Statistic and degrees of freedom, tokens of few expected draws taken together."""
    expected = p * counts.sum()
    rare = expected < 8
    groups = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)]
    if expected[rare].sum() >= 8:
        groups.append((counts[rare].sum(), expected[rare].sum()))
    return sum((c - e) ** 2 / e for c, e in groups), max(len(groups) - 1, 1)


LOGITS = np.random.default_rng(8).standard_normal(40) * 2
HISTORY = [3, 3, 3, 7, 12, 12, 30, *[int(LOGITS.argmax())] * 4]
CASES = {
    "plain": Options(),
    "hot": Options(temperature=2.5),
    "cold": Options(temperature=0.3),
    "top-k": Options(top_k=5),
    "top-k-all": Options(top_k=1000),
    "top-p": Options(top_p=0.8),
    "top-p-tiny": Options(top_p=1e-6),
    "min-p": Options(min_p=0.1),
    "min-p-1": Options(min_p=1.0),
    "typical": Options(typical_p=0.6),
    "typical-tiny": Options(typical_p=1e-6),
    "repeat": Options(repeat_penalty=1.7, history=HISTORY),
    "repeat-below-1": Options(repeat_penalty=0.5, history=HISTORY),
    "frequency": Options(frequency_penalty=0.8, history=HISTORY),
    "presence": Options(presence_penalty=1.5, history=HISTORY),
    "presence-negative": Options(presence_penalty=-2.0, history=HISTORY),
    "last-4": Options(frequency_penalty=0.8, penalty_last_n=4, history=HISTORY),
    "last-0": Options(frequency_penalty=5.0, penalty_last_n=0, history=HISTORY),
    "everything": Options(
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.95,
        repeat_penalty=1.2,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        history=HISTORY,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_distribution(name: str) -> None:
    options = CASES[name]
    p = distribution(LOGITS.astype(np.float32).astype(np.float64), options)
    counts = np.bincount(draws(LOGITS, options), minlength=len(LOGITS))
    assert counts[p == 0].sum() == 0  # what a filter took away never comes
    statistic, freedom = chi_square(counts, p)
    # Mean `freedom`, variance twice that; five deviations and a little for small freedom.
    assert statistic <= freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("history", [[], HISTORY])
def test_greedy_is_the_largest_after_penalties(history: list[int]) -> None:
    for seed in range(20):
        logits = np.random.default_rng(seed).standard_normal(100)
        options = Options(
            temperature=0.0, repeat_penalty=2.0, presence_penalty=0.5, history=history
        )
        expected = int(penalised(logits.astype(np.float32), options).argmax())
        assert set(draws(logits, options, 3)) == {expected}


def test_ties_go_to_the_first() -> None:
    assert draws([1.0, 5.0, 5.0, 5.0], Options(temperature=0.0), 5) == [1] * 5


def test_a_seed_gives_the_same_choices_again() -> None:
    first = draws(LOGITS, Options(seed=1), 200)
    assert first == draws(LOGITS, Options(seed=1), 200)
    assert first != draws(LOGITS, Options(seed=2), 200)
    sampling = Options(seed=1).core()  # a draw does not depend on those before it
    assert _core.sample(sampling, LOGITS.tolist(), [], 150) == first[150]


def test_draws_of_one_seed_do_not_repeat_those_of_the_next() -> None:
    """A sequence of seeds is what people use: they must not give shifted copies."""
    rows = np.array([draws(np.zeros(64), Options(seed=s), 200) for s in range(8)])
    for a in range(8):
        for shift in range(1, 5):
            for b in range(8):
                assert (rows[a, shift:] == rows[b, :-shift]).mean() < 0.1


def test_extreme_logits_are_no_trouble() -> None:
    big = [-math.inf, 1e38, -1e38, 1e38, 0.0]
    assert set(draws(big, Options(), 100)) == {1, 3}
    assert set(draws([math.nan, 0.0, math.nan, -math.inf], Options(), 20)) == {1}
    assert set(draws([0.0], Options(top_k=1), 3)) == {0}
    cold = draws([0.0, 1e-3], Options(temperature=1e-6), 50)
    assert set(cold) == {1}


@pytest.mark.parametrize("logits", [[math.nan] * 4, [-math.inf] * 4, []])
def test_no_finite_logit_is_an_error(logits: list[float]) -> None:
    with pytest.raises(_core.CoreError):
        _core.sample(Options().core(), logits, [], 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-1.0, math.nan, math.inf)),
        *((name, v) for name in ("top_p", "min_p", "typical_p") for v in (-0.1, 1.1, math.nan)),
        *(("repeat_penalty", v) for v in (0.0, -1.0, math.nan)),
        *(("frequency_penalty", v) for v in (math.nan, math.inf)),
        *(("presence_penalty", v) for v in (math.nan, -math.inf)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    sampling = Options().core()
    setattr(sampling, name, value)
    with pytest.raises(_core.CoreError, match=name):
        _core.sample(sampling, [0.0, 1.0], [], 0)


def test_a_history_of_tokens_outside_the_vocabulary_is_ignored() -> None:
    options = Options(temperature=0.0, presence_penalty=9.0, history=[-1, 10**6, 2**31 - 1, 1])
    assert draws([0.0, 5.0, 1.0], options, 2) == [2, 2]
