"""What is learned: each task turns a micro-batch into the sum of its weighted losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selm_export.data.packing import Batch
from selm_export.modeling.layers import QUIET, Noise, Packed
from selm_export.modeling.model import SelmForCausalLM


class Rows(NamedTuple):
    """A micro-batch as tensors: ``ids`` and ``documents`` [rows, length]; ``positions``,
    ``targets`` and ``weights`` [places] say which next tokens count, and how much."""

    ids: Tensor
    documents: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


def rows_of(batch: Batch, device: torch.device) -> Rows:
    of = (batch.ids, batch.documents, batch.positions, batch.targets, batch.weights)
    return Rows(*(torch.from_numpy(each).to(device) for each in of))


class Read(NamedTuple):
    """What the trunk (all layers, where there are no experts) made of the rows."""

    stream: list[Tensor]
    rows: Packed


def read(model: SelmForCausalLM, rows: Rows, noise: Noise, checkpointing: bool = False) -> Read:
    found = model.model.packed(rows.ids, rows.documents, noise=noise, checkpointing=checkpointing)
    return Read(*found)


def logits_at(model: SelmForCausalLM, x: Tensor, norm: nn.Module, positions: Tensor) -> Tensor:
    """[places, vocab] in float32: the head costs a third of the arithmetic, and about half of the
    tokens do not count."""
    wanted = x.flatten(0, 1).index_select(0, positions)
    out: Tensor = model.lm_head(norm(wanted)).float()
    return out


def expert_hidden(model: SelmForCausalLM, found: Read) -> list[Tensor]:
    """What each expert makes of the trunk's stream [batch, tokens, width], not yet normalised."""
    inner = model.model
    return [
        inner.packed_above(inner.above(expert), found.stream[-1], found.rows, expert)[-1]
        for expert in range(len(model.config.expert_names))
    ]


def expert_logits(model: SelmForCausalLM, found: Read, positions: Tensor) -> Tensor:
    """[experts, places, vocab] of a model with experts."""
    said = [logits_at(model, x, model.model.norm, positions) for x in expert_hidden(model, found)]
    return torch.stack(said)


class NextToken(nn.Module):
    """The text itself: cross-entropy of the next token, of a model without experts or with one
    (then the trunk stays as it is, and no gradient goes through it)."""

    def __init__(self, model: SelmForCausalLM, checkpointing: bool = False) -> None:
        super().__init__()
        self.model, self.checkpointing = model, checkpointing

    def forward(self, rows: Rows, noise: Noise) -> Tensor:
        if self.model.config.expert_names:
            with torch.no_grad():
                found = read(self.model, rows, QUIET)
            kept = found.rows._replace(noise=noise, checkpointing=self.checkpointing)
            logits = expert_logits(self.model, Read(found.stream, kept), rows.positions)[0]
        else:
            found = read(self.model, rows, noise, self.checkpointing)
            logits = logits_at(self.model, found.stream[-1], self.model.model.norm, rows.positions)
        return (F.cross_entropy(logits, rows.targets, reduction="none") * rows.weights).sum()


Teacher = Callable[[Rows], Tensor]  # log-probabilities [places, vocab] of what is to be said


def mixture_teacher(model: SelmForCausalLM) -> Teacher:
    """Speaks as the model does; where it has experts, as their mixture by the route's weights."""

    @torch.no_grad()
    def says(rows: Rows) -> Tensor:
        model.to(rows.ids.device)  # type: ignore[arg-type]
        found = read(model, rows, QUIET)
        if not model.config.expert_names:
            logits = logits_at(model, found.stream[-1], model.model.norm, rows.positions)
            return logits.log_softmax(-1)
        logs = expert_logits(model, found, rows.positions).log_softmax(-1)
        seen = found.stream[-1].flatten(0, 1).index_select(0, rows.positions)
        scores = torch.cat([head(seen) for head in model.model.scores], dim=-1).float()
        return torch.logsumexp(logs + scores.log_softmax(-1).T[..., None], dim=0)

    return says


class Distill(nn.Module):
    """What a teacher says: forward KL on its likeliest tokens and on the mass of all others
    together, and ``text_weight`` of the text itself."""

    def __init__(
        self, model: SelmForCausalLM, teacher: Teacher, *, top: int = 64, text_weight: float = 0.1,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.teacher = model, teacher
        self.top, self.text_weight, self.checkpointing = top, text_weight, checkpointing

    def forward(self, rows: Rows, noise: Noise) -> Tensor:
        wanted = self.teacher(rows)
        found = read(self.model, rows, noise, self.checkpointing)
        logits = logits_at(self.model, found.stream[-1], self.model.model.norm, rows.positions)
        said = logits.log_softmax(-1)
        loss = top_divergence(wanted, said, self.top)
        if self.text_weight:
            loss = loss + self.text_weight * F.nll_loss(said, rows.targets, reduction="none")
        return (loss * rows.weights).sum()


def top_divergence(wanted: Tensor, said: Tensor, top: int) -> Tensor:
    """KL(wanted || said) [places] of log-probabilities [places, vocab], over the ``top`` tokens
    that are likeliest in ``wanted`` and the rest as one."""
    if top >= wanted.shape[-1]:
        return (wanted.exp() * (wanted - said)).sum(-1)
    best, at = wanted.topk(top, dim=-1)
    of = said.gather(-1, at)
    tail_wanted, tail_said = (_rest(x) for x in (best, of))
    inside = (best.exp() * (best - of)).sum(-1)
    return inside + tail_wanted.exp() * (tail_wanted - tail_said)


def _rest(logs: Tensor) -> Tensor:
    """The logarithm of what is left of 1 beside these log-probabilities."""
    return torch.log1p(-logs.exp().sum(-1).clamp(max=1 - 1e-6))


class Exits(nn.Module):
    """To speak early as the model spoke in the end before, and to speak in the end as it did.

    The idea is LayerSkip's (arXiv 2404.16710): exits through the shared head after some layers,
    whole layers left out at random, the more the higher they are. What the model said before
    teaches both, as from the text it would learn by heart what it has read often.
    """

    TEMPERATURE = 0.5  # below 1, as drafts help where the model is sure

    def __init__(self, model: SelmForCausalLM, teacher: Teacher, *, checkpointing: bool = False):
        super().__init__()
        self.model, self.teacher, self.checkpointing = model, teacher, checkpointing

    def forward(self, rows: Rows, noise: Noise) -> Tensor:
        wanted = self.teacher(rows)
        found = read(self.model, rows, noise, self.checkpointing)
        inner = self.model.model
        end = logits_at(self.model, found.stream[-1], inner.norm, rows.positions)
        loss = top_divergence(wanted, end.log_softmax(-1), wanted.shape[-1])
        sharp = (wanted / self.TEMPERATURE).log_softmax(-1)
        for layer in self.model.config.exit_layers:
            norm = inner.exits[str(layer)]
            early = logits_at(self.model, found.stream[layer], norm, rows.positions)
            said = (early / self.TEMPERATURE).log_softmax(-1)
            loss = loss + self.TEMPERATURE * top_divergence(sharp, said, sharp.shape[-1])
        return (loss * rows.weights).sum()
