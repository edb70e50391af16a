"""Feedback as training data: JSON Lines in the three shapes that trainers read.

- ``sft``: ``messages`` ending with a text the user stands behind (a correction, or a reply with a
  thumb up).
- ``kto``: ``messages`` and ``kto_tag``, true or false. A correction gives two lines: its own text
  is wanted, the reply it replaced is not.
- ``dpo``: ``messages`` (the prompt), ``chosen`` (the correction), ``rejected`` (the reply).

These are the shapes of LLaMA-Factory, whose ``messages`` are OpenAI's. ``id`` is the row's own for
ever, so the same export twice merges to the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from selm_edge import paths
from selm_edge.feedback.log import Feedback

Shape = Literal["sft", "kto", "dpo"]
SHAPES: tuple[Shape, ...] = ("sft", "kto", "dpo")


def lines(rows: Iterable[Feedback], shape: Shape) -> Iterator[dict[str, Any]]:
    """The training examples of some rows; rows that say nothing in this shape give none."""
    corrected = set[int]()
    kept = list(rows)
    for row in kept:
        if row.kind == "correction" and row.record.message is not None:
            corrected.add(row.record.message)
    for row in kept:
        # A reply that was corrected is spoken for by its correction, whatever its thumb.
        if row.kind != "correction" and row.record.message in corrected:
            continue
        yield from _SHAPES[shape](row)


def write(rows: Iterable[Feedback], shape: Shape, path: Path) -> int:
    """Write the examples to ``path``; returns how many. All or nothing: a crash leaves the old."""
    found = list(lines(rows, shape))
    paths.write_atomically(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in found))
    return len(found)


def _sft(row: Feedback) -> Iterator[dict[str, Any]]:
    wanted = {"correction": row.correction, "up": row.record.reply}.get(row.kind)
    if wanted is not None:
        yield {"id": row.uid, "messages": [*row.record.messages, _reply(wanted)], **_origin(row)}


def _kto(row: Feedback) -> Iterator[dict[str, Any]]:
    def example(suffix: str, text: str, tag: bool) -> dict[str, Any]:
        turns = [*row.record.messages, _reply(text)]
        return {"id": row.uid + suffix, "messages": turns, "kto_tag": tag, **_origin(row)}

    if row.kind in ("up", "down"):
        yield example("", row.record.reply, row.kind == "up")
    elif row.correction is not None:
        yield example("-rejected", row.record.reply, False)
        yield example("-chosen", row.correction, True)


def _dpo(row: Feedback) -> Iterator[dict[str, Any]]:
    if row.correction is not None:
        yield {
            "id": row.uid,
            "messages": list(row.record.messages),
            "chosen": _reply(row.correction),
            "rejected": _reply(row.record.reply),
            **_origin(row),
        }


_SHAPES = {"sft": _sft, "kto": _kto, "dpo": _dpo}


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _origin(row: Feedback) -> dict[str, Any]:
    return {"model": row.record.model, "created": row.created}
