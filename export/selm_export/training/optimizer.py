"""The update rule: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Keller Jordan's, as torch has it) replaces a matrix's momentum by the nearest matrix whose
singular values are all about one, so that rare directions learn as fast as common ones. Here it
needs about half the tokens of AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selm_export.training.settings import Training

APART = (
    "embed_tokens", "lm_head", "lora_", "delta_", "adapter.", "head_gate", "projection", "scores",
)  # fmt: skip


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves it: a matrix that is neither the vocabulary's nor of low rank."""
    return parameter.dim() == 2 and not any(part in name for part in APART)


def optimizers(trained: Mapping[str, nn.Parameter], training: Training) -> list[Optimizer]:
    """For the parameters that are to be learned; biases, norms and gains do not decay."""
    matrices = [p for n, p in trained.items() if is_matrix(n, p)]
    rest = [p for n, p in trained.items() if not is_matrix(n, p)]
    made: list[Optimizer] = []
    if matrices:
        made.append(
            torch.optim.Muon(
                matrices, lr=training.matrix_rate, weight_decay=training.matrix_decay,
                momentum=training.momentum,
            )
        )  # fmt: skip
    if rest:
        groups = [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": training.decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        made.append(torch.optim.AdamW(groups, lr=training.rate, betas=(0.9, 0.95)))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return made


def set_rates(made: list[Optimizer], factor: float) -> None:
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
