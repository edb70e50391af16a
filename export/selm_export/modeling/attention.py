"""The three kinds of attention as one rule over one state.

Query t attends by softmax to the first ``sinks`` tokens and to the last ``window`` (t - window < s
<= t); a performer layer also to all others, through features, in the same normaliser:

    out_t = (sum_near e^(s_tj) v_j + e^g phi(q_t) S_t) / (sum_near e^(s_tj) + e^g phi(q_t) z_t)
    S_t = sum_far phi(k_s) v_s^T,   z_t = sum_far phi(k_s)

with a gain g learned per head. Tokens enter S and z when they leave the window. ``attend`` takes
any number of tokens at once: all of them is the quadratic form, one is the recurrence, and
anything between is the chunked form. FAVOR+ keys are kept relative to a running
maximum M, so that S never overflows, and without a constant added to a feature, so that M changes
nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.features import FeatureMap

CHUNK = 128  # queries of packed rows that a processor takes at a time
NOTHING = -1e30  # the logarithm of no features at all; finite, so that differences are


@dataclass(frozen=True)
class State:
    """What a layer keeps of the tokens it has seen.

    ``keys`` [batch, kv_heads, kept, size] and ``values`` of the tokens that have not been folded
    into the sums, ``slots`` [kept] which tokens those are, ``valid`` [batch, kept] False for
    padding. ``sums`` [batch, kv_heads, features, size], ``counts`` [batch, kv_heads, features]
    and ``scale`` [batch, kv_heads], of performer layers alone.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    valid: Tensor
    seen: int
    sums: Tensor | None = None
    counts: Tensor | None = None
    scale: Tensor | None = None

    def select(self, rows: Tensor) -> State:
        """The state of the given rows of the batch."""

        def of(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, rows)

        return replace(
            self,
            keys=self.keys.index_select(0, rows),
            values=self.values.index_select(0, rows),
            valid=self.valid.index_select(0, rows),
            sums=of(self.sums),
            counts=of(self.counts),
            scale=of(self.scale),
        )


def empty_state(config: SelmConfig, kind: str, keys: Tensor) -> State:
    """Before the first token; ``keys`` gives the batch, the number type and the device."""
    batch, heads, _, size = keys.shape
    none = keys.new_zeros(batch, heads, 0, size)
    state = State(
        none, none, torch.zeros(0, dtype=torch.long, device=keys.device),
        torch.zeros(batch, 0, dtype=torch.bool, device=keys.device), 0,
    )  # fmt: skip
    if kind != "performer":
        return state
    return replace(
        state,
        sums=keys.new_zeros(batch, heads, config.features, size),
        counts=keys.new_zeros(batch, heads, config.features),
        scale=keys.new_full((batch, heads), NOTHING),
    )


@dataclass(frozen=True)
class Rule:
    """What a layer's attention depends on beside its inputs."""

    config: SelmConfig
    kind: str
    feature_map: FeatureMap | None = None
    gain: Tensor | None = None  # [kv_heads, group], logarithms

    def near(self, queries: Tensor, slots: Tensor) -> Tensor:
        """[queries, slots]: attended to by softmax (slots after the query are not)."""
        distance = queries[:, None] - slots[None, :]
        seen = distance >= 0
        if self.kind == "softmax":
            return seen
        return seen & ((distance < self.config.window) | (slots < self.config.sinks))

    def stays(self, slots: Tensor, seen: int) -> Tensor:
        """Which tokens the next query, of slot ``seen``, still attends to by softmax."""
        return self.near(torch.tensor([seen], device=slots.device), slots)[0]


class Tokens(NamedTuple):
    """What some tokens bring to a layer: queries [batch, kv_heads, group, tokens, size], keys and
    values [batch, kv_heads, tokens, size], valid [batch, tokens]."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    valid: Tensor

    def part(self, first: int, count: int) -> Tokens:
        of = slice(first, first + count)
        return Tokens(
            self.queries[:, :, :, of], self.keys[:, :, of], self.values[:, :, of], self.valid[:, of]
        )


def clamped(x: Tensor, config: SelmConfig) -> Tensor:
    """Scaled as the feature map wants it, and no longer than the clamp: FAVOR+'s variance grows
    with the exponential of the squared length."""
    x = x * float(config.head_dim**-0.25)
    length = x.square().sum(-1, keepdim=True).add(1e-12).sqrt()
    return x * (config.clamp / length).clamp(max=1.0)


def _features(rule: Rule, x: Tensor) -> Tensor:
    assert rule.feature_map is not None
    x = clamped(x, rule.config)
    if x.dim() == 5:  # queries [batch, kv_heads, group, rows, size]
        x = x.transpose(1, 2)
        grouped: Tensor = rule.feature_map(x)
        return grouped.transpose(1, 2)
    out: Tensor = rule.feature_map(x)
    return out


def _fold(rule: Rule, state: State, keys: Tensor) -> State:
    """Lets the tokens go that the next query does not see by softmax; ``keys`` [batch, kv_heads,
    kept, features] are the kept tokens' features, relative to the state's scale."""
    stays = rule.stays(state.slots, state.seen)
    if rule.kind == "performer":
        assert state.sums is not None and state.counts is not None
        leaving = keys[:, :, ~stays]
        state = replace(
            state,
            sums=state.sums + leaving.transpose(-1, -2) @ state.values[:, :, ~stays],
            counts=state.counts + leaving.sum(-2),
        )
    return replace(
        state,
        keys=state.keys[:, :, stays],
        values=state.values[:, :, stays],
        slots=state.slots[stays],
        valid=state.valid[:, stays],
    )


def attend(rule: Rule, state: State, tokens: Tokens) -> tuple[Tensor, State]:
    """[batch, kv_heads, group, tokens, size], and the state after these tokens."""
    count = tokens.keys.shape[2]
    own = torch.arange(state.seen, state.seen + count, device=tokens.keys.device)
    state = replace(
        state,
        keys=torch.cat((state.keys, tokens.keys), dim=2),
        values=torch.cat((state.values, tokens.values), dim=2),
        slots=torch.cat((state.slots, own)),
        valid=torch.cat((state.valid, tokens.valid), dim=1),
        seen=state.seen + count,
    )
    near = rule.near(own, state.slots)
    itself = own[:, None] == state.slots[None, :]  # also where it is padding: no row is empty
    mask = ((near & state.valid[:, None]) | itself)[:, None, None]  # [batch, 1, 1, tokens, kept]
    logits = (
        torch.einsum("bkgnd,bksd->bkgns", tokens.queries, state.keys) * rule.config.head_dim**-0.5
    )
    logits = logits.masked_fill(~mask, -torch.inf)
    if rule.kind != "performer":
        out = torch.einsum("bkgns,bksd->bkgnd", logits.softmax(-1), state.values)
        return out, _fold(rule, state, state.keys)
    far = ~near & (own[:, None] >= state.slots[None, :])
    far = far & state.valid[:, None]
    out, state, features = _attend_far(rule, state, tokens.queries, logits, far)
    return out, _fold(rule, state, features)


def positions_within(documents: Tensor) -> Tensor:
    """Each token's place in its own document; both [batch, tokens]."""
    own = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return own - torch.where(begins, own, 0).cummax(-1).values


def attend_packed(rule: Rule, tokens: Tokens, documents: Tensor) -> Tensor:
    """As ``attend``, without a state, for rows that hold several documents each, numbered by
    ``documents`` [batch, tokens]: every one is attended to as if it were alone."""
    own = torch.arange(documents.shape[1], device=documents.device)
    slots = positions_within(documents)
    distance = own[:, None] - own[None, :]
    seen = (documents[:, :, None] == documents[:, None, :]) & (distance >= 0)
    near = seen
    if rule.kind != "softmax":
        near = seen & ((distance < rule.config.window) | (slots[:, None, :] < rule.config.sinks))
    far = seen & ~near if rule.kind == "performer" and not torch.equal(seen, near) else None
    if documents.device.type != "cpu":
        if far is not None:
            return _attend_block(rule, tokens, tokens.queries, near, far) + _nothing(rule)
        return _attend_by_kernel(tokens, near) + _nothing(rule)
    # A processor computes what is masked as well, so only what may be seen is given to it.
    begins = (own - slots).amin(0).tolist()  # of the earliest document that a place is in
    parts = []
    for first in range(0, own.shape[0], CHUNK):
        rows, kept = slice(first, first + CHUNK), slice(begins[first], first + CHUNK)
        here = Tokens(
            tokens.queries, tokens.keys[:, :, kept], tokens.values[:, :, kept],
            tokens.valid[:, kept],
        )  # fmt: skip
        part = None if far is None else far[:, rows, kept]
        queries = tokens.queries[:, :, :, rows]
        parts.append(_attend_block(rule, here, queries, near[:, rows, kept], part))
    return torch.cat(parts, dim=3) + _nothing(rule)


def _nothing(rule: Rule) -> Tensor | float:
    """Zero, made of what only far tokens need: where there are none, it has a gradient all the
    same, as several processes that train together count on."""
    if rule.kind != "performer" or not torch.is_grad_enabled():
        return 0.0
    assert rule.feature_map is not None and rule.gain is not None
    parts = (rule.gain, *rule.feature_map.parameters())
    return 0.0 * torch.stack([part.sum() for part in parts]).sum()


def _attend_by_kernel(tokens: Tokens, near: Tensor) -> Tensor:
    """Softmax alone, by torch's own kernel; ``near`` [batch, tokens, tokens]."""
    batch, heads, group, count, size = tokens.queries.shape
    out = F.scaled_dot_product_attention(
        tokens.queries.reshape(batch, heads * group, count, size),
        tokens.keys.repeat_interleave(group, dim=1),
        tokens.values.repeat_interleave(group, dim=1),
        attn_mask=near[:, None],
    )
    return out.view(batch, heads, group, count, size)


def _attend_block(
    rule: Rule, tokens: Tokens, queries: Tensor, near: Tensor, far: Tensor | None
) -> Tensor:
    """What ``queries`` [batch, kv_heads, group, count, size] find among the tokens' keys, of which
    each sees ``near`` [batch, count, keys] by softmax and ``far`` through features."""
    logits = torch.einsum("bkgnd,bksd->bkgns", queries, tokens.keys) * rule.config.head_dim**-0.5
    logits = logits.masked_fill(~near[:, None, None], -torch.inf)
    if far is None or not bool(far.any()):
        return torch.einsum("bkgns,bksd->bkgnd", logits.softmax(-1), tokens.values)
    state = replace(
        empty_state(rule.config, rule.kind, tokens.keys),
        keys=tokens.keys, values=tokens.values, valid=tokens.valid,
    )  # fmt: skip
    out, _, _ = _attend_far(rule, state, queries, logits, far)
    return out


def _attend_far(
    rule: Rule, state: State, queries: Tensor, logits: Tensor, far: Tensor
) -> tuple[Tensor, State, Tensor]:
    """Near and far in one normaliser; ``far`` [batch, tokens, kept]. Also the state at its new
    scale, and the kept keys' features."""
    assert state.sums is not None and state.counts is not None and state.scale is not None
    assert rule.feature_map is not None and rule.gain is not None
    q, k = _features(rule, queries), _features(rule, state.keys)
    log_scale = rule.gain[None, :, :, None]  # of the far part, [batch, kv_heads, group, tokens]
    if rule.feature_map.logarithmic:
        highest = q.amax(-1, keepdim=True).detach()
        q = (q - highest).exp()
        k = k.masked_fill(~state.valid[:, None, :, None], -torch.inf)
        scale = torch.maximum(state.scale, k.amax((-1, -2))).detach()
        k = (k - scale[:, :, None, None]).exp()
        shrink = (state.scale - scale).exp()
        state = replace(
            state,
            sums=state.sums * shrink[:, :, None, None],
            counts=state.counts * shrink[:, :, None],
            scale=scale,
        )
        log_scale = log_scale + highest[..., 0] + scale[:, :, None, None]
        log_scale = log_scale - math.log(rule.config.features)
    else:
        k = k * state.valid[:, None, :, None].to(k.dtype)
    assert state.sums is not None and state.counts is not None
    within = torch.einsum("bkgnm,bksm->bkgns", q, k) * far[:, None, None].to(k.dtype)
    numerator = torch.einsum("bkgnm,bkmd->bkgnd", q, state.sums) + torch.einsum(
        "bkgns,bksd->bkgnd", within, state.values
    )
    denominator = torch.einsum("bkgnm,bkm->bkgn", q, state.counts) + within.sum(-1)
    common = torch.maximum(logits.amax(-1), log_scale).detach()
    weights = (logits - common[..., None]).exp()
    gain = (log_scale - common).exp()
    total = weights.sum(-1) + gain * denominator
    out = torch.einsum("bkgns,bksd->bkgnd", weights, state.values) + gain[..., None] * numerator
    return out / total[..., None], state, k
