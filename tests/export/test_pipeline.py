"""A recipe from its file to its last stage: what is wrong with one, what is not repeated, what a
kill costs. The whole of `recipes/smoke.toml` is run here, once."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
from click.testing import CliRunner
from selm_export.cli import main

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
from selm_export import checkpoint
from selm_export.errors import RecipeError
from selm_export.ledger import Ledger, file_hash
from selm_export.pipeline import Pipeline
from selm_export.recipe import read_recipe, stage_module
from selm_export.stages import average, publish
from selm_export.stages.job import Job
from support.processes import child_environment, torchrun

from selm_edge.catalog import Catalog

RECIPES = Path(str(files("selm_export"))) / "recipes"
TINY = """
name = "tiny"
seed = 3
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
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 256
[stages.train]
tokens = 2048
rows = 2
length = 64
places = 96
micro_batches = 2
phases = [{ shares = { talk = 2, arithmetic = 1 } }]
[[stages]]
name = "again"
stage = "base"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe of three steps and its data."""
    shutil.copytree(RECIPES / "smoke-data", tmp_path / "smoke-data")
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    return tmp_path


def run(folder: Path, *more: str, code: int = 0) -> str:
    result = CliRunner().invoke(
        main, ["run", str(folder / "tiny.toml"), "--work", str(folder / "work"), *more]
    )
    assert result.exit_code == code, result.output
    return result.output


def test_finished_steps_are_not_repeated(folder: Path) -> None:
    first = run(folder, "--until", "base")
    assert "[2/3] base: base" in first and "again" not in first
    second = run(folder)
    assert "[1/3] data: done before" in second and "[2/3] base: done before" in second
    assert "[3/3] again: base" in second
    report = json.loads((folder / "work" / "report.json").read_text())
    assert [line["name"] for line in report] == ["data", "base", "again"]
    assert report[1]["figures"]["tokens"] > 0 and report[1]["seconds"] > 0
    assert report[1]["figures"]["bits_per_byte"] == report[2]["figures"]["bits_per_byte"]
    # A later seed, a key, a file of the data: what depends on it runs again, and nothing else.
    changed = run(folder, "--set", "again.train.tokens=512",
                  "--set", "again.train.phases=[{shares={talk=1}}]")  # fmt: skip
    assert "[2/3] base: done before" in changed and "[3/3] again: base" in changed
    forced = run(folder, "--from", "again")
    assert "[2/3] base: done before" in forced and "[3/3] again: base" in forced
    (folder / "work" / "base" / "model.safetensors").write_bytes(b"damaged")
    mended = run(folder)
    assert "[2/3] base: base" in mended
    assert checkpoint.load(folder / "work" / "again").model.config.hidden_size == 32


def test_what_another_run_left_is_set_aside(folder: Path) -> None:
    run(folder, "--until", "base")
    said = run(folder, "--until", "base", "--set", "base.train.rate=0.001")
    assert "is of another run: kept as .base-before" in said
    assert (folder / "work" / ".base-before" / "model.safetensors").exists()


def test_a_plan_says_what_it_will_need(folder: Path) -> None:
    said = run(folder, "--dry-run")
    assert "MB of memory" in said and "MB of disk" in said and "in all about" in said
    assert not (folder / "work" / "base").exists()
    run(folder, "--until", "data")
    plan = json.loads(run(folder, "--dry-run", "--json"))
    assert [(row["name"], row["runs"]) for row in plan] == [
        ("data", False), ("base", True), ("again", True),
    ]  # fmt: skip
    assert plan[1]["seconds"] > 0 and plan[1]["memory"] > 0 and plan[1]["disk"] > 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "tiny"', 'nam = "tiny"', "unknown key 'nam'"),
        ("generated = 20", "generatd = 20", "the step 'data' has an unknown key 'generatd'"),
        (
            "tokens = 2048",
            "token = 2048",
            "step 'base', key 'train' has an unknown key 'token'",
        ),
        ("tokens = 2048", 'tokens = "many"', "key 'tokens': 'many' is no int"),
        ("tokens = 2048", "tokens = 0", "tokens = 0 is less than 1"),
        ("[{ shares", "[{ until = 0.5, shares", "the last phase does not end at until = 1.0"),
        ('stage = "base"\n[', 'stage = "bass"\n[', "stage = 'bass'.*Known: data"),
        ('name = "again"', 'name = "base"', "a name that is taken"),
        ('name = "again"', 'name = "again"\nfrom = "nothing"', "is from 'nothing'.*Steps before"),
        ("seed = 3", "seed = = 3", "is no TOML"),
        ('sources = ["talk"]', 'sources = ["tlak"]', "the source 'tlak' is unknown.*Known: talk"),
        ("hidden_size = 32", "hiden_size = 32", "shape has an unknown key 'hiden_size'"),
        ("num_key_value_heads = 1", "num_key_value_heads = 3", "heads do not share"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(folder: Path, old: str, new: str, said: str) -> None:
    import re

    recipe = folder / "tiny.toml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new, 1))
    output = run(folder, code=1)
    assert re.search(said, output), output


def test_a_missing_recipe_a_missing_step_and_a_bad_change(folder: Path) -> None:
    result = CliRunner().invoke(main, ["run", "nowhere.toml"])
    assert result.exit_code == 1 and "the recipe does not exist" in result.output
    assert "has no step 'bass'" in run(folder, "--until", "bass", code=1)
    assert "has no step 'bass' to change" in run(folder, "--set", "bass.rate=1", code=1)
    assert "is not KEY=VALUE" in run(folder, "--set", "base.rate", code=2)


def test_a_damaged_ledger_is_named(folder: Path) -> None:
    work = folder / "work"
    work.mkdir()
    (work / "ledger.json").write_text("{", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"ledger\.json.*is damaged.*Remove it"):
        Ledger(work)


def test_a_stage_is_a_command_of_its_own(folder: Path) -> None:
    data = ["--set", f'folder="{folder / "smoke-data"}"', "--set", 'sources=["talk"]',
            "--set", "vocabulary=400", "--set", "generated=20"]  # fmt: skip
    made = CliRunner().invoke(main, ["data", "--output", str(folder / "d"), *data, "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["vocabulary"] == 400
    shape = ("{hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,"
             " num_key_value_heads=1}")  # fmt: skip
    base = CliRunner().invoke(
        main, ["base", "--data", str(folder / "d"), "--output", str(folder / "b"),
               "--set", f"shape={shape}"],
    )  # fmt: skip
    assert base.exit_code == 0, base.output
    assert checkpoint.load(folder / "b").model.config.hidden_size == 32
    shown = CliRunner().invoke(main, ["base", "--help"])
    assert "train.tokens (needed)" in shown.output and "train.matrix_rate = 0.02" in shown.output
    listed = CliRunner().invoke(main, ["--help"]).output
    for name in ("run", "data", "base", "expert", "distill"):
        assert f"\n  {name} " in listed


def test_a_chat_template_goes_with_the_model_from_stage_to_stage(tmp_path: Path) -> None:
    from selm_export.tokenizer_config import TokenizerConfig
    from support.compressing import some_job
    from support.selm_models import some_model, some_tokenizer

    template = "{{ messages[0]['content'] }}"  # none of ours
    said = TokenizerConfig(template, eos=5, pad=4)
    checkpoint.save(tmp_path / "model", some_model(), some_tokenizer(), said)
    mine = checkpoint.load(tmp_path / "model").tokenizer_config
    assert mine.chat_template == template and mine.eos == 5
    for name, changes in (("prune", {"feed_forward": 64}), ("factorize", {"keep": 0.95})):
        module = stage_module(name)
        job = some_job(tmp_path, tmp_path / "model", name=name)
        module.run(job, module.Settings(**changes, calibration=4, held_out=2, tokens=24))
        assert checkpoint.load(job.output).tokenizer_config == mine
    job = some_job(tmp_path, tmp_path / "model", tmp_path / "model", name="delta")
    module = stage_module("delta")
    module.run(job, module.Settings(trunk_layers=1, names=("a",)))
    assert checkpoint.load(job.output).tokenizer_config == mine


def test_a_stage_without_its_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text('[[stages]]\nstage = "prune"\n', encoding="utf-8")
    assert "prune: is given 0 models. Name one under `from`" in run(tmp_path, code=1)


def test_help_needs_no_torch() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from selm_export.cli import main;"
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0;"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", script], env=child_environment(), check=True)


def test_users_files_become_conversations_and_texts(tmp_path: Path) -> None:
    from selm_export.data.files import read_user_files

    (tmp_path / "qa.jsonl").write_text(
        '{"question": "Who?", "answer": "Me."}\n{"text": "A page."}\n'
        '{"messages": [{"role": "user", "content": "Hi"},'
        ' {"role": "assistant", "content": "Yes"}]}\n'
    )
    found = read_user_files(tmp_path / "qa.jsonl")
    assert [[m.role for m in c.messages] for c in found] == [
        ["user", "assistant"], ["text"], ["user", "assistant"],
    ]  # fmt: skip
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# One\n\n" + "word " * 300 + "\n\nlast " * 200)
    texts = read_user_files(tmp_path / "docs")
    assert len(texts) > 1 and all(c.messages[0].role == "text" for c in texts)
    joined = " ".join(" ".join(c.messages[0].content.split()) for c in texts)
    assert joined == " ".join((tmp_path / "docs" / "a.md").read_text().split())
    (tmp_path / "bad.jsonl").write_text('{"nothing": 1}\n')
    with pytest.raises(RecipeError, match=r"bad\.jsonl.*row 1 has neither"):
        read_user_files(tmp_path / "bad.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no document"):
        read_user_files(tmp_path / "empty")


def test_a_model_from_elsewhere_goes_through_without_data(tmp_path: Path) -> None:
    """`base` takes a Hugging Face folder as it is; nothing has to be prepared to pack it."""
    gguf = pytest.importorskip("gguf")
    from support.hub_models import transformers_model, write_folder

    write_folder(tmp_path / "hub", transformers_model("Llama"))
    (tmp_path / "tiny.toml").write_text(
        """
        [[stages]]
        stage = "base"
        start = "hub"
        [[stages]]
        stage = "quantize"
        mix = "q4_k_m"
        importance = false
        [[stages]]
        stage = "onnx"
        from = "base"
        samples = 2
        tokens = 24
        """,
        encoding="utf-8",
    )
    run(tmp_path)
    reader = gguf.GGUFReader(tmp_path / "work" / "quantize" / "model.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"
    assert (tmp_path / "work" / "onnx" / "int8" / "model.json").exists()
    (tmp_path / "hub" / "model.safetensors").unlink()
    assert "model.safetensors" in run(tmp_path, "--from", "base", code=1)
    assert (tmp_path / "work" / "quantize" / "model.gguf").exists()  # what was finished stays


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`recipes/smoke.toml`, killed once at a moment that chance decides, then run to its end."""
    work: Path = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "selm_export.cli", "run", str(RECIPES / "smoke.toml"),
               "--work", str(work)]  # fmt: skip
    with (work / "killed.txt").open("w") as output:
        child = subprocess.Popen(command, env=child_environment(), stdout=output, stderr=output)
        deadline = time.time() + 300
        while not (work / "ledger.json").exists() and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(random.uniform(1.0, 12.0))  # nothing depends on where
        child.kill()
        assert child.wait() == -signal.SIGKILL
    before = json.loads((work / "ledger.json").read_text())
    done = subprocess.run(command, env=child_environment(), capture_output=True,
                          text=True, check=False)  # fmt: skip
    (work / "output.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in before:
        assert f"{name}: done before" in done.stdout, name
    return work


def test_the_smoke_recipe_passes_every_stage_after_a_kill(smoke: Path) -> None:
    recipe = read_recipe(RECIPES / "smoke.toml")
    report = json.loads((smoke / "report.json").read_text())
    assert [line["name"] for line in report] == [step.name for step in recipe.steps]
    for line in report:
        assert line["seconds"] >= 0 and line["peak_mb"] > 0 and line["figures"]
    plan = Pipeline(recipe, smoke, print).plan()
    assert not any(runs for _, runs in plan)


def figures(smoke: Path) -> dict[str, Any]:
    return {
        line["name"]: line["figures"] for line in json.loads((smoke / "report.json").read_text())
    }


def test_the_smoke_models_are_what_their_stages_say(smoke: Path) -> None:
    kinds = checkpoint.load(smoke / "linearize").model.config.attention_kinds
    assert sorted(kinds) == ["performer"] * 3 + ["softmax"]
    told = figures(smoke)
    kept = kinds.index("softmax")
    losses = told["linearize"]["layer_nll"]
    assert losses[str(kept)] == max(losses.values())  # the one whose conversion costs most
    exits = checkpoint.load(smoke / "exits").model.config
    assert exits.exit_layers == [1] and len(exits.draft_vocabulary) == 128


def test_the_smoke_files_are_what_they_say(smoke: Path) -> None:
    gguf = pytest.importorskip("gguf")
    facts = json.loads((smoke / "publish" / "selm-smoke.json").read_text())
    model = smoke / "publish" / facts["file"]
    assert facts["sha256"] == file_hash(model) and facts["size"] == model.stat().st_size
    card = (smoke / "publish" / "selm-smoke-card.md").read_text()
    assert "The experts general, medical, math share the first 2" in card
    assert (smoke / "publish" / "selm-smoke-loss.png").stat().st_size > 1000

    def architecture(path: Path) -> str:
        return str(gguf.GGUFReader(path).get_field("general.architecture").contents())

    assert architecture(model) == "selm"
    assert architecture(smoke / "student-gguf" / "model.gguf") == "qwen2"
    assert (smoke / "onnx" / "int8" / "model.onnx").exists()
    told = figures(smoke)
    assert abs(told["route"]["early_nll"]["value"] - told["route"]["full_nll"]["value"]) < 0.1
    assert told["student"]["reference"] == "route"
    page = (smoke / "report" / "report.html").read_text()
    for name in told:
        assert f">{name}<" in page


def test_torchrun_runs_a_recipe_as_one_process_does(folder: Path) -> None:
    run(folder)
    told = torchrun(
        "-m", "selm_export.cli", "run", folder / "tiny.toml", "--work", folder / "two"
    )  # fmt: skip
    assert told.count("[2/3] base: done in") == 1  # one of them speaks
    losses = [
        json.loads((folder / work / "report.json").read_text())[1]["figures"]["loss"]
        for work in ("work", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    names = [{p.name for p in (folder / w / "base").iterdir()} for w in ("work", "two")]
    assert names[0] == names[1]


def test_a_student_is_published_with_its_onnx(smoke: Path, tmp_path: Path) -> None:
    package = tmp_path / "models"
    settings = publish.Settings(
        model="selm-small", title="SELM small", recipe="a test", folder=package, questions=1
    )
    (tmp_path / "publish").mkdir()
    shutil.copy(smoke / "report.json", tmp_path)  # what the card tells of
    inputs = (smoke / "student-gguf", smoke / "onnx")
    job = Job("publish", inputs, tmp_path / "publish", smoke / "data", 1, lambda _: None)
    for _ in range(2):  # again: takes the place of what is there
        publish.run(job, settings)
    catalog = Catalog(directory=tmp_path, bundled=package)
    assert [entry.name for entry in catalog.list()] == ["selm-small", "selm-small-onnx"]
    for name in ("selm-small", "selm-small-onnx"):
        assert catalog.verify(name).ok
    wrong = Job("publish", (inputs[0], inputs[0]), job.output, job.data, 1, lambda _: None)
    with pytest.raises(RecipeError, match="holds no ONNX model"):
        publish.run(wrong, settings)


def test_the_average_lies_between(smoke: Path, tmp_path: Path) -> None:
    models = [checkpoint.load(smoke / name).model for name in ("general", "medical", "average")]
    general, medical, mean = (dict(model.named_parameters()) for model in models)
    for name, value in mean.items():
        middle = (general[name].double() + medical[name].double()) / 2
        assert float((value.detach().double() - middle.detach()).abs().max()) < 1e-6
    (tmp_path / "out").mkdir()
    inputs = (smoke / "general", smoke / "medical")
    job = Job("mean", inputs, tmp_path / "out", smoke / "data", 1, lambda _: None)
    average.run(job, average.Settings(shares=(1.0, 0.0)))
    same = dict(checkpoint.load(job.output).model.named_parameters())
    assert all(bool((same[name] == general[name]).all()) for name in same)
    with pytest.raises(RecipeError, match=r"has shares of .* for 2 models"):
        average.run(job, average.Settings(shares=(0.5, 0.4)))
    alone = Job("mean", inputs[:1], job.output, job.data, 1, lambda _: None)
    with pytest.raises(RecipeError, match="nothing to average"):
        average.run(alone, average.Settings())
    other = Job("mean", (inputs[0], smoke / "student"), job.output, job.data, 1, lambda _: None)
    with pytest.raises(RecipeError, match="different shapes"):
        average.run(other, average.Settings())
