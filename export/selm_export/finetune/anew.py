"""What was measured of a model alone, found anew with an adapter on it.

From where on its exits are sure is a fact about these weights, and with an adapter the inference
core refuses what was found without: the adapter's own file gets it. Who speaks in an ensemble is
decided as before, but by what the layers below say now: the report tells both. Importance matrices
have done their work when the base was quantised; an adapter stays beside it in F32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selm_export import calibrate
from selm_export.data.chat import Conversation
from selm_export.errors import RecipeError
from selm_export.report import evaluate
from selm_export.report.routing import CoreEnsemble

CONTEXT = 1024
PROMPTS, MOST = 200, 32
"""Fewer and shorter than `calibrate` of a base has by default: it is done with each adapter."""


def found_anew(
    base: Path, adapter: Path, known: Sequence[Conversation], say: calibrate.Say
) -> dict[str, Any]:
    """``exits`` and ``speakers``, where the base has such a thing; ``adapter`` is written anew with
    the calibration. ``known``: conversations such as the base was measured on."""
    found: dict[str, Any] = {}
    bound = calibrate.bound_of(base)
    if bound is not None:
        found["exits"] = _exits(base, adapter, known, bound, say)
    if CoreEnsemble(base, CONTEXT).experts:
        say(f"who speaks, with it and without, in {len(known)} conversations")
        found["speakers"] = _speakers(base, adapter, known)
    return found


def _exits(
    base: Path, adapter: Path, known: Sequence[Conversation], bound: calibrate.Bound,
    say: calibrate.Say,
) -> dict[str, Any]:  # fmt: skip
    prompts = max(PROMPTS, 2 * calibrate.fewest_prompts(bound))
    try:
        found = calibrate.run(
            base, known, bound, output=adapter, context=CONTEXT, most=MOST, prompts=prompts,
            say=say, adapter=adapter,
        )  # fmt: skip
    except RecipeError as problem:  # the adapter is as good without: its replies are all verified
        return {"problem": str(problem)}
    del found["trials"]
    return found


def _speakers(base: Path, adapter: Path, known: Sequence[Conversation]) -> dict[str, list[float]]:
    """By expert: its share of the tokens of known replies, without the adapter and with it."""
    core: Any = evaluate.load_core(base, CONTEXT)
    template = evaluate.template_of(core)
    texts = [evaluate.read(core, one, template, CONTEXT) for one in known]
    core.close()
    shares: dict[str, list[float]] = {}
    for given in (None, adapter):
        ensemble = CoreEnsemble(base, CONTEXT, given)
        spoke = [0] * len(ensemble.experts)
        for text in texts:
            if len(text.places):
                _, speakers = ensemble.speak(text.ids[:-1])
                for place in text.places:
                    spoke[speakers[place]] += 1
        for name, count in zip(ensemble.experts, spoke, strict=True):
            shares.setdefault(name, []).append(count / max(1, sum(spoke)))
    return shares
