"""Which type each tensor gets, by name or under a budget; the stage from checkpoint to file."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from selm_export import checkpoint
from selm_export.data.dataset import GENERATE, write_conversations
from selm_export.errors import RecipeError
from selm_export.modeling.file import _tensors, read_model
from selm_export.quantization import mixes
from selm_export.quantization.allocate import (
    Allocation,
    Choice,
    hull,
    search_loss,
    within_bytes,
    within_loss,
)
from selm_export.quantization.divergence import between
from selm_export.quantization.mixes import MIXES, Type, bytes_of, fitted, fitting, of_mix, replaced
from selm_export.stages.job import Job
from selm_export.stages.quantize import Settings, run
from support.core import Session
from support.selm_models import some_model, some_tokenizer

HERE = Path("here")
EXPERTS: dict[str, Any] = {
    "expert_names": ["a", "b"], "trunk_layers": 1, "expert_rank": 32, "head_gate": True,
    "attention_kinds": ["softmax", "performer", "window"],
}  # fmt: skip


def test_types_that_do_not_fit_give_way() -> None:
    for kind in mixes.MIXES.values():
        for columns in (256, 896, 32, 40, 1):
            given = fitting(kind.base, columns)
            assert columns % gguf.GGML_QUANT_SIZES[given][0] == 0
            if columns == 256:
                assert given == kind.base
    assert fitting(Type.Q4_K, 896) == Type.Q5_0
    assert fitting(Type.Q4_K, 40) == Type.F16
    for kind, instead in mixes._OF_32.items():  # of about as many bits
        sizes = [gguf.GGML_QUANT_SIZES[k] for k in (kind, instead)]
        fewer, more = (8 * size / block for block, size in sizes)
        assert fewer - 0.01 <= more <= fewer + 2


def test_sizes_are_those_of_the_file() -> None:
    for kind in (Type.F32, Type.F16, Type.Q8_0, Type.Q2_K, Type.Q4_K):
        x = np.zeros((3, 256), np.float32)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        assert bytes_of(kind, (3, 256)) == -(-(x.size // block * size) // 32) * 32


def test_named_mixes() -> None:
    names = [f"blk.{i}.{part}.weight" for i in range(16) for part in ("attn_q", "ffn_down")]
    shapes = dict.fromkeys([*names, "token_embd.weight", "expert.0.score.0.weight"], (512, 512))
    shapes["blk.3.attn_head_gate.weight"] = (8, 512)
    shapes |= {"output_norm.weight": (512,), "blk.0.performer.projection.weight": (2, 32, 64)}  # type: ignore[dict-item]
    of = {name: of_mix(mix, shapes) for name, mix in MIXES.items()}
    for types in of.values():
        assert set(types) == {*names, "token_embd.weight", "expert.0.score.0.weight"}
        assert types["expert.0.score.0.weight"] == Type.Q8_0
    assert set(of["q8_0"].values()) == {Type.Q8_0}
    medium = of["q4_k_m"]
    assert medium["token_embd.weight"] == Type.Q6_K
    assert all(medium[n] == Type.Q4_K for n in names if "attn_q" in n)
    finer = [i for i in range(16) if medium[f"blk.{i}.ffn_down.weight"] == Type.Q6_K]
    assert finer == [0, 1, 4, 7, 10, 13, 14, 15]  # as llama.cpp has it
    first = [i for i in range(16) if of["q4_k_s"][f"blk.{i}.ffn_down.weight"] == Type.Q5_K]
    assert first == [0, 1]
    small = {name: (shape[0], 40) if "attn_q" in name else shape for name, shape in shapes.items()}
    types = fitted(medium, small)
    assert f"{names[0]}: F16 for Q4_K" in replaced(types, medium)
    assert len(replaced(types, medium)) == 16


def some_menu(count: int = 12, seed: int = 0) -> dict[str, list[Choice]]:
    r = np.random.default_rng(seed)
    menu = {}
    for i in range(count):
        size, harm = int(r.integers(1, 40)) * 320, float(np.exp(r.normal(-4, 2)))
        bits = {Type.Q2_K: 2.6, Type.Q3_K: 3.4, Type.Q4_K: 4.5, Type.Q6_K: 6.6, Type.Q8_0: 8.5}
        menu[f"t{i}"] = hull([Choice(k, int(size * b), harm * 4**-b) for k, b in bits.items()])
    return menu


def test_only_what_pays_is_on_the_menu() -> None:
    good = [Choice(Type.Q2_K, 10, 1.0), Choice(Type.Q4_K, 20, 0.2), Choice(Type.Q8_0, 40, 0.0)]
    worse = [Choice(Type.Q3_K, 15, 0.9), Choice(Type.Q5_K, 25, 0.3), Choice(Type.Q4_0, 20, 0.25)]
    r = random.Random(1)
    for _ in range(10):
        mixed = [*good, *worse]
        r.shuffle(mixed)
        assert hull(mixed) == good


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_budgets_of_bytes_are_kept_and_used(share: float) -> None:
    menu = some_menu()
    least, most = (sum(c[at].size for c in menu.values()) for at in (0, -1))
    budget = int(least + share * (most - least))
    found = within_bytes(HERE, menu, budget)
    assert found.size <= budget
    assert set(found.types) == set(menu)
    # No single finer choice would still fit.
    for name, choices in menu.items():
        at = choices.index(found.chosen(name))
        if at + 1 < len(choices):
            assert found.size + choices[at + 1].size - choices[at].size > budget
    if share == 1.0:
        assert found.size == most


def test_no_single_type_does_better_for_its_bytes() -> None:
    menu = some_menu(40)
    for at in range(4):
        uniform = [choices[min(at, len(choices) - 1)] for choices in menu.values()]
        found = within_bytes(HERE, menu, sum(c.size for c in uniform))
        assert found.loss <= sum(c.loss for c in uniform)


def test_a_budget_too_small_says_what_is_needed() -> None:
    menu = some_menu()
    least = Allocation(menu).size
    with pytest.raises(RecipeError, match=f"matrices take {least} bytes or more, and {least - 1}"):
        within_bytes(HERE, menu, least - 1)


def test_targets_of_divergence() -> None:
    menu = some_menu()
    most = Allocation(menu).loss
    for target in (most * 1.1, most / 3, most / 30):
        found = within_loss(menu, target)
        assert found.loss <= target
        assert target > most or within_bytes(HERE, menu, found.size).loss <= target
    asked: list[float] = []

    def measured(types: dict[str, Type]) -> float:  # half as much again as was promised
        loss = sum(c.loss for n, cs in menu.items() for c in cs if c.kind == types[n])
        asked.append(1.5 * loss)
        return asked[-1]

    found = search_loss(HERE, menu, most / 10, measured)
    assert 1.5 * found.loss <= most / 10 < max(asked)
    with pytest.raises(RecipeError, match=r"a mean divergence of 1 nats was reached, not 0\.5"):
        search_loss(HERE, menu, 0.5, lambda _: 1.0)


def test_divergence_is_that_of_the_definition() -> None:
    r = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 5, 30, generator=r, dtype=torch.float64) for _ in range(2)]
    p, q = (x.log_softmax(-1) for x in logits)
    found = between(list(p), list(q))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.kld, expected.flatten())
    assert found.summary()["same_top_token"] == (p.argmax(-1) == q.argmax(-1)).double().mean()
    assert between(list(p), list(p)).summary() == {
        "mean_kld": 0.0, "kld_99": 0.0, "same_top_token": 1.0, "tokens": 10,
    }  # fmt: skip


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    changes = getattr(request, "param", {})
    model = some_model(hidden_size=256, **changes)
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    for file, seeds in (("train", range(20)), ("held-out", range(20, 30))):
        made = [make(random.Random(s)) for make in GENERATE.values() for s in seeds]
        write_conversations(tmp_path / "data" / f"{file}.jsonl", made)
    checkpoint.save(tmp_path / "model", model, some_tokenizer())
    return Job("small", (tmp_path / "model",), tmp_path / "out", tmp_path / "data", 3, print)


FEW = Settings(calibration_tokens=150, probe_tokens=25, measured_tokens=60)


@pytest.mark.parametrize("job", [{}, EXPERTS], ids=["plain", "experts"], indirect=True)
def test_the_stage(job: Job) -> None:
    """The file holds what the figures say, and the core reads it."""
    found = run(job, replace(FEW, mix="q4_k_m", compare=True))
    path = job.output / "model.gguf"
    types = json.loads((job.output / "types.json").read_text())
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert stored == {name: types.get(name, "F32") for name in stored}
    assert set(types) <= set(stored)
    assert found["bytes"] == path.stat().st_size
    assert found["types"] == {k: list(types.values()).count(k) for k in set(types.values())}
    assert types["token_embd.weight"] == "Q6_K"
    assert types["blk.0.ffn_up.weight"] == "Q4_K"
    # 96 columns: no K type.
    assert types["blk.0.ffn_down.weight"] == "Q5_0"
    assert any("blk.2.ffn_down.weight: Q8_0 for Q6_K" in line for line in found["replaced"])
    assert 0 < found["mean_kld"] <= found["kld_99"]
    assert 0.05 < found["same_top_token"] <= 1  # of random weights, all tokens are about as likely
    assert found["without_importance"]["tokens"] == found["tokens"] == 60
    back = dict(_tensors(read_model(path)))
    for name, value in _tensors(checkpoint.load(job.inputs[0]).model):
        assert (back[name] - value).norm() <= 0.12 * value.norm(), name
    ids = [1, 5, 9, 20]
    with torch.no_grad():
        expected = read_model(path)(torch.tensor([ids])).logits[0].numpy()
    # The core rounds activations to eight bits.
    got = Session(path).eval(ids)
    assert ((got - expected) ** 2).sum() <= 1e-2 * (expected**2).sum()
    assert {p.name for p in job.output.iterdir()} == {
        "model.gguf", "types.json", "importance.safetensors",
    }  # fmt: skip


SMALLER = {"num_hidden_layers": 2, "intermediate_size": 256}


@pytest.mark.parametrize("job", [SMALLER], ids=[""], indirect=True)
def test_the_stage_under_a_budget_of_bytes(job: Job) -> None:
    sizes = {}
    for bits in (6.0, 8.0):
        found = run(job, replace(FEW, bits_per_weight=bits))
        assert found["bytes"] * 8 <= bits * found["parameters"]
        assert found["bytes"] * 8 > (bits - 0.6) * found["parameters"]
        sizes[bits] = found
    assert sizes[8.0]["mean_kld"] < sizes[6.0]["mean_kld"]
    small, size = sizes[6.0], sizes[6.0]["bytes"]
    same = run(job, replace(FEW, bytes=size))
    assert (same["bytes"], same["types"]) == (size, small["types"])
    with pytest.raises(RecipeError, match=r"small: the file takes \d+ bytes or more, and may"):
        run(job, replace(FEW, bytes=size // 4))
    # What was there before a failure still is.
    assert (job.output / "model.gguf").stat().st_size == size


@pytest.mark.parametrize("job", [SMALLER], ids=[""], indirect=True)
def test_the_stage_with_a_target_of_divergence(job: Job) -> None:
    coarse, fine = (run(job, replace(FEW, kld=target)) for target in (0.05, 0.005))
    assert 0.005 < coarse["mean_kld"] <= 0.05
    assert fine["mean_kld"] <= 0.005
    assert coarse["bytes"] < fine["bytes"]
    with pytest.raises(RecipeError, match=r"nats was reached, not 1e-12"):
        run(job, replace(FEW, kld=1e-12))


def test_what_is_asked_for_wrongly(tmp_path: Path) -> None:
    job = Job("small", (tmp_path,), tmp_path, tmp_path, 3, print)
    for settings, message in (
        (Settings(mix="q4_k_m", bytes=5), "small: mix and bytes are given. Keep one of them"),
        (Settings(mix="q4_k_xl"), "the mix 'q4_k_xl' is unknown. Take one of: f16, bf16, q8_0"),
        (Settings(bytes=0), "bytes = 0 is no budget"),
        (Settings(kld=float("nan")), "kld = nan is no budget"),
        (Settings(), "holds no model"),
    ):
        with pytest.raises(RecipeError) as caught:
            run(job, settings)
        assert message in str(caught.value)
    with pytest.raises(RecipeError, match="small: is given 0 models"):
        run(replace(job, inputs=()), Settings())
    checkpoint.save(tmp_path, some_model(), some_tokenizer())
    with pytest.raises(RecipeError, match=r"train.jsonl: there is no such data"):
        run(job, Settings())


def test_broken_weights_leave_no_file(tmp_path: Path) -> None:
    model = some_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.inf
    checkpoint.save(tmp_path / "model", model, some_tokenizer())
    job = Job("small", (tmp_path / "model",), tmp_path, tmp_path, 3, print)
    with pytest.raises(RecipeError, match=r"layers.1.mlp.up_proj.weight holds .* not finite"):
        run(job, Settings(importance=False))
    assert not (tmp_path / "model.gguf").exists()
