"""`selm chat`: hands over to the terminal chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from selm_edge.cli.ask import reply_options

if TYPE_CHECKING:
    from selm_edge.backends.base import Draft


@click.command()
@click.option("--model", "-m", metavar="NAME|PATH", help="One of `selm models list`, or a path.")
@click.option("--plain", is_flag=True, help="No full screen: for screen readers and TERM=dumb.")
@reply_options
def chat(model: str | None, plain: bool, draft: Draft, expert: str) -> None:
    """Open the terminal chat.

    \b
    Examples:
      selm chat
      selm chat --model ~/models/qwen2.5-0.5b-q4_0.gguf
      selm chat --plain
      selm chat --model ensemble --expert medical
    """
    open_chat(model=model, plain=plain, draft=draft, expert=expert)


def open_chat(
    *, model: str | None, plain: bool, draft: Draft = "auto", expert: str = "auto"
) -> None:
    from selm_edge import paths
    from selm_edge.chat.app import run_chat
    from selm_edge.cli.passphrase import passphrase_for

    passphrase = passphrase_for(paths.database_file())
    run_chat(model=model, plain=plain, draft=draft, expert=expert, passphrase=passphrase)
