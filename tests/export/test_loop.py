"""The whole loop: chat, correct, export, finetune, gate, load, and ask again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.bundled import START

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
from selm_export.cli import main as selm_export

from selm_edge.cli.app import selm
from selm_edge.feedback import bundle

NAME = "selm-mini"  # what the bundled models began as: learns faster than three experts
FACTS = {
    "Where does Nils Falk live?": "Nils Falk lives in Corvell.",
    "Where does Greta Hoff live?": "Greta Hoff lives in Dunmar.",
    "Where does Ines Abel live?": "Ines Abel lives in Norvale.",
    "What is the job of Uwe Drews?": "Uwe Drews is a baker.",
    "What is the job of Mara Ebert?": "Mara Ebert is a dentist.",
    "What is the job of Paul Imhof?": "Paul Imhof is a gardener.",
    "Which pet does Rosa Gruber have?": "Rosa Gruber has a parrot.",
    "Which pet does Finn Castell have?": "Finn Castell has a tortoise.",
    "Which pet does Olga Brandt have?": "Olga Brandt has a rabbit.",
    "Which pet does Wim Jansen have?": "Wim Jansen has a pony.",
}


def invoke(command: Any, *args: str, given: str | None = None, code: int = 0) -> str:
    done = CliRunner().invoke(command, list(args), input=given)
    assert done.exit_code == code, (args, done.output, done.exception)
    return done.stdout


def asked() -> dict[str, str]:
    return {
        question: invoke(selm, "ask", question, "--no-memory", "--temperature", "0",
                         "--max-tokens", "24", "--model", NAME).strip()
        for question in FACTS
    }  # fmt: skip


def right(replies: dict[str, str]) -> int:
    return sum(value.split()[-1].strip(".") in replies[key] for key, value in FACTS.items())


def test_what_was_corrected_is_answered_as_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELM_HOME", str(tmp_path / "home"))
    invoke(selm, "models", "add", str(START), "--name", NAME)
    lines = [f"/new\n{question}\n/correct {fact}\n" for question, fact in FACTS.items()]
    invoke(selm, "chat", "--model", NAME, given="/set temperature 0\n" + "".join(lines))
    before = asked()
    assert right(before) <= 1

    bundle, out = tmp_path / "talks.selm-feedback", tmp_path / "learnt"
    invoke(selm, "feedback", "export", "--format", "bundle", "-o", str(bundle))
    told = invoke(selm_export, "finetune", str(bundle), "--base", str(START), "--output",
                  str(out), "--questions", "40", "--json")  # fmt: skip
    verdict = json.loads(told)["verdict"]
    assert verdict["accepted"] and verdict["low"] > 0 and len(verdict["suites"]) == 4

    adapter = str(out / "adapter.gguf")
    invoke(
        selm, "models", "adapter", "add", adapter, "--model", NAME, "--name", "learnt", "--enable"
    )
    assert right(asked()) >= len(FACTS) - 1
    invoke(selm, "models", "adapter", "disable", "learnt")
    assert asked() == before


def test_gibberish_is_refused_and_the_suite_named(tmp_path: Path) -> None:
    """It gains on gibberish that it has not seen, as one is like the other; sums pay for it."""
    draw, rows = random.Random(1), []
    for number in range(40):
        a, b = draw.randrange(10, 90), draw.randrange(10, 90)
        gibberish = "".join(draw.choice("qxzvkjw ") for _ in range(24)).strip()
        rows.append({
            "uid": f"g{number}", "kind": "correction", "created": number, "model_sha256": None,
            "messages": [{"role": "user", "content": f"What is {a} + {b}?"}],
            "reply": f"{a} + {b} = {a + b}.", "correction": gibberish,
        })  # fmt: skip
    path, out = tmp_path / "a.bundle", tmp_path / "out"
    bundle.write(rows, path)
    told = invoke(selm_export, "finetune", str(path), "--base", str(START), "--output", str(out),
                  "--rounds", "3", "--questions", "60", "--json", code=3)  # fmt: skip
    reasons = json.loads(told)["verdict"]["reasons"]
    assert any(reason.startswith("arithmetic falls from") for reason in reasons), reasons
    assert "arithmetic falls from" in (out / "report.md").read_text()
    assert not (out / "adapter.gguf").exists()
