"""Builds the fuzz targets (libFuzzer, clang) and runs each for a while, on all cores.

    python scripts/fuzz.py                       # a minute each
    python scripts/fuzz.py --seconds 600 model chat

Starts from `cpp/fuzz/corpus/NAME`. New inputs stay in `build/fuzz/found/NAME`; a crash is kept in
`build/fuzz/crashes` and makes the exit status 1. Copy what is worth keeping into the corpus.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "fuzz"


def build(targets: list[str]) -> None:
    configure = ["cmake", "--preset", "fuzz", "-B", str(BUILD)]
    subprocess.run(configure, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    names = [f"fuzz_{target}" for target in targets]
    command = ["cmake", "--build", str(BUILD), "--target", *names]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run(target: str, seconds: int) -> str | None:
    """One target; prints what it did, returns the end of its output if it found something."""
    found, crashes = BUILD / "found" / target, BUILD / "crashes"
    for folder in (found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(BUILD / f"fuzz_{target}"), str(found), str(ROOT / "cpp" / "fuzz" / "corpus" / target),
        f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/{target}-", "-timeout=10",
        "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    new = re.search(r"new_units_added:\s*(\d+)", done.stderr)
    print(
        f"{target:10} {'ok' if done.returncode == 0 else 'FOUND'}: "
        f"{int(runs[1]) if runs else 0:,} runs, {new[1] if new else 0} new inputs",
        flush=True,
    )
    return None if done.returncode == 0 else done.stderr[-4000:]


def main() -> int:
    everything = sorted(
        path.stem.removeprefix("fuzz_") for path in (ROOT / "cpp" / "fuzz").glob("fuzz_*.cpp")
    )
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(everything))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at once")
    arguments = parser.parse_args()
    targets = arguments.targets or everything
    unknown = sorted(set(targets) - set(everything))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(everything)}")
    build(targets)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        ends = list(pool.map(lambda target: run(target, arguments.seconds), targets))
    for end in filter(None, ends):
        print(end, file=sys.stderr)
    return 1 if any(ends) else 0


if __name__ == "__main__":
    sys.exit(main())
