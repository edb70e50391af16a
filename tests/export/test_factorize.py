"""Factors of low rank: what truncation loses is what numpy says, and ranks go where they cost
least."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
import torch
from selm_export import checkpoint
from selm_export.compress import lowrank
from selm_export.compress.calibration import Reference
from selm_export.compress.ladder import Goal
from selm_export.compress.lowrank import Wish, choose, factorize, factorized, site, sites, weighed
from selm_export.compress.spectra import Spectrum, grams, root, spectrum
from selm_export.compress.structure import built, changed, dense, parameters, parts
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling.file import read_model, write_model
from selm_export.stages import factorize as stage
from support.compressing import (
    VARIANTS,
    all_logits,
    bundled,
    random_documents,
    some_job,
    told_documents,
)
from support.core import Session
from support.oracles import relative_error
from support.selm_models import some_model, some_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

DOCUMENTS = random_documents(12, 400)
IDS = torch.tensor([DOCUMENTS[0].ids + DOCUMENTS[1].ids])
RNG = np.random.default_rng(7)
WEIGHT = RNG.standard_normal((40, 24))
INPUTS = RNG.standard_normal((24, 300)) * np.geomspace(1.0, 0.01, 24)[:, None]
INPUTS = np.linalg.qr(RNG.standard_normal((24, 24)))[0] @ INPUTS


def test_what_truncation_loses_is_what_numpy_says() -> None:
    gram = torch.tensor(INPUTS @ INPUTS.T)
    own = spectrum(torch.tensor(WEIGHT), root(gram, ridge=0.0))
    np.testing.assert_allclose(
        own.values, np.linalg.svd(WEIGHT @ INPUTS, compute_uv=False)[:24], rtol=1e-7
    )
    for rank in (1, 7, 23, 24):
        a, b = (x.numpy() for x in own.factors(rank))
        assert a.shape == (rank, 24) and b.shape == (40, rank)
        error = np.linalg.norm((WEIGHT - b @ a) @ INPUTS) ** 2
        dropped = float((own.values[rank:] ** 2).sum())
        assert error == pytest.approx(dropped, rel=1e-6, abs=1e-12)
        assert float(own.lost()[rank]) == pytest.approx(dropped, rel=1e-9, abs=1e-15)
        kept = 1 - dropped / np.linalg.norm(WEIGHT @ INPUTS) ** 2
        assert own.kept(rank) == pytest.approx(kept)


def test_plain_truncation_is_numpys_and_loses_more_of_the_output() -> None:
    plain = spectrum(torch.tensor(WEIGHT))
    whitened = spectrum(torch.tensor(WEIGHT), root(torch.tensor(INPUTS @ INPUTS.T)))
    u, s, v = np.linalg.svd(WEIGHT, full_matrices=False)
    for rank in (2, 6, 12):
        a, b = (x.numpy() for x in plain.factors(rank))
        np.testing.assert_allclose(b @ a, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-12)
        errors = []
        for own in (plain, whitened):
            a, b = (x.numpy() for x in own.factors(rank))
            errors.append(np.linalg.norm((WEIGHT - b @ a) @ INPUTS))
        assert errors[1] < 0.8 * errors[0]


def test_inputs_that_are_never_there_do_no_harm() -> None:
    gram = INPUTS @ INPUTS.T
    gram[5], gram[:, 5] = 0.0, 0.0
    own = spectrum(torch.tensor(WEIGHT), root(torch.tensor(gram)))
    a, b = own.factors(24)
    torch.testing.assert_close(b @ a, torch.tensor(WEIGHT), atol=1e-7, rtol=1e-7)
    nothing = spectrum(torch.tensor(WEIGHT), root(torch.zeros(24, 24, dtype=torch.float64)))
    assert all(bool(x.isfinite().all()) for x in nothing.factors(5))
    assert Spectrum(torch.zeros(3), torch.eye(3), torch.eye(3)).kept(1) == 1.0


def test_inputs_are_those_of_transformers_model_one_document_at_a_time() -> None:
    model = some_model().double()
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=model.config.rms_norm_eps,
        rope_theta=model.config.rope_theta, tie_word_embeddings=True,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).double().eval()
    llama.load_state_dict(model.state_dict(), strict=True)
    expected: dict[str, Any] = {}
    names = [n for n, m in llama.named_modules() if n.startswith("model.layers.1.") and "proj" in n]

    def watch(name: str) -> Any:
        def hook(_: Any, given: Any) -> None:
            x = given[0][0].numpy()
            expected[name] = expected.get(name, 0) + x.T @ x

        return hook

    for name in names:
        llama.get_submodule(name).register_forward_pre_hook(watch(name))
    for document in DOCUMENTS:
        with torch.no_grad():
            llama(torch.tensor([document.ids]))
    found = grams(model, DOCUMENTS, [1])
    assert sorted(found) == sorted(names)
    for name in names:
        limit = 1e-6 * expected[name].max()  # its norms are in float32
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=0, atol=limit)


def some_site(key: str, rows: int, columns: int, seed: int) -> lowrank.Site:
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64) * torch.linspace(1, 0, columns)
    return site(key, {key: spectrum(weight)}, 1)


def test_chosen_ranks_are_the_best_of_all_that_save_as_much() -> None:
    found = [some_site("a", 12, 9, 1), some_site("b", 6, 14, 2), some_site("c", 10, 10, 3)]
    every = [
        (
            sum(s.sizes[0] - s.sizes[c] for s, c in zip(found, chosen, strict=True)),
            sum(s.lost[c] for s, c in zip(found, chosen, strict=True)),
        )
        for chosen in itertools.product(*(range(len(s.choices)) for s in found))
    ]
    edges = sorted(
        (e for n, s in enumerate(found) for e in lowrank.hull(s, n)), key=lambda e: e.price
    )
    save = 0
    for edge in edges:
        save += found[edge.site].sizes[edge.start] - found[edge.site].sizes[edge.end]
        chosen = choose(found, save)
        lost = sum(s.lost[c] for s, c in zip(found, chosen, strict=True))
        assert lost == pytest.approx(min(other for saved, other in every if saved >= save))
    for wanted in range(1, save, 7):
        chosen = choose(found, wanted)
        assert sum(s.sizes[0] - s.sizes[c] for s, c in zip(found, chosen, strict=True)) >= wanted
    assert choose(found, 0) == [0, 0, 0]
    assert choose(found, 10**9) == choose(found, save)


def test_a_matrix_that_would_save_nothing_stays_whole() -> None:
    own = some_site("a", 8, 8, 1)
    assert own.choices == [0, 3, 2, 1] and own.sizes == [64, 48, 32, 16]
    assert site("a", own.spectra, 4).choices == [0]
    assert choose([site("a", own.spectra, 4)], 10) == [0]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "factors"])
def test_matrices_of_low_rank_come_back_exactly(variant: str) -> None:
    """Biases, deltas and experts' own layers included."""
    model = some_model(**VARIANTS[variant]).double()
    ranks = {}
    with torch.no_grad():
        for part in parts(model):
            for name, rank in (("mlp.up_proj", 5 + part.number), ("self_attn.q_proj", 9)):
                weight = part.layer.get_submodule(name).weight
                left, right = torch.randn(len(weight), rank), torch.randn(rank, weight.shape[1])
                weight.copy_(0.1 * left.double() @ right.double())
                ranks[f"layers.{part.number}.{name}"] = rank
    found = sites(model, DOCUMENTS, Wish(multiple_of=1), lambda _: None)
    chosen = [s.choices.index(ranks.get(s.key, 0)) for s in found]
    made = factorized(model, found, chosen)
    assert made.config.ranks == ranks and parameters(made) < parameters(model)
    for got, expected in zip(all_logits(made, IDS), all_logits(model, IDS), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-7)


def test_a_matrix_weighs_what_its_loss_means() -> None:
    """Measured as on a model made anew; the model itself is left as it was."""
    model = some_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = Reference(model, DOCUMENTS)
    found = sites(model, DOCUMENTS, Wish(multiple_of=4), lambda _: None)
    number = next(i for i, s in enumerate(found) if s.key == "layers.1.mlp.down_proj")
    own = weighed(model, found, reference)[number]
    chosen = [0] * len(found)
    chosen[number] = len(own.choices) // 2
    nats = reference.divergence(factorized(model, found, chosen)).mean
    assert own.weight * own.lost[chosen[number]] == pytest.approx(nats, rel=1e-3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_whitening_loses_less_on_the_bundled_model() -> None:
    model, _ = bundled()
    names = [f"model.layers.1.{part}" for part in ("mlp.up_proj", "mlp.gate_proj")]
    inputs = grams(model, told_documents(15, 1), [1])
    reference = Reference(model, told_documents(6, 2))
    means = []
    for whiten in (True, False):
        weights, ranks = dict(model.state_dict()), {}
        for name in names:
            weight = weights.pop(f"{name}.weight")
            own = spectrum(weight, root(inputs[name]) if whiten else None)
            a, b = own.factors(96)
            weights |= {f"{name}.lora_a.weight": a, f"{name}.lora_b.weight": b}
            ranks[name.removeprefix("model.")] = 96
        made = built(changed(model.config, ranks=ranks), weights)
        means.append(reference.divergence(made).mean)
    assert means[0] < 0.5 * means[1]


def test_a_size_is_reached_and_runs_in_the_core(tmp_path: Path) -> None:
    model = some_model(**VARIANTS["performer, gates, norms, exits"])
    wish = Wish(Goal(keep=0.8), multiple_of=4)
    made = factorize(model, wish, DOCUMENTS[:8], DOCUMENTS[8:])
    figures = made.to_dict()
    assert made.reached and len(made.ladder) == 2
    assert 0.78 * parameters(model) < parameters(made.model) <= 0.8 * parameters(model)
    assert figures["ranks"] == made.model.config.ranks and len({*figures["ranks"].values()}) > 1
    assert all(rank % 4 == 0 for rank in figures["ranks"].values())
    assert set(figures["lost"]) == set(figures["ranks"])
    write_model(tmp_path / "m.gguf", made.model, some_tokenizer(), Label("Test"))
    assert read_model(tmp_path / "m.gguf").config.ranks == made.model.config.ranks
    with torch.no_grad():
        expected = made.model(IDS).logits[0].numpy()
    assert relative_error(Session(tmp_path / "m.gguf").eval(IDS[0].tolist()), expected) <= 1e-4
    again = factorize(made.model, Wish(Goal(keep=0.9), multiple_of=4), DOCUMENTS, DOCUMENTS)
    kept = {k: v for k, v in again.model.config.ranks.items() if k in figures["ranks"]}
    assert kept == figures["ranks"] and again.reached


def test_never_below_the_budget() -> None:
    model = some_model()
    free = factorize(model, Wish(Goal(keep=0.7, kld=1e9), 4), DOCUMENTS[:8], DOCUMENTS[8:]).ladder
    assert len(free) == 7  # a step saves a twentieth
    budget = (free[2].divergence.mean + free[3].divergence.mean) / 2
    made = factorize(model, Wish(Goal(keep=0.7, kld=budget), 4), DOCUMENTS[:8], DOCUMENTS[8:])
    assert made.taken == 2 and not made.reached
    assert made.ladder[2].divergence.mean <= budget < made.ladder[3].divergence.mean
    most = factorize(model, Wish(Goal(keep=0.01), 4), DOCUMENTS[:8], DOCUMENTS[8:])
    assert not most.reached and most.taken == 1  # embedding and norms stay
    assert {dense(p.layer.mlp.up_proj).shape for p in parts(most.model)} == {(96, 64)}


def test_bytes_are_asked_for() -> None:
    model = some_model()
    most = Goal(bytes=200_000, stored_as="F16")
    made = factorize(model, Wish(most, 4), DOCUMENTS[:8], DOCUMENTS[8:])
    assert made.ladder[0].bytes > 200_000 or not made.taken
    small = Goal(bytes=int(0.8 * made.ladder[0].bytes), stored_as="F16")
    made = factorize(model, Wish(small, 4), DOCUMENTS[:8], DOCUMENTS[8:])
    assert made.reached and most.size(made.model) == made.ladder[-1].bytes <= small.bytes


def test_the_stage(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model", some_model(), some_tokenizer())
    job = some_job(tmp_path, tmp_path / "model")
    figures = stage.run(job, stage.Settings(keep=0.85, multiple_of=8, held_out=4, tokens=64))
    assert json.loads(json.dumps(figures))["ranks"] == figures["ranks"]
    small = checkpoint.load(job.output).model
    assert parameters(small) == figures["parameters"] <= 0.85 * figures["parameters_before"]
    assert figures["kld_mean_before_healing"] > 0 and figures["reached"]
    (job.data / "held-out.jsonl").unlink()
    with pytest.raises(RecipeError, match=r"held-out.jsonl: there is no such"):
        stage.run(job, stage.Settings())
