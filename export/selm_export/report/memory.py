"""How well the memory finds what answers a question: `selm_edge.memory` itself, measured.

Each task is put into a database of its own, and each question asked in four ways: by words alone
(BM25), by vectors alone, by both fused, and by `recall` as the chat calls it, which also weighs
down what says the same twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selm_export.report.memory_data import Asked, Split, Task, medquad, own_tasks

if TYPE_CHECKING:
    from selm_edge.memory.memories import Memories

Say = Callable[[str], None]
DEPTH = 60  # a place beyond it counts as not found; `recall` itself gives fewer
WAYS = ("bm25", "vectors", "fused", "recall")
NOTHING = float("-inf")  # the best score where nothing was found
BATCH = 500  # memories written at once


@dataclass(frozen=True)
class Found:
    """Places (from 1) of the right memory, one a question; 0: not among the first `DEPTH`."""

    places: Sequence[int]

    def within(self, most: int) -> float:
        return sum(0 < place <= most for place in self.places) / len(self.places)

    def as_json(self) -> dict[str, float]:
        """Recall at 1 and 5, with one standard error (of questions), and the mean of 1 / place."""
        five = self.within(5)
        return {
            "recall_at_1": round(self.within(1), 4),
            "recall_at_5": round(five, 4),
            "error_at_5": round(math.sqrt(five * (1 - five) / len(self.places)), 4),
            "mrr": round(sum(1 / p for p in self.places if p) / len(self.places), 4),
        }


@dataclass(frozen=True)
class Measured:
    task: str
    memories: int
    ways: Mapping[str, Found]
    best: Mapping[str, Sequence[float]] = field(default_factory=dict)  # highest score, by way
    seconds: float = 0.0  # for one recall, on average

    @property
    def questions(self) -> int:
        return len(next(iter(self.ways.values())).places)

    def as_json(self) -> dict[str, Any]:
        return {
            "questions": self.questions, "memories": self.memories,
            "milliseconds": round(1000 * self.seconds, 2),
            **{way: found.as_json() for way, found in self.ways.items()},
        }  # fmt: skip


def measure_all(data: Path, split: Split, embedder: str | Path | None, say: Say) -> dict[str, Any]:
    """Every task of the split, and how far unanswered questions are told from the others."""
    found = {}
    tasks = [*own_tasks(split), medquad(data, split)]
    for task in tasks:
        say(f"{task.name}: {len(task.asked)} questions, {len(task.texts)} memories")
        found[task.name] = measure(task, embedder)
    unanswered = found.pop("unanswered")
    told: dict[str, Any] = {name: each.as_json() for name, each in found.items()}
    facts = next(task for task in tasks if task.name == "facts")
    told["facts"]["by_words_in_common"] = _by_words(facts, found["facts"])
    told["unanswered"] = {
        "questions": unanswered.questions,
        "nothing_recalled": round(_share(s == NOTHING for s in unanswered.best["recall"]), 4),
        "nothing_recalled_of_answered": round(
            _share(s == NOTHING for s in found["facts"].best["recall"]), 4
        ),
        "told_apart": round(apart(found["facts"].best["fused"], unanswered.best["fused"]), 4),
    }
    return {"split": split, **told}


def lines(measured: Mapping[str, Any]) -> list[str]:
    """As text: a table for each task."""
    told = [f"half of the questions: {measured['split']}"]
    for name, figures in measured.items():
        if not isinstance(figures, Mapping) or WAYS[0] not in figures:
            continue
        told.append(
            f"{name}: {figures['questions']} questions, {figures['memories']} memories,"
            f" {figures['milliseconds']:.1f} ms for one recall"
        )
        for way in WAYS:
            each = figures[way]
            told.append(
                f"  {way:10} recall@1 {each['recall_at_1']:.3f}  recall@5"
                f" {each['recall_at_5']:.3f} ± {each['error_at_5']:.3f}  MRR {each['mrr']:.3f}"
            )
    for name, figures in measured["facts"]["by_words_in_common"].items():
        five = ", ".join(f"{way} {figures[way]:.3f}" for way in WAYS if way in figures)
        told.append(f"facts, {name} of their words in the question: {five} (recall@5)")
    rest = measured["unanswered"]
    told.append(
        f"unanswered: {rest['questions']} questions; nothing is recalled for"
        f" {rest['nothing_recalled']:.0%} of them, and for"
        f" {rest['nothing_recalled_of_answered']:.0%} of those about facts; the best score is"
        f" higher where there is an answer in {rest['told_apart']:.0%} of pairs"
    )
    return told


def _by_words(task: Task, measured: Measured) -> dict[str, Any]:
    """Recall at 5 of questions that hold a word of the text that answers, and of those that hold
    none: of the latter words can find nothing."""
    from selm_edge.memory.lexical import words_of

    common = [bool({*words_of(a.question)} & {*words_of(a.text)}) for a in task.asked]
    told: dict[str, Any] = {}
    for name, wanted in (("some", True), ("none", False)):
        places = {
            way: [place for place, has in zip(found.places, common, strict=True) if has is wanted]
            for way, found in measured.ways.items()
        }
        told[name] = {"questions": common.count(wanted)} | {
            way: round(Found(each).within(5), 4) for way, each in places.items() if each
        }
    return told


def _share(flags: Iterable[bool]) -> float:
    each = list(flags)
    return sum(each) / len(each)


def apart(high: Sequence[float], low: Sequence[float]) -> float:
    """How often a score of ``high`` exceeds one of ``low`` (half for equal ones): 0.5 is chance."""
    wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
    return wins / (len(high) * len(low))


def measure(task: Task, embedder: str | Path | None) -> Measured:
    """``embedder`` as `selm_edge.memory.embedder.open_embedder` takes it."""
    from selm_edge.memory.embedder import open_embedder
    from selm_edge.memory.memories import Memories
    from selm_edge.store.database import Database

    database = Database(None)
    opened = open_embedder(embedder)
    try:
        memories = Memories(database, opened)
        ids = _fill(memories, task)
        return _ask(memories, task, ids)
    finally:
        database.close()
        if opened is not None:
            opened.close()


def _fill(memories: Memories, task: Task) -> dict[str, int]:
    """Everything remembered; the id of each text, as it was cleaned and stored."""
    from selm_edge.memory.memories import Passage

    ids: dict[str, int] = {}
    for start in range(0, len(task.texts), BATCH):
        part = task.texts[start : start + BATCH]
        made = memories.add_many([Passage(text) for text in part], kind=task.kind, source="measure")
        if len(made) != len(part):  # said twice: a question could have two right answers
            raise ValueError(f"{task.name}: {len(part) - len(made)} texts are there already")
        ids.update(zip(part, made, strict=True))
    return ids


def _ask(memories: Memories, task: Task, ids: Mapping[str, int]) -> Measured:
    from selm_edge.memory.recall import recall

    places: dict[str, list[int]] = {way: [] for way in WAYS}
    best: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds = 0.0
    for asked in task.asked:
        began = time.perf_counter()
        recalled = recall(memories, asked.question)
        seconds += time.perf_counter() - began
        rankings = _rankings(memories, asked)
        rankings["recall"] = [(one.memory.id, one.score) for one in recalled]
        right = ids.get(asked.text)
        for way, ranking in rankings.items():
            keys = [key for key, _ in ranking]
            places[way].append(keys.index(right) + 1 if right in keys else 0)
            best[way].append(ranking[0][1] if ranking else NOTHING)
    found = {way: Found(each) for way, each in places.items()}
    return Measured(task.name, len(ids), found, best, seconds / len(task.asked))


def _rankings(memories: Memories, asked: Asked) -> dict[str, list[tuple[int, float]]]:
    from selm_edge.memory.memories import Filters
    from selm_edge.memory.recall import rankings

    words, vectors, fused = rankings(memories, asked.question, Filters())
    return {"bm25": words, "vectors": vectors, "fused": fused[:DEPTH]}
