"""Types for each tensor under a budget, by what its rounding was measured to cost.

A tensor's rounding errors raise the divergence about in proportion to their expected square at the
tensor's output (the linearity theorem of arXiv 2411.17525). So one measured divergence per tensor,
and the errors of each type, say what each choice costs; the choice itself takes, again and again,
the step that lessens the divergence most for its bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.modeling.file import _tensors
from selm_export.modeling.model import SelmForCausalLM
from selm_export.quantization.divergence import between, predictions
from selm_export.quantization.encode import Encoder
from selm_export.quantization.imatrix import Importance
from selm_export.quantization.mixes import Shapes, Types, bytes_of, fitting
from selm_export.quantization.quantize import Floats, Type, dequantize

KINDS = (
    *(Type.Q2_K, Type.Q3_K, Type.IQ4_XS, Type.Q4_K, Type.Q5_K, Type.Q6_K),
    *(Type.Q8_0, Type.F16),
)
PROBE = Type.Q3_K  # coarse enough that its divergence is no noise, and not a ruin
SAMPLE = 1 << 18  # weights whose errors stand for a tensor's
TRIES = 6  # models that are measured on the way to a wanted divergence


@dataclass(frozen=True)
class Choice:
    kind: Type
    size: int  # bytes in the file
    loss: float  # mean divergence that the tensor adds, in nats


Menu = dict[str, list[Choice]]  # of each tensor, from the smallest on; each step pays less per byte


def smallest(shapes: Shapes, names: Sequence[str]) -> Types:
    """Of the kinds that a menu may offer."""

    def size(kind: Type) -> float:
        block, taken = gguf.GGML_QUANT_SIZES[kind]
        return taken / block

    return {n: min((fitting(kind, shapes[n][1]) for kind in KINDS), key=size) for n in names}


def _some_rows(value: Floats) -> Floats:
    count = min(len(value), max(1, SAMPLE // value.shape[1]))
    found: Floats = value[np.linspace(0, len(value) - 1, count).astype(int)]
    return found


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those for which no mixture of two others is as good for fewer bytes."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.size, c.loss)):
        if kept and choice.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _gain(kept[-2], kept[-1]) <= _gain(kept[-2], choice):
            kept.pop()
        kept.append(choice)
    return kept


def _gain(now: Choice, then: Choice) -> float:
    """Nats per byte."""
    return (now.loss - then.loss) / (then.size - now.size)


class Probe:
    """Measures what each tensor loses on the documents; the model is left as it was."""

    def __init__(
        self, where: Path, model: SelmForCausalLM, documents: Sequence[Document],
        importance: Importance | None,
    ) -> None:  # fmt: skip
        self.where, self.model, self.importance = where, model, importance
        self.documents = documents
        self.before = [predictions(model, d) for d in documents]

    def menu(self, names: Sequence[str], say: Callable[[str], None]) -> Menu:
        tensors = {name: tensor for name, tensor in _tensors(self.model) if name in names}
        found: Menu = {}
        for number, (name, tensor) in enumerate(tensors.items(), start=1):
            found[name] = self._choices(name, tensor, self._loss(name, tensor))
            say(f"measured {number} of {len(tensors)} tensors: {name}")
        return found

    @torch.no_grad()
    def _loss(self, name: str, tensor: Tensor) -> float:
        """Mean divergence with this tensor alone as `PROBE`."""
        kept = tensor.clone()
        data, kind = self._encoder(name, fitting(PROBE, tensor.shape[1]))(name, _floats(tensor))
        tensor.copy_(torch.from_numpy(dequantize(data, kind)))
        try:
            after = (predictions(self.model, d) for d in self.documents)
            return between(self.before, after).mean
        finally:
            tensor.copy_(kept)

    def _choices(self, name: str, tensor: Tensor, loss: float) -> list[Choice]:
        rows, columns = tensor.shape
        value = _some_rows(_floats(tensor))
        kinds = dict.fromkeys(fitting(kind, columns) for kind in (PROBE, *KINDS))
        errors = {k: self._error(name, k, value) for k in kinds}
        probe = errors[fitting(PROBE, columns)]
        each = loss / probe if probe > 0 else 0.0
        return hull([Choice(k, bytes_of(k, (rows, columns)), each * e) for k, e in errors.items()])

    def _encoder(self, name: str, kind: Type) -> Encoder:
        return Encoder(self.where, {name: kind}, self.importance)

    def _error(self, name: str, kind: Type, value: Floats) -> float:
        """Expected squared error of an output, summed over the given rows."""
        data, _ = self._encoder(name, kind)(name, value)
        squares = (dequantize(data, kind).astype(np.float64) - value) ** 2
        weights = None if self.importance is None else self.importance.get(name)
        return float((squares.sum(0) * (1.0 if weights is None else weights)).sum())


def _floats(tensor: Tensor) -> Floats:
    found: Floats = tensor.float().cpu().numpy()
    return found


class Allocation:
    """What was chosen so far: at first the smallest of each."""

    def __init__(self, menu: Menu) -> None:
        self.menu = menu
        self.at = dict.fromkeys(menu, 0)
        self._steps: list[tuple[float, str]] = []
        for name in menu:
            self._offer(name)

    def _offer(self, name: str) -> None:
        at, choices = self.at[name], self.menu[name]
        if at + 1 < len(choices):
            heapq.heappush(self._steps, (-_gain(choices[at], choices[at + 1]), name))

    def chosen(self, name: str) -> Choice:
        return self.menu[name][self.at[name]]

    @property
    def size(self) -> int:
        return sum(self.chosen(name).size for name in self.menu)

    @property
    def loss(self) -> float:
        return sum(self.chosen(name).loss for name in self.menu)

    @property
    def types(self) -> Types:
        return {name: self.chosen(name).kind for name in self.menu}

    @property
    def untouched(self) -> bool:
        return not any(self.at.values())

    @property
    def ended(self) -> bool:
        return not self._steps

    def step(self, room: float = float("inf")) -> bool:
        """Takes the best step that fits into so many more bytes; False if there is none. A step
        that does not fit is gone for good: the room only shrinks."""
        while self._steps:
            _, name = heapq.heappop(self._steps)
            before = self.chosen(name).size
            if self.menu[name][self.at[name] + 1].size - before <= room:
                self.at[name] += 1
                self._offer(name)
                return True
        return False


def within_bytes(where: Path, menu: Menu, budget: int) -> Allocation:
    """The least divergence for at most so many bytes of these tensors."""
    allocation = Allocation(menu)
    if allocation.size > budget:
        raise RecipeError(
            where, f"its matrices take {allocation.size} bytes or more, and {budget} are left",
            "Allow more bytes, or prune the model first",
        )  # fmt: skip
    while allocation.step(budget - allocation.size):
        pass
    return allocation


def within_loss(menu: Menu, target: float) -> Allocation:
    """The fewest bytes for at most so much divergence, if the finest types reach it."""
    allocation = Allocation(menu)
    while allocation.loss > target and allocation.step():
        pass
    return allocation


def search_loss(
    where: Path, menu: Menu, target: float, measured: Callable[[Types], float]
) -> Allocation:
    """As ``within_loss``, of the divergence that whole models were ``measured`` to have: what was
    promised is corrected by it a few times. The smallest that keeps the target is taken."""
    goal, best, reached = target, None, float("inf")
    for _ in range(TRIES):
        allocation = within_loss(menu, goal)
        found = measured(allocation.types)
        reached = min(reached, found)
        if found <= target and (best is None or allocation.size < best.size):
            best = allocation
        enough = 0.9 * target <= found <= target
        if enough or (allocation.ended if found > target else allocation.untouched):
            break
        goal = allocation.loss * 0.97 * target / max(found, 1e-12)
    if best is None:
        raise RecipeError(
            where, f"a mean divergence of {reached:.2g} nats was reached, not {target:.2g}",
            "Allow more, or keep the weights as F16 (mix = \"f16\")",
        )  # fmt: skip
    return best
