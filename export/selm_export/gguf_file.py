"""Writes a network and its tokenizer as one GGUF file of architecture ``qwen2``."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from selm_export.data.chat import CHAT_TEMPLATE, END_OF_TEXT, SPECIAL_TOKENS, TURN_END
from selm_export.errors import RecipeError
from selm_export.network import Network, Shape

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


@dataclass(frozen=True)
class Label:
    """Who made the file, for its metadata."""

    title: str
    version: str = "1"
    author: str = "The SELM Edge authors"
    license: str = "apache-2.0"
    description: str = "A small assistant that runs on this device"


def tensor_name(name: str) -> str:
    """``model.layers.0.mlp.up_proj.weight`` -> ``blk.0.ffn_up.weight``."""
    base, _, kind = name.removeprefix("model.").rpartition(".")
    if base == "embed_tokens":
        return f"token_embd.{kind}"
    if base == "norm":
        return f"output_norm.{kind}"
    _, number, part = base.split(".", 2)
    return f"blk.{number}.{LAYER_NAMES[part]}.{kind}"


def _write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_size)


def write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    ids = tokenizer.get_vocab()
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, i in ids.items():
        tokens[i] = token
        kinds[i] = gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(ids[TURN_END])
    writer.add_eot_token_id(ids[TURN_END])
    writer.add_pad_token_id(ids[END_OF_TEXT])
    # Readers want some id here; add_bos_token says that it is never put in front.
    writer.add_bos_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_sampling(writer: gguf.GGUFWriter, sampling: Mapping[str, float]) -> None:
    add = {
        "temperature": writer.add_sampling_temp, "top_k": writer.add_sampling_top_k,
        "top_p": writer.add_sampling_top_p, "min_p": writer.add_sampling_min_p,
    }  # fmt: skip
    for name, value in sampling.items():
        add[name](value)  # type: ignore[arg-type]


def write_label(writer: gguf.GGUFWriter, label: Label) -> None:
    writer.add_name(label.title)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_version(label.version)
    writer.add_author(label.author)
    writer.add_license(label.license)
    writer.add_description(label.description)
    writer.add_languages(["en"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


@contextmanager
def whole_file(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """A writer whose file appears under its name once it is whole, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".writing")
    os.close(handle)
    temporary = Path(name)
    try:
        writer = gguf.GGUFWriter(temporary, architecture)
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_gguf(
    path: Path, network: Network, tokenizer: Tokenizer, label: Label,
    sampling: Mapping[str, float] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Matrices as Q8_0, norms and biases as F32; ``sampling`` is what the file recommends."""
    q8 = gguf.GGMLQuantizationType.Q8_0
    with whole_file(path, "qwen2") as writer:
        write_label(writer, label)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        _write_shape(writer, network.shape)
        write_vocabulary(writer, tokenizer, network.shape.vocab)
        _write_sampling(writer, sampling)
        for name, parameter in network.named_parameters():
            value = parameter.detach().float().numpy().astype(np.float32)
            if value.ndim == 2:
                writer.add_tensor(tensor_name(name), gguf.quants.quantize(value, q8), raw_dtype=q8)
            else:
                writer.add_tensor(tensor_name(name), value)


def copy_keys(
    writer: gguf.GGUFWriter, source: gguf.GGUFReader, wanted: Callable[[str], bool]
) -> None:
    """What another file says under these keys; its architecture is the writer's own affair."""
    for key, field in source.fields.items():
        if wanted(key) and key != "general.architecture" and not key.startswith("GGUF."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)


@torch.no_grad()
def fill(
    path: Path, tensors: dict[str, gguf.ReaderTensor], parameters: Iterable[tuple[str, Tensor]],
    advice: str,
) -> None:  # fmt: skip
    """Copies a file's tensors into parameters, by the names they have there: every one must be
    there and fit, and no other be there."""
    for name, own in parameters:
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise RecipeError(path, f"the tensor {name} is missing", advice)
        shape = [int(n) for n in reversed(tensor.shape)]
        if shape != [*own.shape]:
            shapes = f"{shape}, not {[*own.shape]}"
            raise RecipeError(path, f"the tensor {name} has the shape {shapes}", advice)
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        own.copy_(torch.from_numpy(np.array(value, np.float32)))
    if tensors:
        raise RecipeError(path, f"the tensor {next(iter(tensors))} has no place in it", advice)
