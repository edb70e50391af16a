"""Task scores of a model, whichever backend runs it.

What each says:

- a choice (MedQA, MedMCQA, BoolQ, ARC, OpenBookQA): the option whose text is likeliest as the reply
  to the question counts as chosen. ``accuracy`` compares log-probabilities, ``accuracy_per_byte``
  those divided by the option's length.
- a number (GSM8K): the last number of the greedy reply is the result (``exact_match``).
- a written answer (MedQuAD): the greedy reply against the reference's leading sentences: corpus
  ``bleu`` and the mean over answers of the words' ``precision``, ``recall`` and ``f1``
  (`selm_edge.feedback.overlap`).
- ``notes``, ``declined``, ``passages``, ``arithmetic``: greedy replies marked by the rules of
  `selm_export.data.questions` and `selm_export.data.passages`.

``chance`` stands beside a score: what the best rule reaches that does not read the question.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from selm_edge.feedback.overlap import Grams, overlap
from selm_export.data import passages, questions
from selm_export.data.chat import Message
from selm_export.data.tasks import READERS, Choice, Sum, Written
from selm_export.errors import RecipeError
from selm_export.report import evaluate
from selm_export.report.spread import Estimate, mean

REPLY_TOKENS = 160  # longer replies are cut
SUMS = (("add", 99), ("add", 9999), ("subtract", 99), ("subtract", 9999), ("multiply", 12),
        ("multiply", 999), ("divide", 999), ("convert", 99999))  # fmt: skip
GENERATED = ("notes", "declined", "arithmetic")
TASKS = (*READERS, "passages", *GENERATED)
Say = Callable[[str], None]


class Session(Protocol):
    def eval(self, ids: Sequence[int], /, logits: Any = "all") -> Any: ...
    def truncate(self, length: int, /) -> int: ...


@dataclass(frozen=True)
class Scored:
    """``figures``: the one to go by first. ``too_long``: questions that did not fit into the
    context; they count as not answered."""

    task: str
    count: int
    figures: dict[str, Estimate]
    chance: float
    too_long: int = 0

    @property
    def headline(self) -> Estimate:
        return next(iter(self.figures.values()))

    @property
    def above_chance(self) -> bool:
        """By more than two standard errors."""
        found = self.headline
        return found.value - 2 * found.error > self.chance

    def as_json(self) -> dict[str, Any]:
        return {
            "count": self.count, "too_long": self.too_long, "chance": self.chance,
            "above_chance": self.above_chance,
            "figures": {name: value.as_json() for name, value in self.figures.items()},
        }  # fmt: skip


class Asker:
    """Puts questions to a model: greedy replies, and how likely a given reply is."""

    def __init__(self, core: evaluate.Core, context: int) -> None:
        self.core, self.context = core, context
        self.template = evaluate.template_of(core)
        self.too_long = 0

    def reply(self, messages: Sequence[Message]) -> str:
        """Empty where there is no room for one."""
        from selm_edge import ContextError

        asked = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return str(self.core.chat(asked, temperature=0.0, max_tokens=REPLY_TOKENS))
        except ContextError:
            self.too_long += 1
            return ""

    def answer(self, question: str) -> str:
        return self.reply([Message("user", question)])

    def log_likelihoods(self, question: str, options: Sequence[str]) -> list[float] | None:
        """Of each option as the beginning of the reply, in nats; None where it does not fit."""
        text = evaluate.written(self.template, [Message("user", question)], reply=True)
        prompt = self.core.tokenize(text, add_special=True, parse_special=True)
        tails = [self.core.tokenize(o, add_special=False, parse_special=False) for o in options]
        if len(prompt) + max(map(len, tails)) > self.context:
            self.too_long += 1
            return None
        session: Any = self.core.session()
        first = evaluate.rows_of(session.eval(prompt, logits="last"))[-1:]
        found = []
        for number, tail in enumerate(tails):
            if number:
                _go_back(session, prompt)
            found.append(_log_likelihood(session, first, tail))
        return found


def _go_back(session: Session, prompt: Sequence[int]) -> None:
    """To the end of the prompt. Some layers can only go back further than that."""
    kept = session.truncate(len(prompt))
    if kept < len(prompt):
        session.eval(prompt[kept:], logits="none")


def _log_likelihood(session: Session, first: Any, tail: Sequence[int]) -> float:
    """``first`` [1, vocab]: the logits after the prompt."""
    import numpy as np

    rows = first
    if len(tail) > 1:
        rest = evaluate.rows_of(session.eval(tail[:-1]))
        rows = np.concatenate([first, rest])
    if not tail:
        return 0.0
    return float(evaluate.log_softmax_at(rows, np.array(tail, dtype=np.int64)).sum())


def choices(asker: Asker, asked: Sequence[Choice]) -> tuple[dict[str, Estimate], float]:
    plain, by_length = [], []
    for choice in asked:
        logs = asker.log_likelihoods(choice.question, choice.options)
        if logs is None:
            plain.append(0.0)
            by_length.append(0.0)
            continue
        sizes = [max(1, len(option.encode())) for option in choice.options]
        per_byte = [log / size for log, size in zip(logs, sizes, strict=True)]
        plain.append(float(_best(logs) == choice.right))
        by_length.append(float(_best(per_byte) == choice.right))
    figures = {"accuracy": mean(plain), "accuracy_per_byte": mean(by_length)}
    return figures, chance_of(asked)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def chance_of(asked: Sequence[Choice]) -> float:
    """One in so many options; where all questions have the same ones, the share of the answer that
    is right most often."""
    if len({choice.options for choice in asked}) == 1:
        return max(Counter(choice.right for choice in asked).values()) / len(asked)
    return sum(1 / len(choice.options) for choice in asked) / len(asked)


def final_number(text: str) -> str:
    """The last number, as a plain decimal: ``$1,200.00`` is 1200. Empty if there is none."""
    found = re.findall(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?", text.replace("\u2212", "-"))
    if not found:
        return ""
    number = str(found[-1]).replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def sums(asker: Asker, asked: Sequence[Sum]) -> dict[str, Estimate]:
    right = [final_number(asker.answer(s.question)) == final_number(s.answer) for s in asked]
    return {"exact_match": mean([float(r) for r in right])}


def bleu(replies: Sequence[str], references: Sequence[str]) -> Estimate:
    """Of the corpus, 0 to 100; the error is that of 200 bootstrap samples of the answers."""
    answers = [Grams.of(a, b) for a, b in zip(replies, references, strict=True)]
    value = Grams.total(answers).bleu
    if len(answers) < 2:
        return Estimate(value, math.nan)
    # What BLEU is computed from sums over answers: no text is read again.
    r = random.Random(1)
    samples = [Grams.total(r.choices(answers, k=len(answers))).bleu for _ in range(200)]
    return Estimate(value, statistics.stdev(samples))


def written(asker: Asker, asked: Sequence[Written]) -> dict[str, Estimate]:
    replies = [asker.answer(w.question) for w in asked]
    found = [overlap(reply, w.answer) for reply, w in zip(replies, asked, strict=True)]
    precision, recall, f1 = zip(*found, strict=True)
    return {
        "bleu": bleu(replies, [w.answer for w in asked]),
        "precision": mean(precision), "recall": mean(recall), "f1": mean(f1),
    }  # fmt: skip


def _shares(marked: dict[str, Sequence[questions.Marked]]) -> dict[str, Estimate]:
    """All together first, then each kind, if there are several."""
    every = [m for found in marked.values() for m in found]
    kinds = {"right": every, **(marked if len(marked) > 1 else {})}
    return {name: mean([float(m.right) for m in found]) for name, found in kinds.items()}


def generated(asker: Asker, task: str, count: int) -> dict[str, Estimate]:
    """Questions that are made up, from names and numbers that no training sees."""
    if task == "arithmetic":
        each = max(1, count // len(SUMS))
        return _shares(
            {
                f"{kind} up to {largest}": questions.ask_sums(
                    asker.answer, questions.sums(each, kind, largest)
                )
                for kind, largest in SUMS
            }
        )
    return _shares({task: questions.ask_notes(asker.answer, count, task == "notes")})


def passage_cases(path: Path) -> list[passages.Case]:
    found = passages.cases(evaluate.read_data(path))
    if not found:
        raise RecipeError(
            path, "holds no question about passages (lines 'N: [1] (file) ...')",
            "Give talk files or .jsonl with some, or leave the task passages out",
        )  # fmt: skip
    return found


def _file(task: str, data: Path) -> Path:
    """The task's file in a data folder, where it lies there in a folder of its own or not."""
    name = "held-out.jsonl" if task == "passages" else READERS[task][0]
    for path in (data / name, data / Path(name).name):  # as published, or all in one place
        if path.exists():
            return path
    raise RecipeError(
        data / name, f"is needed for the task {task}",
        f"Name another data folder, or the file itself: --tasks {task}=FILE",
    )  # fmt: skip


def some(items: list[Any], count: int | None, task: str) -> list[Any]:
    """``count`` of them, drawn by the task's name, always the same."""
    if count is None or len(items) <= count:
        return items
    return random.Random(f"scores:{task}").sample(items, count)


def score(
    core: evaluate.Core, task: str, source: Path, *, context: int, count: int | None = None
) -> Scored:
    """One task. ``source``: its file, or a data folder that holds it (for ``passages`` the prepared
    ``held-out.jsonl``). ``count``: at most so many questions; of those made up, 400 if not said."""
    if task not in TASKS:
        raise RecipeError(task, "is no task", f"Tasks: {', '.join(TASKS)}")
    asker = Asker(core, context)
    chance = 0.0
    if task in GENERATED:
        asked: list[Any] = [None] * (count or 400)
        figures = generated(asker, task, len(asked))
    else:
        path = _file(task, source) if source.is_dir() else source
        asked = passage_cases(path) if task == "passages" else READERS[task][1](path)
        asked = some(asked, count, task)
        if task == "passages":
            figures = _shares({task: passages.ask(asker.reply, asked)})
        elif isinstance(asked[0], Choice):
            figures, chance = choices(asker, asked)
        elif isinstance(asked[0], Sum):
            figures = sums(asker, asked)
        else:
            figures = written(asker, asked)
    return Scored(task, len(asked), figures, chance, asker.too_long)
