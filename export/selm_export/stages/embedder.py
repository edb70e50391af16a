"""``embedder``: all-MiniLM-L6-v2 becomes a static embedder of a few megabytes, for the memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selm_export.data.corpus import source_files
from selm_export.embedding import pairs, sentences, static, teacher, training
from selm_export.embedding.teacher import Floats
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.ledger import file_hash, hash_of, write_json
from selm_export.stages.job import Job

NAME = "selm-embedder"
SOURCE = (
    "Distilled from all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0) with model2vec, trained on"
    " MedQuAD (CC BY 4.0), CLINC150 (CC BY 3.0), PubMedQA (MIT), ARC-Easy (CC BY-SA 4.0),"
    " OpenBookQA (Apache-2.0), Topical-Chat (CDLA-Sharing-1.0) and this project's"
    " own talk, notes and passages (Apache-2.0)"
)


@dataclass(frozen=True)
class Settings:
    """Makes ``selm-embedder.gguf`` and ``selm-embedder.json``, and copies them into ``into``, if
    that is named. ``folder`` holds the data; ``dim`` numbers make a vector; ``sif`` as in SIF
    weights; ``generated`` pairs of each kind are made up; the teacher reads ``read`` sentences
    (it takes most of the time); rows are stored as ``type``: ``f32``, ``f16``, ``q8_0``, ``q5_1``,
    ``q5_0``, ``q4_1`` or ``q4_0``."""

    folder: Path
    into: Path | None = None
    dim: int = 256
    sif: float = 1e-4
    generated: int = 12_000
    read: int = 16_000
    type: str = "q4_0"
    train: training.Lesson = field(default_factory=training.Lesson)

    def faults(self) -> str | None:
        if self.type not in static.TYPES:
            return f"the type {self.type!r} is none of {', '.join(static.TYPES)}"
        if self.dim % 32 or not 32 <= self.dim <= 384:
            return f"dim = {self.dim} is no multiple of 32 up to 384"
        return self.train.faults()


def sources(settings: Settings) -> Any:
    """The hashes of all files that are read."""
    named = [p for name in pairs.SOURCES for p in source_files(settings.folder, name)]
    paths = [*named, *sentences.files(settings.folder)]
    return {path.name: file_hash(path) for path in paths}


def run(job: Job, settings: Settings) -> dict[str, Any]:
    job.say("  what the teacher makes of each token of its vocabulary")
    tokens, dim, sif = teacher.vocabulary(), settings.dim, settings.sif
    rows = _kept(job.output / ".start.npz", [tokens, dim, sif], lambda: teacher.distilled(dim, sif))
    start = static.StaticEmbedder(tokens, rows)
    found = pairs.gather(settings.folder, settings.generated, job.seed)
    job.say("  pairs: " + ", ".join(f"{name} {len(each):,}" for name, each in found.items()))
    texts = sentences.gather(settings.folder, settings.read, job.seed)
    job.say(f"  the teacher reads {len(texts):,} sentences")
    seen = _kept(job.output / ".read.npz", texts, lambda: teacher.Teacher().vectors(texts))
    anchors = training.Anchors(start.ids(texts), seen)
    given = {name: training.Source(start, each) for name, each in found.items()}
    made = training.train(
        start, given, anchors, settings.train, seed=job.seed, say=lambda line: job.say(f"  {line}")
    )
    label = Label("SELM embedder", description="Texts as vectors, for the memory of SELM Edge")
    path = job.output / f"{NAME}.gguf"
    job.say(f"  rows as {settings.type}")
    static.write(path, made, label, SOURCE, settings.type)
    return _publish(job, settings, path, {"pairs": {n: len(each) for n, each in found.items()}})


def _kept(path: Path, about: Any, make: Callable[[], Floats]) -> Floats:
    """What an earlier, interrupted run of the step has computed from the same, or ``make()``."""
    key = hash_of(about)
    if path.is_file():
        with np.load(path) as found:
            if str(found["key"]) == key:
                return np.array(found["values"])
    values = make()
    writing = path.with_suffix(".writing")
    with writing.open("wb") as file:
        np.savez(file, key=np.array(key), values=values)
    writing.replace(path)
    return values


def _publish(
    job: Job, settings: Settings, path: Path, learned: Mapping[str, Any]
) -> dict[str, Any]:
    """Measures the file, writes its card, and copies both."""
    from selm_export.report import memory

    measured = memory.measure_all(settings.folder, "test", path, lambda line: job.say(f"  {line}"))
    read = static.read(path)
    write_json(
        path.with_suffix(".json"),
        {
            "name": NAME, "kind": "embedder", "title": "SELM embedder", "file": path.name,
            "size": path.stat().st_size, "sha256": file_hash(path), "license": "Apache-2.0",
            "source": SOURCE, "recipe": f"export/selm_export/recipes/{NAME}.toml",
            "dim": read.dim, "tokens": len(read.tokens), **learned,
            "metrics": measured,
        },
    )  # fmt: skip
    if settings.into is not None:
        try:
            settings.into.mkdir(parents=True, exist_ok=True)
            for made in (path, path.with_suffix(".json")):
                writing = settings.into / f"{made.name}.writing"
                shutil.copyfile(made, writing)
                writing.replace(settings.into / made.name)
        except OSError as error:
            raise RecipeError(settings.into, str(error), "Make room or mend the path") from error
    return {"file": path.name, "bytes": path.stat().st_size, "recall": measured, **learned}
