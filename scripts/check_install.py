"""Is the installed runtime as small, and does it start as fast, as it promises?

    python scripts/check_install.py VENV/bin/python [--runs 9]

Looks at an environment into which only the wheel was installed: counts its distributions and their
bytes (the bundled models, pip and setuptools apart), asserts that torch and numpy are not there,
and times `selm --version` against `python -c pass`. Prints what it found as JSON; exits 1 with the
reasons on stderr where a limit is broken. The time limit is generous: it is for a start that became
heavy, not for a busy machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_DISTRIBUTIONS = 20
MOST_BYTES = 60_000_000
MOST_RATIO = 8.0
FORBIDDEN = ("torch", "numpy")

LOOK = r"""
import json, sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

names, total, models = {}, 0, 0
for found in distributions():
    name = found.metadata["Name"].lower().replace("_", "-")
    if name in names or name in ("pip", "setuptools"):
        continue
    names[name] = found.version
    root = Path(found.locate_file("")).resolve()
    for file in found.files or ():
        path = Path(found.locate_file(file)).resolve()
        size = path.stat().st_size if path.is_file() else 0
        inside = path.relative_to(root).parts if path.is_relative_to(root) else ()
        if inside[:2] == ("selm_edge", "models"):
            models += size
        else:
            total += size
there = [name for name in sys.argv[1:] if find_spec(name) is not None]
print(json.dumps({"distributions": names, "bytes": total, "model_bytes": models, "there": there}))
"""


def look(python: str, folder: str) -> dict[str, Any]:
    """What is installed there. Run outside the checkout, whose sources must not be found."""
    command = [python, "-I", "-c", LOOK, *FORBIDDEN]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds(command: Sequence[str], folder: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - began


def start_times(python: str, runs: int, folder: str) -> tuple[float, float]:
    """Medians of `selm --version` and of an interpreter that does nothing, taken in turn."""
    selm = shutil.which("selm", path=str(Path(python).parent))
    if selm is None:
        raise SystemExit(f"error: there is no selm beside {python}")
    both = [[selm, "--version"], [python, "-c", "pass"]]
    for command in both:  # the disk's cache and the compiled modules, once
        seconds(command, folder)
    times = [[seconds(command, folder) for command in both] for _ in range(runs)]
    ours, bare = zip(*times, strict=True)
    return statistics.median(ours), statistics.median(bare)


def problems(found: dict[str, Any], ratio: float) -> list[str]:
    wrong = [f"{name} is installed" for name in found["there"]]
    if "selm-edge" not in found["distributions"]:
        wrong.append("selm-edge is not installed")
    if len(found["distributions"]) > MOST_DISTRIBUTIONS:
        wrong.append(f"{len(found['distributions'])} distributions; at most {MOST_DISTRIBUTIONS}")
    if found["bytes"] > MOST_BYTES:
        wrong.append(f"{found['bytes'] / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f}")
    if ratio > MOST_RATIO:
        wrong.append(f"selm --version takes {ratio:.1f} times a bare start; at most {MOST_RATIO:g}")
    return wrong


def main() -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "python",
        type=lambda text: str(Path(text).absolute()),
        help="the interpreter of the environment",
    )
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = look(options.python, folder)
        ours, bare = start_times(options.python, options.runs, folder)
    wrong = problems(found, ours / bare)
    figures = {
        "distributions": len(found["distributions"]),
        "names": found["distributions"],
        "bytes": found["bytes"],
        "model_bytes": found["model_bytes"],
        "version_seconds": round(ours, 4),
        "bare_seconds": round(bare, 4),
        "ratio": round(ours / bare, 2),
    }
    print(json.dumps(figures, indent=2))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
