"""``expert``: the base goes on with one field of knowledge, above a trunk that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from selm_export import checkpoint
from selm_export.errors import RecipeError
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages.job import Job
from selm_export.training.learn import held_out_bits, learn, save, trained_by
from selm_export.training.settings import Training
from selm_export.training.tasks import NextToken

PARALLEL = True


@dataclass(frozen=True)
class Settings:
    """The matrices of the layers above the first ``trunk_layers`` learn, as products of ``rank``
    (LoRA) or, where it is 0, wholly. The result is a whole model either way."""

    train: Training
    trunk_layers: int
    rank: int = 16


def run(job: Job, settings: Settings) -> dict[str, Any] | None:
    found = checkpoint.load(job.one())
    config = found.model.config
    if config.expert_names or not 0 < settings.trunk_layers < config.num_hidden_layers:
        raise RecipeError(
            job.one(), f"no expert above {settings.trunk_layers} of its"
            f" {config.num_hidden_layers} layers", "Name a model without experts, a lower trunk",
        )  # fmt: skip
    model = with_expert(found.model, job.name, settings.trunk_layers, max(1, settings.rank))
    task = NextToken(model, settings.train.checkpointing)
    if settings.rank:
        trained = trained_by(task, "delta_")
    else:
        trained = {
            name: p
            for name, p in trained_by(task, "_proj.weight").items()
            if int(name.split("layers.")[1].split(".")[0]) >= settings.trunk_layers
        }
    figures = learn(job, model, found.tokenizer, task, trained=trained, training=settings.train)
    if figures is None:
        return None
    merged = merge(model)
    save(job, merged, found)
    return figures | held_out_bits(job, merged, found.tokenizer)


def with_expert(model: SelmForCausalLM, name: str, trunk: int, rank: int) -> SelmForCausalLM:
    """The same model with one expert, which adds nothing yet."""
    config = SelmConfig(
        **{k: v for k, v in model.config.to_dict().items() if not k.startswith("expert_")}
        | {"trunk_layers": trunk, "expert_names": [name], "expert_rank": rank}
    )
    made = SelmForCausalLM(config)
    made.load_state_dict(model.state_dict(), strict=False)
    return made


@torch.no_grad()
def merge(model: SelmForCausalLM) -> SelmForCausalLM:
    """A model with one expert as one without: what it adds is in the weights."""
    kept = {
        k: v
        for k, v in model.config.to_dict().items()
        if not k.startswith("expert_") and k != "trunk_layers"
    }
    made = SelmForCausalLM(SelmConfig(**kept))
    own = dict(model.named_modules())
    made.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "delta_" not in k and "scores" not in k}
    )
    for name, module in made.named_modules():
        if isinstance(module, Projection):
            source = own[name]
            assert isinstance(source, Projection)
            if source.has_deltas:
                module.weight.add_(source.delta_b[0] @ source.delta_a[0])
    made.train(False)
    return made
