"""The independent engines that the core is compared with, each optional but numpy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.gguf_files import Config, FloatArray


def transformers_logits(
    config: Config, weights: Mapping[str, FloatArray], tokens: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Logits [n_tokens, n_vocab] of transformers in F32, with our weights loaded into it."""
    torch = pytest.importorskip("torch", reason="torch is not installed (training side only)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    common: dict[str, Any] = {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base,
        "rope_scaling": dict(config.rope_scaling) if config.rope_scaling else None,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "attn_implementation": "eager",
    }
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.arch]
    torch.set_num_threads(1)
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**common)
    ).eval()
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    if config.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def relative_error(got: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Largest difference over the largest value."""
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


def nmse(got: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Mean squared error over mean square."""
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    return float(((a - b) ** 2).sum() / (b**2).sum())
