"""Depth pruning by block influence (ShortGPT, arXiv 2403.03853).

A layer whose output points where its input did has done little: its influence is 1 minus the mean
cosine of the two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selm_export.compress.calibration import batches, spoken
from selm_export.compress.structure import OF_EXIT, OF_LAYER, built, changed, parts
from selm_export.data.packing import Document
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM


@torch.no_grad()
def influences(
    model: SelmForCausalLM, documents: Sequence[Document], tokens: int = 512
) -> list[float]:
    """One per layer, a mean over the documents' tokens; above the trunk also over the experts."""
    config = model.config
    sums, counts = [0.0] * config.num_hidden_layers, [0] * config.num_hidden_layers
    valid = torch.zeros(0)

    def watch(number: int) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: tuple[Tensor, Any]) -> None:
            del module
            x, y = given[0][valid].double(), out[0][valid].double()
            sums[number] += float((1 - torch.cosine_similarity(x, y, dim=-1)).sum())
            counts[number] += len(x)

        return hook

    hooks = [part.layer.register_forward_hook(watch(part.number)) for part in parts(model)]
    try:
        for batch in batches(documents, tokens):
            valid = batch.valid
            spoken(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [total / count for total, count in zip(sums, counts, strict=True)]


def may_go(config: SelmConfig) -> list[int]:
    """Layers without which there still is a model: one stays of the trunk and one above it."""
    layers, trunk = config.num_hidden_layers, config.trunk_layers
    if not config.expert_names:
        return list(range(layers)) if layers > 1 else []
    below = range(trunk) if trunk > 1 else range(0)
    above = range(trunk, layers) if layers - trunk > 1 else range(0)
    return [*below, *above]


def least_influential(
    model: SelmForCausalLM, documents: Sequence[Document], count: int, tokens: int = 512, *,
    again: bool = True,
) -> list[int]:  # fmt: skip
    """The ``count`` layers to remove, the first to go first; numbers are those of this model.
    Influence is measured ``again`` after each, or all are chosen at once. Fewer, where no more may
    go."""
    gone: list[int] = []
    current, measured = model, influences(model, documents, tokens)
    while len(gone) < count:
        left = [n for n in range(model.config.num_hidden_layers) if n not in gone]
        allowed = may_go(shallower(model.config, gone))
        if not allowed:
            break
        weakest = min(allowed, key=lambda n: measured[n])
        gone.append(left[weakest])
        if again and len(gone) < count:
            current = shortened(model, gone)
            measured = influences(current, documents, tokens)
        else:
            del measured[weakest]
    return gone


def shallower(config: SelmConfig, gone: Collection[int]) -> SelmConfig:
    """The configuration without these layers. Raises ValueError where no model would be left."""
    left = [n for n in range(config.num_hidden_layers) if n not in gone]
    if not left:
        raise ValueError("a model without layers")
    ranks = {}
    for name, rank in config.ranks.items():
        if not name.startswith("layers."):
            ranks[name] = rank
        elif (number := int(name.split(".")[1])) in left:
            ranks[name.replace(f".{number}.", f".{left.index(number)}.", 1)] = rank
    return changed(
        config,
        num_hidden_layers=len(left),
        attention_kinds=[config.attention_kinds[n] for n in left],
        trunk_layers=sum(n < config.trunk_layers for n in left),
        exit_layers=sorted(exits_left(config, gone)),
        ranks=ranks,
    )


def exits_left(config: SelmConfig, gone: Collection[int]) -> dict[int, int]:
    """After how many layers an exit now comes, and what it was called. Of two that come to lie at
    one place the earlier stays, whose norm knows the stream there; none lies before the first
    layer, or after the last."""
    left = [n for n in range(config.num_hidden_layers) if n not in gone]
    found: dict[int, int] = {}
    for exit_layer in sorted(config.exit_layers):
        after = sum(n < exit_layer for n in left)
        if 0 < after < len(left):
            found.setdefault(after, exit_layer)
    return found


@torch.no_grad()
def shortened(model: SelmForCausalLM, gone: Collection[int]) -> SelmForCausalLM:
    """The model without these layers (numbers from 0), of every expert that has its own. The stream
    passes where they were. Raises ValueError where no model would be left."""
    config, smaller = model.config, shallower(model.config, gone)
    new = {n: i for i, n in enumerate(n for n in range(config.num_hidden_layers) if n not in gone)}
    exits = {before: after for after, before in exits_left(config, gone).items()}
    weights = {}
    for name, weight in model.state_dict().items():
        renamed = name
        if match := OF_LAYER.fullmatch(name):
            head, part = match[1].rpartition(".")[0], match[4]
            own = match[3] is not None
            number = int(match[3]) + config.trunk_layers if own else int(match[2])
            if number in gone:
                continue
            renamed = f"{head}.{new[number] - (smaller.trunk_layers if own else 0)}.{part}"
        elif match := OF_EXIT.fullmatch(name):
            if int(match[1]) not in exits:
                continue
            renamed = f"model.exits.{exits[int(match[1])]}.weight"
        weights[renamed] = weight
    return built(smaller, weights)
