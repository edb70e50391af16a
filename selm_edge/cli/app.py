"""The `selm` command and its subcommands, loaded on demand."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from selm_edge import __version__
from selm_edge.cli.common import NoReader, exit_codes

_COMMANDS = {
    "ask": ("ask", "Ask one question; reads a pipe."),
    "bench": ("bench", "Measure this machine with a model."),
    "chat": ("chat", "Open the terminal chat (what plain `selm` does)."),
    "completion": ("completion", "Print the shell completion script."),
    "doctor": ("doctor", "Check the installation."),
    "feedback": ("feedback", "List, count and export your feedback."),
    "memory": ("memory", "Remember, find again, change and forget."),
    "models": ("models", "List, add, remove, inspect and verify models."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and one line each; imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"selm_edge.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if args and " " in args[0]:
                raise click.UsageError(
                    f"there is no command {args[0]!r}; to ask something: selm ask {args[0]!r}", ctx
                ) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would make it the exit code 1
            raise NoReader from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(_COMMANDS.items())])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 it did not work (the reason is on stderr), 2 wrong usage,"
    " 130 stopped with Ctrl+C, 141 the reader of the output went away.",
)
@click.version_option(__version__, "--version", prog_name="selm", message="%(prog)s %(version)s")
@click.option("--model", metavar="NAME|PATH", help="Open the chat with this model.")
@click.option("--plain", is_flag=True, help="A chat without a full screen (screen readers).")
@click.pass_context
def selm(ctx: click.Context, model: str | None, plain: bool) -> None:
    """A private assistant that lives on this device.

    Without a command it opens the chat.

    \b
    Examples:
      selm
      selm ask "What is the capital of France?"
      cat notes.txt | selm ask "summarise"
      selm models add ~/models/qwen2.5-0.5b-q4_0.gguf
    """
    if ctx.invoked_subcommand is None:
        from selm_edge.cli.chat import open_chat

        open_chat(model=model, plain=plain)
    elif model is not None or plain:
        raise click.UsageError(f"put --model and --plain after {ctx.invoked_subcommand!r}", ctx)


def run(args: list[str] | None = None) -> None:
    """Run the program and exit; errors become one clear message and an exit code."""
    with exit_codes():
        result: Any = selm.main(args=args, prog_name="selm", standalone_mode=False)
        sys.stdout.flush()
        if isinstance(result, int) and result:
            sys.exit(result)
