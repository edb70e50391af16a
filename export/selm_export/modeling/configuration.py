"""What shapes a SELM model; the keys of the file are those of ``docs/selm-format.md``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

ATTENTION_KINDS = ("softmax", "window", "performer")
FEATURE_MAPS = ("favor+", "elu1", "relu", "hedgehog")
PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


class SelmConfig(PretrainedConfig):
    """A decoder of the llama family whose layers choose their attention.

    ``attention_kinds`` names one per layer: ``softmax`` sees everything, ``window`` the first
    ``sinks`` tokens and the last ``window`` (its own included), ``performer`` also all others
    through ``features`` features of ``feature_map``. ``qk_norm`` normalises queries and keys per
    head; ``clamp`` bounds the length of what the feature map sees (scaled by head_dim ** -0.25).
    ``rope_factors`` divide the frequencies of the rotary embedding, one for each pair of a head:
    Llama 3's rule for long texts, or all equal for linear interpolation; empty: none.
    ``head_gate`` multiplies each head's output by a sigmoid of the layer's input;
    ``attention_bias`` adds one to queries, keys and values. After the layers in ``exit_layers``
    (counted from 1) the shared head may speak; drafts are of the tokens in ``draft_vocabulary``
    alone, if there are any. ``ranks`` names projections that are products of two factors, and
    their rank: of all layers ("mlp.up_proj") or, which counts more, of one
    ("layers.3.mlp.up_proj").

    ``expert_names`` share the first ``trunk_layers``; above, an expert of the kind ``delta`` adds
    products of rank ``expert_rank`` to the projections, one of the kind ``full`` has layers of its
    own. The route is decided by scalar heads on the trunk's stream (``early``) or on what each
    expert makes of it (``full``); ``expert_stickiness`` is added to the score of the expert that
    spoke last.
    """

    model_type = "selm"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        *,
        vocab_size: int = 8192,
        hidden_size: int = 512,
        intermediate_size: int = 1024,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 8,
        num_key_value_heads: int = 2,
        head_dim: int | None = None,
        max_position_embeddings: int = 1024,
        rope_theta: float = 10000.0,
        rope_factors: Sequence[float] = (),
        rms_norm_eps: float = 1e-6,
        attention_kinds: Sequence[str] | None = None,
        window: int = 64,
        sinks: int = 0,
        features: int = 128,
        feature_map: str = "favor+",
        clamp: float = 1.2,
        qk_norm: bool = False,
        head_gate: bool = False,
        attention_bias: bool = False,
        exit_layers: Sequence[int] = (),
        draft_vocabulary: Sequence[int] = (),
        ranks: dict[str, int] | None = None,
        expert_names: Sequence[str] = (),
        expert_kind: str = "delta",
        expert_rank: int = 16,
        expert_route: str = "early",
        expert_stickiness: float = 0.0,
        trunk_layers: int = 0,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rope_factors = list(rope_factors)
        self.rms_norm_eps = rms_norm_eps
        self.attention_kinds = list(attention_kinds or ["softmax"] * num_hidden_layers)
        self.window = window
        self.sinks = sinks
        self.features = features
        self.feature_map = feature_map
        self.clamp = clamp
        self.qk_norm = qk_norm
        self.head_gate = head_gate
        self.attention_bias = attention_bias
        self.exit_layers = sorted(exit_layers)
        self.draft_vocabulary = list(draft_vocabulary)
        self.ranks = dict(ranks or {})
        self.expert_names = list(expert_names)
        self.expert_kind = expert_kind
        self.expert_rank = expert_rank
        self.expert_route = expert_route
        self.expert_stickiness = expert_stickiness
        self.trunk_layers = trunk_layers
        self.initializer_range = initializer_range
        self._check()
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def rank(self, layer: int, projection: str) -> int | None:
        """Of the factors of a projection in this layer (counted from 0); None where it is whole."""
        return self.ranks.get(f"layers.{layer}.{projection}", self.ranks.get(projection))

    def has_deltas(self, layer: int) -> bool:
        """Whether experts add to the projections of this layer (counted from 0)."""
        above = layer >= self.trunk_layers
        return bool(self.expert_names) and self.expert_kind == "delta" and above

    def _check_experts(self) -> None:
        if self.expert_kind not in ("delta", "full") or self.expert_route not in ("early", "full"):
            raise ValueError(
                "experts are of the kind delta or full, and so is the route early or full"
            )
        if len({"", "auto", *self.expert_names}) != len(self.expert_names) + 2:  # auto is the route
            raise ValueError(
                f"experts have names of their own, and none is auto: {', '.join(self.expert_names)}"
            )
        if self.expert_rank < 1 or not 0 <= self.expert_stickiness < math.inf:
            raise ValueError(
                "expert_rank must be at least 1, expert_stickiness at least 0 and finite"
            )
        if self.expert_names and not 0 < self.trunk_layers < self.num_hidden_layers:
            raise ValueError(
                f"a trunk of {self.trunk_layers} layers of {self.num_hidden_layers} for the experts"
            )
        if self.expert_names and any(n > self.trunk_layers for n in self.exit_layers):
            raise ValueError("exits lie within the trunk that the experts share")

    def _check_exits(self) -> None:
        for layer in self.exit_layers:
            if not 0 < layer < self.num_hidden_layers:
                raise ValueError(f"an exit after layer {layer} of {self.num_hidden_layers}")
        drafted = self.draft_vocabulary
        if len(set(drafted)) != len(drafted):
            raise ValueError("a token is in the draft vocabulary twice")
        for token in drafted:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"the draft vocabulary has a token {token} of {self.vocab_size}")

    def _check_ranks(self) -> None:
        layers = [
            f"layers.{i}.{name}" for i in range(self.num_hidden_layers) for name in PROJECTIONS
        ]
        for name, rank in self.ranks.items():
            if name not in PROJECTIONS and name not in layers:
                raise ValueError(f"ranks names {name}, which is no projection of a layer")
            if rank < 1:
                raise ValueError(f"{name} has factors of rank {rank}; the least is 1")

    def _check(self) -> None:
        self._check_experts()
        self._check_exits()
        self._check_ranks()
        if len(self.attention_kinds) != self.num_hidden_layers:
            named, layers = len(self.attention_kinds), self.num_hidden_layers
            raise ValueError(f"attention_kinds names {named} layers of {layers}")
        for kind in self.attention_kinds:
            if kind not in ATTENTION_KINDS:
                raise ValueError(f"attention kind {kind!r} is none of {', '.join(ATTENTION_KINDS)}")
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(
                f"feature map {self.feature_map!r} is none of {', '.join(FEATURE_MAPS)}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads do not share {self.num_key_value_heads} evenly"
            )
        if self.rope_factors and len(self.rope_factors) != self.head_dim // 2:
            pairs, found = self.head_dim // 2, len(self.rope_factors)
            raise ValueError(f"rope_factors has {found} divisors for {pairs} pairs")
        if not all(0 < factor < math.inf for factor in self.rope_factors):
            raise ValueError("rope_factors are positive")
        if self.window < 1 or self.sinks < 0 or self.clamp <= 0:
            raise ValueError("window must be at least 1, sinks at least 0, clamp above 0")
        if self.feature_map == "elu1" and self.features != self.head_dim:
            raise ValueError(f"elu1 has as many features as a head: {self.head_dim}")
        if self.feature_map == "hedgehog" and self.features % 2:
            raise ValueError("hedgehog has an even number of features")
