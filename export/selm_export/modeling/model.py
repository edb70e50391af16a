"""The SELM model for `transformers`: `AutoModelForCausalLM`, `generate` with a cache, and exits.

Where every layer is softmax and nothing else is asked for, it computes what `LlamaForCausalLM`
computes, with the same parameter names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from selm_export.modeling.attention import Rule, State, Tokens, attend, empty_state
from selm_export.modeling.cache import SelmCache
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.features import FeatureMap

CHUNK = 256  # tokens that go through attention together: longer inputs cost linear time


class RmsNorm(nn.Module):
    """In float32, as a long row's sum of squares loses too much in bfloat16."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * self.weight).to(x.dtype)


class Factorized(nn.Module):
    """A matrix of low rank: x -> lora_b (lora_a x); no bias."""

    def __init__(self, columns: int, rows: int, rank: int) -> None:
        super().__init__()
        self.lora_a = nn.Linear(columns, rank, bias=False)
        self.lora_b = nn.Linear(rank, rows, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lora_b(self.lora_a(x))
        return out


def projection(config: SelmConfig, name: str, columns: int, rows: int) -> nn.Module:
    rank = config.ranks.get(name)
    return Factorized(columns, rows, rank) if rank else nn.Linear(columns, rows, bias=False)


class Rotary(nn.Module):
    """Rotary position embedding over pairs (i, i + size / 2) (arXiv 2104.09864)."""

    inverse: Tensor

    def __init__(self, config: SelmConfig) -> None:
        super().__init__()
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.register_buffer("inverse", config.rope_theta**-steps, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [batch, tokens] -> cosines and sines [batch, 1, tokens, size / 2]."""
        angle = (positions[..., None].double() * self.inverse.double())[:, None]
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [batch, heads, tokens, size]."""
    cos, sin = turn
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


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
        self.q_proj = projection(config, "self_attn.q_proj", width, heads * size)
        self.k_proj = projection(config, "self_attn.k_proj", width, kv_heads * size)
        self.v_proj = projection(config, "self_attn.v_proj", width, kv_heads * size)
        self.o_proj = projection(config, "self_attn.o_proj", heads * size, width)
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

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], valid: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        batch, tokens, _ = x.shape
        kv_heads, size = self.config.num_key_value_heads, self.config.head_dim

        def split(y: Tensor) -> Tensor:
            return y.view(batch, tokens, -1, size).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, turn), rotate(k, turn)
        q = q.view(batch, kv_heads, -1, tokens, size)
        state = state or empty_state(self.config, self.kind, k)
        rule, parts, new = self.rule(), [], Tokens(q, k, v, valid)
        step = tokens if self.kind == "softmax" else CHUNK
        for first in range(0, tokens, step):
            out, state = attend(rule, state, new.part(first, step))
            parts.append(out)
        y = torch.cat(parts, dim=3).reshape(batch, -1, tokens, size)
        if self.config.head_gate:
            y = y * torch.sigmoid(self.head_gate(x)).transpose(1, 2)[..., None]
        result: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))
        return result, state


class FeedForward(nn.Module):
    def __init__(self, config: SelmConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = projection(config, "mlp.gate_proj", width, inner)
        self.up_proj = projection(config, "mlp.up_proj", width, inner)
        self.down_proj = projection(config, "mlp.down_proj", inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: SelmConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, index)
        self.mlp = FeedForward(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], valid: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        y, state = self.self_attn(self.input_layernorm(x), turn, valid, state)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), state


class SelmPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    config: SelmConfig
    config_class = SelmConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention) and self.config.head_gate:
            nn.init.zeros_(module.head_gate.weight)
            nn.init.constant_(module.head_gate.bias, 4.0)  # nearly open: sigmoid(4) = 0.98


@dataclass
class SelmOutput(ModelOutput):
    """``exit_logits`` [exits, batch, tokens, vocab] where they were asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: SelmCache | None = None
    exit_logits: Tensor | None = None


class SelmModel(SelmPreTrainedModel):  # type: ignore[no-untyped-call]
    def __init__(self, config: SelmConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.exits = nn.ModuleDict(
            {str(n): RmsNorm(config.hidden_size, config.rms_norm_eps) for n in config.exit_layers}
        )
        self.rotary = Rotary(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def run(self, ids: Tensor, valid: Tensor, cache: SelmCache) -> Iterator[tuple[int, Tensor]]:
        """The residual stream [batch, tokens, width] after each layer, with its number; the cache
        is brought up to date on the way."""
        x = self.embed_tokens(ids)
        turn = self.rotary(cache.place(valid), x.dtype)
        before: list[State | None] = [*cache.states] or [None] * len(self.layers)
        after = []
        for i, layer in enumerate(self.layers):
            x, state = layer(x, turn, valid, before[i])
            after.append(state)
            yield i + 1, x
        cache.states = after


class SelmForCausalLM(SelmPreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call,misc]
    _tied_weights_keys = ["lm_head.weight"]  # type: ignore[assignment] # noqa: RUF012

    def __init__(self, config: SelmConfig) -> None:
        super().__init__(config)
        self.model = SelmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        past_key_values: SelmCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_exits: bool = False,
        logits_to_keep: int = 0,
        **ignored: Any,
    ) -> SelmOutput:
        """Logits [batch, tokens, vocab] of the last ``logits_to_keep`` tokens (0: of all).
        ``attention_mask`` [batch, all tokens so far] has 0 for padding, on the left."""
        del ignored
        cache = past_key_values if past_key_values is not None else SelmCache()
        tokens = input_ids.shape[1]
        if attention_mask is None:
            valid = torch.ones_like(input_ids, dtype=torch.bool)
        else:
            valid = attention_mask[:, -tokens:].bool()
        kept = slice(-logits_to_keep if logits_to_keep else None, None)
        exits, x = [], None
        for number, x in self.model.run(input_ids, valid, cache):
            if output_exits and number in self.config.exit_layers:
                exits.append(self.lm_head(self.model.exits[str(number)](x[:, kept])))
        assert x is not None
        logits = self.lm_head(self.model.norm(x[:, kept]))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return SelmOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache if use_cache is not False else None,
            exit_logits=torch.stack(exits) if exits else None,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: SelmCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        seen = past_key_values.seen if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": kwargs.get("attention_mask"),
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": 1,
        }


def register() -> None:
    """Makes `AutoModelForCausalLM` know the model type."""
    AutoConfig.register(SelmConfig.model_type, SelmConfig, exist_ok=True)
    AutoModelForCausalLM.register(SelmConfig, SelmForCausalLM, exist_ok=True)
