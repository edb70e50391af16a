"""Nothing that a person does with `selm` reaches for the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import child_environment

# Python tells its audit hooks of every network call before it makes it. A local socket pair, which
# asyncio wakes itself with, connects to nobody.
GUARD = """
import os, sys

NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg",
           "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request")

def watch(event, arguments):
    if event in NETWORK:
        with open(os.environ["TRACE"], "a") as file:
            file.write(f"{event} {arguments}\\n")
        raise OSError("the network is forbidden here")

sys.addaudithook(watch)
"""


def run(tmp_path: Path, *command: str, stdin: str = "") -> tuple[int, str, str]:
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    trace = tmp_path / "trace"
    trace.touch()
    done = subprocess.run(
        [sys.executable, *command],
        input=stdin, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
        env=child_environment(PYTHONPATH=str(tmp_path), TRACE=str(trace)),
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, trace.read_text()


def test_the_guard_sees_a_connection(tmp_path: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    status, _, trace = run(tmp_path, "-c", code)
    assert status != 0 and "socket." in trace


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("ask", "Hello"), ""),
        (("--plain",), "Hello\n/new\n/quit\n"),
        (("models", "list", "--json"), ""),
        (("doctor",), ""),
        (("feedback", "stats"), ""),
        (("memory", "add", "My sister Nora is allergic to walnuts."), ""),
        (("memory", "ingest", __file__), ""),
        (("ask", "--file", __file__, "What is forbidden here?"), ""),
        (("--plain",), f"/remember I like tea.\n@{__file__} what is it?\n/memory tea\n/quit\n"),
    ],
)
def test_no_network(tmp_path: Path, arguments: tuple[str, ...], stdin: str) -> None:
    start = "from selm_edge.cli import main; main()"
    status, said, trace = run(tmp_path, "-c", start, *arguments, stdin=stdin)
    assert trace == "", said
    assert status == 0, said
