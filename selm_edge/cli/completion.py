"""`selm completion`: what a shell needs to complete `selm`."""

from __future__ import annotations

import click

_SETUP = {
    "bash": 'put  eval "$(selm completion bash)"  into ~/.bashrc',
    "zsh": 'put  eval "$(selm completion zsh)"  into ~/.zshrc',
    "fish": "selm completion fish > ~/.config/fish/completions/selm.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(sorted(_SETUP)))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: put  eval "$(selm completion bash)"  into ~/.bashrc
    zsh:  put  eval "$(selm completion zsh)"   into ~/.zshrc
    fish: selm completion fish > ~/.config/fish/completions/selm.fish
    """
    from click.shell_completion import get_completion_class

    from selm_edge.cli.app import selm

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(f"# {_SETUP[shell]}")
    # The template itself: `source()` would first run the shell to ask for its version.
    made = maker(selm, {}, "selm", "_SELM_COMPLETE")
    click.echo(made.source_template % made.source_vars())
