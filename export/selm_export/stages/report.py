"""``report``: measures the files of earlier stages by the inference core, and tells of the run.

``from`` names the stages whose files are measured: every .gguf in their folders; and the teacher
that they are compared with, a stage that left a checkpoint.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selm_export.data.chat import Conversation
from selm_export.errors import RecipeError
from selm_export.ledger import file_hash, write_json
from selm_export.report import build, document, evaluate, form, page
from selm_export.stages.job import Job

if TYPE_CHECKING:
    from selm_export.report.quality import Forward

MEASURED = "measured.json"
HELD_OUT, MIXED = "held-out.jsonl", "mixed.jsonl"
Labelled = list[tuple[str, Conversation]]


@dataclass(frozen=True)
class Settings:
    """``teacher``: the name of the stage, one of ``from``, that files are compared with; if none is
    named there is no KLD. ``conversations``: at most so many of the mixed set (of the held-out talk
    where there is none) and of the held-out talk. ``tasks`` are scored with at most ``questions``
    each, from the files in ``folder``; ``passages`` from the held-out talk. ``speed``: measure
    tokens a second and memory too."""

    title: str | None = None  # of the page; the run's name if not said
    teacher: str | None = None
    conversations: int = 200
    tasks: tuple[str, ...] = ()
    questions: int = 200
    folder: Path = Path("../shared/data")
    context: int = 1024
    speed: bool = True


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Writes ``report.html`` and ``report.md``, from ``report.json`` of the run's folder and what
    is measured here. A file that cannot be measured is told of, and the others are. Figures:
    ``builds``, by the name of each file."""
    lines = form.read(job.output.parent / "report.json")
    files = _files(job)
    teacher = _teacher(job, settings)
    measure = _Measure(job, settings, teacher)
    builds = {name: measure.file(name, maker, path) for name, (maker, path) in files.items()}
    figures: dict[str, Any] = {"builds": builds}
    routes = measure.routes({n: p for n, (_, p) in files.items()}, builds)
    if routes:
        figures["routes"] = routes
    own = form.Stage(job.name, "report", (), form.MISSING, form.MISSING, figures)
    told = page.sections([*(line for line in lines if line.name != job.name), own])
    title = settings.title or job.output.parent.resolve().name
    _write(job.output / "report.html", document.to_html(title, told))
    _write(job.output / "report.md", document.to_markdown(title, told))
    job.say(f"written: {job.output / 'report.html'}")
    return figures


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _files(job: Job) -> dict[str, tuple[str, Path]]:
    """Each with the stage that made it, by a name of its own: the stage's, and the file's where it
    made several."""
    found = {}
    for folder in job.inputs:
        models = sorted(folder.rglob("*.gguf"))
        for path in models:
            name = folder.name if len(models) == 1 else f"{folder.name}/{path.stem}"
            found[name] = (folder.name, path)
    if not found:
        raise RecipeError(
            job.name, "none of its inputs holds a .gguf file to measure",
            "Name the stages that write some: from = [...]",
        )  # fmt: skip
    return found


def _teacher(job: Job, settings: Settings) -> tuple[str, Forward] | None:
    if settings.teacher is None:
        return None
    for folder in job.inputs:
        if folder.name == settings.teacher:
            from selm_export import checkpoint
            from selm_export.report.quality import by_route

            return folder.name, by_route(checkpoint.load(folder).model)
    raise RecipeError(
        job.name, f"its teacher {settings.teacher} is not one of its inputs",
        f'Write from = [..., "{settings.teacher}"]',
    )  # fmt: skip


class _Measure:
    """What was measured of a file stays in ``measured.json``, so that a run that was stopped, or
    that a new file was added to, measures only what is new."""

    def __init__(self, job: Job, settings: Settings, teacher: tuple[str, Forward] | None) -> None:
        self.job, self.settings, self.teacher = job, settings, teacher
        s = settings
        asked = (s.conversations, sorted(s.tasks), s.questions, s.context, s.speed, job.seed)
        self.asked = json.dumps([*asked, _digest(job, s.teacher)])  # all that the figures rest on
        self.talk = self._data(HELD_OUT)
        mixed = self._data(MIXED) if (job.data / MIXED).exists() else []
        self.mixed = mixed or self.talk
        self.path = job.output / MEASURED
        self.known: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.known = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:  # half of it is of no use
                self.path.unlink()

    def _data(self, name: str) -> Labelled:
        found = evaluate.read_labelled(self.job.data / name)
        random.Random(f"{self.job.seed}:{name}").shuffle(found)
        return found[: self.settings.conversations]

    def file(self, name: str, maker: str, path: Path) -> dict[str, Any]:
        key = f"{file_hash(path)} {self.asked}"
        if key not in self.known:
            try:
                found = self._fresh(path)
            except RecipeError as error:
                self.job.say(f"{name}: {error}")
                return {"from": maker, "file_bytes": path.stat().st_size, "error": str(error)}
            self.known[key] = found
            write_json(self.path, self.known)
        return {"from": maker, **self.known[key]}

    def _fresh(self, path: Path) -> dict[str, Any]:
        settings = self.settings
        tasks = {
            task: self.job.data / HELD_OUT if task == "passages" else settings.folder
            for task in settings.tasks
        }
        wish = build.Wish(
            context=settings.context, tasks=tasks, questions=settings.questions,
            speed=settings.speed,
        )  # fmt: skip
        found = build.measure(path, self.mixed, wish, self.job.say).as_json()
        core = evaluate.load_core(path, settings.context)
        context = min(settings.context, core.context)
        talk = evaluate.evaluate(core, [c for _, c in self.talk], context)
        found["held_out"] = talk.summary()
        if self.teacher is not None:
            from selm_export.report import quality

            name, reference = self.teacher
            compared = quality.compare(
                quality.of_core(core), reference,
                build.documents(core, self.mixed, context), context=context, name=str(path),
            )  # fmt: skip
            found["reference"] = name
            found["quality"] = {place: q.as_json() for place, q in compared.items()}
        return found

    def routes(self, files: Mapping[str, Path], builds: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first file with an early route against the first of the same experts with a full
        one, if there are both."""
        of = {n: form.table(form.at(builds, n, "routing")) for n in files}
        early = next((n for n, r in of.items() if r.get("route") == "early"), None)
        full = next(
            (
                n
                for n, r in of.items()
                if early and r.get("route") == "full" and r["experts"] == of[early]["experts"]
            ),
            None,
        )
        if early is None or full is None:
            return None
        self.job.say(f"{early} against {full}")
        core = evaluate.load_core(files[early], self.settings.context)
        context = min(self.settings.context, core.context)
        wish = build.Wish(context=context, against=files[full])
        compared = build.quality_against(core, files[early], self.mixed, wish)
        return {"early": early, "full": full, "replies": compared["replies"].as_json()}


def _digest(job: Job, teacher: str | None) -> Sequence[str]:
    """Of the data, and of the teacher's weights."""
    data = [job.data / name for name in (HELD_OUT, MIXED)]
    folders = [folder for folder in job.inputs if folder.name == teacher]
    weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return [file_hash(path) for path in (*data, *weights) if path.exists()]
