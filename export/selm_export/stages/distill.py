"""``distill``: a student learns to say what a teacher says: one model from an ensemble, or the
healing of a model that was pruned, factorized or given another attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selm_export import checkpoint
from selm_export.errors import RecipeError
from selm_export.stages.job import Job
from selm_export.training.learn import held_out_bits, learn, save, trained_by
from selm_export.training.settings import Training
from selm_export.training.tasks import Distill, mixture_teacher

PARALLEL = True


@dataclass(frozen=True)
class Settings:
    """Forward KL on the teacher's ``top`` tokens and the mass of all others, and ``text_weight`` of
    the text itself. ``from`` names the student first, then its teacher."""

    train: Training
    top: int = 64
    text_weight: float = 0.1


def run(job: Job, settings: Settings) -> dict[str, Any] | None:
    if len(job.inputs) != 2:
        raise RecipeError(
            job.name, "needs a student and a teacher", 'Write from = ["student", "teacher"]'
        )
    student, teacher = (checkpoint.load(path) for path in job.inputs)
    checkpoint.same_tokenizer([teacher, student])
    task = Distill(
        student.model, mixture_teacher(teacher.model), top=settings.top,
        text_weight=settings.text_weight, checkpointing=settings.train.checkpointing,
    )  # fmt: skip
    trained = trained_by(task)
    figures = learn(
        job, student.model, student.tokenizer, task, trained=trained, training=settings.train
    )
    if figures is None:
        return None
    save(job, student.model, student)
    return figures | held_out_bits(job, student.model, student.tokenizer)
