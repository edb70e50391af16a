"""Who speaks in an ensemble, and what the choice is worth.

All text is given, as it stands in the data: at each token of its replies, what would the ensemble
have said, what each expert alone, and whose turn was it? A domain's own expert is the one of the
same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.report.evaluate import Score, Text, log_softmax_at, rows_of
from selm_export.report.spread import Estimate, ratio

if TYPE_CHECKING:
    from selm_export.modeling.model import SelmForCausalLM

Logits = npt.NDArray[np.float32]


class Ensemble(Protocol):
    @property
    def experts(self) -> tuple[str, ...]: ...
    def speak(self, ids: Sequence[int]) -> tuple[Logits, list[int]]:
        """By its route: logits [tokens, vocab], and the expert that spoke after each token."""
        ...

    def alone(self, ids: Sequence[int], expert: int) -> Logits: ...


class CoreEnsemble:
    """A file, as the inference core runs it, with an adapter or without."""

    def __init__(self, path: Path, context: int, adapter: Path | None = None) -> None:
        from selm_edge import _core

        self._model = _core.Model(str(path))
        self._session = _core.Session(self._model, context=context)
        if adapter is not None:
            self._session.set_adapters([(_core.Adapter(self._model, str(adapter)), 1.0)])
        names = self._model.meta_index().get("selm.expert.names")
        self.experts = tuple(self._model.meta_value(names)) if names is not None else ()

    def _eval(self, ids: Sequence[int], expert: str | None) -> Logits:
        self._session.set_expert(expert)
        self._session.truncate(0)
        return np.array(rows_of(self._session.eval(list(ids)).view()))

    def speak(self, ids: Sequence[int]) -> tuple[Logits, list[int]]:
        logits = self._eval(ids, None)
        return logits, [self._session.speaker(i) for i in range(len(ids))]

    def alone(self, ids: Sequence[int], expert: int) -> Logits:
        return self._eval(ids, self.experts[expert])


class TorchEnsemble:
    """A checkpoint between two stages."""

    def __init__(self, model: SelmForCausalLM) -> None:
        self._model = model
        self.experts = tuple(model.config.expert_names)
        self._last: tuple[list[int], Any] = [], None  # all experts are run to let one speak

    def _run(self, ids: Sequence[int]) -> Any:
        import torch

        if self._last[0] != list(ids):
            with torch.inference_mode():
                given = torch.tensor([list(ids)], device=self._model.device)
                out = self._model(given, use_cache=False, output_experts=True)
            self._last = list(ids), out
        return self._last[1]

    def speak(self, ids: Sequence[int]) -> tuple[Logits, list[int]]:
        out = self._run(ids)
        return out.logits[0].float().cpu().numpy(), out.speakers[0].tolist()

    def alone(self, ids: Sequence[int], expert: int) -> Logits:
        logits: Logits = self._run(ids).expert_logits[expert, 0].float().cpu().numpy()
        return logits


@dataclass(frozen=True)
class Row:
    """One conversation. Nats are of its reply tokens."""

    domain: str
    tokens: int
    size: int
    cut: bool
    nats: float
    alone: tuple[float, ...]  # [experts]
    spoke: tuple[int, ...]  # [experts], tokens
    replies: int
    led: tuple[int, ...]  # [experts], replies in which it spoke more than half of the tokens


def hear(ensemble: Ensemble, text: Text, domain: str) -> Row:
    """RecipeError where a token's probability is no number."""
    ids, places, targets = text.ids[:-1], text.places, text.targets
    count = len(ensemble.experts)
    logits, spoke = ensemble.speak(ids)
    nats = -float(log_softmax_at(logits[places], targets).sum())
    alone = tuple(
        -float(log_softmax_at(ensemble.alone(ids, e)[places], targets).sum()) for e in range(count)
    )
    if not np.isfinite([nats, *alone]).all():
        raise RecipeError(
            domain, "the ensemble's logits are no numbers at one of its conversations",
            "Look at the stage that made the model: its loss will have been NaN too",
        )  # fmt: skip
    speakers = np.array(spoke, dtype=np.int64)[places]
    # Consecutive places are of one reply: what the template writes lies between two.
    replies = np.split(speakers, np.flatnonzero(np.diff(places) > 1) + 1)
    led = [sum(2 * int((r == e).sum()) > len(r) for r in replies) for e in range(count)]
    return Row(
        domain, len(places), text.size, text.cut, nats, alone,
        tuple(int((speakers == e).sum()) for e in range(count)), len(replies), tuple(led),
    )  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Of one domain, or of all together. ``nll`` and ``by_expert`` in nats a reply token;
    ``route``: the share of reply tokens that each expert spoke. ``own`` is the share of replies in
    which the domain's own expert spoke more than half of the tokens, ``behind_own`` how much more
    nats a token the ensemble needs than it (below 0: the ensemble is better); both None where no
    expert is the domain's own."""

    tokens: int
    replies: int
    nll: Estimate
    by_expert: dict[str, Estimate]
    route: dict[str, float]
    best: str  # the expert that alone does best
    behind_best: Estimate
    own: float | None
    behind_own: Estimate | None

    def as_json(self) -> dict[str, Any]:
        behind = None if self.behind_own is None else self.behind_own.as_json()
        return {
            "tokens": self.tokens, "replies": self.replies, "nll": self.nll.as_json(),
            "by_expert": {k: v.as_json() for k, v in self.by_expert.items()},
            "route": self.route, "best": self.best, "behind_best": self.behind_best.as_json(),
            "own": self.own, "behind_own": behind,
        }  # fmt: skip


@dataclass(frozen=True)
class Routing:
    experts: tuple[str, ...]
    route: str  # "early" or "full"
    rows: tuple[Row, ...]

    def score(self) -> Score:
        return Score(
            sum(r.nats for r in self.rows), sum(r.tokens for r in self.rows),
            sum(r.size for r in self.rows), sum(r.cut for r in self.rows),
        )  # fmt: skip

    def domains(self) -> dict[str, Part]:
        names = sorted({row.domain for row in self.rows})
        return {
            name: self._part([r for r in self.rows if r.domain == name], name) for name in names
        }

    def mixed(self) -> Part:
        """All domains together, token by token."""
        return self._part(self.rows, None)

    def _part(self, rows: Sequence[Row], domain: str | None) -> Part:
        counts = [row.tokens for row in rows]
        tokens = sum(counts)
        alone = [ratio([row.alone[e] for row in rows], counts) for e in range(len(self.experts))]

        def behind(expert: int) -> Estimate:
            return ratio([row.nats - row.alone[expert] for row in rows], counts)

        best = min(range(len(alone)), key=lambda e: alone[e].value)
        own = self.experts.index(domain) if domain in self.experts else None
        replies = sum(row.replies for row in rows)
        return Part(
            tokens=tokens,
            replies=replies,
            nll=ratio([row.nats for row in rows], counts),
            by_expert=dict(zip(self.experts, alone, strict=True)),
            route={
                name: sum(row.spoke[e] for row in rows) / tokens
                for e, name in enumerate(self.experts)
            },
            best=self.experts[best],
            behind_best=behind(best),
            own=None if own is None else sum(row.led[own] for row in rows) / replies,
            behind_own=None if own is None else behind(own),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "experts": list(self.experts), "route": self.route,
            "domains": {name: part.as_json() for name, part in self.domains().items()},
            "mixed": self.mixed().as_json(),
        }  # fmt: skip


def measure(ensemble: Ensemble, texts: Sequence[tuple[str, Text]], route: str) -> Routing:
    """``texts``: what is read, each with its domain; ``route``: where the file says that the heads
    look, "early" or "full"."""
    rows = [hear(ensemble, text, domain) for domain, text in texts if len(text.places)]
    if not rows:
        raise RecipeError(
            "the data", "holds no reply that fits into the context", "Give other data"
        )
    return Routing(ensemble.experts, route, tuple(rows))


def of_document(document: Document, context: int) -> Text:
    """What a training document is to `measure`; here the end of a turn belongs to the reply."""
    ids, reply = document.ids[:context], document.reply[:context]
    return Text(ids, reply, 0, len(document) > context)
