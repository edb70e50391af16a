"""Task scores against hand-computed ones, with a model that is a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy", reason="needs the [export] extra: numpy is not installed")

import numpy as np
from selm_export.data import passages, questions, tasks
from selm_export.data.chat import Conversation, Message
from selm_export.data.corpus import parse_talk
from selm_export.data.tasks import Choice, Sum, Written
from selm_export.errors import RecipeError
from selm_export.report import scores
from selm_export.report.scores import Asker

from selm_edge.feedback.overlap import bleu


class TableSession:
    """Bytes as tokens; the logits after a byte are that byte's row. Going back forgets more than
    was asked for, as some layers do."""

    def __init__(self, table: Any) -> None:
        self.table, self.held = table, 0

    def eval(self, ids: Sequence[int], logits: str = "all") -> Any:
        self.held += len(ids)
        rows = self.table[np.array(ids, dtype=np.int64)]
        kept = {"all": rows, "last": rows[-1:], "none": rows[:0]}[logits]
        return memoryview(np.ascontiguousarray(kept))

    def truncate(self, length: int) -> int:
        self.held = max(0, length - 3)
        return self.held


class TableCore:
    metadata: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, replies: dict[str, str] | None = None) -> None:
        self.table = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
        self.replies = replies or {}
        self.sessions: list[TableSession] = []

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def session(self) -> TableSession:
        self.sessions.append(TableSession(self.table))
        return self.sessions[-1]

    def chat(self, messages: Any, *, temperature: float, max_tokens: int) -> str:
        assert temperature == 0.0
        if len(messages[-1]["content"]) > 900:
            from selm_edge import ContextError

            raise ContextError(900, 800)
        return self.replies.get(messages[-1]["content"], "")


def log_likelihood(table: Any, before: int, text: str) -> float:
    """In float64, byte by byte."""
    total, wide = 0.0, table.astype(np.float64)
    for byte in text.encode():
        row = wide[before]
        total += row[byte] - math.log(np.exp(row).sum())
        before = byte
    return total


def test_likelihoods_of_options_by_hand() -> None:
    core = TableCore()
    options = ["Yes.", "No.", "a longer option", ""]
    got = Asker(core, 400).log_likelihoods("Is it?", options)
    # ChatML's prompt ends with a line break, after which the reply begins.
    expected = [log_likelihood(core.table, ord("\n"), option) for option in options]
    assert got == pytest.approx(expected, rel=1e-6)
    assert len(core.sessions) == 1  # the prompt is read once, but for what going back forgot


def test_choices_are_counted_and_chance_is_known() -> None:
    core = TableCore()
    table = core.table
    asked, plain, per_byte = [], [], []
    rng = np.random.default_rng(1)
    for i in range(40):
        options = tuple(f"{'x' * int(n)}{i}" for n in rng.integers(0, 4, 3))
        right = int(rng.integers(3))
        logs = [log_likelihood(table, ord("\n"), option) for option in options]
        shares = [log / len(o) for log, o in zip(logs, options, strict=True)]
        asked.append(Choice("?", options, right))
        plain.append(float(np.argmax(logs) == right))
        per_byte.append(float(np.argmax(shares) == right))
    figures, chance = scores.choices(Asker(core, 400), asked)
    assert figures["accuracy"].value == np.mean(plain)
    assert figures["accuracy"].error == pytest.approx(np.std(plain, ddof=1) / math.sqrt(40))
    assert figures["accuracy_per_byte"].value == np.mean(per_byte)
    assert chance == pytest.approx(1 / 3)
    yes_no = [Choice("?", ("Yes.", "No."), int(i < 3)) for i in range(10)]
    assert scores.chance_of(yes_no) == 0.7  # always No, without reading the question


def test_what_does_not_fit_is_not_answered() -> None:
    asker = Asker(TableCore(), 40)
    figures, _ = scores.choices(asker, [Choice("?" * 50, ("a", "b"), 0)] * 3)
    assert (figures["accuracy"].value, asker.too_long) == (0.0, 3)
    assert asker.answer("?" * 1000) == ""
    assert asker.too_long == 4


def test_above_chance_means_two_errors() -> None:
    def scored(value: float, error: float) -> scores.Scored:
        return scores.Scored("t", 9, {"accuracy": scores.Estimate(value, error)}, 0.25)

    assert scored(0.36, 0.05).above_chance
    assert not scored(0.34, 0.05).above_chance
    assert scored(0.36, 0.05).as_json()["chance"] == 0.25


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 3 = 8. The answer is 8.", "8"),
        ("It costs $1,234.50.", "1234.5"),
        ("so 16-3=13", "13"),
        ("minus: -7", "-7"),
        ("3.00", "3"),
        ("\u22122", "-2"),
        ("none", ""),
        ("100", "100"),
    ],
)
def test_the_final_number(text: str, number: str) -> None:
    assert scores.final_number(text) == number


def test_exact_match() -> None:
    core = TableCore({"a?": "The answer is 1,000.", "b?": "2 or 3", "c?": "no idea"})
    asked = [Sum("a?", "1000"), Sum("b?", "2"), Sum("c?", "4")]
    assert scores.sums(Asker(core, 400), asked)["exact_match"].value == pytest.approx(1 / 3)


def test_bleu_and_its_error() -> None:
    """The sentences of sacrebleu's README, the first references alone."""
    system = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    found = scores.bleu(system, references)
    assert found.value == pytest.approx(bleu(system, references))
    assert 0 < found.error < 50
    assert math.isnan(scores.bleu(system[:1], references[:1]).error)
    assert scores.bleu(system, system).value == pytest.approx(100.0)


def test_written_answers() -> None:
    core = TableCore({"a?": "the cat sat on the mat today", "b?": ""})
    asked = [Written("a?", "the cat sat on the mat today"), Written("b?", "nobody knows")]
    found = scores.written(Asker(core, 400), asked)
    assert found["f1"].value == found["precision"].value == found["recall"].value == 0.5
    assert 0 < found["bleu"].value < 100  # the silent answer makes the whole too short


# ---- Passages ------------------------------------------------------------------------------------

TALK = """\
N: [1] (shop.txt) You may send goods back within 30 days. Sale items are not refunded.
N: [2] (hours.txt) The shop opens at 9:00 and closes at 18:30.
U: How long may I send goods back?
A: You may send goods back within 30 days. [1]
U: Is a sale item refunded?
A: No, sale items are not refunded. [1]
U: Who owns the shop?
A: The passages do not say who owns the shop.

U: Hello
A: Hi there.
"""
MARKS = [
    (0, "You may send goods back within 30 days. [1]", True),
    (0, "Within 30 days you may send the goods back [1].", True),
    (0, "You may send goods back within 30 days. [2]", False),  # another passage
    (0, "You may send goods back within 30 days.", False),  # none
    (0, "You may send goods back within 60 days. [1]", False),  # another number
    (0, "You may send goods back within 30 days or 99. [1]", False),  # one from nowhere
    (0, "Sale items are not refunded. [1]", False),
    (1, "No, sale items are not refunded. [1]", True),
    (1, "Yes, sale items are refunded. [1]", False),
    (2, "The text does not tell who the owner is.", True),
    (2, "The shop is owned by Mr Hill.", False),
    (2, "It does not say. [2]", False),
    (2, "", False),
]


@pytest.mark.parametrize(("number", "reply", "right"), MARKS)
def test_how_passages_are_marked(number: int, reply: str, right: bool) -> None:
    cases = passages.cases(parse_talk(TALK, "talk/passages"))
    assert len(cases) == 3  # small talk has none
    assert passages.right_about(cases[number], reply) is right


def test_later_questions_see_the_turns_before() -> None:
    cases = passages.cases(parse_talk(TALK, "talk/passages"))
    seen: list[Sequence[Message]] = []

    def model(messages: Sequence[Message]) -> str:
        seen.append(messages)
        return cases[len(seen) - 1].reference

    assert all(m.right for m in passages.ask(model, cases))
    assert [len(m) for m in seen] == [1, 3, 5]
    assert cases[2].question == "Who owns the shop?"


def test_a_file_without_passages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("U: Hello\nA: Hi.\n")
    with pytest.raises(RecipeError, match=r"x\.txt: holds no question about passages"):
        scores.score(TableCore(), "passages", tmp_path / "x.txt", context=400)


# ---- Files ---------------------------------------------------------------------------------------

FILES: dict[str, tuple[Any, Any]] = {
    "gsm8k": (
        {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}, Sum("2 + 2?", "4"),
    ),
    "medqa": (
        {"question": "Which?", "options": {"A": "one", "B": "two\n\""}, "answer_idx": "B"},
        Choice("Which?", ("one", "two"), 1),
    ),
    "medmcqa": (
        {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3},
        Choice("Which?", ("a", "b", "c", "d"), 2),
    ),
    "boolq": (
        {"question": "is it?\n\nAnswer format: true/false", "answer": "false"},
        Choice("is it?", ("Yes.", "No."), 1),
    ),
    "arc": (
        {"instruction": "Please choose the correct answer to the question: Why? Or how?\n\n"
         "Answer1: so Answer2: thus Answer3: no\n\nAnswer format: answer1/answer2/answer3",
         "answer": "answer2"},
        Choice("Why? Or how?", ("so", "thus", "no"), 1),
    ),
    "medquad": (
        {"messages": [{"role": "user", "content": "What?"},
                      {"role": "assistant", "content": "It"}]},
        Written("What?", "It"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", FILES)
def test_questions_are_read(task: str, tmp_path: Path) -> None:
    row, expected = FILES[task]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert tasks.READERS[task][1](path) == [expected]
    path.write_text('{"odd": 1, "question": "no marks", "answer": "5"}\n')
    if task != "medquad":
        with pytest.raises(RecipeError, match=r"x\.jsonl: line 1 is no question of this task"):
            tasks.READERS[task][1](path)
    path.write_text("")
    with pytest.raises(RecipeError, match="holds no question"):
        tasks.READERS[task][1](path)


def test_an_answer_out_of_its_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**FILES["medmcqa"][0], "cop": 5}))
    with pytest.raises(RecipeError, match="answer 5 of 4 options"):
        tasks.READERS["medmcqa"][1](path)


def test_scores_by_name(tmp_path: Path) -> None:
    """From the data folder, as published or all in one place; the same questions each time."""
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(30)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    name = Path(tasks.READERS["gsm8k"][0]).name.removesuffix(".xz")
    (tmp_path / "mine.jsonl").write_text(text)
    core = TableCore({f"{i}?": f"so {i}" for i in range(0, 30, 2)})
    found = scores.score(core, "gsm8k", tmp_path / "mine.jsonl", context=400)
    assert (found.count, found.headline.value) == (30, 0.5)
    some = [scores.some(list(range(30)), 10, "gsm8k") for _ in range(2)]
    assert some[0] == some[1] and len(set(some[0])) == 10
    with pytest.raises(RecipeError, match=f"{name}.*is needed for the task gsm8k"):
        scores.score(core, "gsm8k", tmp_path, context=400)
    with pytest.raises(RecipeError, match="law: is no task"):
        scores.score(core, "law", tmp_path, context=400)


def test_made_up_questions_are_marked_by_their_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    core = TableCore()
    wrong = scores.score(core, "arithmetic", Path(), context=400, count=16)
    assert (wrong.count, wrong.headline.value) == (16, 0.0)
    kind, largest = scores.SUMS[0]
    core.replies = dict(questions.sums(2, kind, largest))
    right = scores.score(core, "arithmetic", Path(), context=400, count=16)
    assert right.figures[f"{kind} up to {largest}"].value == 1.0
    assert 0 < right.headline.value < 1
    cases = questions.note_cases(5, True)
    core.replies = {c.conversation.messages[0].content: c.conversation.messages[1].content
                    for c in cases}  # fmt: skip
    assert scores.score(core, "notes", Path(), context=400, count=5).headline.value == 1.0
    assert isinstance(cases[0].conversation, Conversation)
