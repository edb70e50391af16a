"""How fast a large memory takes in and recalls, without the time that an embedder takes.

    python scripts/memory_at_scale.py [--memories 1000000] [--questions 100] [--file kept.db]

Fills a file with made-up passages (60 words, as frequent as words are in a language) and vectors
of 256 numbers in clusters, then asks questions of 8 words. Prints JSON: passages a second; the
recall with all its steps by int8 vectors (exact) and by bits with rescoring, in ms; beside
both the time of a plain sequential read of the bytes that the scan reads; the most memory used.
With --file the file is kept, and a second run only asks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from selm_edge.memory import vectors
from selm_edge.memory.memories import Memories, Passage
from selm_edge.memory.recall import recall
from selm_edge.store.database import Database

DIM = 256
WORDS = 50_000
BATCH = 512


class Made:
    """Texts and vectors without end, and the time that making them took."""

    id, dim = "made", DIM

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        letters = "bcdfghklmnprstvw", "aeiou"
        self.words = [
            "".join(self.chance.choice(letters[i % 2]) for i in range(self.chance.randint(4, 9)))
            for _ in range(WORDS)
        ]
        self.weights = list(itertools.accumulate(1 / (place + 3) for place in range(WORDS)))
        self.pool = [self._vector() for _ in range(2000)]
        self.seconds = 0.0

    def _vector(self) -> bytes:
        numbers = [self.chance.gauss(0, 1) for _ in range(DIM)]
        length = math.sqrt(sum(x * x for x in numbers))
        return array("f", [x / length for x in numbers]).tobytes()

    def text(self, words: int) -> str:
        return " ".join(self.chance.choices(self.words, cum_weights=self.weights, k=words))

    def embed(self, texts: Sequence[str]) -> list[bytes | None]:
        began = time.perf_counter()
        made: list[bytes | None] = []
        for _ in texts:
            # Half of one vector, half of another, turned: near both, and hardly ever twice.
            one, other = self.chance.choice(self.pool), self.chance.choice(self.pool)
            turn = 4 * self.chance.randrange(DIM // 8)
            mixed = one[: 2 * DIM] + other[2 * DIM :]
            made.append(mixed[turn:] + mixed[:turn])
        self.seconds += time.perf_counter() - began
        return made

    def close(self) -> None:
        pass


def fill(memories: Memories, made: Made, count: int) -> float:
    """Passages a second, what making them takes left out."""
    have = memories.index.count()
    todo = count - have
    spent = 0.0
    while have < count:
        passages = [Passage(made.text(60), made.text(3), line=n) for n in range(BATCH)]
        making = made.seconds
        began = time.perf_counter()
        have += len(memories.add_many(passages, source=f"{have // 4096}.txt"))
        spent += time.perf_counter() - began - (made.seconds - making)
    return round(todo / spent, 1) if todo > 0 else 0.0


def milliseconds(run: Callable[[str], object], questions: Sequence[str]) -> dict[str, float]:
    run(questions[0])
    taken = []
    for question in questions:
        began = time.perf_counter()
        run(question)
        taken.append(1000 * (time.perf_counter() - began))
    taken.sort()
    return {
        "p50": round(taken[len(taken) // 2], 1),
        "p95": round(taken[int(len(taken) * 0.95)], 1),
        "best": round(taken[0], 1),
    }


def sequential_read(folder: Path, size: int) -> float:
    """Milliseconds to read a file of ``size`` bytes that is in the system's cache, best of 5."""
    file = folder / "bytes"
    with file.open("wb") as handle:
        for _ in range(size // (1 << 20) + 1):
            handle.write(random.randbytes(1 << 20))
    buffer = bytearray(1 << 20)
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
        taken.append(1000 * (time.perf_counter() - began))
    file.unlink()
    return round(min(taken), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "memory.db"
        made = Made(1)
        memories = Memories(Database(path), made)
        told: dict[str, object] = {"ingest_per_s": fill(memories, made, options.memories)}
        told["memories"] = memories.index.count()
        told["file_mb"] = round(path.stat().st_size / 1e6)
        questions = [made.text(8) for _ in range(options.questions)]
        ways = (("int8_exact", 1 << 60, DIM), ("bits_and_rescoring", 0, DIM // 8))
        for name, exact_up_to, width in ways:
            vectors.EXACT_UP_TO = exact_up_to
            found: dict[str, object] = {
                **milliseconds(lambda question: recall(memories, question), questions)
            }
            read = sequential_read(Path(folder), memories.index.count() * width)
            found["sequential_read_ms"] = read
            found["ratio_p50"] = round(float(str(found["p50"])) / max(read, 0.1), 1)
            told[name] = found
        told["words_only"] = milliseconds(
            lambda question: recall(Memories(memories.database), question), questions
        )
        told["most_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
