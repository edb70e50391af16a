"""The network, the optimiser and the loop: equal to known implementations, exact to resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
pytest.importorskip("numpy")

import numpy as np
import torch
from selm_export.data.packing import Batch
from selm_export.errors import RecipeError
from selm_export.network import Network, Shape, initialise
from selm_export.optimise import orthogonalise
from selm_export.train import Budget, Phase, Settings, Trainer, load, load_network, rate_factor

SMALL = Shape(vocab=96, width=32, layers=2, heads=4, kv_heads=2, feed_forward=48, context=64)
SETTINGS = Settings(
    shape=SMALL, phases=(Phase(0.5, {"a": 1.0}, dropout=0.1), Phase(1.0, {"a": 1.0})),
    micro_batches=2, warmup_steps=2, fast=False, seed=5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_network(shape: Shape = SMALL, seed: int = 1) -> Network:
    network = Network(shape)
    initialise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # biases and norms start trivial; here they must show
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.eval()


def batches_of(phase: Phase, number: int) -> Iterator[Batch]:
    r = np.random.default_rng(100 + number)
    while True:
        ids = r.integers(0, SMALL.vocab, (2, 17))
        documents = np.repeat(np.arange(2), 8)[None].repeat(2, 0)
        positions = r.integers(0, 32, 12)
        yield Batch(
            ids[:, :-1].copy(), documents, positions, ids[:, 1:].reshape(-1)[positions],
            np.ones(12, dtype=np.float32),
        )  # fmt: skip


def test_logits_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    network = random_network()
    config = transformers.Qwen2Config(
        vocab_size=SMALL.vocab, hidden_size=SMALL.width, intermediate_size=SMALL.feed_forward,
        num_hidden_layers=SMALL.layers, num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads, max_position_embeddings=SMALL.context,
        rope_theta=SMALL.rope_base, rms_norm_eps=SMALL.norm_epsilon, tie_word_embeddings=True,
    )  # fmt: skip
    other = transformers.Qwen2ForCausalLM(config).eval()
    missing, unexpected = other.load_state_dict(network.state_dict(), strict=False)
    assert missing == ["lm_head.weight"]  # tied to the embedding
    assert not unexpected
    ids = torch.randint(0, SMALL.vocab, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(network(ids), other(ids).logits, atol=2e-5, rtol=1e-4)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    network = random_network()
    ids = torch.randint(0, SMALL.vocab, (1, 20), generator=torch.Generator().manual_seed(3))
    documents = torch.tensor([[0] * 12 + [1] * 8])
    with torch.no_grad():
        packed, alone = network(ids, documents), network(ids[:, 12:])
    # Positions are relative, so a document may begin anywhere in its row.
    assert torch.allclose(packed[:, 12:], alone, atol=1e-5)


def test_loss_is_the_weighted_cross_entropy_at_the_positions() -> None:
    network = random_network()
    batch = next(batches_of(SETTINGS.phases[0], 0))
    weights = np.linspace(0.1, 1.0, 12).astype(np.float32)
    ids, documents = torch.from_numpy(batch.ids), torch.from_numpy(batch.documents)
    with torch.no_grad():
        got = network.loss(
            ids, documents, positions=torch.from_numpy(batch.positions),
            targets=torch.from_numpy(batch.targets), weights=torch.from_numpy(weights), dropout=0.0,
        )  # fmt: skip
        logits = network(ids, documents).reshape(-1, SMALL.vocab).double().numpy()
    chosen = logits[batch.positions]
    probability = np.exp(chosen - chosen.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    expected = -(weights * np.log(probability[np.arange(12), batch.targets])).sum()
    assert float(got) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalise_evens_out_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.5 and values.max() < 1.3


def test_rate_warms_up_stays_and_falls() -> None:
    settings = replace(SETTINGS, warmup_steps=10, decay_share=0.2)
    assert rate_factor(settings, 0, 0.0) == pytest.approx(0.1)
    assert rate_factor(settings, 50, 0.79) == 1.0
    assert rate_factor(settings, 50, 0.9) == pytest.approx(0.5)
    assert rate_factor(settings, 50, 1.0) == pytest.approx(0.01)


def _train(folder: Path, stops: list[int | None], settings: Settings = SETTINGS) -> Network:
    folder.mkdir()
    for stop in stops:
        trainer = Trainer(settings, batches_of, folder / "c.pt", folder / "log.jsonl")
        finished = trainer.run(Budget(12, None), stop_at=stop)
        assert finished == (stop is None)
    return load_network(folder / "c.pt", averaged=False)


def test_a_resumed_run_gives_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", [None])
    parts = _train(tmp_path / "parts", [3, 8, None])
    for (name, a), (_, b) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert load(tmp_path / "parts" / "c.pt")["progress"]["step"] == 12


def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    settings = replace(SETTINGS, phases=(Phase(1.0, {"a": 1.0}),))
    one = _train(tmp_path / "one", [None], settings)
    two = _train(tmp_path / "two", [None], replace(settings, workers=2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)  # sums in another order


def test_training_learns(tmp_path: Path) -> None:
    def same(phase: Phase, number: int) -> Iterator[Batch]:
        batch = next(batches_of(phase, number))
        while True:
            yield batch

    trainer = Trainer(SETTINGS, same, tmp_path / "c.pt", tmp_path / "log.jsonl")
    trainer.run(Budget(30, None))
    losses = [float(line.split('"loss": ')[1].split(",")[0])
              for line in (tmp_path / "log.jsonl").read_text().splitlines()]  # fmt: skip
    assert losses[-1] < losses[0] * 0.7


def test_checkpoints_of_another_model_or_damaged_are_refused(tmp_path: Path) -> None:
    _train(tmp_path / "a", [1])
    checkpoint = tmp_path / "a" / "c.pt"
    other = replace(SETTINGS, shape=replace(SMALL, layers=1))
    with pytest.raises(RecipeError, match="another model"):
        Trainer(other, batches_of, checkpoint, tmp_path / "log")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RecipeError, match="is no checkpoint"):
        load(checkpoint)


def test_a_deepened_model_computes_the_same_and_trains_on(tmp_path: Path) -> None:
    shallow = _train(tmp_path / "a", [4])
    deep = replace(SETTINGS, shape=replace(SMALL, layers=3))
    trainer = Trainer(deep, batches_of, tmp_path / "a" / "c.pt", tmp_path / "a" / "log.jsonl")
    assert trainer.progress.step == 4
    grown = Network(deep.shape)
    for name, value in trainer.state.view(trainer.state.parameters).items():
        grown.get_parameter(name).data = value.clone()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(grown.eval()(ids), shallow(ids), atol=1e-5)
    trainer.run(Budget(12, None), stop_at=6)
    added = grown.model.layers[1].get_parameter("self_attn.o_proj.weight")
    assert not added.any()
    learned = load_network(tmp_path / "a" / "c.pt", averaged=False).model.layers[1]
    assert learned.get_parameter("self_attn.o_proj.weight").any()


def test_sigterm_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(here)!r})
        from test_training import SETTINGS, Budget, Path, Trainer, batches_of
        folder = Path({str(tmp_path)!r})
        trainer = Trainer(SETTINGS, batches_of, folder / "c.pt", folder / "log.jsonl")
        raise SystemExit(0 if not trainer.run(Budget(10_000_000, None)) else 1)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ))
    log = tmp_path / "log.jsonl"
    limit = time.time() + 60
    while not log.exists() and time.time() < limit and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    progress = load(tmp_path / "c.pt")["progress"]
    assert progress["step"] >= 1
    assert load_network(tmp_path / "c.pt").shape == SMALL
    assert not list(tmp_path.glob("*.writing"))
