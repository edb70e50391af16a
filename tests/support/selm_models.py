"""Small random SELM models, for tests of their files and of the core."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from selm_export.data import generate_numbers
from selm_export.data.vocabulary import train_vocabulary
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM

VOCABULARY = 400
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "window": 5, "features": 32,
    "initializer_range": 0.2,
}  # fmt: skip


@functools.cache
def some_tokenizer() -> Any:
    texts = [
        m.content
        for i in range(200)
        for m in generate_numbers.conversation(random.Random(i)).messages
    ]
    return train_vocabulary(texts, VOCABULARY)


def some_model(**changes: Any) -> SelmForCausalLM:
    torch.manual_seed(2)
    model = SelmForCausalLM(SelmConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "delta" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model
