"""Puts factors of low rank in the place of whole matrices, each with its own rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from selm_export import checkpoint
from selm_export.compress.calibration import read_documents
from selm_export.compress.ladder import Goal
from selm_export.compress.lowrank import Wish, factorize
from selm_export.errors import RecipeError
from selm_export.stages.job import Job


@dataclass(frozen=True)
class Settings:
    """A size, within a budget.

    ``keep``: share of the parameters; ``bytes``: of the file's tensors, stored as ``stored_as``.
    ``kld``: never further than this from the model as it was, in nats per token of held-out
    replies, before healing; where the size needs more, what was reached within it is kept.
    ``multiple_of``: of ranks, as rows of the second factor are that long and blocks of quantised
    types want it. ``step``: share of the parameters that a step within a budget saves.
    ``whiten``: by what the matrices' inputs are on the data; else plainly, which loses more.
    ``calibration``, ``held_out``: documents that inputs and divergence are found on, each cut to
    ``tokens``.
    """

    keep: float = 0.9
    bytes: int = 0
    stored_as: str = "Q8_0"
    kld: float = math.inf
    multiple_of: int = 32
    step: float = 0.05
    whiten: bool = True
    calibration: int = 512
    held_out: int = 128
    tokens: int = 512

    def wish(self) -> Wish:
        goal = Goal(self.keep, self.bytes, self.stored_as, self.kld)
        return Wish(goal, self.multiple_of, self.step, self.whiten, self.tokens)


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fills ``job.output``; figures: sizes before and after, the divergence before healing, ranks
    and what each matrix lost."""
    given = checkpoint.load(job.one())
    train, held_out = job.data / "train.jsonl", job.data / "held-out.jsonl"
    calibration = read_documents(train, given.tokenizer, settings.calibration, job.seed)
    measured = read_documents(held_out, given.tokenizer, settings.held_out, job.seed)
    try:
        smaller = factorize(given.model, settings.wish(), calibration, measured, say=job.say)
    except ValueError as problem:
        raise RecipeError(
            given.path, f"the stage {job.name} cannot factorize it so: {problem}",
            "Change the stage's keys in the recipe",
        ) from problem  # fmt: skip
    checkpoint.save(job.output, smaller.model, given.tokenizer, given.tokenizer_config)
    return smaller.to_dict()
