"""What a model gets right, computed in torch: bits per byte, and generated questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from selm_export.chat import TURN_END, TURN_START, Conversation, Message
from selm_export.network import Attention, Layer, Network, rotate
from selm_export.vocabulary import encode, end_of_turn


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


class Decoder:
    """Feeds tokens one stretch after the other and keeps the keys and values."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.keys: list[Tensor | None] = [None] * network.shape.layers
        self.values: list[Tensor | None] = [None] * network.shape.layers
        self.length = 0

    def feed(self, ids: list[int]) -> Tensor:
        """Logits [vocab] after the last of the tokens."""
        network, end = self.network, self.length + len(ids)
        trunk = network.model
        cos, sin = network.cos[self.length : end], network.sin[self.length : end]
        x = trunk.embed_tokens(torch.tensor([ids]))
        for i, layer in enumerate(trunk.layers):
            assert isinstance(layer, Layer)
            x = x + self._attend(i, layer.self_attn, layer.input_layernorm(x), cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.length = end
        last: Tensor = trunk.norm(x[:, -1])
        return F.linear(last, trunk.embed_tokens.weight)[0]

    def _attend(self, i: int, part: Attention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(1, y.shape[1], heads, part.size).transpose(1, 2)

        q = rotate(split(part.q_proj(x), part.heads), cos, sin)
        k = rotate(split(part.k_proj(x), part.kv_heads), cos, sin)
        v = split(part.v_proj(x), part.kv_heads)
        before_k, before_v = self.keys[i], self.values[i]
        if before_k is not None and before_v is not None:
            k, v = torch.cat((before_k, k), 2), torch.cat((before_v, v), 2)
        self.keys[i], self.values[i] = k, v
        new, past = q.shape[2], k.shape[2]
        mask = torch.ones(new, past, dtype=torch.bool).tril(past - new)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out: Tensor = part.o_proj(y.transpose(1, 2).flatten(2))
        return out


def prompt_text(messages: Sequence[Message]) -> str:
    turns = "".join(f"{TURN_START}{m.role}\n{m.content}{TURN_END}\n" for m in messages)
    return f"{turns}{TURN_START}assistant\n"


def complete(
    network: Network, tokenizer: Tokenizer, messages: Sequence[Message], limit: int = 120
) -> str:
    """The greedy reply to a chat."""
    end = end_of_turn(tokenizer)
    decoder = Decoder(network)
    fed = tokenizer.encode(prompt_text(messages), add_special_tokens=False).ids
    said: list[int] = []
    with torch.no_grad():
        while len(said) < limit and decoder.length + len(fed) < network.shape.context:
            best = int(decoder.feed(fed).argmax())
            if best == end:
                break
            said.append(best)
            fed = [best]
    return str(tokenizer.decode(said))


def answerer(network: Network, tokenizer: Tokenizer) -> Callable[[str], str]:
    return lambda question: complete(network, tokenizer, [Message("user", question)])
