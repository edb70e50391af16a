"""What feedback asks of a model, as losses of whole replies' log-probabilities.

`KTO <https://arxiv.org/abs/2402.01306>`_ for thumbs, `DPO <https://arxiv.org/abs/2305.18290>`_ for
pairs. ``log`` and ``before`` are sums over a reply's tokens [replies], under the model and under
the one before; ``beta`` is how far the model may go.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.1


def dpo(
    chosen: Tensor, rejected: Tensor, chosen_before: Tensor, rejected_before: Tensor,
    beta: float = BETA,
) -> Tensor:  # fmt: skip
    """[pairs]"""
    return -F.logsigmoid(beta * ((chosen - chosen_before) - (rejected - rejected_before)))


def kto_reference(log: Tensor, before: Tensor) -> Tensor:
    """z0: how far the model has gone, estimated on replies to other prompts; at least 0, and no
    gradient goes through it. 0 where there are none."""
    if not len(log):
        return log.new_zeros(())
    return (log - before).mean().clamp(min=0).detach()


def kto(
    log: Tensor, before: Tensor, wanted: Tensor, reference: Tensor, *, beta: float = BETA,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:  # fmt: skip
    """[replies]; ``wanted`` is True where the thumb was up, ``weights`` of these and of the
    others."""
    gone = log - before - reference
    value = torch.sigmoid(beta * torch.where(wanted, gone, -gone))
    return torch.where(wanted, weights[0], weights[1]) * (1 - value)


def kto_weights(wanted: int, unwanted: int) -> tuple[float, float]:
    """So that both sides weigh about the same in all (the paper wants a ratio of 1 to 4/3); the
    rarer side is raised, at most fivefold."""
    if not wanted or not unwanted:
        return (1.0, 1.0)
    ratio = min(5.0, max(wanted, unwanted) / min(wanted, unwanted))
    return (ratio, 1.0) if wanted < unwanted else (1.0, ratio)
