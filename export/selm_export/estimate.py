"""What a step will cost, before it runs: from the models' shapes, the tokens it reads, and how fast
this machine multiplies. Rough: within a factor of about two."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM
from selm_export.recipe import Recipe, Step
from selm_export.training.settings import Training

FLOAT = 4  # bytes
EFFICIENCY = 0.35  # of the fastest product, in a whole training step
READ_TOKENS = 200_000  # by steps that only read: importance, measurements


@dataclass(frozen=True)
class Cost:
    seconds: float
    memory: float  # bytes
    disk: float


def costs(recipe: Recipe, work: Path, due: list[tuple[Step, bool]]) -> list[tuple[Step, Cost]]:
    """Of the steps that have to run."""
    speed = multiplications_per_second() * EFFICIENCY
    sizes: dict[str, float] = {}
    found = []
    for step, runs in due:
        sizes[step.name] = parameters(step, work, sizes)
        if runs:
            others = [sizes[name] for name in step.inputs]
            found.append((step, cost(step.settings, sizes[step.name], others, speed)))
    return found


def parameters(step: Step, work: Path, before: dict[str, float]) -> float:
    """Of the model that the step makes; those of its input where it does not say."""
    shape, start = getattr(step.settings, "shape", None), getattr(step.settings, "start", None)
    folder = start or work / step.name
    if start or (folder / "model.safetensors").exists():
        files = folder.glob("*.safetensors") if folder.is_dir() else [folder]
        return sum(file.stat().st_size for file in files) / FLOAT
    if shape:
        given: dict[str, Any] = {"vocab_size": 8192} | dict(shape)
        with torch.device("meta"):
            model = SelmForCausalLM(SelmConfig(**given))
        return sum(p.numel() for p in model.parameters())
    return before[step.inputs[0]] if step.inputs else 0.0


def cost(settings: Any, made: float, given: list[float], speed: float) -> Cost:
    training = getattr(settings, "train", None)
    largest = max([made, *given], default=0.0)
    if not isinstance(training, Training):
        return Cost(2 * READ_TOKENS * largest / speed, 3 * FLOAT * largest, FLOAT * made)
    teacher = sum(given[1:])
    seconds = training.tokens * (6 * made + 2 * teacher) / 2 / speed
    state = 6 * FLOAT * made + FLOAT * teacher  # weights, gradient, two moments, mean, one to save
    activations = training.rows * training.length * FLOAT * (made**0.5) * 24
    return Cost(seconds, state + activations + FLOAT * training.places * 8192, 5 * FLOAT * made)


def multiplications_per_second() -> float:
    """Of float32 products of the size that a small model's layers have, on all threads."""
    left, right = torch.randn(1024, 512), torch.randn(512, 768)
    left @ right
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 0.3:
        left @ right
        done += 1
    return done * left.numel() * right.shape[1] / (time.perf_counter() - began)
