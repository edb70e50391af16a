"""The loop that everything learns by, and what is learned: against transformers, numpy, and runs
that nothing interrupted."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
import itertools

import torch
from selm_export.data.packing import Batch
from selm_export.errors import RecipeError
from selm_export.modeling.layers import QUIET, Noise
from selm_export.stages.expert import merge, with_expert
from selm_export.training.settings import Phase, Training
from selm_export.training.tasks import (
    Distill,
    Exits,
    NextToken,
    Rows,
    mixture_teacher,
    rows_of,
    top_divergence,
)
from selm_export.training.trainer import Trainer
from support.processes import child_environment, torchrun
from support.selm_models import VOCABULARY, some_model

SETTINGS = Training(
    tokens=6 * 2 * 2 * 24, phases=(Phase({"text": 1.0}, dropout=0.1),), rows=2, length=24,
    places=32, micro_batches=2, warmup_steps=2,
)  # fmt: skip


def batch_of(seed: int) -> Batch:
    """Two rows of two documents each, the second one's end padding."""
    r = np.random.default_rng(seed)
    ids = r.integers(0, VOCABULARY, (2, 24))
    documents = np.repeat(np.array([[0] * 10 + [1] * 14, [0] * 15 + [1] * 6 + [-1] * 3]), 1, axis=0)
    places = np.flatnonzero((documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0))
    flat = places // 23 * 24 + places % 23
    chosen = r.choice(flat, 32, replace=False)
    targets = ids.reshape(-1)[chosen + 1]
    weights = np.where(np.arange(32) < 24, 1.0, 0.3).astype(np.float32)
    return Batch(ids, documents, chosen, targets, weights)


def stream(phase: Phase, number: int) -> Iterator[Batch]:
    seed = 0
    while True:
        yield batch_of(seed)
        seed += 1


def silent(text: str) -> None:
    """A test reads files, not progress."""


def trainer_in(folder: Path, model: Any, settings: Training = SETTINGS) -> Trainer:
    task = NextToken(model)
    named = dict(task.named_parameters())
    return Trainer(task, named, stream, settings, folder, seed=3, say=silent)


def rows(seed: int = 0) -> Rows:
    return rows_of(batch_of(seed), torch.device("cpu"))


def test_packed_documents_are_read_as_if_alone() -> None:
    """The loss and its gradients are those of transformers' own Llama on each document alone."""
    transformers = pytest.importorskip("transformers")
    model = some_model(rms_norm_eps=1e-6)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=10000.0,
        tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.load_state_dict(model.state_dict())
    given = rows()
    loss = NextToken(model)(given, QUIET)
    loss.backward()
    weight = {int(p): float(w) for p, w in zip(given.positions, given.weights, strict=True)}
    wanted = torch.zeros(())
    for row, numbers in enumerate(given.documents):
        for document in {int(n) for n in numbers if n >= 0}:
            at = (numbers == document).nonzero()[:, 0]
            logs = llama(given.ids[row, at][None]).logits[0].log_softmax(-1)
            for place, (here, following) in enumerate(itertools.pairwise(at)):
                factor = weight.get(row * 24 + int(here), 0.0)
                wanted = wanted - factor * logs[place, given.ids[row, following]]
    wanted.backward()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    theirs = dict(llama.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kinds", [["performer"] * 3, ["performer", "window", "softmax"]])
def test_packed_is_what_the_model_itself_computes(kinds: list[str]) -> None:
    model = some_model(attention_kinds=kinds, sinks=2, head_gate=True, qk_norm=True)
    given = rows()
    found, _ = model.model.packed(given.ids, given.documents)
    said = model.lm_head(model.model.norm(found[-1]))
    for row, numbers in enumerate(given.documents):
        for document in {int(n) for n in numbers if n >= 0}:
            at = (numbers == document).nonzero()[:, 0]
            alone = model(given.ids[row, at][None]).logits[0]
            torch.testing.assert_close(said[row, at], alone, atol=2e-5, rtol=1e-4)


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        model = some_model(attention_kinds=["performer"] * 3)
        NextToken(model, checkpointing)(rows(), QUIET).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, found[1][name])


def test_a_run_learns_and_its_log_says_so(tmp_path: Path) -> None:
    fixed = batch_of(1)

    def same(phase: Phase, number: int) -> Iterator[Batch]:
        while True:
            yield fixed

    model = some_model()
    settings = Training(
        tokens=40 * 48, phases=(Phase({"text": 1.0}),), rows=2, length=24, places=32,
        micro_batches=1, warmup_steps=2,
    )  # fmt: skip
    task = NextToken(model)
    run = Trainer(task, dict(task.named_parameters()), same, settings, tmp_path, seed=3, say=silent)
    assert run.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1]["share"] == 1.0 and lines[-1]["rate"] < 0.1


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: value.clone() for name, value in trainer.average.items()}


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = trainer_in(tmp_path / "whole", some_model())
    assert whole.run()
    part = trainer_in(tmp_path / "part", some_model())

    calls = []

    def asked() -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"seen": float(len(calls))}

    assert not part.run(asked, measure_seconds=0.0)
    assert 0 < part.progress.step < SETTINGS.steps
    again = trainer_in(tmp_path / "part", some_model())
    assert again.progress == part.progress
    assert again.run()
    assert trainer_in(tmp_path / "part", some_model()).progress.loss == whole.progress.loss
    for name, value in weights(whole).items():
        assert torch.equal(value, again.average[name]), name


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL at a moment of no one's choosing: the last whole checkpoint is there, and the run
    that goes on from it ends as one that was never killed."""
    whole = trainer_in(tmp_path / "whole", some_model())
    assert whole.run()
    script = (
        "import sys, time; from pathlib import Path; import selm_export.training.trainer as loop;"
        "loop.SAVE_SECONDS = 0.0; from test_trainer import trainer_in, some_model;"
        "t = trainer_in(Path(sys.argv[1]), some_model());"
        "t.run(lambda: (time.sleep(0.3), {'x': 0.0})[1], measure_seconds=0.0)"
    )
    here = str(Path(__file__).parent)
    environment = child_environment()
    environment["PYTHONPATH"] = os.pathsep.join([here, environment["PYTHONPATH"]])
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "killed")], env=environment
    )
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.time() + 120
    while not checkpoint.exists() and child.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    again = trainer_in(tmp_path / "killed", some_model())
    assert 0 < again.progress.step < SETTINGS.steps
    assert again.run()
    for name, value in weights(whole).items():
        assert torch.equal(value, again.average[name]), name


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model = some_model()
    good = trainer_in(tmp_path, model)
    good.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    bad = trainer_in(tmp_path / "other", model)
    with pytest.raises(RecipeError, match=r"the loss is nan .* at step 0.*Lower the rates"):
        bad.run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, some_model())
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RecipeError, match=r"checkpoint\.pt.*cannot be written.*Make room"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    trainer_in(tmp_path, some_model()).save()
    path = tmp_path / "checkpoint.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    model = some_model(intermediate_size=64) if damage == "other" else some_model()
    cause = "is of another model" if damage == "other" else "is no checkpoint"
    with pytest.raises(RecipeError, match=f"{cause}.*Remove it"):
        trainer_in(tmp_path, model)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """torchrun with gloo: the same sums, whoever adds them up."""
    one = trainer_in(tmp_path / "one", some_model())
    assert one.run()
    script = tmp_path / "both.py"
    script.write_text(
        "import sys; from pathlib import Path; from test_trainer import trainer_in, some_model\n"
        "t = trainer_in(Path(sys.argv[1]), some_model())\n"
        "assert t.accelerator.num_processes == 2\n"
        "assert t.run()\n"
        "t = trainer_in(Path(sys.argv[1]), some_model())\n"
        "assert t.progress.share == 1.0, 'both go on from the checkpoint'\n",
        encoding="utf-8",
    )
    torchrun(script, tmp_path / "two")
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert [line["tokens"] for line in logs[0]] == [line["tokens"] for line in logs[1]]
    for mine, theirs in zip(*logs, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
    again = trainer_in(tmp_path / "two", some_model())
    for name, value in weights(one).items():
        torch.testing.assert_close(value, again.average[name], atol=5e-3, rtol=0)


def test_bf16_learns_too(tmp_path: Path) -> None:
    from dataclasses import replace

    trainer = trainer_in(tmp_path, some_model(), replace(SETTINGS, bf16=True))
    assert trainer.run() and math.isfinite(trainer.progress.loss)
    assert all(p.dtype == torch.float32 for p in trainer.trained.values())


def test_divergence_of_all_tokens_is_the_definition() -> None:
    r = np.random.default_rng(4)
    a, b = (r.normal(size=(5, 30)) * 2 for _ in range(2))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    exact = (p * np.log(p / q)).sum(1)
    logs = [torch.tensor(np.log(x)) for x in (p, q)]
    found = top_divergence(logs[0], logs[1], 30)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-9)
    order = np.argsort(-p, axis=1)[:, :4]
    best, of = (np.take_along_axis(x, order, 1) for x in (p, q))
    rest = 1 - best.sum(1), 1 - of.sum(1)
    by_hand = (best * np.log(best / of)).sum(1) + rest[0] * np.log(rest[0] / rest[1])
    np.testing.assert_allclose(top_divergence(logs[0], logs[1], 4).numpy(), by_hand, rtol=1e-9)
    assert (by_hand <= exact + 1e-12).all()  # merging tokens loses information, never adds any


def test_a_student_of_itself_has_nothing_to_learn() -> None:
    model = some_model()
    task = Distill(model, mixture_teacher(model), text_weight=0.0)
    loss = task(rows(), QUIET)
    loss.backward()
    assert float(loss) == pytest.approx(0.0, abs=1e-3)
    assert all(p.grad is None or p.grad.abs().max() < 1e-4 for p in model.parameters())


def test_the_teacher_of_an_ensemble_is_its_mixture() -> None:
    model = some_model(
        expert_names=["a", "b"], trunk_layers=1, expert_rank=4, attention_kinds=["performer"] * 3
    )
    given = rows()
    said = mixture_teacher(model)(given).exp()
    ids = given.ids[:1, :10]  # the first document of the first row
    found = model(ids, output_experts=True)
    weight = found.scores[0].softmax(-1)
    p = (weight.T[..., None] * found.expert_logits[:, 0].softmax(-1)).sum(0)
    for place, position in enumerate(given.positions.tolist()):
        if position < 10:
            torch.testing.assert_close(said[place], p[position], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(said.sum(-1), torch.ones(32), atol=1e-4, rtol=0)


def test_exits_learn_what_the_end_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = some_model(exit_layers=[1])
    teacher = mixture_teacher(some_model())
    task = Exits(model, teacher)
    settings = Training(
        tokens=60 * 48, phases=(Phase({"text": 1.0}, layer_dropout=0.1),), rows=2, length=24,
        places=32, micro_batches=1, warmup_steps=2, rate=0.01,
    )  # fmt: skip
    fixed = batch_of(1)

    def same(phase: Phase, number: int) -> Iterator[Batch]:
        while True:
            yield fixed

    before = float(task(rows(1), QUIET))
    trainer = Trainer(
        task, dict(task.named_parameters()), same, settings, tmp_path, seed=3, say=silent
    )
    assert trainer.run()
    trainer.keep_average()
    assert float(task(rows(1), QUIET)) < 0.5 * before


def test_whole_layers_are_left_out_by_row() -> None:
    """The highest layer at the full rate, the first never (LayerSkip, arXiv 2404.16710)."""
    torch.manual_seed(1)
    model = some_model()
    ids = torch.randint(0, VOCABULARY, (2000, 3))
    documents = torch.zeros_like(ids)
    found, _ = model.model.packed(ids, documents, noise=Noise(layers=0.4))
    kept = [
        (after == before).all((1, 2)).float().mean().item()
        for before, after in itertools.pairwise(found)
    ]
    wanted = [0.4 * (2 ** (layer / 2) - 1) for layer in range(3)]
    assert kept == pytest.approx(wanted, abs=0.04)


def test_an_expert_leaves_the_trunk_alone_and_can_be_merged(tmp_path: Path) -> None:
    base = some_model(attention_kinds=["performer"] * 3, head_gate=True)
    model = with_expert(base, "math", trunk=1, rank=4)
    ids = torch.randint(0, VOCABULARY, (1, 20))
    torch.testing.assert_close(model(ids, expert="math").logits, base(ids).logits)
    task = NextToken(model)
    trained = {n: p for n, p in task.named_parameters() if "delta_" in n}
    trainer = Trainer(task, trained, stream, SETTINGS, tmp_path, seed=3, say=silent)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "delta_" not in n}
    assert trainer.run()
    trainer.keep_average()
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name
    merged = merge(model)
    assert not merged.config.expert_names
    torch.testing.assert_close(
        merged(ids).logits, model(ids, expert="math").logits, atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-3)
