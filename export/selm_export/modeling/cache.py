"""What `generate` carries from token to token: one state per layer, and positions per row."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from selm_export.modeling.attention import State


@dataclass
class SelmCache:
    """Filled by the model; `transformers` hands it back and asks for its length."""

    states: list[State] = field(default_factory=list)  # of the trunk, or of all layers
    expert_states: dict[int, list[State]] = field(default_factory=dict)
    positions: Tensor | None = None  # [batch], of the next token; padding has none
    speaker: Tensor | None = None  # [batch], the expert that spoke last; -1: none has

    @property
    def seen(self) -> int:
        return self.states[0].seen if self.states else 0

    def of_expert(self, expert: int) -> list[State]:
        return self.expert_states.setdefault(expert, [])

    def get_seq_length(self, layer: int = 0) -> int:
        del layer
        return self.seen

    def get_max_cache_shape(self) -> int | None:
        return None

    @property
    def is_compileable(self) -> bool:
        return False

    def reorder_cache(self, beams: Tensor) -> None:
        """Beam search: row i goes on from row beams[i]."""
        self.states = [state.select(beams) for state in self.states]
        for expert, states in self.expert_states.items():
            self.expert_states[expert] = [state.select(beams) for state in states]
        if self.positions is not None:
            self.positions = self.positions.index_select(0, beams)
        if self.speaker is not None:
            self.speaker = self.speaker.index_select(0, beams)

    def bytes(self) -> int:
        """Of all states: constant for window and performer layers once the window is full."""
        total = 0
        for state in (*self.states, *(s for states in self.expert_states.values() for s in states)):
            for x in (state.keys, state.values, state.sums, state.counts, state.scale):
                total += 0 if x is None else x.numel() * x.element_size()
        return total

    def place(self, valid: Tensor) -> Tensor:
        """Positions [batch, tokens] of new tokens, and the next ones are remembered."""
        first = (
            self.positions
            if self.positions is not None
            else torch.zeros_like(valid[:, 0], dtype=torch.long)
        )
        ahead = valid.long().cumsum(-1)
        self.positions = first + ahead[:, -1]
        return (first[:, None] + ahead - 1).clamp(min=0)
