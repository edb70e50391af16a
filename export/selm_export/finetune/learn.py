"""From examples to an adapter: the pipeline's own loop, so that it resumes, runs in several
processes and on a GPU as every other stage does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from selm_export.data.chat import Conversation
from selm_export.data.dataset import GENERATE
from selm_export.data.packing import Batch
from selm_export.finetune.adapter import ALPHA, RANK, Adapter
from selm_export.finetune.examples import Example, document_of, mismatched
from selm_export.finetune.task import Feedback, Weights, batches, pack
from selm_export.modeling.model import SelmForCausalLM
from selm_export.training.settings import Phase, Training
from selm_export.training.tasks import rows_of
from selm_export.training.trainer import Trainer

LENGTH = 512
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """``rounds`` over the feedback, ``replay`` as many examples of old text for each of it.
    ``rows`` of ``length`` tokens are a micro-batch, ``micro_batches`` a step."""

    rounds: float = 6.0
    replay: float = 0.25
    rate: float = 1e-3
    rank: int = RANK
    alpha: float = ALPHA
    dropout: float = 0.05
    rows: int = 2
    length: int = LENGTH
    micro_batches: int = 2
    bf16: bool = False
    weights: Weights = field(default_factory=Weights)


def replayed(
    tokenizer: Tokenizer, count: int, seed: int, own: Sequence[Conversation] = ()
) -> list[Example]:
    """Text that the model knows: of ``own`` conversations, where there are some, one half; the rest
    is made up as in its training."""
    draw = random.Random(f"replay:{seed}")
    makers = [GENERATE[name] for name in sorted(GENERATE)]
    found = []
    for number in range(count):
        if own and number % 2:
            talk = draw.choice(list(own))
        else:
            talk = makers[number % len(makers)](random.Random(f"{seed}:replay:{number}"))
        *before, last = talk.messages
        if last.role != "assistant":
            continue
        turns = [{"role": m.role, "content": m.content} for m in before]
        document = document_of(tokenizer, turns, last.content, LENGTH)
        found.append(Example(document, "replay", f"replay-{number}", f"replay-{number}"))
    return found


def learn(
    model: SelmForCausalLM, examples: Sequence[Example], replay: Sequence[Example], plan: Plan,
    folder: Path, *, seed: int, say: Say,
) -> tuple[Adapter, dict[str, Any]] | None:  # fmt: skip
    """The adapter, attached to the model, and figures; nothing if it was asked to stop. The run's
    files are in ``folder``, from which it goes on."""
    torch.manual_seed(seed)
    adapter = Adapter(model, plan.rank, plan.alpha)
    every = [*examples, *mismatched(examples), *replay]
    every = [_cut(example, plan.length) for example in every]
    task = Feedback(model, adapter, every, plan.weights)
    for number, example in enumerate(every):
        task.look(rows_of(pack([(number, example)], 1, plan.length), model.device))
    tokens = sum(len(example.document) for example in every)
    per_step = plan.micro_batches * plan.rows * plan.length
    training = Training(
        tokens=max(per_step, int(plan.rounds * tokens * _PADDING)),
        phases=(Phase({"feedback": 1.0}, dropout=plan.dropout),), rows=plan.rows,
        length=plan.length, places=1, micro_batches=plan.micro_batches, rate=plan.rate,
        matrix_rate=plan.rate, decay=0.0, matrix_decay=0.0, warmup_steps=4, decay_share=0.5,
        average=0.9, bf16=plan.bf16,
    )  # fmt: skip

    def stream(phase: Phase, number: int) -> Iterator[Batch]:
        return batches(every, plan.rows, plan.length, f"{seed}:{number}")

    trained = {name: p for name, p in task.named_parameters() if name.startswith("adapter.")}
    trainer = Trainer(task, trained, stream, training, folder, seed=seed, say=say)
    if not trainer.run():
        return None
    trainer.keep_average()
    model.train(False)
    return adapter, {
        "examples": len(examples), "replayed": len(replay), "tokens": trainer.progress.tokens,
        "steps": trainer.progress.step, "loss": trainer.last_loss,
        "parameters": sum(p.numel() for p in trained.values()),
        "seconds": round(trainer.progress.seconds, 1),
    }  # fmt: skip


_PADDING = 1.3  # rows that whole examples fill are not full


def _cut(example: Example, length: int) -> Example:
    document = example.document
    if len(document) <= length:
        return example
    short = replace(document, ids=document.ids[-length:], reply=document.reply[-length:])
    return replace(example, document=short)
