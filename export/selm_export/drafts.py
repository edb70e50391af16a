"""What exits are worth: how often they say what the model says in the end, and what drafting
through them saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from selm_export.data.packing import Document
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM

LONGEST_DRAFT = 8
LEAST = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)
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


@dataclass(frozen=True)
class Guess:
    """What an exit would draft in place of a token of a reply: whether it is that token, and the
    probability that it gave it."""

    right: bool
    probability: float


@dataclass(frozen=True)
class Rule:
    """A draft ends at ``longest`` tokens, or where the product of their probabilities would fall
    below ``least``."""

    longest: int
    least: float


@dataclass(frozen=True)
class Cycle:
    """A draft and its verification, on average: the tokens gained, drafted and looked at (one that
    was too unlikely ended the draft)."""

    gained: float
    drafted: float
    looked_at: float


def play(replies: Sequence[Sequence[Guess]], rule: Rule) -> Cycle:
    """Greedy decoding of replies whose tokens are known. Exact up to a draft's first wrong token;
    what would be drafted after it is taken to be as likely as what is drafted there."""
    cycles = drafted = looked = 0
    for reply in replies:
        at = 0
        while at < len(reply):
            likely, length, accepted = 1.0, 0, 0
            for guess in reply[at : at + rule.longest]:
                looked += 1
                likely *= guess.probability
                if likely < rule.least:
                    break
                accepted += guess.right and accepted == length
                length += 1
            drafted += length
            at += accepted + 1  # the model itself says the next one
            cycles += 1
    cycles = max(1, cycles)
    return Cycle(sum(len(reply) for reply in replies) / cycles, drafted / cycles, looked / cycles)


def cost_of(config: SelmConfig, layer: int, shortlist: int, cycle: Cycle) -> float:
    """In multiplications, over those of a token decoded plainly. The layers up to the exit run
    token by token, those above once for all."""
    width, size = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads * size, config.num_key_value_heads * size
    one = 2 * width * (heads + kv_heads) + 3 * width * config.intermediate_size
    head, layers = config.vocab_size * width, config.num_hidden_layers
    draft = (1 + cycle.drafted) * layer * one + cycle.looked_at * shortlist * width
    verify = (1 + VERIFY_EACH * cycle.drafted) * ((layers - layer) * one + head)
    return (draft + verify) / (layers * one + head)


def best_rule(
    config: SelmConfig, layer: int, shortlist: int, replies: Sequence[Sequence[Guess]],
    least: Sequence[float] = LEAST,
) -> dict[str, float]:  # fmt: skip
    """The rule that would be fastest, and what comes of it."""
    found = []
    for rule in (Rule(n, p) for n in range(1, LONGEST_DRAFT + 1) for p in least):
        cycle = play(replies, rule)
        cost = cost_of(config, layer, shortlist, cycle)
        found.append(asdict(rule) | asdict(cycle) | {"cost": cost, "speed_up": cycle.gained / cost})
    return max(found, key=lambda each: each["speed_up"])


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
def guesses(says: Says, documents: Sequence[Document], mask: Tensor) -> list[list[list[Guess]]]:
    """[exits][documents][tokens of the reply]."""
    rows: list[list[list[Guess]]] = []
    for document in documents:
        ids = torch.tensor(document.ids)
        wanted = torch.tensor(document.reply)[1:]
        likely, chosen = (says(ids[:-1])[1:, wanted] + mask).softmax(-1).max(-1)
        right = chosen == ids[1:][wanted]
        rows.append(
            [
                [Guess(*pair) for pair in zip(*each, strict=True)]
                for each in zip(right.tolist(), likely.tolist(), strict=True)
            ]
        )
    return [list(of_exit) for of_exit in zip(*rows, strict=True)]


def measure(
    model: SelmForCausalLM, documents: Sequence[Document], end: int, replies: int
) -> dict[str, Any]:
    """Of a model with exits: by exit, on replies as they stand in ``documents`` and on ``replies``
    of its own, with the best draft length and how much faster it would be."""
    config = model.config
    says, exits, listed = model_says(model), config.exit_layers, config.draft_vocabulary
    context = config.max_position_embeddings
    sizes = sorted({n for n in (512, 1024, 2048, 4096) if n < len(listed)} | {len(listed)})
    mask = only(listed, config.vocab_size)
    written = teacher_forced(says, exits, documents, mask, context)
    own = continuations(model, documents[:replies], end)
    spoken = teacher_forced(says, exits, own, mask, context)
    found: dict[str, Any] = {}
    for number, layer in enumerate(exits):
        rules = {}
        for size in sizes:
            guessed = guesses(says, own, only(listed[:size], config.vocab_size))[number]
            rules[str(size)] = {
                "of_any_probability": best_rule(config, layer, size, guessed, [0.0]),
                "likely": best_rule(config, layer, size, guessed),
            }
        found[f"exit_{layer}"] = {
            "as_written": written[layer].shares(), "own_replies": spoken[layer].shares(),
            "by_shortlist": rules,
        }  # fmt: skip
    return found


def told(figures: dict[str, Any]) -> str:
    """One exit's figures in a line."""
    rules = figures["by_shortlist"]
    size = max(rules, key=lambda size: rules[size]["likely"]["speed_up"])
    best = rules[size]["likely"]
    written, own = figures["as_written"], figures["own_replies"]
    return (
        f"as the model in {written['agreed']:.1%} of written replies and {own['agreed']:.1%} of its"
        f" own; with {size} tokens to draft from, at most {best['longest']} and while likelier than"
        f" {best['least']}, {best['gained']:.2f} tokens a cycle, {best['speed_up']:.2f} times as"
        " fast"
    )
