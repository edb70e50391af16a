"""Saying again what was said, made up without end.

Every token of such a reply has to be copied from the question, so a small model learns to look
back far sooner than from answers of three words. Reading notes back is also of use by itself.
"""

from __future__ import annotations

import random

from selm_export.data import generate_notes as notes
from selm_export.data.chat import Conversation, chat

READ_BACK = ("Read my notes back.", "What do my notes say?", "Show me my notes.", "List my notes.",
             "repeat the notes please", "Which notes do you have?")  # fmt: skip
REPEAT = ("Repeat after me: {}", "Say this again: {}", "Repeat: {}", "Say: {}", "repeat {}",
          "Copy this: {}", "Write exactly this: {}", 'Please repeat "{}"')  # fmt: skip


def _item(side: notes.Side) -> str:
    make = side.r.choice((
        side.invented, side.invented, side.person, side.phone, side.code, side.time, side.date,
        side.street, side.price, side.town, lambda: side.one_of(notes.THINGS),
        lambda: side.one_of(notes.FOODS), side.word, side.word, side.word,
    ))  # fmt: skip
    return make()


def read_back(r: random.Random) -> Conversation:
    side = notes.Side(r, held_out=False)
    lines = []
    for _ in range(r.choices((1, 2, 3, 5), (20, 35, 30, 15))[0]):
        fact = r.choice(notes.FACTS)
        lines.append(r.choice(fact.notes).format(k=fact.key(side), v=fact.value(side)))
    question = "\n".join([*(f"N: {line}" for line in lines), r.choice(READ_BACK)])
    return chat("copy", question, "\n".join(f"- {line}" for line in lines))


def repeat(r: random.Random) -> Conversation:
    side = notes.Side(r, held_out=False)
    mark = r.choice((" ", ", ", ", ", " and "))
    text = mark.join(_item(side) for _ in range(r.randint(1, 7)))
    return chat("copy", r.choice(REPEAT).format(text), text)


def conversation(r: random.Random) -> Conversation:
    return read_back(r) if r.random() < 0.5 else repeat(r)
