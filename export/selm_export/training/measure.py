"""Bits per byte of replies, in the middle of a run; the finished file has the report's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from selm_export.data.chat import Conversation
from selm_export.data.vocabulary import encode, end_of_turn
from selm_export.modeling.model import SelmForCausalLM


@dataclass
class Tally:
    """Of replies: nats, tokens, and bytes of text."""

    nats: float = 0.0
    tokens: int = 0
    size: int = 0

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.size)

    @property
    def nll(self) -> float:
        return self.nats / max(1, self.tokens)


@torch.no_grad()
def reply_bits(
    model: SelmForCausalLM, tokenizer: Tokenizer, conversations: Sequence[Conversation],
    expert: str | None = None,
) -> Tally:  # fmt: skip
    """The text of the replies counts; the end-of-turn token has no text, so it counts in neither
    the nats nor the bytes. Replies beyond the model's context do not count."""
    end, context, found = end_of_turn(tokenizer), model.config.max_position_embeddings, Tally()
    for conversation in conversations:
        ids, reply = encode(tokenizer, conversation)
        if len(ids) > context:
            continue
        row = torch.tensor([ids[:-1]], device=model.device)
        logits = model(row, use_cache=False, expert=expert).logits[0]
        nats = F.cross_entropy(logits.float().cpu(), torch.tensor(ids[1:]), reduction="none")
        counted = torch.tensor([r and i != end for i, r in zip(ids[1:], reply[1:], strict=True)])
        found.nats += float(nats[counted].sum())
        found.tokens += int(counted.sum())
        found.size += sum(
            len(m.content.encode()) for m in conversation.messages if m.role == "assistant"
        )
    return found
