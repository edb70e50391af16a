"""The command line. Each command is a module of its own, imported when it is used."""

from __future__ import annotations

import sys


def main() -> None:
    """The `selm` program.

    ``--version`` is answered without importing anything more, and the chat opens without the
    command line's own machinery: both should be there at once.
    """
    _make_printable()
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from selm_edge import __version__

        print(f"selm {__version__}")
    elif not arguments and not _completing():
        _open_chat()
    else:
        from selm_edge.cli.app import run

        run()


def _make_printable() -> None:
    """A character that the terminal's encoding lacks becomes a question mark, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is None:  # replaced by a caller, or there is none (pythonw)
            continue
        if sys.platform == "win32" and not stream.isatty():
            reconfigure(encoding="utf-8")
        reconfigure(errors="replace")


def _open_chat() -> None:
    try:
        from selm_edge import paths
        from selm_edge.chat.app import run_chat
        from selm_edge.cli.passphrase import passphrase_for

        run_chat(passphrase=passphrase_for(paths.database_file()))
    except BaseException as error:
        from selm_edge.cli.common import leave

        leave(error)


def _completing() -> bool:
    """Whether the shell asks for completions rather than for the program."""
    import os

    return "_SELM_COMPLETE" in os.environ
