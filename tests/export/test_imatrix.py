"""Importance of columns, held to what transformers' own Llama feeds its matrices."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selm_export import checkpoint
from selm_export.data.chat import chat
from selm_export.data.dataset import GENERATE, document
from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.modeling import file
from selm_export.modeling.model import SelmForCausalLM
from selm_export.quantization import imatrix
from selm_export.quantization.divergence import compare
from selm_export.quantization.encode import Encoder, applied
from selm_export.quantization.mixes import Type, is_matrix
from support.bundled import START
from support.selm_models import SHAPE, VOCABULARY, some_model
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parents[1] / "data"


def documents(count: int = 5) -> list[Document]:
    r = np.random.default_rng(0)
    lengths = r.integers(3, 40, count)
    return [Document(r.integers(0, VOCABULARY, n).tolist(), [True] * n) for n in lengths]


def matrices(model: SelmForCausalLM) -> dict[str, torch.Tensor]:
    return {n: t for n, t in file._tensors(model) if is_matrix(n, tuple(t.shape))}


@pytest.mark.parametrize("tied", [True, False])
def test_means_are_those_of_what_llama_multiplies(tied: bool) -> None:
    model = some_model(tie_word_embeddings=tied)
    kept = {k: SHAPE[k] for k in SHAPE if k not in ("window", "features", "initializer_range")}
    llama = LlamaForCausalLM(
        LlamaConfig(**kept, rms_norm_eps=1e-6, rope_theta=10000.0, tie_word_embeddings=tied)
    )
    llama.load_state_dict(model.state_dict(), strict=False)
    seen: dict[str, list[torch.Tensor]] = {}

    def look(name: str) -> Any:
        return lambda _, given: seen.setdefault(name, []).append(given[0][0].double())

    for name, module in llama.named_modules():
        if isinstance(module, torch.nn.Linear):
            found = "token_embd.weight" if tied and name == "lm_head" else None
            module.register_forward_pre_hook(look(found or file.tensor_name(f"{name}.weight")))
    with torch.no_grad():
        for d in documents():
            llama(torch.tensor([d.ids]))
    found = imatrix.measure(model, documents())
    assert set(found) == set(matrices(model))
    for name, inputs in seen.items():
        expected = torch.cat(inputs).square().mean(0).numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-7)
    if not tied:
        assert (found["token_embd.weight"] == 1).all()  # rows of it are looked up


VARIANTS: dict[str, dict[str, Any]] = {
    "performer": {
        "attention_kinds": ["performer", "window", "softmax"], "head_gate": True, "qk_norm": True,
    },
    "factorized": {"ranks": {"mlp.up_proj": 8, "self_attn.q_proj": 4}},
    "delta": {"expert_names": ["a", "b"], "trunk_layers": 1, "expert_rank": 4},
    "full": {
        "expert_names": ["a", "b"], "trunk_layers": 2, "expert_kind": "full",
        "expert_route": "full", "tie_word_embeddings": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_matrix_of_every_kind_of_model_is_covered(name: str) -> None:
    model = some_model(**VARIANTS[name])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = imatrix.measure(model, documents(2))
    # Head gates stay floats, and so does what else is_matrix leaves out.
    assert {n: (t.shape[1],) for n, t in matrices(model).items()} == {
        n: v.shape for n, v in found.items()
    }
    assert all((v >= 0).all() and v.any() for v in found.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_factors_and_deltas_by_hand() -> None:
    both = {"ranks": {"mlp.up_proj": 8}, **VARIANTS["delta"]}
    model = some_model(**both)
    seen: list[torch.Tensor] = []
    projection = model.model.layers[1].mlp.up_proj
    hook = projection.register_forward_pre_hook(
        lambda _, given: seen.append(given[0][0]) if given[1] == 1 else None
    )
    found = imatrix.measure(model, documents(2))
    hook.remove()
    x = torch.cat(seen)
    inner = x @ projection.delta_a[1].T
    name = "expert.1.blk.1.ffn_up.weight"
    for key, value in ((f"{name}.lora_a", x), (f"{name}.lora_b", inner)):
        expected = value.detach().square().mean(0).numpy()
        np.testing.assert_allclose(found[key], expected, rtol=1e-4)


def test_a_file_and_back(tmp_path: Path) -> None:
    found = imatrix.measure(some_model(), documents(1))
    path = tmp_path / "importance.safetensors"
    imatrix.save(path, found)
    back = imatrix.load(path)
    assert set(back) == set(found)
    for name, value in found.items():
        np.testing.assert_array_equal(back[name], value)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RecipeError, match=r"importance.safetensors: no importance matrix"):
        imatrix.load(path)
    with pytest.raises(RecipeError, match="no importance matrix"):
        imatrix.load(tmp_path / "none")
    with pytest.raises(OSError, match="No such file"):
        imatrix.save(tmp_path / "none" / "x", found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["importance.safetensors"]


def generated(tokenizer: Any, seeds: range) -> list[Document]:
    """Conversations as the bundled model knows them; other seeds, other conversations."""
    return [
        document(tokenizer, make(random.Random(f"{name}:{seed}")))
        for seed in seeds
        for name, make in GENERATE.items()
    ]


@pytest.mark.parametrize("kind", [Type.Q3_K, Type.Q4_0], ids=lambda t: t.name)
def test_importance_brings_the_model_nearer_to_itself(kind: Type) -> None:
    """Measured on other text than it was taken from; to save time, of some of the matrices."""
    source = checkpoint.load(START)
    model = source.model
    importance = imatrix.measure(model, generated(source.tokenizer, range(8)))
    prompts = (DATA / "talk-prompts.txt").read_text(encoding="utf-8").splitlines()
    held_out = generated(source.tokenizer, range(100, 103))
    held_out += [document(source.tokenizer, chat("test", prompt)) for prompt in prompts]
    first = ("token_embd", "blk.0.", "blk.1.")
    types = {name: kind for name in matrices(model) if name.startswith(first)}
    with_it, without = (
        compare(model, applied(model, Encoder(START, types, known)), held_out).mean
        for known in (importance, None)
    )
    assert 0 < with_it < 0.95 * without


def test_a_missing_or_broken_entry_is_named() -> None:
    model, where = some_model(), Path("here")
    importance = imatrix.measure(model, documents(1))
    name = "blk.1.ffn_up.weight"
    value = matrices(model)[name].numpy()
    del importance[name]
    with pytest.raises(RecipeError, match=f"here: the importance matrix has no entry .* {name}"):
        Encoder(where, {name: Type.Q4_0}, importance)(name, value)
    Encoder(where, {name: Type.Q8_0}, importance)(name, value)  # which weighs nothing
    importance[name] = np.full(64, np.nan, np.float32)
    with pytest.raises(RecipeError, match=f"{name} cannot become Q4_0: an importance is negative"):
        Encoder(where, {name: Type.Q4_0}, importance)(name, value)
    broken = value.copy()
    broken[2, 3] = np.nan
    with pytest.raises(
        RecipeError, match=rf"{name} cannot become Q4_0: the weight \[2, 3\] is nan"
    ):
        Encoder(where, {name: Type.Q4_0})(name, broken)
    with pytest.raises(RecipeError, match=f"the tensor {name} holds what is no finite number"):
        Encoder(where, {})(name, broken)
