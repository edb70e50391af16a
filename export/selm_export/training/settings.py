"""How long, how fast and from what a stage learns: the keys of a recipe's ``train`` tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from selm_export.data.packing import Packing
from selm_export.modeling.layers import Noise


@dataclass(frozen=True)
class Phase:
    """What is read until the given share of the whole run is done.

    ``shares`` are of tokens, by source. ``user_weight`` weighs tokens that are not replies;
    ``dropout`` is of what each half of a layer adds, and half as much of the embeddings;
    ``layer_dropout`` is how often the highest layer is left out (lower ones less often).
    """

    shares: dict[str, float]
    until: float = 1.0
    dropout: float = 0.0
    layer_dropout: float = 0.0
    user_weight: float = 0.3

    @property
    def noise(self) -> Noise:
        return Noise(self.dropout, self.layer_dropout)


@dataclass(frozen=True)
class Training:
    """``tokens`` in all, in steps of ``micro_batches`` of ``rows`` times ``length``, of which
    ``places`` count in the loss. Matrices inside the layers learn by Muon at ``matrix_rate``, all
    else by AdamW at ``rate``; rates rise over ``warmup_steps`` and fall to nothing over the last
    ``decay_share``. What is kept is the parameters' running mean (``average``)."""

    tokens: int
    phases: tuple[Phase, ...]
    rows: int = 2
    length: int = 512
    places: int = 640
    micro_batches: int = 6
    matrix_rate: float = 0.02
    rate: float = 0.003
    matrix_decay: float = 0.1
    decay: float = 0.01
    momentum: float = 0.95
    warmup_steps: int = 40
    decay_share: float = 0.3
    clip: float = 1.0
    average: float = 0.99
    bf16: bool = False  # autocast: faster where the processor multiplies bfloat16
    checkpointing: bool = False  # less memory for a third more arithmetic

    @property
    def packing(self) -> Packing:
        return Packing(rows=self.rows, tokens=self.length, places=self.places)

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.micro_batches * self.rows * self.length))

    def rate_factor(self, step: int, share: float) -> float:
        """Of the full rates, at a step and when this share of the run is done."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (1 - share) / self.decay_share if self.decay_share > 0 else 1.0
        return warm * max(0.01, min(1.0, left))

    def faults(self) -> str | None:
        """What makes these settings senseless, if anything does."""
        if not self.phases or abs(self.phases[-1].until - 1.0) > 1e-9:
            return "the last phase does not end at until = 1.0"
        untils = [phase.until for phase in self.phases]
        if untils != sorted(untils):
            return "the phases' until do not rise"
        for name in ("tokens", "rows", "length", "places", "micro_batches"):
            if getattr(self, name) < 1:
                return f"{name} = {getattr(self, name)} is less than 1"
        return None


@dataclass
class Progress:
    """Where a run stands; ``share`` of all of it is done, in [0, 1]."""

    step: int = 0
    tokens: int = 0
    share: float = 0.0
    phase: int = 0
    drawn: int = 0  # micro-batches drawn in this phase
    seconds: float = 0.0
    loss: float = math.nan  # of the last step
