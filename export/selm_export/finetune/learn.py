"""From examples to an adapter: the pipeline's own loop, so that it resumes, runs in several
processes and on a GPU as every other stage does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from selm_export.data.packing import Batch
from selm_export.finetune.adapter import ALPHA, RANK, Adapter
from selm_export.finetune.examples import Example, mismatched
from selm_export.finetune.task import Feedback, Weights, batches, in_order
from selm_export.modeling.model import SelmForCausalLM
from selm_export.training.processes import fast_bf16, processes
from selm_export.training.settings import Phase, Training
from selm_export.training.tasks import rows_of
from selm_export.training.trainer import Trainer

LENGTH = 512
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """``rounds`` over the feedback, of whose corrections each comes in ``variants`` of its question
    as well, and with ``replay`` as many examples of old text; a ``trial`` of as many rounds on a
    part, to be judged by the rest, comes before. ``rows`` of ``length`` tokens are a micro-batch,
    ``micro_batches`` a step."""

    rounds: float = 10.0
    trial: float = 3.0
    variants: int = 3
    replay: float = 1.0
    rate: float = 8e-4
    rank: int = RANK
    alpha: float = ALPHA
    dropout: float = 0.05
    rows: int = 1
    length: int = LENGTH
    micro_batches: int = 1
    weights: Weights = field(default_factory=Weights)


def learn(
    model: SelmForCausalLM, examples: Sequence[Example], replay: Sequence[Example], plan: Plan,
    folder: Path, *, seed: int, say: Say, rounds: float, adapter: Adapter | None = None,
) -> tuple[Adapter, dict[str, Any]] | None:  # fmt: skip
    """The adapter, attached to the model, and figures; nothing if it was asked to stop. The run's
    files are in ``folder``, from which it goes on. ``adapter``: one that is attached already and
    goes on to learn."""
    torch.manual_seed(seed)
    adapter = adapter or Adapter(model, plan.rank, plan.alpha)
    feedback = [*examples, *mismatched(examples)]
    every = [_cut(example, plan) for example in [*feedback, *replay]]
    task = Feedback(model, adapter, every, plan.weights)
    for batch in in_order(every[: len(feedback)], plan.rows, plan.length):
        task.look(rows_of(batch, model.device))
    replayed_a_round = round(plan.replay * len(examples))
    training = _training(plan, feedback, every[len(feedback) :], rounds, replayed_a_round)

    def stream(phase: Phase, number: int) -> Iterator[Batch]:
        return batches(every, plan.rows, plan.length, f"{seed}:{number}", replayed_a_round)

    trained = {name: p for name, p in task.named_parameters() if name.startswith("adapter.")}
    trainer = Trainer(task, trained, stream, training, folder, seed=seed, say=say)
    if not trainer.run():
        return None
    trainer.keep_average()
    model.train(False)
    return adapter, {
        "examples": len(examples), "tokens": trainer.progress.tokens,
        "steps": trainer.progress.step, "loss": trainer.progress.loss,
        "parameters": sum(p.numel() for p in trained.values()),
        "seconds": round(trainer.progress.seconds, 1),
    }  # fmt: skip


def _training(
    plan: Plan, feedback: Sequence[Example], replay: Sequence[Example], rounds: float,
    replayed_a_round: int,
) -> Training:  # fmt: skip
    own = sum(len(example.document) for example in feedback)
    old = sum(len(example.document) for example in replay) / max(1, len(replay))
    a_round = own + old * replayed_a_round
    together = processes().num_processes  # each has its share of a step
    micro_batches = -(-plan.micro_batches // together) * together
    per_step = micro_batches * plan.rows * plan.length
    return Training(
        tokens=max(per_step, int(rounds * a_round * _PADDING)),
        phases=(Phase({"feedback": 1.0}, dropout=plan.dropout),), rows=plan.rows,
        length=plan.length, places=1, micro_batches=micro_batches, rate=plan.rate, decay=0.0,
        warmup_steps=20, decay_share=0.5, average=0.9, bf16=fast_bf16(),
    )  # fmt: skip


_PADDING = 1.3  # rows that whole examples fill are not full


def _cut(example: Example, plan: Plan) -> Example:
    """To what a batch has room for, from its beginning: two replies of a pair stand in one."""
    paired = example.kind in ("dpo", "kto", "mismatched") and plan.rows == 1
    length, document = plan.length // (2 if paired else 1), example.document
    if len(document) <= length:
        return example
    short = replace(document, ids=document.ids[-length:], reply=document.reply[-length:])
    return replace(example, document=short)
