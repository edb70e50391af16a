"""Puts experts that were trained from one base into one model, as low-rank deltas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selm_export import checkpoint
from selm_export.checkpoint import Checkpoint
from selm_export.compress.calibration import read_documents
from selm_export.compress.deltas import Ensemble, Wish, check_alike, ensemble
from selm_export.errors import RecipeError
from selm_export.stages.job import Job


@dataclass(frozen=True)
class Settings:
    """The first of ``from`` is the base, the others are the experts.

    ``names`` of the experts; empty: their folders'.
    ``trunk_layers`` from the first are shared by all; 0: half of them.
    ``rank`` of the deltas; where it keeps less than ``energy`` of what an expert changed, all
    experts keep their layers whole.
    ``tolerance``: how far what finds no place in the ensemble (the trunk, embedding, norms, biases)
    may be from the base's, relative to the tensor's length.
    ``route``: ``early``, by the trunk's stream, or ``full``, by every expert's.
    ``stickiness``: what the last speaker has added to its score.
    ``whiten``: by the base's inputs on ``calibration`` documents, each cut to ``tokens``; else
    plainly.
    """

    trunk_layers: int = 0
    names: tuple[str, ...] = ()
    rank: int = 16
    energy: float = 0.9
    tolerance: float = 0.01
    route: str = "early"
    stickiness: float = 0.0
    whiten: bool = False
    calibration: int = 256
    tokens: int = 512


def _names(job: Job, settings: Settings) -> list[str]:
    folders = job.inputs[1:]
    if not folders:
        raise RecipeError(
            job.name, "a base alone makes no ensemble", "Name the base and its experts in 'from'"
        )
    names = [*(settings.names or (folder.name for folder in folders))]
    if len(names) != len(folders) or len({*names}) != len(names):
        raise RecipeError(
            job.name, f"{len(folders)} experts have the names {', '.join(names)}",
            "Give each expert of 'from' a name of its own in 'names'",
        )  # fmt: skip
    return names


def _check_lost(job: Job, base: Checkpoint, made: Ensemble, tolerance: float) -> None:
    if (most := made.most_lost()) is not None and most[2] > tolerance:
        name, tensor, distance = most
        raise RecipeError(
            base.path,
            f"the expert {name} changed {tensor} by {distance:.3g} of its length, and an ensemble "
            f"with experts of the kind {made.model.config.expert_kind} has no place for that",
            "Train the experts with what they share frozen, lower trunk_layers, or raise the "
            f"tolerance of the stage {job.name} above {tolerance:g}",
        )


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Fills ``job.output`` with the ensemble, whose scores know nothing yet; figures: its kind, the
    energies kept, the rank that would keep what was wished, and what was lost."""
    names = _names(job, settings)
    base = checkpoint.load(job.inputs[0])
    experts = {}
    for name, folder in zip(names, job.inputs[1:], strict=True):
        expert = checkpoint.load(folder)
        check_alike(base, expert)
        experts[name] = expert.model
    documents = {}
    if settings.whiten:
        train = job.data / "train.jsonl"
        found = read_documents(train, base.tokenizer, settings.calibration, job.seed)
        documents = dict.fromkeys(names, found)
    trunk = settings.trunk_layers or base.model.config.num_hidden_layers // 2
    wish = Wish(
        trunk, settings.rank, settings.energy, settings.route, settings.stickiness,
        settings.tokens, job.seed,
    )  # fmt: skip
    try:
        made = ensemble(base.model, experts, wish, documents)
    except ValueError as problem:
        raise RecipeError(
            base.path, f"the stage {job.name} cannot make an ensemble of it: {problem}",
            "Change the stage's keys in the recipe",
        ) from problem  # fmt: skip
    _check_lost(job, base, made, settings.tolerance)
    if made.model.config.expert_kind == "full":
        least = min(made.whole, key=lambda name: made.whole[name])
        job.say(
            f"rank {settings.rank} keeps {made.whole[least]:.0%} of what {least} changed, less "
            f"than {settings.energy:.0%}: the experts keep their layers whole "
            f"(rank {made.needed[least]} would do)"
        )
    checkpoint.save(job.output, made.model, base.tokenizer, base.tokenizer_config)
    return made.to_dict()
