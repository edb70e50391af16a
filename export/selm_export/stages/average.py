"""``average``: one model of the weights between several that come from one.

A model that was trained further has learnt something and unlearnt something; between the two lies
one that has most of both (WiSE-FT, arXiv 2109.01903; model soups, arXiv 2203.05482).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from selm_export import checkpoint
from selm_export.compress.deltas import check_alike
from selm_export.errors import RecipeError
from selm_export.stages.job import Job
from selm_export.training.learn import count, held_out_bits, save


@dataclass(frozen=True)
class Settings:
    """``shares``: how much of each model of ``from``, in that order; empty: of each as much."""

    shares: tuple[float, ...] = ()


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fills ``job.output``; figures: what it keeps of the talk."""
    if len(job.inputs) < 2:
        raise RecipeError(job.name, "has nothing to average", "Name two or more models in `from`")
    shares = settings.shares or (1 / len(job.inputs),) * len(job.inputs)
    if len(shares) != len(job.inputs) or abs(sum(shares) - 1) > 1e-6:
        raise RecipeError(
            job.name, f"has shares of {', '.join(map(str, shares))} for {len(job.inputs)} models",
            "Give one share for each, 1 in all",
        )  # fmt: skip
    first, *others = map(checkpoint.load, job.inputs)
    mean = {name: p.detach().double() * shares[0] for name, p in first.model.named_parameters()}
    for other, share in zip(others, shares[1:], strict=True):
        check_alike(first, other)
        for name, parameter in other.model.named_parameters():
            mean[name] += parameter.detach().double() * share
    with torch.no_grad():
        for name, parameter in first.model.named_parameters():
            parameter.copy_(mean[name])
    save(job, first.model, first)
    return {"parameters": count(first.model)} | held_out_bits(job, first.model, first.tokenizer)
