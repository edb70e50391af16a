"""Python processes that import what this one does."""

from __future__ import annotations

import os
import subprocess
import sys


def child_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, **changes}


def run_python(program: str, *args: str) -> subprocess.Popen[str]:
    """``program`` as its own process, with what it prints to be read."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
