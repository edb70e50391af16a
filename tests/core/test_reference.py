"""The numpy reference is itself right: transformers agrees with it, and it notices mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.gguf_files import CONFIGS, random_weights, write_model
from support.oracles import relative_error, transformers_logits
from support.reference import Reference

TOKENS = np.random.default_rng(7).integers(0, 352, 48).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    config, weights = CONFIGS[name], random_weights(CONFIGS[name], seed=1)
    path = write_model(tmp_path / "m.gguf", config, weights)
    expected = transformers_logits(config, weights, TOKENS)
    assert relative_error(Reference(path).eval(TOKENS), expected) < 2e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3-yarn", "llama-gqa8-llama3"])
def test_a_wrong_rotation_would_show(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    path = write_model(tmp_path / "m.gguf", config, random_weights(config, seed=1))
    right, wrong = Reference(path), Reference(path)
    wrong.arch = "qwen2" if right.arch == "llama" else "llama"
    wrong.keys.update({k.replace(right.arch, wrong.arch): v for k, v in right.keys.items()})
    if "llama3" in name:  # the factors forgotten
        wrong.arch, wrong.frequencies = "llama", 500000.0 ** (-np.arange(0, 8, 2) / 8)
    assert relative_error(wrong.eval(TOKENS), right.eval(TOKENS)) > 1e-2
