"""`selm chat`: hands over to the terminal chat."""

from __future__ import annotations

import click


@click.command()
@click.option("--model", "-m", metavar="NAME|PATH", help="One of `selm models list`, or a path.")
@click.option("--plain", is_flag=True, help="No full screen: for screen readers and TERM=dumb.")
def chat(model: str | None, plain: bool) -> None:
    """Open the terminal chat.

    \b
    Examples:
      selm chat
      selm chat --model ~/models/qwen2.5-0.5b-q4_0.gguf
      selm chat --plain
    """
    open_chat(model=model, plain=plain)


def open_chat(*, model: str | None, plain: bool) -> None:
    from selm_edge.chat.app import run_chat

    run_chat(model=model, plain=plain)
