"""How far a changed model is from the one that it came from, in what it predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selm_export.data.packing import Document
from selm_export.modeling.model import SelmForCausalLM


@dataclass(frozen=True)
class Divergence:
    """``kld`` [tokens]: of each prediction, the Kullback-Leibler divergence in nats from what the
    first model says; ``same`` [tokens]: whether both find the same token likeliest."""

    kld: Tensor
    same: Tensor

    @property
    def mean(self) -> float:
        return float(self.kld.mean())

    def summary(self) -> dict[str, Any]:
        return {
            "mean_kld": self.mean,
            "kld_99": float(self.kld.quantile(0.99)),
            "same_top_token": float(self.same.double().mean()),
            "tokens": len(self.kld),
        }


def first_tokens(documents: Sequence[Document], tokens: int, context: int) -> list[Document]:
    """So many tokens' worth of the documents, each cut at the context, the last one where the
    tokens end."""
    found: list[Document] = []
    for document in documents:
        length = min(len(document), tokens, context)
        if length > 1:
            found.append(Document(document.ids[:length], document.reply[:length]))
        tokens -= length
        if tokens <= 0:
            break
    return found


@torch.no_grad()
def predictions(model: SelmForCausalLM, document: Document) -> Tensor:
    """Log probabilities [tokens, vocabulary] of the token after each."""
    ids = torch.tensor([document.ids], device=model.device)
    logits = model(ids, use_cache=False).logits
    found: Tensor = logits[0].float().log_softmax(-1)
    return found


def between(before: Iterable[Tensor], after: Iterable[Tensor]) -> Divergence:
    """Of predictions, document by document."""
    kld, same = [], []
    for p, q in zip(before, after, strict=True):
        kld.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
        same.append(p.argmax(-1) == q.argmax(-1))
    return Divergence(torch.cat(kld), torch.cat(same))


def compare(
    first: SelmForCausalLM, second: SelmForCausalLM, documents: Sequence[Document]
) -> Divergence:
    """One document after the other: of a large vocabulary, all predictions fill the memory."""
    return between(
        (predictions(first, d) for d in documents), (predictions(second, d) for d in documents)
    )
