"""Stages run once, and the whole recipe from text to a model file, small."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

import pytest

pytest.importorskip("click")
from click.testing import CliRunner
from selm_export.cli import main
from selm_export.errors import RecipeError
from selm_export.ledger import Ledger, Stage, run_stages


class Kitchen:
    """Two stages that write files, and what they did."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.salt = folder, [], 1
        self.finish = True
        self.ledger = Ledger(folder / "stages.json")
        self.said: list[str] = []

    ran: list[str]

    def _run(self, name: str) -> bool:
        self.ran.append(name)
        (self.folder / name).write_text(f"{name} {self.salt}")
        return self.finish

    def cook(self, **options: str | bool) -> bool:
        self.ran = []
        stages = [
            Stage("one", lambda: self.salt, [self.folder / "one"], lambda: self._run("one")),
            Stage("two", lambda: self.ledger.digest("one"), [self.folder / "two"],
                  lambda: self._run("two")),
        ]  # fmt: skip
        self.ledger = Ledger(self.folder / "stages.json")
        return run_stages(stages, self.ledger, self.said.append, **options)  # type: ignore[arg-type]


def test_finished_stages_are_not_repeated(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    assert kitchen.cook() and kitchen.ran == ["one", "two"]
    assert kitchen.cook() and kitchen.ran == []
    assert kitchen.cook(first="two") and kitchen.ran == ["two"]
    kitchen.salt = 2  # another input: that stage and what depends on it
    assert kitchen.cook(dry=True) and kitchen.ran == []
    assert kitchen.cook(last="one") and kitchen.ran == ["one"]
    assert kitchen.cook() and kitchen.ran == ["two"]
    (tmp_path / "two").write_text("touched by hand")
    assert kitchen.cook() and kitchen.ran == ["two"]


def test_a_stopped_stage_runs_again(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.finish = False
    assert not kitchen.cook() and kitchen.ran == ["one"]
    kitchen.finish = True
    assert kitchen.cook() and kitchen.ran == ["one", "two"]


def test_errors_name_file_and_next_step(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Stages: one, two"):
        Kitchen(tmp_path).cook(first="three")
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(RecipeError, match=r"stages\.json: is damaged"):
        Ledger(tmp_path / "stages.json")


RECIPE = """
name = "tiny"
title = "Tiny"
data = "nowhere"
[split]
share = 0.2
[vocabulary]
size = 400
repeat = { talk = 2 }
generated = 20
[model]
width = 32
layers = 1
heads = 2
kv_heads = 1
feed_forward = 32
context = 128
[train]
micro_batches = 2
tokens = 600
fast = false
[train.packing]
rows = 1
tokens = 64
places = 48
[evaluate]
questions = 2
[[train.phases]]
until = 0.5
shares = { talk = 2, arithmetic = 1, notes = 1 }
[[train.phases]]
until = 1.0
user_weight = 0.0
shares = { talk = 1 }
"""


@pytest.fixture
def kitchenette(tmp_path: Path) -> Path:
    r = random.Random(0)
    words = [
        "red",
        "blue",
        "cat",
        "dog",
        "house",
        "tree",
        "runs",
        "sleeps",
        "sings",
        "quietly",
        "today",
    ]
    blocks = [
        f"U: Where is the {' '.join(r.sample(words, 3))}?\nA: It is {' '.join(r.sample(words, 5))}."
        for _ in range(60)
    ]
    (tmp_path / "data" / "talk").mkdir(parents=True)
    text = "\n\n".join(blocks).encode()
    (tmp_path / "data" / "talk" / "small.txt.xz").write_bytes(lzma.compress(text))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


def _run(folder: Path, *more: str) -> str:
    arguments = ["run", str(folder / "tiny.toml"), "--data", str(folder / "data"), "--work",
                 str(folder / "work"), "--output", str(folder / "out"), *more]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_recipe_from_text_to_model(kitchenette: Path) -> None:
    for needed in ("torch", "tokenizers", "gguf", "matplotlib"):
        pytest.importorskip(needed, reason=f"needs the [export] extra: {needed} is not installed")
    pytest.importorskip("selm_edge._core", reason="the inference core is not built")
    assert "would run" in _run(kitchenette, "--dry-run")
    assert not (kitchenette / "work" / "train.jsonl").exists()
    _run(kitchenette)
    out = kitchenette / "out"
    described = json.loads((out / "tiny.json").read_text())
    assert described["size"] == (out / described["file"]).stat().st_size
    assert described["metrics"]["held_out_talk"]["bits_per_byte"] > 0
    assert "bits per byte" in (out / "tiny-card.md").read_text()
    assert (out / "tiny-loss.png").stat().st_size > 1000
    assert _run(kitchenette).count("done before") == 6
    again = _run(kitchenette, "--from", "train", "--until", "train")
    assert "kept as checkpoint-before.pt" in again


def test_what_is_wrong_with_a_recipe(kitchenette: Path) -> None:
    pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
    path = kitchenette / "tiny.toml"
    for old, new, message in (
        ("until = 1.0", "until = 0.9", "the last phase does not end"),
        ("talk = 2, ar", "tolk = 2, ar", "the source 'tolk' is unknown"),
        ("fast = false", "quick = false", r"[train] has an unknown key 'quick'"),
        ('title = "Tiny"', "", "lacks the key 'title'"),
        ("[model]", "[model", "is no TOML"),
    ):
        path.write_text(RECIPE.replace(old, new))
        result = CliRunner().invoke(main, ["run", str(path), "--work", str(kitchenette / "w")])
        assert result.exit_code == 1
        assert message in result.output
        assert "tiny.toml" in result.output


def test_help_needs_no_torch() -> None:
    import subprocess
    import sys

    script = (
        "import sys; from click.testing import CliRunner; from selm_export.cli import main;"
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0;"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
