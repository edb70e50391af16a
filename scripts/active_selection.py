"""How many labels the product's selection needs to reach what random labels reach.

    python scripts/active_selection.py clinc150-train.jsonl.xz [--seeds 5] [--json]

DATA has lines {"text": ..., "intent": ...}, plain or compressed with xz: CLINC150, for example. For
each seed a part is held out, the rest stands in a random order, and both ways begin with the same
labels. A round asks for more of them: at random, or as `selm feedback export --select` chooses
(`selm_edge.feedback.select`, among as many of the unlabelled and against as many of the labelled as
there, vectors from the embedder of the package, unsure as the classifier is). Then a logistic
regression learns from all labels, and the part held out says how good it is.

Printed is, for several N, the share of N labels from which on the chosen ones are never again worse
than N random ones: per seed, and in the mean with a 95 % interval over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selm_edge.feedback.select import Candidate, choose, unsure
from selm_edge.feedback.unrated import JUDGED, MOST
from selm_edge.memory.embedder import open_embedder

HELD_OUT = 3000
WEIGHT = 100.0  # of the data beside weights of length 1: good from 150 labels to 3,000
STEPS = 100
BIAS = 0.3  # a constant feature; the vectors' length is 1
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 %, from 2 on

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """``features`` are the vectors as the product has them, with `BIAS` as the last number."""

    vectors: list[Sequence[float] | None]
    features: Floats
    labels: Places
    classes: int


def read(path: Path) -> Data:
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with open_embedder("builtin") as embedder:  # type: ignore[union-attr]
        vectors = embedder.embed([row["text"] for row in rows])
        empty = bytes(4 * embedder.dim)
    numbers = np.frombuffer(b"".join(vector or empty for vector in vectors), "<f4")
    features = numbers.reshape(len(rows), -1)
    names = sorted({row["intent"] for row in rows})
    place = {name: i for i, name in enumerate(names)}
    return Data(
        [None if vector is None else array("f", vector) for vector in vectors],
        np.hstack([features, np.full((len(rows), 1), BIAS, np.float32)]),
        np.array([place[row["intent"]] for row in rows]),
        len(names),
    )


class Classifier:
    """A multinomial logistic regression: Nesterov's accelerated gradient, begun anew where it
    turns back, from the weights of the last time."""

    def __init__(self, width: int, classes: int) -> None:
        self.weights: Floats = np.zeros((width, classes), np.float32)

    def fit(self, features: Floats, labels: Places) -> None:
        rows = len(features)
        wanted = np.zeros((rows, self.weights.shape[1]), np.float32)
        wanted[np.arange(rows), labels] = 1
        decay = 1 / (WEIGHT * rows)
        steepest = np.linalg.eigvalsh(features.T @ features / rows)[-1] / 2 + decay
        weights, ahead, speed = self.weights, self.weights, 1.0
        for _ in range(STEPS):
            slope = features.T @ (_softmax(features @ ahead) - wanted) / rows + decay * ahead
            found = ahead - slope / steepest
            if float(np.vdot(slope, found - weights)) > 0:
                speed = 1.0
            faster = (1 + math.sqrt(1 + 4 * speed * speed)) / 2
            ahead = found + (speed - 1) / faster * (found - weights)
            weights, speed = found, faster
        self.weights = weights.astype(np.float32)

    def chances(self, features: Floats) -> Floats:
        return _softmax(features @ self.weights)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


Way = Callable[[Data, Classifier, Places, Sequence[int], int], Sequence[int]]


def at_random(
    data: Data, classifier: Classifier, free: Places, labelled: Sequence[int], count: int
) -> Sequence[int]:
    return [int(i) for i in free[:count]]  # they stand in a random order


def chosen(
    data: Data, classifier: Classifier, free: Places, labelled: Sequence[int], count: int
) -> Sequence[int]:
    near = free[:MOST]
    chances = classifier.chances(data.features[near])
    entropies = -(chances * np.log(chances + 1e-12)).sum(axis=1)
    two = np.partition(chances, -2, axis=1)[:, -2:]
    candidates = [
        Candidate(int(i), unsure(float(entropy), float(margin)), data.vectors[i])
        for i, entropy, margin in zip(near, entropies, two[:, 1] - two[:, 0], strict=True)
    ]
    rated = [vector for i in labelled[-JUDGED:] if (vector := data.vectors[i]) is not None]
    return [candidate.key for candidate in choose(candidates, rated, count)]


def curve(data: Data, seed: int, way: Way, counts: Sequence[int]) -> list[float]:
    """The accuracy with as many labels."""
    order = np.random.default_rng(seed).permutation(len(data.labels))
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    labelled: list[int] = [int(i) for i in rest[: counts[0]]]
    classifier = Classifier(data.features.shape[1], data.classes)
    reached = []
    for count in counts:
        if count > len(labelled):
            free = rest[~np.isin(rest, labelled)]
            labelled += way(data, classifier, free, labelled, count - len(labelled))
        classifier.fit(data.features[labelled], data.labels[labelled])
        guessed = classifier.chances(data.features[held_out]).argmax(axis=1)
        reached.append(float((guessed == data.labels[held_out]).mean()))
    return reached


def needed(counts: Sequence[int], reached: Sequence[float], wanted: float) -> float:
    """The labels from which on ``wanted`` is kept, on a straight line between two rounds."""
    below = [i for i, accuracy in enumerate(reached) if accuracy < wanted]
    if not below:
        return float(counts[0])
    last = below[-1]
    if last + 1 == len(counts):
        return math.inf
    part = (wanted - reached[last]) / (reached[last + 1] - reached[last])
    return counts[last] + part * (counts[last + 1] - counts[last])


def interval(shares: Sequence[float]) -> tuple[float, float, float]:
    """The mean and the ends of its 95 % interval."""
    mean = statistics.fmean(shares)
    if len(shares) < 2 or not math.isfinite(mean):
        return mean, -math.inf, math.inf
    student = STUDENT[min(len(shares) - 2, len(STUDENT) - 1)]
    half = student * statistics.stdev(shares) / math.sqrt(len(shares))
    return mean, mean - half, mean + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=150, help="labels a round, and to begin with")
    parser.add_argument("--labels", type=int, default=3000, help="at the end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = read(options.data)
    counts = list(range(options.batch, options.labels + 1, options.batch))
    shown = counts[3::4]
    told: dict[str, Any] = {"labels": counts, "seeds": {}, "share": {}}
    shares: dict[int, list[float]] = {n: [] for n in shown}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        began = time.perf_counter()
        random, active = (curve(data, seed, way, counts) for way in (at_random, chosen))
        own = {n: needed(counts, active, random[counts.index(n)]) / n for n in shown}
        for n in shown:
            shares[n].append(own[n])
        told["seeds"][seed] = {"random": random, "active": active, "share": own}
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for n in shown:
        told["share"][n] = dict(zip(("mean", "low", "high"), interval(shares[n]), strict=True))
    if options.json:
        print(json.dumps(told, indent=2))
        return
    print("labels  random  active  share of labels needed, per seed   mean (95 %)")
    for n in shown:
        at = counts.index(n)
        by_way = [
            statistics.fmean(one[way][at] for one in told["seeds"].values())
            for way in ("random", "active")
        ]
        each = " ".join(f"{share:.2f}" for share in shares[n])
        mean, low, high = interval(shares[n])
        print(f"{n:6}  {by_way[0]:.3f}   {by_way[1]:.3f}   {each}", end="   ")
        print(f"{mean:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
