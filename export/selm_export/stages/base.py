"""``base``: a model learns language, from nothing or from where another one stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from selm_export import checkpoint, tokenizer_config
from selm_export.checkpoint import Checkpoint
from selm_export.errors import RecipeError
from selm_export.ledger import file_hash, results
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages.job import Job
from selm_export.training.learn import held_out_bits, initialise, learn, save, trained_by
from selm_export.training.settings import Training
from selm_export.training.tasks import NextToken

PARALLEL = True


@dataclass(frozen=True)
class Settings:
    """``shape``: the keys of SelmConfig, for a new model; ``start``: a Hugging Face folder (Qwen2,
    Llama, Qwen3), one of ours or a .gguf, to go on from or, without ``train``, to take as it is."""

    shape: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None
    train: Training | None = None

    def faults(self) -> str | None:
        known = set(signature(SelmConfig.__init__).parameters) - {"self", "kwargs", "vocab_size"}
        unknown = sorted(set(self.shape) - known)
        if unknown:
            return f"shape has an unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}"
        try:
            SelmConfig(**self.shape)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            return f"shape: {error}"
        return None


def sources(settings: Settings) -> Any:
    """What lies outside of the run and decides the result."""
    path = settings.start
    if path is None:
        return None
    if not path.exists():
        raise RecipeError(path, "does not exist", "Name a model's folder or a .gguf file")
    return results(path) if path.is_dir() else file_hash(path)


def run(job: Job, settings: Settings) -> dict[str, Any] | None:
    start = job.inputs[0] if job.inputs else settings.start
    found = checkpoint.load(start) if start is not None else new_model(job, settings)
    model = found.model
    figures: dict[str, Any] | None = {}
    if settings.train is not None:
        task = NextToken(model, settings.train.checkpointing)
        figures = learn(
            job, model, found.tokenizer, task, trained=trained_by(task), training=settings.train
        )
    if figures is None:
        return None
    save(job, model, found)
    return figures | held_out_bits(job, model, found.tokenizer)


def new_model(job: Job, settings: Settings) -> Checkpoint:
    """Of the prepared data's tokenizer."""
    tokenizer = checkpoint.read_tokenizer(job.data)
    model = SelmForCausalLM(SelmConfig(vocab_size=tokenizer.get_vocab_size(), **settings.shape))
    initialise(model, job.seed)
    return Checkpoint(job.output, model, tokenizer, tokenizer_config.own(tokenizer))
