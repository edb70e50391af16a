"""Learning from feedback: replies to imitate, pairs, thumbs, and enough of the old text that
nothing else is unlearnt."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selm_export.data.packing import Batch
from selm_export.finetune import losses
from selm_export.finetune.adapter import Adapter
from selm_export.finetune.examples import Example
from selm_export.modeling.layers import QUIET, Noise
from selm_export.modeling.model import SelmForCausalLM
from selm_export.training.tasks import Rows, expert_logits, logits_at, read, top_divergence

TOP = 64  # of what the base says, tokens that the KL looks at one by one


@dataclass(frozen=True)
class Weights:
    """How much each loss weighs. Old text is imitated (``replay``), and what the model says of it
    held to what it said before (``kl``)."""

    imitate: float = 1.0
    prefer: float = 1.0
    replay: float = 1.0
    kl: float = 2.0
    beta: float = losses.BETA


def log_probabilities(model: SelmForCausalLM, rows: Rows, noise: Noise) -> Tensor:
    """[places, vocab]; of an ensemble, of its experts' mixture by the route's weights."""
    found = read(model, rows, noise)
    if not model.config.expert_names:
        logits = logits_at(model, found.stream[-1], model.model.norm, rows.positions)
        return logits.log_softmax(-1)
    logs = expert_logits(model, found, rows.positions).log_softmax(-1)
    with torch.no_grad():  # who speaks is not learnt here
        seen = found.stream[-1].flatten(0, 1).index_select(0, rows.positions)
        route = torch.cat([head(seen) for head in model.model.scores], dim=-1).float()
    return torch.logsumexp(logs + route.log_softmax(-1).T[..., None], dim=0)


def pack(examples: Sequence[tuple[int, Example]], rows: int, length: int) -> Batch:
    """Examples (each with its number) in rows, whole; the number stands in ``documents``. Only the
    tokens of replies count, each as one over the reply's length. ValueError where they do not fit.
    """
    ids = np.zeros((rows, length + 1), dtype=np.int64)
    documents = np.full((rows, length + 1), -1, dtype=np.int64)
    weights = np.zeros((rows, length + 1), dtype=np.float32)
    filled = [0] * rows
    for number, example in sorted(examples, key=lambda e: -len(e[1].document)):
        size = len(example.document)
        row = int(np.argmin(filled))
        if filled[row] + size > length + 1:
            raise ValueError("the examples do not fit into one batch")
        at = slice(filled[row], filled[row] + size)
        ids[row, at], documents[row, at] = example.document.ids, number
        spoken = np.array(example.document.reply)
        spoken[0] = False  # nothing stands before it
        weights[row, at] = spoken / max(1, int(spoken.sum()))
        filled[row] += size
    positions = np.flatnonzero(weights[:, 1:])
    targets = ids[:, 1:].reshape(-1)[positions]
    return Batch(
        ids[:, :-1].copy(), documents[:, :-1].copy(), positions, targets,
        weights[:, 1:].reshape(-1)[positions].astype(np.float32),
    )  # fmt: skip


def batches(
    examples: Sequence[Example], rows: int, length: int, seed: str, replay: int = 0
) -> Iterator[Batch]:
    """Without end, each example of feedback once a round, pairs together; what stands beside a
    thumb for its reference comes with it. Of the text to replay each round has its own
    ``replay`` examples, as long as there are others."""
    units: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        key = example.group or f"{example.kind}:{example.uid}"
        if example.kind == "mismatched":
            key = f"kto:{example.uid}"
        units.setdefault(key, []).append(number)
    old = sorted(key for key in units if key.startswith("replay:"))
    new = sorted(units.keys() - set(old))
    random.Random(seed).shuffle(old)
    around = 0
    while True:
        begin = around * replay
        order = new + [old[(begin + i) % len(old)] for i in range(min(replay, len(old)))]
        random.Random(f"{seed}:{around}").shuffle(order)
        around += 1
        yield from _packed(
            ([(number, examples[number]) for number in units[key]] for key in order), rows, length
        )


def in_order(examples: Sequence[Example], rows: int, length: int) -> Iterator[Batch]:
    """Each once."""
    return _packed(([one] for one in enumerate(examples)), rows, length)


def _packed(units: Iterable[list[tuple[int, Example]]], rows: int, length: int) -> Iterator[Batch]:
    """As many units at a time as fit."""
    waiting: list[tuple[int, Example]] = []
    for more in units:
        if waiting and not _fits([*waiting, *more], rows, length):
            yield pack(waiting, rows, length)
            waiting = []
        waiting += more
    if waiting:
        yield pack(waiting, rows, length)


def _fits(examples: Sequence[tuple[int, Example]], rows: int, length: int) -> bool:
    try:
        pack(examples, rows, length)
    except ValueError:
        return False
    return True


class Feedback(nn.Module):
    """The losses of a batch of examples, summed. ``before`` [examples] are the log-probabilities of
    their replies under the model as it was."""

    before: Tensor

    def __init__(
        self, model: SelmForCausalLM, adapter: Adapter, examples: Sequence[Example],
        weights: Weights,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.adapter, self.weights = model, adapter, weights
        self.examples = list(examples)
        kto = [e.wanted for e in self.examples if e.kind == "kto"]
        self.sides = losses.kto_weights(sum(kto), len(kto) - sum(kto))
        self.register_buffer("before", torch.zeros(len(self.examples)))

    @torch.no_grad()
    def look(self, rows: Rows) -> None:
        """Remembers what the model as it was says of the examples of a batch."""
        with self.adapter.off():
            said = self._said(log_probabilities(self.model, rows, QUIET), rows)
        for index, value in said.items():
            self.before[index] = value

    def forward(self, rows: Rows, noise: Noise) -> Tensor:
        logs = log_probabilities(self.model, rows, noise)
        said = self._said(logs, rows)
        total = logs.new_zeros(())
        by_kind: dict[str, list[int]] = {}
        for index in said:
            by_kind.setdefault(self.examples[index].kind, []).append(index)
        total = total + self._imitation(logs, rows, by_kind)
        total = total + self._pairs(said, by_kind.get("dpo", []))
        return total + self._thumbs(said, by_kind)

    def _said(self, logs: Tensor, rows: Rows) -> dict[int, Tensor]:
        """By example: the log-probability of its reply."""
        of_targets = logs.gather(-1, rows.targets[:, None])[:, 0]
        number = rows.documents.flatten()[rows.positions]
        return {i: of_targets[number == i].sum() for i in sorted(set(number.tolist()))}

    def _imitation(self, logs: Tensor, rows: Rows, by_kind: dict[str, list[int]]) -> Tensor:
        number = rows.documents.flatten()[rows.positions]
        weight = torch.zeros_like(rows.weights)
        shares = {"sft": self.weights.imitate, "dpo": self.weights.imitate,
                  "replay": self.weights.replay}  # fmt: skip
        for kind, share in shares.items():
            for index in by_kind.get(kind, []):
                if kind != "dpo" or self.examples[index].imitated:
                    weight = weight + (number == index) * share * self.examples[index].weight
        loss = (F.nll_loss(logs, rows.targets, reduction="none") * rows.weights * weight).sum()
        replayed = by_kind.get("replay", [])
        if replayed and self.weights.kl:
            kept = torch.isin(number, torch.tensor(replayed, device=number.device))
            with torch.no_grad(), self.adapter.off():
                wanted = log_probabilities(self.model, rows, QUIET)[kept]
            apart = top_divergence(wanted, logs[kept], TOP) * rows.weights[kept]
            loss = loss + self.weights.kl * apart.sum()
        return loss

    def _pairs(self, said: dict[int, Tensor], numbers: list[int]) -> Tensor:
        by_group: dict[str, dict[bool, int]] = {}
        for index in numbers:
            example = self.examples[index]
            by_group.setdefault(example.group, {})[example.wanted] = index
        pairs = [(pair[True], pair[False]) for pair in by_group.values() if len(pair) == 2]
        if not pairs:
            return self.before.new_zeros(())
        good, bad = ([said[p[side]] for p in pairs] for side in (0, 1))
        old_good, old_bad = (self.before[[p[side] for p in pairs]] for side in (0, 1))
        lost = losses.dpo(torch.stack(good), torch.stack(bad), old_good, old_bad, self.weights.beta)
        return self.weights.prefer * lost.sum()

    def _thumbs(self, said: dict[int, Tensor], by_kind: dict[str, list[int]]) -> Tensor:
        numbers = by_kind.get("kto", [])
        if not numbers:
            return self.before.new_zeros(())
        others = by_kind.get("mismatched", [])
        far = torch.stack([said[i] for i in others]) if others else self.before.new_zeros(0)
        reference = losses.kto_reference(far, self.before[others])
        wanted = torch.tensor([self.examples[i].wanted for i in numbers], device=far.device)
        lost = losses.kto(
            torch.stack([said[i] for i in numbers]), self.before[numbers], wanted, reference,
            beta=self.weights.beta, weights=self.sides,
        )  # fmt: skip
        each = torch.tensor([self.examples[i].weight for i in numbers], device=far.device)
        return self.weights.prefer * (lost * each).sum()
