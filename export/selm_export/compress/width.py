"""Width pruning by activation importance (Minitron, arXiv 2407.14679).

One pass over calibration text finds how much each head, each neuron of the feed forward and each
channel of the residual stream does; what does least is cut away from all weights at once. Other
than there, a neuron counts by what reaches the stream, as a head does: its activation times the
length of its column of ``down_proj``, which loses less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selm_export.compress.calibration import Batch, batches, spoken
from selm_export.compress.structure import axes, built, changed, dense, parts, place
from selm_export.data.packing import Document
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.layers import Projection, RmsNorm
from selm_export.modeling.model import SelmForCausalLM


@dataclass(frozen=True)
class Width:
    """Of every layer. A head is as large as before."""

    feed_forward: int
    heads: int
    kv_heads: int
    width: int

    @staticmethod
    def of(config: SelmConfig) -> Width:
        return Width(
            config.intermediate_size, config.num_attention_heads, config.num_key_value_heads,
            config.hidden_size,
        )  # fmt: skip

    def sizes(self, head_dim: int) -> dict[str, int]:
        """How long each axis is that ``structure.axes`` names."""
        return {
            "feed_forward": self.feed_forward,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "width": self.width,
            "queries": self.heads * head_dim,
            "keys": self.kv_heads * head_dim,
        }


@dataclass(frozen=True)
class Importance:
    """Means over tokens. By layer (its weights' prefix): ``heads`` [heads], the length of what a
    head adds to the stream; ``neurons`` [feed_forward], the same of a neuron. ``channels``
    [width], of the size of what the norms give out."""

    heads: dict[str, Tensor]
    neurons: dict[str, Tensor]
    channels: Tensor


class _Gathering:
    """Sums of one pass; hooks add to them, for the tokens of the batch that are not padding."""

    def __init__(self, model: SelmForCausalLM) -> None:
        self.valid = torch.zeros(0)
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.head_dim = model.config.head_dim
        self.hooks = []
        for part in parts(model):
            for name, module in part.layer.named_modules():
                if name in ("self_attn.o_proj", "mlp.down_proj"):
                    kind = "heads" if name == "self_attn.o_proj" else "neurons"
                    hook = self._into(part.prefix, kind)
                    self.hooks.append(module.register_forward_pre_hook(hook))
                elif isinstance(module, RmsNorm) and "layernorm" in name:
                    self.hooks.append(
                        module.register_forward_hook(self._out_of(part.prefix + name))
                    )
        self.hooks.append(model.model.norm.register_forward_hook(self._out_of("norm")))

    def add(self, kind: str, name: str, values: Tensor) -> None:
        """``values`` [tokens, entries]."""
        total = values.double().sum(0)
        key = kind, name
        self.sums[key] = self.sums[key] + total if key in self.sums else total
        self.counts[key] = self.counts.get(key, 0) + len(values)

    def _into(self, prefix: str, kind: str) -> Callable[..., None]:
        def hook(module: Projection, given: tuple[Tensor, int | None]) -> None:
            x, expert = given
            x, weight = x[self.valid], dense(module, expert)
            if kind == "neurons":
                self.add(kind, prefix, x.abs() * weight.norm(dim=0))
                return
            x = x.view(len(x), -1, self.head_dim)  # [tokens, heads, size]
            by_head = weight.view(len(weight), -1, self.head_dim)  # [width, heads, size]
            gram = torch.einsum("whi,whj->hij", by_head, by_head)
            square = (torch.einsum("nhi,hij->nhj", x, gram) * x).sum(-1)
            self.add(kind, prefix, square.clamp(min=0).sqrt())

        return hook

    def _out_of(self, name: str) -> Callable[..., None]:
        def hook(module: RmsNorm, given: tuple[Tensor], out: Tensor) -> None:
            del module, given
            self.add("channels", name, out[self.valid].abs())

        return hook

    def run(self, model: SelmForCausalLM, batch: Batch) -> None:
        self.valid = batch.valid
        spoken(model, batch)

    def of(self, kind: str) -> dict[str, Tensor]:
        return {
            name: total / self.counts[kind, name]
            for (of, name), total in self.sums.items()
            if of == kind
        }


@torch.no_grad()
def importance(
    model: SelmForCausalLM, documents: Sequence[Document], tokens: int = 512
) -> Importance:
    """Gathered in one pass over the first ``tokens`` tokens of each document. Of an ensemble, over
    what every expert does."""
    gathering = _Gathering(model)
    try:
        for batch in batches(documents, tokens):
            gathering.run(model, batch)
    finally:
        for hook in gathering.hooks:
            hook.remove()
    channels = torch.stack([*gathering.of("channels").values()]).sum(0)
    return Importance(gathering.of("heads"), gathering.of("neurons"), channels)


def _best(values: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest stand, in order."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def _best_heads(values: Tensor, before: Width, after: Width) -> tuple[Tensor, Tensor]:
    """Heads and KV heads that stay: each KV head keeps equally many of its own heads, its best, and
    those stay whose heads together do most."""
    by_group = values.view(before.kv_heads, -1)
    each = after.heads // after.kv_heads
    groups = _best(by_group.topk(each).values.sum(-1), after.kv_heads)
    heads = [_best(by_group[g], each) + g * by_group.shape[1] for g in groups]
    return torch.cat(heads), groups


def check(before: Width, after: Width) -> None:
    """Raises ValueError for what cannot be cut."""
    for name, size in vars(after).items():
        most = getattr(before, name)
        if not 0 < size <= most:
            raise ValueError(f"{name} = {size}; the model has {most}, and pruning adds none")
    if after.heads % after.kv_heads:
        raise ValueError(f"{after.heads} heads do not share {after.kv_heads} KV heads evenly")
    if after.heads // after.kv_heads > before.heads // before.kv_heads:
        raise ValueError(
            f"{after.heads} heads for {after.kv_heads} KV heads; the model has "
            f"{before.heads // before.kv_heads} for each"
        )


def _elements(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size)).flatten()


@torch.no_grad()
def narrowed(model: SelmForCausalLM, found: Importance, after: Width) -> SelmForCausalLM:
    """A smaller model with what matters most of this one's weights.

    Where channels go that carry nothing, what the experts say stays the same: the stream is scaled
    so that its mean square over fewer channels is what it was, and each norm gives back the scale.
    (Scores change a little, as they subtract the mean over all channels.) Raises ValueError for
    what cannot be cut."""
    before, size = Width.of(model.config), model.config.head_dim
    check(before, after)
    kept: dict[tuple[str, str], Tensor] = {("", "width"): _best(found.channels, after.width)}
    for part in parts(model):
        heads, groups = _best_heads(found.heads[part.prefix], before, after)
        kept |= {
            (part.prefix, "heads"): heads,
            (part.prefix, "kv_heads"): groups,
            (part.prefix, "queries"): _elements(heads, size),
            (part.prefix, "keys"): _elements(groups, size),
            (part.prefix, "feed_forward"): _best(found.neurons[part.prefix], after.feed_forward),
        }
    weights = {}
    for name, weight in model.state_dict().items():
        prefix, _ = place(name)
        for dimension, axis in enumerate(axes(name)):
            if axis is not None:
                where = kept["" if axis == "width" else prefix, axis]
                weight = weight.index_select(dimension, where)  # noqa: PLW2901
        weights[name] = weight
    if after.width < before.width:
        _rescale(weights, (after.width / before.width) ** 0.5, model.config.tie_word_embeddings)
    config = changed(
        model.config, intermediate_size=after.feed_forward, num_attention_heads=after.heads,
        num_key_value_heads=after.kv_heads, hidden_size=after.width, head_dim=size,
    )  # fmt: skip
    return built(config, weights)


def _rescale(weights: dict[str, Tensor], scale: float, tied: bool) -> None:
    """In place: all that writes into the stream times ``scale``, so the gains of the norms over it
    by as much; a tied head was scaled too, so those of the norms that it hears once more."""
    for name, weight in weights.items():
        _, part = place(name)
        head = name == "model.embed_tokens.weight" or (name == "lm_head.weight" and tied)
        writes = part.startswith(("self_attn.o_proj.", "mlp.down_proj."))
        if head or (writes and not part.endswith(("lora_a.weight", "delta_a"))):
            weights[name] = weight * scale
        elif part in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            weights[name] = weight / scale
        elif name.startswith(("model.norm.", "model.exits.")):
            weights[name] = weight / (scale**2 if tied else scale)
