"""Bits per byte of a network in training, computed in torch; the finished file has
:mod:`selm_export.report.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from selm_export.data.chat import Conversation
from selm_export.data.vocabulary import encode, end_of_turn
from selm_export.network import Network


@dataclass
class Tally:
    nats: float = 0.0
    tokens: int = 0
    size: int = 0  # bytes of reply text

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.size)


def reply_bits(
    network: Network, tokenizer: Tokenizer, conversations: Sequence[Conversation]
) -> dict[str, Tally]:
    """By source. The text of the replies counts; the end-of-turn token has no text, so it counts
    in neither the nats nor the bytes."""
    end = end_of_turn(tokenizer)
    found: dict[str, Tally] = {}
    for conversation in conversations:
        ids, reply = encode(tokenizer, conversation)
        ids, reply = ids[: network.shape.context], reply[: network.shape.context]
        with torch.no_grad():
            logits = network(torch.tensor([ids[:-1]]))[0]
            nats = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        counted = torch.tensor([r and i != end for i, r in zip(ids[1:], reply[1:], strict=True)])
        tally = found.setdefault(conversation.source, Tally())
        tally.nats += float(nats[counted].sum())
        tally.tokens += int(counted.sum())
        tally.size += sum(
            len(m.content.encode()) for m in conversation.messages if m.role == "assistant"
        )
    return found


def total(tallies: dict[str, Tally]) -> Tally:
    values = tallies.values()
    return Tally(
        sum(t.nats for t in values), sum(t.tokens for t in values), sum(t.size for t in values)
    )
