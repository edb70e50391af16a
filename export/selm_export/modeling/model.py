"""The SELM model for `transformers`: `AutoModelForCausalLM`, `generate`, exits and experts.

Where every layer is softmax and nothing else is asked for, it computes what `LlamaForCausalLM`
computes, with the same parameter names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from selm_export.modeling.attention import State, positions_within
from selm_export.modeling.cache import SelmCache
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.experts import (
    ScoreHead,
    chosen,
    log_likelihoods,
    mixture_loss,
    speakers,
)
from selm_export.modeling.layers import (
    QUIET,
    Attention,
    Layer,
    Noise,
    Packed,
    Place,
    Projection,
    RmsNorm,
    Rotary,
    drop,
)

IGNORED = -100  # the label of a token that nothing is to be learned from


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
        if isinstance(module, Projection):
            module.initialise(self.config.initializer_range)
        if isinstance(module, Attention) and self.config.head_gate:
            nn.init.zeros_(module.head_gate.weight)
            nn.init.constant_(module.head_gate.bias, 4.0)  # nearly open: sigmoid(4) = 0.98


@dataclass
class SelmOutput(ModelOutput):
    """``exit_logits`` [exits, batch, tokens, vocab] and ``expert_logits`` [experts, batch, tokens,
    vocab] where they were asked for; ``scores`` [batch, tokens, experts] of the route, and
    ``speakers`` [batch, tokens], which expert spoke."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: SelmCache | None = None
    exit_logits: Tensor | None = None
    expert_logits: Tensor | None = None
    scores: Tensor | None = None
    speakers: Tensor | None = None


class SelmModel(SelmPreTrainedModel):  # type: ignore[no-untyped-call]
    """The trunk in ``layers``; what lies above it is there too for delta experts, and in
    ``experts`` for full ones."""

    def __init__(self, config: SelmConfig) -> None:
        super().__init__(config)
        count, trunk = config.num_hidden_layers, config.trunk_layers
        full = config.expert_kind == "full" and bool(config.expert_names)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(trunk if full else count))
        self.experts = nn.ModuleList(
            nn.ModuleList(Layer(config, i) for i in range(trunk, count))
            for _ in (config.expert_names if full else ())
        )
        self.scores = nn.ModuleList(ScoreHead(config.hidden_size) for _ in config.expert_names)
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.exits = nn.ModuleDict(
            {str(n): RmsNorm(config.hidden_size, config.rms_norm_eps) for n in config.exit_layers}
        )
        self.rotary = Rotary(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def above(self, expert: int) -> Sequence[nn.Module]:
        """The expert's layers above the trunk."""
        if len(self.experts):
            own = self.experts[expert]
            assert isinstance(own, nn.ModuleList)
            return [*own]
        return [*self.layers[self.config.trunk_layers :]]

    def climb(
        self, x: Tensor, place: Place, layers: Sequence[nn.Module], states: list[State],
        expert: int | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """The residual stream [batch, tokens, width] after each layer; ``states`` (none before the
        first token) are brought up to date."""
        before: list[State | None] = [*states] or [None] * len(layers)
        states.clear()
        stream = []
        for layer, state in zip(layers, before, strict=True):
            x, state = layer(x, place, state, expert)  # noqa: PLW2901
            states.append(state)
            stream.append(x)
        return stream

    def start(self, ids: Tensor, valid: Tensor, cache: SelmCache) -> tuple[Place, list[Tensor]]:
        """Through the trunk (all layers, where there are no experts)."""
        x = self.embed_tokens(ids)
        place = Place(self.rotary(cache.place(valid), x.dtype), valid)
        trunk = self.layers[: self.config.trunk_layers] if self.config.expert_names else self.layers
        return place, [x, *self.climb(x, place, list(trunk), cache.states)]

    def packed(
        self, ids: Tensor, documents: Tensor, *, noise: Noise = QUIET, checkpointing: bool = False
    ) -> tuple[list[Tensor], Packed]:
        """The residual stream [batch, tokens, width] before the trunk's layers (all, where there
        are no experts) and after each, of rows that hold several documents, numbered by
        ``documents`` [batch, tokens]: what training reads."""
        x = self.embed_tokens(ids)
        x = drop(x, noise.dropout / 2)
        # From 0 in each document: features do not depend on differences of positions alone.
        turn = self.rotary(positions_within(documents), x.dtype)
        place = Place(turn, torch.ones_like(ids, dtype=torch.bool))
        rows = Packed(place, documents, noise, checkpointing)
        trunk = self.layers[: self.config.trunk_layers] if self.config.expert_names else self.layers
        return [x, *self.packed_above([*trunk], x, rows)], rows

    def packed_above(
        self, layers: Sequence[nn.Module], x: Tensor, rows: Packed, expert: int | None = None
    ) -> list[Tensor]:
        """The stream after each of some layers, as an expert computes them."""
        stream = []
        for layer in layers:
            assert isinstance(layer, Layer)
            if rows.checkpointing:
                x = checkpoint(layer.packed, x, rows, expert, use_reentrant=False)
            else:
                x = layer.packed(x, rows, expert)
            stream.append(x)
        return stream

    def last(self, x: Tensor, place: Place, cache: SelmCache, expert: int) -> Tensor:
        """What the expert makes of the trunk's stream, normalised for the head."""
        states = cache.of_expert(expert)
        if (states[0].seen if states else 0) + x.shape[1] != cache.seen:
            name = self.config.expert_names[expert]
            raise ValueError(f"the expert {name} has not seen all tokens of this cache")
        stream = self.climb(x, place, self.above(expert), states, expert)
        out: Tensor = self.norm(stream[-1])
        return out


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
        output_experts: bool = False,
        expert: str | None = None,
        logits_to_keep: int = 0,
        **ignored: Any,
    ) -> SelmOutput:
        """Logits [batch, tokens, vocab] of the last ``logits_to_keep`` tokens (0: of all).
        ``attention_mask`` [batch, all tokens so far] has 0 for padding, on the left. ``expert``:
        only this one speaks; else, token by token, the one with the highest score, and the loss is
        that of the mixture, from which the scores learn. ``labels`` of -100 do not count."""
        del ignored
        names = self.config.expert_names
        if expert is not None and expert not in names:
            raise ValueError(f"no expert {expert!r}; there are {', '.join(names) or 'none'}")
        cache = past_key_values if past_key_values is not None else SelmCache()
        tokens = input_ids.shape[1]
        if attention_mask is None:
            valid = torch.ones_like(input_ids, dtype=torch.bool)
        else:
            valid = attention_mask[:, -tokens:].bool()
        kept = slice(-logits_to_keep if logits_to_keep else None, None)
        place, stream = self.model.start(input_ids, valid, cache)
        output = SelmOutput(past_key_values=cache)
        if output_exits:
            exits = [self.model.exits[str(n)](stream[n][:, kept]) for n in self.config.exit_layers]
            output.exit_logits = torch.stack([self.lm_head(x) for x in exits])
        if expert is not None:
            hidden = self.model.last(stream[-1], place, cache, names.index(expert))
            output.logits = self.lm_head(hidden[:, kept])
        elif names:
            self._speak(output, place, stream[-1], cache, kept)
        else:
            output.logits = self.lm_head(self.model.norm(stream[-1][:, kept]))
        if labels is not None:
            output.loss = self._loss(output, labels[:, 1:])
        if not output_experts:
            output.expert_logits = None
        if use_cache is False:
            output.past_key_values = None
        return output

    def _speak(
        self, output: SelmOutput, place: Place, x: Tensor, cache: SelmCache, kept: slice
    ) -> None:
        """All experts run on all tokens; one of them speaks at each."""
        config = self.config
        hiddens = [self.model.last(x, place, cache, e) for e in range(len(config.expert_names))]
        seen = [x] * len(hiddens) if config.expert_route == "early" else hiddens
        scores = torch.cat([h(y) for h, y in zip(self.model.scores, seen, strict=True)], dim=-1)
        if cache.speaker is None:
            cache.speaker = torch.full_like(scores[:, 0, 0], -1, dtype=torch.long)
        spoke, cache.speaker = speakers(
            scores, place.valid, cache.speaker, config.expert_stickiness
        )
        output.scores, output.speakers = scores[:, kept], spoke[:, kept]
        output.expert_logits = torch.stack([self.lm_head(h[:, kept]) for h in hiddens])
        output.logits = chosen(output.expert_logits, output.speakers)

    def _loss(self, output: SelmOutput, labels: Tensor) -> Tensor:
        """``labels`` [batch, tokens - 1], those of the tokens after the first."""
        if output.scores is None or output.expert_logits is None:
            assert output.logits is not None
            return F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), labels.flatten())
        counts = labels != IGNORED
        logs = log_likelihoods(output.expert_logits[:, :, :-1][:, counts], labels[counts])
        return mixture_loss(output.scores[:, :-1][counts], logs)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: SelmCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        seen = past_key_values.seen if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": kwargs.get("attention_mask"),
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "expert": kwargs.get("expert"),
            "logits_to_keep": 1,
        }


def register() -> None:
    """Makes `AutoModelForCausalLM` know the model type."""
    AutoConfig.register(SelmConfig.model_type, SelmConfig, exist_ok=True)
    AutoModelForCausalLM.register(SelmConfig, SelmForCausalLM, exist_ok=True)
