"""How long until the chat can be seen: from the start of the process to its first frame.

    python scripts/first_frame.py [--runs 9]

Runs the chat and an empty Textual app in turn, each in a fresh process on a pseudo-terminal of
80 x 24 with a home of its own, and prints the best of each and their ratio as JSON. The best, not
the mean: what other programs took from the machine meanwhile says nothing about ours. On a machine
that is busy with something else, look at the computing time.
"""

from __future__ import annotations

import argparse
import compileall
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

EMPTY = """
from textual.app import App
class Empty(App[None]):
    def on_ready(self): report(self)
Empty().run()
"""
CHAT = """
from selm_edge.chat import tui
class Chat(tui.ChatApp):
    def on_ready(self): report(self)
tui.ChatApp = Chat
from selm_edge.chat.app import run_chat
run_chat()
"""
REPORT = """
import os, time
def report(app):
    with open(os.environ["FIRST_FRAME_OUT"], "w") as out:
        seconds = time.monotonic() - float(os.environ["FIRST_FRAME_START"])
        out.write(f"{seconds} {time.process_time()}")
    app.exit()
"""


def first_frame(program: str) -> tuple[float, float]:
    """Seconds of one run: on the clock, and of computing."""
    terminal, child_side = pty.openpty()
    fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with tempfile.TemporaryDirectory() as home:
        out = os.path.join(home, "seconds")  # noqa: PTH118
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "SELM_HOME": home,
            "FIRST_FRAME_OUT": out,
            "FIRST_FRAME_START": str(time.monotonic()),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", REPORT + program],
            stdin=child_side,
            stdout=child_side,
            stderr=child_side,
            env=environment,
            start_new_session=True,
        )
        os.close(child_side)
        threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
        process.wait(60)
        with open(out) as seconds:  # noqa: PTH123
            wall, cpu = seconds.read().split()
            return float(wall), float(cpu)


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        os.close(terminal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    # As after an installation: otherwise a checkout pays for compiling our files and not Textual's.
    compileall.compile_dir(str(Path(__file__).parents[1] / "selm_edge"), quiet=2)
    times: dict[str, list[tuple[float, float]]] = {"empty": [], "chat": []}
    for _ in range(runs):
        times["empty"].append(first_frame(EMPTY))
        times["chat"].append(first_frame(CHAT))
    result: dict[str, float] = {"runs": runs}
    for at, kind in enumerate(("wall", "cpu")):
        best = {name: min(run[at] for run in values) for name, values in times.items()}
        result |= {f"{name}_{kind}_s": round(value, 3) for name, value in best.items()}
        result[f"{kind}_ratio"] = round(best["chat"] / best["empty"], 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
