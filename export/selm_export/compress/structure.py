"""What a model is made of, for those who cut it: its layers, what each weight's axes count, and a
new model from changed weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import no_init_weights

from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.layers import Layer, Projection
from selm_export.modeling.model import SelmForCausalLM

# What the rows and columns of each part of a layer count: channels of the residual stream, neurons
# of the feed forward, heads, KV heads, or elements of all heads' queries and all KV heads' keys.
LAYER_AXES: dict[str, tuple[str | None, ...]] = {
    "self_attn.q_proj": ("queries", "width"),
    "self_attn.k_proj": ("keys", "width"),
    "self_attn.v_proj": ("keys", "width"),
    "self_attn.o_proj": ("width", "queries"),
    "self_attn.head_gate": ("heads", "width"),
    "self_attn.far_gain": ("heads",),
    "self_attn.feature_map.projection": ("kv_heads", None, None),
    "self_attn.q_norm": (None,),
    "self_attn.k_norm": (None,),
    "mlp.gate_proj": ("feed_forward", "width"),
    "mlp.up_proj": ("feed_forward", "width"),
    "mlp.down_proj": ("width", "feed_forward"),
    "input_layernorm": ("width",),
    "post_attention_layernorm": ("width",),
}
TOP_AXES: dict[str, tuple[str | None, ...]] = {
    "model.embed_tokens": (None, "width"),
    "model.norm": ("width",),
    "lm_head": (None, "width"),
    "model.exits": ("width",),
    "norm": ("width",),  # of a score head
    "layers.0": (None, "width"),
    "layers.1": (None, None),
    "layers.2": (None, None),
}
OF_LAYER = re.compile(r"(model\.layers\.(\d+)|model\.experts\.\d+\.(\d+))\.(.+)")
OF_EXIT = re.compile(r"model\.exits\.(\d+)\.weight")
OF_SCORE = re.compile(r"model\.scores\.\d+\.(.+)")


@dataclass(frozen=True)
class Part:
    """A layer of a model: ``number`` among all layers, from 0; the experts of the kind ``full``
    have one each of the same number. ``prefix`` of its weights' names."""

    number: int
    prefix: str
    layer: Layer


def parts(model: SelmForCausalLM) -> list[Part]:
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, Layer):
            number = int(prefix.rpartition(".")[2])
            if ".experts." in prefix:
                number += model.config.trunk_layers
            found.append(Part(number, prefix, module))
    return found


def place(name: str) -> tuple[str, str]:
    """A weight's layer ("" where it belongs to none) and its name there."""
    match = OF_LAYER.fullmatch(name)
    return (match[1], match[4]) if match else ("", name)


def axes(name: str) -> tuple[str | None, ...]:
    """What each axis of a weight counts, of those that can be cut; None: nothing that can."""
    prefix, part = place(name)
    table = LAYER_AXES if prefix else TOP_AXES
    if match := OF_SCORE.fullmatch(part):
        part = match[1]
    base = next(key for key in table if part.startswith(f"{key}.") or part == key)
    of, leaf = table[base], part[len(base) :].removeprefix(".")
    if leaf == "bias":
        return of[:1]
    return {
        "lora_a.weight": (None, of[-1]),
        "lora_b.weight": (of[0], None),
        "delta_a": (None, None, of[-1]),
        "delta_b": (None, of[0], None),
    }.get(leaf, of)


def changed(config: SelmConfig, **changes: Any) -> SelmConfig:
    """The configuration with some values replaced. Raises ValueError where they contradict."""
    return SelmConfig(**{**config.to_dict(), **changes})


@torch.no_grad()
def built(config: SelmConfig, weights: Mapping[str, Tensor]) -> SelmForCausalLM:
    """A model with copies of these weights, all that it has; their number type is its own."""
    with no_init_weights():
        model = SelmForCausalLM(config)
    model.tie_weights()  # type: ignore[no-untyped-call]
    nn.Module.to(model, weights["model.embed_tokens.weight"].dtype)
    model.load_state_dict(weights, strict=True)
    model.train(False)
    return model


def dense(projection: Projection, expert: int | None = None) -> Tensor:
    """What a projection multiplies with, as one matrix [rows, columns]."""
    if projection.factorized:
        weight: Tensor = projection.lora_b.weight @ projection.lora_a.weight
    else:
        weight = projection.weight
    if projection.has_deltas and expert is not None:
        weight = weight + projection.delta_b[expert] @ projection.delta_a[expert]
    return weight


def parameters(model: SelmForCausalLM) -> int:
    """How many numbers were learned; a tied head counts once, frozen features not at all."""
    return sum(p.numel() for p in model.parameters())
