"""The stage ``route``: what heads learn of who should speak."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import torch
from selm_export.modeling.experts import ScoreHead
from selm_export.stages import route
from selm_export.stages.job import Job

HERE = Path()
JOB = Job("route", (), HERE, HERE, 1, lambda _: None)


def cache(places: int = 600) -> route.Cache:
    """Of two experts that say nearly the same; where it is the second's domain shows in what the
    heads see, and what the first says there is a little better."""
    draw = torch.Generator().manual_seed(1)
    own = torch.randint(0, 2, (places,), generator=draw)
    trunk = torch.randn(places, 16, generator=draw)
    trunk[:, 3] = 4.0 * own - 2.0
    logs = torch.full((places, 2), -2.0)
    logs[:, 0] += 0.05
    return route.Cache(trunk.half(), trunk.half().expand(2, -1, -1), logs, own)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_a_domain_s_own_expert_speaks_where_others_say_the_same(weight: float) -> None:
    torch.manual_seed(1)
    heads, found = [ScoreHead(16), ScoreHead(16)], cache()
    settings = route.Settings({"talk": 1}, epochs=60, batch=200, rate=0.01, own=weight)
    route.fit(heads, found.last, found, settings, JOB)
    with torch.no_grad():
        chosen = route.scores(heads, found.last).argmax(-1)
    right = float((chosen == found.own).float().mean())
    assert right > 0.98 if weight else right < 0.7  # else the first speaks, as it is better


def test_where_nobody_is_at_home_only_the_mixture_counts() -> None:
    torch.manual_seed(1)
    heads, found = [ScoreHead(16), ScoreHead(16)], cache()
    found = found._replace(own=torch.full_like(found.own, -1))
    settings = route.Settings({"talk": 1}, epochs=60, batch=200, rate=0.01, own=0.2)
    route.fit(heads, found.last, found, settings, JOB)
    with torch.no_grad():
        chosen = route.scores(heads, found.last).argmax(-1)
    assert float((chosen == 0).float().mean()) > 0.98


def test_sources_go_to_the_domain_that_they_are_judged_by() -> None:
    shares = {"talk/smalltalk": 2.0, "talk/medical": 1.0, "medquad": 3.0, "gsm8k": 1.0}
    assert route.by_domain(shares) == {
        "general": {"talk/smalltalk": 2.0}, "medical": {"talk/medical": 1.0, "medquad": 3.0},
        "math": {"gsm8k": 1.0},
    }  # fmt: skip
