"""How fast the inference core runs a file, and in how much memory: what `selm bench` says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from selm_export.errors import RecipeError

# By import, not as the program `selm`: that may be another installation's, or not be on the path.
BENCH = "from selm_edge.cli import main; main()"
SECONDS = 900


@dataclass(frozen=True)
class Speed:
    """``peak_mb``: resident memory of a process that does nothing else, the file's pages and
    Python itself included (MB = 10^6 bytes as `selm bench` counts them)."""

    prompt: float  # tokens a second, read together
    decode: float  # tokens a second, one by one
    peak_mb: float | None
    threads: int
    prompt_tokens: int
    decode_tokens: int


def measure(path: Path, *, prompt: int = 256, generate: int = 64, rounds: int = 3) -> Speed:
    """In a process of its own, so that what is loaded here counts for nothing. RecipeError where
    the core does not run the file."""
    command = [sys.executable, "-c", BENCH, "bench", "--model", str(path), "--json"]
    shape = ["--prompt", str(prompt), "--generate", str(generate), "--rounds", str(rounds)]
    try:
        done = subprocess.run(
            [*command, *shape], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RecipeError(
            path, f"selm bench took more than {SECONDS} seconds", "Measure it on another machine"
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or ["silent"]
        raise RecipeError(
            path, f"selm bench failed ({reason[-1]})", "Try selm bench --model with that file"
        )
    found = json.loads(done.stdout)
    native = found["native"]
    return Speed(
        prompt=native["prefill_tps"], decode=native["decode_tps"], peak_mb=native["peak_rss_mb"],
        threads=found["threads"], prompt_tokens=found["prompt"], decode_tokens=found["generate"],
    )  # fmt: skip
