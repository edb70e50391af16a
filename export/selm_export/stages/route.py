"""``route``: scalar heads learn which expert should speak at each token.

The published design scores each expert by its own last hidden state (full route). What runs on a
device looks at the trunk alone (early route), so that only the chosen expert's layers are
computed: its heads learn the same mixture and to agree with the full route. All heads learn from
cached log-probabilities that each expert gave the token that came; no layer runs again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selm_export import checkpoint
from selm_export.checkpoint import Checkpoint
from selm_export.data.dataset import MIXED, Sources, document
from selm_export.data.packing import Batch, Packing
from selm_export.errors import RecipeError
from selm_export.modeling.experts import ScoreHead, log_likelihoods, mixture_loss
from selm_export.modeling.layers import QUIET
from selm_export.modeling.model import SelmForCausalLM
from selm_export.report import routing
from selm_export.report.evaluate import domain_of, read_labelled
from selm_export.report.routing import TorchEnsemble
from selm_export.stages.job import Job
from selm_export.training.learn import count, save
from selm_export.training.settings import Phase
from selm_export.training.tasks import expert_hidden, read, rows_of

Figures = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Heads see ``tokens`` reply places of ``shares``, ``epochs`` times in batches of ``batch``.
    ``confident`` weighs the entropy of each choice, ``balanced`` that of their mean, ``agree`` the
    early heads' divergence from the full ones; ``own`` that the expert of a source's domain (by
    `domain_of`) speaks there, where others say the same nearly as well. ``stickiness`` is added at
    run time to the score of the expert that spoke last."""

    shares: dict[str, float]
    tokens: int = 200_000
    epochs: int = 4
    batch: int = 2048
    rate: float = 1e-3
    confident: float = 0.02
    balanced: float = 0.01
    agree: float = 0.5
    own: float = 0.0
    stickiness: float = 1.0
    length: int = 512


class Cache(NamedTuple):
    """Of reply places: what the trunk saw [places, width], what each expert made of it
    [experts, places, width], the log-probability it gave the next token [places, experts], and the
    number of the domain's own expert [places], -1 where it has none."""

    trunk: Tensor
    last: Tensor
    logs: Tensor
    own: Tensor


def run(job: Job, settings: Settings) -> dict[str, Any]:
    found = checkpoint.load(job.one())
    model = found.model
    names = model.config.expert_names
    if len(names) < 2:
        raise RecipeError(
            job.one(), f"has {len(names)} experts: nothing to choose from",
            "Join experts first (delta)",
        )  # fmt: skip
    sources = Sources(job.data, found.tokenizer, packing(settings), job.seed)
    parts = []
    for domain, shares in by_domain(settings.shares).items():
        stream = sources.stream(Phase(shares, user_weight=0.0), f"{job.name}:route:{domain}")
        places = settings.tokens * sum(shares.values()) / sum(settings.shares.values())
        job.say(f"  what the experts say of {domain}")
        parts.append(remember(model, stream, round(places), domain, job))
    cache = joined(parts)
    torch.manual_seed(job.seed)
    full = [ScoreHead(model.config.hidden_size) for _ in names]
    early = [ScoreHead(model.config.hidden_size) for _ in names]
    job.say("  full heads")
    told_full = fit(full, cache.last, cache, settings, job)
    with torch.no_grad():
        wanted = scores(full, cache.last).log_softmax(-1)
    job.say("  early heads")
    trunk = cache.trunk.expand(len(names), -1, -1)
    told_early = fit(early, trunk, cache, settings, job, wanted=wanted)
    model.config.expert_route = "early"
    model.config.expert_stickiness = settings.stickiness
    model.model.scores.load_state_dict(nn.ModuleList(early).state_dict())
    figures = compare(job, model, found, full)
    model.train(False)
    save(job, model, found)
    return {
        "parameters": count(model), "places": len(cache.logs), "full_loss": told_full,
        "early_loss": told_early,
    } | figures  # fmt: skip


def packing(settings: Settings) -> Packing:
    return Packing(rows=2, tokens=settings.length, places=2 * settings.length, user_weight=0.0)


def by_domain(shares: dict[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for source, share in shares.items():
        found.setdefault(domain_of(source), {})[source] = share
    return found


def joined(parts: list[Cache]) -> Cache:
    trunks, lasts, logs, labels = zip(*parts, strict=True)
    return Cache(torch.cat(trunks), torch.cat(lasts, dim=1), torch.cat(logs), torch.cat(labels))


@torch.no_grad()
def remember(
    model: SelmForCausalLM, stream: Iterator[Batch], places: int, domain: str, job: Job
) -> Cache:
    """Runs every expert over text of a domain once."""
    names = model.config.expert_names
    number = names.index(domain) if domain in names else -1
    trunks, lasts, logs, seen, told = [], [], [], 0, 0
    while seen < places:
        rows = rows_of(next(stream), model.device)
        at = rows.positions[rows.weights > 0]
        targets = rows.targets[rows.weights > 0]
        found = read(model, rows, QUIET)
        trunks.append(found.stream[-1].flatten(0, 1)[at].half())
        own = [model.model.norm(x).flatten(0, 1)[at] for x in expert_hidden(model, found)]
        logits = torch.stack([model.lm_head(x) for x in own])
        logs.append(log_likelihoods(logits, targets))
        lasts.append(torch.stack(own).half())
        seen += len(at)
        if seen // 20_000 > told:
            told = seen // 20_000
            job.say(f"  {seen:,} of {places:,} places")
    labels = torch.full((seen,), number)
    return Cache(torch.cat(trunks), torch.cat(lasts, dim=1), torch.cat(logs), labels)


def scores(heads: list[ScoreHead], seen: Tensor) -> Tensor:
    """[places, experts] from what each head looks at [experts, places, width]."""
    return torch.cat([head(x.float()) for head, x in zip(heads, seen, strict=True)], dim=-1)


def fit(
    heads: list[ScoreHead], seen: Tensor, cache: Cache, settings: Settings, job: Job,
    *, wanted: Tensor | None = None,
) -> float:  # fmt: skip
    """The last epoch's mean loss."""
    modules = nn.ModuleList(heads)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=settings.rate, weight_decay=0.05)
    generator, logs = torch.Generator().manual_seed(job.seed), cache.logs
    steps = settings.epochs * -(-len(logs) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps)
    mean = 0.0
    for _ in range(settings.epochs):
        mean, parts = 0.0, torch.randperm(len(logs), generator=generator).split(settings.batch)  # type: ignore[no-untyped-call]
        for part in parts:
            said = scores(heads, seen[:, part])
            loss = mixture_loss(
                said, logs[part], confident=settings.confident, balanced=settings.balanced
            )
            labelled = cache.own[part] >= 0
            if settings.own and bool(labelled.any()):
                loss = loss + settings.own * F.cross_entropy(
                    said[labelled], cache.own[part][labelled]
                )
            if wanted is not None:
                aim = wanted[part]
                loss = loss + settings.agree * F.kl_div(
                    said.log_softmax(-1), aim, log_target=True, reduction="batchmean"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            mean += loss.item() / len(parts)
        job.say(f"    loss {mean:.4f}")
    return round(mean, 4)


def compare(job: Job, model: SelmForCausalLM, source: Checkpoint, full: list[ScoreHead]) -> Figures:
    """On the mixed held-out set: the ensemble as it runs on a device, and by the full route."""
    context = model.config.max_position_embeddings
    texts = [
        (label, routing.of_document(document(source.tokenizer, conversation), context))
        for label, conversation in read_labelled(job.data / MIXED)
    ]
    early = routing.measure(TorchEnsemble(model), texts, "early")
    other = copy.deepcopy(model)
    other.config.expert_route = "full"
    other.model.scores.load_state_dict(nn.ModuleList(full).state_dict())
    late = routing.measure(TorchEnsemble(other), texts, "full")
    found = early.as_json()
    nll = {"early": found["mixed"]["nll"], "full": late.as_json()["mixed"]["nll"]}
    job.say(f"  nats per reply token: {nll['early']['value']:.4f} early, {nll['full']['value']:.4f}"
            " full")  # fmt: skip
    return {"routing": found, "early_nll": nll["early"], "full_nll": nll["full"]}
