"""Experts as low-rank deltas of one base, from full checkpoints.

Where an expert differs from the base by little more than a LoRA would (arXiv 2106.09685), two thin
factors per projection say it. Where it differs by more, the experts keep their own layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from selm_export.checkpoint import Checkpoint, same_tokenizer
from selm_export.compress.spectra import Spectrum, grams, root, spectrum
from selm_export.compress.structure import OF_LAYER, built, changed, dense, parts, place
from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.modeling.configuration import PROJECTIONS
from selm_export.modeling.experts import ScoreHead
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM

# What must be the same in the base and all experts.
SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "attention_kinds", "window",
    "sinks", "features", "feature_map", "clamp", "qk_norm", "head_gate", "attention_bias",
    "tie_word_embeddings", "exit_layers", "draft_vocabulary", "ranks",
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """``kind`` delta, unless ``rank`` keeps less than ``energy`` of what an expert changed: then
    full. A rank above a matrix's own is that one."""

    trunk_layers: int
    rank: int = 16
    energy: float = 0.9
    route: str = "early"
    stickiness: float = 0.0
    tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Ensemble:
    """``energies`` by expert and projection, the share of the squared singular values of its change
    that the rank keeps; ``whole`` the same of all of an expert's changes together; ``needed`` the
    rank that would keep as much as was wished. ``lost`` by expert and tensor: how far it was from
    the base's, relative, where the base's now stands in its place."""

    model: SelmForCausalLM
    energies: dict[str, dict[str, float]]
    whole: dict[str, float]
    needed: dict[str, int]
    lost: dict[str, dict[str, float]]

    def most_lost(self) -> tuple[str, str, float] | None:
        """The expert and tensor that differ most from what stands in their place."""
        every = [(e, t, d) for e, own in self.lost.items() for t, d in own.items()]
        return max(every, key=lambda entry: entry[2], default=None)

    def to_dict(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "kind": config.expert_kind,
            "rank": config.expert_rank if config.expert_kind == "delta" else None,
            "energy": self.whole,
            "rank_for_the_energy_wished": self.needed,
            "energies": self.energies,
            "lost": self.lost,
        }


def check_alike(base: Checkpoint, expert: Checkpoint) -> None:
    """Raises RecipeError that names both folders and what differs first, of tokenizer or shape; or
    the one that is an ensemble itself."""
    for own in (base, expert):
        if own.model.config.expert_names:
            raise RecipeError(own.path, "is an ensemble already", "Give checkpoints of one model")
    same_tokenizer([base, expert])
    both = f"{base.path} and {expert.path}"
    for key in SAME:
        one, other = getattr(base.model.config, key), getattr(expert.model.config, key)
        if one != other:
            raise RecipeError(
                both, f"have different shapes: {key} is {one} in the one, {other} in the other",
                "Train the experts from this base",
            )  # fmt: skip


def _distance(base: Tensor, own: Tensor) -> float:
    """Relative to the longer of the two: at most 2, also from zeros."""
    base, own = base.double(), own.double()
    longer = max(float(base.norm()), float(own.norm()))
    return float((own - base).norm()) / longer if longer > 0 else 0.0


def _projections(model: SelmForCausalLM) -> dict[str, tuple[int, Projection]]:
    """By the weight's prefix: its layer's number, and the projection."""
    found = {}
    for part in parts(model):
        for name in PROJECTIONS:
            module = part.layer.get_submodule(name)
            assert isinstance(module, Projection)
            found[f"{part.prefix}.{name}"] = part.number, module
    return found


@torch.no_grad()
def changes_lost(
    base: SelmForCausalLM, expert: SelmForCausalLM, trunk: int, kind: str
) -> dict[str, float]:
    """Tensors of the expert that an ensemble of this kind has no place for, and how far they are
    from the base's; those that are the same are left out."""
    found = {}
    projections, own = _projections(base), _projections(expert)
    for prefix, (number, module) in projections.items():
        if number < trunk:
            distance = _distance(dense(module), dense(own[prefix][1]))
            found[f"{prefix}.weight"] = distance
    theirs = expert.state_dict()
    for name, value in base.state_dict().items():
        prefix = place(name)[0]
        above = bool(prefix) and int(prefix.rpartition(".")[2]) >= trunk
        projection = any(name.startswith(f"{p}.") for p in projections)
        if (projection and not name.endswith(".bias")) or (above and kind == "full"):
            continue
        if name == "lm_head.weight" and base.config.tie_word_embeddings:
            continue
        found[name] = _distance(value, theirs[name])
    return {name: distance for name, distance in found.items() if distance > 0}


@torch.no_grad()
def change_spectra(
    base: SelmForCausalLM,
    expert: SelmForCausalLM,
    wish: Wish,
    documents: Sequence[Document] = (),
) -> dict[str, Spectrum]:
    """Of expert - base, by projection at or above the trunk, with factors up to the wished rank;
    whitened by what the base makes of the ``documents``, if there are any."""
    trunk, dtype = wish.trunk_layers, base.model.norm.weight.dtype
    assert isinstance(dtype, torch.dtype)
    own, found = _projections(expert), {}
    projections = _projections(base)
    for layer in range(trunk, base.config.num_hidden_layers):
        inputs = grams(base, documents, [layer], wish.tokens) if documents else {}
        for prefix, (number, module) in projections.items():
            if number == layer:
                change = dense(own[prefix][1]).double() - dense(module).double()
                whole = spectrum(change, root(inputs[prefix]) if documents else None)
                found[prefix] = whole.cut(wish.rank, dtype)
    return found


def _energies(spectra: Mapping[str, Spectrum]) -> Tensor:
    """By rank from 0 on, of all changes together: a long one matters more than a short one."""
    lost = torch.zeros(1 + max(len(s.values) for s in spectra.values()), dtype=torch.float64)
    for own in spectra.values():
        lost[: len(own.values) + 1] += own.lost()
    return 1.0 - lost / lost[0] if lost[0] > 0 else torch.ones_like(lost)


def _score_head(width: int, seed: int) -> dict[str, Tensor]:
    """The weights of a head that knows nothing yet: it scores 0, as all others do, so the first
    expert speaks."""
    head = ScoreHead(width)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in head.state_dict().items():
        if name.startswith("layers.2.") or name.endswith("bias"):
            weight.zero_()
        elif name.startswith("layers."):
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    return dict(head.state_dict())


def _stacked(spectra: Sequence[Spectrum], rank: int) -> tuple[Tensor, Tensor]:
    """[experts, rank, columns] and [experts, rows, rank]; a matrix of a lower rank has zeros."""
    rows, columns = len(spectra[0].left), spectra[0].right.shape[1]
    dtype = spectra[0].left.dtype
    a = torch.zeros(len(spectra), rank, columns, dtype=dtype)
    b = torch.zeros(len(spectra), rows, rank, dtype=dtype)
    for expert, own in enumerate(spectra):
        down, up = own.factors(rank)
        a[expert, : len(down)], b[expert, :, : len(down)] = down, up
    return a, b


def _assembled(
    base: SelmForCausalLM, experts: Mapping[str, SelmForCausalLM], wish: Wish,
    spectra: Mapping[str, Mapping[str, Spectrum]], kind: str,
) -> SelmForCausalLM:  # fmt: skip
    config = changed(
        base.config, expert_names=[*experts], expert_kind=kind, expert_rank=wish.rank,
        expert_route=wish.route, expert_stickiness=wish.stickiness, trunk_layers=wish.trunk_layers,
    )  # fmt: skip
    weights: dict[str, Tensor] = dict(base.state_dict())
    for number, expert in enumerate(experts.values()):
        head = _score_head(config.hidden_size, wish.seed + number)
        weights |= {f"model.scores.{number}.{key}": value for key, value in head.items()}
        if kind == "delta":
            continue
        for key, value in expert.state_dict().items():
            if (found := OF_LAYER.fullmatch(key)) and int(found[2]) >= wish.trunk_layers:
                own = int(found[2]) - wish.trunk_layers
                weights[f"model.experts.{number}.{own}.{found[4]}"] = value
                weights.pop(key, None)
    if kind == "delta":
        for prefix in spectra[config.expert_names[0]]:
            each = [spectra[name][prefix] for name in experts]
            a, b = _stacked(each, wish.rank)
            weights |= {f"{prefix}.delta_a": a, f"{prefix}.delta_b": b}
    return built(config, weights)


@torch.no_grad()
def ensemble(
    base: SelmForCausalLM,
    experts: Mapping[str, SelmForCausalLM],
    wish: Wish,
    documents: Mapping[str, Sequence[Document]] = MappingProxyType({}),
) -> Ensemble:
    """The experts over the base's first layers; scores know nothing yet. Deltas are whitened by the
    base's inputs on an expert's ``documents``, where there are any.

    What is lost is told, not judged: see ``Ensemble.most_lost``. Raises ValueError where base and
    wish contradict (exits above the trunk, no layer above it)."""
    changed(base.config, expert_names=[*experts], trunk_layers=wish.trunk_layers)
    spectra = {
        name: change_spectra(base, expert, wish, documents.get(name, ()))
        for name, expert in experts.items()
    }
    energies = {name: _energies(own) for name, own in spectra.items()}
    whole = {name: float(own[min(wish.rank, len(own) - 1)]) for name, own in energies.items()}
    kind = "delta" if min(whole.values()) >= wish.energy else "full"
    return Ensemble(
        _assembled(base, experts, wish, spectra, kind),
        {n: {key: s.kept(wish.rank) for key, s in own.items()} for n, own in spectra.items()},
        whole,
        {name: max(1, int((own < wish.energy).sum())) for name, own in energies.items()},
        {n: changes_lost(base, e, wish.trunk_layers, kind) for n, e in experts.items()},
    )
