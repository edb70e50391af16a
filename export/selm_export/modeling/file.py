"""Models as the keys and tensors of GGUF files, and back.

What is plain softmax attention has a standard architecture, llama, qwen2 or qwen3, which other
engines read too; all else is ``selm`` (``docs/selm-format.md``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.modeling_utils import no_init_weights

from selm_export.errors import RecipeError
from selm_export.gguf_file import (
    Encode,
    Floats,
    Label,
    Tensors,
    copy_keys,
    fill,
    open_file,
    plain,
    write_label,
    write_streamed,
)
from selm_export.gguf_vocabulary import write_vocabulary
from selm_export.modeling.configuration import PROJECTIONS, SelmConfig
from selm_export.modeling.model import SelmForCausalLM

ARCHITECTURE = "selm"
ARCHITECTURES = ("llama", "qwen2", "qwen3", ARCHITECTURE)
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
PART_NAMES = {
    **LAYER_NAMES,
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.head_gate": "attn_head_gate",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
WHOLE_NAMES = {  # without a kind at the end
    "self_attn.feature_map.projection": "performer.projection.weight",
    "self_attn.far_gain": "performer.far_gain",
}
ROPE_FACTORS = "rope_freqs.weight"
OF_THIS_FILE = ("general.architecture", "general.file_type")
FACTORS = ("lora_a", "lora_b")
AGAIN = "Write it again with selm-export"
OTHER = "Give a file of a SELM, Qwen2, Qwen3 or Llama model"


def tensor_name(name: str, trunk: int = 0) -> str:
    """``model.layers.0.mlp.up_proj.lora_a.weight`` -> ``blk.0.ffn_up.weight.lora_a``; the layers
    that experts have of their own are counted from the ``trunk``."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    place, number, part = name.removeprefix("model.").split(".", 2)
    if place == "exits":
        return f"exit.{number}.norm.{part}"
    if place == "scores":
        return f"expert.{number}.score.{part.removeprefix('layers.')}"
    block = f"blk.{number}"
    if place == "experts":
        layer, part = part.split(".", 1)
        block = f"expert.{number}.blk.{trunk + int(layer)}"
    if part in WHOLE_NAMES:
        return f"{block}.{WHOLE_NAMES[part]}"
    base, _, kind = part.rpartition(".")
    base, _, factor = base.rpartition(".") if base.endswith(FACTORS) else (base, "", "")
    return f"{block}.{PART_NAMES[base]}.{kind}" + (f".{factor}" if factor else "")


def _tensors(model: SelmForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """What a file holds: each tensor's name, and the model's own memory of it. The deltas of all
    experts, one parameter in the model, are one tensor for each expert."""
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        base, _, factor = name.rpartition(".delta_")
        if base:
            for expert, own in enumerate(tensor):
                yield f"expert.{expert}.{tensor_name(f'{base}.weight')}.lora_{factor}", own
        else:
            yield tensor_name(name, model.config.trunk_layers), tensor


def architecture_of(config: SelmConfig) -> str:
    """The standard architecture that computes the same, or ``selm``."""
    asked = (config.head_gate, config.exit_layers, config.expert_names, config.ranks)
    if any(asked) or {*config.attention_kinds} != {"softmax"}:
        return ARCHITECTURE
    if not config.attention_bias and not config.qk_norm:
        return "llama"
    # Readers know factors of single pairs in llama alone.
    if (config.attention_bias and config.qk_norm) or len({*config.rope_factors}) > 1:
        return ARCHITECTURE
    return "qwen2" if config.attention_bias else "qwen3"


def adjacent(value: Floats, heads: int) -> Floats:
    """Rows [heads * size, ...] of queries or keys as llama's rotary embedding turns them: pairs
    (2i, 2i + 1) instead of (i, i + size / 2)."""
    rows = value.reshape(heads, 2, value.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(value.shape)


def halved(value: Floats, heads: int) -> Floats:
    """The inverse of ``adjacent``."""
    rows = value.reshape(heads, value.shape[0] // heads // 2, 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(value.shape)


def _turned(
    config: SelmConfig, architecture: str, turn: Callable[[Floats, int], Floats]
) -> Callable[[str, Floats], Floats]:
    """What changes between our order of a tensor's rows and the file's."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def change(name: str, value: Floats) -> Floats:
        part = name.split(".")[-2]
        return turn(value, heads[part]) if architecture == "llama" and part in heads else value

    return change


def _write_config(writer: gguf.GGUFWriter, config: SelmConfig, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    if len({*config.rope_factors}) == 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factors[0])
    if architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
    if architecture == ARCHITECTURE:
        _write_own_config(writer, config)


def _write_own_config(writer: gguf.GGUFWriter, config: SelmConfig) -> None:
    writer.add_array("selm.attention.kinds", config.attention_kinds)
    writer.add_uint32("selm.attention.window", config.window)
    writer.add_uint32("selm.attention.sinks", config.sinks)
    writer.add_bool("selm.attention.head_gate", config.head_gate)
    writer.add_bool("selm.attention.qk_norm", config.qk_norm)
    writer.add_uint32("selm.performer.features", config.features)
    writer.add_string("selm.performer.feature_map", config.feature_map)
    writer.add_float32("selm.performer.clamp", config.clamp)
    if config.exit_layers:
        writer.add_array("selm.exit.layers", config.exit_layers)
    if config.draft_vocabulary:
        writer.add_array("selm.draft.vocabulary", config.draft_vocabulary)
    if config.expert_names:
        writer.add_array("selm.expert.names", config.expert_names)
        writer.add_uint32("selm.expert.trunk_layers", config.trunk_layers)
        writer.add_string("selm.expert.kind", config.expert_kind)
        writer.add_string("selm.expert.route", config.expert_route)
        writer.add_float32("selm.expert.stickiness", config.expert_stickiness)


def write(
    path: Path, model: SelmForCausalLM, add_keys: Callable[[gguf.GGUFWriter], None],
    encode: Encode, architecture: str = ARCHITECTURE,
) -> Counter[gguf.GGMLQuantizationType]:  # fmt: skip
    """The model with what ``add_keys`` says of it; weights by type. ``encode`` decides how each
    tensor is stored."""
    config = model.config
    change = _turned(config, architecture, adjacent)

    def keys(writer: gguf.GGUFWriter) -> None:
        add_keys(writer)
        _write_config(writer, config, architecture)

    tensors = [*_tensors(model)]
    if len({*config.rope_factors}) > 1:
        tensors.insert(0, (ROPE_FACTORS, torch.tensor(config.rope_factors)))
    return write_streamed(path, architecture, keys, Tensors(tensors, encode, change))


def write_model(
    path: Path, model: SelmForCausalLM, tokenizer: Tokenizer, label: Label,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32, *,
    encode: Encode | None = None,
) -> None:  # fmt: skip
    """A model trained here, as ``selm`` whatever its attention; matrices as ``kind``, unless
    ``encode`` decides otherwise, tensor by tensor."""

    def keys(writer: gguf.GGUFWriter) -> None:
        write_label(writer, label)
        write_vocabulary(writer, tokenizer, model.config.vocab_size)

    write(path, model, keys, encode or plain(kind))


def write_like(
    path: Path, model: SelmForCausalLM, source: gguf.GGUFReader, kind: gguf.GGMLQuantizationType
) -> None:
    """As ``write_model``, with what another file says of itself, of its tokenizer and of how to
    sample from it: the keys ``general.`` and ``tokenizer.``."""

    def keys(writer: gguf.GGUFWriter) -> None:
        kept = ("general.", "tokenizer.")
        copy_keys(writer, source, lambda key: key.startswith(kept) and key not in OF_THIS_FILE)

    write(path, model, keys, plain(kind))


def empty_model(config: SelmConfig) -> SelmForCausalLM:
    """Of this shape, its weights still to be filled: no time goes into random ones."""
    with no_init_weights():
        model = SelmForCausalLM(config)
    model.tie_weights()  # type: ignore[no-untyped-call]
    model.train(False)
    return model


def _fields(reader: gguf.GGUFReader, path: Path, architecture: str) -> Callable[..., Any]:
    def get(key: str, *default: Any) -> Any:
        field = reader.get_field(f"{architecture}.{key}")
        if field is not None:
            return field.contents()
        if default:
            return default[0]
        raise RecipeError(path, f"it has no key {architecture}.{key}", AGAIN)

    return get


def _rank(tensors: dict[str, gguf.ReaderTensor], name: str) -> int | None:
    """Of a product of two factors, if this is the name of the first."""
    factor = tensors.get(name)
    return None if factor is None else int(factor.shape[-1])  # ne order: [columns, rank]


def _read_ranks(
    tensors: dict[str, gguf.ReaderTensor], layers: int, experts: dict[str, Any]
) -> dict[str, int]:
    """By projection where all layers agree, else by layer and projection."""
    found: dict[str, int] = {}
    for part in PROJECTIONS:
        ranks = []
        for layer in range(layers):
            own = experts.get("expert_kind") == "full" and layer >= experts["trunk_layers"]
            block = f"expert.0.blk.{layer}" if own else f"blk.{layer}"
            ranks.append(_rank(tensors, f"{block}.{LAYER_NAMES[part]}.weight.lora_a"))
        named = {f"layers.{i}.{part}": rank for i, rank in enumerate(ranks) if rank is not None}
        first = ranks[0]
        found |= {part: first} if first is not None and len({*ranks}) == 1 else named
    return found


def _own_config(get: Callable[..., Any], tensors: dict[str, gguf.ReaderTensor]) -> dict[str, Any]:
    """Ranks are not said by keys: tensors have them."""
    experts: dict[str, Any] = {}
    if names := get("expert.names", []):
        trunk, kind = get("expert.trunk_layers"), get("expert.kind")
        experts = {
            "expert_names": names,
            "trunk_layers": trunk,
            "expert_kind": kind,
            "expert_route": get("expert.route"),
            "expert_stickiness": get("expert.stickiness", 0.0),
        }
        rank = _rank(tensors, f"expert.0.blk.{trunk}.attn_q.weight.lora_a")
        if kind == "delta" and rank is not None:
            experts["expert_rank"] = rank
    return {
        "attention_kinds": get("attention.kinds"),
        "window": get("attention.window"),
        "sinks": get("attention.sinks", 0),
        "head_gate": get("attention.head_gate", False),
        "qk_norm": get("attention.qk_norm", False),
        "features": get("performer.features"),
        "feature_map": get("performer.feature_map"),
        "clamp": get("performer.clamp"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "exit_layers": get("exit.layers", []),
        "draft_vocabulary": get("draft.vocabulary", []),
        "ranks": _read_ranks(tensors, get("block_count"), experts),
        **experts,
    }


def _rope_factors(
    get: Callable[..., Any], tensors: dict[str, gguf.ReaderTensor], path: Path, pairs: int
) -> list[float]:
    """Takes the tensor of factors out of ``tensors``."""
    scaling, factor = get("rope.scaling.type", "none"), get("rope.scaling.factor", 1.0)
    if scaling not in ("none", "linear"):
        raise RecipeError(path, f"its RoPE scaling is {scaling}", "Give a model without it")
    own = tensors.pop(ROPE_FACTORS, None)
    linear = factor if scaling == "linear" and factor else 1.0
    if own is not None:
        return [float(x) * linear for x in own.data.reshape(-1)]
    return [] if linear == 1.0 else [linear] * pairs


def _read_config(
    reader: gguf.GGUFReader, path: Path, architecture: str, tensors: dict[str, gguf.ReaderTensor]
) -> SelmConfig:
    get = _fields(reader, path, architecture)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        raise RecipeError(path, "it has no key tokenizer.ggml.tokens", AGAIN)
    heads, width = get("attention.head_count"), get("embedding_length")
    if not isinstance(heads, int):
        raise RecipeError(
            path, "its layers differ in their heads", "Give one whose layers are alike"
        )
    size = get("attention.key_length", width // heads)
    if (get("rope.dimension_count", size), get("attention.value_length", size)) != (size, size):
        raise RecipeError(path, "its heads turn in part, or keys and values differ", OTHER)
    own = _own_config(get, tensors) if architecture == ARCHITECTURE else {
        "attention_bias": architecture == "qwen2", "qk_norm": architecture == "qwen3",
    }  # fmt: skip
    try:
        return SelmConfig(
            vocab_size=len(tokens.data),
            hidden_size=width,
            intermediate_size=get("feed_forward_length"),
            num_hidden_layers=get("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=get("attention.head_count_kv", heads),
            head_dim=size,
            max_position_embeddings=get("context_length"),
            rope_theta=get("rope.freq_base", 10000.0),
            rope_factors=_rope_factors(get, tensors, path, size // 2),
            rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in tensors,
            **own,
        )
    except (TypeError, ValueError) as problem:
        raise RecipeError(path, str(problem), AGAIN) from problem


def model_of(
    reader: gguf.GGUFReader, path: Path, architectures: tuple[str, ...] = ARCHITECTURES
) -> SelmForCausalLM:
    """The model of an open file, its weights as floats; every tensor must be there and fit, and no
    other be there."""
    field = reader.get_field("general.architecture")
    found = "nothing" if field is None else field.contents()
    if found not in architectures:
        *most, last = architectures
        known = f"{', '.join(most)} or {last}" if most else last
        raise RecipeError(path, f"its architecture is {found}, not {known}", OTHER)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _read_config(reader, path, found, tensors)
    model = empty_model(config)
    # A tensor without a place: a delta within the trunk, for example.
    fill(path, tensors, _tensors(model), AGAIN, _turned(config, found, halved))
    return model


def read_model(path: Path) -> SelmForCausalLM:
    return model_of(open_file(path, AGAIN), path)
