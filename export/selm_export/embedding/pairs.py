"""Questions, each with the text that answers it, and where there is one a text that does not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selm_export.data import generate_notes, generate_reading
from selm_export.data.chat import Conversation
from selm_export.data.corpus import read_lines, read_source, source_files
from selm_export.data.passages import CITED
from selm_export.data.split import COMMON

HELD_OUT = 820  # questions of MedQuAD's training half that nothing learns from: for choosing
LEAST = 0.34  # of a reply's words must stand in a note for the note to be what it rests on
LINE = re.compile(r"N: (?:\[(\d+)\] (?:\([^)]*\) )?)?(.*)")


@dataclass(frozen=True)
class Pair:
    question: str
    text: str
    other: str = ""  # stood beside the text, and does not answer


def medquad(data: Path, source: str = "medquad") -> list[Pair]:
    """Question and whole answer; an answer that stands under many questions once for each."""
    path = source_files(data, source)[0]
    return [
        Pair(re.sub(r"\s+\?", "?", " ".join(row["question"].split())),
             " ".join(row["answer"].split()))
        for row in read_lines(path)
    ]  # fmt: skip


def held_out(pairs: Sequence[Pair], count: int = HELD_OUT) -> tuple[list[Pair], list[Pair]]:
    """Those to learn from, and ``count`` to choose by: drawn by chance, always the same. What
    answers a held-out question is no answer to learn from."""
    count = min(count, len(pairs) // 2)
    chosen = set(random.Random("medquad held out").sample(range(len(pairs)), count))
    kept = [pairs[i] for i in sorted(chosen)]
    texts = {pair.text for pair in kept}
    return [p for i, p in enumerate(pairs) if i not in chosen and p.text not in texts], kept


def _words(text: str) -> set[str]:
    return {w for w in re.findall(r"\w+", text.lower()) if w not in COMMON}


def _noted(conversation: Conversation) -> Iterable[Pair]:
    """Each question about notes, with the one note that its reply rests on, or the passages that
    it cites. A later question stands for itself, as far as it can."""
    first = conversation.messages[0].content.split("\n")
    lines = [match for line in first[:-1] if (match := LINE.fullmatch(line))]
    texts = [line[2] for line in lines]
    if not texts:
        return
    numbers = {line[1]: line[2] for line in lines if line[1]}
    for i in range(0, len(conversation.messages) - 1, 2):
        question = conversation.messages[i].content.split("\n")[-1]
        reply = conversation.messages[i + 1].content
        if numbers:
            cited = {numbers[n] for n in CITED.findall(reply) if n in numbers}
        else:
            said = _words(reply)
            shares = [len(said & _words(text)) / max(1, len(said)) for text in texts]
            best = max(shares)
            cited = {texts[shares.index(best)]} if best >= LEAST else set()
        if len(cited) == 1:
            (text,) = cited
            others = [each for each in texts if each != text]
            yield Pair(question, text, others[len(question) % len(others)] if others else "")


def talk(data: Path) -> dict[str, list[Pair]]:
    """From the talk files: ``talk-notes`` (questions with notes or passages) and ``talk`` (a first
    question and its reply)."""
    found: dict[str, list[Pair]] = {"talk-notes": [], "talk": []}
    for conversation in read_source(data, "talk"):
        first, reply = conversation.messages[0].content, conversation.messages[1].content
        if first.startswith("N: "):
            found["talk-notes"] += _noted(conversation)
        elif len(first) < 400:
            found["talk"].append(Pair(first, reply))
    return found


def asked(data: Path, source: str) -> list[Pair]:
    """A source whose conversations are a question and its answer; those where the answer only says
    the question's sentence to its end teach nothing and are left out."""
    found = [Pair(c.messages[0].content, c.messages[1].content) for c in read_source(data, source)]
    return [pair for pair in found if not pair.text.startswith(pair.question)]


def notes(r: random.Random, count: int) -> list[Pair]:
    """Facts made up without end."""
    found: list[Pair] = []
    while len(found) < count:
        case = generate_notes.case(r, answerable=True)
        *lines, question = case.conversation.messages[0].content.split("\n")
        texts = [line.removeprefix("N: ") for line in lines]
        reply = case.conversation.messages[1].content
        told = [t for t in texts if case.value and case.value in t]
        key = _words(reply) - _words(case.value or "")
        told = [t for t in told if key & _words(t)] or told
        if len(told) == 1:
            others = [t for t in texts if t != told[0]]
            found.append(Pair(question, told[0], r.choice(others) if others else ""))
    return found


def reading(r: random.Random, count: int) -> list[Pair]:
    """Questions about passages of invented facts."""
    found: list[Pair] = []
    while len(found) < count:
        found += _noted(generate_reading.invented(r))
    return found[:count]


SOURCES = ("talk", "medquad", "medquad-test", "arc", "openbookqa", "pubmedqa", "topical")
"""What the training and its measure read of the data folder."""
MAKERS: dict[str, Callable[[random.Random, int], list[Pair]]] = {"notes": notes, "reading": reading}


def gather(data: Path, generated: int, seed: int) -> dict[str, list[Pair]]:
    """All pairs to learn from, by source; ``generated`` of each kind that is made up."""
    sources: dict[str, Callable[[], list[Pair]]] = {
        "medquad": lambda: held_out(medquad(data))[0],
        **{s: partial(asked, data, s) for s in ("arc", "openbookqa", "pubmedqa")},
        **{s: partial(make, random.Random(f"{seed}:{s}"), generated) for s, make in MAKERS.items()},
    }
    found = talk(data) | {name: make() for name, make in sources.items()}
    return {name: list(dict.fromkeys(pairs)) for name, pairs in found.items()}
