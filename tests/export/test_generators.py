"""The generators: their answers, worked out here in another way."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest
from selm_export.data import generate_copy, generate_notes, generate_numbers, questions

SIGNS = {"x": "*", "=": "=="}


def _true(equation: str) -> bool:
    """Whether ``3482 + 1000 = 4482`` holds, by exact fractions."""
    left, right = equation.split("=")
    total, sign = Fraction(0), "+"
    for part in re.findall(r"[-+x/]|\d+(?:\.\d+)?", left):
        if part in "+-x/":
            sign = part
        elif sign == "+":
            total += Fraction(part)
        elif sign == "-":
            total -= Fraction(part)
        elif sign == "x":
            total *= Fraction(part)
        else:
            total /= Fraction(part)
    return total == Fraction(right.strip())


@pytest.mark.parametrize("maker", [m for m, _ in generate_numbers.TASKS], ids=lambda m: m.__name__)
def test_every_step_is_true(maker: generate_numbers.Callable) -> None:  # type: ignore[type-arg]
    for seed in range(400):
        question, steps, result = maker(random.Random(seed))
        text = generate_numbers.reply(steps, result)
        equations = re.findall(r"[\d.]+(?: [-+x/] [\d.]+)+ = \d+(?:\.\d+)?", text)
        assert equations, (question, text)
        assert all(_true(e) for e in equations), (question, text)
        assert questions.last_number(text) == questions.last_number(result)


@pytest.mark.parametrize(("kind", "sign"), [("add", "+"), ("subtract", "-"), ("multiply", "*")])
def test_results_by_the_numbers_of_the_question(kind: str, sign: str) -> None:
    for question, result in questions.sums(300, kind):
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        assert len(numbers) == 2
        a, b = numbers if sign != "-" else (max(numbers), min(numbers))
        assert int(result) == {"+": a + b, "-": a - b, "*": a * b}[sign], question


def test_division_results() -> None:
    for question, result in questions.sums(300, "divide"):
        a, b = sorted((int(n) for n in re.findall(r"\d+", question)), reverse=True)
        found = [int(n) for n in re.findall(r"\d+", result)]
        quotient, rest = found if len(found) == 2 else (found[0], 0)
        assert quotient * b + rest == a, question


def test_notes_hold_the_answer_or_do_not() -> None:
    for seed in range(800):
        case = generate_notes.case(random.Random(seed))
        question = case.conversation.messages[0].content
        reply = case.conversation.messages[1].content
        if case.value is None:
            assert questions.declines(reply)
        else:
            assert case.value in question.rsplit("\n", 1)[0]
            assert case.value.lower() in reply.lower()
        assert questions.right_about(case, reply), (question, reply)


def test_held_out_values_are_never_trained_on() -> None:
    held_out = [case.value for case in questions.note_cases(300, True) if case.value]
    checked = [v for v in held_out if v in generate_notes.JOBS or v in generate_notes.FOODS]
    assert checked
    for value in checked:
        assert generate_notes.side_of(value)
    for seed in range(500):
        case = generate_notes.case(random.Random(f"1:0:{seed}"))
        for value in (*case.others, case.value):
            if value in generate_notes.JOBS or value in generate_notes.FOODS:
                assert not generate_notes.side_of(str(value))


def test_marking_is_strict() -> None:
    case = generate_notes.Case(
        generate_notes.chat("notes", "N: a\nWhat time is the picnic?", "The picnic is at 14:20."),
        "14:20",
        ("15:30",),
    )
    assert questions.right_about(case, "The picnic is at 14:20.")
    assert not questions.right_about(case, "The picnic is at 14:25.")
    assert not questions.right_about(case, "At 14:20 or 15:30.")
    assert not questions.right_about(case, "The notes do not say.")
    nothing = generate_notes.Case(case.conversation, None, ("15:30",))
    assert questions.right_about(nothing, "The notes do not say what time it is.")
    assert not questions.right_about(nothing, "The picnic is at 15:30.")
    assert not questions.right_about(nothing, "The notes do not say 15:30.")


def test_last_number() -> None:
    assert questions.last_number("2 + 3 = 5. The answer is 5.") == "5"
    assert questions.last_number("The answer is 8, remainder 2.") == "8, remainder 2"
    assert questions.last_number("no idea") == ""


def test_copies_say_what_was_given() -> None:
    for seed in range(200):
        messages = generate_copy.repeat(random.Random(seed)).messages
        assert messages[1].content in messages[0].content
        messages = generate_copy.read_back(random.Random(seed)).messages
        given = [line[3:] for line in messages[0].content.split("\n")[:-1]]
        assert [line[2:] for line in messages[1].content.split("\n")] == given


def test_held_out_questions_come_to_an_end() -> None:
    """The held-out side has few names of some kinds; a case that has used them all is redrawn."""
    assert len(questions.note_cases(300, False)) == 300
