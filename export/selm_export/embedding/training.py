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
WARM_UP = 50  # steps in which the rate rises; then it falls to nothing
NEVER = -1e4  # the logit of what is not to choose from


@dataclass(frozen=True)
class Lesson:
    """``steps`` of ``batch`` questions, all of one source, drawn by ``shares``; of a text so many
    ``tokens`` in a row are read. Each question must find its own text among all of the batch
    (softmax of cosines over ``temperature``). ``teacher`` weighs the second loss, which keeps the
    rows from forgetting: of ``anchors`` sentences, which are alike as the teacher finds (softmax of
    cosines over ``sharpness``)."""

    steps: int = 800
    batch: int = 384
    tokens: int = 160
    rate: float = 1e-3
    temperature: float = 0.05
    teacher: float = 2.0
    anchors: int = 1024
    sharpness: float = 0.05
    shares: Mapping[str, float] = field(
        default_factory=lambda: {
            "medquad": 2.5, "notes": 1.0, "reading": 0.7, "talk-notes": 1.5, "talk": 1.5,
            "arc": 0.3, "openbookqa": 0.3, "pubmedqa": 0.2,
        }
    )  # fmt: skip

    def faults(self) -> str | None:
        if min(self.steps, self.batch, self.tokens, self.anchors) < 1:
            return "train has steps, batch, tokens or anchors below 1"
        if min(self.rate, self.temperature, self.sharpness) <= 0 or self.teacher < 0:
            return "train has a rate, temperature or sharpness that is not above 0"
        if not self.shares or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            return "train.shares names no source to learn from"
        return None


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


class _Learner:
    """The rows while they learn, and chance, which decides what they learn from."""

    def __init__(self, embedder: StaticEmbedder, lesson: Lesson, seed: int) -> None:
        self.lesson, self.chance = lesson, np.random.default_rng(seed)
        # Adam's steps are of one size, so the rows are brought to one: lengths of about 1.
        scale = float(np.sqrt((embedder.rows**2).sum(1).mean()))
        self.rows = torch.nn.Parameter(torch.from_numpy(embedder.rows / scale))

    def vectors(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """[len(texts), dim], each of length 1, of so many ``tokens`` in a row from anywhere within
        the text: a passage is seldom a whole answer."""
        cut, longest = [], self.lesson.tokens
        for ids in texts:
            most = len(ids) - longest
            start = int(self.chance.integers(0, most + 1)) if most > 0 else 0
            cut.append(ids[start : start + longest])
        starts = torch.from_numpy(np.cumsum([0, *(len(ids) for ids in cut[:-1])]))
        flat = torch.tensor([i for ids in cut for i in ids])
        return F.normalize(F.embedding_bag(flat, self.rows, starts, mode="sum"), dim=-1)

    def pair_loss(self, source: Source) -> Tensor:
        """Each question is to find its text, also beside texts that do not answer, and back."""
        drawn = self.chance.permutation(len(source.questions))[: self.lesson.batch]
        asked = self.vectors([source.questions[i] for i in drawn])
        told = self.vectors([source.texts[i] for i in drawn])
        beside = [source.others[i] for i in drawn if source.others[i]]
        same = torch.from_numpy(source.same[drawn][:, None] == source.same[drawn][None])
        same.fill_diagonal_(False)
        among = (asked @ told.T / self.lesson.temperature).masked_fill(same, NEVER)
        own = torch.arange(len(drawn))
        back = F.cross_entropy(among.T, own)
        if beside:
            others = asked @ self.vectors(beside).T / self.lesson.temperature
            among = torch.cat([among, others], dim=1)
        return F.cross_entropy(among, own) + back

    def anchor_loss(self, anchors: Anchors) -> Tensor:
        """How far our view of which texts are alike is from the teacher's (Kullback-Leibler)."""
        drawn = self.chance.permutation(len(anchors.ids))[: self.lesson.anchors]
        ours = self.vectors([anchors.ids[i] for i in drawn])
        theirs = torch.from_numpy(anchors.seen[drawn])
        itself = torch.eye(len(drawn), dtype=torch.bool)
        mine, wise = (
            (each @ each.T / self.lesson.sharpness).masked_fill(itself, NEVER).log_softmax(-1)
            for each in (ours, theirs)
        )
        return F.kl_div(mine, wise, log_target=True, reduction="batchmean")


def train(
    embedder: StaticEmbedder, sources: Mapping[str, Source], anchors: Anchors, lesson: Lesson,
    *, seed: int, say: Say,
) -> StaticEmbedder:  # fmt: skip
    """The embedder with trained rows; the one given stays as it is."""
    learner = _Learner(embedder, lesson, seed)
    optimiser = torch.optim.Adam([learner.rows], lr=lesson.rate)
    names = [name for name in lesson.shares if name in sources]
    shares = np.array([lesson.shares[name] for name in names])
    total, since = 0.0, 0
    for step in range(lesson.steps):
        falling = 0.5 * (1 + math.cos(math.pi * step / lesson.steps))
        optimiser.param_groups[0]["lr"] = lesson.rate * min((step + 1) / WARM_UP, falling)
        source = sources[names[learner.chance.choice(len(names), p=shares / shares.sum())]]
        loss = learner.pair_loss(source) + lesson.teacher * learner.anchor_loss(anchors)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total, since = total + float(loss.detach()), since + 1
        if since == TOLD_EVERY or step + 1 == lesson.steps:
            say(f"step {step + 1} of {lesson.steps}: loss {total / since:.3f}")
            total, since = 0.0, 0
    return StaticEmbedder(embedder.tokens, learner.rows.detach().numpy().copy())
