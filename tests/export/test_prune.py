"""Pruning: what carries nothing goes without a trace, what matters least goes first, and never
further than the budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
import torch
from selm_export import checkpoint
from selm_export.compress.calibration import Reference
from selm_export.compress.depth import influences, least_influential, shortened
from selm_export.compress.ladder import Goal
from selm_export.compress.prune import Cutter, Shape, Wish, prune
from selm_export.compress.structure import parameters, parts
from selm_export.compress.width import Width, importance, narrowed
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling.file import read_model, write_model
from selm_export.stages import prune as stage
from support.compressing import (
    VARIANTS,
    all_logits,
    bundled,
    hollow,
    mute,
    random_documents,
    silence,
    some_job,
    told_documents,
)
from support.core import Session
from support.oracles import relative_error
from support.selm_models import some_model, some_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

DOCUMENTS = random_documents(12, 400)
IDS = torch.tensor([DOCUMENTS[0].ids + DOCUMENTS[1].ids])
WIDTH = Width(96, 4, 2, 64)


def doubles(**changes: Any) -> Any:
    return some_model(**changes).double()


def assert_same(small: Any, model: Any) -> None:
    for got, expected in zip(all_logits(small, IDS), all_logits(model, IDS), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_silent_neurons_heads_and_channels_go_without_a_trace(variant: str) -> None:
    model = doubles(**VARIANTS[variant])
    rng = np.random.default_rng(4)
    for part in parts(model):  # others in each layer
        gone = torch.tensor(rng.permutation(96)[:40])
        silence(model, part.prefix, "mlp.down_proj", gone)
        heads = torch.tensor([int(rng.integers(0, 2)), int(rng.integers(2, 4))])  # one per group
        columns = (heads[:, None] * 16 + torch.arange(16)).flatten()
        silence(model, part.prefix, "self_attn.o_proj", columns)
    mute(model, torch.tensor(rng.permutation(64)[:20]))
    found = importance(model, DOCUMENTS)
    small = narrowed(model, found, Width(56, 2, 2, 44))
    assert small.config.hidden_size == 44 and small.config.head_dim == 16
    assert parameters(small) < parameters(model)
    assert_same(small, model)


@pytest.mark.parametrize("variant", ["softmax", "performer, gates, norms, exits", "full experts"])
def test_a_silent_group_goes_without_a_trace(variant: str) -> None:
    model = doubles(**VARIANTS[variant])
    for number, part in enumerate(parts(model)):
        silence(model, part.prefix, "self_attn.o_proj", torch.arange(32) + 32 * (number % 2))
    small = narrowed(model, importance(model, DOCUMENTS), replace(WIDTH, heads=2, kv_heads=1))
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, 1)
    assert_same(small, model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_that_adds_nothing_goes_without_a_trace(variant: str) -> None:
    model = doubles(**{**VARIANTS[variant], "num_hidden_layers": 3})
    gone = 1 if "full" in variant or "delta" in variant else 0
    hollow(model, gone)
    found = influences(model, DOCUMENTS)
    assert found[gone] == pytest.approx(0.0, abs=1e-12)
    assert min(n for i, n in enumerate(found) if i != gone) > 1e-6
    assert least_influential(model, DOCUMENTS, 1) == [gone]
    small = shortened(model, [gone])
    kinds = model.config.attention_kinds
    assert small.config.attention_kinds == kinds[:gone] + kinds[gone + 1 :]
    with torch.no_grad():
        for name in [*model.config.expert_names] or [None]:
            got, expected = small(IDS, expert=name).logits, model(IDS, expert=name).logits
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_exits_ranks_and_trunk_follow_a_layer_that_goes() -> None:
    model = doubles(
        num_hidden_layers=5, exit_layers=[1, 2, 3], expert_names=["a"], trunk_layers=3,
        ranks={"layers.1.mlp.up_proj": 8, "layers.4.mlp.up_proj": 6, "mlp.down_proj": 4},
    )  # fmt: skip
    small = shortened(model, [1]).config
    assert (small.trunk_layers, small.exit_layers) == (2, [1, 2])  # after 2 is after 1 now
    assert small.ranks == {"layers.3.mlp.up_proj": 6, "mlp.down_proj": 4}
    kept = shortened(model, [1]).model.exits
    assert torch.equal(kept["1"].weight, model.model.exits["1"].weight)
    assert torch.equal(kept["2"].weight, model.model.exits["3"].weight)
    assert shortened(model, [0]).config.exit_layers == [1, 2]  # none before the first layer
    assert sorted(least_influential(model, DOCUMENTS, 9)) != [0, 1, 2, 3, 4]
    assert len(least_influential(model, DOCUMENTS, 9)) == 3  # one of the trunk, one above it


def llama_of(model: Any) -> Any:
    shape = model.config
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=shape.rms_norm_eps,
        rope_theta=shape.rope_theta, tie_word_embeddings=True,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).double()
    llama.load_state_dict(model.state_dict(), strict=True)
    return llama.eval()


def test_influence_and_importance_are_those_of_transformers_model_in_numpy() -> None:
    """One document at a time there, side by side with padding here; its norms are in float32."""
    model = doubles()
    llama, layer = llama_of(model), 1
    heads, neurons, cosines, channels = [], [], [], []
    block = llama.model.layers[layer]
    seen: dict[str, Any] = {}
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        block.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0][0].numpy()})
        )
    norms = [block.input_layernorm, block.post_attention_layernorm, llama.model.norm]
    for number, norm in enumerate(norms):
        norm.register_forward_hook(
            lambda _m, _g, out, number=number: seen.update({f"norm {number}": out[0].numpy()})
        )
    o = block.self_attn.o_proj.weight.detach().numpy().reshape(64, 4, 16)
    down = block.mlp.down_proj.weight.detach().numpy()
    for document in DOCUMENTS:
        with torch.no_grad():
            out = llama(torch.tensor([document.ids]), output_hidden_states=True)
        before, after = (out.hidden_states[i][0].numpy() for i in (layer, layer + 1))
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        cosines.append(1 - (before * after).sum(1) / lengths)
        x = seen["self_attn.o_proj"].reshape(-1, 4, 16)
        heads.append(np.linalg.norm(np.einsum("whi,nhi->nhw", o, x), axis=-1))
        neurons.append(np.abs(seen["mlp.down_proj"]) * np.linalg.norm(down, axis=0))
        channels.append(sum(np.abs(seen[f"norm {n}"]) for n in range(3)))
    found = importance(model, DOCUMENTS)
    prefix = f"model.layers.{layer}"
    np.testing.assert_allclose(found.heads[prefix], np.concatenate(heads).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.neurons[prefix], np.concatenate(neurons).mean(0), rtol=1e-6)
    assert influences(model, DOCUMENTS)[layer] == pytest.approx(np.concatenate(cosines).mean())
    assert bool((found.channels.numpy() > np.concatenate(channels).mean(0)).all())  # more norms


def test_divergence_is_that_of_numpy_one_document_at_a_time() -> None:
    model, other = doubles(), doubles(initializer_range=0.21)
    found = Reference(model, DOCUMENTS, tokens=30).divergence(other)
    each, same = [], []
    for document in DOCUMENTS:
        ids, reply = document.ids[:30], document.reply[:30]
        with torch.no_grad():
            a, b = (m(torch.tensor([ids])).logits[0].numpy() for m in (model, other))
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
        kld = (np.exp(p) * (p - q)).sum(-1)
        counted = np.array(reply[1:])
        each.append(kld[:-1][counted])
        same.append((a.argmax(-1) == b.argmax(-1))[:-1][counted])
    values = np.concatenate(each)
    assert found.positions == len(values)
    assert found.mean == pytest.approx(values.mean(), rel=1e-9)
    assert found.at_99 == pytest.approx(np.quantile(values, 0.99), rel=1e-9)
    assert found.same_top == pytest.approx(np.concatenate(same).mean())


def test_what_matters_beats_chance_on_the_bundled_model() -> None:
    model, _ = bundled()
    found = importance(model, told_documents(15, 1))
    reference = Reference(model, told_documents(6, 2))
    before = Width.of(model.config)
    for after in (replace(before, feed_forward=576), replace(before, heads=6)):
        chosen = reference.divergence(narrowed(model, found, after)).mean
        for seed in range(2):
            torch.manual_seed(seed)
            by_lot = replace(
                found,
                heads={k: torch.rand(len(v)) for k, v in found.heads.items()},
                neurons={k: torch.rand(len(v)) for k, v in found.neurons.items()},
            )
            assert chosen < 0.8 * reference.divergence(narrowed(model, by_lot, after)).mean


def test_a_shape_is_cut_at_once_and_runs_in_the_core(tmp_path: Path) -> None:
    model = some_model(**VARIANTS["performer, gates, norms, exits"])
    wish = Wish(feed_forward=64, heads=2, kv_heads=1, width=32, layers=2)
    made = prune(model, wish, DOCUMENTS[:8], DOCUMENTS[8:])
    assert made.reached and made.taken == 1
    assert Shape.of(made.model.config) == Shape(64, 2, 1, 32, 2)
    assert made.ladder[0].divergence.mean == pytest.approx(0.0, abs=1e-6)
    assert made.ladder[1].parameters == parameters(made.model)
    write_model(tmp_path / "m.gguf", made.model, some_tokenizer(), Label("Test"))
    assert Shape.of(read_model(tmp_path / "m.gguf").config) == Shape(64, 2, 1, 32, 2)
    with torch.no_grad():
        expected = made.model(IDS).logits[0].numpy()
    assert relative_error(Session(tmp_path / "m.gguf").eval(IDS[0].tolist()), expected) <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_without_making_the_model(variant: str) -> None:
    model = some_model(**VARIANTS[variant])
    wish = Wish(layers=2)
    cutter = Cutter(model, DOCUMENTS, wish, wish.least(model.config))
    whole = Shape(96, 4, 2, 64, 3)
    for shape in (whole, Shape(32, 2, 1, 64, 3), Shape(64, 2, 2, 32, 3), Shape(96, 4, 2, 64, 2)):
        assert cutter.count(shape) == parameters(cutter.cut(shape))


def test_a_size_is_reached_step_by_step() -> None:
    model = some_model()
    wish = Wish(goal=Goal(keep=0.7), multiple_of=8, step=0.1)
    said: list[str] = []
    made = prune(model, wish, DOCUMENTS[:8], DOCUMENTS[8:], say=said.append)
    sizes = [rung.parameters for rung in made.ladder]
    assert made.reached and sizes == sorted(sizes, reverse=True) and len(said) == len(sizes) - 1
    assert 0.6 * sizes[0] < parameters(made.model) <= 0.7 * sizes[0]
    shape = Shape.of(made.model.config)
    assert shape.feed_forward % 8 == 0 and shape.width % 8 == 0
    assert made.to_dict()["shape"] == vars(shape)
    least = Wish(feed_forward=96, width=64, heads=4, kv_heads=2, goal=Goal(keep=0.1), multiple_of=8)
    only_layers = prune(model, least, DOCUMENTS[:8], DOCUMENTS[8:])
    assert not only_layers.reached and Shape.of(only_layers.model.config) == Shape(96, 4, 2, 64, 1)


def test_a_shape_is_reached_within_a_budget() -> None:
    """Also where what lies between does not fit the blocks: 3 heads of 16 are no multiple of 32."""
    model = some_model(num_attention_heads=6, num_key_value_heads=3, head_dim=16)
    wish = Wish(heads=2, kv_heads=2, feed_forward=64, goal=Goal(kld=1e9))
    made = prune(model, wish, DOCUMENTS[:8], DOCUMENTS[8:])
    assert made.reached and Shape.of(made.model.config) == Shape(64, 2, 2, 64, 3)
    steps = [rung.what["shape"]["heads"] for rung in made.ladder]
    assert steps == sorted(steps, reverse=True) and all(n * 16 % 32 == 0 for n in steps)


@pytest.mark.parametrize(
    ("wish", "least"),
    [
        (Wish(), (96, 4, 2, 64, 3)),
        (Wish(heads=2), (96, 2, 2, 64, 3)),
        (Wish(kv_heads=1), (96, 2, 1, 64, 3)),
        (Wish(goal=Goal(keep=0.5)), (32, 1, 1, 32, 1)),
        (Wish(heads=3, width=64, goal=Goal(keep=0.5)), (32, 4, 2, 64, 1)),
        (Wish(kv_heads=2, layers=2, goal=Goal(bytes=9)), (32, 2, 2, 32, 2)),
    ],
)
def test_what_is_not_named_stays_or_has_no_least(wish: Wish, least: tuple[int, ...]) -> None:
    assert wish.least(some_model().config) == Shape(*least)


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    model = some_model()
    goal = Goal(bytes=60_000, stored_as="Q8_0")
    made = prune(model, Wish(goal=goal, step=0.2), DOCUMENTS[:8], DOCUMENTS[8:])
    path = tmp_path / "m.gguf"
    write_model(path, made.model, some_tokenizer(), Label("Test"), goal.kind)
    import gguf

    size = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    assert size == made.ladder[made.taken].bytes <= 60_000 < made.ladder[0].bytes


def test_never_below_the_budget() -> None:
    model = some_model()
    free = prune(
        model, Wish(goal=Goal(keep=0.5), multiple_of=8), DOCUMENTS[:8], DOCUMENTS[8:]
    ).ladder
    budget = (free[1].divergence.mean + free[2].divergence.mean) / 2
    wish = Wish(goal=Goal(keep=0.5, kld=budget), multiple_of=8)
    made = prune(model, wish, DOCUMENTS[:8], DOCUMENTS[8:])
    held = Reference(model, DOCUMENTS[8:]).divergence(made.model).mean
    assert held <= budget < made.ladder[-1].divergence.mean
    assert not made.reached and made.taken == len(made.ladder) - 2
    none = prune(
        model, replace(wish, goal=Goal(keep=0.5, kld=1e-9)), DOCUMENTS[:8], DOCUMENTS[8:]
    )  # fmt: skip
    assert none.model is model and none.taken == 0


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (Wish(feed_forward=100), "the model has 96"),
        (Wish(feed_forward=50), "no multiple of 32"),
        (Wish(heads=3, kv_heads=2), "do not share"),
        (Wish(heads=3, kv_heads=1), "has 2 for each"),
        (Wish(layers=4), "the model has 3"),
        (Wish(heads=3, multiple_of=1), "do not share"),
    ],
)
def test_shapes_that_cannot_be_are_told(wish: Wish, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        prune(some_model(), wish, DOCUMENTS, DOCUMENTS)


@pytest.mark.parametrize(
    ("goal", "told"),
    [
        ({"keep": 0.0}, "a share above 0"),
        ({"keep": 1.5}, "a share above 0"),
        ({"bytes": -1}, "a number of bytes"),
        ({"kld": 0.0}, "a divergence above 0"),
        ({"kld": float("nan")}, "a divergence above 0"),
        ({"stored_as": "Q9"}, "'Q9' is none of F32, F16"),
    ],
)
def test_goals_that_cannot_be_are_told(goal: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Goal(**goal)


def test_the_stage(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", some_model(), some_tokenizer())
    job = some_job(tmp_path, tmp_path / "model")
    figures = stage.run(job, stage.Settings(feed_forward=64, layers=2, held_out=4, tokens=64))
    assert json.loads(json.dumps(figures))["shape"]["layers"] == 2
    small = checkpoint.load(job.output)
    assert parameters(small.model) == figures["parameters"] < figures["parameters_before"]
    assert figures["kld_mean_before_healing"] == figures["ladder"][1]["kld_mean"] > 0
    assert small.tokenizer.to_str() == some_tokenizer().to_str()


def test_a_stage_that_cannot_says_why_and_writes_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", some_model(), some_tokenizer())
    job = some_job(tmp_path, tmp_path / "model", name="narrow")
    with pytest.raises(RecipeError, match=r"model: the stage narrow asks.*the model has 96"):
        stage.run(job, stage.Settings(feed_forward=1000))
    broken = some_model()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    checkpoint.save(tmp_path / "model", broken, some_tokenizer())
    with pytest.raises(RecipeError, match=r"up_proj.weight holds a value that is not finite"):
        stage.run(job, stage.Settings(feed_forward=64, tokens=64))
    checkpoint.save(tmp_path / "model", some_model(), some_tokenizer())
    (job.data / "train.jsonl").write_text("", "utf-8")
    with pytest.raises(RecipeError, match=r"train.jsonl: holds no documents"):
        stage.run(job, stage.Settings(feed_forward=64))
    (job.data / "train.jsonl").unlink()
    with pytest.raises(RecipeError, match=r"train.jsonl: there is no such file of prepared data"):
        stage.run(job, stage.Settings(feed_forward=64))
    assert not [*job.output.iterdir()]
