"""From conversations to rows of tokens: streams, mixing and packing, all decided by the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SYSTEM_PROMPTS = (
    "You are SELM, a private assistant that runs on this device.",
    "You are SELM, a helpful assistant on this device.",
    "You are a helpful assistant.",
    "You are SELM. Answer in short, friendly sentences.",
)


@dataclass(frozen=True)
class Document:
    ids: list[int]
    reply: list[bool]
    drawn: bool = False  # by lot: there is nothing to learn from what was not replied

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Document) -> Document:
        drawn = self.drawn or other.drawn
        return Document(self.ids + other.ids, self.reply + other.reply, drawn)


@dataclass(frozen=True)
class Batch:
    """One micro-batch. ``positions`` are the flat places whose next token counts in the loss."""

    ids: NDArray[np.int64]  # [rows, tokens]
    documents: NDArray[np.int64]  # [rows, tokens]
    positions: NDArray[np.int64]  # [places]
    targets: NDArray[np.int64]  # [places]
    weights: NDArray[np.float32]  # [places]


@dataclass(frozen=True)
class Packing:
    rows: int = 4
    tokens: int = 512
    places: int = 1280  # loss positions per micro-batch; a fixed number keeps one compiled graph
    user_weight: float = 0.3  # of tokens that the assistant does not have to write
    separator: int = 0
    pool: int = 48


def shuffled(documents: Sequence[Document], seed: str) -> Iterator[Document]:
    """The documents for ever, in a new order each epoch."""
    epoch = 0
    while True:
        order = list(range(len(documents)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        for i in order:
            yield documents[i]
        epoch += 1


def generated(make: Callable[[random.Random], Document], seed: str) -> Iterator[Document]:
    number = 0
    while True:
        yield make(random.Random(f"{seed}:{number}"))
        number += 1


def varied(
    documents: Iterator[Document], systems: Sequence[Document], limit: int, seed: str
) -> Iterator[Document]:
    """Puts a system prompt before some conversations, and joins some to one long chat: people
    change the subject, and the model must see far positions."""
    r = random.Random(seed)
    for first in documents:
        joined = first
        draw = r.random()
        if draw < 0.08:
            while len(joined) < limit:
                joined += next(documents)
        elif draw < 0.20:
            joined += next(documents)
        yield r.choice(systems) + joined if r.random() < 0.12 else joined


def mixed(
    streams: dict[str, Iterator[Document]], shares: dict[str, float], seed: str
) -> Iterator[Document]:
    """Draws from the stream that is furthest behind its share of the tokens."""
    names = sorted(n for n in shares if shares[n] > 0)
    total = sum(shares[n] for n in names)
    r = random.Random(seed)
    seen = {n: r.random() * 1e-3 for n in names}
    while True:
        name = min(names, key=lambda n: seen[n] / (shares[n] / total))
        document = next(streams[name])
        seen[name] += len(document)
        yield document


def rows(documents: Iterator[Document], packing: Packing) -> Iterator[list[Document]]:
    """Fills rows from a small pool, the longest fitting document first, and cuts what is longer
    than a row."""
    length = packing.tokens + 1
    pool: list[Document] = []
    while True:
        row: list[Document] = []
        room = length
        while room > 8:
            while len(pool) < packing.pool:
                d = next(documents)
                pool.append(replace(d, ids=d.ids[:length], reply=d.reply[:length]))
            if not row:
                chosen = 0  # the oldest goes first, or a long one could wait for ever
            else:
                fitting = [i for i, d in enumerate(pool) if len(d) <= room]
                if not fitting:
                    break
                chosen = max(fitting, key=lambda i: len(pool[i]))
            document = pool.pop(chosen)
            row.append(document)
            room -= len(document)
        yield row


def batches(documents: Iterator[Document], packing: Packing, seed: str) -> Iterator[Batch]:
    source = rows(documents, packing)
    r = np.random.default_rng(list(seed.encode()))
    while True:
        yield _assemble([next(source) for _ in range(packing.rows)], packing, r)


def _assemble(chosen: list[list[Document]], packing: Packing, r: np.random.Generator) -> Batch:
    length = packing.tokens + 1
    ids = np.full((packing.rows, length), packing.separator, dtype=np.int64)
    number = np.full((packing.rows, length), -1, dtype=np.int64)
    reply = np.zeros((packing.rows, length), dtype=bool)
    drawn = np.zeros((packing.rows, length), dtype=bool)
    for i, row in enumerate(chosen):
        start = 0
        for j, document in enumerate(row):
            end = start + len(document)
            ids[i, start:end], number[i, start:end] = document.ids, j
            reply[i, start:end], drawn[i, start:end] = document.reply, document.drawn
            start = end
    # A token is predicted from the one before, which must belong to the same document.
    inside = (number[:, 1:] == number[:, :-1]) & (number[:, 1:] >= 0)
    wanted = np.flatnonzero(inside & reply[:, 1:])
    other = (
        np.flatnonzero(inside & ~reply[:, 1:] & ~drawn[:, 1:])
        if packing.user_weight > 0
        else wanted[:0]
    )
    if len(wanted) > packing.places:
        wanted = r.choice(wanted, packing.places, replace=False)
    other = r.permutation(other)[: packing.places - len(wanted)]
    pad = np.zeros(packing.places - len(wanted) - len(other), dtype=np.int64)
    weights = np.zeros(packing.places, dtype=np.float32)
    weights[: len(wanted)] = 1.0
    weights[len(wanted) : len(wanted) + len(other)] = packing.user_weight
    positions = np.concatenate([wanted, other, pad]).astype(np.int64)
    targets = ids[:, 1:].reshape(-1)[positions]
    return Batch(ids[:, :-1].copy(), number[:, :-1].copy(), positions, targets, weights)
