"""Goes on with a trained model that is given more layers.

A new layer is a copy of the one before it whose two output matrices are zero: it adds nothing to
the residual stream, so the deeper model computes what the shallower one did, and learns from
there. (Stacking: Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"; the
zero start: Chen et al. 2016, "Net2Net".)
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selm_export.network import Network, Shape

LAYER = re.compile(r"(model\.layers\.)(\d+)\.(.*)")
OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def is_shallower(found: dict[str, Any], shape: Shape) -> bool:
    """Whether the checkpoint is of the same model with fewer layers."""
    old = Shape(**found["shape"])
    return old.layers < shape.layers and replace(old, layers=shape.layers) == shape


def _origin(layer: int, old: int, new: int) -> tuple[int, bool]:
    """The old layer that a new one comes from, and whether it is the added copy."""
    origin = layer * old // new
    return origin, layer > 0 and (layer - 1) * old // new == origin


def deepen(found: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The checkpoint with ``shape.layers`` layers; the added ones have no momentum yet."""
    old = Network(Shape(**found["shape"]))
    places, start = {}, 0
    for name, parameter in old.named_parameters():
        places[name] = (start, start + parameter.numel())
        start += parameter.numel()
    made: dict[str, list[Tensor]] = {k: [] for k in ("parameters", "average", "first", "second")}
    names = [name for name, _ in Network(shape).named_parameters()]
    for name in names:
        added, source, rest = False, name, ""
        if match := LAYER.fullmatch(name):
            origin, added = _origin(int(match[2]), old.shape.layers, shape.layers)
            source, rest = f"{match[1]}{origin}.{match[3]}", match[3]
        a, b = places[source]
        for kind, pieces in made.items():
            piece = found[kind][a:b]
            empty = added and (kind in ("first", "second") or rest in OUTPUTS)
            pieces.append(torch.zeros_like(piece) if empty else piece)
    flat = {kind: torch.cat(pieces) for kind, pieces in made.items()}
    return {**found, **flat, "shape": shape.to_dict(), "names": names}
