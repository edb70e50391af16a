"""Text that the model knows: to replay beside feedback, and, apart from that, to judge by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from tokenizers import Tokenizer

from selm_export.data import generate_notes
from selm_export.data.chat import Conversation
from selm_export.data.dataset import GENERATE, HELD_OUT, TRAINING, read_conversations
from selm_export.finetune.examples import Example, document_of
from selm_export.report.evaluate import read_data

JUDGED = 150
"""Conversations at most: enough to see a change of a tenth of a point in their tokens."""


def talk(data: Path | None) -> tuple[list[Conversation], list[Conversation]]:
    """To replay, and to judge by: of a prepared folder, else what the package has."""
    if data is not None:
        return read_conversations(data / TRAINING), read_conversations(data / HELD_OUT)[:JUDGED]
    with as_file(files("selm_export") / "finetune" / "known") as folder:
        return read_data(folder / "replay.jsonl.xz"), read_data(folder / "judged.jsonl.xz")


def replayed(
    tokenizer: Tokenizer, count: int, seed: int, own: Sequence[Conversation], most: int
) -> list[Example]:
    """Half of them from ``own`` conversations, the rest made up as in the model's training; of
    that, most are questions about notes, every other of which the notes do not answer, as who
    learns facts soon believes to know all."""
    draw = random.Random(f"replay:{seed}")
    found = []
    for number in range(count):
        if own and number % 2:
            said = draw.choice(own)
        else:
            said = _made_up(random.Random(f"{seed}:replay:{number}"))
        *before, last = said.messages
        if last.role != "assistant":
            continue
        turns = [{"role": m.role, "content": m.content} for m in before]
        document = document_of(tokenizer, turns, last.content, most)
        found.append(Example(document, "replay", f"replay-{number}", f"replay-{number}"))
    return found


def _made_up(draw: random.Random) -> Conversation:
    kind = draw.random()
    if kind < 0.65:
        return generate_notes.case(draw, answerable=draw.random() < 0.5).conversation
    return GENERATE["arithmetic" if kind < 0.75 else draw.choice(sorted(GENERATE))](draw)
