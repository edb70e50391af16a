"""Factors of low rank in place of whole matrices, whitened by their inputs (SVD-LLM, arXiv
2403.07378), each with its own rank.

A square matrix saves nothing above half its rank, so many stay whole. Ranks come from one walk over
all matrices: rank goes first where a parameter saved costs the least. What it costs is the share of
its matrix's output that is lost, times what that means for what the model says, which is measured
once per matrix: it differs a thousandfold, and ranks chosen by the share alone lose ten times more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from selm_export.compress.calibration import Reference
from selm_export.compress.ladder import Goal, Smaller, rung, small_enough
from selm_export.compress.spectra import Spectrum, grams, root, spectrum
from selm_export.compress.structure import built, changed, parameters, parts
from selm_export.data.packing import Document
from selm_export.modeling.configuration import PROJECTIONS
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM

GRAM_BYTES = 1 << 30  # of inputs that are held at a time
PROBED = 16  # documents that one matrix after the other is tried on


@dataclass(frozen=True)
class Wish:
    """How small the model should become. Ranks are multiples of ``multiple_of``, as rows of the
    second factor are that long. ``whiten``: by the inputs; else plainly, which loses more."""

    goal: Goal = field(default_factory=lambda: Goal(keep=0.9))
    multiple_of: int = 32
    step: float = 0.05
    whiten: bool = True
    tokens: int = 512


@dataclass(frozen=True)
class Site:
    """One projection of one layer: all experts' own where they are of the kind ``full``, which have
    one rank in common. ``choices`` [n] ranks that fall, after a 0 that leaves the matrix whole;
    what each costs: ``sizes`` in parameters, ``lost`` of the squared singular values, a share."""

    key: str  # as SelmConfig.ranks names it
    spectra: dict[str, Spectrum]  # by the weights' prefix
    choices: list[int]
    sizes: list[int]
    lost: list[float]
    weight: float = 1.0  # of what is lost, in nats

    def price(self, start: int, end: int) -> float:
        """Nats for each parameter that is saved."""
        lost = self.lost[end] - self.lost[start]
        return self.weight * lost / (self.sizes[start] - self.sizes[end])


def site(key: str, spectra: dict[str, Spectrum], multiple_of: int) -> Site:
    """The ranks, multiples of ``multiple_of``, that save parameters."""
    own = [*spectra.values()]
    rows, columns = len(own[0].left), own[0].right.shape[1]
    lost = torch.stack([s.lost() / s.lost()[0].clamp(min=1e-300) for s in own]).mean(0)
    most = min((rows * columns - 1) // (rows + columns), len(own[0].values))
    ranks = list(range(multiple_of, most + 1, multiple_of))[::-1]
    return Site(
        key,
        {name: s.cut(most, s.left.dtype) for name, s in spectra.items()},
        [0, *ranks],
        [len(own) * rows * columns, *(len(own) * r * (rows + columns) for r in ranks)],
        [0.0, *(float(lost[r]) for r in ranks)],
    )


@dataclass(frozen=True)
class Edge:
    """From one choice of a site to a smaller one, on the lower hull of what they cost."""

    price: float
    site: int
    start: int
    end: int


def hull(of: Site, number: int) -> list[Edge]:
    """The site's choices worth making, each dearer than the one before."""
    edges, at = [], 0
    while at + 1 < len(of.choices):
        prices = [of.price(at, end) for end in range(at + 1, len(of.choices))]
        step = min(range(len(prices)), key=lambda i: (prices[i], -i))
        edges.append(Edge(prices[step], number, at, at + 1 + step))
        at += 1 + step
    return edges


def choose(sites: Sequence[Site], save: int) -> list[int]:
    """Which choice of each site saves at least so many parameters in all (or as many as can be),
    at the least loss: the cheapest edges, and of the last as little as is needed."""
    chosen = [0] * len(sites)
    edges = sorted((e for n, s in enumerate(sites) for e in hull(s, n)), key=lambda e: e.price)
    for edge in edges:
        if save <= 0:
            break
        of = sites[edge.site]
        between = range(edge.start + 1, edge.end)
        enough = (i for i in between if of.sizes[edge.start] - of.sizes[i] >= save)
        end = next(enough, edge.end)
        chosen[edge.site] = end
        save -= of.sizes[edge.start] - of.sizes[end]
    return chosen


def _weights_of(model: SelmForCausalLM) -> dict[str, dict[str, Projection]]:
    """Whole projections: by the key of their rank, then by their prefix."""
    found: dict[str, dict[str, Projection]] = {}
    for part in parts(model):
        for name in PROJECTIONS:
            module = part.layer.get_submodule(name)
            assert isinstance(module, Projection)
            if not module.factorized:
                key = f"layers.{part.number}.{name}"
                found.setdefault(key, {})[f"{part.prefix}.{name}"] = module
    return found


def _groups(model: SelmForCausalLM) -> list[list[int]]:
    """Layers whose inputs may be held together."""
    config = model.config
    widths = (config.hidden_size, config.hidden_size, config.intermediate_size)
    inner = config.num_attention_heads * config.head_dim
    each = 8 * sum(w * w for w in (*widths, inner)) * max(1, len(config.expert_names))
    count = max(1, GRAM_BYTES // each)
    layers = list(range(config.num_hidden_layers))
    return [layers[i : i + count] for i in range(0, len(layers), count)]


@torch.no_grad()
def sites(
    model: SelmForCausalLM, documents: Sequence[Document], wish: Wish, say: Callable[[str], None]
) -> list[Site]:
    """Every projection that is still whole."""
    found = []
    by_key = _weights_of(model)
    for layers in _groups(model):
        inputs = grams(model, documents, layers, wish.tokens) if wish.whiten else {}
        roots: dict[int, Tensor] = {}  # by the inputs, which several have in common
        for key, modules in by_key.items():
            if int(key.split(".")[1]) not in layers:
                continue
            spectra = {}
            for prefix, module in modules.items():
                gram = inputs.get(prefix)
                if gram is not None and id(gram) not in roots:
                    roots[id(gram)] = root(gram)
                whitening = None if gram is None else roots[id(gram)]
                whole = spectrum(module.weight, whitening)
                spectra[prefix] = whole.cut(len(whole.values), module.weight.dtype)
            found.append(site(key, spectra, wish.multiple_of))
        say(f"layers {layers[0] + 1} to {layers[-1] + 1} of {model.config.num_hidden_layers}")
    return found


@torch.no_grad()
def weighed(model: SelmForCausalLM, found: Sequence[Site], reference: Reference) -> list[Site]:
    """The sites with their weights: the divergence where one alone has half the rank that would
    save nothing, by what it loses there. ``model`` is as it was when this returns."""
    modules = {prefix: m for own in _weights_of(model).values() for prefix, m in own.items()}
    out = []
    for of in found:
        choice = len(of.choices) // 2
        if choice == 0:
            out.append(of)
            continue
        whole = {prefix: modules[prefix].weight.clone() for prefix in of.spectra}
        try:
            for prefix, own in of.spectra.items():
                a, b = own.factors(of.choices[choice])
                modules[prefix].weight.copy_(b @ a)
            nats = max(reference.divergence(model).mean, 0.0)
        finally:
            for prefix, weight in whole.items():
                modules[prefix].weight.copy_(weight)
        out.append(replace(of, weight=nats / of.lost[choice] if of.lost[choice] > 0 else 0.0))
    return out


@torch.no_grad()
def factorized(
    model: SelmForCausalLM, found: Sequence[Site], chosen: Sequence[int]
) -> SelmForCausalLM:
    """The model with these choices of these sites; biases and deltas stay as they are."""
    weights, ranks = dict(model.state_dict()), {}
    for of, choice in zip(found, chosen, strict=True):
        rank = of.choices[choice]
        if rank == 0:
            continue
        ranks[of.key] = rank
        for prefix, own in of.spectra.items():
            whole = weights.pop(f"{prefix}.weight")
            a, b = own.factors(rank)
            weights[f"{prefix}.lora_a.weight"] = a.to(whole.dtype)
            weights[f"{prefix}.lora_b.weight"] = b.to(whole.dtype)
    return built(changed(model.config, ranks={**model.config.ranks, **ranks}), weights)


def _what(found: Sequence[Site], chosen: Sequence[int]) -> dict[str, Any]:
    ranks = {s.key: s.choices[c] for s, c in zip(found, chosen, strict=True) if s.choices[c]}
    lost = {s.key: s.lost[c] for s, c in zip(found, chosen, strict=True) if s.choices[c]}
    return {"ranks": ranks, "lost": lost}


def _shares(wish: Wish) -> list[float]:
    """Of the parameters that are left: at once, or step by step where a budget may end the way or
    bytes are counted."""
    goal = wish.goal
    if goal.kld == math.inf and not goal.bytes:
        return [goal.keep]
    least = 0.0 if goal.bytes else goal.keep
    steps = math.ceil((1.0 - least) / wish.step)
    return [max(least, 1.0 - wish.step * n) for n in range(1, steps + 1)]


def factorize(
    model: SelmForCausalLM,
    wish: Wish,
    calibration: Sequence[Document],
    held_out: Sequence[Document],
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Smaller:
    """The model with as many matrices as factors as the wish needs.

    Without a budget at once, else step by step until the size is reached or the budget is used up.
    Projections that are factors already stay so."""
    goal, reference = wish.goal, Reference(model, held_out, wish.tokens)
    found = sites(model, calibration, wish, say)
    found = weighed(model, found, Reference(model, calibration[:PROBED], wish.tokens))
    total = parameters(model)
    ladder = [rung(model, goal, reference, {"ranks": {}, "lost": {}})]
    made, taken, last = model, 0, [0] * len(found)
    for share in _shares(wish):
        chosen = choose(found, math.ceil(total - share * total))
        if small_enough(ladder[taken], ladder[0], goal):
            break
        if chosen == last:
            continue
        smaller, last = factorized(model, found, chosen), chosen
        step = rung(smaller, goal, reference, _what(found, chosen))
        ladder.append(step)
        within = step.divergence.mean <= goal.kld
        say(f"{step}" + ("" if within else ", over the budget"))
        if not within:
            break
        made, taken = smaller, len(ladder) - 1
    figures = dict(ladder[taken].what)
    return Smaller(made, ladder, taken, small_enough(ladder[taken], ladder[0], goal), figures)
