"""The command `selm-export evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selm_export.errors import RecipeError

if TYPE_CHECKING:
    from selm_export.report.build import Build

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
@click.option("--model", "name", required=True, help="A model's file, or the name of a bundled"
              " model.")  # fmt: skip
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    name: str, *, files: tuple[Path, ...], more: tuple[Path, ...], context: int, backend: str,
    against: Path | None, tasks: str | None, folder: Path, questions: int | None, speed: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Bits per byte of the replies in the data, by the engine that a device runs.

    An ensemble also says how each expert does alone, and who speaks in which domain: that of a
    line's "domain", else what its file's name says (math, medical, else general).
    """
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
