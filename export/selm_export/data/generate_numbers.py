"""Arithmetic and unit conversion, made up without end: the digits of a small model want practice.

Every generator takes a ``random.Random`` and returns (question, steps, result); the reply gives
the steps where a person would need them, and the result at the end the way the talk files do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal

from selm_export.data.chat import Conversation, chat

Task = tuple[str, str, str]

ASK = ("What is {}?", "{}", "{} = ?", "How much is {}?", "what's {}", "Calculate {}.", "{}?",
       "Can you work out {}?", "Please compute {}.", "what is {}", "Solve {}",
       "I need {}.")  # fmt: skip


def number(r: random.Random) -> int:
    """Small numbers are asked most often."""
    digits = r.choices((1, 2, 3, 4), (35, 50, 11, 4))[0]
    return r.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def places(value: int) -> list[int]:
    """4,205 -> [4000, 200, 5]."""
    text = str(value)
    parts = [int(d) * 10 ** (len(text) - 1 - i) for i, d in enumerate(text)]
    return [p for p in parts if p] or [0]


def _chain(start: int, parts: list[int], sign: str) -> tuple[str, int]:
    """Adds or takes away place by place: each step changes few digits."""
    steps = []
    for part in parts:
        after = start + part if sign == "+" else start - part
        steps.append(f"{start} {sign} {part} = {after}")
        start = after
    return ", ".join(steps), start


def _phrase(r: random.Random, symbol: str, words: tuple[str, ...], a: int, b: int) -> str:
    if r.random() < 0.6:
        space = "" if r.random() < 0.15 else " "
        return r.choice(ASK).format(f"{a}{space}{symbol}{space}{b}")
    return r.choice(words).format(a=a, b=b)


def addition(r: random.Random) -> Task:
    a, b = number(r), number(r)
    words = ("Add {a} and {b}.", "What is {a} plus {b}?", "{a} plus {b}", "Sum of {a} and {b}?",
             "I have {a} and get {b} more. How many do I have?", "what do {a} and {b} make",
             "There are {a} red and {b} blue beads. How many beads are there?")  # fmt: skip
    question = _phrase(r, "+", words, a, b)
    if a < b and b >= 10 and r.random() < 0.5:
        steps, result = _chain(b, places(a), "+")
    else:
        steps, result = _chain(a, places(b), "+")
    return question, steps, str(result)


def subtraction(r: random.Random) -> Task:
    a, b = sorted((number(r), number(r)), reverse=True)
    words = ("Subtract {b} from {a}.", "What is {a} minus {b}?", "{a} minus {b}",
             "Take {b} away from {a}.", "I have {a} and give away {b}. How many are left?",
             "What is the difference between {a} and {b}?",
             "A shop had {a} loaves and sold {b}. How many remain?")  # fmt: skip
    question = _phrase(r, "-", words, a, b)
    steps, result = _chain(a, places(b), "-")
    return question, steps, str(result)


def product_steps(a: int, b: int) -> str:
    """Splits the longer number into its places and adds the partial products."""
    if a < b:
        a, b = b, a
    if b >= 10:
        parts = places(b)
        steps = [f"{a} x {p} = {a * p}" for p in parts]
        if len(parts) > 1:
            steps.append(f"{' + '.join(str(a * p) for p in parts)} = {a * b}")
        return ", ".join(steps)
    parts = places(a)
    if len(parts) == 1 or b < 2:
        return f"{a} x {b} = {a * b}"
    steps = [f"{p} x {b} = {p * b}" for p in parts]
    return ", ".join([*steps, f"{' + '.join(str(p * b) for p in parts)} = {a * b}"])


def multiplication(r: random.Random) -> Task:
    kind = r.random()
    if kind < 0.5:
        a, b = r.randint(0, 12), r.randint(0, 12)
    elif kind < 0.85:
        a, b = r.randint(10, 199), r.randint(2, 9)
    else:
        a, b = r.randint(11, 99), r.randint(11, 99)
    if r.random() < 0.5:
        a, b = b, a
    words = ("Multiply {a} by {b}.", "What is {a} times {b}?", "{a} times {b}",
             "{a} boxes hold {b} eggs each. How many eggs are there?",
             "What is the product of {a} and {b}?", "{a} tickets cost {b} dollars each. "
             "How much is that together?")  # fmt: skip
    question = _phrase(r, r.choice(("x", "x", "*", "\u00d7")), words, a, b)
    return question, product_steps(a, b), str(a * b)


def division(r: random.Random) -> Task:
    b = r.randint(2, 12)
    quotient = r.randint(1, 12) if r.random() < 0.7 else r.randint(10, 60)
    rest = 0 if r.random() < 0.7 else r.randint(1, b - 1)
    a = b * quotient + rest
    words = ("Divide {a} by {b}.", "What is {a} divided by {b}?", "{a} divided by {b}",
             "Share {a} sweets among {b} children. How many does each get?",
             "How often does {b} go into {a}?")  # fmt: skip
    question = _phrase(r, r.choice(("/", "/", "\u00f7", ":")), words, a, b)
    steps = f"{b} x {quotient} = {b * quotient}"
    if rest:
        steps += f", and {a} - {b * quotient} = {rest}"
        return question, steps, f"{quotient}, remainder {rest}"
    return question, steps, str(quotient)


# unit, unit, how many of the second make one of the first
UNITS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("km", "m", 1000),
    ("centimetres", "millimetres", 10), ("kilograms", "grams", 1000), ("kg", "g", 1000),
    ("tonnes", "kilograms", 1000), ("litres", "millilitres", 1000), ("hours", "minutes", 60),
    ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7),
    ("years", "months", 12), ("feet", "inches", 12), ("yards", "feet", 3),
    ("dozens", "pieces", 12), ("m", "cm", 100), ("dollars", "cents", 100), ("euros", "cents", 100),
    ("pounds", "ounces", 16),
    ("gallons", "quarts", 4), ("litres", "decilitres", 10), ("metres", "decimetres", 10),
)  # fmt: skip


def conversion(r: random.Random) -> Task:
    big, small, factor = r.choice(UNITS)
    count = r.randint(2, 12) if r.random() < 0.6 else r.randint(2, 60)
    ask = ("How many {to} are {n} {of}?", "Convert {n} {of} to {to}.", "{n} {of} in {to}",
           "What is {n} {of} in {to}?", "how many {to} in {n} {of}")  # fmt: skip
    one = big if big in ("km", "kg", "m") else {"feet": "foot"}.get(big, big.rstrip("s"))
    fact = f"1 {one} is {factor} {small}"
    if r.random() < 0.5:
        question = r.choice(ask).format(n=count, of=big, to=small)
        return (
            question,
            f"{fact}. {count} x {factor} = {count * factor}",
            f"{count * factor} {small}",
        )
    question = r.choice(ask).format(n=count * factor, of=small, to=big)
    return question, f"{fact}. {count * factor} / {factor} = {count}", f"{count} {big}"


def percentage(r: random.Random) -> Task:
    percent = r.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90))
    whole = r.choice((10, 20, 40, 50, 60, 80, 100, 120, 200, 300, 400, 500, 800, 1000))
    part = Decimal(percent * whole) / 100
    shown = f"{part.normalize():f}"
    ask = ("What is {p}% of {w}?", "{p}% of {w}", "How much is {p} percent of {w}?")
    question = r.choice(ask).format(p=percent, w=whole)
    return (
        question,
        f"{percent} x {whole} = {percent * whole}, and {percent * whole} / 100 = {shown}",
        shown,
    )


TASKS: tuple[tuple[Callable[[random.Random], Task], int], ...] = (
    (addition, 34), (subtraction, 24), (multiplication, 20), (division, 12), (conversion, 7),
    (percentage, 3),
)  # fmt: skip


def task(r: random.Random) -> Task:
    makers, weights = zip(*TASKS, strict=True)
    made: Task = r.choices(makers, weights)[0](r)
    return made


def reply(steps: str, result: str) -> str:
    """The result is repeated at the end only when there was more than one step."""
    if ", " not in steps and ". " not in steps and steps.endswith(f"= {result}"):
        return f"{steps}."
    return f"{steps}. The answer is {result}."


def conversation(r: random.Random) -> Conversation:
    turns: list[str] = []
    for _ in range(r.choices((1, 2, 3, 5), (40, 25, 20, 15))[0]):
        question, steps, result = task(r)
        turns += [question, reply(steps, result)]
    return chat("arithmetic", *turns)
