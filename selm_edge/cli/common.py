"""What the commands share: opening a model, errors and exit codes, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from selm_edge.catalog import Entry
    from selm_edge.config import Config
    from selm_edge.model import Model

Function = TypeVar("Function", bound=Callable[..., Any])

FAILED, INTERRUPTED, NO_READER = 1, 130, 141


class NoReader(Exception):
    """Who was reading our output has gone (`selm ask ... | head`)."""


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what a command raises into a message on stderr and an exit code."""
    try:
        yield
    except BaseException as error:
        leave(error)


def leave(error: BaseException) -> NoReturn:
    """End the program as that error asks for; an error nobody foresaw is raised again."""
    from selm_edge.errors import SelmError

    if isinstance(error, click.exceptions.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo("\nstopped", err=True)
        sys.exit(INTERRUPTED)
    if isinstance(error, click.ClickException):
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, (NoReader, BrokenPipeError)):
        # What is still in stdout's buffer has no reader; do not try again while exiting.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_READER)
    if isinstance(error, (SelmError, OSError, ValueError)):
        click.echo(f"error: {plain(str(error))}", err=True)
        sys.exit(FAILED)
    raise error


def plain(text: str) -> str:
    """Text from elsewhere, safe to print on a terminal."""
    from selm_edge.clean import clean

    return clean(text)


def show_json(value: Any, indent: int | None = 2) -> None:
    """Print it as JSON: without loss, and without what a terminal would obey."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    ascii_only = sys.stdout.isatty() or not utf8
    click.echo(json.dumps(value, ensure_ascii=ascii_only, indent=indent, default=str))


def note(text: str) -> None:
    """Something the user should know, beside the output."""
    click.echo(click.style(f"note: {plain(text)}", dim=True), err=True)


class Number(click.FloatRange):
    """A number in a range; ``nan`` is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:  # noqa: PLR0124 - how not-a-number is told
            self.fail(f"{value} is not a number", param, ctx)
        return number


def json_option(function: Function) -> Function:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        function
    )


def model_options(function: Function) -> Function:
    """--model, --backend, --threads, --context: which model, and how it is opened."""
    for option in reversed(
        (
            click.option("--model", "-m", metavar="NAME|PATH", help="A name from `selm models list`"
                         " or the path of a GGUF file or an ONNX folder."),
            click.option("--backend", metavar="NAME", help="native (default for GGUF files),"
                         " llama-cpp, or onnx (default for ONNX folders)."),
            click.option("--threads", type=click.IntRange(1, 4096),
                         help="Default: the cores this process may use."),
            click.option("--context", type=click.IntRange(16, 1 << 24),
                         help="Tokens it can hold (default 4096, at most what it was trained on)."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def open_model(
    config: Config,
    *,
    model: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
    context: int | None = None,
) -> tuple[Entry, Model]:
    """The model asked for on the command line, else the preferred, else the bundled one."""
    from selm_edge.catalog import Catalog
    from selm_edge.model import Model

    for problem in config.problems:
        note(problem)
    catalog = Catalog()
    entry = catalog.resolve(model or config.model)
    for warning in catalog.warnings:
        note(warning)
    opened = Model.load(
        entry.path,
        threads=threads or config.threads,
        context=context or config.context,
        backend=backend or config.backend,
    )
    if context is not None and opened.context < context:
        note(f"--context {context}: the model was trained with {opened.context}, which is used")
    return entry, opened


def human_bytes(count: float) -> str:
    """4.2 MB; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
