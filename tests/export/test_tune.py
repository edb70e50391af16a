"""Searching a recipe's values: the best is found, processes share a study, bad ones end early."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="needs the [export] extra: optuna is not installed")
pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
from click.testing import CliRunner
from selm_export.cli import main
from selm_export.errors import RecipeError
from selm_export.tune import Goal, Range, read_range
from support.processes import child_environment

RECIPE = """
name = "tiny"
[[stages]]
stage = "data"
folder = "smoke-data"
sources = ["talk"]
vocabulary = 400
generated = 20
[[stages]]
stage = "base"
[stages.shape]
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[stages.train]
tokens = 2048
rows = 2
length = 64
places = 96
micro_batches = 2
matrix_rate = 0.0001
rate = 0.0001
warmup_steps = 1
phases = [{ shares = { talk = 1 } }]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(Path(str(files("selm_export"))) / "recipes/smoke-data", tmp_path / "smoke-data")
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def command(folder: Path, trials: int) -> list[str]:
    return ["tune", str(folder / "tiny.toml"), "--search", "base.train.rate=0.0001..0.02",
            "--search", "base.train.micro_batches=1,2", "--minimize", "base.bits_per_byte",
            "--trials", str(trials), "--work", str(folder / "study"), "--json"]  # fmt: skip


def test_what_is_found_is_better_than_the_recipe(folder: Path) -> None:
    result = CliRunner().invoke(main, command(folder, 5))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    reports = [
        json.loads(path.read_text()) for path in sorted(folder.glob("study/trial-*/report.json"))
    ]
    reached = [report[1]["figures"]["bits_per_byte"] for report in reports]
    assert found["trials"] == 5 and found["best"] == min(reached)
    assert found["best"] < reached[0]  # the first trial has the recipe's own values
    assert "trial 0: base.train.rate 0.0001, base.train.micro_batches 2" in result.stderr
    # The data were prepared once; another run has nothing left to do.
    assert (folder / "study" / "shared" / "data" / "train.jsonl").exists()
    again = CliRunner().invoke(main, command(folder, 5))
    assert json.loads(again.stdout) == found and "trial" not in again.stderr


def test_two_processes_share_a_study(folder: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "selm_export.cli", *command(folder, 4)],
            env=child_environment(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    numbers = [line.split(":")[0] for _, err in told for line in err.splitlines()
               if line.startswith("trial ")]  # fmt: skip
    assert len(numbers) == len(set(numbers)) >= 4


def test_ranges_and_goals() -> None:
    assert read_range("base.train.rate=0.001..0.1") == Range("base.train.rate", 0.001, 0.1)
    assert read_range("a.b=1..8") == Range("a.b", 1, 8)
    assert read_range("a.map=hedgehog,favor+").choices == ("hedgehog", "favor+")
    for text in ("a.b", "a.b=8..1", "=1..2", "a.b=x..y"):
        with pytest.raises(RecipeError, match="is no range of values"):
            read_range(text)
    with pytest.raises(RecipeError, match="is no figure"):
        Goal.read("base")


def test_what_is_wrong_is_said_before_anything_runs(folder: Path) -> None:
    wrong = ["tune", str(folder / "tiny.toml"), "--search", "base.train.rate=0.1..0.2",
             "--minimize", "bass.bits_per_byte", "--work", str(folder / "study")]  # fmt: skip
    result = CliRunner().invoke(main, wrong)
    assert result.exit_code == 1 and "has no step 'bass'" in result.output
    assert not (folder / "study" / "shared").exists()
