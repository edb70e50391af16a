"""The prepared data of a recipe: written once as plain JSON lines, read back as documents."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from selm_export.data import (
    generate_copy,
    generate_identity,
    generate_notes,
    generate_numbers,
    generate_reading,
)
from selm_export.data.chat import Conversation, Message
from selm_export.data.corpus import read_source
from selm_export.data.files import read_user_files
from selm_export.data.packing import (
    SYSTEM_PROMPTS,
    Batch,
    Document,
    Packing,
    batches,
    generated,
    mixed,
    shuffled,
    varied,
)
from selm_export.data.split import hold_out
from selm_export.data.vocabulary import encode, end_of_text, train_vocabulary
from selm_export.errors import RecipeError
from selm_export.training.settings import Phase

GENERATE: dict[str, Callable[[random.Random], Conversation]] = {
    "arithmetic": generate_numbers.conversation,
    "notes": generate_notes.conversation,
    "copy": generate_copy.conversation,
    "identity": generate_identity.conversation,
}


TRAINING, HELD_OUT, MIXED = "train.jsonl", "held-out.jsonl", "mixed.jsonl"
TESTS = ("medquad-test", "gsm8k-test")


@dataclass(frozen=True)
class Wanted:
    """What is to be prepared. ``sources`` are named files of ``folder``; ``files`` are the user's
    own: .jsonl (messages, or a question and an answer, or text), .txt, .md, folders of documents or
    of saved `datasets`. ``held_out`` of the talk (a share) and ``tested`` rows of each test file
    are kept out of training. A tokenizer of ``vocabulary`` tokens sees ``generated`` conversations
    of each generator, and some sources ``repeat``edly."""

    sources: tuple[str, ...] = ()
    folder: Path = Path("../shared/data")
    files: tuple[Path, ...] = ()
    held_out: float = 0.04
    tested: int = 200
    vocabulary: int = 8192
    repeat: dict[str, int] = field(default_factory=dict)
    generated: int = 4000


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


def prepare(wanted: Wanted, folder: Path) -> dict[str, int]:
    """Reads every source and writes what is trained on, the talk that is held out from it, and the
    mixed set, which adds questions of the other domains' own test files. Counts, by source."""
    train: list[Conversation] = []
    test: list[Conversation] = []
    counts = {}
    for source in wanted.sources:
        found = read_source(wanted.folder, source)
        counts[source] = len(found)
        if source == "talk":
            found, test = hold_out(found, wanted.held_out)
            counts["held out"] = len(test)
        train.extend(found)
    for path in wanted.files:
        found = read_user_files(path)
        counts[path.name] = len(found)
        train.extend(found)
    write_conversations(folder / TRAINING, train)
    write_conversations(folder / HELD_OUT, test)
    mixed = [*test, *(c for name in TESTS for c in _tested(wanted, name))]
    write_conversations(folder / MIXED, mixed)
    counts["mixed set"] = len(mixed)
    return counts


def _tested(wanted: Wanted, name: str) -> list[Conversation]:
    """The first rows of a test file, if its training file is a source."""
    if name.removesuffix("-test") not in wanted.sources:
        return []
    return read_source(wanted.folder, name)[: wanted.tested]


def family(conversation: Conversation) -> str:
    return conversation.source.split("/")[0]


def make_vocabulary(wanted: Wanted, folder: Path, seed: int) -> Tokenizer:
    def texts() -> Iterator[str]:
        for c in read_conversations(folder / TRAINING):
            for _ in range(wanted.repeat.get(family(c), 1)):
                yield from (m.content for m in c.messages)
        for name, make in GENERATE.items():
            for i in range(wanted.generated):
                made = make(random.Random(f"{seed}:vocabulary:{name}:{i}"))
                yield from (m.content for m in made.messages)

    return train_vocabulary(texts(), wanted.vocabulary)


def document(tokenizer: Tokenizer, conversation: Conversation) -> Document:
    return Document(*encode(tokenizer, conversation))


def sample(path: Path, tokenizer: Tokenizer, count: int, seed: int) -> list[Document]:
    """Up to ``count`` conversations of a prepared file, drawn by the seed: what calibration and
    measurements read."""
    found = read_conversations(path)
    random.Random(f"{seed}:sample").shuffle(found)
    return [document(tokenizer, c) for c in found[:count]]


class Sources:
    """All documents of a prepared folder, and the stream of micro-batches of each phase."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, packing: Packing, seed: int) -> None:
        self.folder, self.tokenizer, self.seed = folder, tokenizer, seed
        self.documents: dict[str, list[Document]] = {}
        conversations = read_conversations(folder / TRAINING)
        self.pool = generate_reading.Pool(conversations)
        for c in conversations:
            self.documents.setdefault(c.source, []).append(document(tokenizer, c))
        systems = [Conversation((Message("system", p),), "system") for p in SYSTEM_PROMPTS]
        self.systems = [document(tokenizer, c) for c in systems]
        self.packing = replace(packing, separator=end_of_text(tokenizer))

    def stream(self, phase: Phase, name: str) -> Iterator[Batch]:
        """Without end, the same for the same seed and name."""
        seed = f"{self.seed}:{name}"
        streams = {
            source: varied(
                self._source(source, f"{seed}:{source}"), self.systems, self.packing.tokens,
                f"{seed}:vary:{source}",
            )
            for source in phase.shares
        }  # fmt: skip
        packing = replace(self.packing, user_weight=phase.user_weight)
        return batches(mixed(streams, phase.shares, f"{seed}:mix"), packing, f"{seed}:pack")

    def _makers(self) -> dict[str, Callable[[random.Random], Conversation]]:
        """What is made up as it is read; passages are made from the training data."""
        reading = partial(generate_reading.conversation, pool=self.pool)
        return {**GENERATE, generate_reading.SOURCE: reading}

    def _source(self, name: str, seed: str) -> Iterator[Document]:
        # "talk" is all of talk/..., "talk/math" also talk/math2.
        found = [d for source, ds in self.documents.items() if source.startswith(name) for d in ds]
        if found:
            return shuffled(found, seed)
        make = self._makers().get(name)
        if make is None:
            there = ", ".join([*sorted(self.documents), *self._makers()])
            raise RecipeError(
                self.folder / TRAINING, f"holds nothing of the source {name!r}", f"It has {there}"
            )

        def draw(r: random.Random) -> Document:
            return replace(document(self.tokenizer, make(r)), drawn=True)

        return generated(draw, seed)
