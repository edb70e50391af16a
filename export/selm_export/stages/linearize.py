"""``linearize``: softmax attention becomes performer + window, in constant memory.

As LoLCATs does it (arXiv 2410.10254): first every converted layer learns, on the inputs that the
softmax model gives it, to put out what softmax attention would (attention transfer); then the whole
learns to say what the model said before (that is the stage ``distill``). Which layers stay softmax
is chosen by measured loss: those whose conversion alone costs most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selm_export import checkpoint
from selm_export.data.dataset import HELD_OUT, read_conversations
from selm_export.errors import RecipeError
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.layers import QUIET, Noise
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages.job import Job
from selm_export.training.learn import held_out_bits, learn, save, trained_by
from selm_export.training.measure import reply_bits
from selm_export.training.settings import Training
from selm_export.training.tasks import Rows, read

PARALLEL = True
MEASURED = 64  # held-out conversations by which layers are chosen
FAR_GAIN = -4.0  # logarithm: untrained features have no say in what the window knows better


@dataclass(frozen=True)
class Settings:
    """``window`` and ``sinks`` are seen by softmax, all tokens before them through ``features`` of
    ``feature_map``; ``keep_softmax`` layers, those that lose most, stay as they are."""

    train: Training
    window: int = 64
    sinks: int = 0
    features: int = 128
    feature_map: str = "hedgehog"
    keep_softmax: int = 0
    head_gate: bool = False


class Transfer(nn.Module):
    """The squared error of each converted layer's attention, given what the softmax model's layer
    was given."""

    def __init__(self, model: SelmForCausalLM, teacher: SelmForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.taught = [teacher]  # a list: it is no part of what is trained

    def forward(self, rows: Rows, noise: Noise) -> Tensor:
        del noise  # attention is to be imitated as it is
        teacher = self.taught[0].to(rows.ids.device)  # type: ignore[arg-type]
        wanted = (rows.documents >= 0)[..., None]
        loss = torch.zeros((), device=rows.ids.device)
        with torch.no_grad():
            found = read(teacher, rows, QUIET)
        for number, layer in enumerate(self.model.model.layers):
            if self.model.config.attention_kinds[number] == "softmax":
                continue
            of_teacher = teacher.model.layers[number]
            with torch.no_grad():
                given = of_teacher.input_layernorm(found.stream[number])
                aim = of_teacher.self_attn.packed(given, found.rows, None)
            said = layer.self_attn.packed(given, found.rows, None)
            scale = aim.square().mean().clamp(min=1e-8)
            loss = loss + ((said - aim).square() * wanted).mean() / scale
        total: Tensor = loss * rows.weights.sum()  # the loop divides by the weights
        return total


def run(job: Job, settings: Settings) -> dict[str, Any] | None:
    found = checkpoint.load(job.one())
    config = found.model.config
    if config.expert_names or not 0 <= settings.keep_softmax < config.num_hidden_layers:
        raise RecipeError(
            job.one(), f"{settings.keep_softmax} softmax layers of {config.num_hidden_layers},"
            f" experts: {len(config.expert_names)}", "Convert a model without experts, keep fewer",
        )  # fmt: skip
    conversations = read_conversations(job.data / HELD_OUT)[:MEASURED]
    losses = {}
    for layer in range(config.num_hidden_layers):
        model = converted(found.model, settings, [layer])
        losses[layer] = reply_bits(model, found.tokenizer, conversations).nll
    order = sorted(losses, key=lambda layer: losses[layer])
    chosen = sorted(order[: config.num_hidden_layers - settings.keep_softmax])
    job.say("  nats per token if one layer alone is converted: "
            + ", ".join(f"{layer + 1}: {nll:.4f}" for layer, nll in losses.items()))  # fmt: skip
    model = converted(found.model, settings, chosen)
    task = Transfer(model, found.model)
    trained = trained_by(task, "feature_map.projection", "far_gain", "head_gate")
    before = held_out_bits(job, model, found.tokenizer)
    figures = learn(job, model, found.tokenizer, task, trained=trained, training=settings.train)
    if figures is None:
        return None
    save(job, model, found)
    return figures | {
        "kinds": model.config.attention_kinds, "layer_nll": {str(k): v for k, v in losses.items()},
        "untrained": before,
    } | held_out_bits(job, model, found.tokenizer)  # fmt: skip


def converted(model: SelmForCausalLM, settings: Settings, layers: list[int]) -> SelmForCausalLM:
    """The same weights with performer + window attention in some layers."""
    kinds = [
        "performer" if i in layers else kind for i, kind in enumerate(model.config.attention_kinds)
    ]
    changed: dict[str, Any] = {
        "attention_kinds": kinds, "window": settings.window, "sinks": settings.sinks,
        "features": settings.features, "feature_map": settings.feature_map,
    }  # fmt: skip
    if settings.head_gate:
        changed["head_gate"] = True
    made = SelmForCausalLM(SelmConfig(**model.config.to_dict() | changed))
    made.load_state_dict(model.state_dict(), strict=False)
    for layer in layers:
        nn.init.constant_(made.model.layers[layer].self_attn.far_gain, FAR_GAIN)
    made.train(False)
    return made
