"""SELM models written as GGUF and read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import numpy as np
import torch
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling import file
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.file import read_model, write_model
from support.selm_models import SHAPE, some_model, some_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

MIXED = ["performer", "softmax", "window"]
NAMES = ["general", "medical", "math"]
DELTAS: dict[str, Any] = {"expert_names": NAMES, "expert_rank": 4, "trunk_layers": 1}
FULL: dict[str, Any] = {"expert_names": NAMES, "expert_kind": "full", "trunk_layers": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "performer": {"attention_kinds": MIXED, "sinks": 2, "clamp": 0.9},
    "hedgehog": {"attention_kinds": MIXED, "feature_map": "hedgehog"},
    "elu1": {"attention_kinds": MIXED, "feature_map": "elu1", "features": 16},
    "relu, gates, norms": {
        "attention_kinds": MIXED, "feature_map": "relu", "head_gate": True, "qk_norm": True,
    },
    "exits and factors": {
        "exit_layers": [1, 2], "ranks": {"mlp.up_proj": 12, "self_attn.o_proj": 8},
    },
    "biases, drafts of some tokens": {
        "attention_bias": True, "exit_layers": [2], "draft_vocabulary": [7, 3, 399],
        "ranks": {"self_attn.q_proj": 8}, "attention_kinds": MIXED,
    },
    "ranks by layer": {
        "ranks": {"layers.0.mlp.up_proj": 12, "layers.2.mlp.up_proj": 8, "self_attn.o_proj": 8,
                  "layers.1.self_attn.k_proj": 4},
    },
    "ranks by layer of full experts": {
        **FULL, "ranks": {"layers.1.mlp.up_proj": 12, "layers.2.mlp.down_proj": 8},
    },
    "untied": {"tie_word_embeddings": False},
    "delta experts": {
        **DELTAS, "attention_kinds": MIXED, "head_gate": True, "exit_layers": [1],
        "expert_stickiness": 0.3, "ranks": {"mlp.down_proj": 12},
    },
    "full experts": {
        **FULL, "attention_kinds": ["softmax", "window", "performer"], "expert_route": "full",
        "qk_norm": True, "attention_bias": True, "ranks": {"mlp.up_proj": 12},
    },
}  # fmt: skip


@pytest.fixture
def tokenizer() -> Any:
    return some_tokenizer()


@pytest.mark.parametrize("variant", VARIANTS)
def test_read_back_bit_for_bit(variant: str, tokenizer: Any, tmp_path: Path) -> None:
    model, path = some_model(**VARIANTS[variant]), tmp_path / "m.gguf"
    write_model(path, model, tokenizer, Label("Test"))
    back = read_model(path)
    for key in SelmConfig().to_dict():
        if key in ("clamp", "expert_stickiness"):
            assert getattr(back.config, key) == pytest.approx(getattr(model.config, key))
        elif key not in ("initializer_range", "rms_norm_eps", "architectures", "dtype"):
            assert getattr(back.config, key) == getattr(model.config, key), key
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_a_reader_of_gguf_sees(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = some_model(attention_kinds=MIXED, head_gate=True, exit_layers=[2])
    write_model(path, model, tokenizer, Label("Test"), gguf.GGMLQuantizationType.Q8_0)
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    projection = tensors["blk.0.performer.projection.weight"]
    assert list(projection.shape) == [16, 32, 2]  # ne order: head, features, KV heads
    assert projection.tensor_type == gguf.GGMLQuantizationType.F32
    assert tensors["blk.1.ffn_up.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert list(tensors["blk.2.attn_head_gate.weight"].shape) == [64, 4]
    assert "exit.2.norm.weight" in tensors and "blk.1.performer.far_gain" not in tensors
    kinds = reader.get_field("selm.attention.kinds")
    assert kinds is not None and kinds.contents() == MIXED
    back = read_model(path)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        difference = (back(ids).logits - model(ids).logits).numpy()
        assert np.square(difference).mean() < 5e-3 * np.square(model(ids).logits.numpy()).mean()


def test_other_files_are_refused_by_name(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(RecipeError, match=r"m\.gguf: not a GGUF file"):
        read_model(path)
    writer = gguf.GGUFWriter(path, "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RecipeError, match="architecture is gemma, not llama, qwen2, qwen3 or selm"):
        read_model(path)


def plain_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: torch.from_numpy(np.array(t.data, np.float32)) for t in tensors}


@pytest.mark.parametrize("experts", [DELTAS, FULL], ids=["delta", "full"])
def test_an_expert_put_together_from_the_file_is_llama(
    experts: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    """By the words of docs/selm-format.md alone: `expert.E.X` in the place of `X`, or the product
    of its factors added to it."""
    path, model = tmp_path / "m.gguf", some_model(**experts)
    write_model(path, model, tokenizer, Label("Test"))
    tensors = plain_tensors(path)
    llama = LlamaForCausalLM(
        LlamaConfig(
            **{k: SHAPE[k] for k in SHAPE if k not in ("window", "features")},
            rms_norm_eps=1e-6, tie_word_embeddings=True,
        )
    )  # fmt: skip
    parts = {name: part for part, name in file.LAYER_NAMES.items()}
    ids = torch.arange(40)[None]
    for expert, name in enumerate(NAMES):
        state = {
            "model.embed_tokens.weight": tensors["token_embd.weight"],
            "model.norm.weight": tensors["output_norm.weight"],
            "lm_head.weight": tensors["token_embd.weight"],
        }
        for layer in range(3):
            for theirs, ours in parts.items():
                at = f"blk.{layer}.{theirs}.weight"
                own = f"expert.{expert}.{at}"
                value = tensors[own] if own in tensors else tensors[at]
                if f"{own}.lora_a" in tensors:
                    assert layer >= experts["trunk_layers"]
                    value = value + tensors[f"{own}.lora_b"] @ tensors[f"{own}.lora_a"]
                state[f"model.layers.{layer}.{ours}.weight"] = value
        llama.load_state_dict(state, strict=True)
        llama.train(False)
        with torch.no_grad():
            got = model(ids, expert=name).logits
            torch.testing.assert_close(got, llama(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_a_reader_of_gguf_sees_of_experts(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = some_model(**{**DELTAS, "expert_rank": 16, "expert_stickiness": 0.5})
    write_model(path, model, tokenizer, Label("Test"), gguf.GGMLQuantizationType.Q8_0)
    reader = gguf.GGUFReader(path)
    keys = {
        key.removeprefix("selm.expert."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith("selm.expert.")
    }
    assert keys == {
        "names": NAMES, "trunk_layers": 1, "kind": "delta", "route": "early", "stickiness": 0.5,
    }  # fmt: skip
    seen = {
        t.name: (t.shape.tolist(), t.tensor_type.name)
        for t in reader.tensors
        if t.name.startswith("expert.")
    }
    expected: dict[str, tuple[list[int], str]] = {}
    for e in range(3):
        for layer in (1, 2):
            for part, columns, rows in (
                ("attn_q", 64, 64), ("attn_k", 64, 32), ("attn_v", 64, 32),
                ("attn_output", 64, 64), ("ffn_gate", 64, 96), ("ffn_up", 64, 96),
                ("ffn_down", 96, 64),
            ):  # fmt: skip
                at = f"expert.{e}.blk.{layer}.{part}.weight"
                expected[f"{at}.lora_a"] = ([columns, 16], "Q8_0")
                expected[f"{at}.lora_b"] = ([16, rows], "F16")  # rows shorter than a block
        expected |= {f"expert.{e}.score.norm.{x}": ([64], "F32") for x in ("weight", "bias")}
        for i, (columns, rows) in enumerate(((64, 256), (256, 128), (128, 1))):
            expected[f"expert.{e}.score.{i}.weight"] = ([columns, rows], "Q8_0")
            expected[f"expert.{e}.score.{i}.bias"] = ([rows], "F32")
    assert seen == expected
    back = dict(file._tensors(read_model(path)))
    for name, value in file._tensors(model):  # Q8_0 of normal numbers: 3e-5
        assert (back[name] - value).square().mean() < 1e-4 * value.square().mean(), name


Tensors = dict[str, torch.Tensor]


def written(
    path: Path, tokenizer: Any, change: Callable[[Tensors], object], **changes: Any
) -> None:
    """A file whose tensors are not those of its model."""
    model, tensors = some_model(**changes), dict(file._tensors(some_model(**changes)))
    change(tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_tensors", lambda _: tensors.items())
        write_model(path, model, tokenizer, Label("Test"))


def cut(name: str, columns: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name][..., :columns]})


DELTA = "expert.1.blk.2.ffn_up.weight"


@pytest.mark.parametrize(
    ("changes", "change", "told"),
    [
        ({}, lambda t: t.pop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight is missing"),
        (
            {},
            cut("token_embd.weight", 32),
            "token_embd.weight has the shape [400, 32], not [400, 64]",
        ),
        (DELTAS, lambda t: t.pop(f"{DELTA}.lora_a"), f"{DELTA}.lora_a is missing"),
        (
            DELTAS,
            cut(f"{DELTA}.lora_a", 32),
            f"{DELTA}.lora_a has the shape [4, 32], not [4, 64]",
        ),
        (DELTAS, cut(f"{DELTA}.lora_b", 2), f"{DELTA}.lora_b has the shape [96, 2], not [96, 4]"),
        (
            DELTAS,
            lambda t: t.pop("expert.2.score.1.weight"),
            "expert.2.score.1.weight is missing",
        ),
        (
            DELTAS,
            cut("expert.0.score.0.weight", 32),
            "expert.0.score.0.weight has the shape [256, 32], not [256, 64]",
        ),
        (
            DELTAS,
            lambda t: t.update({"expert.0.blk.0.ffn_up.weight.lora_a": torch.zeros(4, 64)}),
            "expert.0.blk.0.ffn_up.weight.lora_a has no place in it",
        ),
        (FULL, lambda t: t.pop("expert.2.blk.2.attn_norm.weight"), "attn_norm.weight is missing"),
        (
            FULL,
            cut("expert.0.blk.2.attn_k.weight", 32),
            "expert.0.blk.2.attn_k.weight has the shape [32, 32], not [32, 64]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    changes: dict[str, Any],
    change: Callable[[Tensors], object],
    told: str,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.gguf"
    written(path, tokenizer, change, **changes)
    with pytest.raises(RecipeError, match=re.escape(told)):
        read_model(path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("expert_names", ["math", "math", "law"], "names of their own"),
        ("trunk_layers", 3, "a trunk of 3 layers of 3"),
        ("expert_kind", "adapter", "delta or full"),
        ("expert_route", "late", "early or full"),
        ("expert_names", ["general", "math"], "expert.2."),
    ],
)
def test_keys_that_contradict_are_told(
    key: str, value: Any, told: str, tokenizer: Any, tmp_path: Path
) -> None:
    path, model = tmp_path / "m.gguf", some_model(**DELTAS)
    tensors = dict(file._tensors(model))
    setattr(model.config, key, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_tensors", lambda _: tensors.items())
        write_model(path, model, tokenizer, Label("Test"))
    with pytest.raises(RecipeError, match=re.escape(told)):
        read_model(path)
