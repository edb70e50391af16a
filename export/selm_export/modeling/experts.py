"""Experts over a shared trunk: who speaks, and what the heads that decide it learn from.

The mixture is that of Co-LLM (arXiv 2403.03870) with any number of experts: the likelihood of the
next token under a soft choice. Its gradient pulls each score towards the expert's share in
explaining the token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScoreHead(nn.Module):
    """How well an expert will do on the next token: hidden [..., width] to one number [..., 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList((nn.Linear(width, 256), nn.Linear(256, 128), nn.Linear(128, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def speakers(
    scores: Tensor, valid: Tensor, last: Tensor, stickiness: float
) -> tuple[Tensor, Tensor]:
    """Who speaks [batch, tokens], and who spoke last: the highest of ``scores`` [batch, tokens,
    experts] does, after that of the one that spoke at the token before was raised by
    ``stickiness``. ``last`` [batch] spoke before these tokens (-1: nobody). Padding, where
    ``valid`` [batch, tokens] is False, is no token."""
    experts, spoke = torch.arange(scores.shape[-1], device=scores.device), []
    for score, real in zip(scores.detach().unbind(1), valid.unbind(1), strict=True):
        best = (score + stickiness * (experts == last[:, None])).argmax(-1)
        last = torch.where(real, best, last)
        spoke.append(best)
    return torch.stack(spoke, dim=1), last


def chosen(expert_logits: Tensor, speakers: Tensor) -> Tensor:
    """[experts, batch, tokens, vocab] and [batch, tokens] to [batch, tokens, vocab]."""
    at = speakers[None, ..., None].expand(1, *expert_logits.shape[1:])
    return expert_logits.gather(0, at)[0]


def log_likelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of the tokens that came [...], [..., experts]; ``logits`` [experts, ..., vocab]."""
    at = tokens[None, ..., None].expand(*logits.shape[:-1], 1)
    return logits.float().log_softmax(-1).gather(-1, at)[..., 0].movedim(0, -1)


def mixture_loss(
    scores: Tensor, token_logs: Tensor, *, confident: float = 0.0, balanced: float = 0.0
) -> Tensor:
    """Mean negative log of sum_e w_e p_e(next token), w the softmax of ``scores`` [..., experts];
    ``token_logs`` [..., experts] are the experts' log probabilities of the token that came.
    ``confident`` weighs the entropy of each choice, ``balanced`` the entropy of their mean."""
    logs = scores.log_softmax(-1)
    loss = -torch.logsumexp(logs + token_logs, dim=-1).mean()
    weights = logs.exp()
    entropy = -(weights * logs).sum(-1).mean()
    mean = weights.flatten(0, -2).mean(0)
    return loss + confident * entropy + balanced * (mean * mean.clamp(min=1e-12).log()).sum()
