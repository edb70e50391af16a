"""The command `selm-export evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selm_export.errors import RecipeError

if TYPE_CHECKING:
    from selm_export.report.build import Build
    from selm_export.report.memory_data import Split

FILE = click.Path(path_type=Path)


def parse_tasks(text: str | None, folder: Path) -> dict[str, Path]:
    """``gsm8k,medqa=mine.jsonl`` as each task's file, or the folder that holds it."""
    from selm_export.report.scores import TASKS

    found = {}
    for part in (text or "").split(","):
        name, _, path = part.strip().partition("=")
        if not name:
            continue
        if name not in TASKS:
            raise click.BadParameter(
                f"there is no task {name!r}; tasks: {', '.join(TASKS)}", param_hint="--tasks"
            )
        found[name] = Path(path) if path else folder
    return found


@click.command()
@click.option("--model", "name", help="A model's file, or the name of a bundled model; needed"
              " unless --memory is given.")  # fmt: skip
@click.option("--data", "files", multiple=True, type=FILE, help="A talk file, or .jsonl whose lines"
              " hold messages; plain or .xz. May be given several times.")  # fmt: skip
@click.argument("more", nargs=-1, type=FILE)
@click.option("--context", type=click.IntRange(min=2), default=4096, show_default=True,
              help="Longer conversations are cut to whole replies.")  # fmt: skip
@click.option("--backend", type=click.Choice(("native", "llama-cpp", "onnx")), default="native",
              show_default=True, help="What runs the model.")  # fmt: skip
@click.option("--against", type=FILE, help="The model before it was quantised, pruned, ...: gives"
              " the perplexity ratio, mean and 99 % KLD, same top token.")  # fmt: skip
@click.option("--tasks", metavar="NAME[=FILE],...", help="Scores, each with its ± and the level of"
              " chance: gsm8k, medqa, medmcqa, boolq, arc, openbookqa, medquad, passages, notes,"
              " declined, arithmetic.")  # fmt: skip
@click.option("--task-data", "folder", type=FILE, default=Path("../shared/data"),
              show_default=True, help="Folder of the tasks' files.")  # fmt: skip
@click.option("--questions", type=click.IntRange(min=1), help="At most so many of each task,"
              " drawn by chance, always the same.")  # fmt: skip
@click.option("--speed", is_flag=True, help="Also tokens a second and memory, by the package's"
              " own core.")  # fmt: skip
@click.option("--memory", is_flag=True, help="How well the memory finds what answers a question:"
              " by words (BM25), by vectors, by both. Needs no model.")  # fmt: skip
@click.option("--embedder", default="builtin", show_default=True, help="What makes vectors for"
              " --memory: builtin, off, or a file.")  # fmt: skip
@click.option("--split", type=click.Choice(("test", "dev")), default="test", show_default=True,
              help="What --memory asks: test to report, dev to choose by.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    name: str | None, *, files: tuple[Path, ...], more: tuple[Path, ...], context: int,
    backend: str, against: Path | None, tasks: str | None, folder: Path, questions: int | None,
    speed: bool, memory: bool, embedder: str, split: Split, as_json: bool,
) -> None:  # fmt: skip
    """Bits per byte of the replies in the data, by the engine that a device runs.

    An ensemble also says how each expert does alone, and who speaks in which domain: that of a
    line's "domain", else what its file's name says (math, medical, else general).
    """
    if memory:
        if name or files or more or tasks:
            raise click.UsageError("--memory asks no model: leave out --model, --data and --tasks")
        _measure_memory(folder, split, embedder, as_json)
        return
    if name is None:
        raise click.UsageError("name a model with --model, or ask for --memory")
    from selm_export.report import build
    from selm_export.report.evaluate import find_model, read_labelled

    paths = [*files, *more]
    labelled = [pair for path in paths for pair in read_labelled(path)]
    if paths and not labelled:
        raise RecipeError(paths[0], "holds no conversation", "Give a file with replies")
    chosen = parse_tasks(tasks, folder)
    if not (paths or chosen or speed):
        raise click.UsageError("nothing to measure: give --data, --tasks or --speed")
    if against is not None and not paths:
        raise click.UsageError("--against compares on the conversations of --data: give some")
    wish = build.Wish(backend, context, chosen, questions, against, speed)
    # Without --json the figures come at the end, all together.
    found = build.measure(find_model(name), labelled, wish, lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(found.as_json()))
        return
    _tell(found)


def _measure_memory(folder: Path, split: Split, embedder: str, as_json: bool) -> None:
    from selm_export.report.memory import lines, measure_all

    measured = measure_all(folder, split, embedder, lambda text: click.echo(text, err=True))
    click.echo(json.dumps(measured) if as_json else "\n".join(lines(measured)))


def _tell(found: Build) -> None:
    from selm_export.report.build import told

    click.echo(f"{'file':18} {found.path.name}, {found.file_bytes / 1e6:.2f} MB")
    if found.score is not None:
        for key, value in found.score.summary().items():
            click.echo(f"{key:18} {value:.4f}" if isinstance(value, float) else f"{key:18} {value}")
    for place, quality in found.quality.items():
        click.echo(f"against the reference, {place}:")
        for key, value in quality.as_json().items():
            if isinstance(value, dict):
                click.echo(f"  {key:22} {value['value']:.5f} ± {value['error'] or 0:.5f}")
            else:
                click.echo(f"  {key:22} {value:.5f}" if isinstance(value, float)
                           else f"  {key:22} {value}")  # fmt: skip
    if found.routing is not None:
        parts = {**found.routing.domains(), "all": found.routing.mixed()}
        for domain, part in parts.items():
            alone = ", ".join(f"{n} {e.value:.4f}" for n, e in part.by_expert.items())
            spoke = ", ".join(f"{n} {share:.1%}" for n, share in part.route.items())
            click.echo(f"{domain:18} nll {part.nll.value:.4f} (alone: {alone}); spoke: {spoke}")
    for scored in found.scores:
        click.echo(told(scored))
    if found.speed is not None:
        memory = f", {found.speed.peak_mb:.0f} MB" if found.speed.peak_mb else ""
        click.echo(
            f"{'speed':18} {found.speed.prompt:.1f} prompt tokens a second,"
            f" {found.speed.decode:.1f} decoded{memory}"
        )
