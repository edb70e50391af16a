"""Experts as deltas: what was trained as a LoRA comes back, what was not is kept whole, and nothing
is lost in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
import torch
from selm_export import checkpoint
from selm_export.compress.deltas import Wish, ensemble
from selm_export.compress.structure import built, changed, parts
from selm_export.data.vocabulary import train_vocabulary
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling.configuration import PROJECTIONS
from selm_export.modeling.file import write_model
from selm_export.stages import delta as stage
from support.compressing import MIXED, VARIANTS, random_documents, some_job
from support.core import Session
from support.oracles import relative_error
from support.selm_models import some_model, some_tokenizer

IDS = torch.arange(7, 60)[None]
DOCUMENTS = random_documents(10, 400)
BASES: dict[str, dict[str, Any]] = {
    name: {**VARIANTS[name], "exit_layers": [1]}
    for name in ("softmax", "performer, gates, norms, exits", "untied, biases, hedgehog", "factors")
}


def copied(model: Any) -> Any:
    return built(changed(model.config), model.state_dict())


@torch.no_grad()
def trained(base: Any, rank: int | None, seed: int, trunk: int = 1, size: float = 0.05) -> Any:
    """A full checkpoint whose projections at or above the trunk changed, by a LoRA of this rank or
    in every direction."""
    expert = copied(base)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    for part in parts(expert):
        for name in PROJECTIONS if part.number >= trunk else ():
            module = part.layer.get_submodule(name)
            if module.factorized:
                continue  # a change of one factor is one of the product, of at most its rank
            rows, columns = module.weight.shape
            change = draw(rows, columns) if rank is None else draw(rows, rank) @ draw(rank, columns)
            module.weight.add_(size * change)
    return expert


def logits(model: Any, expert: str | None = None) -> Any:
    with torch.no_grad():
        return model(IDS, expert=expert).logits


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("variant", BASES)
def test_what_was_a_lora_comes_back(variant: str, whiten: bool) -> None:
    base = some_model(**BASES[variant])
    experts = {f"e{rank}": trained(base, rank, rank) for rank in (2, 4)}
    documents = dict.fromkeys(experts, DOCUMENTS) if whiten else {}
    made = ensemble(base, experts, Wish(trunk_layers=1, rank=4), documents)
    config = made.model.config
    assert (config.expert_kind, config.expert_rank, config.trunk_layers) == ("delta", 4, 1)
    assert config.expert_names == ["e2", "e4"] and made.lost == {"e2": {}, "e4": {}}
    for name, expert in experts.items():
        assert relative_error(logits(made.model, name), logits(expert).numpy()) <= 1e-5
        assert made.whole[name] == pytest.approx(1.0, abs=1e-6)
    assert made.needed["e2"] <= 2 and made.needed["e4"] <= 4
    with torch.no_grad():  # heads that know nothing: the first expert speaks
        assert made.model(IDS).speakers.unique().tolist() == [0]


def test_energies_are_numpys() -> None:
    base = some_model()
    expert = trained(base, None, 3)
    made = ensemble(base, {"a": expert}, Wish(trunk_layers=1, rank=6, energy=0.0))
    assert made.model.config.expert_kind == "delta"
    squares, every = {}, [np.zeros(96)]
    for name, value in base.state_dict().items():
        prefix = name.removesuffix(".weight")
        if prefix in made.energies["a"]:
            change = (expert.state_dict()[name] - value).double().numpy()
            s = np.linalg.svd(change, compute_uv=False) ** 2
            squares[prefix] = s[:6].sum() / s.sum()
            every.append(np.pad(s, (0, 96 - len(s))))
    assert set(squares) == set(made.energies["a"]) and len(squares) == 14
    for prefix, kept in squares.items():
        assert made.energies["a"][prefix] == pytest.approx(kept, rel=1e-5)
    share = np.cumsum(sum(every)) / sum(every).sum()
    assert made.whole["a"] == pytest.approx(share[5], rel=1e-5)
    wished = ensemble(base, {"a": expert}, Wish(trunk_layers=1, rank=6, energy=0.8))
    assert wished.needed["a"] == int((share < 0.8).sum()) + 1


@pytest.mark.parametrize("variant", BASES)
def test_where_rank_is_not_enough_experts_keep_their_layers(variant: str) -> None:
    base = some_model(**BASES[variant])
    experts = {"lora": trained(base, 4, 1), "all": trained(base, None, 2)}
    with torch.no_grad():  # norms and biases have a place there
        for name, weight in experts["all"].named_parameters():
            if ".layers.2." in name and weight.dim() == 1:
                weight.add_(0.1)
    made = ensemble(base, experts, Wish(trunk_layers=1, rank=4))
    assert made.model.config.expert_kind == "full" and made.whole["all"] < 0.9
    assert made.lost == {"lora": {}, "all": {}}
    for name, expert in experts.items():
        assert torch.equal(logits(made.model, name), logits(expert))


def change(name: str, by: float) -> Callable[[Any], None]:
    def apply(expert: Any) -> None:
        with torch.no_grad():
            weight = expert.get_parameter(name)
            weight.add_(by * weight.norm() / weight.numel() ** 0.5)

    return apply


@pytest.mark.parametrize("kind", ["delta", "full"])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight", "model.layers.2.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight", "model.layers.1.self_attn.far_gain",
        "model.exits.1.weight", "lm_head.weight",
    ],
)  # fmt: skip
def test_nothing_is_lost_in_silence(name: str, kind: str) -> None:
    base = some_model(
        attention_bias=True, exit_layers=[1], tie_word_embeddings=False,
        attention_kinds=["softmax", "performer", "softmax"],
    )  # fmt: skip
    expert = trained(base, 2 if kind == "delta" else None, 5)
    change(name, 0.25)(expert)
    made = ensemble(base, {"a": expert}, Wish(trunk_layers=1, rank=2))
    assert made.model.config.expert_kind == kind
    own = kind == "full" and (".layers.2." in name or ".layers.1." in name)
    assert list(made.lost["a"]) == ([] if own else [name])
    if not own:
        before, after = (m.get_parameter(name).detach().double() for m in (base, expert))
        distance = float((after - before).norm() / max(before.norm(), after.norm()))
        assert made.most_lost() == ("a", name, pytest.approx(distance, rel=1e-6))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    base = some_model(attention_kinds=MIXED)
    models = {"base": base, "medical": trained(base, 2, 1), "math": trained(base, 3, 2)}
    for name, model in models.items():
        checkpoint.save(tmp_path / name, model, some_tokenizer())
    return tmp_path / "base", tmp_path / "medical", tmp_path / "math"


def test_the_stage_and_the_core(folders: tuple[Path, ...], tmp_path: Path) -> None:
    job = some_job(tmp_path, *folders)
    figures = stage.run(job, stage.Settings(trunk_layers=1, rank=4, whiten=True, calibration=4))
    assert json.loads(json.dumps(figures))["kind"] == "delta"
    assert figures["energy"]["math"] == pytest.approx(1.0, abs=1e-5)
    made = checkpoint.load(job.output)
    assert made.model.config.expert_names == ["medical", "math"]
    write_model(tmp_path / "m.gguf", made.model, made.tokenizer, Label("Test"))
    for name in ("medical", "math"):
        expected = logits(checkpoint.load(tmp_path / name).model)[0].numpy()
        session = Session(tmp_path / "m.gguf")
        session.core.set_expert(name)
        assert relative_error(session.eval(IDS[0].tolist()), expected) <= 1e-4


def test_the_stage_falls_back_and_says_so(folders: tuple[Path, ...], tmp_path: Path) -> None:
    base, medical, _ = folders
    expert = trained(checkpoint.load(base).model, None, 1, trunk=2)
    checkpoint.save(medical, expert, some_tokenizer())
    said: list[str] = []
    job = some_job(tmp_path, base, base, medical)
    job = type(job)(**{**vars(job), "say": said.append})
    settings = stage.Settings(trunk_layers=2, names=("general", "medical"), rank=4)
    figures = stage.run(job, settings)
    assert figures["kind"] == "full" and figures["rank"] is None
    assert figures["energy"]["general"] == 1.0 and figures["energy"]["medical"] < 0.9
    needed = figures["rank_for_the_energy_wished"]["medical"]
    assert len(said) == 1 and f"rank {needed} would do" in said[0] and "medical" in said[0]


def test_the_stage_refuses_what_would_be_lost(folders: tuple[Path, ...], tmp_path: Path) -> None:
    _, medical, _ = folders
    expert = checkpoint.load(medical).model
    change("model.norm.weight", 0.25)(expert)
    checkpoint.save(medical, expert, some_tokenizer())
    job = some_job(tmp_path, *folders)
    with pytest.raises(RecipeError, match=r"medical changed model.norm.weight by 0.2.*tolerance"):
        stage.run(job, stage.Settings(trunk_layers=1, rank=4))
    assert not [*job.output.iterdir()]
    figures = stage.run(job, stage.Settings(trunk_layers=1, rank=4, tolerance=0.5))
    assert 0.2 < figures["lost"]["medical"]["model.norm.weight"] < 0.3


def test_what_does_not_go_together_is_told(folders: tuple[Path, ...], tmp_path: Path) -> None:
    base, medical, math = folders
    job = some_job(tmp_path, *folders)

    def refused(told: str, **settings: Any) -> None:
        with pytest.raises(RecipeError, match=told):
            stage.run(job, stage.Settings(**{"trunk_layers": 1, **settings}))

    refused("2 experts have the names a", names=("a",))
    refused("2 experts have the names a, a", names=("a", "a"))
    refused("a trunk of 3 layers of 3", trunk_layers=3)
    other = train_vocabulary(["what is not said elsewhere: zebra quartz"] * 9, 400)
    checkpoint.save(math, checkpoint.load(math).model, other)
    refused(r"math: its tokenizer is not that of .*base: token \d+ is '.*' here and '.*' there")
    checkpoint.save(math, some_model(intermediate_size=64), some_tokenizer())
    refused(r"base and .*math: have different shapes: intermediate_size is 96 in the one, 64 in")
    broken = checkpoint.load(medical).model
    with torch.no_grad():
        broken.model.layers[2].mlp.up_proj.weight[3, 4] = torch.nan
    checkpoint.save(math, broken, some_tokenizer())
    refused(r"math.*: the tensor model.layers.2.mlp.up_proj.weight holds a value that is not")
    made = some_model(expert_names=["a"], trunk_layers=1)
    checkpoint.save(math, made, some_tokenizer())
    refused("math: is an ensemble already")
    job = some_job(tmp_path, base, name="alone")
    refused("a base alone")
