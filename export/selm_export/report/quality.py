"""What a change of a model cost: the model against a reference, on held-out documents.

The terms are those of llama-perplexity. With p the reference's probabilities and q the model's at
one place, y the token that came there:

    perplexity ratio     exp(mean(ln p(y) - ln q(y)))
    mean KLD             mean over places of sum_v p(v) (ln p(v) - ln q(v)), in nats
    99 % KLD             that no more than 1 % of places exceed
    RMS delta p          sqrt(mean((q(y) - p(y))^2))
    same top token       the share of places where both find the same token likeliest

Everything from the logits on is computed in float64. The ± are over documents (``spread``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.modeling.model import SelmForCausalLM
from selm_export.report.evaluate import Core, rows_of
from selm_export.report.spread import Estimate, exponential, ratio, root

Forward = Callable[[Tensor], Tensor]
"""Token ids [tokens] to logits, or log-probabilities, [tokens, vocab]."""

CHUNK = 1 << 22  # logits looked at together in float64: 32 MB a copy


@dataclass(frozen=True)
class Quality:
    """Of the places of one kind, in all documents."""

    tokens: int
    documents: int
    perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_ratio: Estimate
    mean_kld: Estimate
    kld_99: float
    rms_delta_p: Estimate
    same_top_token: Estimate

    def as_json(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.as_json() if isinstance(v, Estimate) else v for k, v in found.items()}


def at_places(logits: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
    """[5, places] in float64, of logits [places, vocab] and the tokens that came [places]: minus
    the log-probability of the token by the model and by the reference, KLD, squared difference of
    the token's probability, and 1 where the likeliest token is the same."""
    q, p = logits.double().log_softmax(-1), reference.double().log_softmax(-1)
    at = targets[:, None]
    own, other = q.gather(1, at)[:, 0], p.gather(1, at)[:, 0]
    weights = p.exp()
    apart = torch.where(weights > 0, weights * (p - q), 0.0).sum(-1).clamp(min=0.0)
    same = (q.argmax(-1) == p.argmax(-1)).double()
    return torch.stack([-own, -other, apart, (own.exp() - other.exp()).square(), same])


@dataclass
class _Tally:
    """Sums of what `at_places` gives, by document."""

    sums: list[list[float]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    divergences: list[Tensor] = field(default_factory=list)

    def add(self, found: Tensor) -> None:
        if found.shape[1]:
            self.sums.append(found.sum(1).tolist())
            self.counts.append(found.shape[1])
            self.divergences.append(found[2].cpu())

    def quality(self) -> Quality:
        own, other, apart, squares, same = zip(*self.sums, strict=True)
        worse = [a - b for a, b in zip(own, other, strict=True)]
        every = torch.cat(self.divergences)
        return Quality(
            tokens=sum(self.counts),
            documents=len(self.counts),
            perplexity=exponential(ratio(own, self.counts)),
            reference_perplexity=exponential(ratio(other, self.counts)),
            perplexity_ratio=exponential(ratio(worse, self.counts)),
            mean_kld=ratio(apart, self.counts),
            kld_99=_percentile(every, 0.99),
            rms_delta_p=root(ratio(squares, self.counts)),
            same_top_token=ratio(same, self.counts),
        )


def _percentile(values: Tensor, share: float) -> float:
    """Between the two nearest values, linearly. `torch.quantile` refuses more than 2^24 values."""
    ordered = values.sort().values
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (at - low) * (ordered[high] - ordered[low]))


def _in_chunks(logits: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
    rows = max(1, CHUNK // logits.shape[1])
    parts = [torch.split(t, rows) for t in (logits, reference, targets)]
    return torch.cat([at_places(*some) for some in zip(*parts, strict=True)], dim=1)


def compare(
    model: Forward, reference: Forward, documents: Sequence[Document], *, context: int,
    name: str = "the model",
) -> dict[str, Quality]:  # fmt: skip
    """At the places of ``replies`` and of ``all`` tokens but each document's first. Documents are
    cut to ``context`` tokens.

    RecipeError where the two have different vocabularies, a model's logits are no numbers, or no
    document holds a reply.
    """
    tallies = {"replies": _Tally(), "all": _Tally()}
    for number, document in enumerate(documents):
        ids = torch.tensor(document.ids[:context])
        if len(ids) < 2:
            continue
        with torch.inference_mode():
            own = model(ids[:-1])
            other = reference(ids[:-1]).to(own.device)
            if own.shape != other.shape:
                raise RecipeError(
                    name, f"has {own.shape[-1]} tokens, its reference {other.shape[-1]}",
                    "Compare models of one tokenizer",
                )  # fmt: skip
            found = _in_chunks(own, other, ids[1:].to(own.device))
        if not bool(found.isfinite().all()):
            raise RecipeError(
                name, f"at document {number + 1} its logits, or its reference's, are no numbers",
                "Look at the stage that made it: its loss will have been NaN too",
            )  # fmt: skip
        tallies["all"].add(found)
        reply = torch.tensor(document.reply[1 : len(ids)], device=found.device)
        tallies["replies"].add(found[:, reply])
    if not tallies["replies"].counts:
        raise RecipeError(name, "no document to compare by holds a reply", "Give held-out data")
    return {places: tally.quality() for places, tally in tallies.items()}


def by_route(model: SelmForCausalLM) -> Forward:
    """The model as it runs: where it has experts, the one that the scores choose speaks."""
    return _speaking(model, None)


def alone(model: SelmForCausalLM, expert: str) -> Forward:
    return _speaking(model, expert)


def _speaking(model: SelmForCausalLM, expert: str | None) -> Forward:
    def forward(ids: Tensor) -> Tensor:
        out = model(ids[None].to(model.device), use_cache=False, expert=expert)
        logits: Tensor = out.logits[0]
        return logits

    return forward


def of_mixture(model: SelmForCausalLM) -> Forward:
    """Log-probabilities of the soft mixture, sum_e w_e p_e: what a student is distilled from."""

    def forward(ids: Tensor) -> Tensor:
        out = model(ids[None].to(model.device), use_cache=False, output_experts=True)
        logs: Tensor = out.expert_logits[:, 0].double().log_softmax(-1)
        weights = out.scores[0].double().log_softmax(-1).T[..., None]
        return torch.logsumexp(logs + weights, dim=0)

    return forward


def of_core(core: Core) -> Forward:
    """A file as a backend of ``selm_edge`` runs it."""

    def forward(ids: Tensor) -> Tensor:
        return torch.from_numpy(rows_of(core.session().eval(ids.tolist())))

    return forward


def figures(
    model: SelmForCausalLM, reference: SelmForCausalLM, documents: Sequence[Document], name: str
) -> dict[str, Any]:
    """For a stage's line in the report: ``replies`` and ``all``; and where the model has experts,
    ``by_expert``: each alone, against itself in the reference or, where it has no such expert,
    against the reference as it runs."""
    context = min(m.config.max_position_embeddings for m in (model, reference))
    whole = compare(by_route(model), by_route(reference), documents, context=context, name=name)
    found: dict[str, Any] = {places: q.as_json() for places, q in whole.items()}
    if model.config.expert_names:
        found["by_expert"] = {}
    for expert in model.config.expert_names:
        known = expert in reference.config.expert_names
        other = alone(reference, expert) if known else by_route(reference)
        one = compare(alone(model, expert), other, documents, context=context, name=name)
        found["by_expert"][expert] = one["replies"].as_json()
    return found
