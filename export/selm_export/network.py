"""The Qwen2 architecture as one compact torch module.

Parameter names are those of ``transformers.Qwen2ForCausalLM``, so a state dict moves either way
unchanged. Written apart from it because a step of a small model is dominated by overhead: this
forward pass compiles into one graph and takes the loss inside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below 1, as drafts help where the model is sure, and text is drawn at low temperatures.
DRAFT_TEMPERATURE = 0.5


@dataclass(frozen=True)
class Shape:
    """Everything that decides the parameters' shapes and the arithmetic."""

    vocab: int = 8192
    width: int = 512
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    feed_forward: int = 1024
    context: int = 1024
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-6
    exits: tuple[int, ...] = ()  # after these layers, counted from 1, the head may speak as well

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RmsNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        # In float32: the sum of squares of a long row loses too much in bfloat16.
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (y * self.weight).to(x.dtype)


def rope_tables(positions: int, size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, size/2] of the rotary embedding."""
    inverse = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * inverse[None, :]
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """NEOX layout: the pair of component i is i + size/2. x is [batch, heads, tokens, size]."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = shape.heads, shape.kv_heads, shape.head_size
        self.q_proj = nn.Linear(shape.width, shape.heads * self.size, bias=True)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * self.size, bias=True)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * self.size, bias=True)
        self.o_proj = nn.Linear(shape.heads * self.size, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, _ = x.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, tokens, heads, self.size).transpose(1, 2)

        q = rotate(split(self.q_proj(x), self.heads), cos, sin)
        k = rotate(split(self.k_proj(x), self.kv_heads), cos, sin)
        v = split(self.v_proj(x), self.kv_heads)
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask is None else mask.to(q.dtype), is_causal=mask is None
        )
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RmsNorm(shape.width, shape.norm_epsilon)
        self.post_attention_layernorm = RmsNorm(shape.width, shape.norm_epsilon)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + F.dropout(y, dropout, training=dropout > 0)
        y = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(y, dropout, training=dropout > 0)


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.width, shape.norm_epsilon)
        self.exits = nn.ModuleDict(
            {str(n): RmsNorm(shape.width, shape.norm_epsilon) for n in shape.exits}
        )


class Network(nn.Module):
    """The language model. The head is the embedding's transpose (tied)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        cos, sin = rope_tables(shape.context, shape.head_size, shape.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def spoken(
        self, ids: Tensor, documents: Tensor | None, dropout: float = 0.0, end: bool = True
    ) -> list[Tensor]:
        """What the head reads, [batch, tokens, width]: at each exit and, if asked for, at the end.
        ``documents`` [batch, tokens] numbers the packed documents of a row, and attention stays
        within one."""
        tokens = ids.shape[1]
        mask = None if documents is None else document_mask(documents)
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.get_autocast_dtype(ids.device.type))
        found = []
        needed = self.shape.layers if end else max(self.shape.exits, default=0)
        for number, layer in enumerate(self.model.layers[:needed], start=1):
            x = layer(x, cos, sin, mask, dropout)
            if number in self.shape.exits:
                found.append(self.model.exits[str(number)](x))
        return [*found, self.model.norm(x)] if end else found

    def head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Logits [batch, tokens, vocab]."""
        return self.head(self.spoken(ids, documents)[-1])

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Logits [places, vocab] in float32, at the given flat positions only: the head is a third
        of the arithmetic, and about half of the tokens do not count."""
        return self.head(x.flatten(0, 1).index_select(0, positions)).float()

    def loss(
        self, ids: Tensor, documents: Tensor, *, positions: Tensor, targets: Tensor,
        weights: Tensor, dropout: float,
    ) -> Tensor:  # fmt: skip
        """Sum of weighted cross-entropies in nats at the given flat positions."""
        logits = self.at(self.spoken(ids, documents, dropout)[-1], positions)
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()

    def taught(
        self, teacher: Network, ids: Tensor, documents: Tensor, *, positions: Tensor,
        weights: Tensor, dropout: float, end: int,
    ) -> Tensor:  # fmt: skip
        """Sum of weighted divergences from what the teacher says in the end: of each exit, and
        ``end`` times of the end; at 0, which costs half, exits alone are run."""
        with torch.no_grad():
            wanted = teacher.at(teacher.spoken(ids, documents)[-1], positions)
        said = [self.at(x, positions) for x in self.spoken(ids, documents, dropout, end=end > 0)]
        loss = torch.zeros_like(weights)
        if end:
            loss = divergence(wanted, said.pop(), 1.0) * end
        for drafted in said:
            loss = loss + divergence(wanted, drafted, DRAFT_TEMPERATURE)
        return (loss * weights).sum()


def divergence(taught: Tensor, drafted: Tensor, temperature: float) -> Tensor:
    """KL divergence [places] of two rows of logits at a temperature, times it, so that the
    gradient keeps its size."""
    p = F.log_softmax(taught / temperature, dim=-1)
    q = F.log_softmax(drafted / temperature, dim=-1)
    return temperature * (p.exp() * (p - q)).sum(-1)


def document_mask(documents: Tensor) -> Tensor:
    """Additive mask [batch, 1, tokens, tokens]: causal, and only within one document."""
    tokens = documents.shape[1]
    order = torch.arange(tokens, device=documents.device)
    allowed = (documents[:, :, None] == documents[:, None, :]) & (order[:, None] >= order[None, :])
    zero = torch.zeros((), device=documents.device)
    return torch.where(allowed, zero, torch.finfo(torch.bfloat16).min / 2)[:, None]


def initialise(network: Network, seed: int) -> None:
    """Normal weights, zero biases; the two matrices that write into the residual stream start
    smaller by the square root of their number, so that depth does not change its size."""
    generator = torch.Generator().manual_seed(seed)
    shape = network.shape
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            value = 0.0 if name.endswith("bias") else 1.0
            nn.init.constant_(parameter, value)
            continue
        deviation = 0.02 if "embed" in name else parameter.shape[1] ** -0.5 * 0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= (2 * shape.layers) ** 0.5
        with torch.no_grad():
            parameter.normal_(0.0, deviation, generator=generator)


def parameter_count(network: Network) -> int:
    return sum(p.numel() for p in network.parameters())
