"""Text, models and jobs for tests of pruning, low rank and deltas."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from selm_export import checkpoint
from selm_export.compress.structure import parts, place
from selm_export.data import dataset, generate_copy, generate_notes, generate_numbers
from selm_export.data.packing import Document
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages.job import Job

from support.bundled import START

MAKERS = (generate_notes, generate_numbers, generate_copy)
MIXED = ["performer", "softmax", "window"]
NAMES = ["general", "medical"]
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "performer, gates, norms, exits": {
        "attention_kinds": MIXED, "head_gate": True, "qk_norm": True, "sinks": 2,
        "exit_layers": [1, 2],
    },
    "untied, biases, hedgehog": {
        "attention_kinds": MIXED, "feature_map": "hedgehog", "attention_bias": True,
        "tie_word_embeddings": False, "exit_layers": [2],
    },
    "factors": {
        "ranks": {"mlp.down_proj": 12, "layers.1.mlp.up_proj": 8, "self_attn.o_proj": 8},
    },
    "delta experts": {
        "expert_names": NAMES, "expert_rank": 4, "trunk_layers": 1, "exit_layers": [1],
        "attention_kinds": MIXED, "head_gate": True,
    },
    "full experts": {
        "expert_names": NAMES, "expert_kind": "full", "trunk_layers": 1,
        "attention_kinds": ["softmax", "performer", "window"], "exit_layers": [1],
    },
}  # fmt: skip


def random_documents(count: int, vocabulary: int, seed: int = 0) -> list[Document]:
    """Of several lengths; the second half of each is a reply."""
    r = random.Random(seed)
    lengths = [r.randrange(6, 40) for _ in range(count)]
    return [
        Document([r.randrange(vocabulary) for _ in range(n)], [i >= n // 2 for i in range(n)])
        for n in lengths
    ]


@functools.cache
def bundled() -> tuple[SelmForCausalLM, Any]:
    """The model that ships, and its tokenizer."""
    found = checkpoint.load(START)
    return found.model, found.tokenizer


def conversations(count: int, seed: int) -> list[Any]:
    """Of kinds that the bundled model was trained on."""
    return [MAKERS[i % 3].conversation(random.Random(f"{seed}:{i}")) for i in range(count)]


def told_documents(count: int, seed: int) -> list[Document]:
    _, tokenizer = bundled()
    return [dataset.document(tokenizer, c) for c in conversations(count, seed)]


def all_logits(model: SelmForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    """Of every expert, or of the model; and of every exit."""
    with torch.no_grad():
        names: list[str | None] = [*model.config.expert_names] or [None]
        exits = bool(model.config.exit_layers)
        outs = [model(ids, expert=name, output_exits=exits) for name in names]
        return [out.logits for out in outs] + ([outs[0].exit_logits] if exits else [])


@torch.no_grad()
def silence(model: SelmForCausalLM, prefix: str, part: str, columns: torch.Tensor) -> None:
    """Zeros these columns of a projection: what comes in there is not heard."""
    for name, weight in model.state_dict().items():
        before, rest = place(name)
        if before == prefix and rest.startswith(f"{part}."):
            leaf = rest.removeprefix(f"{part}.")
            if leaf in ("weight", "lora_a.weight", "delta_a"):
                weight[..., columns] = 0.0


@torch.no_grad()
def mute(model: SelmForCausalLM, channels: torch.Tensor) -> None:
    """Zeros these channels of the stream, in all that writes into it."""
    for name, weight in model.state_dict().items():
        rest = place(name)[1]
        if name == "model.embed_tokens.weight":
            weight[:, channels] = 0.0
        if rest.startswith(("self_attn.o_proj.", "mlp.down_proj.")):
            leaf = rest.split(".", 2)[2]
            if leaf in ("weight", "lora_b.weight", "delta_b"):
                weight[..., channels, :] = 0.0


@torch.no_grad()
def hollow(model: SelmForCausalLM, number: int) -> None:
    """A layer that adds nothing to the stream."""
    for part in parts(model):
        if part.number == number:
            for name, weight in part.layer.state_dict().items():
                if name.startswith(("self_attn.o_proj.", "mlp.down_proj.")):
                    weight.zero_()


def some_job(folder: Path, *inputs: Path, name: str = "stage") -> Job:
    """With data that the tokenizer of tests knows."""
    data, output = folder / "data", folder / f"{name}-output"
    data.mkdir(exist_ok=True)
    output.mkdir()
    for file, seed in (("train", 1), ("held-out", 2)):
        dataset.write_conversations(data / f"{file}.jsonl", conversations(8, seed))
    return Job(name, inputs, output, data, 3, lambda _: None)
