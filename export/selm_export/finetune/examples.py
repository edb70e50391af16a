"""Rows of feedback as what is learnt from: replies to imitate, to prefer and to avoid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenizers import Tokenizer

from selm_edge.templates import defuse
from selm_export.data.chat import SPECIAL_TOKENS, Conversation, Message
from selm_export.data.packing import Document
from selm_export.data.vocabulary import encode

Kind = Literal["sft", "kto", "dpo", "mismatched", "replay"]
REGENERATED = 0.3
"""How much asking for another reply weighs beside a thumb down."""


@dataclass(frozen=True)
class Example:
    """One reply in its conversation. ``document`` marks the reply's tokens. ``wanted``: whether it
    was liked; ``group`` is the same for the two replies of a pair; ``weight`` of its loss. ``talk``
    is the same for all rows of one conversation, so that none of it is on both sides of a split.
    """

    document: Document
    kind: Kind
    uid: str
    talk: str
    wanted: bool = True
    group: str = ""
    weight: float = 1.0


def document_of(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], reply: str, most: int
) -> Document:
    """The conversation with this reply, whose tokens alone are to be said; of what is longer than
    ``most`` tokens the beginning goes. What a stranger wrote cannot end a turn."""
    said = [
        Message(
            turn["role"],
            turn["content"] if turn["role"] == "assistant"
            else defuse(turn["content"], SPECIAL_TOKENS),
        )
        for turn in messages
    ]  # fmt: skip
    before, _ = encode(tokenizer, Conversation(tuple(said), "feedback"))
    last = Conversation((Message("assistant", reply),), "feedback")
    ids, spoken = encode(tokenizer, last)
    ids, spoken = [*before, *ids], [False] * len(before) + spoken
    return Document(ids[-most:], spoken[-most:])


def talk_of(row: Mapping[str, Any]) -> str:
    """What a row's conversation begins with: rows of one talk share it."""
    first = next((t["content"] for t in row["messages"] if t["role"] == "user"), "")
    return hashlib.sha256(" ".join(str(first).lower().split()).encode()).hexdigest()[:16]


def examples(
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, most: int = 512
) -> list[Example]:
    """A correction is imitated, and preferred to the reply it replaced; a reply with a thumb up is
    imitated a little and wanted; one with a thumb down is not wanted, nor, weakly, one that was
    asked for anew. Of two replies the one that was taken is preferred: as a pair alone, for the
    better of two need not be good."""
    found: list[Example] = []
    for row in rows:
        uid, kind = str(row["uid"]), row["kind"]

        def made(reply: str, row: Mapping[str, Any] = row, uid: str = uid, **facts: Any) -> Example:
            document = document_of(tokenizer, row["messages"], reply, most)
            return Example(document, uid=uid, talk=talk_of(row), **facts)

        if kind == "correction" and row.get("correction"):
            found.append(made(row["correction"], kind="sft"))
            if row["reply"].strip() and row["reply"] != row["correction"]:
                found.append(made(row["correction"], kind="dpo", wanted=True, group=uid))
                found.append(made(row["reply"], kind="dpo", wanted=False, group=uid))
        elif kind == "preference" and row.get("rejected"):
            rejected = row["rejected"]["reply"]
            if row["reply"].strip() and rejected.strip() and row["reply"] != rejected:
                found.append(made(row["reply"], kind="dpo", wanted=True, group=uid))
                found.append(made(rejected, kind="dpo", wanted=False, group=uid))
        elif kind in ("up", "down") and row["reply"].strip():
            found.append(made(row["reply"], kind="kto", wanted=kind == "up"))
        elif kind == "regeneration" and row["reply"].strip():
            found.append(made(row["reply"], kind="kto", wanted=False, weight=REGENERATED))
    return found


def mismatched(found: Sequence[Example]) -> list[Example]:
    """Replies under others' prompts, for the reference of KTO: each as long as its own."""
    thumbs = [example for example in found if example.kind == "kto"]
    made = []
    for example, other in zip(thumbs, [*thumbs[1:], *thumbs[:1]], strict=True):
        if example.talk == other.talk:
            continue
        cut = example.document.reply.index(True) if True in example.document.reply else 0
        begins = other.document.reply.index(True) if True in other.document.reply else 0
        ids = example.document.ids[:cut] + other.document.ids[begins:]
        spoken = [False] * cut + other.document.reply[begins:]
        longest = max(len(example.document), len(other.document))
        document = Document(ids[-longest:], spoken[-longest:])
        made.append(replace(example, document=document, kind="mismatched"))
    return made


def judged_by(found: Sequence[Example]) -> list[Example]:
    """Each reply once: a correction stands among those to imitate and those to prefer."""
    imitated = {e.uid for e in found if e.kind == "sft"}
    return [e for e in found if not (e.kind == "dpo" and e.wanted and e.uid in imitated)]


def split(
    found: Sequence[Example], held_out: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """To learn from, and to judge by: by conversation, decided by a hash."""

    def aside(example: Example) -> bool:
        digest = hashlib.sha256(f"{seed}:{example.talk}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2.0**64 < held_out

    return [e for e in found if not aside(e)], [e for e in found if aside(e)]
