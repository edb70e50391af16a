"""Makes a model narrower and shallower: fewer heads, neurons, channels and layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from selm_export import checkpoint
from selm_export.compress.calibration import read_documents
from selm_export.compress.ladder import Goal
from selm_export.compress.prune import Wish, prune
from selm_export.errors import RecipeError
from selm_export.stages.job import Job


@dataclass(frozen=True)
class Settings:
    """A shape or a size.

    ``feed_forward``, ``heads``, ``kv_heads``, ``width``, ``layers``: how many there should be; 0:
    as many as there are. With ``keep`` or ``bytes`` they are the least, and 0 has no least.
    ``keep``: share of the parameters; ``bytes``: of the file's tensors, stored as ``stored_as``.
    ``kld``: never further than this from the model as it was, in nats per token of held-out
    replies, before healing; where the wish needs more, what was reached within it is kept.
    ``multiple_of``: of rows of weights, as blocks of quantised types want it (256 suits all).
    ``step``: share of the parameters that a step towards a size or budget saves.
    ``influence_again``: layers' influence is measured anew after each that goes.
    ``calibration``, ``held_out``: documents that importance and divergence are found on, each cut
    to ``tokens``.
    """

    feed_forward: int = 0
    heads: int = 0
    kv_heads: int = 0
    width: int = 0
    layers: int = 0
    keep: float = 1.0
    bytes: int = 0
    stored_as: str = "Q8_0"
    kld: float = math.inf
    multiple_of: int = 32
    step: float = 0.05
    influence_again: bool = True
    calibration: int = 1024
    held_out: int = 128
    tokens: int = 512

    def wish(self) -> Wish:
        return Wish(
            self.feed_forward, self.heads, self.kv_heads, self.width, self.layers,
            Goal(self.keep, self.bytes, self.stored_as, self.kld),
            self.multiple_of, self.step, self.influence_again, self.tokens,
        )  # fmt: skip


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fills ``job.output`` with the smaller model; figures: sizes before and after, the divergence
    before healing and the ladder of those that were made on the way."""
    given = checkpoint.load(job.one())
    train, held_out = job.data / "train.jsonl", job.data / "held-out.jsonl"
    calibration = read_documents(train, given.tokenizer, settings.calibration, job.seed)
    measured = read_documents(held_out, given.tokenizer, settings.held_out, job.seed)
    try:
        smaller = prune(given.model, settings.wish(), calibration, measured, say=job.say)
    except ValueError as problem:
        raise RecipeError(
            given.path, f"the stage {job.name} asks for a shape that it cannot have: {problem}",
            "Change the stage's keys in the recipe",
        ) from problem  # fmt: skip
    checkpoint.save(job.output, smaller.model, given.tokenizer, given.tokenizer_config)
    return smaller.to_dict()
