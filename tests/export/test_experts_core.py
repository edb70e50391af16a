"""The core's experts are torch's, and one that skipped tokens is as if it had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import numpy as np
import torch
from selm_export.gguf_file import Label
from selm_export.modeling import file
from selm_export.modeling.file import write_model
from support.core import ISAS, Session, array, require_isa
from support.oracles import relative_error
from support.selm_models import some_model, some_tokenizer

from selm_edge import _core

NAMES = ["general", "medical", "math"]
MIXED = ["performer", "softmax", "performer", "window"]
EXPERTS: dict[str, Any] = {
    "expert_names": NAMES, "expert_rank": 4, "trunk_layers": 2, "num_hidden_layers": 4,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "delta, early": {"expert_kind": "delta", "expert_route": "early"},
    "delta, full": {"expert_kind": "delta", "expert_route": "full", "attention_kinds": MIXED},
    "full, early, sticky": {
        "expert_kind": "full", "expert_route": "early", "expert_stickiness": 6.0,
        "attention_kinds": MIXED, "sinks": 2,
    },
    "full, full": {"expert_kind": "full", "expert_route": "full", "head_gate": True},
    "delta on factors": {
        "expert_kind": "delta", "expert_route": "early", "attention_kinds": MIXED,
        "ranks": {"mlp.up_proj": 12, "self_attn.q_proj": 8},
    },
}  # fmt: skip
LENGTH = 300
IDS = np.random.default_rng(6).integers(0, 400, LENGTH).tolist()


def ensemble(**changes: Any) -> Any:
    model = some_model(**{**EXPERTS, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "delta_b" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def written(request: Any, tmp_path_factory: Any) -> tuple[Path, Any, Any]:
    """A file, torch's logits and who spoke."""
    model = ensemble(**VARIANTS[request.param])
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    write_model(path, model, some_tokenizer(), Label("Test"))
    with torch.no_grad():
        out = model.double()(torch.tensor([IDS]))
    return path, out.logits[0].numpy(), out.speakers[0].tolist()


def speakers(session: Session) -> list[int]:
    return [session.core.speaker(i) for i in range(session.core.position)]


@pytest.mark.parametrize("isa", ISAS)
def test_logits_and_speakers_are_those_of_torch(written: tuple[Path, Any, Any], isa: str) -> None:
    path, expected, spoke = written
    assert len(set(spoke)) > 1
    session = Session(path, isa=require_isa(isa), context=400, threads=2)
    got = session.eval(IDS)
    assert speakers(session) == spoke
    assert relative_error(got, expected) <= 1e-4
    session.core.truncate(0)
    assert relative_error(session.eval_in_pieces(IDS, [1, 50, 7]), expected) <= 1e-4


def test_a_fixed_expert_is_that_of_torch(tmp_path: Path) -> None:
    model = ensemble()
    write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"))
    for name in NAMES:
        session = Session(tmp_path / "m.gguf", context=400)
        session.core.set_expert(name)
        with torch.no_grad():
            expected = model(torch.tensor([IDS]), expert=name).logits[0].numpy()
        assert relative_error(session.eval(IDS), expected) <= 1e-4
        assert set(speakers(session)) == {NAMES.index(name)}
    with pytest.raises(_core.CoreError, match="no expert 'law'; the model has general, medical"):
        session.core.set_expert("law")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("variant", ["delta, early", "full, early, sticky", "delta on factors"])
def test_a_caught_up_expert_never_skipped(
    kind: str, exact: bool, variant: str, tmp_path: Path
) -> None:
    """Bit for bit, whatever the switches; the same pieces, so that the arithmetic is the same."""
    model = ensemble(**VARIANTS[variant])
    of = gguf.GGMLQuantizationType[kind]
    write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"), of)
    rng = np.random.default_rng(3)
    loyal = {n: Session(tmp_path / "m.gguf", context=400, exact=exact) for n in NAMES}
    for name, session in loyal.items():
        session.core.set_expert(name)
    fickle = Session(tmp_path / "m.gguf", context=400, exact=exact, threads=2)
    at = 0
    while at < LENGTH:
        ids = IDS[at : at + int(rng.choice([1, 1, 2, 5, 20, 60]))]
        name = str(rng.choice(NAMES))
        fickle.core.set_expert(name)
        truth = {n: array(s.core.eval(ids, logits="last")) for n, s in loyal.items()}
        if rng.random() < 0.3:
            fickle.core.eval(ids, logits="none")
        else:
            assert np.array_equal(array(fickle.core.eval(ids, logits="last")), truth[name])
        at += len(ids)


def test_going_back_with_experts(written: tuple[Path, Any, Any]) -> None:
    path, _, spoke = written
    fresh = Session(path, context=400, exact=True).eval(IDS)
    session = Session(path, context=400, exact=True)
    rng = np.random.default_rng(2)
    for _ in range(60):
        kept = session.core.truncate(int(rng.integers(0, session.core.position + 1)))
        stop = min(kept + int(rng.choice([1, 2, 9, 40, 120])), LENGTH)
        if stop == kept:
            continue
        if rng.random() < 0.4:
            got = array(session.core.eval(IDS[kept:stop], logits="last"))
            assert np.array_equal(got[-1], fresh[stop - 1])
        else:
            assert np.array_equal(session.eval(IDS[kept:stop]), fresh[kept:stop])
        assert speakers(session) == spoke[:stop]


def test_a_long_backlog_is_caught_up_in_time(tmp_path: Path) -> None:
    """More tokens than are kept for experts that skip them."""
    model = ensemble(attention_kinds=["window"] * 4)
    write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"))
    ids = (IDS * 16)[:4500]
    loyal, fickle = (Session(tmp_path / "m.gguf", context=5000, batch=64) for _ in range(2))
    loyal.core.set_expert("math")
    fickle.core.set_expert("general")
    for session in (loyal, fickle):
        session.core.eval(ids, logits="last")
    fickle.core.set_expert("math")
    assert np.array_equal(fickle.eval([5]), loyal.eval([5]))


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ensemble()
    tensors = dict(file._tensors(model))
    delta, score = "expert.1.blk.3.ffn_up.weight.lora_b", "expert.2.score.1.weight"
    for name, changed, match in (
        (delta, tensors[delta][:-1], rf"{delta} has shape \[4, 95.*ask for \[4, 96"),
        (score, tensors[score][:, :64], rf"{score} has shape \[64, 128.*ask for \[256, 128"),
        (score, None, f"{score} is missing"),
        ("expert.0.blk.1.attn_q.weight.lora_a", tensors[delta], "lora_a is not one"),
    ):
        own = {**tensors, name: changed} if changed is not None else dict(tensors)
        if changed is None:
            del own[name]
        monkeypatch.setattr(file, "_tensors", lambda _, own=own: own.items())
        write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"))
        with pytest.raises(_core.CoreError, match=match):
            _core.Model(str(tmp_path / "m.gguf"))


def test_adapters_do_not_touch_what_experts_skipped(tmp_path: Path) -> None:
    """An expert that catches up later still sees those tokens without the adapter."""
    model = ensemble()
    write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"))
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "selm")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    rng = np.random.default_rng(1)
    for name, shape in (("lora_a", (2, 64)), ("lora_b", (96, 2))):
        values = rng.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"blk.3.ffn_up.weight.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = []
    for first in ("math", "general"):  # the one that speaks later has seen the tokens, or not
        session = Session(tmp_path / "m.gguf", context=400)
        session.core.set_expert(first)
        session.core.eval(IDS[:50], logits="last")
        adapter = _core.Adapter(session.model, str(tmp_path / "a.gguf"))
        session.core.set_adapters([(adapter, 1.0)])
        session.core.set_expert("math")
        said.append(session.eval(IDS[50:60]))
    assert np.array_equal(*said)
