"""``exits``: a model learns to speak early, so that it can draft for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from selm_export import checkpoint, drafts
from selm_export.data import dataset
from selm_export.data.dataset import HELD_OUT, Sources
from selm_export.data.packing import Batch
from selm_export.data.vocabulary import end_of_turn
from selm_export.errors import RecipeError
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages.job import Job
from selm_export.training.learn import held_out_bits, learn, save, trained_by
from selm_export.training.settings import Training
from selm_export.training.tasks import Exits, mixture_teacher

PARALLEL = True
COUNTED = 1000  # micro-batches whose replies decide the shortlist
MEASURED = 150  # held-out conversations that exits are measured on
OWN_REPLIES = 60  # written by the model itself, to measure drafts on


@dataclass(frozen=True)
class Settings:
    """Exits are after these ``layers``, counted from 1; drafts are of the ``shortlist`` most
    frequent tokens alone, as the head over all would cost more than the layers below it."""

    layers: tuple[int, ...]
    train: Training
    shortlist: int = 1024


def run(job: Job, settings: Settings) -> dict[str, Any] | None:
    found = checkpoint.load(job.one())
    teacher = mixture_teacher(checkpoint.load(job.one()).model)
    sources = Sources(job.data, found.tokenizer, settings.train.packing, job.seed)
    stream = sources.stream(settings.train.phases[-1], f"{job.name}:shortlist")
    model = with_exits(job, found.model, settings, choose_shortlist(stream, settings.shortlist))
    task = Exits(model, teacher, checkpointing=settings.train.checkpointing)
    figures = learn(
        job, model, found.tokenizer, task, trained=trained_by(task), training=settings.train
    )
    if figures is None:
        return None
    save(job, model, found)
    documents = dataset.sample(job.data / HELD_OUT, found.tokenizer, MEASURED, job.seed)
    worth = drafts.measure(model, documents, end_of_turn(found.tokenizer), OWN_REPLIES)
    for name, of_exit in worth.items():
        job.say(f"  {name}: {drafts.told(of_exit)}")
    return figures | held_out_bits(job, model, found.tokenizer) | worth


def choose_shortlist(stream: Iterator[Batch], size: int) -> list[int]:
    """The ``size`` tokens that replies hold most often, the most frequent first."""
    counts: Counter[int] = Counter()
    for _, batch in zip(range(COUNTED), stream, strict=False):
        counts.update(batch.targets[batch.weights == 1.0].tolist())
    return [token for token, _ in counts.most_common(size)]


def with_exits(
    job: Job, model: SelmForCausalLM, settings: Settings, shortlist: list[int]
) -> SelmForCausalLM:
    """The same weights; an exit's norm begins as that of the end."""
    changed = {"exit_layers": list(settings.layers), "draft_vocabulary": shortlist}
    try:
        config = SelmConfig(**model.config.to_dict() | changed)
    except ValueError as error:
        raise RecipeError(job.one(), str(error), "Mend the step's layers") from error
    made = SelmForCausalLM(config)
    weights = model.state_dict()
    weights |= {f"model.exits.{n}.weight": weights["model.norm.weight"] for n in settings.layers}
    made.load_state_dict(weights)
    return made
