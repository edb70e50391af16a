"""Training the rows on questions and their answers, held to the teacher's view of other texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selm_export.embedding.pairs import Pair
from selm_export.embedding.static import StaticEmbedder
from selm_export.embedding.teacher import Floats

Say = Callable[[str], None]
TOLD_EVERY = 100  # steps


@dataclass(frozen=True)
class Lesson:
    """``steps`` of ``batch`` questions, all of one source, drawn by ``shares``; of a text so many
    ``tokens`` in a row are read. Each question must find its own text among all of the batch
    (softmax of cosines over ``temperature``). ``teacher`` weighs the second loss: that the cosines
    between a batch's texts are those of the teacher."""

    steps: int = 1500
    batch: int = 512
    tokens: int = 160
    rate: float = 2e-3
    temperature: float = 0.05
    teacher: float = 1.0
    anchors: int = 1024
    sharpness: float = 0.05
    shares: Mapping[str, float] = field(
        default_factory=lambda: {
            "medquad": 3.0, "notes": 1.0, "reading": 1.0, "talk-notes": 1.0, "talk": 1.0,
            "arc": 0.3, "openbookqa": 0.3, "pubmedqa": 0.3,
        }
    )  # fmt: skip


Bag = tuple[Tensor, Tensor]  # token ids one after the other, and where each text begins


class Source:
    """One source's pairs as token ids."""

    def __init__(self, embedder: StaticEmbedder, pairs: Sequence[Pair]) -> None:
        self.questions = embedder.ids([p.question for p in pairs])
        self.texts = embedder.ids([p.text for p in pairs])
        self.others = embedder.ids([p.other for p in pairs])
        names: dict[str, int] = {}
        # The same text under two questions is right for both.
        self.same = np.array([names.setdefault(p.text, len(names)) for p in pairs])


@dataclass(frozen=True)
class Anchors:
    """Texts of every day as token ids, and the teacher's vectors of them [texts, teacher's dim]."""

    ids: Sequence[Sequence[int]]
    seen: Floats


def _unlike(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """How far our view of which texts are alike is from the teacher's (Kullback-Leibler)."""
    itself = torch.eye(len(ours), dtype=torch.bool)
    mine = (ours @ ours.T / temperature).masked_fill(itself, -1e4).log_softmax(-1)
    wise = (theirs @ theirs.T / temperature).masked_fill(itself, -1e4).log_softmax(-1)
    return F.kl_div(mine, wise, log_target=True, reduction="batchmean")


def bag(texts: Sequence[Sequence[int]], longest: int, chance: np.random.Generator) -> Bag:
    """``longest`` tokens of each from anywhere within it: a passage is seldom a whole answer."""
    cut = []
    for ids in texts:
        start = int(chance.integers(0, len(ids) - longest + 1)) if len(ids) > longest else 0
        cut.append(ids[start : start + longest])
    starts = np.cumsum([0, *(len(ids) for ids in cut[:-1])])
    return torch.tensor([i for ids in cut for i in ids]), torch.from_numpy(starts)


def train(
    embedder: StaticEmbedder, sources: Mapping[str, Source], anchors: Anchors | None,
    lesson: Lesson, seed: int, say: Say,
    measure: Callable[[StaticEmbedder], str] | None = None,
) -> StaticEmbedder:  # fmt: skip
    """The embedder with trained rows; the one given stays as it is."""
    chance = np.random.default_rng(seed)
    scale = float(np.sqrt((embedder.rows**2).sum(1).mean()))
    rows = torch.nn.Parameter(torch.from_numpy(embedder.rows / scale))
    optimiser = torch.optim.Adam([rows], lr=lesson.rate)
    names = [name for name in lesson.shares if name in sources]
    shares = np.array([lesson.shares[name] for name in names])
    total = 0.0

    def vectors(texts: Bag) -> Tensor:
        return F.normalize(F.embedding_bag(texts[0], rows, texts[1], mode="sum"), dim=-1)

    for step in range(lesson.steps):
        for group in optimiser.param_groups:
            group["lr"] = lesson.rate * min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / lesson.steps)))  # fmt: skip
        source = sources[names[chance.choice(len(names), p=shares / shares.sum())]]
        drawn = chance.permutation(len(source.questions))[: lesson.batch]
        asked = vectors(bag([source.questions[i] for i in drawn], lesson.tokens, chance))
        told = vectors(bag([source.texts[i] for i in drawn], lesson.tokens, chance))
        beside = [source.others[i] for i in drawn if source.others[i]]
        candidates = torch.cat([told, vectors(bag(beside, lesson.tokens, chance))]) if beside else told  # fmt: skip
        cosines = asked @ candidates.T
        alike = torch.from_numpy(source.same[drawn][:, None] == source.same[drawn][None])
        alike.fill_diagonal_(False)
        logits = cosines / lesson.temperature
        logits[:, : len(drawn)] = logits[:, : len(drawn)].masked_fill(alike, -1e4)
        own = torch.arange(len(drawn))
        loss = F.cross_entropy(logits, own)
        loss = loss + F.cross_entropy((told @ asked.T / lesson.temperature).masked_fill(alike, -1e4), own)  # fmt: skip
        if anchors is not None and lesson.teacher:
            drawn = chance.permutation(len(anchors.ids))[: lesson.anchors]
            ours = vectors(bag([anchors.ids[i] for i in drawn], lesson.tokens, chance))
            theirs = torch.from_numpy(anchors.seen[drawn]).float()
            loss = loss + lesson.teacher * _unlike(ours, theirs, lesson.sharpness)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += float(loss.detach())
        if (step + 1) % TOLD_EVERY == 0 or step + 1 == lesson.steps:
            made = StaticEmbedder(embedder.tokens, rows.detach().numpy().copy())
            told_ = f"; {measure(made)}" if measure else ""
            say(f"step {step + 1}: loss {total / TOLD_EVERY:.3f}{told_}")
            total = 0.0
    return StaticEmbedder(embedder.tokens, rows.detach().numpy().copy())
