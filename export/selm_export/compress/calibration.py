"""Documents through a model, and how far what another model says of them is from what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from selm_export.data import dataset
from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.modeling.model import SelmForCausalLM

BATCH_TOKENS = 4096  # that go through a model together
HEAD_TOKENS = 256  # whose logits are there at a time: of a large vocabulary they fill memory


@dataclass(frozen=True)
class Batch:
    """Documents side by side, padded on the left. ``valid`` [rows, tokens]: not padding;
    ``counted``: what is said after this token counts, as a reply's token comes next."""

    ids: Tensor
    valid: Tensor
    counted: Tensor


def read_documents(path: Path, tokenizer: Tokenizer, count: int, seed: int) -> list[Document]:
    """Up to ``count`` documents of a prepared file, by lot. Raises RecipeError where there are
    none."""
    if not path.is_file():
        raise RecipeError(
            path, "there is no such file of prepared data", "Run the data stage first"
        )
    found = dataset.sample(path, tokenizer, count, seed)
    if not any(len(document) > 1 for document in found):
        raise RecipeError(path, "holds no documents", "Give the data stage more data")
    return found


def batches(documents: Sequence[Document], tokens: int) -> list[Batch]:
    """Of similar lengths together, each cut to its first ``tokens`` tokens. Of a document without
    replies every token counts."""
    cut = sorted(
        (Document(d.ids[:tokens], d.reply[:tokens]) for d in documents if len(d) > 1), key=len
    )
    rows: list[list[Document]] = []
    for document in cut:
        if not rows or (len(rows[-1]) + 1) * len(document) > BATCH_TOKENS:
            rows.append([])
        rows[-1].append(document)
    return [_padded(row) for row in rows]


def _padded(documents: list[Document]) -> Batch:
    longest = len(documents[-1])
    shape = len(documents), longest
    ids = torch.zeros(shape, dtype=torch.long)
    valid, counted = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, document in enumerate(documents):
        first = longest - len(document)
        ids[row, first:] = torch.tensor(document.ids)
        valid[row, first:] = True
        reply = document.reply[1:] if any(document.reply[1:]) else [True] * (len(document) - 1)
        counted[row, first:-1] = torch.tensor(reply)
    return Batch(ids, valid, counted)


@contextmanager
def _headless(model: SelmForCausalLM) -> Iterator[None]:
    head, model.lm_head = model.lm_head, nn.Identity()
    try:
        yield
    finally:
        model.lm_head = head


@torch.no_grad()
def spoken(model: SelmForCausalLM, batch: Batch) -> Tensor:
    """What the head reads [rows, tokens, width]; of an ensemble, that of who speaks. The logits
    themselves may be too many to keep."""
    with _headless(model):
        out = model(batch.ids, attention_mask=batch.valid.long(), use_cache=False).logits
    assert isinstance(out, Tensor)
    return out


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) in nats over ``positions`` tokens: the mean, and what 99 % of them
    stay below; ``same_top``, the share of tokens where both find the same one likeliest."""

    mean: float
    at_99: float
    same_top: float
    positions: int

    def to_dict(self) -> dict[str, float]:
        return {f"kld_{k}" if k in ("mean", "at_99") else k: v for k, v in asdict(self).items()}


class Reference:
    """What a model says of documents: the measure that smaller ones are held against. Raises
    ValueError where that is not finite."""

    @torch.no_grad()
    def __init__(
        self, model: SelmForCausalLM, documents: Sequence[Document], tokens: int = 512
    ) -> None:
        self.batches = batches(documents, tokens)
        self.head = model.lm_head.weight.detach()
        self.hidden = [spoken(model, batch)[batch.counted] for batch in self.batches]
        if not all(bool(hidden.isfinite().all()) for hidden in self.hidden):
            raise ValueError("what the model says is not finite: a weight is infinite or no number")

    @torch.no_grad()
    def divergence(self, model: SelmForCausalLM) -> Divergence:
        found, same = [], 0
        for batch, reference in zip(self.batches, self.hidden, strict=True):
            hidden = spoken(model, batch)[batch.counted]
            for first in range(0, len(hidden), HEAD_TOKENS):
                some = slice(first, first + HEAD_TOKENS)
                p = F.linear(reference[some], self.head).log_softmax(-1)
                q = F.linear(hidden[some], model.lm_head.weight).log_softmax(-1)
                found.append((p.exp() * (p - q)).sum(-1))
                same += int((p.argmax(-1) == q.argmax(-1)).sum())
        all_of_them = torch.cat(found).double()
        count = len(all_of_them)
        return Divergence(
            float(all_of_them.mean()), float(all_of_them.quantile(0.99)), same / count, count
        )
