"""Feedback as training data: JSON Lines in the shapes that trainers read.

- ``sft``: ``messages`` ending with a text the user stands behind (a correction, or a reply with a
  thumb up).
- ``kto``: ``messages`` and ``kto_tag``, true or false. A correction gives two lines: its own text
  is wanted, the reply it replaced is not; so does a choice between two replies.
- ``dpo``: ``messages`` (the prompt), ``chosen`` (the correction, or the reply that was taken of
  two), ``rejected`` (the other reply).
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
from selm_edge.feedback.log import Feedback, Kind, ReplyRecord
from selm_edge.feedback.redact import Redactor

Shape = Literal["sft", "kto", "dpo", "messages"]
SHAPES: tuple[Shape, ...] = ("sft", "kto", "dpo", "messages")


def lines(rows: Iterable[Feedback], shape: Shape) -> Iterator[dict[str, Any]]:
    """The training examples of some rows; rows that say nothing in this shape, or that the user
    does not want to leave this device, give none."""
    kept = [row for row in rows if row.consent]
    corrected = _about(kept, "correction")
    judged = corrected | _about(kept, "up", "down")
    for row in kept:
        # A reply that was corrected is spoken for by its correction, whatever its thumb.
        thumb = row.kind in ("up", "down")
        if shape != "messages" and thumb and row.record.message in corrected:
            continue
        for line in _SHAPES[shape](row):
            # The better of two may be bad: what was said of a reply by itself comes first.
            if shape == "kto" and row.rejected is not None:
                about = row.record if line["kto_tag"] else row.rejected
                if about.message in judged:
                    continue
            yield line


def _about(rows: Iterable[Feedback], *kinds: Kind) -> set[int]:
    """The replies that these kinds of rows are about."""
    return {
        row.record.message for row in rows if row.kind in kinds and row.record.message is not None
    }


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
    yield row.rejected.reply if row.rejected else ""


def _redacted(row: Feedback, redactor: Redactor) -> Feedback:
    def clean(record: ReplyRecord) -> ReplyRecord:
        return replace(
            record,
            messages=redactor.turns(record.messages),
            reply=redactor.text(record.reply),
            prompt=None,  # the same text again, in another form
        )

    record = clean(row.record)
    correction = None if row.correction is None else redactor.text(row.correction)
    rejected = None if row.rejected is None else clean(row.rejected)
    return replace(row, record=record, correction=correction, rejected=rejected)


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
    elif (pair := _pair(row)) is not None:
        chosen, rejected = pair
        yield example("-rejected", rejected, False)
        yield example("-chosen", chosen, True)


def _dpo(row: Feedback) -> Iterator[dict[str, Any]]:
    if (pair := _pair(row)) is not None:
        yield {
            "id": row.uid,
            "messages": list(row.record.messages),
            "chosen": _reply(pair[0]),
            "rejected": _reply(pair[1]),
            **_origin(row),
        }


def _pair(row: Feedback) -> tuple[str, str] | None:
    """The better text and the worse one, of a row that has two."""
    if row.correction is not None:
        return row.correction, row.record.reply
    return (row.record.reply, row.rejected.reply) if row.rejected is not None else None


def _messages(row: Feedback) -> Iterator[dict[str, Any]]:
    made, other = row.record, row.rejected
    yield {
        "id": row.uid,
        "messages": [*made.messages, _reply(made.reply)],
        "rating": row.kind,
        "correction": row.correction,
        **_origin(row),
        **_making(made),
        **({"rejected": _reply(other.reply) | _making(other)} if other is not None else {}),
    }


def _making(made: ReplyRecord) -> dict[str, Any]:
    names = ("model_sha256", "adapter", "sampling", "seed", "experts", "entropy", "margin")
    return {name: getattr(made, name) for name in (*names, "recalled")}


_SHAPES = {"sft": _sft, "kto": _kto, "dpo": _dpo, "messages": _messages}


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _origin(row: Feedback) -> dict[str, Any]:
    return {"model": row.record.model, "created": row.created}
