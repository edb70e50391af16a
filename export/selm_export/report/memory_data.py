"""What recall is measured on: facts told to an assistant, and MedQuAD's answers.

``memory_facts.jsonl`` was written by hand for this project (Apache-2.0). Its rows:

- ``fact``: a ``text`` as somebody would tell it, three ``questions`` about it in other words, and
  the ``value`` that a right answer holds;
- ``code``: the same with a code (an invoice, a part, an error), and a question that names it;
- ``negative``: looks like the fact or code ``near`` it, but is of somebody or something else;
- ``unanswered``: a question that nothing in the file answers.

``split`` is ``dev`` (to choose by) or ``test`` (to report), by fact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from selm_export.data.corpus import read_lines
from selm_export.embedding import pairs

Split = Literal["dev", "test"]
FILE = "memory_facts.jsonl"
LONGEST = 20_000  # characters of a memory; nine of MedQuAD's answers are longer


@dataclass(frozen=True)
class Asked:
    question: str
    text: str  # of the memory that answers; "" where none does
    value: str = ""


@dataclass(frozen=True)
class Task:
    """What is remembered, and the questions."""

    name: str
    texts: tuple[str, ...]
    kind: Literal["fact", "passage"]
    asked: tuple[Asked, ...]


def rows() -> list[dict[str, Any]]:
    """The rows of the file in the package."""
    return list(read_lines(Path(str(files("selm_export.report") / FILE))))


def own_tasks(split: Split) -> list[Task]:
    """``facts``, ``codes`` and ``unanswered``: all texts of the file are remembered at once."""
    found = rows()
    texts = tuple(row["text"] for row in found if "text" in row)
    return [
        Task(name, texts, "fact", tuple(
            Asked(question, row.get("text", ""), row.get("value", ""))
            for row in found if row["kind"] == kind and row["split"] == split
            for question in row["questions"]
        ))
        for name, kind in (("facts", "fact"), ("codes", "code"), ("unanswered", "unanswered"))
    ]  # fmt: skip


def medquad(data: Path, split: Split) -> Task:
    """Every answer of MedQuAD is a passage; asked are the test's questions, or those of the
    training half that were kept back from training."""
    learned, test = pairs.medquad(data), pairs.medquad(data, "medquad-test")
    asked = test if split == "test" else pairs.held_out(learned)[1]
    texts = dict.fromkeys(pair.text[:LONGEST] for pair in [*learned, *test])
    return Task(
        "medquad", tuple(texts), "passage",
        tuple(Asked(pair.question, pair.text[:LONGEST]) for pair in asked),
    )  # fmt: skip


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def faults(found: Sequence[dict[str, Any]]) -> list[str]:
    """What would make the figures mean something else: things said twice, a question that holds
    its own answer, a value that the fact does not hold, a negative of nothing."""
    told: list[str] = []
    questions = Counter(plain(q) for row in found for q in row.get("questions", ()))
    texts = Counter(plain(row["text"]) for row in found if "text" in row)
    for what, counts in (("question", questions), ("text", texts)):
        told += [f"the {what} {text!r} is there {n} times" for text, n in counts.items() if n > 1]
    ids = Counter(row["id"] for row in found)
    told += [f"the id {key} is there {n} times" for key, n in ids.items() if n > 1]
    for row in found:
        if "near" in row and row["near"] not in ids:
            told.append(f"{row['id']} is near {row['near']}, which is not there")
        if "value" not in row:
            continue
        value = f" {plain(row['value'])} "
        if plain(row["value"]) not in plain(row["text"]):
            told.append(f"{row['id']}: its value is not in its text")
        told += [
            f"{row['id']}: the question {question!r} holds the answer"
            for question in row["questions"] if value in f" {plain(question)} "
        ]  # fmt: skip
    return told
