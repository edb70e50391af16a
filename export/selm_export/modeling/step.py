"""A few new tokens through the model, over a state of fixed shape: what an exported graph computes.

`attention.attend` lets go of tokens one by one, so the shapes of its state depend on values. Here
they do not: a layer keeps the last ``window - 1`` tokens in order (slots before the first token
are there too, and masked), its ``sinks`` apart from them, and the sums. Only softmax layers keep
keys and values of every token. ``seen`` alone says which slots hold something. It is for one
sequence, without padding, and for exporters: it has no gradients to care for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selm_export.modeling.attention import NOTHING, clamped
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.features import FeatureMap
from selm_export.modeling.layers import Attention, Layer, Place, rotate
from selm_export.modeling.model import SelmForCausalLM


@dataclass(frozen=True)
class StateTensor:
    """One tensor of the state: ``shape`` with None where it grows with the text, and what it is
    full of before the first token."""

    name: str
    shape: tuple[int | None, ...]
    start: float = 0.0
    type: str = "float32"


def layer_state(config: SelmConfig, layer: int, prefix: str) -> list[StateTensor]:
    """Of one layer, in the order in which `Memory` reads them."""
    heads, size, kind = config.num_key_value_heads, config.head_dim, config.attention_kinds[layer]
    if kind == "softmax":
        both = ("keys", "values")
        return [StateTensor(f"{prefix}.{part}", (1, heads, None, size)) for part in both]
    parts = [("keys", config.window - 1), ("values", config.window - 1)]
    parts += [("sink_keys", config.sinks), ("sink_values", config.sinks)]
    state = [StateTensor(f"{prefix}.{p}", (1, heads, n, size)) for p, n in parts if n]
    if kind == "performer":
        state.append(StateTensor(f"{prefix}.sums", (1, heads, config.features, size)))
        state.append(StateTensor(f"{prefix}.counts", (1, heads, config.features)))
        if config.feature_map == "favor+":
            state.append(StateTensor(f"{prefix}.scale", (1, heads), NOTHING))
    return state


def states(config: SelmConfig) -> list[StateTensor]:
    """Of all layers: first the trunk (all, where there are no experts), then each expert's."""
    trunk = config.trunk_layers if config.expert_names else config.num_hidden_layers
    found = [s for i in range(trunk) for s in layer_state(config, i, f"layer{i}")]
    for expert in range(len(config.expert_names)):
        for i in range(trunk, config.num_hidden_layers):
            found += layer_state(config, i, f"expert{expert}.layer{i}")
    if config.expert_names:
        found.append(StateTensor("speaker", (1,), -1, "int64"))
    return found


class New(NamedTuple):
    """Queries [1, kv_heads, group, tokens, size], keys and values [1, kv_heads, tokens, size]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class Far(NamedTuple):
    """Keys and values that leave the window, [1, kv_heads, tokens, size], and which of them are
    tokens at all [tokens]; the sums so far [1, kv_heads, features, size], [1, kv_heads, features]
    and their scale [1, kv_heads]."""

    keys: Tensor
    values: Tensor
    valid: Tensor
    sums: Tensor
    counts: Tensor
    scale: Tensor | None


def _near(config: SelmConfig, ring: int, count: int, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the sinks, the window and the new tokens each new one attends to by softmax
    [tokens, sinks + window - 1 + tokens], and which of the last two are tokens that ever leave."""
    own = torch.arange(count)
    slots = torch.arange(ring + count) + (seen - ring)
    distance = (own[:, None] + ring) - torch.arange(ring + count)[None, :]
    held = slots >= config.sinks  # the sinks among them are attended to in their own place,
    fresh = (slots < config.sinks) & (slots >= seen)  # but for those that have just come
    near = (distance >= 0) & (fresh | (held & (slots >= 0) & (distance < config.window)))
    if not config.sinks:
        return near, held & (slots >= 0)
    sinks = torch.arange(config.sinks) < seen
    return torch.cat((sinks.expand(count, -1), near), dim=1), held & (slots >= 0)


def _kept_sinks(config: SelmConfig, sinks: Tensor, new: Tensor, seen: Tensor) -> Tensor:
    """The first tokens of all, where they have come."""
    own = torch.arange(config.sinks)
    arrived = (own >= seen) & (own < seen + new.shape[2])
    at = torch.where(arrived, own - seen + config.sinks, own)
    return torch.cat((sinks, new), dim=2).index_select(2, at)


def _features(feature_map: FeatureMap, config: SelmConfig, x: Tensor) -> Tensor:
    out: Tensor = feature_map(clamped(x, config))
    return out


def _blend(layer: Attention, queries: Tensor, logits: Tensor, values: Tensor, far: Far) -> tuple[
    Tensor, list[Tensor]
]:  # fmt: skip
    """What is near and what is far in one normaliser, and the sums with what has left: as
    `attention.attend` has it, where token j of those that leave is far for the new tokens after
    number j."""
    config, feature_map = layer.config, layer.feature_map
    gain = layer.far_gain.view(config.num_key_value_heads, -1)
    q = _features(feature_map, config, queries.transpose(1, 2)).transpose(1, 2)
    k = _features(feature_map, config, far.keys)
    log_scale, sums, counts = gain[None, :, :, None], far.sums, far.counts
    kept: list[Tensor] = []
    if feature_map.logarithmic:
        assert far.scale is not None
        highest = q.amax(-1, keepdim=True)
        q = (q - highest).exp()
        k = torch.where(far.valid[:, None], k, torch.full_like(k, NOTHING))
        scale = torch.maximum(far.scale, k.amax((-1, -2)))
        k = (k - scale[:, :, None, None]).exp()
        shrink = (far.scale - scale).exp()
        sums, counts = sums * shrink[:, :, None, None], counts * shrink[:, :, None]
        log_scale = log_scale + highest[..., 0] + scale[:, :, None, None]
        log_scale = log_scale - math.log(config.features)
        kept = [scale]
    k = k * far.valid[:, None].to(k.dtype)
    count = far.keys.shape[2]
    before = torch.arange(count)[:, None] > torch.arange(count)[None, :]
    within = torch.einsum("bkgnm,bksm->bkgns", q, k) * before.to(k.dtype)
    numerator = torch.einsum("bkgnm,bkmd->bkgnd", q, sums) + torch.einsum(
        "bkgns,bksd->bkgnd", within, far.values
    )
    denominator = torch.einsum("bkgnm,bkm->bkgn", q, counts) + within.sum(-1)
    common = torch.maximum(logits.amax(-1), log_scale)
    weights = (logits - common[..., None]).exp()
    far_weight = (log_scale - common).exp()
    total = weights.sum(-1) + far_weight * denominator
    out = torch.einsum("bkgns,bksd->bkgnd", weights, values) + far_weight[..., None] * numerator
    sums, counts = sums + k.transpose(-1, -2) @ far.values, counts + k.sum(-2)
    return out / total[..., None], [sums, counts, *kept]


def _attend(
    layer: Attention, memory: Iterator[Tensor], new: New, seen: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """[1, kv_heads, group, tokens, size], and the layer's state after the new tokens."""
    config, kind, count = layer.config, layer.kind, new.keys.shape[2]
    if kind == "softmax":
        keys = torch.cat((next(memory), new.keys), dim=2)
        values = torch.cat((next(memory), new.values), dim=2)
        own = torch.arange(count)[:, None] + (keys.shape[2] - count)
        near = own >= torch.arange(keys.shape[2])[None, :]
        state = [keys, values]
    else:
        ring = config.window - 1
        own_keys, own_values, state = new.keys, new.values, []
        if ring:
            own_keys = torch.cat((next(memory), own_keys), dim=2)
            own_values = torch.cat((next(memory), own_values), dim=2)
            state = [own_keys.narrow(2, count, ring), own_values.narrow(2, count, ring)]
        keys, values = own_keys, own_values
        if config.sinks:
            sinks = next(memory), next(memory)
            keys, values = torch.cat((sinks[0], keys), dim=2), torch.cat((sinks[1], values), dim=2)
            state.append(_kept_sinks(config, sinks[0], new.keys, seen))
            state.append(_kept_sinks(config, sinks[1], new.values, seen))
        near, leaves = _near(config, ring, count, seen)
    logits = torch.einsum("bkgnd,bksd->bkgns", new.queries, keys) * config.head_dim**-0.5
    logits = torch.where(near, logits, torch.full_like(logits, NOTHING))
    if kind != "performer":
        return torch.einsum("bkgns,bksd->bkgnd", logits.softmax(-1), values), state
    far = Far(
        own_keys.narrow(2, 0, count), own_values.narrow(2, 0, count), leaves.narrow(0, 0, count),
        next(memory), next(memory), next(memory) if layer.feature_map.logarithmic else None,
    )  # fmt: skip
    out, sums = _blend(layer, new.queries, logits, values, far)
    return out, state + sums


def _through(
    layer: Layer, x: Tensor, place: Place, memory: Iterator[Tensor], seen: Tensor,
    *, expert: int | None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """x [1, tokens, width] after the layer, and its state."""
    attention, count = layer.self_attn, x.shape[1]
    config = attention.config
    y = layer.input_layernorm(x)

    def split(z: Tensor) -> Tensor:
        return z.view(1, count, -1, config.head_dim).transpose(1, 2)

    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (split(p(y, expert)) for p in parts)
    if config.qk_norm:
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = rotate(q, place.turn), rotate(k, place.turn)
    q = q.reshape(1, config.num_key_value_heads, -1, count, config.head_dim)
    out, state = _attend(attention, memory, New(q, k, v), seen)
    out = out.reshape(1, -1, count, config.head_dim)
    if config.head_gate:
        out = out * torch.sigmoid(attention.head_gate(y)).transpose(1, 2)[..., None]
    x = x + attention.o_proj(out.transpose(1, 2).reshape(1, count, -1), expert)
    return x + layer.mlp(layer.post_attention_layernorm(x), expert), state


def spoken(scores: Tensor, last: Tensor, stickiness: float, most: int) -> Tensor:
    """Who speaks [tokens], as `experts.speakers` has it, in steps that do not wait for each other:
    each token maps who spoke before it to who speaks, and maps are composed by doubling.
    ``scores`` [tokens, experts], ``last`` [1] (-1: nobody spoke), up to ``most`` tokens."""
    count, experts = scores.shape
    # maps[t, e]: who speaks at t if e (or nobody, the last column) spoke before
    bonus = torch.cat((torch.eye(experts), torch.zeros(1, experts))) * stickiness
    maps = (scores[:, None, :] + bonus[None]).argmax(-1)
    nothing = torch.arange(experts + 1).expand(1, -1)
    step = 1
    while step < most and stickiness > 0:
        earlier = torch.cat((nothing.expand(step, -1), maps)).narrow(0, 0, count)
        maps = maps.gather(1, earlier)
        step *= 2
    start = torch.where(last < 0, torch.full_like(last, experts), last)
    return maps.index_select(1, start)[:, 0]


class Step(nn.Module):
    """``ids`` [1, tokens], at most ``most`` of them, after ``seen`` [1] others and their states,
    to logits [1, tokens, vocab], the normalised stream before the head [1, tokens, width], the
    states after, and, where there are experts, who spoke [1, tokens]. ``expert`` [1]: the only one
    that speaks, or -1; all of them see every token.
    """

    def __init__(self, model: SelmForCausalLM, most: int) -> None:
        super().__init__()
        self.model, self.most = model, most

    def forward(
        self, ids: Tensor, seen: Tensor, states: list[Tensor], expert: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        body, config, memory = self.model.model, self.model.config, iter(states)
        positions = torch.arange(ids.shape[1])[None] + seen
        x = body.embed_tokens(ids)
        place = Place(body.rotary(positions, x.dtype), torch.ones_like(ids, dtype=torch.bool))
        trunk = body.layers[: config.trunk_layers] if expert is not None else body.layers
        x, kept = self._climb(x, place, list(trunk), memory, seen)
        if expert is None:
            hidden = body.norm(x)
            return self.model.lm_head(hidden), hidden, *kept
        hiddens = []
        for number in range(len(config.expert_names)):
            y, state = self._climb(x, place, body.above(number), memory, seen, expert=number)
            hiddens.append(body.norm(y))
            kept += state
        heard = [x] * len(hiddens) if config.expert_route == "early" else hiddens
        scores = torch.cat([h(y) for h, y in zip(body.scores, heard, strict=True)], dim=-1)
        routed = spoken(scores[0], next(memory), config.expert_stickiness, self.most)
        who = torch.where(expert < 0, routed, expert)
        at = who[None, :, None, None].expand(1, -1, 1, x.shape[-1])
        hidden = torch.stack(hiddens, dim=2).gather(2, at)[:, :, 0]
        # Who was told to speak is not remembered: the route is as if nobody had been.
        return self.model.lm_head(hidden), hidden, *kept, routed[-1:], who[None]

    def _climb(
        self, x: Tensor, place: Place, layers: Sequence[nn.Module], memory: Iterator[Tensor],
        seen: Tensor, *, expert: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        kept = []
        for layer in layers:
            assert isinstance(layer, Layer)
            x, state = _through(layer, x, place, memory, seen, expert=expert)
            kept += state
        return x, kept
