"""The ``selm-export`` command. Torch is imported only by the command that needs it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from selm_export.errors import RecipeError

STAGES = ("data", "tokenizer", "train", "gguf", "evaluate", "card")


class Group(click.Group):
    """Shows the user's errors as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Trains, exports and measures models for SELM Edge."""


def moment(text: str | None) -> float | None:
    """``12:45`` (the next time that it is so, local time) or ``2026-11-21T12:45`` as a time."""
    if text is None:
        return None
    try:
        if "T" in text:
            return datetime.fromisoformat(text).timestamp()
        hour, minute = (int(part) for part in text.split(":"))
        today = datetime.now().replace(hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no time such as 18:30", param_hint="--finish-by"
        ) from error
    found = today.timestamp()
    return found if found > time.time() else found + 86400


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Data folder, instead of the recipe's."
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for caches, checkpoints and"
              " logs. Default: runs/NAME.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("selm_edge/models"),
              show_default=True,
              help="Folder that gets the finished model and its card.")  # fmt: skip
@click.option("--from", "first", type=click.Choice(STAGES), help="Run this stage and all later ones"
              " again.")  # fmt: skip
@click.option("--until", "last", type=click.Choice(STAGES), help="Stop after this stage.")
@click.option("--finish-by", metavar="TIME", help="End the training at this time (18:30), however"
              " much it has seen; the learning rate falls towards it.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Training processes.")
@click.option("--continue", "keep", is_flag=True, help="Train on from the checkpoint though the"
              " recipe or the data has changed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would run.")
def run(
    recipe: Path, *, data: Path | None, work: Path | None, output: Path, first: str | None,
    last: str | None, finish_by: str | None, workers: int | None, keep: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Runs a RECIPE (a .toml file) from data to a finished model.

    Finished stages are not repeated. Ctrl+C saves and stops; the same command goes on.
    """
    from dataclasses import replace

    from selm_export.ledger import Ledger, run_stages
    from selm_export.pipeline import Pipeline
    from selm_export.recipe import read_recipe

    deadline = moment(finish_by)
    found = read_recipe(recipe, data)
    if workers:
        found = replace(found, settings=replace(found.settings, workers=workers))
    folder = work or Path("runs") / found.name
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / "stages.json")
    pipeline = Pipeline(found, folder, output, deadline, keep, click.echo)
    stages = pipeline.stages(ledger)
    if not run_stages(stages, ledger, click.echo, first=first, last=last, dry=dry_run):
        raise SystemExit(130)


@main.command()
@click.option(
    "--model", "name", required=True, help="A .gguf file, or the name of a bundled model."
)
@click.option("--data", "files", required=True, multiple=True, type=click.Path(path_type=Path),
              help="A talk file, or .jsonl whose lines hold messages; plain or .xz. May be given"
              " several times.")  # fmt: skip
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.option("--context", type=click.IntRange(min=2), default=4096, show_default=True,
              help="Longer conversations are cut to whole replies.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    name: str, files: tuple[Path, ...], more: tuple[Path, ...], context: int, as_json: bool
) -> None:
    """Bits per byte of the replies in the data, computed by the inference core."""
    from selm_export.report import evaluate as measuring

    conversations = [c for path in (*files, *more) for c in measuring.read_data(path)]
    if not conversations:
        raise RecipeError(files[0], "holds no conversation", "Give a file with replies")
    core = measuring.load_core(measuring.find_model(name), context)
    summary = measuring.evaluate(core, conversations, context).summary()
    if as_json:
        click.echo(json.dumps(summary))
        return
    for key, value in summary.items():
        click.echo(f"{key:18} {value:.4f}" if isinstance(value, float) else f"{key:18} {value}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Data folder, instead of the recipe's."
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for data, checkpoint and log."
              " Default: runs/NAME-exits.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Default: NAME-exits-q8_0.gguf in"
              " the work folder.")  # fmt: skip
@click.option("--layers", metavar="N[,N]", default="1,2", show_default=True,
              help="Exits are after these layers, counted from 1.")  # fmt: skip
@click.option("--shortlist", type=click.IntRange(min=1), default=1024, show_default=True,
              help="Tokens that drafts choose from.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), default=1_000_000, show_default=True,
              help="To train on.")  # fmt: skip
@click.option("--finish-by", metavar="TIME", help="End the training at this time instead.")
@click.option("--workers", type=click.IntRange(min=1), help="Training processes.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as one JSON object.")
def exits(
    model: Path, recipe: Path, *, data: Path | None, work: Path | None, output: Path | None,
    layers: str, shortlist: int, tokens: int, finish_by: str | None, workers: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Teaches MODEL, which RECIPE made, to speak early, so that it can draft for itself.

    Ctrl+C saves and stops; the same command goes on. Writes a file of the architecture selm.
    """
    from selm_export import exits as retrofit
    from selm_export.recipe import read_recipe

    try:
        after = tuple(sorted({int(part) for part in layers.split(",")}))
    except ValueError as error:
        raise click.BadParameter(
            f"{layers!r} is no list of layers such as 1,2", param_hint="--layers"
        ) from error
    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    found = read_recipe(recipe, data)
    folder = work or Path("runs") / f"{found.name}-exits"
    target = output or folder / f"{found.name}-exits-q8_0.gguf"
    deadline = moment(finish_by)
    wish = retrofit.Wish(after, shortlist, tokens, workers)
    measured = retrofit.run(model, found, wish, folder, output=target, finish_by=deadline, say=say)
    if measured is None:
        raise SystemExit(130)
    if as_json:
        click.echo(json.dumps(measured))


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", "files", required=True, multiple=True, type=click.Path(path_type=Path),
              help="Prompts like those of use: a talk file, or .jsonl whose lines hold messages;"
              " plain or .xz. May be given several times.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Default: MODEL itself, replaced"
              " once the new file is whole.")  # fmt: skip
@click.option("--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05,
              show_default=True,
              help="Share of tokens that may differ from the whole model's.")  # fmt: skip
@click.option("--epsilon", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05,
              show_default=True, help="How likely that bound may fail.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(min=1), default=1000, show_default=True,
              help="At most so many, chosen by chance.")  # fmt: skip
@click.option("--max-tokens", "most", type=click.IntRange(min=2), default=64, show_default=True,
              help="Of each reply.")  # fmt: skip
@click.option("--context", type=click.IntRange(min=16), default=1024, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
def calibrate(
    model: Path, *, files: tuple[Path, ...], output: Path | None, delta: float, epsilon: float,
    prompts: int, most: int, context: int, as_json: bool,
) -> None:  # fmt: skip
    """Lets MODEL's exit speak unverified where it is sure, with a bound on what that costs.

    The bound holds for greedy replies to prompts like those of the data, and for these weights
    alone: do it again after quantising. Used with draft "calibrated", and only then.
    """
    from selm_export import calibrate as calibration
    from selm_export.report import evaluate as measuring

    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    found = calibration.run(
        model, [c for path in files for c in measuring.read_data(path)],
        calibration.Bound(delta, epsilon), output=output or model, context=context, most=most,
        prompts=prompts, say=say,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"written: {output or model}\n"
        f"from a probability of {found['threshold']} on the exit speaks:"
        f" {found['early']:.0%} of tokens, {found['loss']:.2%} not the whole model's (at most"
        f" {delta:.1%} with probability {1 - epsilon:.0%}), {found['speed_up']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
