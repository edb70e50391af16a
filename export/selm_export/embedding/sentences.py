"""Sentences of every day, for the teacher to read: what people say to an assistant and hear."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

from selm_export.data.corpus import read_lines, read_source
from selm_export.embedding import pairs
from selm_export.errors import RecipeError

INTENTS = "tasks/clinc150-train.jsonl.xz"
SHORTEST, LONGEST = 10, 110  # characters
END = re.compile(r"(?<=[.!?])\s+")


def files(data: Path) -> list[Path]:
    """What is read beside the sources of pairs."""
    path = data / INTENTS
    if not path.is_file():
        raise RecipeError(path, "no such file", "Name the data's folder: --set folder='DIRECTORY'")
    return [path]


def gather(data: Path, count: int, seed: int) -> list[str]:
    """About ``count`` sentences, each once: of each kind a fixed share, as far as there are."""
    r = random.Random(f"{seed}:sentences")
    told = pairs.talk(data)
    made = pairs.notes(r, count // 8)
    kinds: list[tuple[float, Iterable[str]]] = [
        (0.12, (p.question for p in told["talk-notes"])),
        (0.11, (p.text for p in told["talk-notes"])),
        (0.16, (p.question for p in told["talk"])),
        (0.21, (s for p in told["talk"] for s in END.split(p.text))),
        (0.2, (str(row["text"]) for path in files(data) for row in read_lines(path))),
        (0.05, (p.question for p in made)),
        (0.04, (p.text for p in made)),
        (0.07, (p.text for p in pairs.asked(data, "openbookqa"))),
        (0.13, (s for c in read_source(data, "topical") for m in c.messages
               for s in END.split(m.content))),
    ]  # fmt: skip
    found: dict[str, None] = {}
    for share, texts in kinds:
        plain = dict.fromkeys(" ".join(text.split()) for text in texts)
        fit = [text for text in plain if SHORTEST <= len(text) <= LONGEST]
        found |= dict.fromkeys(r.sample(fit, min(len(fit), round(share * count))))
    return list(found)
