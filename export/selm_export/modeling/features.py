"""Feature maps: phi(q) . phi(k) stands for exp(q . k) of tokens beyond the window.

FAVOR+ is "Rethinking Attention with Performers" (arXiv 2009.14794), Hedgehog arXiv 2402.04347,
elu + 1 arXiv 2006.16236, relu "Finetuning Pretrained Transformers into RNNs" (arXiv 2103.13076).
One projection belongs to each KV head, as its query heads must share it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selm_export.modeling.configuration import SelmConfig


def orthogonal_features(features: int, size: int, generator: torch.Generator) -> Tensor:
    """[features, size]: blocks of orthogonal rows, each as long as a normal vector would be."""
    blocks = []
    for _ in range(math.ceil(features / size)):
        normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
        blocks.append(torch.linalg.qr(normal)[0].T)
    lengths = torch.randn(features, size, generator=generator, dtype=torch.float64).norm(dim=-1)
    rows: Tensor = torch.cat(blocks)[:features] * lengths[:, None]
    return rows.float()


class FeatureMap(nn.Module):
    """x [..., kv_heads, rows, size] to features [..., kv_heads, rows, features].

    ``logarithmic``: what is returned are the features' logarithms, so that their size can be kept
    apart as a scale; they are those of exp without the factor features ** -0.5.
    """

    def __init__(self, config: SelmConfig, seed: int = 0) -> None:
        super().__init__()
        self.kind = config.feature_map
        self.logarithmic = self.kind == "favor+"
        heads, size = config.num_key_value_heads, config.head_dim
        if self.kind == "elu1":
            return
        if self.kind == "favor+":
            generator = torch.Generator().manual_seed(seed)
            rows = [orthogonal_features(config.features, size, generator) for _ in range(heads)]
            self.register_buffer("projection", torch.stack(rows))
            return
        rows_of = config.features // 2 if self.kind == "hedgehog" else config.features
        start = torch.eye(size).repeat(math.ceil(rows_of / size), 1)[:rows_of]
        self.projection = nn.Parameter(start.repeat(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "elu1":
            return F.elu(x) + 1
        projected = torch.einsum("...hnd,hmd->...hnm", x, self.projection)
        if self.kind == "favor+":
            return projected - x.square().sum(-1, keepdim=True) / 2
        if self.kind == "relu":
            return F.relu(projected)
        return torch.cat((projected, -projected), dim=-1).softmax(-1)
