"""The update rule: Muon for the matrices inside the layers, AdamW for everything else. Where a
finished model learns exits, the layers above them have to follow only: AdamW, which is cheaper.

Muon replaces a matrix's momentum by the nearest matrix whose singular values are all about one
(Keller Jordan's description: five Newton-Schulz steps of an odd quintic polynomial), so that rare
directions learn as fast as common ones. It needs about half the tokens of AdamW here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selm_export.network import Network, Shape

# Coefficients of the polynomial a x + b x^3 + c x^5: steepest at zero, kept near one.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Singular values of about one (0.7 to 1.2), singular vectors unchanged."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = x.T if tall else x
    return found


@dataclass(frozen=True)
class Rates:
    matrix: float = 0.02
    rest: float = 0.003
    matrix_decay: float = 0.1
    rest_decay: float = 0.01
    momentum: float = 0.95
    above: float = 0.1  # of ``rest``, for the layers above the last exit, by AdamW alone


def _is_above(name: str, exits: tuple[int, ...]) -> bool:
    """Whether it is of a layer that no exit speaks after."""
    place, _, rest = name.removeprefix("model.").partition(".")
    return bool(exits) and place == "layers" and int(rest.partition(".")[0]) >= max(exits)


def _shared(count: int) -> Tensor:
    """Zeros that other processes see."""
    made: Tensor = torch.zeros(count).share_memory_()  # type: ignore[no-untyped-call]
    return made


class FlatState:
    """Parameters, gradients and moments as flat tensors in shared memory, so that several
    processes work on one model: ``parts`` says where each parameter lies."""

    def __init__(self, network: Network, workers: int) -> None:
        sizes = [(n, p.shape, p.numel()) for n, p in network.named_parameters()]
        total = sum(count for _, _, count in sizes)
        self.parameters = _shared(total)
        self.gradients = [_shared(total) for _ in range(workers)]
        self.first = _shared(total)
        self.second = _shared(total)
        self.average = _shared(total)
        self.parts: list[tuple[str, torch.Size, int, int]] = []
        self.above = [_is_above(name, network.shape.exits) for name, _, _ in sizes]
        start = 0
        for name, shape, count in sizes:
            self.parts.append((name, shape, start, start + count))
            start += count
        for (_, _, a, b), parameter in zip(self.parts, network.parameters(), strict=True):
            self.parameters[a:b] = parameter.detach().flatten()
        self.average.copy_(self.parameters)
        # A network with exits learns from itself as it was in the beginning.
        self.begun = _shared(total).copy_(self.parameters) if network.shape.exits else None

    def teacher(self, shape: Shape) -> Network | None:
        if self.begun is None:
            return None
        found = Network(shape)
        for parameter, value in zip(
            found.parameters(), self.view(self.begun).values(), strict=True
        ):
            parameter.data = value
        return found.eval().requires_grad_(False)

    def attach(self, network: Network, worker: int) -> None:
        """Makes the network's parameters and gradients views of the flat tensors."""
        for (_, shape, a, b), parameter in zip(self.parts, network.parameters(), strict=True):
            parameter.data = self.parameters[a:b].view(shape)
            parameter.grad = self.gradients[worker][a:b].view(shape)

    def view(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: flat[a:b].view(shape) for name, shape, a, b in self.parts}

    def matrices(self) -> list[int]:
        """Indices of the parts that Muon moves, the largest first (they are handed out)."""
        found = [
            i
            for i, (n, shape, _, _) in enumerate(self.parts)
            if len(shape) == 2 and "embed" not in n and not self.above[i]
        ]
        return sorted(found, key=lambda i: -self.parts[i][1].numel())

    def gather(self) -> Tensor:
        """The sum of all workers' gradients, in the first one's buffer."""
        total: Tensor = self.gradients[0]
        for other in self.gradients[1:]:
            total += other
        return total

    def clear(self) -> None:
        for gradient in self.gradients:
            gradient.zero_()


def clip(gradient: Tensor, limit: float) -> float:
    norm = float(gradient.norm())
    if norm > limit:
        gradient *= limit / norm
    return norm


def step_matrix(state: FlatState, index: int, factor: float, rates: Rates) -> None:
    """One Muon step of one matrix."""
    _, shape, a, b = state.parts[index]
    parameter = state.parameters[a:b].view(shape)
    gradient = state.gradients[0][a:b].view(shape)
    momentum = state.first[a:b].view(shape)
    momentum.lerp_(gradient, 1 - rates.momentum)
    update = orthogonalise(torch.lerp(gradient, momentum, rates.momentum))  # Nesterov
    rate = rates.matrix * factor
    parameter.mul_(1 - rate * rates.matrix_decay)
    parameter.add_(update, alpha=-rate * max(1.0, shape[0] / shape[1]) ** 0.5)


def step_rest(state: FlatState, step: int, factor: float, rates: Rates) -> None:
    """One AdamW step of what Muon does not move: the embedding, the norms, the biases."""
    slow, fast, epsilon = 0.9, 0.95, 1e-8
    matrices = set(state.matrices())
    for i, (_, shape, a, b) in enumerate(state.parts):
        if i in matrices:
            continue
        rate = rates.rest * factor * (rates.above if state.above[i] else 1.0)
        gradient, parameter = state.gradients[0][a:b], state.parameters[a:b]
        first, second = state.first[a:b], state.second[a:b]
        first.lerp_(gradient, 1 - slow)
        second.mul_(fast).addcmul_(gradient, gradient, value=1 - fast)
        scale = (1 - fast**step) ** 0.5 / (1 - slow**step)
        if len(shape) == 2:
            parameter.mul_(1 - rate * rates.rest_decay)
        parameter.addcdiv_(first, second.sqrt().add_(epsilon), value=-rate * scale)
