"""Models that say exactly what a test wants: after token t comes `following[t]`, greedily.

The layers add nothing (their outputs are zero); embeddings are random signs, and row j of the
head is the sum of the embeddings after which j follows. So text, stop strings, end tokens and
half characters can be laid out token by token.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from support.gguf_files import CONFIGS, random_weights, write_model

CONFIG = replace(CONFIGS["llama"], hidden=256, heads=4, kv_heads=2, ff=32, context=256)


def write_scripted(
    path: Path,
    following: Mapping[int, int],
    *,
    layers: int = 2,
    vocabulary: Mapping[str, Any] | None = None,
) -> Path:
    config = replace(CONFIG, layers=layers)
    weights = random_weights(config)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (config.vocab, config.hidden))
    head = np.zeros_like(signs)
    for token, successor in following.items():
        head[successor] += signs[token]
    weights["model.embed_tokens.weight"] = signs.astype(np.float32)
    weights["lm_head.weight"] = (head / 16).astype(np.float32)
    weights["model.norm.weight"] = np.ones(config.hidden, np.float32)
    for name in weights:
        if "o_proj" in name or "down_proj" in name:
            weights[name] = np.zeros_like(weights[name])
    return write_model(path, config, weights, vocabulary=vocabulary)


def chain(tokens: Sequence[int]) -> dict[int, int]:
    """Each token follows the one before; the last one repeats. No token may come twice."""
    assert len(set(tokens)) == len(tokens)
    return {**dict(itertools.pairwise(tokens)), tokens[-1]: tokens[-1]}
