"""Questions with known answers, for scores: read from the data folder's files or from the user's.

Three forms: a choice among options, a number, and a written answer. The user's own files are
``.jsonl`` (plain or .xz) with the keys of the public set that the task is named after; a written
answer may also be a row of ``messages``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.data.corpus import read_lines, read_medquad
from selm_export.errors import RecipeError


@dataclass(frozen=True)
class Choice:
    """``options`` are texts that a reply may be; the one at ``right`` is the answer."""

    question: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Sum:
    question: str
    answer: str  # a number


@dataclass(frozen=True)
class Written:
    question: str
    answer: str


Rows = Iterator[dict[str, Any]]


def _options(text: str) -> tuple[str, tuple[str, ...]]:
    """``Please choose the correct answer to the question: Q  Answer1: a Answer2: b ...  Answer
    format: ...`` to Q and (a, b, ...)."""
    text = text.split("\n\nAnswer format:", maxsplit=1)[0]
    question, *options = re.split(r"\s*\bAnswer\d+:\s*", text)
    return question.removeprefix("Please choose the correct answer to the question:").strip(), (
        *(option.strip() for option in options),
    )


def _arc(row: dict[str, Any]) -> Choice:
    question, options = _options(row["instruction"])
    return Choice(question, options, int(row["answer"].removeprefix("answer")) - 1)


def _medqa(row: dict[str, Any]) -> Choice:
    letters = sorted(row["options"])
    options = tuple(" ".join(str(row["options"][k]).strip(' \n"').split()) for k in letters)
    return Choice(row["question"].strip(), options, letters.index(row["answer_idx"]))


def _medmcqa(row: dict[str, Any]) -> Choice:
    options = tuple(str(row[f"op{letter}"]).strip() for letter in "abcd")
    return Choice(row["question"].strip(), options, int(row["cop"]) - 1)


def _boolq(row: dict[str, Any]) -> Choice:
    """The options are the words that the training's reader of BoolQ lets the assistant say."""
    right = ["true", "false"].index(str(row["answer"]).lower())
    return Choice(row["question"].split("\n")[0].strip(), ("Yes.", "No."), right)


def _gsm8k(row: dict[str, Any]) -> Sum:
    _, mark, result = row["answer"].partition("####")
    if not mark:
        raise ValueError("no '####' before the result")
    return Sum(row["question"].strip(), result.strip())


def _rows(path: Path, make: Callable[[dict[str, Any]], Any]) -> list[Any]:
    found = []
    for number, row in enumerate(read_lines(path), start=1):
        try:
            item = make(row)
            if isinstance(item, Choice) and not 0 <= item.right < len(item.options) > 1:
                raise ValueError(f"answer {item.right + 1} of {len(item.options)} options")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise RecipeError(
                path, f"line {number} is no question of this task ({what})", "Mend it"
            ) from None
        found.append(item)
    if not found:
        raise RecipeError(path, "holds no question", "Give a file with some")
    return found


def _turns(row: dict[str, Any]) -> Written:
    question, answer = row["messages"][-2:]
    return Written(question["content"], answer["content"])


def _medquad(path: Path) -> list[Written]:
    """Answers cut to leading sentences, as the training's reader cuts them."""
    if any("messages" in row for row in read_lines(path)):
        return _rows(path, _turns)
    found = [Written(*(m.content for m in c.messages)) for c in read_medquad(path)]
    if not found:
        raise RecipeError(path, "holds no question", "Give a file with some")
    return found


READERS: dict[str, tuple[str, Callable[[Path], list[Any]]]] = {
    "gsm8k": ("math/gsm8k-test.jsonl.xz", lambda path: _rows(path, _gsm8k)),
    "medqa": ("medical/medqa-us-test.jsonl.xz", lambda path: _rows(path, _medqa)),
    "medmcqa": ("medical/medmcqa-dev.jsonl.xz", lambda path: _rows(path, _medmcqa)),
    "boolq": ("general/boolq-test.jsonl.xz", lambda path: _rows(path, _boolq)),
    "arc": ("general/arc-easy-train.jsonl.xz", lambda path: _rows(path, _arc)),
    "openbookqa": ("general/openbookqa-train.jsonl.xz", lambda path: _rows(path, _arc)),
    "medquad": ("medical/medquad-test.jsonl.xz", _medquad),
}
"""By task: its file in the data folder (see its README.md), and how it is read."""
