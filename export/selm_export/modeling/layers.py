"""The layers of a SELM model, with llama's parameter names."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selm_export.modeling.attention import Rule, State, Tokens, attend, attend_packed, empty_state
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.features import FeatureMap

CHUNK = 256  # tokens that go through attention together: longer inputs cost linear time


class RmsNorm(nn.Module):
    """In float32 at least, as a long row's sum of squares loses too much in bfloat16."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = x if x.dtype == torch.float64 else x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * self.weight).to(x.dtype)


class Projection(nn.Module):
    """A matrix [rows, columns], or the product of two factors; perhaps a bias; in the layers of
    delta experts, with what each adds to it: a product of low rank."""

    def __init__(
        self, config: SelmConfig, layer: int, name: str, size: tuple[int, int], bias: bool = False
    ) -> None:
        super().__init__()
        rows, columns = size
        rank = config.rank(layer, name)
        self.factorized, self.has_deltas = rank is not None, config.has_deltas(layer)
        if rank is not None:
            self.lora_a = nn.Linear(columns, rank, bias=False)
            self.lora_b = nn.Linear(rank, rows, bias=False)
        else:
            self.weight = nn.Parameter(torch.empty(rows, columns))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None
        if self.has_deltas:
            experts, rank = len(config.expert_names), config.expert_rank
            self.delta_a = nn.Parameter(torch.empty(experts, rank, columns))
            self.delta_b = nn.Parameter(torch.empty(experts, rows, rank))

    def initialise(self, deviation: float) -> None:
        """A delta adds nothing yet, as is usual for LoRA."""
        if not self.factorized:
            nn.init.normal_(self.weight, std=deviation)
        if self.has_deltas:
            nn.init.normal_(self.delta_a, std=deviation)
            nn.init.zeros_(self.delta_b)

    def forward(self, x: Tensor, expert: int | None) -> Tensor:
        if self.factorized:
            y: Tensor = self.lora_b(self.lora_a(x))
            y = y if self.bias is None else y + self.bias
        else:
            y = F.linear(x, self.weight, self.bias)
        if self.has_deltas and expert is not None:
            y = y + F.linear(F.linear(x, self.delta_a[expert]), self.delta_b[expert])
        return y


class Rotary(nn.Module):
    """Rotary position embedding over pairs (i, i + size / 2) (arXiv 2104.09864), its
    frequencies divided by ``rope_factors``."""

    inverse: Tensor

    def __init__(self, config: SelmConfig) -> None:
        super().__init__()
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        inverse = config.rope_theta**-steps
        if config.rope_factors:
            inverse = inverse / torch.tensor(config.rope_factors, dtype=torch.float64)
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [batch, tokens] -> cosines and sines [batch, 1, tokens, size / 2]."""
        angle = (positions[..., None].double() * self.inverse.double())[:, None]
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [batch, heads, tokens, size]."""
    cos, sin = turn
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Place(NamedTuple):
    """Where tokens stand: cosines and sines of their positions, and which are not padding."""

    turn: tuple[Tensor, Tensor]
    valid: Tensor


class Noise(NamedTuple):
    """What training leaves out at random: of what each half of a layer adds (half as much of the
    embeddings), and of whole layers, the highest one's rate."""

    dropout: float = 0.0
    layers: float = 0.0


QUIET = Noise()


def drop(x: Tensor, share: float) -> Tensor:
    """Dropout by a random byte for each number, so of 256ths: torch's draws a double for each,
    which on a processor is a tenth of the time that training takes."""
    kept = 256 - round(256 * share)
    if kept == 256:
        return x
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
    drawn = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()].view(x.shape)
    return x * (drawn < kept).to(x.dtype).mul_(256 / kept)


class Packed(NamedTuple):
    """Rows that hold several documents each, numbered by ``documents`` [batch, tokens], and how
    they are gone through; ``checkpointing`` computes layers again on the way back instead of
    keeping what they computed."""

    place: Place
    documents: Tensor
    noise: Noise = QUIET
    checkpointing: bool = False


class Attention(nn.Module):
    def __init__(self, config: SelmConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.kind = config.attention_kinds[layer]
        heads, kv_heads, size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        width = config.hidden_size
        bias = config.attention_bias
        self.q_proj = Projection(config, layer, "self_attn.q_proj", (heads * size, width), bias)
        self.k_proj = Projection(config, layer, "self_attn.k_proj", (kv_heads * size, width), bias)
        self.v_proj = Projection(config, layer, "self_attn.v_proj", (kv_heads * size, width), bias)
        self.o_proj = Projection(config, layer, "self_attn.o_proj", (width, heads * size))
        if config.qk_norm:
            self.q_norm = RmsNorm(size, config.rms_norm_eps)
            self.k_norm = RmsNorm(size, config.rms_norm_eps)
        if config.head_gate:
            self.head_gate = nn.Linear(width, heads)
        if self.kind == "performer":
            self.feature_map = FeatureMap(config, seed=layer)
            self.far_gain = nn.Parameter(torch.zeros(heads))

    def rule(self) -> Rule:
        if self.kind != "performer":
            return Rule(self.config, self.kind)
        gain = self.far_gain.view(self.config.num_key_value_heads, -1)
        return Rule(self.config, self.kind, self.feature_map, gain)

    def tokens(self, x: Tensor, place: Place, expert: int | None) -> Tokens:
        batch, count, _ = x.shape
        kv_heads, size = self.config.num_key_value_heads, self.config.head_dim

        def split(y: Tensor) -> Tensor:
            return y.view(batch, count, -1, size).transpose(1, 2)

        q, k, v = (split(p(x, expert)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, place.turn), rotate(k, place.turn)
        return Tokens(q.reshape(batch, kv_heads, -1, count, size), k, v, place.valid)

    def joined(self, y: Tensor, x: Tensor, expert: int | None) -> Tensor:
        """From what the heads found [batch, kv_heads, group, tokens, size] to the stream."""
        batch, count, _ = x.shape
        y = y.reshape(batch, -1, count, self.config.head_dim)
        if self.config.head_gate:
            y = y * torch.sigmoid(self.head_gate(x)).transpose(1, 2)[..., None]
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, count, -1), expert)
        return out

    def forward(
        self, x: Tensor, place: Place, state: State | None, expert: int | None
    ) -> tuple[Tensor, State]:
        rule, parts, new = self.rule(), [], self.tokens(x, place, expert)
        state = state or empty_state(self.config, self.kind, new.keys)
        step = x.shape[1] if self.kind == "softmax" else CHUNK
        for first in range(0, x.shape[1], step):
            out, state = attend(rule, state, new.part(first, step))
            parts.append(out)
        return self.joined(torch.cat(parts, dim=3), x, expert), state

    def packed(self, x: Tensor, rows: Packed, expert: int | None) -> Tensor:
        """Of rows that hold several documents each, without a state."""
        found = attend_packed(self.rule(), self.tokens(x, rows.place, expert), rows.documents)
        return self.joined(found, x, expert)


class FeedForward(nn.Module):
    def __init__(self, config: SelmConfig, layer: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Projection(config, layer, "mlp.gate_proj", (inner, width))
        self.up_proj = Projection(config, layer, "mlp.up_proj", (inner, width))
        self.down_proj = Projection(config, layer, "mlp.down_proj", (width, inner))

    def forward(self, x: Tensor, expert: int | None) -> Tensor:
        inner = F.silu(self.gate_proj(x, expert)) * self.up_proj(x, expert)
        out: Tensor = self.down_proj(inner, expert)
        return out


class Layer(nn.Module):
    def __init__(self, config: SelmConfig, index: int) -> None:
        super().__init__()
        # How often it is left out, of the highest layer's rate: LayerSkip (arXiv 2404.16710).
        self.depth = 2.0 ** (index / max(1, config.num_hidden_layers - 1)) - 1.0
        self.self_attn = Attention(config, index)
        self.mlp = FeedForward(config, index)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, place: Place, state: State | None, expert: int | None = None
    ) -> tuple[Tensor, State]:
        y, state = self.self_attn(self.input_layernorm(x), place, state, expert)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x), expert), state

    def packed(self, x: Tensor, rows: Packed, expert: int | None) -> Tensor:
        noise = rows.noise
        before, dropout = x, noise.dropout
        y = self.self_attn.packed(self.input_layernorm(x), rows, expert)
        x = x + drop(y, dropout)
        y = self.mlp(self.post_attention_layernorm(x), expert)
        x = x + drop(y, dropout)
        if noise.layers:  # by row; computed all the same, so that every parameter has a gradient
            left_out = torch.rand(x.shape[0], 1, 1, device=x.device) < noise.layers * self.depth
            x = torch.where(left_out, before, x)
        return x
