"""`selm models adapter`: what was learnt from feedback, added to a model and taken away again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selm_edge.cli.common import human_bytes, json_option, note, plain, show_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from selm_edge.adapters import AdapterShelf
    from selm_edge.catalog import Entry

_model = click.option(
    "--model", metavar="NAME or PATH", help="Of this model; default: the usual one."
)


@click.group()
def adapter() -> None:
    """Add, use and leave adapters (LoRA files in llama.cpp's format).

    A change holds for the next question of every chat and `selm ask`; nothing is loaded anew.

    \b
    Examples:
      selm models adapter add july/adapter.gguf --name july
      selm models adapter enable july
      selm models adapter rollback
    """


def _shelf() -> AdapterShelf:
    from selm_edge.adapters import AdapterShelf

    return AdapterShelf()


def _entry(model: str | None) -> Entry:
    from selm_edge import config
    from selm_edge.catalog import Catalog

    return Catalog().resolve(model or config.load().model)


@adapter.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_model
@click.option("--name", metavar="NAME", help="What to call it; default: the file's name.")
@click.option("--enable", "use", is_flag=True, help="Use it from now on.")
@json_option
def add(file: Path, model: str | None, name: str | None, use: bool, as_json: bool) -> None:
    """Copy an adapter here, once its model has been opened with it."""
    shelf = _shelf()
    made = shelf.add(file, _entry(model), name)
    if use:
        shelf.enable(made.name)
    if as_json:
        show_json({**asdict(made), "in_use": use})
        return
    size = human_bytes(made.size)
    click.echo(plain(f"added {made.name} ({size}, rank {made.rank}) for {made.model_name}"))
    if not use:
        click.echo(f"Use it: selm models adapter enable {made.name}")


@adapter.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The adapters there are; * marks those in use."""
    shelf = _shelf()
    adapters = shelf.all()
    for warning in shelf.warnings:
        note(warning)
    scales = {a.name: shelf.in_use(a.model_sha256).get(a.name) for a in adapters}
    if as_json:
        show_json([{**asdict(a), "scale": scales[a.name]} for a in adapters])
        return
    if not adapters:
        click.echo("no adapters yet. Add one: selm models adapter add PATH/TO/adapter.gguf")
    width = max((len(a.name) for a in adapters), default=0)
    for one in adapters:
        scale = scales[one.name]
        mark = " " if scale is None else "*"
        times = "" if scale in (None, 1.0) else f"  times {scale:g}"
        size = human_bytes(one.size)
        click.echo(plain(f"{mark} {one.name:{width}}  {size:>9}  for {one.model_name}{times}"))


@adapter.command()
@click.argument("name")
@click.option("--scale", type=float, default=1.0, show_default=True, help="How much of it.")
@json_option
def enable(name: str, scale: float, as_json: bool) -> None:
    """Use an adapter, beside those in use on its model."""
    _told(_shelf().enable(name, scale), as_json)


@adapter.command()
@click.argument("name")
@json_option
def disable(name: str, as_json: bool) -> None:
    """Use it no more; it stays in the list."""
    _told(_shelf().disable(name), as_json)


@adapter.command()
@_model
@json_option
def rollback(model: str | None, as_json: bool) -> None:
    """Back to what was in use before the last change; again goes one further."""
    from selm_edge.catalog import sha256_of

    entry = _entry(model)
    _told(_shelf().rollback(entry.sha256 or sha256_of(entry.path)), as_json)


@adapter.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Delete the copy here; where it is in use, it is no more."""
    gone = _shelf().remove(name)
    if as_json:
        show_json(asdict(gone))
    else:
        click.echo(f"removed {gone.name}")


def _told(in_use: Mapping[str, float], as_json: bool) -> None:
    if as_json:
        show_json({"in_use": dict(in_use)})
        return
    names = ", ".join(
        name if scale == 1 else f"{name} times {scale:g}" for name, scale in in_use.items()
    )
    click.echo(f"in use: {names or 'none'}")
