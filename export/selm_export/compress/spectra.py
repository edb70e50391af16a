"""What a matrix is worth, direction by direction: singular values, plain or as its inputs are.

For a weight W [rows, columns] and inputs X [columns, tokens] with G = X X^T, S = chol(G + ridge),
the singular values s of W S say what the output loses without them (SVD-LLM, arXiv 2403.07378):

    W S = U s V^T,   W' = U_r s_r V_r^T S^-1,   |(W - W') X|^2 <= sum of s_i^2, i > r

with equality where the ridge is 0. All of it in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selm_export.compress.calibration import batches, spoken
from selm_export.compress.structure import parts
from selm_export.data.packing import Document
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM

RIDGE = 1e-6  # of the mean square of an input
# Projections of a layer that have the same inputs.
SAME_INPUTS = {
    "self_attn.k_proj": "self_attn.q_proj", "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Spectrum:
    """``values`` [min(rows, columns)] fall. ``left`` [rows, n] and ``right`` [n, columns] give the
    factors: W is left diag(values) right."""

    values: Tensor
    left: Tensor
    right: Tensor

    def cut(self, rank: int, dtype: torch.dtype) -> Spectrum:
        """All values, but no factors above this rank: what is kept of many matrices."""
        return Spectrum(self.values, self.left[:, :rank].to(dtype), self.right[:rank].to(dtype))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """[rank, columns] and [rows, rank]: the singular values are shared evenly, so that neither
        has much larger numbers than the other."""
        share = self.values[:rank].sqrt().to(self.left.dtype)
        return share[:, None] * self.right[:rank], self.left[:, :rank] * share

    def lost(self) -> Tensor:
        """[n + 1]: the squared error at each rank from 0 on."""
        zero = self.values.new_zeros(1)
        return torch.cat((self.values.square().flip(0).cumsum(0).flip(0), zero))

    def kept(self, rank: int) -> float:
        """Share of the squares that this rank keeps; 1 where there is nothing to keep."""
        squares = self.values.square()
        total = float(squares.sum())
        return float(squares[:rank].sum()) / total if total > 0 else 1.0


def root(gram: Tensor, ridge: float = RIDGE) -> Tensor:
    """S, lower triangular, with S S^T = gram + ridge. Inputs that are never there would leave it
    singular. Raises RuntimeError (torch.linalg.LinAlgError) where gram is not finite."""
    gram = gram.double()
    size = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=torch.float64)
    factor: Tensor = torch.linalg.cholesky(gram + ridge * (size if size > 0 else 1.0) * eye)
    return factor


def spectrum(weight: Tensor, whitening: Tensor | None = None) -> Spectrum:
    """Of a weight [rows, columns]; ``whitening`` is its inputs' ``root``."""
    weight = weight.detach().double()
    if whitening is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return Spectrum(values, left, right)
    left, values, right = torch.linalg.svd(weight @ whitening, full_matrices=False)
    right = torch.linalg.solve_triangular(whitening, right, upper=False, left=False)
    return Spectrum(values, left, right)


def _adds_to(sums: dict[str, Tensor], key: str, valid: Callable[[], Tensor]) -> Callable[..., None]:
    def hook(module: Projection, given: tuple[Tensor, int | None]) -> None:
        del module
        x = given[0][valid()]
        gram = (x.T @ x).double()
        sums[key] = sums[key] + gram if key in sums else gram

    return hook


@torch.no_grad()
def grams(
    model: SelmForCausalLM, documents: Sequence[Document], layers: Sequence[int], tokens: int = 512
) -> dict[str, Tensor]:  # fmt: skip
    """X X^T [columns, columns] of the inputs of every projection in these layers, by the weights'
    prefix ("model.layers.0.mlp.up_proj"), over the documents' tokens and all experts. Large ones
    fill memory: ask for few layers at a time."""
    sums: dict[str, Tensor] = {}
    valid = torch.zeros(0)
    hooks, named = [], {}
    for part in parts(model):
        for name, module in part.layer.named_modules():
            if part.number in layers and isinstance(module, Projection):
                key = f"{part.prefix}.{SAME_INPUTS.get(name, name)}"
                named[f"{part.prefix}.{name}"] = key
                if name not in SAME_INPUTS:
                    hooks.append(
                        module.register_forward_pre_hook(_adds_to(sums, key, lambda: valid))
                    )
    try:
        for batch in batches(documents, tokens):
            valid = batch.valid
            spoken(model, batch)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: sums[key] for name, key in named.items()}
