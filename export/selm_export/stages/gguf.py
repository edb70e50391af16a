"""Writes a model as a GGUF file: standard where other engines can run it, ``selm`` where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf

from selm_export import checkpoint
from selm_export.errors import RecipeError
from selm_export.gguf_export import write_gguf
from selm_export.gguf_file import SAMPLING, Label, plain
from selm_export.modeling.file import architecture_of
from selm_export.stages.job import Job

FILE = "model.gguf"
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@dataclass(frozen=True)
class Said:
    """What goes into the file: ``title``, ``version``, ``author``, ``license`` and
    ``description``, and ``sampling``, what it recommends: ``temperature``, ``top_k``, ``top_p``,
    ``min_p``."""

    title: str = ""
    version: str = Label.version
    author: str = Label.author
    license: str = Label.license
    description: str = Label.description
    sampling: Mapping[str, float] = field(default_factory=dict)

    def label(self, job: Job) -> Label:
        for key in self.sampling:
            if key not in SAMPLING:
                cause = f"has an unknown key sampling.{key}, none of {', '.join(SAMPLING)}"
                raise RecipeError(job.name, cause, "Correct it, or take it out")
        title = self.title or job.name
        return Label(title, self.version, self.author, self.license, self.description)


@dataclass(frozen=True)
class Settings(Said):
    """``type`` of the matrices, rounded to nearest: ``f32``, ``f16``, ``bf16``, ``q8_0``, ``q5_1``,
    ``q5_0``, ``q4_1`` or ``q4_0`` (the stage ``quantize`` has finer ones)."""

    type: str = "q8_0"


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """One model in, ``model.gguf`` out."""
    if settings.type not in TYPES:
        cause = f"has the type {settings.type!r}, none of {', '.join(TYPES)}"
        raise RecipeError(job.name, cause, "Correct it, or use the stage quantize")
    label = settings.label(job)
    loaded, path = checkpoint.load(job.one()), job.output / FILE
    kind = gguf.GGMLQuantizationType[settings.type.upper()]
    weights = write_gguf(path, loaded, encode=plain(kind), label=label, sampling=settings.sampling)
    size = path.stat().st_size
    job.say(f"{path}: {size / 1e6:.1f} MB")
    return {
        "file": path.name,
        "architecture": architecture_of(loaded.model.config),
        "bytes": size,
        "parameters": sum(weights.values()),
        "weights_by_type": {kind.name: count for kind, count in weights.most_common()},
    }
