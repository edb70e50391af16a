"""Answers from numbered passages, with the passage named: made up without end.

Four ways, since each alone is learned by heart: documents of invented facts (``reading.txt``),
questions of the training talk over passages that are renumbered, mixed with others and told other
numbers and names, replies of the training data that stand in a passage, to be found and quoted, and
bare finding: which passage holds a word, and what stands there. The last is asked several times of
the same passages, since a reply has a single token that says which one it is from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from selm_export.data.chat import Conversation, chat
from selm_export.data.generate_notes import (
    COLOURS,
    DAYS,
    EVENTS,
    FOODS,
    GOODS,
    JOBS,
    MONTHS,
    PLACES,
    THINGS,
    VENUES,
    Side,
)  # fmt: skip
from selm_export.data.passages import CITED
from selm_export.data.split import COMMON

SOURCE = "reading"
MOST = 4  # passages before a question
LINE = re.compile(r"N: \[(\d+)\] \(([^)]*)\) (.*)")
NUMBER = re.compile(r"\d+")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")  # in the middle of a sentence
SENTENCE = re.compile(r"[^.!?]+(?:[.!?](?=\S)[^.!?]*)*[.!?]")
WORD = re.compile(r"\b[A-Za-z]{5,}\b")
FINDING = (
    "Which passage says \"{some}\"?", "In which passage does \"{some}\" stand?",
    "Which passage tells of \"{word}\"?", "Which passage mentions {word}?",
    "What is said of \"{word}\"?", "Where is {word} mentioned?", "Quote what says \"{some}\".",
    "What do they say about {word}?",
)  # fmt: skip
NO_TEXT = re.compile(r"[?=!]|\b(I|you|your|me|[Yy]es|No)\b")  # said to somebody, or reckoned
DECLINES = (
    "The passage does not say {m}.", "The passages do not say {m}.", "The text does not tell {m}.",
    "The passages do not tell {m}.", "Nothing in the passages tells {m}.",
    "The passage does not mention {m}.",
)  # fmt: skip
SAYS_NOT = (
    "The passages do not say.", "The passage does not say that.", "The passages do not tell.",
    "That is not in the passages.", "Nothing in the passages answers that.",
)  # fmt: skip


@dataclass(frozen=True)
class Passage:
    file: str
    text: str


def _written(passages: Sequence[Passage], question: str) -> str:
    lines = [f"N: [{i}] ({p.file}) {p.text}" for i, p in enumerate(passages, 1)]
    return "\n".join([*lines, question])


# --- documents of invented facts -----------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    statement: str
    questions: tuple[str, ...]
    reply: str
    missing: str
    group: int  # of facts in one group a document has at most one


@dataclass(frozen=True)
class Topic:
    file: str
    facts: tuple[Fact, ...]


@cache
def topics() -> tuple[Topic, ...]:
    text = (files("selm_export.data") / "reading.txt").read_text(encoding="utf-8")
    found = []
    for block in re.split(r"^topic: ", text, flags=re.M)[1:]:
        file, _, rest = block.partition("\n")
        facts: list[Fact] = []
        for group, alike in enumerate(re.split(r"(?<!or)\n(?=S )", rest.strip())):
            missing = ""
            for one in alike.split("\nor\n"):
                line = {row[0]: row[2:] for row in one.strip().split("\n")}
                missing = line.get("M", missing)
                questions = tuple(line["Q"].split(" | "))
                facts.append(Fact(line["S"], questions, line["A"], missing, group))
        found.append(Topic(file, tuple(facts)))
    return tuple(found)


class Slots(dict[str, str]):
    """What stands in the braces: drawn when first asked for, then the same."""

    def __init__(self, side: Side, known: dict[str, str]) -> None:
        super().__init__(known)
        self.side = side

    def __missing__(self, key: str) -> str:
        side, r = self.side, self.side.r
        makers: dict[str, Callable[[], str]] = {
            "s": lambda: side.word() if r.random() < 0.3 else side.invented(),
            "time": side.time, "price": side.price, "person": side.person, "town": side.town,
            "date": side.date, "year": lambda: str(r.randint(1200, 2020)),
            "n": lambda: str(r.choice((r.randint(2, 20), r.randint(2, 90), r.randint(20, 900)))),
            "deg": lambda: str(r.randrange(120, 260, 5)), "month": lambda: r.choice(MONTHS),
            "big": lambda: f"{r.randint(1, 90)},{r.randint(0, 9)}00", "day": lambda: r.choice(DAYS),
            **{
                name: lambda values=values: side.one_of(values)  # type: ignore[misc]
                for name, values in (
                    ("thing", THINGS), ("food", FOODS), ("goods", GOODS), ("place", PLACES),
                    ("venue", VENUES), ("colour", COLOURS), ("job", JOBS), ("event", EVENTS),
                )
            },
        }  # fmt: skip
        self[key] = makers[key.rstrip("2")]()
        return self[key]


@dataclass(frozen=True)
class Told:
    """A fact as one document tells it."""

    fact: Fact
    slots: Slots

    def fill(self, text: str) -> str:
        return text.format_map(self.slots)


def _document(r: random.Random, side: Side, topic: Topic, without: set[int]) -> list[Told]:
    """One to three facts about one thing, none of the groups in ``without``."""
    first = Slots(side, {})
    about = {key: first[key] for key in ("s", "thing", "food")}
    groups = [g for g in {f.group for f in topic.facts} if g not in without]
    chosen = r.sample(groups, min(len(groups), r.choice((1, 2, 2, 3, 3))))
    return [
        Told(r.choice([f for f in topic.facts if f.group == group]), Slots(side, about))
        for group in chosen
    ]


def invented(r: random.Random) -> Conversation:
    """One to four documents, often of one kind, and questions to one or two of their facts."""
    side = Side(r, held_out=False)
    topic = r.choice(topics())
    kept_back = r.choice(topic.facts)  # asked for, perhaps, and told by none
    documents: list[tuple[Topic, list[Told]]] = []
    for i in range(r.choices((1, 2, 3, MOST), (35, 35, 22, 8))[0]):
        of = topic if i == 0 or r.random() < 0.5 else r.choice(topics())
        # Two documents of one kind tell one fact twice only if the question says which is meant.
        taken = {
            told.fact.group for t, tolds in documents if t is of for told in tolds
            if not all("{s}" in q for q in told.fact.questions)
        }  # fmt: skip
        document = _document(r, side, of, taken | ({kept_back.group} if of is topic else set()))
        if document:
            documents.append((of, document))
    about = documents[0][1][0].slots
    r.shuffle(documents)
    passages = [
        Passage(told[0].fill(of.file).replace(" ", "-").lower(),
                " ".join(_capital(t.fill(t.fact.statement)) for t in told))
        for of, told in documents
    ]  # fmt: skip
    known = [(i, t) for i, (_, told) in enumerate(documents, 1) for t in told]
    turns: list[str] = []
    for _ in range(r.choices((1, 2, 3, 5), (30, 30, 20, 20))[0]):
        if known and r.random() < 0.8:
            number, told = known.pop(r.randrange(len(known)))
            turns += [_asked(r, told), f"{_capital(told.fill(told.fact.reply))} [{number}]"]
        elif not turns or turns[-1].endswith("]"):
            absent = Told(kept_back, Slots(side, dict(about)))
            missing = absent.fill(kept_back.missing)
            turns += [_asked(r, absent), r.choice(DECLINES).format(m=missing)]
    turns[0] = _written(passages, turns[0])
    return chat(SOURCE, *turns)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _asked(r: random.Random, told: Told) -> str:
    question = _capital(told.fill(r.choice(told.fact.questions)))
    return question.lower().rstrip("?") if r.random() < 0.06 else question


# --- what the training data says -----------------------------------------------------------------


class Pool:
    """The training conversations that passages can be made from."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self.asked = [c for c in conversations if _first_passages(c)]
        pairs = [(c.source, pair) for c in conversations if (pair := _pair(c))]
        talk = [pair for source, pair in pairs if source.startswith("talk/")]
        other = [pair for source, pair in pairs if not source.startswith("talk/")]
        self.kinds = [kind for kind in (talk, other) if len(kind) >= MOST]

    def draw(self, r: random.Random, count: int) -> list[tuple[str, str]]:
        """Questions with their replies, of the talk as often as of all other sources."""
        return r.sample(r.choice(self.kinds), count)


def _first_passages(conversation: Conversation) -> list[Passage]:
    """The numbered passages before the first question, if the notes are nothing else."""
    lines = conversation.messages[0].content.split("\n")[:-1]
    found = [LINE.fullmatch(line) for line in lines]
    return [Passage(m[2], m[3]) for m in found if m] if all(found) else []


def _pair(conversation: Conversation) -> tuple[str, str] | None:
    """A first question and its reply, if the reply tells something that could stand in a text."""
    if len(conversation.messages) < 2 or conversation.messages[0].role != "user":
        return None
    question, reply = (m.content for m in conversation.messages[:2])
    words = len(reply.split())
    told = question.endswith("?") and "\n" not in question and reply.endswith(".")
    if not told or not 7 <= words <= 40 or NO_TEXT.search(reply):
        return None
    return question, reply


def recombined(r: random.Random, pool: Pool) -> Conversation:
    """A conversation about passages, told otherwise: other passages between its own, another
    order, other numbers and names; at times its own taken away."""
    chosen = r.choice(pool.asked)
    own = _first_passages(chosen)
    messages = list(chosen.messages)
    if any("N: [" in m.content for m in messages[1:]):
        return chosen
    others: list[Passage] = []
    for _ in range(r.choices((0, 1, 2), (30, 45, 25))[0]):
        others += [p for p in _first_passages(r.choice(pool.asked))[:1] if p not in own]
    others = others[: max(0, MOST - len(own))]
    first = messages[0].content.split("\n")[-1]
    if others and r.random() < 0.12:
        return chat(SOURCE, _written(others, first), r.choice(SAYS_NOT))
    order = [*enumerate(own, 1), *((0, p) for p in others)]
    r.shuffle(order)
    number = {str(old): str(new) for new, (old, _) in enumerate(order, 1) if old}
    texts = [first, *(CITED.sub(lambda m: f"[{number.get(m[1], m[1])}]", m.content)
                      for m in messages[1:])]  # fmt: skip
    passages = [p for _, p in order]
    texts[0] = _written(passages, first)
    return chat(SOURCE, *_told_otherwise(r, texts))


def _told_otherwise(r: random.Random, texts: list[str]) -> list[str]:
    """Other numbers in the same order of size, and other names, the same throughout."""
    joined = "\n".join(texts)
    if r.random() < 0.5:
        swap = _other_numbers(r, joined)
        parts = re.compile(r"\[\d+\]|\([^)]*\) |\d+")  # numbers of passages and files stay
        texts = [parts.sub(lambda m: swap.get(m[0], m[0]), text) for text in texts]
    if r.random() < 0.5:
        side = Side(r, held_out=False)
        names = sorted(set(NAME.findall(joined)) - {*MONTHS, *DAYS})
        for name in r.sample(names, min(len(names), r.randint(1, 2))):
            new = side.invented() if r.random() < 0.7 else side.person()
            texts = [re.sub(rf"\b{name}\b", new, text) for text in texts]
    return texts


def _other_numbers(r: random.Random, text: str) -> dict[str, str]:
    """Each number of at least two digits to another of as many, none overtaking another."""
    values = sorted({int(n) for n in NUMBER.findall(CITED.sub("", text)) if 1 < len(n) < 7})
    found: dict[str, str] = {}
    last = 0
    for i, value in enumerate(values):
        size = len(str(value))
        after = values[i + 1] if i + 1 < len(values) else 10**size
        low = max(last + 1, int(value * 0.8), 10 ** (size - 1))
        high = min(after - 1, int(value * 1.2), 10**size - 1)
        last = r.randint(low, high) if low <= high else value
        found[str(value)] = str(last)
    return found


def quoted(r: random.Random, pool: Pool) -> Conversation:
    """A question of the training data whose reply stands in one of the passages."""
    pairs = pool.draw(r, r.choices((1, 2, 3, MOST), (10, 30, 35, 25))[0])
    groups: list[list[int]] = []
    for i in range(len(pairs)):  # one or two replies to a passage
        if groups and len(groups[-1]) < 2 and r.random() < 0.4:
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        r.shuffle(group)
    told = [(number, i) for number, group in enumerate(groups, 1) for i in group]
    passages = [
        Passage(_file(r, pairs[r.choice(group)][0]), " ".join(pairs[i][1] for i in group))
        for group in groups
    ]
    if r.random() < 0.12:
        question = pool.draw(r, 1)[0][0]
        if question not in {q for q, _ in pairs}:
            return chat(SOURCE, _written(passages, question), r.choice(SAYS_NOT))
    turns: list[str] = []
    for number, i in r.sample(told, min(len(told), r.choice((1, 2, 2, 4)))):
        question, reply = pairs[i]
        turns += [question, f"{reply} [{number}]"]
    turns[0] = _written(passages, turns[0])
    return chat(SOURCE, *turns)


def _sentences(text: str) -> list[str]:
    return [one.strip() for one in SENTENCE.findall(text)]


def located(r: random.Random, pool: Pool) -> Conversation:
    """Where a word or some words stand, and the sentence around them."""
    texts: list[str] = []
    for _ in range(r.choices((2, 3, MOST), (30, 40, 30))[0]):
        if pool.asked and (not pool.kinds or r.random() < 0.6):
            texts.append(r.choice(_first_passages(r.choice(pool.asked))).text)
        else:
            texts.append(" ".join(reply for _, reply in pool.draw(r, r.choice((1, 2)))))
    sentences = [(n, one) for n, text in enumerate(texts, 1) for one in _sentences(text)]
    seen: dict[str, set[int]] = {}
    for i, (_, sentence) in enumerate(sentences):
        for word in WORD.findall(sentence):
            seen.setdefault(word.lower(), set()).add(i)
    turns: list[str] = []
    for i in r.sample(range(len(sentences)), min(len(sentences), r.choice((2, 3, 4, 6)))):
        number, sentence = sentences[i]
        words = sentence.split()
        own = sorted(
            word for word in WORD.findall(sentence)
            if seen[word.lower()] == {i} and word.lower() not in COMMON
        )  # fmt: skip
        start = r.randrange(max(1, len(words) - 3))
        some = " ".join(words[start : start + r.choice((2, 3, 4))]).strip('.,;:!?"')
        if not own or sum(some in text for text in texts) != 1:
            continue
        form = r.choice(FINDING)
        turns += [form.format(word=r.choice(own), some=some),
                  f"[{number}]" if "passage" in form else f"{sentence} [{number}]"]  # fmt: skip
    if not turns:
        return quoted(r, pool) if pool.kinds else invented(r)
    passages = [Passage(_file(r, text), text) for text in texts]
    turns[0] = _written(passages, turns[0])
    return chat(SOURCE, *turns)


def _file(r: random.Random, question: str) -> str:
    words = [w for w in re.findall(r"[a-z]+", question.lower()) if w not in COMMON] or ["notes"]
    return "-".join(words[-r.choice((1, 2)) :]) + r.choice((".txt", ".txt", ".md", ".pdf, p. 2"))


def conversation(r: random.Random, pool: Pool) -> Conversation:
    if pool.asked and r.random() < 0.35:
        return recombined(r, pool)
    if (pool.asked or pool.kinds) and r.random() < 0.3:
        return located(r, pool)
    if pool.kinds and r.random() < 0.35:
        return quoted(r, pool)
    return invented(r)
