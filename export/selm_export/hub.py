"""Models as Hugging Face folders hold them: Qwen2, Qwen3, Llama, Mistral, and our own.

All of them are computed by ``SelmForCausalLM``, whose parameters have the same names. What that
model has no place for is refused by its name, never left out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, PretrainedConfig

from selm_export.errors import RecipeError
from selm_export.gguf_vocabulary import check
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.file import empty_model
from selm_export.modeling.model import SelmForCausalLM
from selm_export.tokenizer_config import read_json

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KNOWN = ("qwen2", "qwen3", "llama", "mistral")
OTHER = "Give a Qwen2, Qwen2.5, Qwen3, Llama or Mistral model of text alone"
AGAIN = "Copy or download the file again"
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Description:
    """What ``config.json`` says; ``from_hub``: it is not one of ours."""

    model: SelmConfig
    from_hub: bool


def read_config(folder: Path) -> Description:
    path = folder / CONFIG
    said = read_json(path)
    kind = said.get("model_type", "none")
    try:
        if kind == SelmConfig.model_type:
            return Description(SelmConfig.from_dict(said), from_hub=False)
        _refuse(said, path)
        config = CONFIG_MAPPING[kind].from_dict(_older(said))
        return Description(_converted(config, said, path), from_hub=True)
    except (TypeError, ValueError, KeyError, AttributeError) as problem:
        cause = f"its values are not all there or contradict each other ({problem})"
        raise RecipeError(path, cause, AGAIN) from problem


def _refuse(said: Mapping[str, Any], path: Path) -> None:
    """What a model may have that ours does not."""
    kind = said.get("model_type", "none")
    if "vision_config" in said or "audio_config" in said or "text_config" in said:
        raise RecipeError(path, f"{kind} takes images or sound, not text alone", OTHER)
    if any(key in said for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise RecipeError(path, f"{kind} is a mixture of experts within its layers (MoE)", OTHER)
    if kind not in KNOWN:
        raise RecipeError(path, f"its model_type is {kind}, none of {', '.join(KNOWN)}", OTHER)
    if (packed := said.get("quantization_config")) is not None:
        how = packed.get("quant_method", "unknown") if isinstance(packed, dict) else packed
        raise RecipeError(
            path, f"its weights are quantised ({how})", "Give the weights as bf16, f16 or f32"
        )


def _older(said: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 has the rotary embedding's figures together in ``rope_parameters``."""
    found = dict(said)
    rope = found.pop("rope_parameters", None)
    if isinstance(rope, dict):
        found.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            found.setdefault("rope_scaling", rope)
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            found["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return found


def _converted(config: PretrainedConfig, said: Mapping[str, Any], path: Path) -> SelmConfig:
    """``config`` knows what each kind of model has where the file says nothing."""
    kind = config.model_type
    if config.hidden_act != "silu":
        raise RecipeError(path, f"its hidden_act is {config.hidden_act}, not silu", OTHER)
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            raise RecipeError(path, f"{key} is true: biases that {kind} models seldom have", OTHER)
    if getattr(config, "partial_rotary_factor", 1.0) != 1.0:
        raise RecipeError(path, "partial_rotary_factor is not 1: heads turn in part", OTHER)
    _refuse_window(config, path)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return SelmConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=size,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=config.rope_theta,
        rope_factors=rope_factors(
            getattr(config, "rope_scaling", None), config.rope_theta, size, path
        ),
        rms_norm_eps=config.rms_norm_eps,
        qk_norm=kind == "qwen3",
        attention_bias=kind == "qwen2",
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_word_embeddings,
        **{
            key: said[key]
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            if key in said
        },
    )


def _refuse_window(config: PretrainedConfig, path: Path) -> None:
    """Qwen's configurations name a window and switch it off; Mistral's first one uses it."""
    window = getattr(config, "sliding_window", None)
    if config.model_type.startswith("qwen") and not config.use_sliding_window:
        window = None
    if window is not None and window < config.max_position_embeddings:
        raise RecipeError(
            path, f"its layers see a sliding window of {window} tokens",
            f"Texts of up to {window} tokens are read in the same way without it: set"
            f" sliding_window to null and max_position_embeddings to {window}",
        )  # fmt: skip


def rope_factors(
    scaling: Mapping[str, Any] | None, theta: float, size: int, path: Path
) -> list[float]:
    """Divisors of the frequencies of a head's ``size`` / 2 pairs; none without ``rope_scaling``.

    llama3: waves longer than the first context over ``low_freq_factor`` are divided by ``factor``,
    those shorter than it over ``high_freq_factor`` are kept, between lies a ramp (Llama 3.1's model
    card; `transformers`' modeling_rope_utils).
    """
    if scaling is None:
        return []
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return []
    if kind == "linear":
        return [float(scaling["factor"])] * (size // 2)
    if kind != "llama3":
        context = scaling.get("original_max_position_embeddings", "that of its training")
        raise RecipeError(
            path, f"its rope_scaling is {kind}, not linear or llama3",
            f"Without rope_scaling it reads shorter texts in the same way: take it out and set"
            f" max_position_embeddings to {context}",
        )  # fmt: skip
    factor, low, high, context = (
        float(scaling[key])
        for key in (
            "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        )
    )  # fmt: skip
    factors = []
    for pair in range(size // 2):
        wave = 2 * math.pi * theta ** (2 * pair / size)
        if wave < context / high:
            factors.append(1.0)
        elif wave > context / low:
            factors.append(factor)
        else:
            kept = (context / wave - low) / (high - low)
            factors.append(1 / ((1 - kept) / factor + kept))
    return factors


def read_tokenizer(folder: Path, config: Description) -> Tokenizer:
    """Checked against the embedding; that of a model from elsewhere also against what a GGUF file
    can say, so that it does not come out after hours."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise RecipeError(
            path, "is missing",
            "Make it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )  # fmt: skip
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as problem:  # the package raises no narrower one
        raise RecipeError(path, f"is no tokenizer ({problem})", AGAIN) from problem
    last, rows = max(tokenizer.get_vocab().values(), default=-1), config.model.vocab_size
    if last >= rows:
        cause = f"its last token is {last}, but the embedding has {rows} rows (vocab_size)"
        raise RecipeError(path, cause, "Take the tokenizer that belongs to the model")
    if config.from_hub:
        check(tokenizer, path)
    return tokenizer


# ---- Weights -------------------------------------------------------------------------------------


def read_weights(folder: Path, config: SelmConfig) -> SelmForCausalLM:
    """Straight into the model as float32, tensor by tensor; every one must be there and fit, and no
    other be there."""
    model = empty_model(config)
    wanted = model.state_dict()
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    files, index = _files(folder)
    where = _places(files, index)
    for name, file in where.items():
        if name not in wanted and not _spare(name, config):
            cause = f"the tensor {name} has no place in a model such as config.json describes"
            raise RecipeError(file, cause, OTHER)
    for name in wanted:
        if name not in where:
            raise RecipeError(index or files[0], f"the tensor {name} is missing", AGAIN)
    for file in files:
        with _opened(file) as source:
            for name in source.keys():  # noqa: SIM118 - no mapping
                if name in wanted:
                    _fill(wanted[name], source, name, file)
    return model


def _spare(name: str, config: SelmConfig) -> bool:
    """Tables that old versions stored, and a tied head stored once more."""
    tied = config.tie_word_embeddings and name == "lm_head.weight"
    return tied or name.endswith("rotary_emb.inv_freq")


def _files(folder: Path) -> tuple[list[Path], Path | None]:
    """The files with weights, and the index that names them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], None
    index = folder / INDEX
    if not index.is_file():
        pickled = any(folder.glob("pytorch_model*.bin"))
        raise RecipeError(
            folder, f"it holds no weights (neither {WEIGHTS} nor {INDEX})",
            "Save it again with transformers, which writes safetensors" if pickled else AGAIN,
        )  # fmt: skip
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise RecipeError(index, "it has no weight_map", AGAIN)
    files = [folder / name for name in sorted({*named.values()})]
    for file in files:
        if not file.is_file():
            count = sum(name == file.name for name in named.values())
            cause = f"is missing, though {INDEX} says that it holds {count} tensors"
            raise RecipeError(file, cause, AGAIN)
    return files, index


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as problem:
        cause = f"it is no whole safetensors file ({problem})"
        raise RecipeError(file, cause, AGAIN) from problem


def _places(files: list[Path], index: Path | None) -> dict[str, Path]:
    """Which file holds which tensor; the index must say the same."""
    where: dict[str, Path] = {}
    for file in files:
        with _opened(file) as source:
            where |= dict.fromkeys(source.keys(), file)
    named = read_json(index)["weight_map"] if index else {}
    for name, file in named.items():
        if where.get(name) != files[0].parent / file:
            cause = f"it does not hold the tensor {name}, though {INDEX} says so"
            raise RecipeError(files[0].parent / file, cause, AGAIN)
    return where


@torch.no_grad()
def _fill(own: torch.Tensor, source: Any, name: str, file: Path) -> None:
    kind, shape = source.get_slice(name).get_dtype(), source.get_slice(name).get_shape()
    if kind not in FLOATS:
        raise RecipeError(
            file, f"the tensor {name} is stored as {kind}", "Give the weights as bf16, f16 or f32"
        )
    if shape != [*own.shape]:
        cause = f"the tensor {name} has the shape {shape}, where config.json wants {[*own.shape]}"
        raise RecipeError(file, cause, "Take the config.json that belongs to the weights")
    own.copy_(source.get_tensor(name))
    if not own.isfinite().all():
        raise RecipeError(file, f"the tensor {name} holds a value that is not finite", AGAIN)
