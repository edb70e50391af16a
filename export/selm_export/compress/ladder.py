"""Smaller and smaller models, none further from the first than a budget allows.

A budget is a mean KL divergence on held-out text, in nats per token. It is that before healing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gguf

from selm_export.compress.calibration import Divergence, Reference
from selm_export.compress.structure import parameters
from selm_export.modeling import file
from selm_export.modeling.model import SelmForCausalLM

Say = Callable[[str], None]


@dataclass(frozen=True)
class Goal:
    """How small a model should be: at most ``keep`` of the parameters it has, and at most ``bytes``
    (0: any number) when its tensors are ``stored_as`` a type of GGUF; and how far it may go for
    that, ``kld``."""

    keep: float = 1.0
    bytes: int = 0
    stored_as: str = "Q8_0"
    kld: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or self.bytes < 0 or not self.kld > 0:
            raise ValueError(
                f"keep = {self.keep}, bytes = {self.bytes}, kld = {self.kld}: a share above 0, "
                "a number of bytes and a divergence above 0 are wanted"
            )
        known = [kind.name for kind in gguf.GGML_QUANT_SIZES]
        if self.stored_as.upper() not in known:
            raise ValueError(f"stored_as = {self.stored_as!r} is none of {', '.join(known)}")

    @property
    def kind(self) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType[self.stored_as.upper()]

    def size(self, model: SelmForCausalLM) -> int:
        return file.size(model, self.kind)

    def asks(self) -> bool:
        """Whether anything is asked for."""
        return self.keep < 1.0 or self.bytes > 0


@dataclass(frozen=True)
class Rung:
    """One model of the ladder: how large it is, how far it is from the first, what it is."""

    parameters: int
    bytes: int
    divergence: Divergence
    what: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        sizes = {"parameters": self.parameters, "bytes": self.bytes}
        return {**sizes, **self.divergence.to_dict(), **self.what}

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f}M parameters, mean KLD {self.divergence.mean:.4f}"


@dataclass(frozen=True)
class Smaller:
    """What was made of a model. ``ladder`` begins with the model itself; its last rung may be one
    that the budget refused."""

    model: SelmForCausalLM
    ladder: list[Rung]
    taken: int  # which rung the model is
    reached: bool  # what was asked for
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        first, last = self.ladder[0], self.ladder[self.taken]
        return {
            "parameters_before": first.parameters,
            "parameters": last.parameters,
            "bytes_before": first.bytes,
            "bytes": last.bytes,
            **{f"{k}_before_healing": v for k, v in last.divergence.to_dict().items()},
            "reached": self.reached,
            "ladder": [rung.to_dict() for rung in self.ladder],
            **self.figures,
        }


def rung(model: SelmForCausalLM, goal: Goal, held_out: Reference, what: dict[str, Any]) -> Rung:
    return Rung(parameters(model), goal.size(model), held_out.divergence(model), what)


def small_enough(step: Rung, first: Rung, goal: Goal) -> bool:
    return step.parameters <= goal.keep * first.parameters and (
        goal.bytes == 0 or step.bytes <= goal.bytes
    )
