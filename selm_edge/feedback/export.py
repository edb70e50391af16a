"""Feedback as training data: JSON Lines in the shapes that trainers read.

- ``sft``: ``messages`` ending with a text the user stands behind (a correction, or a reply with a
  thumb up).
- ``kto``: ``messages`` and ``kto_tag``, true or false. A correction gives two lines: its own text
  is wanted, the reply it replaced is not.
- ``dpo``: ``messages`` (the prompt), ``chosen`` (the correction), ``rejected`` (the reply).
- ``messages``: the talk with the reply as it was, what was thought of it (``rating``) and how it
  was made; for programs of one's own, and of replies that nobody has judged (``rating`` null).

These are the shapes of LLaMA-Factory, whose ``messages`` are OpenAI's. ``id`` is the row's own for
ever, so the same export twice merges to the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from selm_edge import paths
from selm_edge.feedback.log import Feedback
from selm_edge.feedback.redact import Redactor

Shape = Literal["sft", "kto", "dpo", "messages"]
SHAPES: tuple[Shape, ...] = ("sft", "kto", "dpo", "messages")


def lines(rows: Iterable[Feedback], shape: Shape) -> Iterator[dict[str, Any]]:
    """The training examples of some rows; rows that say nothing in this shape, or that the user
    does not want to leave this device, give none."""
    corrected = set[int]()
    kept = [row for row in rows if row.consent]
    for row in kept:
        if row.kind == "correction" and row.record.message is not None:
            corrected.add(row.record.message)
    for row in kept:
        # A reply that was corrected is spoken for by its correction, whatever its thumb.
        said = shape != "messages" and row.kind != "correction"
        if said and row.record.message in corrected:
            continue
        yield from _SHAPES[shape](row)


def redacted(rows: Iterable[Feedback], redactor: Redactor) -> list[Feedback]:
    """The rows without personal details, by rule; the redactor then knows what it took out."""
    kept = list(rows)
    for row in kept:
        redactor.learn(_texts(row))
    return [_redacted(row, redactor) for row in kept]


def _texts(row: Feedback) -> Iterator[str]:
    for turn in row.record.messages:
        yield str(turn.get("content", ""))
    yield row.record.reply
    yield row.correction or ""


def _redacted(row: Feedback, redactor: Redactor) -> Feedback:
    record = replace(
        row.record,
        messages=redactor.turns(row.record.messages),
        reply=redactor.text(row.record.reply),
        prompt=None,  # the same text again, in another form
    )
    correction = None if row.correction is None else redactor.text(row.correction)
    return replace(row, record=record, correction=correction)


def write(found: Iterable[dict[str, Any]], path: Path) -> int:
    """Write examples to ``path``; returns how many. All or nothing: a crash leaves the old."""
    kept = list(found)
    paths.write_atomically(path, (json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    return len(kept)


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


def _messages(row: Feedback) -> Iterator[dict[str, Any]]:
    made = row.record
    yield {
        "id": row.uid,
        "messages": [*made.messages, _reply(made.reply)],
        "rating": row.kind,
        "correction": row.correction,
        **_origin(row),
        "model_sha256": made.model_sha256,
        "adapter": made.adapter,
        "sampling": made.sampling,
        "seed": made.seed,
        "experts": made.experts,
        "entropy": made.entropy,
        "margin": made.margin,
        "recalled": made.recalled,
    }


_SHAPES = {"sft": _sft, "kto": _kto, "dpo": _dpo, "messages": _messages}


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _origin(row: Feedback) -> dict[str, Any]:
    return {"model": row.record.model, "created": row.created}
