"""SELM models as GGUF files and back; the keys and tensors are those of ``docs/selm-format.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from torch import Tensor

from selm_export.errors import RecipeError
from selm_export.gguf_file import (
    LAYER_NAMES,
    Label,
    copy_keys,
    fill,
    whole_file,
    write_label,
    write_vocabulary,
)
from selm_export.modeling.configuration import PROJECTIONS, SelmConfig
from selm_export.modeling.model import SelmForCausalLM

ARCHITECTURE = "selm"
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
OF_THIS_FILE = ("general.architecture", "general.file_type")
FACTORS = ("lora_a", "lora_b")
AGAIN = "Write it again with selm-export"


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


def _write_config(writer: gguf.GGUFWriter, config: SelmConfig) -> None:
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


def _stored_as(
    name: str, value: npt.NDArray[np.float32], kind: gguf.GGMLQuantizationType
) -> gguf.GGMLQuantizationType:
    """Norms, gains and frozen features are small, and what depends on them is not: F32.
    Rows that blocks of the kind do not fill, as those of a factor of low rank: F16."""
    if value.ndim != 2 or any(part in name for part in ("performer", "head_gate")):
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if value.shape[1] % block == 0 else gguf.GGMLQuantizationType.F16


def write_model(
    path: Path, model: SelmForCausalLM, tokenizer: Tokenizer, label: Label,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:  # fmt: skip
    """Matrices as ``kind`` (one that the gguf package quantises), F16 where its blocks do not fit;
    what is small or decides much as F32."""
    with whole_file(path, ARCHITECTURE) as writer:
        write_label(writer, label)
        write_vocabulary(writer, tokenizer, model.config.vocab_size)
        _write_rest(writer, model, kind)


def write_like(
    path: Path, model: SelmForCausalLM, source: gguf.GGUFReader, kind: gguf.GGMLQuantizationType
) -> None:
    """As ``write_model``, with what another file says of itself, of its tokenizer and of how to
    sample from it: the keys ``general.`` and ``tokenizer.``."""
    with whole_file(path, ARCHITECTURE) as writer:
        kept = ("general.", "tokenizer.")
        copy_keys(writer, source, lambda key: key.startswith(kept) and key not in OF_THIS_FILE)
        _write_rest(writer, model, kind)


def _write_rest(
    writer: gguf.GGUFWriter, model: SelmForCausalLM, kind: gguf.GGMLQuantizationType
) -> None:
    _write_config(writer, model.config)
    for name, tensor in _tensors(model):
        value = tensor.float().cpu().numpy()
        stored = _stored_as(name, value, kind)
        writer.add_tensor(name, gguf.quants.quantize(value, stored), raw_dtype=stored)


def size(model: SelmForCausalLM, kind: gguf.GGMLQuantizationType) -> int:
    """Bytes of the tensors that ``write_model`` writes of it."""
    total = 0
    for name, tensor in _tensors(model):
        value = tensor.detach().float().cpu().numpy()
        stored = _stored_as(name, value, kind)
        total += int(np.prod(gguf.quants.quant_shape_to_byte_shape(value.shape, stored)))
    return total


def _fields(reader: gguf.GGUFReader, path: Path) -> Callable[..., Any]:
    def get(key: str, *default: Any) -> Any:
        field = reader.get_field(f"{ARCHITECTURE}.{key}")
        if field is not None:
            return field.contents()
        if default:
            return default[0]
        raise RecipeError(path, f"it has no key {ARCHITECTURE}.{key}", AGAIN)

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


def _read_config(
    reader: gguf.GGUFReader, path: Path, tensors: dict[str, gguf.ReaderTensor]
) -> SelmConfig:
    """Ranks are not said by keys: tensors have them."""
    get = _fields(reader, path)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        raise RecipeError(path, "it has no key tokenizer.ggml.tokens", AGAIN)
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
    try:
        return SelmConfig(
            vocab_size=len(tokens.data),
            hidden_size=get("embedding_length"),
            intermediate_size=get("feed_forward_length"),
            num_hidden_layers=get("block_count"),
            num_attention_heads=get("attention.head_count"),
            num_key_value_heads=get("attention.head_count_kv"),
            head_dim=get("attention.key_length"),
            max_position_embeddings=get("context_length"),
            rope_theta=get("rope.freq_base"),
            rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
            attention_kinds=get("attention.kinds"),
            window=get("attention.window"),
            sinks=get("attention.sinks", 0),
            head_gate=get("attention.head_gate", False),
            qk_norm=get("attention.qk_norm", False),
            features=get("performer.features"),
            feature_map=get("performer.feature_map"),
            clamp=get("performer.clamp"),
            attention_bias="blk.0.attn_q.bias" in tensors,
            exit_layers=get("exit.layers", []),
            draft_vocabulary=get("draft.vocabulary", []),
            ranks=_read_ranks(tensors, get("block_count"), experts),
            tie_word_embeddings="output.weight" not in tensors,
            **experts,
        )
    except (TypeError, ValueError) as problem:
        raise RecipeError(path, str(problem), AGAIN) from problem


def read_model(path: Path) -> SelmForCausalLM:
    """The model of a file, its weights as floats; every tensor must be there and fit, and no other
    be there."""
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as problem:
        raise RecipeError(path, f"not a GGUF file that can be read ({problem})", AGAIN) from problem
    architecture = reader.get_field("general.architecture")
    if architecture is None or architecture.contents() != ARCHITECTURE:
        found = architecture.contents() if architecture is not None else "nothing"
        raise RecipeError(
            path, f"its architecture is {found}, not {ARCHITECTURE}", "Give a file of a SELM model"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    model = SelmForCausalLM(_read_config(reader, path, tensors))
    fill(path, tensors, _tensors(model), AGAIN)  # one without a place: a delta within the trunk
    model.train(False)
    return model
