"""The prepared data of a recipe: written once as plain JSON lines, read back as documents."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from selm_export.data import generate_copy, generate_identity, generate_notes, generate_numbers
from selm_export.data.chat import Conversation, Message, render
from selm_export.data.corpus import read_source
from selm_export.data.packing import (
    SYSTEM_PROMPTS,
    Batch,
    Document,
    batches,
    generated,
    mixed,
    shuffled,
    varied,
)
from selm_export.data.split import hold_out
from selm_export.data.vocabulary import encode, end_of_text, train_vocabulary
from selm_export.recipe import Recipe
from selm_export.train import Phase

GENERATE: dict[str, Callable[[random.Random], Conversation]] = {
    "arithmetic": generate_numbers.conversation,
    "notes": generate_notes.conversation,
    "copy": generate_copy.conversation,
    "identity": generate_identity.conversation,
}


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    temporary = path.with_suffix(".writing")
    with temporary.open("w", encoding="utf-8") as file:
        for c in conversations:
            messages = [{"role": m.role, "content": m.content} for m in c.messages]
            line = {"source": c.source, "messages": messages}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_conversations(path: Path) -> list[Conversation]:
    found = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
            found.append(Conversation(messages, row["source"]))
    return found


def prepare(recipe: Recipe, training: Path, held_out: Path) -> dict[str, int]:
    """Reads every source and writes the two sides of the split; only talk is held out from."""
    train: list[Conversation] = []
    test: list[Conversation] = []
    counts = {}
    for source in recipe.sources():
        found = read_source(recipe.data, source)
        counts[source] = len(found)
        if source == "talk":
            found, test = hold_out(found, recipe.held_out_share)
            counts["held out"] = len(test)
        train.extend(found)
    write_conversations(training, train)
    write_conversations(held_out, test)
    return counts


def family(conversation: Conversation) -> str:
    return conversation.source.split("/")[0]


def make_vocabulary(recipe: Recipe, training: Path) -> Tokenizer:
    wanted = recipe.vocabulary

    def texts() -> Iterator[str]:
        for c in read_conversations(training):
            for _ in range(wanted.repeat.get(family(c), 1)):
                yield from (m.content for m in c.messages)
        for name, make in GENERATE.items():
            for i in range(wanted.generated):
                made = make(random.Random(f"{recipe.seed}:vocabulary:{name}:{i}"))
                yield from (m.content for m in made.messages)

    return train_vocabulary(texts(), wanted.size)


def document(tokenizer: Tokenizer, conversation: Conversation) -> Document:
    return Document(*encode(tokenizer, conversation))


def sample(path: Path, tokenizer: Tokenizer, count: int, seed: int) -> list[Document]:
    """Up to ``count`` conversations of a prepared file, drawn by the seed: what calibration and
    measurements read."""
    found = read_conversations(path)
    random.Random(f"{seed}:sample").shuffle(found)
    return [document(tokenizer, c) for c in found[:count]]


class Sources:
    """All documents of a recipe, and the stream of micro-batches of each phase."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, training: Path) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.documents: dict[str, list[Document]] = {}
        for c in read_conversations(training):
            self.documents.setdefault(family(c), []).append(document(tokenizer, c))
        systems = [Conversation((Message("system", p),), "system") for p in SYSTEM_PROMPTS]
        self.systems = [document(tokenizer, c) for c in systems]
        self.packing = replace(recipe.packing, separator=end_of_text(tokenizer))

    def stream(self, phase: Phase, number: int) -> Iterator[Batch]:
        seed = f"{self.recipe.seed}:{number}"
        streams = {
            name: varied(
                self._source(name, f"{seed}:{name}"), self.systems, self.packing.tokens,
                f"{seed}:vary:{name}",
            )
            for name in phase.shares
        }  # fmt: skip
        packing = replace(self.packing, user_weight=phase.user_weight)
        return batches(mixed(streams, phase.shares, f"{seed}:mix"), packing, f"{seed}:pack")

    def _source(self, name: str, seed: str) -> Iterator[Document]:
        if name in self.documents:
            return shuffled(self.documents[name], seed)
        make = GENERATE[name]

        def draw(r: random.Random) -> Document:
            return replace(document(self.tokenizer, make(r)), drawn=True)

        return generated(draw, seed)


__all__ = ["Sources", "document", "family", "make_vocabulary", "prepare", "render"]
