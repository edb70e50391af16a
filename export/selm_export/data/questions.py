"""Generated questions that the training never saw, and how replies to them are marked."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selm_export.data import generate_notes, generate_numbers

# The training's generators are seeded with text that begins with a number, so these are apart.
HELD_OUT_SEED = "held-out"
DECLINING = re.compile(
    r"\b(do(es)? not|don't|doesn't|no note|nothing|not (say|find|see|mention|know)|unknown)\b", re.I
)

Reply = Callable[[str], str]  # the model: a user's turn to the assistant's


@dataclass(frozen=True)
class Marked:
    question: str
    reply: str
    right: bool


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[A-Za-z0-9:]+", text))


def _holds(reply: str, value: str) -> bool:
    return f" {_plain(value)} " in f" {_plain(reply)} "


def declines(reply: str) -> bool:
    return bool(DECLINING.search(reply))


def right_about(case: generate_notes.Case, reply: str) -> bool:
    """Exact: the value stands in the reply word for word and no other note's value does; or the
    reply declines and names no value."""
    others = [v for v in case.others if not (case.value and _holds(case.value, v))]
    if any(_holds(reply, v) and not _holds(case.conversation.messages[0].content.split("\n")[-1], v)
           for v in others):  # fmt: skip
        return False
    if case.value is None:
        return declines(reply)
    return _holds(reply, case.value)


def note_cases(count: int, answerable: bool) -> list[generate_notes.Case]:
    return [
        generate_notes.case(
            random.Random(f"{HELD_OUT_SEED}:notes:{answerable}:{i}"), True, answerable
        )
        for i in range(count)
    ]


def ask_notes(model: Reply, count: int, answerable: bool) -> list[Marked]:
    found = []
    for case in note_cases(count, answerable):
        question = case.conversation.messages[0].content
        reply = model(question)
        found.append(Marked(question, reply, right_about(case, reply)))
    return found


def last_number(reply: str) -> str:
    """The result that a reply arrives at: with its remainder, where it names one."""
    match = re.findall(r"-?\d+(?:\.\d+)?(?:, remainder \d+)?", reply.replace("\u2212", "-"))
    return match[-1] if match else ""


def sums(count: int, kind: str, largest: int = 9999) -> list[tuple[str, str]]:
    """Questions of one kind of arithmetic, with the result; numbers up to ``largest``."""
    maker = {
        "add": generate_numbers.addition,
        "subtract": generate_numbers.subtraction,
        "multiply": generate_numbers.multiplication,
        "divide": generate_numbers.division,
        "convert": generate_numbers.conversion,
    }[kind]
    found: list[tuple[str, str]] = []
    i = 0
    while len(found) < count:
        question, _, result = maker(random.Random(f"{HELD_OUT_SEED}:{kind}:{i}"))
        if all(int(n) <= largest for n in re.findall(r"\d+", question)):
            found.append((question, result))
        i += 1
    return found


def ask_sums(model: Reply, questions: Sequence[tuple[str, str]]) -> list[Marked]:
    found = []
    for question, result in questions:
        reply = model(question)
        wanted = last_number(result)
        found.append(Marked(question, reply, last_number(reply) == wanted))
    return found


def share(marked: Sequence[Marked]) -> float:
    return sum(m.right for m in marked) / max(1, len(marked))
