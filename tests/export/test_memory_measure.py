"""What recall is measured on, and the measure itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

from click.testing import CliRunner
from selm_export.cli import main
from selm_export.report import memory, memory_data
from selm_export.report.memory_data import Asked, Task

SMOKE = Path(memory.__file__).parents[1] / "recipes" / "smoke-data"


def test_the_facts_are_as_many_and_as_different_as_they_have_to_be() -> None:
    rows = memory_data.rows()
    assert memory_data.faults(rows) == []
    kinds = Counter(row["kind"] for row in rows)
    assert kinds["fact"] >= 300 and kinds["code"] == 100 and kinds["unanswered"] == 100
    near = Counter(row["near"][0] for row in rows if row["kind"] == "negative")
    assert near["f"] >= 100 and near["c"] == 100
    assert all(len(row["questions"]) == 3 for row in rows if row["kind"] == "fact")
    halves = Counter((row["kind"], row["split"]) for row in rows if "split" in row)
    for kind in ("fact", "code", "unanswered"):
        assert abs(halves[kind, "dev"] - halves[kind, "test"]) <= 1


def test_the_halves_have_no_question_in_common() -> None:
    dev, test = (
        {asked.question for task in memory_data.own_tasks(split) for asked in task.asked}
        for split in ("dev", "test")
    )
    assert dev and test and not dev & test


def test_faults_are_found() -> None:
    fact = {"kind": "fact", "id": "f1", "text": "The key is in the shed.", "value": "shed"}
    good = {**fact, "questions": ["Where is the key?"]}
    assert memory_data.faults([good]) == []
    for wrong in (
        [good, good],
        [{**good, "questions": ["Is the key in the shed?"]}],
        [{**good, "value": "cellar"}],
        [good, {"kind": "negative", "id": "n1", "near": "f9", "text": "The cat is in the shed."}],
        [good, {"kind": "unanswered", "id": "u1", "questions": ["where is the KEY"]}],
    ):
        assert memory_data.faults(wrong)


def test_places_become_figures() -> None:
    figures = memory.Found((1, 0, 3, 9)).as_json()
    assert figures["recall_at_1"] == 0.25
    assert figures["recall_at_5"] == 0.5
    assert figures["error_at_5"] == 0.25  # sqrt(0.5 * 0.5 / 4)
    assert figures["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 9) / 4, abs=1e-4)


def test_how_well_scores_tell_apart() -> None:
    assert memory.apart([3, 2], [1, 0]) == 1
    assert memory.apart([1], [1]) == 0.5
    assert memory.apart([0], [1]) == 0


def test_words_alone_find_what_they_name() -> None:
    texts = tuple(
        f"The {thing} is in box {i}." for i, thing in enumerate(["drill", "tent", "lamp"])
    )
    asked = (Asked("Where is my drill?", texts[0]), Asked("Where is the piano?", texts[2]))
    found = memory.measure(Task("small", texts, "fact", asked), "off")
    assert found.memories == 3
    assert found.ways["bm25"].places == [1, 0]
    assert found.ways["vectors"].places == [0, 0]
    assert found.ways["fused"].places == [1, 0]
    assert found.ways["recall"].places == [1, 0]


def test_two_equal_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="there already"):
        memory.measure(Task("small", ("A is b.", "A is b."), "fact", ()), "off")


def test_the_command() -> None:
    command = ["evaluate", "--memory", "--embedder", "off", "--task-data", str(SMOKE)]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["split"] == "test"
    assert told["codes"]["bm25"]["recall_at_5"] == 1
    assert told["facts"]["questions"] >= 450 and told["facts"]["memories"] >= 500
    assert "\n".join(memory.lines(told)).count("recall@5") == 12 + 2
    some, none = (told["facts"]["by_words_in_common"][key] for key in ("some", "none"))
    assert some["questions"] + none["questions"] == told["facts"]["questions"]
    assert none["bm25"] < 0.2 < some["bm25"]


def test_what_does_not_go_with_it() -> None:
    done = CliRunner().invoke(main, ["evaluate", "--memory", "--model", "any"])
    assert done.exit_code == 2 and "--memory asks no model" in done.output
    done = CliRunner().invoke(main, ["evaluate", "--speed"])
    assert done.exit_code == 2 and "--model" in done.output
