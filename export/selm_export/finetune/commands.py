"""The command `selm-export finetune`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from selm_export.errors import RecipeError

FILE = click.Path(path_type=Path)
PASSPHRASE = "SELM_PASSPHRASE"


@click.command()
@click.argument("bundles", nargs=-1, type=FILE)
@click.option("--base", required=True, type=FILE, help="The model's GGUF file that the device has,"
              " or the name of a bundled model.")  # fmt: skip
@click.option("--output", type=FILE, default=Path("finetuned"), show_default=True,
              help="Folder of the adapter and its report.")  # fmt: skip
@click.option("--title", default="Feedback", show_default=True, help="What it calls itself.")
@click.option("--data", type=FILE, help="A folder of `selm-export data`: its conversations are"
              " replayed, so that less is forgotten.")  # fmt: skip
@click.option("--rounds", type=float, default=10.0, show_default=True, help="Over the feedback.")
@click.option("--rate", type=float, default=8e-4, show_default=True, help="Learning rate.")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of the pairs.")
@click.option("--questions", type=click.IntRange(1), default=1000, show_default=True,
              help="Of each suite that must not get worse.")  # fmt: skip
@click.option("--every-model", is_flag=True, help="Learn from replies of other models, too.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--doctor", is_flag=True, help="Only say how many rows, how long, how much memory.")
@click.option("--watch", type=FILE, help="A folder: whenever it has enough new bundles, learn from"
              " all of them. Ctrl+C ends it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def finetune(
    bundles: tuple[Path, ...], base: Path, output: Path, *, title: str, data: Path | None,
    rounds: float, rate: float, rank: int, questions: int, every_model: bool, seed: int,
    doctor: bool, watch: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Learns an adapter from BUNDLES of `selm feedback export --format bundle`.

    It is accepted where it gains on feedback that it has not seen and no suite loses more than a
    point; else it is kept as refused.gguf, and the report says why (exit status 3). Ctrl+C saves
    and stops, the same command goes on.

    \b
      selm-export finetune july.selm-feedback --base selm-tiny --output july
      selm models adapter add july/adapter.gguf --name july --enable
    """
    from selm_export.finetune import run
    from selm_export.finetune.learn import Plan
    from selm_export.report.evaluate import find_model

    if bool(bundles) == bool(watch):
        raise click.UsageError("name bundles, or a folder to --watch")
    if watch is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError("--watch is for one process: each would look for itself")
    plan = replace(Plan(), rounds=rounds, rate=rate, rank=rank)
    request = run.Request(
        bundles, find_model(str(base)), output, title, os.environ.get(PASSPHRASE), data,
        questions=questions, plan=plan, seed=seed, every_model=every_model,
    )  # fmt: skip
    say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
    if watch is not None:
        _watch(watch, request, say, as_json)
    elif doctor:
        _tell_needs(run.doctor(request), as_json)
    else:
        raise SystemExit(_learn(request, say, as_json))


def _learn(request: Any, say: Any, as_json: bool) -> int:
    from selm_export.finetune import run
    from selm_export.training.processes import processes

    report = run.finetune(request, say)
    if report is None:
        return 130
    if not processes().is_main_process:
        return 0
    click.echo(json.dumps(report, indent=2) if as_json else run.page(report))
    if not as_json and report["verdict"]["accepted"]:
        click.echo(
            f"On the device: selm models adapter add {report['adapter']} --model {request.base}"
            " --enable"
        )
    return 0 if report["verdict"]["accepted"] else 3


def _tell_needs(needs: dict[str, Any], as_json: bool) -> None:
    from selm_export.training.trainer import duration

    if as_json:
        click.echo(json.dumps(needs))
        return
    rows = ", ".join(f"{count} {kind}" for kind, count in needs["rows"].items()) or "no rows"
    click.echo(f"{rows}; {needs['rows_of_other_models']} about other models")
    click.echo(
        f"about {needs['tokens']:,} tokens, {duration(needs['seconds'])} here,"
        f" {needs['memory_mb']:,} MB of memory"
    )
    if not needs["enough"]:
        click.echo("too few to learn from")


SECONDS = 30.0  # between two looks
NEW = 2
"""Bundles that must be new before it learns again."""


def _watch(folder: Path, request: Any, say: Any, as_json: bool) -> None:
    """Until it is ended. Each adapter is in a folder of its own, by its number."""
    learnt: set[Path] = set()
    number = 1
    while True:
        there = {path for path in folder.glob("*") if path.is_file() and path.name[0] != "."}
        if len(there - learnt) >= NEW or (not learnt and there):
            while (request.output / str(number)).exists():
                number += 1
            job = replace(
                request, bundles=tuple(sorted(there)), output=request.output / str(number)
            )
            say(f"{len(there)} bundles: adapter {number}")
            try:
                if _learn(job, say, as_json) == 130:
                    return
            except RecipeError as problem:  # a file that is still being copied, too few rows
                say(str(problem))
            learnt = there
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            return
