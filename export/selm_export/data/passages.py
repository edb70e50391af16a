"""Questions about numbered passages, and when a reply to one counts as right.

A passage stands before the question as ``N: [1] (file.txt) ...``; a reply names those that it
rests on, ``... [1]``, and names none where it says that they do not tell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from selm_export.data.chat import Conversation, Message
from selm_export.data.questions import Marked
from selm_export.data.split import COMMON

Answer = Callable[[Sequence[Message]], str]  # the model: the turns so far to its reply

PASSAGE = re.compile(r"^N: \[\d+\] ", re.M)
CITED = re.compile(r"\[(\d+)\]")
DECLINING = re.compile(
    r"\b(no|not|nothing|none|never|nor|without|only|cannot|missing|leaves?|left|unknown|\w+n't)\b",
    re.I,
)
SAME = 0.5
"""From this F1 of their words on two answers say the same. In the talk files 94 % of the answers
are recognised by their own sentence of the passage, and 2 % of its other sentences are taken for
them, all with the right passage named."""


@dataclass(frozen=True)
class Case:
    messages: tuple[Message, ...]  # up to the question
    reference: str

    @property
    def question(self) -> str:
        return self.messages[-1].content.split("\n")[-1]

    @property
    def told(self) -> str:
        """All that the model was told, passages and earlier turns."""
        return "\n".join(message.content for message in self.messages)


def cases(conversations: Iterable[Conversation]) -> list[Case]:
    """Each reply of the conversations that have passages, the turns before it as they were."""
    found = []
    for conversation in conversations:
        messages = conversation.messages
        if not any(m.role == "user" and PASSAGE.search(m.content) for m in messages):
            continue
        for i, message in enumerate(messages):
            if i and message.role == "assistant":
                found.append(Case(messages[:i], message.content))
    return found


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,:]\d+)*", CITED.sub("", text)))


def _words(text: str) -> Counter[str]:
    return Counter(w for w in re.findall(r"[^\W\d_]+", text.lower()) if w not in COMMON)


def _f1(some: Counter[str], others: Counter[str]) -> float:
    total = some.total() + others.total()
    return 2 * (some & others).total() / total if total else 1.0


def _verdict(text: str) -> str:
    found = re.match(r"\W*(yes|no)\b", text.lower())
    return found[1] if found else ""


def right_about(case: Case, reply: str) -> bool:
    """The same passages are named as in the reference. Then, where it names none, the reply must
    decline; else it must say yes or no as the reference does, hold the numbers that it adds to the
    question and no number from nowhere, and share words with it (F1 at least ``SAME``)."""
    reference = case.reference
    if set(CITED.findall(reply)) != set(CITED.findall(reference)):
        return False
    if not CITED.search(reference):
        return bool(DECLINING.search(reply))
    if not _numbers(reference) - _numbers(case.question) <= _numbers(reply):
        return False
    if not _numbers(reply) <= _numbers(reference) | _numbers(case.told):
        return False
    if _verdict(reference) != _verdict(reply):
        return False
    return _f1(_words(reply), _words(reference)) >= SAME


def ask(model: Answer, asked: Sequence[Case]) -> list[Marked]:
    found = []
    for case in asked:
        reply = model(case.messages)
        found.append(Marked(case.question, reply, right_about(case, reply)))
    return found
