"""``publish``: a finished file goes into the package, with what is known of it and its card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_edge.catalog import size_of
from selm_export import checkpoint
from selm_export.data import dataset
from selm_export.errors import RecipeError
from selm_export.ledger import file_hash, write_json
from selm_export.modeling.configuration import SelmConfig
from selm_export.report import build, card, evaluate, form, metrics
from selm_export.stages.job import Job


@dataclass(frozen=True)
class Settings:
    """Makes ``MODEL.gguf``, ``MODEL.json``, ``MODEL-card.md`` and ``MODEL-loss.png``, and copies
    them into ``folder``, if one is named. A second input is the ONNX export of the same model: its
    ``int8`` folder becomes ``MODEL-onnx``, with a ``MODEL-onnx.json``.
    ``recipe`` is named in the card, ``curve`` is the step whose training is drawn, ``questions`` of
    each kind are asked, ``most_bytes`` is how large the file may be; ``default`` for the model that
    a chat opens where nobody asks for another."""

    model: str
    title: str
    recipe: str
    folder: Path | None = None
    curve: str = "base"
    remarks: str = ""
    questions: int = 500
    most_bytes: int = 24_000_000
    default: bool = False


def run(job: Job, settings: Settings) -> dict[str, Any]:
    given_to, *beside = job.inputs
    found = sorted(given_to.glob("*.gguf"))
    if len(found) != 1:
        raise RecipeError(
            given_to, f"holds {len(found)} .gguf files", "Name the step that writes the file"
        )
    source, size = found[0], found[0].stat().st_size
    if size > settings.most_bytes:
        raise RecipeError(
            source, f"has {size:,} bytes, more than {settings.most_bytes:,}",
            "Choose smaller types, or raise most_bytes",
        )  # fmt: skip
    given = checkpoint.load(source).model
    config = given.config
    core = evaluate.load_core(source, config.max_position_embeddings)
    held_out = dataset.read_conversations(job.data / dataset.HELD_OUT)
    context = min(core.context, config.max_position_embeddings)
    measured = metrics.measure(core, held_out, context, settings.questions, job.say)
    measured["parameters"] = sum(p.numel() for p in given.parameters())
    mixed = evaluate.read_labelled(job.data / dataset.MIXED)
    told = build.measure(source, mixed, build.Wish(context=context), job.say).as_json()
    if told.get("routing"):
        measured["routing"] = told["routing"]
    _write(job, settings, source, measured=measured, config=config)
    for folder in beside:
        _write_onnx(job, settings, folder / "int8")
    if settings.folder is not None:
        _copy(job.output, settings.folder, settings.model)
    return {"file_bytes": size, "bits_per_byte": measured["held_out_talk"]["bits_per_byte"],
            "parameters": measured["parameters"], "metrics": measured}  # fmt: skip


def _write(
    job: Job, settings: Settings, source: Path, *, measured: dict[str, Any], config: SelmConfig,
) -> None:  # fmt: skip
    lines = form.read(job.output.parent / "report.json")
    folder, name = job.output, settings.model
    model = folder / f"{name}.gguf"
    writing = model.with_suffix(".writing")
    shutil.copyfile(source, writing)
    writing.replace(model)
    picture = f"{name}-loss.png"
    log = job.output.parent / settings.curve / ".training" / "log.jsonl"
    if log.is_file():
        card.draw_curve(log, folder / picture)
    counts: dict[str, int] = {}
    for line in lines:
        counts |= line.figures.get("conversations", {})
    facts = card.Facts(
        settings.title, settings.recipe, picture, model.stat().st_size, config, measured, lines,
        counts, settings.remarks,
    )  # fmt: skip
    (folder / f"{name}-card.md").write_text(card.write_card(facts), encoding="utf-8")
    write_json(
        folder / f"{name}.json",
        {
            "name": name, "title": settings.title, "file": model.name, "size": facts.size,
            "sha256": file_hash(model), "license": "Apache-2.0", "recipe": settings.recipe,
            "metrics": measured, **({"default": True} if settings.default else {}),
        },
    )  # fmt: skip


def _write_onnx(job: Job, settings: Settings, source: Path) -> None:
    """``source`` as ``MODEL-onnx``, and what the catalog wants to know of it."""
    if not (source / "model.json").is_file():
        raise RecipeError(source, "holds no ONNX model", "Name an onnx step with the kind int8")
    name = f"{settings.model}-onnx"
    shutil.rmtree(job.output / name, ignore_errors=True)
    shutil.copytree(source, job.output / name)
    manifest = job.output / name / "model.json"
    write_json(
        job.output / f"{name}.json",
        {
            "name": name, "title": f"{settings.title}, ONNX int8", "file": f"{name}/model.json",
            "size": size_of(manifest), "sha256": file_hash(manifest), "license": "Apache-2.0",
            "recipe": settings.recipe,
        },
    )  # fmt: skip


def _copy(made: Path, folder: Path, name: str) -> None:
    """What was published under this name takes the place of what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in (f"{name}.gguf", f"{name}.json", f"{name}-card.md", f"{name}-loss.png"):
        if (made / entry).is_file():
            writing = folder / f"{entry}.writing"
            shutil.copyfile(made / entry, writing)
            writing.replace(folder / entry)
    if (made / f"{name}-onnx").is_dir():
        shutil.rmtree(folder / f"{name}-onnx", ignore_errors=True)
        shutil.copytree(made / f"{name}-onnx", folder / f"{name}-onnx")
        shutil.copyfile(made / f"{name}-onnx.json", folder / f"{name}-onnx.json")
