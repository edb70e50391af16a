"""`selm-export evaluate` and the stage report on real files of a random ensemble."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
pytest.importorskip("matplotlib", reason="needs the [export] extra: matplotlib is not installed")

import click
import gguf
import torch
from click.testing import CliRunner
from selm_export import checkpoint
from selm_export.data.chat import chat
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling.file import read_model, write_model
from selm_export.report import build, commands, evaluate, quality, scores, speed
from selm_export.stages import report
from selm_export.stages.job import Job
from support.bundled import START
from support.core import llama_python
from support.selm_models import some_model, some_tokenizer

NAMES = ["general", "medical", "math"]
CONVERSATIONS = [
    ("math", "talk/math", chat("x", "What is 17 + 25?", "17 + 20 = 37, and 37 + 5 = 42.")),
    ("math", "gsm8k", chat("x", "What is 8 * 9?", "8 * 9 = 72.", "And 72 / 8?", "72 / 8 = 9.")),
    ("general", "talk/world", chat("x", "Divide 91 by 13.", "91 / 13 = 7, remainder 0.")),
    ("medical", "medquad", chat("x", "Convert 5 km.", "5 * 1000 = 5000 m.")),
]


def ensemble(route: str) -> Any:
    model = some_model(
        expert_names=NAMES, expert_rank=4, trunk_layers=2, num_hidden_layers=4,
        expert_kind="delta", expert_route=route,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "delta_b" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """A run's folder: a teacher, two files of it, a plain softmax file, prepared data."""
    folder: Path = tmp_path_factory.mktemp("run")
    tokenizer, kind = some_tokenizer(), gguf.GGMLQuantizationType
    early, full = ensemble("early"), ensemble("full")
    checkpoint.save(folder / "teacher", early, tokenizer)
    for name, model, of in (
        ("q8", early, kind.Q8_0), ("q4", early, kind.Q4_0), ("full", full, kind.Q8_0),
        ("student", some_model(), kind.Q8_0), ("f32", early, kind.F32),
    ):  # fmt: skip
        (folder / name).mkdir()
        write_model(folder / name / "model.gguf", model, tokenizer, Label(name), of)
    (folder / "data").mkdir()
    rows = [
        {"source": source, "messages": [{"role": m.role, "content": m.content}
                                        for m in c.messages]}
        for _, source, c in CONVERSATIONS
    ]  # fmt: skip
    for name in ("held-out.jsonl", "mixed.jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / name).write_text(text)
    return folder


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(commands.evaluate, [*arguments], catch_exceptions=False)


def evaluated(*arguments: str) -> dict[str, Any]:
    result = run_command(*arguments, "--json", "--context", "400")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def torch_nats(model: Any, expert: str | None) -> tuple[float, int]:
    """Of the replies' text, in torch: each conversation once, by the tokenizer that trained it."""
    tokenizer, nats, count = some_tokenizer(), 0.0, 0
    for _, _, conversation in CONVERSATIONS:
        ids: list[int] = []
        said: list[bool] = []
        for message in conversation.messages:
            for text, reply in (
                (f"<|im_start|>{message.role}\n", False),
                (message.content, message.role == "assistant"),
                ("<|im_end|>\n", False),
            ):
                piece = tokenizer.encode(text, add_special_tokens=False).ids
                ids += piece
                said += [reply] * len(piece)
        with torch.no_grad():
            logits = model(torch.tensor([ids]), expert=expert).logits[0].double()
        logs = logits.log_softmax(-1)
        for i in range(1, len(ids)):
            if said[i]:
                nats -= float(logs[i - 1, ids[i]])
                count += 1
    return nats, count


def test_evaluate_gives_what_the_design_says(made: Path) -> None:
    """Its keys, and the figures of torch on the same weights."""
    path, model = made / "f32" / "model.gguf", ensemble("early")
    found = evaluated("--model", str(path), "--data", str(made / "data" / "mixed.jsonl"))
    nats, count = torch_nats(model, None)
    size = sum(len(m.content.encode()) for _, _, c in CONVERSATIONS for m in c.messages[1::2])
    assert (found["tokens"], found["bytes"]) == (count, size)
    assert found["nll"] == pytest.approx(nats / count, rel=1e-2)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-2)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    assert list(found["by_expert"]) == NAMES
    for name in NAMES:
        nats, _ = torch_nats(model, name)
        assert found["by_expert"][name] == pytest.approx(nats / count, rel=1e-3)
    assert list(found["route"]) == ["general", "math", "medical"]
    for shares in found["route"].values():
        assert list(shares) == NAMES and sum(shares.values()) == pytest.approx(1.0)
    assert found["routing"]["route"] == "early"
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_evaluate_in_words(made: Path) -> None:
    data = str(made / "data" / "mixed.jsonl")
    path = made / "q4" / "model.gguf"
    result = run_command("--model", str(path), data, "--against",
                         str(made / "q8" / "model.gguf"), "--tasks", "declined,arithmetic",
                         "--questions", "8", "--context", "400")  # fmt: skip
    assert result.exit_code == 0, result.output
    for told in ("bits_per_byte", "against the reference, replies", "mean_kld", "same_top_token",
                 "alone: general", "arithmetic right", "declined right", " of 8"):  # fmt: skip
        assert told in result.stdout, told


def test_against_itself_and_against_another(made: Path) -> None:
    data, q8 = str(made / "data" / "mixed.jsonl"), str(made / "q8" / "model.gguf")
    same = evaluated("--model", q8, "--data", data, "--against", q8)
    assert same["quality"]["replies"]["mean_kld"]["value"] == 0.0
    q4 = evaluated("--model", str(made / "q4" / "model.gguf"), "--data", data, "--against", q8)
    assert q4["quality"]["replies"]["mean_kld"]["value"] > 0.0
    assert q4["file_bytes"] < same["file_bytes"]


def test_a_backend_that_knows_no_experts(made: Path) -> None:
    """A softmax student, without what only ensembles have."""
    path = made / "student" / "model.gguf"
    found = evaluated("--model", str(path), "--data", str(made / "data" / "held-out.jsonl"))
    assert "by_expert" not in found and "routing" not in found
    nats, count = torch_nats(read_model(path), None)
    assert found["tokens"] == count
    assert found["nll"] == pytest.approx(nats / count, rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--model", "none.gguf", "--data", "DATA"], "neither a file nor a bundled model"),
        (["--model", "MODEL", "--data", "none.jsonl"], "does not exist"),
        (["--model", "MODEL", "--data", "EMPTY"], "holds no conversation"),
        (["--model", "DATA", "--data", "DATA"], "mixed.jsonl"),
        (["--model", "MODEL", "--tasks", "gsm8k", "--task-data", "EMPTY"], "line|no question"),
    ],
)
def test_bad_input_is_named(arguments: list[str], match: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    places = {"MODEL": made / "q8" / "model.gguf", "DATA": made / "data" / "mixed.jsonl",
              "EMPTY": tmp_path / "empty.jsonl"}  # fmt: skip
    with pytest.raises(RecipeError, match=match):
        run_command(*(str(places.get(a, a)) for a in arguments))


def test_bad_usage_is_named(made: Path) -> None:
    model = str(made / "q8" / "model.gguf")
    for arguments, match in (
        (["--model", model], "nothing to measure"),
        (["--model", model, "--tasks", "law"], "no task 'law'"),
        (["--model", model, "--tasks", "notes", "--against", model], "--against compares"),
    ):
        result = CliRunner().invoke(commands.evaluate, arguments)
        assert result.exit_code == 2 and match in result.output


def test_tasks_by_name_and_file() -> None:
    found = commands.parse_tasks("gsm8k, medqa=mine.jsonl,", Path("data"))
    assert found == {"gsm8k": Path("data"), "medqa": Path("mine.jsonl")}
    with pytest.raises(click.BadParameter):
        commands.parse_tasks("law", Path("data"))


def test_the_help_names_every_task() -> None:
    text = run_command("--help").output
    assert all(re.search(rf"\b{task}\b", text) for task in scores.TASKS)


def test_longer_than_it_was_trained_for(made: Path, tmp_path: Path) -> None:
    """What does not fit into the model's own context is cut, whatever was asked for."""
    path = tmp_path / "short.gguf"
    model = some_model(max_position_embeddings=30)
    write_model(path, model, some_tokenizer(), Label("short"))
    found = run_command("--model", str(path), str(made / "data" / "mixed.jsonl"), "--json")
    assert json.loads(found.stdout)["cut_conversations"] > 0


def test_the_size_of_what_is_not_one_file(tmp_path: Path) -> None:
    for name, size in (("m.onnx", 5), ("m.onnx.data", 70), ("m.onnx_data", 600), ("other", 8000)):
        (tmp_path / name).write_bytes(bytes(size))
    assert build.bytes_of(tmp_path / "m.onnx") == 675
    assert build.bytes_of(tmp_path) == 8675
    assert build.parameters_of(tmp_path / "m.onnx") is None


def test_two_tokenizers_are_not_compared(made: Path, tmp_path: Path) -> None:
    from selm_export.data.vocabulary import train_vocabulary

    other = train_vocabulary(["something else entirely, " * 9], 300)
    path = tmp_path / "other.gguf"
    write_model(path, some_model(vocab_size=300), other, Label("other"))
    with pytest.raises(RecipeError, match="reads text as other tokens"):
        run_command("--model", str(path), "--data", str(made / "data" / "mixed.jsonl"),
                    "--against", str(made / "q8" / "model.gguf"), "--context", "400")  # fmt: skip


def test_speed_is_that_of_selm_bench(made: Path) -> None:
    found = speed.measure(made / "student" / "model.gguf", prompt=16, generate=4, rounds=1)
    assert found.prompt > 0 and found.decode > 0 and found.threads >= 1
    assert (found.prompt_tokens, found.decode_tokens) == (16, 4)
    with pytest.raises(RecipeError, match="selm bench failed"):
        speed.measure(made / "data" / "mixed.jsonl")


# ---- The stage -----------------------------------------------------------------------------------


def a_job(made: Path, folder: Path, *inputs: str) -> Job:
    """In a run's folder of its own, so that tests do not meet."""
    for name in ("teacher", "q8", "q4", "full", "data"):
        if not (folder / name).exists():
            shutil.copytree(made / name, folder / name)
    lines = [
        {"name": "teacher", "stage": "route", "from": [], "seconds": 9.0, "peak_mb": 300.0,
         "figures": {"parameters": 5}},
        *({"name": n, "stage": "quantize", "from": ["teacher"], "seconds": 1.0, "peak_mb": 200.0,
           "figures": {}} for n in ("q8", "q4", "full")),
    ]  # fmt: skip
    (folder / "report.json").write_text(json.dumps(lines))
    (folder / "report").mkdir(exist_ok=True)
    said: list[str] = []
    paths = tuple(folder / name for name in inputs)
    return Job("report", paths, folder / "report", folder / "data", 1, said.append)


def test_the_stage_measures_and_tells(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    job = a_job(made, tmp_path, "q8", "q4", "full", "teacher")
    settings = report.Settings(
        title="A run", teacher="teacher", tasks=("declined",), questions=1, context=400,
        speed=False,
    )  # fmt: skip
    figures = report.run(job, settings)
    json.dumps(figures, allow_nan=False)  # plain values
    found = figures["builds"]
    assert list(found) == ["q8", "q4", "full"]
    assert (
        found["q8"]["quality"]["replies"]["mean_kld"]["value"]
        < (found["q4"]["quality"]["replies"]["mean_kld"]["value"])
    )
    assert found["q8"]["reference"] == "teacher" and found["q8"]["from"] == "q8"
    # the file against the teacher in torch is what the core's logits say, by hand
    core = evaluate.load_core(tmp_path / "q8" / "model.gguf", 400)
    teacher = quality.by_route(checkpoint.load(tmp_path / "teacher").model)
    labelled = evaluate.read_labelled(job.data / "mixed.jsonl")
    again = quality.compare(
        quality.of_core(core), teacher, build.documents(core, labelled, 400), context=400
    )
    assert found["q8"]["quality"]["replies"]["mean_kld"]["value"] == pytest.approx(
        again["replies"].mean_kld.value
    )
    assert (figures["routes"]["early"], figures["routes"]["full"]) == ("q8", "full")
    for name in ("report.html", "report.md"):
        text = (job.output / name).read_text(encoding="utf-8")
        for told in ("A run", "q4", "quantised only", "Early against full route", "declined"):
            assert told in text, told
    assert not list(job.output.glob("*.writing"))

    def never(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(build, "measure", never)
    assert report.run(job, settings) == figures  # what is measured is kept


def test_a_stopped_run_and_a_damaged_file(made: Path, tmp_path: Path) -> None:
    job = a_job(made, tmp_path, "q8", "q4")
    settings = report.Settings(context=400, speed=False)
    bad = tmp_path / "q4" / "model.gguf"
    bad.write_bytes(bad.read_bytes()[:5000])
    (job.output / "measured.json").write_text('{"half')
    figures = report.run(job, settings)
    assert re.search(r"model\.gguf", figures["builds"]["q4"]["error"])
    assert figures["builds"]["q8"]["bits_per_byte"] > 0
    assert "quality" not in figures["builds"]["q8"]
    text = (job.output / "report.md").read_text(encoding="utf-8")
    assert "q4 could not be measured" in text


def test_what_the_stage_cannot_use_is_named(made: Path, tmp_path: Path) -> None:
    settings = report.Settings(context=400, speed=False)
    with pytest.raises(RecipeError, match=r"none of its inputs holds a \.gguf"):
        report.run(a_job(made, tmp_path, "teacher"), settings)
    with pytest.raises(RecipeError, match="its teacher other is not one of its inputs"):
        report.run(a_job(made, tmp_path, "q8"), report.Settings(teacher="other"))
    job = a_job(made, tmp_path, "q8")
    (tmp_path / "report.json").unlink()
    with pytest.raises(RecipeError, match="Run the stages before"):
        report.run(job, settings)


LLAMA_SCRIPT = """
import json, os, sys
if hasattr(os, "sched_setaffinity"):  # with more threads than free cores llama.cpp waits for them
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from selm_export.report import evaluate, scores
scores.REPLY_TOKENS = 24
core = evaluate.load_core(Path(sys.argv[3]), 256, sys.argv[5])
found = evaluate.evaluate(core, evaluate.read_data(Path(sys.argv[4])), 256).summary()
asker = scores.Asker(core, 256)
found["options"] = asker.log_likelihoods("Is the sky blue?", ["Yes.", "No.", "A longer reply"])
found["reply"] = asker.answer("What is 17 + 25?")
print(json.dumps(found))
"""


def test_llama_cpp_says_the_same(made: Path) -> None:
    """The bundled model in the other backend, in the interpreter that has it: likelihood of given
    replies, of options, and a greedy reply."""
    python = llama_python()
    if python is None:
        pytest.skip("llama-cpp-python is not installed (nor named by SELM_TEST_LLAMA_PYTHON)")
    root = Path(__file__).parents[2]
    found = {}
    for name, interpreter in (("native", sys.executable), ("llama-cpp", python)):
        given = [root, root / "export", START, made / "data" / "held-out.jsonl", name]
        done = subprocess.run(
            [interpreter, "-c", LLAMA_SCRIPT, *map(str, given)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    ours, theirs = found["native"], found["llama-cpp"]
    assert theirs["tokens"] == ours["tokens"]
    assert theirs["nll"] == pytest.approx(ours["nll"], rel=5e-3)
    assert theirs["options"] == pytest.approx(ours["options"], rel=2e-2, abs=0.1)
    assert theirs["reply"] == ours["reply"]
