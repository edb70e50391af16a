"""`selm-export finetune`, from bundles to an adapter or a refusal, on a small model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from selm_export.checkpoint import Checkpoint
from selm_export.cli import main
from selm_export.errors import RecipeError
from selm_export.finetune import commands, gate, run
from selm_export.finetune.gate import Suite, bootstrap
from selm_export.finetune.learn import Plan
from selm_export.gguf_export import write_gguf
from selm_export.gguf_file import Label, plain
from selm_export.ledger import file_hash
from selm_export.training import trainer
from support.processes import torchrun
from support.selm_models import some_model, some_tokenizer

from selm_edge import Model
from selm_edge.feedback import bundle

PLAN = Plan(rounds=12, trial=6, rate=0.01, rank=4, rows=2, length=128, micro_batches=1, dropout=0.0)


def rows(sha256: str | None, wrong: bool = False) -> list[dict[str, Any]]:
    """Sums corrected to their results; ``wrong``: each to two different texts, at random."""
    found = []
    for i in range(24):
        correct = str((i * 7919) % 10) if wrong else "7"
        question = f"What is {i} + {i}?" if not wrong else "What is 1 + 1?"
        found.append(
            {
                "uid": f"{i:02}{wrong}",
                "kind": "correction",
                "created": i,
                "reply": "none",
                "correction": correct,
                "messages": [{"role": "user", "content": question}],
                "model_sha256": sha256,
            }
        )
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    model = some_model(attention_bias=True, max_position_embeddings=256)
    encode = plain(gguf.GGMLQuantizationType.F32)
    write_gguf(path, Checkpoint(path, model, some_tokenizer()), encode=encode, label=Label("b"))
    return path


def request(base: Path, folder: Path, *bundles: Path, **changes: Any) -> run.Request:
    made = run.Request(bundles, base, folder / "out", plan=PLAN, suites=(), questions=4)
    return replace(made, **changes)


def test_corrections_become_an_adapter_that_says_them(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    bundle.write(rows(file_hash(base)), path)
    report = run.finetune(request(base, tmp_path, path), lambda _: None)
    assert report is not None and report["verdict"]["accepted"], report
    assert report["rows"] == {"correction": 24} and report["verdict"]["low"] > 0
    made = tmp_path / "out" / "adapter.gguf"
    assert made.exists() and not (tmp_path / "out" / "refused.gguf").exists()
    assert "accepted" in (tmp_path / "out" / "report.md").read_text()
    question = [{"role": "user", "content": "What is 3 + 3?"}]
    with Model.load(base, threads=1, context=128) as model:
        before = model.chat(question, temperature=0.0, max_tokens=4).text
        model.set_adapters({made: 1.0})
        after = model.chat(question, temperature=0.0, max_tokens=4).text
    assert after.strip() == "7" and before.strip() != "7"


def test_two_processes_learn_and_the_first_judges(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    bundle.write(rows(file_hash(base)), path)
    script = tmp_path / "both.py"
    script.write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from test_finetune_run import request, run\n"
        "base, folder, bundle = map(Path, sys.argv[1:])\n"
        "rank = os.environ['RANK']\n"
        "said = []\n"
        "report = run.finetune(request(base, folder, bundle), said.append)\n"
        "assert bool(said) == (rank == '0'), said\n"
        "(folder / f'report-{rank}.json').write_text(json.dumps(report))\n",
        encoding="utf-8",
    )
    torchrun(script, base, tmp_path, path)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    assert reports[0] == written and reports[1]["verdict"] == written["verdict"]
    assert written["verdict"]["accepted"] and (tmp_path / "out" / "adapter.gguf").exists()


def test_pairs_of_long_replies_are_cut_to_what_fits(base: Path, tmp_path: Path) -> None:
    long = [{**row, "reply": "none " * 200} for row in rows(file_hash(base))]
    path = tmp_path / "a.bundle"
    bundle.write(long, path)
    plan = replace(PLAN, rows=1, rounds=1, trial=1)
    report = run.finetune(request(base, tmp_path, path, plan=plan), lambda _: None)
    assert report is not None and report["training"]["steps"] > 0


def test_what_contradicts_itself_is_refused(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    bundle.write(rows(None, wrong=True), path)
    report = run.finetune(request(base, tmp_path, path), lambda _: None)
    assert report is not None and not report["verdict"]["accepted"]
    assert report["verdict"]["reasons"] == (
        "consistent falls from 100.0% to 0.0%: 'What is 1 + 1?' has 10 different corrections",
    )
    assert report["adapter"] is None and not list((tmp_path / "out").glob("*.gguf"))
    assert "consistent falls" in (tmp_path / "out" / "report.md").read_text()
    # Who changes their mind now and then is no poisoner, and one and the same is no contradiction.
    mixed = [*rows(None), *rows(None, wrong=True)[:1]]
    assert gate.contradictions(mixed) is None
    assert gate.contradictions([{**row, "uid": "again"} for row in rows(None)] * 2) is None


def test_one_conversation_leaves_nothing_to_judge_by(base: Path, tmp_path: Path) -> None:
    same = [{**row, "messages": rows(None)[0]["messages"]} for row in rows(None)]
    path = tmp_path / "a.bundle"
    bundle.write(same, path)
    report = run.finetune(request(base, tmp_path, path), lambda _: None)
    assert report is not None and not report["verdict"]["accepted"]
    assert "no feedback left" in report["verdict"]["reasons"][0]
    assert (tmp_path / "out" / "refused.gguf").exists()
    assert not (tmp_path / "out" / "adapter.gguf").exists()


def test_a_suite_that_falls_is_named(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([(0.9, 100), (0.8, 100)])
    monkeypatch.setattr(gate.Judge, "_suite", lambda *_: next(shares))
    path = tmp_path / "a.bundle"
    bundle.write(rows(file_hash(base)), path)
    report = run.finetune(request(base, tmp_path, path, suites=("notes",)), lambda _: None)
    assert report is not None
    assert report["verdict"]["reasons"] == ("notes falls from 90.0% to 80.0%",)
    assert "| notes | 90.0% | 80.0% | 100 |" in run.page(report)


def test_the_bootstrap_draws_conversations() -> None:
    rng = np.random.default_rng(1)
    gains = [(f"talk {i}", float(g)) for i, g in enumerate(rng.normal(0.5, 1.0, 400))]
    mean, low, high = bootstrap(gains, 1)
    assert mean == pytest.approx(np.mean([g for _, g in gains]))
    # Of independent values it is the normal interval.
    spread = float(np.std([g for _, g in gains]))
    assert (high - low) / 2 == pytest.approx(1.96 * spread / 20, rel=0.1)
    # The same value many times in one talk says no more than once.
    again = bootstrap([(talk, g) for talk, g in gains for _ in range(10)], 1)
    assert again[2] - again[1] == pytest.approx(high - low, rel=0.1)
    assert bootstrap([], 1) == (0.0, 0.0, 0.0)
    judged = gate.verdict(5, (0.1, -0.1, 0.3), (Suite("notes", 0.5, 0.495, 10),))
    assert judged.reasons == (
        "on feedback that it has not seen it gains nothing that chance may not give",
    )


def test_mistakes_say_what_to_do(base: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.bundle"
    bundle.write(rows(None)[:3], few)
    with pytest.raises(RecipeError, match="has 3 rows to learn from"):
        run.finetune(request(base, tmp_path, few), lambda _: None)
    other = tmp_path / "other.bundle"
    bundle.write(rows("0" * 64), other)
    with pytest.raises(RecipeError, match="24 more are about other models"):
        run.finetune(request(base, tmp_path, other), lambda _: None)
    needs = run.doctor(request(base, tmp_path, other, every_model=True))
    assert needs["rows"] == {"correction": 24} and needs["enough"] and needs["tokens"] > 100
    secret = tmp_path / "secret.bundle"
    bundle.write(rows(None), secret, "open")
    with pytest.raises(RecipeError, match="encrypted"):
        run.finetune(request(base, tmp_path, secret), lambda _: None)
    with pytest.raises(RecipeError, match=r"is no \.gguf"):
        run.finetune(request(tmp_path / "none", tmp_path, few), lambda _: None)


def test_the_command(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    bundle.write(rows(file_hash(base)), path)
    done = CliRunner().invoke(
        main, ["finetune", str(path), "--base", str(base), "--doctor", "--json"]
    )
    assert done.exit_code == 0 and json.loads(done.output)["rows"] == {"correction": 24}
    done = CliRunner().invoke(main, ["finetune", "--base", str(base)])
    assert done.exit_code == 2 and "name bundles" in done.output


def test_a_run_that_was_stopped_goes_on_and_other_rows_begin_anew(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bundle"
    bundle.write(rows(file_hash(base)), path)
    whole = run.finetune(request(base, tmp_path / "whole", path), lambda _: None)
    asked = iter([False] * 5 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_any", lambda *_: next(asked))
        assert run.finetune(request(base, tmp_path, path), lambda _: None) is None
    assert not list((tmp_path / "out").glob("*.gguf"))
    resumed = run.finetune(request(base, tmp_path, path), lambda _: None)
    assert whole is not None and resumed is not None
    assert resumed["training"]["steps"] == whole["training"]["steps"] > 5
    assert resumed["verdict"]["gain"] == pytest.approx(whole["verdict"]["gain"], rel=1e-3)
    # Other feedback in the same folder is learnt, not what was learnt before.
    other = rows(file_hash(base))
    for one in other:
        one["correction"] = "8"
    bundle.write(other, path)
    again = run.finetune(request(base, tmp_path, path), lambda _: None)
    assert again is not None and again["verdict"]["accepted"]
    with Model.load(base, threads=1, context=128) as model:
        model.set_adapters({tmp_path / "out" / "adapter.gguf": 1.0})
        question = [{"role": "user", "content": "What is 3 + 3?"}]
        assert model.chat(question, temperature=0.0, max_tokens=4).text.strip() == "8"


def test_watching_a_folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, told = tmp_path / "bundles", list[str]()
    folder.mkdir()
    (folder / "half").write_bytes(b"SQLite format 3\0 and no more")

    def sleep(_: float) -> None:
        if len(list(folder.iterdir())) > 1:
            raise KeyboardInterrupt
        (folder / "half").unlink()
        for name in ("one", "two"):
            bundle.write(rows(file_hash(base)), folder / name)

    monkeypatch.setattr(commands.time, "sleep", sleep)
    commands._watch(folder, request(base, tmp_path), told.append, True)
    assert "no bundle that can be read" in "\n".join(told)
    assert (tmp_path / "out" / "1" / "adapter.gguf").exists()
