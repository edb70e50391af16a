"""Which conversations are held out: decided by content, so that it never depends on order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from selm_export.data.chat import Conversation


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


COMMON = frozenset(
    _words(
        "a an the is are was do does did i you me my your it to of in on for and or what how who"
        " where when why can could would should please tell about s exactly"
    )
)


def keys(conversation: Conversation) -> list[str]:
    """Two conversations that share a key count as the same thing said twice: the first question
    without common words, digits and order (with its notes, if it has any), or a long reply."""
    found = []
    for number, message in enumerate(conversation.messages):
        words = _words(message.content)
        if message.role == "assistant" and len(words) >= 6:
            found.append("r:" + " ".join(words))
        if number == 0:
            content = sorted(set(words) - COMMON)
            found.append("q:" + " ".join(content or words))
    return found


def clusters(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Indices of near-identical conversations, grouped (union-find over shared keys)."""
    parent = list(range(len(conversations)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, conversation in enumerate(conversations):
        for key in keys(conversation):
            j = first.setdefault(key, i)
            parent[root(i)] = root(j)
    groups: dict[int, list[int]] = {}
    for i in range(len(conversations)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _share(text: str) -> float:
    """A number in [0, 1) from the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64


def hold_out(
    conversations: Sequence[Conversation], share: float, salt: str = "selm-mini"
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held out); whole clusters go to one side."""
    training: list[Conversation] = []
    held_out: list[Conversation] = []
    for group in clusters(conversations):
        name = min(conversations[i].text() for i in group)
        side = held_out if _share(salt + name) < share else training
        side.extend(conversations[i] for i in group)
    return training, held_out
