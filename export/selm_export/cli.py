"""The ``selm-export`` command. Torch is imported only by the command that needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from selm_export.errors import RecipeError
from selm_export.finetune.commands import finetune
from selm_export.report.commands import evaluate
from selm_export.stages import STAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Group(click.Group):
    """Shows the user's errors as one line, without a traceback; each stage is a command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            raise click.ClickException(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *STAGES})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = super().get_command(ctx, name)
        return StageCommand(name) if found is None and name in STAGES else found


class StageCommand(click.Command):
    """A stage's command; its module, and torch, are loaded once it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name, short_help=STAGES[name])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        from selm_export.stage_command import stage_command

        return stage_command(str(self.name)).make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return ctx.command.invoke(ctx)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Trains, compresses, exports and measures models for SELM Edge.

    `run` goes through a recipe; every stage is also a command of its own.
    """


def read_changes(changes: tuple[str, ...]) -> dict[str, Any]:
    """``train.tokens=1000`` as a place and a value of TOML; what is none is text."""
    found = {}
    for change in changes:
        place, sign, text = change.partition("=")
        if not sign or not place:
            raise click.BadParameter(f"{change!r} is not KEY=VALUE", param_hint="--set")
        try:
            found[place] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[place] = text
    return found


main.add_command(evaluate)
main.add_command(finetune)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), help="Folder of the run, one folder a step"
              " in it. Default: runs/NAME.")  # fmt: skip
@click.option("--from", "first", metavar="STEP", help="Run this step and all later ones again.")
@click.option("--until", "last", metavar="STEP", help="Stop after this step.")
@click.option("--set", "changes", multiple=True, metavar="STEP.KEY=VALUE", help="Another value"
              " than the recipe's, such as base.train.tokens=1000; several times.")  # fmt: skip
@click.option("--continue", "keep", is_flag=True, help="Go on from what an unfinished step left"
              " though the recipe or the data has changed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would run, and what time, memory and disk"
              " it will need.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the report as JSON.")
def run(
    recipe: Path, *, work: Path | None, first: str | None, last: str | None,
    changes: tuple[str, ...], keep: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Runs a RECIPE (a .toml file) from data to a finished model and its report.

    Finished steps are not repeated. Ctrl+C saves and stops; the same command goes on. Under
    torchrun all processes train together.
    """
    from selm_export.pipeline import Pipeline
    from selm_export.recipe import read_recipe

    found = read_recipe(recipe, read_changes(changes))
    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    pipeline = Pipeline(found, work or Path("runs") / found.name, say, keep)
    if dry_run:
        _tell_plan(pipeline, first, last, as_json)
        return
    if not pipeline.run(first, last):
        raise SystemExit(130)
    if as_json:
        click.echo((pipeline.work / "report.json").read_text(encoding="utf-8"))


def _tell_plan(pipeline: Any, first: str | None, last: str | None, as_json: bool) -> None:
    from selm_export.estimate import costs
    from selm_export.training.trainer import duration

    plan = pipeline.plan(first, last)
    found = {step.name: cost for step, cost in costs(pipeline.recipe, pipeline.work, plan)}
    if as_json:
        rows = [
            {"name": step.name, "stage": step.stage, "runs": runs}
            | (vars(found[step.name]) if runs else {})
            for step, runs in plan
        ]
        click.echo(json.dumps(rows))
        return
    for step, runs in plan:
        if not runs:
            click.echo(f"{step.name:16} {step.stage:10} done before")
            continue
        cost = found[step.name]
        click.echo(
            f"{step.name:16} {step.stage:10} about {duration(cost.seconds):>8},"
            f" {cost.memory / 1e6:7.0f} MB of memory, {cost.disk / 1e6:7.0f} MB of disk"
        )
    total = sum(cost.seconds for cost in found.values())
    memory = max((cost.memory for cost in found.values()), default=0)
    disk = sum(cost.disk for cost in found.values())
    click.echo(
        f"in all about {duration(total)}, {memory / 1e6:.0f} MB of memory,"
        f" {disk / 1e6:.0f} MB of disk"
    )


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--search", "searched", multiple=True, required=True, metavar="STEP.KEY=LOW..HIGH",
              help="Values to search; or ONE,ANOTHER,... May be given several times.")  # fmt: skip
@click.option("--minimize", "goal", required=True, metavar="STEP.FIGURE", help="A number of the"
              " report, such as base.bits_per_byte.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True,
              help="In all, over every process that takes part.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), help="Folder of the study; processes that"
              " share it share the study. Default: runs/NAME-tune.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="STEP.KEY=VALUE", help="Another value for"
              " every trial, such as a shorter training.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the best values as JSON.")
def tune(
    recipe: Path, *, searched: tuple[str, ...], goal: str, trials: int, work: Path | None,
    changes: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Searches the values of a RECIPE that make a figure of its report small.

    Run the same command in several processes, and they search together. Stopped, it goes on.
    """
    from selm_export import tune as tuning

    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    folder = work or Path("runs") / f"{recipe.stem}-tune"
    ranges = [tuning.read_range(text) for text in searched]
    tuner = tuning.Tuner(
        recipe, ranges, tuning.Goal.read(goal), folder, changes=read_changes(changes), say=say
    )
    found = tuner.run(trials)
    if as_json:
        click.echo(json.dumps(found))
        return
    values = ", ".join(f"{place} = {value}" for place, value in found["values"].items())
    click.echo(f"best of {found['trials']}: {goal} {found['best']:.4f} with {values}")


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
@click.option("--adapter", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="With this adapter: its file is what gets the calibration.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(min=1), default=1000, show_default=True,
              help="At most so many, chosen by chance.")  # fmt: skip
@click.option("--max-tokens", "most", type=click.IntRange(min=2), default=64, show_default=True,
              help="Of each reply.")  # fmt: skip
@click.option("--context", type=click.IntRange(min=16), default=1024, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
def calibrate(
    model: Path, *, files: tuple[Path, ...], output: Path | None, delta: float, epsilon: float,
    adapter: Path | None, prompts: int, most: int, context: int, as_json: bool,
) -> None:  # fmt: skip
    """Lets MODEL's exit speak unverified where it is sure, with a bound on what that costs.

    The bound holds for greedy replies to prompts like those of the data, and for these weights
    alone: do it again after quantising. Used with draft "calibrated", and only then.
    """
    from selm_export import calibrate as calibration
    from selm_export.report import evaluate as measuring

    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    written = output or adapter or model
    found = calibration.run(
        model, [c for path in files for c in measuring.read_data(path)],
        calibration.Bound(delta, epsilon), output=written, context=context, most=most,
        prompts=prompts, say=say, adapter=adapter,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"written: {written}\n"
        f"from a probability of {found['threshold']} on the exit speaks:"
        f" {found['early']:.0%} of tokens, {found['loss']:.2%} not the whole model's (at most"
        f" {delta:.1%} with probability {1 - epsilon:.0%}), {found['speed_up']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
