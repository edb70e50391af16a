"""An adapter in torch, in the inference core and in llama.cpp: the same logits; taken away, exactly
those of before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from selm_export.checkpoint import Checkpoint
from selm_export.errors import RecipeError
from selm_export.finetune.adapter import Adapter, AdapterLabel, write_adapter
from selm_export.gguf_export import write_gguf
from selm_export.gguf_file import Label, plain
from selm_export.modeling.file import architecture_of
from support.compressing import VARIANTS
from support.core import llama_cpp_logits
from support.selm_models import some_model, some_tokenizer

from selm_edge import _core
from selm_edge.adapters import AdapterShelf
from selm_edge.catalog import Catalog

F32 = plain(gguf.GGMLQuantizationType.F32)
TOKENS = [5, 17, 200, 3, 45, 45, 90, 11, 301, 7, 260, 44, 3, 3, 78, 120]
STANDARD: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {"attention_bias": True}, "qwen3": {"qk_norm": True},
}  # fmt: skip
ALL = {**VARIANTS, **STANDARD}


def adapted(model: Any, seed: int = 4) -> Adapter:
    """With something to add everywhere."""
    torch.manual_seed(seed)
    adapter = Adapter(model, rank=4, alpha=6.0)
    with torch.no_grad():
        for _, pair in adapter.tensors():
            pair.b.normal_(std=0.05)
    return adapter


@pytest.fixture
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A model, its adapter, and the files of both."""
    model = some_model(**ALL[request.param])
    base, file = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    write_gguf(base, Checkpoint(base, model, some_tokenizer()), encode=F32, label=Label("base"))
    adapter = adapted(model)
    write_adapter(file, adapter, model, AdapterLabel("Mine", ""))
    return model, adapter, base, file


def in_torch(model: Any, expert: str | None) -> Any:
    with torch.no_grad():
        return model(torch.tensor([TOKENS]), expert=expert).logits[0].numpy()


def in_core(session: _core.Session, expert: str | None) -> Any:
    session.set_expert(expert)
    session.truncate(0)
    return np.array(session.eval(TOKENS).view()).reshape(len(TOKENS), -1)


@pytest.mark.parametrize("written", ALL, indirect=True)
def test_the_same_logits_in_torch_and_in_the_core(written: Any) -> None:
    model, adapter, base, file = written
    core = _core.Model(str(base))
    session = _core.Session(core, context=64, threads=1, kv_type="f32")
    for expert in model.config.expert_names or [None]:
        session.set_adapters([])
        with adapter.off():
            plain_torch = in_torch(model, expert)
        plain_core = in_core(session, expert)
        assert np.abs(plain_core - plain_torch).max() < 1e-3
        session.set_adapters([(_core.Adapter(core, str(file)), 1.0)])
        with_it = in_core(session, expert)
        assert np.abs(with_it - in_torch(model, expert)).max() < 1e-3
        assert np.abs(with_it - plain_core).max() > 0.05  # it does something
        session.set_adapters([])
        assert (in_core(session, expert) == plain_core).all()
    adapter.detach_from_model()
    assert np.array_equal(in_torch(model, expert), plain_torch)


@pytest.mark.parametrize("written", STANDARD, indirect=True)
def test_the_same_logits_in_llama_cpp(written: Any, tmp_path: Path) -> None:
    model, _, base, file = written
    assert architecture_of(model.config) in STANDARD
    (theirs,) = llama_cpp_logits([f"{base}\n{file}"], TOKENS, tmp_path)
    assert np.abs(theirs - in_torch(model, None)).max() < 1e-3


@pytest.mark.parametrize("written", ["delta experts"], indirect=True)
def test_on_the_shelf_it_knows_its_base(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELM_HOME", str(tmp_path / "home"))
    model, adapter, base, file = written
    entry, shelf = Catalog().add(base, "mine"), AdapterShelf()
    write_adapter(file, adapter, model, AdapterLabel("Mine", "0" * 64))
    with pytest.raises(Exception, match="trained on another model"):
        shelf.add(file, entry)
    from selm_edge.catalog import sha256_of

    write_adapter(file, adapter, model, AdapterLabel("Mine", sha256_of(base), "bundle"))
    assert shelf.add(file, entry).rank == 4


def test_a_fresh_adapter_adds_nothing_and_all_experts_share_it() -> None:
    model = some_model(**VARIANTS["full experts"])
    names = model.config.expert_names
    before = [in_torch(model, name) for name in names]
    adapter = Adapter(model)
    assert all(np.array_equal(in_torch(model, n), x) for n, x in zip(names, before, strict=True))
    pairs = dict(adapter.tensors())
    assert len(pairs) == 7 * model.config.num_hidden_layers
    with torch.no_grad():
        pairs["blk.2.ffn_up"].b.fill_(0.1)
    for name, x in zip(names, before, strict=True):
        assert not np.array_equal(in_torch(model, name), x)


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    model = some_model()
    with pytest.raises(RecipeError, match="could not be written"):
        write_adapter(tmp_path / "missing" / "a.gguf", adapted(model), model, AdapterLabel("x", ""))
    assert not list(tmp_path.rglob("*.gguf*"))
