"""What exits are worth: how often they say what the model says in the end, and what drafting
through them saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from selm_export.modeling.model import SelmForCausalLM
from selm_export.network import Network, Shape
from selm_export.packing import Document

LONGEST_DRAFT = 8
VERIFY_EACH = 0.1  # of a token's cost, what each drafted one adds when they are verified together

# ids [tokens] -> logits [1 + exits, tokens, vocabulary]: of the end, then of each exit
Says = Callable[[Tensor], Tensor]


@dataclass
class Agreement:
    """Counts of places where a token of the reply is next, and of what an exit says there."""

    places: int = 0
    agreed: int = 0  # its likeliest token is the model's
    drafted: int = 0  # also where it chooses among the shortlist alone
    listed: int = 0  # the model's likeliest token is in the shortlist

    def shares(self) -> dict[str, float]:
        of = max(1, self.places)
        return {
            "agreed": self.agreed / of, "drafted": self.drafted / of, "listed": self.listed / of,
        }  # fmt: skip


def network_says(network: Network) -> Says:
    def says(ids: Tensor) -> Tensor:
        end, exits = network.spoken(ids[None], None)
        return network.head(torch.cat([end, *exits]))

    return says


def model_says(model: SelmForCausalLM) -> Says:
    def says(ids: Tensor) -> Tensor:
        found = model(ids[None], output_exits=True, use_cache=False)
        return torch.cat([found.logits, found.exit_logits[:, 0]])

    return says


def only(shortlist: Sequence[int], vocabulary: int) -> Tensor:
    """Zero [vocabulary] for the tokens of the shortlist, minus infinity for all others."""
    mask = torch.full((vocabulary,), -torch.inf)
    mask[list(shortlist)] = 0.0
    return mask


@torch.no_grad()
def teacher_forced(
    says: Says, exits: Sequence[int], documents: Sequence[Document], mask: Tensor, context: int
) -> dict[int, Agreement]:
    """By exit, on replies as they were written."""
    found = {layer: Agreement() for layer in exits}
    for document in documents:
        ids = torch.tensor(document.ids[:context])
        wanted = torch.tensor(document.reply[:context])[1:]
        logits = says(ids[:-1])[:, wanted]
        end = logits[0].argmax(-1)
        for (_, tally), drafts in zip(found.items(), logits[1:], strict=True):
            tally.places += end.numel()
            tally.agreed += int((drafts.argmax(-1) == end).sum())
            tally.drafted += int(((drafts + mask).argmax(-1) == end).sum())
            tally.listed += int((mask[end] == 0).sum())
    return found


@dataclass
class Cycle:
    """A draft of ``length`` tokens and its verification, on average."""

    exit: int
    length: int
    tokens: float  # gained
    cost: float  # in tokens decoded without drafts
    speed_up: float = field(init=False)

    def __post_init__(self) -> None:
        self.speed_up = self.tokens / self.cost


def cost_of(shape: Shape, layer: int, shortlist: int, length: int) -> float:
    """Of a cycle, in multiplications, over those of a token decoded plainly. The layers up to the
    exit run once for each token, and the last one drafted has not been through them."""
    width, heads = shape.width, shape.heads * shape.head_size
    one = 2 * width * (heads + shape.kv_heads * shape.head_size) + 3 * width * shape.feed_forward
    head = shape.vocab * width
    draft = layer * one + shortlist * width
    rest = (shape.layers - layer) * one + head
    verify = (1 + VERIFY_EACH * length) * rest + layer * one
    return (length * draft + verify) / (shape.layers * one + head)


def gained(agreed: Sequence[Sequence[bool]], length: int) -> float:
    """Tokens per cycle, where ``agreed`` says of each reply's tokens whether they would be
    drafted. Exact for greedy decoding: a draft goes on from tokens that are the reply's."""
    cycles = 0
    for reply in agreed:
        at = 0
        while at < len(reply):
            refused = (n for n in range(at, at + length) if n >= len(reply) or not reply[n])
            at = next(refused, at + length) + 1  # the model itself says the next one
            cycles += 1
    return sum(len(reply) for reply in agreed) / max(1, cycles)


def best_cycle(shape: Shape, layer: int, shortlist: int, agreed: Sequence[Sequence[bool]]) -> Cycle:
    cycles = [
        Cycle(layer, n, gained(agreed, n), cost_of(shape, layer, shortlist, n))
        for n in range(1, LONGEST_DRAFT + 1)
    ]
    return max(cycles, key=lambda cycle: cycle.speed_up)


@torch.no_grad()
def continuations(
    model: SelmForCausalLM, documents: Sequence[Document], end: int, longest: int = 64
) -> list[Document]:
    """The last reply of each conversation as the model writes it, greedily, ``reply`` true there
    alone; conversations that leave it no room are left out."""
    found = []
    context = model.config.max_position_embeddings
    for document in documents:
        start = len(document.ids)
        while start > 0 and not document.reply[start - 1]:
            start -= 1
        while start > 0 and document.reply[start - 1]:
            start -= 1
        if not 0 < start <= context - longest:
            continue
        prompt = torch.tensor([document.ids[:start]])
        made = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=longest, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        ids = made[0].tolist()
        found.append(Document(ids, [i >= start for i in range(len(ids))]))
    return found


@torch.no_grad()
def drafted(says: Says, documents: Sequence[Document], mask: Tensor) -> list[list[list[bool]]]:
    """[exits][documents][tokens of the reply]: whether a draft would have had the token."""
    rows: list[list[list[bool]]] = []
    for document in documents:
        ids = torch.tensor(document.ids)
        wanted = torch.tensor(document.reply)[1:]
        chosen = (says(ids[:-1])[1:, wanted] + mask).argmax(-1)
        rows.append((chosen == ids[1:][wanted]).tolist())
    return [list(of_exit) for of_exit in zip(*rows, strict=True)]


def measure(
    model: SelmForCausalLM, shape: Shape, documents: Sequence[Document], end: int, replies: int
) -> dict[str, Any]:
    """Of a model with exits: by exit, on replies as they stand in ``documents`` and on ``replies``
    of its own, with the best draft length and how much faster it would be."""
    says, exits, listed = model_says(model), model.config.exit_layers, model.config.draft_vocabulary
    sizes = sorted({n for n in (512, 1024, 2048, 4096) if n < len(listed)} | {len(listed)})
    mask = only(listed, shape.vocab)
    written = teacher_forced(says, exits, documents, mask, shape.context)
    own = continuations(model, documents[:replies], end)
    spoken = teacher_forced(says, exits, own, mask, shape.context)
    found: dict[str, Any] = {}
    for number, layer in enumerate(exits):
        cycles = {}
        for size in sizes:
            agreed = drafted(says, own, only(listed[:size], shape.vocab))[number]
            cycles[str(size)] = asdict(best_cycle(shape, layer, size, agreed))
        found[f"exit_{layer}"] = {
            "as_written": written[layer].shares(), "own_replies": spoken[layer].shares(),
            "by_shortlist": cycles,
        }  # fmt: skip
    return found


def told(figures: dict[str, Any]) -> str:
    """One exit's figures in a line."""
    best = max(figures["by_shortlist"].items(), key=lambda item: item[1]["speed_up"])
    size, cycle = best
    written, own = figures["as_written"], figures["own_replies"]
    return (
        f"as the model in {written['agreed']:.1%} of written replies and {own['agreed']:.1%} of its"
        f" own; with {size} tokens to draft from, {cycle['length']} at a time,"
        f" {cycle['tokens']:.2f} tokens a cycle, {cycle['speed_up']:.2f} times as fast"
    )
