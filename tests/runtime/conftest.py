"""Files and environments that the runtime's tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.chat_templates import CHATML
from support.gguf_files import CONFIGS, write_model
from support.processes import child_environment

DATA = Path(__file__).parent.parent / "data"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SELM_HOME of its own for each test, and none of the user's settings."""
    for name in list(os.environ):
        if name.startswith("SELM_") and not name.startswith("SELM_TEST_"):
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    monkeypatch.setenv("SELM_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real story model (260K parameters, SPM tokenizer, no chat template)."""
    path = tmp_path_factory.mktemp("models") / "stories.gguf"
    binaries = [str(DATA / "stories260K.bin"), str(DATA / "stories260K-tokenizer.bin")]
    command = [sys.executable, "-m", "selm_export.llama2c", *binaries, str(path), "--type", "f16"]
    subprocess.run(command, check=True, capture_output=True, env=child_environment())
    return path


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of a small qwen2, with a BPE vocabulary and ChatML."""
    path = tmp_path_factory.mktemp("models") / "qwen.gguf"
    return write_model(
        path, CONFIGS["qwen2"], edit=lambda writer, _: writer.add_chat_template(CHATML.source)
    )


@pytest.fixture
def cli(home: Path, tmp_path: Path) -> Iterator[Cli]:
    """Runs `selm` in a process of its own, as a user does."""

    def run(*args: str, stdin: str | None = None, **environment: str):  # type: ignore[no-untyped-def]
        return subprocess.run(
            [sys.executable, "-c", "from selm_edge.cli import main; main()", *args],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=tmp_path,
            env=child_environment(**environment),
        )

    yield run
