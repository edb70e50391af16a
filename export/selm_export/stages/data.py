"""``data``: source files become conversations to train on and to measure with, and a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.checkpoint import TOKENIZER, read_tokenizer
from selm_export.data import dataset
from selm_export.data.corpus import source_files
from selm_export.ledger import file_hash
from selm_export.stages.job import Job


@dataclass(frozen=True)
class Settings(dataset.Wanted):
    """``tokenizer``: take that of a model (a folder, tokenizer.json or .gguf), and train none."""

    tokenizer: Path | None = None


def sources(settings: Settings) -> Any:
    """The hashes of all files that are read."""
    named = [p for name in settings.sources for p in source_files(settings.folder, name)]
    own = [p for f in settings.files for p in ([f] if f.is_file() else sorted(f.rglob("*")))]
    extra = [settings.tokenizer] if settings.tokenizer and settings.tokenizer.is_file() else []
    return {path.name: file_hash(path) for path in (*named, *own, *extra) if path.is_file()}


def run(job: Job, settings: Settings) -> dict[str, Any]:
    counts = dataset.prepare(settings, job.output)
    job.say("  conversations: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    if settings.tokenizer:
        tokenizer = read_tokenizer(settings.tokenizer)
    else:
        tokenizer = dataset.make_vocabulary(settings, job.output, job.seed)
    tokenizer.save(str(job.output / TOKENIZER))
    return {"conversations": counts, "vocabulary": tokenizer.get_vocab_size()}
