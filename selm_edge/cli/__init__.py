"""The command line. Each command is a module of its own, imported when it is used."""

from __future__ import annotations

import sys


def main() -> None:
    """The `selm` program. ``--version`` is answered without importing anything more."""
    if sys.argv[1:] == ["--version"]:
        from selm_edge import __version__

        print(f"selm {__version__}")
        return
    from selm_edge.cli.app import run

    run()
