"""Rows of feedback as what is learnt from: replies to imitate, to prefer and to avoid."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenizers import Tokenizer

from selm_edge.templates import defuse
from selm_export.data.chat import SPECIAL_TOKENS, Conversation, Message
from selm_export.data.packing import Document
from selm_export.data.vocabulary import encode
from selm_export.finetune.rewording import reworded

Kind = Literal["sft", "kto", "dpo", "mismatched", "replay"]
REGENERATED = 0.3
"""How much asking for another reply weighs beside a thumb down."""


@dataclass(frozen=True)
class Example:
    """One reply in its conversation. ``document`` marks the reply's tokens. ``wanted``: whether it
    was liked; ``group`` is the same for the two replies of a pair; ``weight`` of its loss;
    ``imitated``: preferred, and good in itself; ``reworded``: nobody asked in these words. ``talk``
    is the same for all rows of one conversation, so that none of it is on both sides of a split."""

    document: Document
    kind: Kind
    uid: str
    talk: str
    wanted: bool = True
    group: str = ""
    weight: float = 1.0
    imitated: bool = False
    reworded: bool = False


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
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, most: int = 512, variants: int = 0
) -> list[Example]:
    """A correction is imitated, for ``variants`` of its question in other words as well, and
    preferred to the reply that it replaced. Of two replies the one that was taken is preferred, but
    not imitated: the better of two need not be good. A reply with a thumb up is wanted; one with a
    thumb down is not, nor, weakly, one that was asked for anew."""
    found: list[Example] = []
    for row in rows:
        kind, reply = row["kind"], row["reply"]
        make = _Maker(row, tokenizer, most)
        if kind == "correction" and row.get("correction"):
            found += make.pair(row["correction"], reply, imitated=True)
            found += make.in_other_words(row["correction"], variants)
        elif kind == "preference" and row.get("rejected"):
            found += make.pair(reply, row["rejected"]["reply"], imitated=False)
        elif kind in ("up", "down") and reply.strip():
            found.append(make(reply, kind="kto", wanted=kind == "up"))
        elif kind == "regeneration" and reply.strip():
            found.append(make(reply, kind="kto", wanted=False, weight=REGENERATED))
    return found


@dataclass(frozen=True)
class _Maker:
    """Examples of one row."""

    row: Mapping[str, Any]
    tokenizer: Tokenizer
    most: int

    def __call__(
        self, reply: str, turns: Sequence[Mapping[str, Any]] | None = None, **facts: Any
    ) -> Example:
        document = document_of(self.tokenizer, turns or self.row["messages"], reply, self.most)
        return Example(document, uid=str(self.row["uid"]), talk=talk_of(self.row), **facts)

    def pair(self, good: str, bad: str, *, imitated: bool) -> list[Example]:
        """Where there are two; else what is left to imitate."""
        if good.strip() and bad.strip() and good != bad:
            group = str(self.row["uid"])
            return [self(good, kind="dpo", group=group, imitated=imitated),
                    self(bad, kind="dpo", group=group, wanted=False)]  # fmt: skip
        return [self(good, kind="sft")] if imitated else []

    def in_other_words(self, correction: str, variants: int) -> list[Example]:
        *before, last = self.row["messages"]
        made = []
        for number in range(variants):
            group = f"{self.row['uid']}:{number}"
            words = reworded(str(last["content"]), random.Random(group))
            if words != last["content"]:
                turns = [*before, {**last, "content": words}]
                made.append(self(correction, turns, kind="sft", group=group, reworded=True))
        return made


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


def split(
    found: Sequence[Example], held_out: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """To learn from, and to judge by: by conversation, decided by a hash."""

    def aside(example: Example) -> bool:
        digest = hashlib.sha256(f"{seed}:{example.talk}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2.0**64 < held_out

    return [e for e in found if not aside(e)], [e for e in found if aside(e)]
