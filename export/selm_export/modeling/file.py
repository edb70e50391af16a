"""SELM models as GGUF files and back; the keys and tensors are those of ``docs/selm-format.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from selm_export.errors import RecipeError
from selm_export.gguf_file import LAYER_NAMES, Label, whole_file, write_label, write_vocabulary
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM

ARCHITECTURE = "selm"
PART_NAMES = {
    **LAYER_NAMES,
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.head_gate": "attn_head_gate",
}
WHOLE_NAMES = {  # without a kind at the end
    "self_attn.feature_map.projection": "performer.projection.weight",
    "self_attn.far_gain": "performer.far_gain",
}
FACTORS = ("lora_a", "lora_b")
AGAIN = "Write it again with selm-export"


def tensor_name(name: str) -> str:
    """``model.layers.0.mlp.up_proj.lora_a.weight`` -> ``blk.0.ffn_up.weight.lora_a``."""
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return "output.weight" if name.startswith("lm") else "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    place, number, part = name.removeprefix("model.").split(".", 2)
    if place == "exits":
        return f"exit.{number}.norm.{part}"
    if part in WHOLE_NAMES:
        return f"blk.{number}.{WHOLE_NAMES[part]}"
    base, _, kind = part.rpartition(".")
    base, _, factor = base.rpartition(".") if base.endswith(FACTORS) else (base, "", "")
    return f"blk.{number}.{PART_NAMES[base]}.{kind}" + (f".{factor}" if factor else "")


def _tensors(model: SelmForCausalLM) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        yield tensor_name(name), tensor.detach().float().cpu().numpy().astype(np.float32)


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


def _kept_exact(name: str, value: npt.NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> bool:
    """Norms, gains and frozen features are small, and what depends on them is not: F32."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return (
        value.ndim != 2 or "performer" in name or "head_gate" in name or value.shape[1] % block != 0
    )


def write_model(
    path: Path, model: SelmForCausalLM, tokenizer: Tokenizer, label: Label,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:  # fmt: skip
    """Matrices as ``kind`` (one that the gguf package quantises), everything else as F32."""
    with whole_file(path, ARCHITECTURE) as writer:
        write_label(writer, label)
        _write_config(writer, model.config)
        write_vocabulary(writer, tokenizer, model.config.vocab_size)
        for name, value in _tensors(model):
            if _kept_exact(name, value, kind):
                writer.add_tensor(name, value)
            else:
                writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)


def _fields(reader: gguf.GGUFReader, path: Path) -> Callable[..., Any]:
    def get(key: str, *default: Any) -> Any:
        field = reader.get_field(f"{ARCHITECTURE}.{key}")
        if field is not None:
            return field.contents()
        if default:
            return default[0]
        raise RecipeError(path, f"it has no key {ARCHITECTURE}.{key}", AGAIN)

    return get


def _read_config(
    reader: gguf.GGUFReader, path: Path, ranks: dict[str, int], tied: bool
) -> SelmConfig:
    get = _fields(reader, path)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        raise RecipeError(path, "it has no key tokenizer.ggml.tokens", AGAIN)
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
            exit_layers=get("exit.layers", []),
            ranks=ranks,
            tie_word_embeddings=tied,
        )
    except ValueError as problem:
        raise RecipeError(path, str(problem), AGAIN) from problem


def _ranks(tensors: dict[str, Any]) -> dict[str, int]:
    """Of the projections that are products of two factors, in the first layer as in all."""
    found = {}
    for part, name in LAYER_NAMES.items():
        factor = tensors.get(f"blk.0.{name}.weight.lora_a")
        if factor is not None:
            found[part] = int(factor.shape[1])  # ne order: [columns, rank]
    return found


def read_model(path: Path) -> SelmForCausalLM:
    """The model of a file, its weights as floats; every tensor must be there and fit."""
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
    tied = "output.weight" not in tensors
    model = SelmForCausalLM(_read_config(reader, path, _ranks(tensors), tied))
    state: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            state[name] = state["model.embed_tokens.weight"]
            continue
        tensor = tensors.get(tensor_name(name))
        if tensor is None:
            raise RecipeError(path, f"the tensor {tensor_name(name)} is missing", AGAIN)
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if value.shape != tuple(parameter.shape):
            shapes = f"{list(value.shape)}, not {list(parameter.shape)}"
            raise RecipeError(path, f"the tensor {tensor.name} has the shape {shapes}", AGAIN)
        state[name] = torch.from_numpy(np.array(value, np.float32))
    model.load_state_dict(state, strict=True)
    model.train(False)
    return model
