"""A stage as a command of its own: its keys are those of the recipe."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_type_hints

import click

from selm_export.errors import RecipeError
from selm_export.recipe import build, stage_module
from selm_export.stages import STAGES
from selm_export.stages.job import Job


def describe(kind: type, prefix: str = "") -> list[str]:
    """One line a key, with its default; nested tables with dots."""
    lines, hints = [], get_type_hints(kind)
    for each in fields(kind):
        hint = hints[each.name]
        inner = next((h for h in (hint, *getattr(hint, "__args__", ())) if is_dataclass(h)), None)
        if inner is not None and isinstance(inner, type) and "tuple" not in str(hint):
            lines += describe(inner, f"{prefix}{each.name}.")
            continue
        default = "needed" if each.default_factory is MISSING else each.default_factory()
        value = default if each.default is MISSING else each.default
        lines.append(f"{prefix}{each.name} = {value!r}" if value != "needed" else
                     f"{prefix}{each.name} (needed)")  # fmt: skip
    return lines


def stage_command(name: str) -> click.Command:
    module = stage_module(name)
    about = STAGES[name]
    keys = "\n".join(describe(module.Settings))
    docs = [cleandoc(vars(c)["__doc__"]) for c in module.Settings.__mro__ if is_dataclass(c)]
    help_text = "\n\n".join([about, *docs, f"\b\nKeys for --set:\n{keys}"])

    @click.option("--from", "inputs", multiple=True, type=click.Path(path_type=Path, exists=True),
                  help="A model's folder, as an earlier stage left it; several where the stage"
                  " takes several, in order.")  # fmt: skip
    @click.option("--data", type=click.Path(path_type=Path, exists=True), help="The folder that"
                  " selm-export data has made.")  # fmt: skip
    @click.option("--output", required=True, type=click.Path(path_type=Path),
                  help="Folder for the results.")  # fmt: skip
    @click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="A key of the stage;"
                  " may be given several times.")  # fmt: skip
    @click.option("--seed", type=int, default=1, show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
    def command(
        *, inputs: tuple[Path, ...], data: Path | None, output: Path, changes: tuple[str, ...],
        seed: int, as_json: bool,
    ) -> None:  # fmt: skip
        from selm_export.cli import read_changes

        table: dict[str, Any] = {}
        for place, value in read_changes(changes).items():
            *path, last = place.split(".")
            inner = table
            for key in path:
                inner = inner.setdefault(key, {})
            inner[last] = value
        settings = build(module.Settings, table, Path(name), "--set")
        output.mkdir(parents=True, exist_ok=True)
        say = (lambda text: click.echo(text, err=True)) if as_json else click.echo
        job = Job(output.name, inputs, output, data or output, seed, say)
        try:
            figures = module.run(job, settings)
        except OSError as error:
            raise RecipeError(output, str(error), "Make room or mend the path") from error
        if figures is None:
            say("stopped; run the same command again to go on")
            raise SystemExit(130)
        if as_json:
            click.echo(json.dumps(figures))
            return
        for key, value in figures.items():
            click.echo(f"{key:22} {value}")

    return click.command(name, help=help_text, short_help=about)(command)
