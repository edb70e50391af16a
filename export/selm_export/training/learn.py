"""What every stage that learns does: streams of the prepared data, the loop, the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from selm_export import checkpoint
from selm_export.checkpoint import Checkpoint
from selm_export.data.dataset import HELD_OUT, Sources, read_conversations
from selm_export.data.packing import Batch
from selm_export.data.vocabulary import speaks_chatml
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages.job import Job
from selm_export.training.measure import reply_bits
from selm_export.training.processes import processes
from selm_export.training.settings import Phase, Training
from selm_export.training.trainer import Trainer

FOLDER = ".training"  # of a step: its checkpoint and log
MEASURED = 128  # held-out conversations that are looked at in the middle of a run


def trained_by(module: nn.Module, *parts: str) -> dict[str, nn.Parameter]:
    """The parameters whose names hold one of the parts; all, where none is named."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if not parts or any(part in name for part in parts)
    }


def learn(
    job: Job, model: SelmForCausalLM, tokenizer: Tokenizer, task: nn.Module,
    *, trained: Mapping[str, nn.Parameter], training: Training,
) -> dict[str, Any] | None:  # fmt: skip
    """Moves the parameters as the task wants; nothing if it was asked to stop before the end."""
    sources = Sources(job.data, tokenizer, training.packing, job.seed)
    held_out = read_conversations(job.data / HELD_OUT)[:MEASURED]

    def stream(phase: Phase, number: int) -> Iterator[Batch]:
        return sources.stream(phase, f"{job.name}:{number}")

    def measure() -> Mapping[str, float]:
        model.train(False)
        return {"bits_per_byte": reply_bits(model, tokenizer, held_out).bits_per_byte}

    trainer = Trainer(
        task, trained, stream, training, job.output / FOLDER, seed=job.seed, say=job.say
    )
    if not trainer.run(measure if held_out else None):
        return None
    trainer.keep_average()
    model.train(False)
    model.requires_grad_(True)
    progress = trainer.progress
    return {
        "parameters": count(model), "trained_parameters": sum(p.numel() for p in trained.values()),
        "tokens": progress.tokens, "steps": progress.step, "loss": progress.loss,
        "training_seconds": round(progress.seconds, 1),
    }  # fmt: skip


def count(model: nn.Module) -> int:
    """Parameters, a tied head once."""
    return sum(p.numel() for p in model.parameters())


def save(job: Job, model: SelmForCausalLM, source: Checkpoint) -> None:
    """With the tokenizer of where it is from; by the first process alone: all have the same."""
    if processes().is_main_process:
        checkpoint.save(job.output, model.cpu(), source.tokenizer, source.tokenizer_config)


def held_out_bits(job: Job, model: SelmForCausalLM, tokenizer: Tokenizer) -> dict[str, float]:
    """Of the talk that was kept out: for the report's line."""
    held_out = job.data / HELD_OUT
    if not (processes().is_main_process and held_out.is_file() and speaks_chatml(tokenizer)):
        return {}
    tally = reply_bits(model, tokenizer, read_conversations(held_out))
    return {"bits_per_byte": round(tally.bits_per_byte, 4), "nll": round(tally.nll, 4)}


@torch.no_grad()
def initialise(model: SelmForCausalLM, seed: int) -> None:
    """Normal weights, zero biases; the two matrices that write into the residual stream start
    smaller by the square root of their number, so that depth does not change its size."""
    generator = torch.Generator().manual_seed(seed)
    depth = (2 * model.config.num_hidden_layers) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or "head_gate" in name or "projection" in name:
            continue
        deviation = 0.02 if "embed" in name else parameter.shape[1] ** -0.5 * 0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= depth
        parameter.normal_(0.0, deviation, generator=generator)
