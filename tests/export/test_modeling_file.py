"""SELM models written as GGUF and read back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import numpy as np
import torch
from selm_export import generate_numbers
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.file import read_model, write_model
from selm_export.modeling.model import SelmForCausalLM
from selm_export.vocabulary import train_vocabulary

VOCABULARY = 400
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "window": 5, "features": 32,
    "initializer_range": 0.2,
}  # fmt: skip
MIXED = ["performer", "softmax", "window"]
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
    "untied": {"tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [
        m.content
        for i in range(200)
        for m in generate_numbers.conversation(random.Random(i)).messages
    ]
    return train_vocabulary(texts, VOCABULARY)


def some_model(**changes: Any) -> SelmForCausalLM:
    torch.manual_seed(2)
    model = SelmForCausalLM(SelmConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_read_back_bit_for_bit(variant: str, tokenizer: Any, tmp_path: Path) -> None:
    model, path = some_model(**VARIANTS[variant]), tmp_path / "m.gguf"
    write_model(path, model, tokenizer, Label("Test"))
    back = read_model(path)
    for key in SelmConfig().to_dict():
        if key not in ("initializer_range", "rms_norm_eps", "clamp", "architectures", "dtype"):
            assert getattr(back.config, key) == getattr(model.config, key), key
    assert back.config.clamp == pytest.approx(model.config.clamp)
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
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RecipeError, match="architecture is llama, not selm"):
        read_model(path)


def test_a_missing_or_misshapen_tensor_is_named(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selm_export.modeling import file

    path, model, tensors = tmp_path / "m.gguf", some_model(), file._tensors
    monkeypatch.setattr(
        file, "_tensors", lambda m: (x for x in tensors(m) if x[0] != "blk.1.ffn_up.weight")
    )
    write_model(path, model, tokenizer, Label("Test"))
    with pytest.raises(RecipeError, match=r"blk\.1\.ffn_up\.weight is missing"):
        read_model(path)
    monkeypatch.setattr(file, "_tensors", lambda m: ((n, v[..., :32]) for n, v in tensors(m)))
    write_model(path, model, tokenizer, Label("Test"))
    with pytest.raises(
        RecipeError, match=r"token_embd\.weight has the shape \[400, 32\], not \[400, 64\]"
    ):
        read_model(path)
