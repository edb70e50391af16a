"""Python processes that import what this one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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


def torchrun(*arguments: str | Path) -> str:
    """Two processes that train together (gloo), a script or ``-m module``; what they print.

    A script may import the tests of the export side.
    """
    environment = child_environment(OMP_NUM_THREADS="1")
    tests = str(Path(__file__).parents[1] / "export")
    environment["PYTHONPATH"] = os.pathsep.join([tests, environment["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
