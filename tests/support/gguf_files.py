"""Small GGUF files, made with the `gguf` package from transformers-style configurations.

A `Config` says what a model looks like, `random_weights` draws its weights under transformers'
names, `write_model` converts both as llama.cpp's converter does (llama's q and k rows permuted for
adjacent-pair RoPE, Llama-3 factors as `rope_freqs`). The same weights load into transformers, so
the file, the numpy reference and transformers can be compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Type = gguf.GGMLQuantizationType

SPM_PIECES = [
    *("▁t", "h", "e", "▁a", "i", "n", "r", "s", "o", "d", "l", "m", "u", "p", "w", "g", "y"),
    *("c", "f", "b", "k", ".", ",", "!", "?", "'", *"0123456789", "▁", "T", "O", "W"),
    *("he", "▁the", "in", "er", "on", "re", "nd", "▁and", "▁s", "▁w", "at", "ing", "▁Once"),
    *("llo", "▁He", "▁Hello", *"ABCDE", "é", "你", "好", "a", "t"),
]
BPE_MERGES = [
    *("Ġ t", "h e", "Ġt he", "i n", "e r", "o n", "r e", "n d", "Ġ a", "Ġa nd", "in g"),
    *("Ġ w", "l l", "ll o", "H e", "He llo", "Ġ o", "a t", "o u", "Ġ s"),
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Config:
    """What transformers' configuration of the same model would say."""

    arch: str = "llama"
    vocab: int = 352
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | tuple[int, ...] = 2
    head_dim: int | None = None
    ff: int = 96
    eps: float = 1e-5
    rope_base: float = 10000.0
    rope_dims: int | None = None
    rope_scaling: Mapping[str, Any] | None = None
    tied: bool = False
    context: int = 512

    @property
    def d_head(self) -> int:
        return self.head_dim or self.hidden // self.heads

    def kv(self, layer: int) -> int:
        return self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[layer]


def llama3_factors(config: Config) -> FloatArray:
    """Divisors of the RoPE frequencies, as the converter stores them in `rope_freqs.weight`.

    Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, a ramp between.
    """
    scaling = config.rope_scaling or {}
    factor, low, high = (
        float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    original = float(scaling["original_max_position_embeddings"])
    factors = []
    for i in range(0, config.d_head, 2):
        wavelength = 2 * math.pi * config.rope_base ** (i / config.d_head)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def random_weights(config: Config, seed: int = 0) -> dict[str, FloatArray]:
    """Weights under transformers' names, exactly representable in F16.

    Scaled so that attention is far from uniform and logits are of order one: a wrong rotation,
    bias or norm then moves the logits by much more than the tests allow.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape: int, std: float | None = None, mean: float = 0.0) -> FloatArray:
        spread = std if std is not None else 1.0 / math.sqrt(shape[-1])
        values = mean + rng.standard_normal(shape) * spread
        return values.astype(np.float16).astype(np.float32)

    h, d = config.hidden, config.d_head
    weights = {
        "model.embed_tokens.weight": draw(config.vocab, h, std=0.5),
        "model.norm.weight": draw(h, std=0.2, mean=1.0),
    }
    if not config.tied:
        weights["lm_head.weight"] = draw(config.vocab, h)
    for layer in range(config.layers):
        rows = {"q": config.heads * d, "k": config.kv(layer) * d, "v": config.kv(layer) * d}
        p = f"model.layers.{layer}."
        for name, n in rows.items():
            std = (1.0 if name == "v" else 1.6) / math.sqrt(h)
            weights[f"{p}self_attn.{name}_proj.weight"] = draw(n, h, std=std)
            if config.arch == "qwen2":
                weights[f"{p}self_attn.{name}_proj.bias"] = draw(n, std=0.3)
        if config.arch == "qwen3":
            for name in ("q", "k"):
                weights[f"{p}self_attn.{name}_norm.weight"] = draw(d, std=0.3, mean=1.2)
        weights[f"{p}self_attn.o_proj.weight"] = draw(h, config.heads * d)
        weights[f"{p}mlp.gate_proj.weight"] = draw(config.ff, h)
        weights[f"{p}mlp.up_proj.weight"] = draw(config.ff, h)
        weights[f"{p}mlp.down_proj.weight"] = draw(h, config.ff)
        weights[f"{p}input_layernorm.weight"] = draw(h, std=0.2, mean=1.0)
        weights[f"{p}post_attention_layernorm.weight"] = draw(h, std=0.2, mean=1.0)
    return weights


LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[stem]}.{kind}"


def permute(rows: FloatArray, n_head: int, n_rot: int | None = None) -> FloatArray:
    """From transformers' halves to llama's adjacent pairs, within each head's rotated rows."""
    per_head = rows.reshape(n_head, rows.shape[0] // n_head, -1)
    n_rot = n_rot or per_head.shape[1]
    order = np.arange(n_rot).reshape(2, n_rot // 2).T.ravel()
    order = np.concatenate([order, np.arange(n_rot, per_head.shape[1])])
    return np.ascontiguousarray(per_head[:, order].reshape(rows.shape))


def to_gguf(config: Config, weights: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The same weights under GGUF names and in the layout that the architecture wants there."""
    tensors = {gguf_name(name): value for name, value in weights.items()}
    if config.arch == "llama":
        for layer in range(config.layers):
            for kind, heads in (("q", config.heads), ("k", config.kv(layer))):
                name = f"blk.{layer}.attn_{kind}.weight"
                tensors[name] = permute(tensors[name], heads, config.rope_dims)
    if config.rope_scaling and config.rope_scaling.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(config)
    return tensors


def add_hyperparameters(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ff)
    writer.add_head_count(config.heads)
    kv = config.kv_heads
    writer.add_head_count_kv(kv if isinstance(kv, int) else list(kv))
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.rope_base)
    if config.head_dim is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.arch == "llama" or config.rope_dims is not None:
        writer.add_rope_dimension_count(config.rope_dims or config.d_head)
    writer.add_vocab_size(config.vocab)
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "attention_factor" in scaling:  # the engine multiplies its own 1 + 0.1 ln(factor)
            own = 1 + 0.1 * math.log(scaling["factor"])
            writer.add_rope_scaling_attn_factors(scaling["attention_factor"] / own)


def byte_alphabet() -> list[str]:
    """The printable characters that byte-level BPE uses for bytes 0 to 255 (GPT-2's table)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def spm_vocabulary(size: int) -> dict[str, Any]:
    """Unknown, BOS, EOS, 256 byte tokens, pieces with falling scores, unused tokens to `size`."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *SPM_PIECES]
    types = [2, 3, 3] + [6] * 256 + [1] * len(SPM_PIECES)
    scores = [0.0] * 259 + [-float(i) for i in range(len(SPM_PIECES))]
    padding = size - len(tokens)
    if padding < 0:
        raise ValueError(f"the vocabulary needs {len(tokens)} tokens, not {size}")
    return {
        "model": "llama",
        "tokens": tokens + [f"<pad{i}>" for i in range(padding)],
        "types": types + [5] * padding,
        "scores": scores + [-1e4] * padding,
        "bos": 1,
        "eos": 2,
        "unk": 0,
    }


def bpe_vocabulary(size: int, pre: str = "qwen2") -> dict[str, Any]:
    """256 bytes, what the merges make, three control tokens, unused tokens to `size`."""
    tokens = [*byte_alphabet(), *(m.replace(" ", "") for m in BPE_MERGES)]
    padding = size - len(tokens) - len(SPECIALS)
    if padding < 0:
        raise ValueError(f"the vocabulary needs {len(tokens) + len(SPECIALS)} tokens, not {size}")
    eos = len(tokens) + (2 if pre == "qwen2" else 0)
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens + SPECIALS + [f"[PAD{i}]" for i in range(padding)],
        "types": [1] * len(tokens) + [3] * len(SPECIALS) + [5] * padding,
        "merges": list(BPE_MERGES),
        "eos": eos,
        "bos": len(tokens) if pre != "qwen2" else None,
    }


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model(vocabulary["model"])
    if "pre" in vocabulary:
        writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    if "scores" in vocabulary:
        writer.add_token_scores(vocabulary["scores"])
    if "merges" in vocabulary:
        writer.add_token_merges(vocabulary["merges"])
    if vocabulary.get("bos") is not None:
        writer.add_bos_token_id(vocabulary["bos"])
    if vocabulary.get("eos") is not None:
        writer.add_eos_token_id(vocabulary["eos"])
    if vocabulary.get("unk") is not None:
        writer.add_unk_token_id(vocabulary["unk"])
    if vocabulary["model"] == "llama":
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(True)


def default_vocabulary(config: Config) -> dict[str, Any]:
    return spm_vocabulary(config.vocab) if config.arch == "llama" else bpe_vocabulary(config.vocab)


Edit = Callable[[gguf.GGUFWriter, dict[str, Any]], None]


def write_model(
    path: Path,
    config: Config,
    weights: Mapping[str, FloatArray] | None = None,
    *,
    weight_type: Type = Type.F32,
    vocabulary: Mapping[str, Any] | None = None,
    raw: Mapping[str, tuple[npt.NDArray[np.uint8], Type]] | None = None,
    edit: Edit | None = None,
) -> Path:
    """Writes a model file and returns its path.

    Matrices are stored as `weight_type` (one that `gguf.quants` can make), vectors as F32. `raw`
    replaces tensors by block bytes of a type, by GGUF name. `edit` is called with the writer and
    the tensors before they are added: it may override keys and add, drop or reshape tensors.
    """
    tensors: dict[str, Any] = dict(to_gguf(config, weights or random_weights(config)))
    writer = gguf.GGUFWriter(path, config.arch)
    add_hyperparameters(writer, config)
    add_vocabulary(writer, vocabulary or default_vocabulary(config))
    if edit:
        edit(writer, tensors)
    for name, value in tensors.items():
        if raw and name in raw:
            blocks, kind = raw[name]
            writer.add_tensor(name, blocks, raw_dtype=kind)
        elif value.ndim == 1 or weight_type == Type.F32:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
        else:
            stored = gguf.quants.quantize(value, weight_type)
            writer.add_tensor(name, stored, raw_dtype=weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


EXPERTS = ("general", "medical", "math")


def write_ensemble(path: Path, *, exits: bool = False) -> Path:
    """A SELM file of random weights: a trunk of one layer and three experts as deltas above it.

    Random scores make each of them speak now and then. exits: with one, after the trunk.
    """
    config = Config("selm", layers=3, context=512)
    rng = np.random.default_rng(5)

    def draw(rows: int, columns: int, std: float = 1.0) -> FloatArray:
        values = rng.standard_normal((rows, columns)) * std / math.sqrt(columns)
        return values.astype(np.float32)

    def edit(writer: gguf.GGUFWriter, tensors: dict[str, Any]) -> None:
        writer.add_array("selm.attention.kinds", ["softmax", "softmax", "window"])
        writer.add_uint32("selm.attention.window", 24)
        writer.add_array("selm.expert.names", list(EXPERTS))
        writer.add_uint32("selm.expert.trunk_layers", 1)
        writer.add_string("selm.expert.kind", "delta")
        writer.add_string("selm.expert.route", "early")
        if exits:
            writer.add_array("selm.exit.layers", [1])
            tensors["exit.1.norm.weight"] = np.ones(config.hidden, np.float32)
        sides = (config.hidden, 256, 128, 1)
        for e in range(len(EXPERTS)):
            for name in [n for n in tensors if re.match(r"blk\.[12]\.(attn|ffn)_[a-z]+\.w", n)]:
                if "norm" not in name:
                    rows, columns = tensors[name].shape
                    tensors[f"expert.{e}.{name}.lora_a"] = draw(4, columns)
                    tensors[f"expert.{e}.{name}.lora_b"] = draw(rows, 4)
            tensors[f"expert.{e}.score.norm.weight"] = np.ones(config.hidden, np.float32)
            tensors[f"expert.{e}.score.norm.bias"] = np.zeros(config.hidden, np.float32)
            for i in range(3):
                tensors[f"expert.{e}.score.{i}.weight"] = draw(sides[i + 1], sides[i], 1.4)
                tensors[f"expert.{e}.score.{i}.bias"] = np.zeros(sides[i + 1], np.float32)

    return write_model(path, config, edit=edit)


def set_key(writer: gguf.GGUFWriter, key: str, value: Any, kind: gguf.GGUFValueType) -> None:
    """Adds or replaces a metadata pair (`add_key_value` alone warns on a key that exists)."""
    sub = None
    if kind == gguf.GGUFValueType.ARRAY and value:
        sub = gguf.GGUFValueType.get_type(value[0])
    writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind, sub)


def drop_key(writer: gguf.GGUFWriter, key: str) -> None:
    del writer.kv_data[0][key]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

_LLAMA = Config("llama")
_QWEN2 = Config("qwen2", eps=1e-6, rope_base=1e6)
_QWEN3 = Config("qwen3", eps=1e-6, rope_base=1e6, head_dim=32)

# One of each thing that the three architectures can do: GQA ratios 1, 2, 4, 7 and 8, tied and
# untied heads, every RoPE scaling, a head size that is not hidden / heads, odd shapes.
CONFIGS: dict[str, Config] = {
    "llama": _LLAMA,
    "llama-mha-tied": replace(_LLAMA, kv_heads=4, tied=True, layers=3),
    "llama-gqa4": replace(_LLAMA, heads=8, kv_heads=2, hidden=128, ff=224),
    "llama-gqa8-llama3": replace(
        _LLAMA, heads=8, kv_heads=1, hidden=64, rope_base=500000.0, rope_scaling=LLAMA3
    ),
    "llama-head-dim": replace(_LLAMA, head_dim=24, ff=100, hidden=80),
    "llama-linear": replace(_LLAMA, rope_scaling=LINEAR),
    "llama-yarn": replace(_LLAMA, rope_scaling=YARN, layers=1),
    "qwen2": _QWEN2,
    "qwen2-gqa7-tied": replace(_QWEN2, heads=7, kv_heads=1, hidden=112, ff=208, tied=True),
    "qwen2-linear": replace(_QWEN2, rope_scaling=LINEAR, kv_heads=1),
    "qwen2-yarn": replace(_QWEN2, rope_scaling=YARN, rope_base=10000.0),
    "qwen2-yarn-factor": replace(
        _QWEN2, rope_base=10000.0, rope_scaling={**YARN, "attention_factor": 1.3}
    ),
    "qwen3": _QWEN3,
    "qwen3-tied": replace(_QWEN3, tied=True, heads=8, kv_heads=1, head_dim=16, layers=3),
    "qwen3-yarn": replace(_QWEN3, rope_scaling=YARN, rope_base=10000.0, hidden=96),
}
# What transformers cannot express; the numpy reference is the oracle.
NUMPY_ONLY: dict[str, Config] = {
    "llama-kv-per-layer": replace(_LLAMA, heads=8, kv_heads=(1, 8, 2), layers=3, head_dim=16),
    "llama-partial-rope": replace(_LLAMA, head_dim=32, rope_dims=16),
    "qwen2-partial-rope": replace(_QWEN2, head_dim=32, rope_dims=16),
}
