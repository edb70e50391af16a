"""The generators: their answers, worked out here in another way."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest
from selm_export.data import (
    generate_copy,
    generate_notes,
    generate_numbers,
    generate_reading,
    passages,
    questions,
)
from selm_export.data.chat import Conversation
from selm_export.data.corpus import parse_talk

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


TALK = """\
N: [1] (pool.txt) The pool is 25 metres. A day ticket is 140 euros, and one for a year 820 euros.
N: [2] (hall.txt) The hall in Bremen was built by Ada Stone in 1871.
U: Which ticket costs more?
A: The one for a year, since it costs 820 euros and one for a day 140. [1]
U: Who built the hall?
A: Ada Stone built the hall in Bremen in 1871. [2]

N: [1] (bus.txt) The bus leaves at the church.
U: Where does the bus leave?
A: The bus leaves at the church. [1]

U: Why is the sky blue?
A: Air scatters blue light more than red light, so it comes from everywhere.

U: What is an olive?
A: An olive is the small, bitter fruit of the olive tree.

U: What is the capital of Chad?
A: The capital of Chad is a town on the border with Cameroon.

U: What do clouds consist of?
A: Clouds consist of water drops so small that they float.
"""


def _pool() -> generate_reading.Pool:
    return generate_reading.Pool(parse_talk(TALK, "talk/passages"))


def _passages(conversation: Conversation) -> dict[str, str]:
    lines = conversation.messages[0].content.split("\n")[:-1]
    found = [generate_reading.LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return {m[1]: m[3] for m in found if m}


def _uncited(text: str) -> str:
    return passages.CITED.sub("", text).strip()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", _uncited(text).lower()))


@pytest.mark.parametrize("seed", range(300))
def test_a_made_up_reply_stands_in_the_passage_that_it_names_and_in_no_other(seed: int) -> None:
    conversation = generate_reading.invented(random.Random(seed))
    told = _passages(conversation)
    for case in passages.cases([conversation]):
        cited = passages.CITED.findall(case.reference)
        if not cited:
            assert passages.DECLINING.search(case.reference)
            continue
        said = _words(case.reference) - {"it", "yes", "no"}
        assert [n for n, text in told.items() if said <= _words(text)] == cited, case


def test_passages_told_otherwise_keep_what_is_asked() -> None:
    pool, numbers, orders = _pool(), set(), set()
    for seed in range(400):
        conversation = generate_reading.recombined(random.Random(seed), pool)
        told = _passages(conversation)
        if "Which ticket" not in conversation.messages[0].content:
            continue
        reply = conversation.messages[1].content
        cited = passages.CITED.findall(reply)
        if not cited:  # its own passages were taken away
            assert not any("euros" in text for text in told.values())
            continue
        long, short = map(int, re.findall(r"\d+", _uncited(reply)))
        assert long > short  # or the reply would no longer be true
        assert f"{short} euros, and one for a year {long} euros" in told[cited[0]]
        built = conversation.messages[3].content
        assert _uncited(built).split(" built ")[0] in told[passages.CITED.findall(built)[0]]
        assert all(year in told[passages.CITED.findall(built)[0]]
                   for year in re.findall(r"\d+", _uncited(built)))  # fmt: skip
        numbers.add((long, short))
        orders.add(tuple(passages.CITED.findall(reply + built)))
    assert len(numbers) > 50
    assert len(orders) > 4


def test_a_quoted_reply_is_that_of_the_question() -> None:
    pool = _pool()
    replies = dict(pool.kinds[0])
    assert len(replies) == 4
    asked = 0
    for seed in range(200):
        conversation = generate_reading.quoted(random.Random(seed), pool)
        told = _passages(conversation)
        for case in passages.cases([conversation]):
            cited = passages.CITED.findall(case.reference)
            if cited:
                asked += 1
                assert replies[case.question] == _uncited(case.reference)
                assert _uncited(case.reference) in told[cited[0]]
            else:
                assert not any(replies[case.question] in text for text in told.values())
    assert asked > 150
