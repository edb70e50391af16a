"""The line of a step that made a model: its size, and how near it is to what it was made from."""

from __future__ import annotations

from typing import Any

from selm_export import checkpoint
from selm_export.data.dataset import HELD_OUT, sample
from selm_export.data.vocabulary import speaks_chatml
from selm_export.report import quality
from selm_export.stages.job import Job

DOCUMENTS = 64  # held-out conversations, drawn by the seed


def measured(job: Job, stage: str) -> dict[str, Any]:
    """Nothing where the step left no model. A student is compared with its teacher, anything else
    with the first of its inputs."""
    if not (job.output / "config.json").is_file():
        return {}
    made = checkpoint.load(job.output)
    found: dict[str, Any] = {
        "file_bytes": sum(path.stat().st_size for path in job.output.glob("*.safetensors")),
        "parameters": sum(parameter.numel() for parameter in made.model.parameters()),
    }
    before = job.inputs[1:2] if stage == "distill" else job.inputs[:1]
    held_out = job.data / HELD_OUT
    if not before or not held_out.is_file() or not speaks_chatml(made.tokenizer):
        return found
    reference = checkpoint.load(before[0])
    documents = sample(held_out, made.tokenizer, DOCUMENTS, job.seed)
    found["reference"] = before[0].name
    found["quality"] = quality.figures(made.model, reference.model, documents, str(job.output))
    return found
