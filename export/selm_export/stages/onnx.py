"""A model as ONNX folders, ``fp32`` and ``int8``, for the ``onnx`` backend and other runtimes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selm_export import checkpoint, onnx_export, onnx_quantize
from selm_export.data import dataset
from selm_export.errors import RecipeError
from selm_export.onnx_export import RECOMMENDED
from selm_export.stages.job import Job

KINDS = ("fp32", "int8")


@dataclass(frozen=True)
class Settings:
    """``kinds``: which of fp32 and int8 to write, each a folder of its own. ``title``: what the
    model calls itself, ``sampling`` what it recommends (``temperature``, ``top_k``, ``top_p``,
    ``min_p``). ``head_kld``: how much an int8 head may add to the mean KL divergence from
    fp32 (nats); where it would add more, it stays in float32. ``samples``: conversations of
    ``held-out.jsonl`` that this is measured on, and ``tokens``, the most of each."""

    kinds: tuple[str, ...] = KINDS
    title: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    head_kld: float = 0.002
    samples: int = 16
    tokens: int = 256


def run(job: Job, settings: Settings) -> dict[str, Any]:
    for key, values, known in (
        ("kinds", settings.kinds, KINDS), ("sampling", settings.sampling, RECOMMENDED),
    ):  # fmt: skip
        for value in values:
            if value not in known:
                cause = f"has {value!r} under {key}, none of {', '.join(known)}"
                raise RecipeError(job.name, cause, "Correct it, or take it out")
    given = checkpoint.load(job.one())
    job.say("writing fp32 and comparing its logits with torch's")
    plain = job.output / "fp32"
    found = {
        "fp32": onnx_export.export(given, plain, settings.title or job.name, settings.sampling)
    }
    if "int8" in settings.kinds:
        texts = _texts(job, given, settings)
        del given  # what follows reads the folder
        found["int8"] = _quantized(job, plain, texts, settings)
    if "fp32" not in settings.kinds:
        shutil.rmtree(plain)
        del found["fp32"]
    return found


def _texts(job: Job, given: checkpoint.Checkpoint, settings: Settings) -> list[list[int]]:
    """Held-out conversations, or without data random tokens, which say less."""
    file = job.data / "held-out.jsonl"
    if file.is_file():
        documents = dataset.sample(file, given.tokenizer, settings.samples, job.seed)
        return [document.ids[: settings.tokens] for document in documents]
    draw = random.Random(job.seed)
    most = given.tokenizer.get_vocab_size()
    return [[draw.randrange(most) for _ in range(settings.tokens)] for _ in range(settings.samples)]


def _quantized(
    job: Job, plain: Path, texts: Sequence[Sequence[int]], settings: Settings
) -> dict[str, Any]:
    job.say("writing int8 and measuring what it costs, with the head and without")
    path, other = job.output / "int8", job.output / "int8-but-head"
    whole = onnx_quantize.quantize(plain, path, head=True) | compare(plain, path, texts)
    kept = onnx_quantize.quantize(plain, other, head=False) | compare(plain, other, texts)
    both = {"kld_int8_head": whole["kld"], "kld_fp32_head": kept["kld"]}
    chosen, left = (path, other)
    if whole["kld"] - kept["kld"] > settings.head_kld:
        chosen, left, whole = other, path, kept
    shutil.rmtree(left)
    chosen.replace(path)
    return whole | both


def compare(plain: Path, other: Path, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Mean and 99th percentile of the KL divergence (nats), and how often the likeliest token is
    the same."""
    pairs = zip(
        onnx_export.logits_of(plain, texts), onnx_export.logits_of(other, texts), strict=True
    )
    rows = [onnx_quantize.divergence(ours, theirs) for ours, theirs in pairs]
    divergence, same = (np.concatenate(part) for part in zip(*rows, strict=True))
    return {
        "kld": float(divergence.mean()),
        "kld_99": float(np.quantile(divergence, 0.99)),
        "same_top": float(same.mean()),
        "tokens": len(same),
    }
