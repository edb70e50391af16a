"""Random weights of a known shape as a Hugging Face folder: what ``--from`` is tried on.

bf16 in shards with an index, a Qwen2 configuration, and a tokenizer with ChatML; one shard in
memory at a time.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import Qwen2Config

from selm_export import pretokenizers, tokenizer_config
from selm_export.data.chat import CHAT_TEMPLATE
from selm_export.gguf_vocabulary import read_vocabulary
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.file import empty_model
from selm_export.random_model import CONTROL, Shape, synthetic_vocabulary

SHARD = 400_000_000  # bytes
EPSILON, BASE = 1e-6, 1e6


def write_folder(
    folder: Path, shape: Shape, *, vocabulary: Path | None = None, seed: int = 0, shard: int = SHARD
) -> None:
    """``vocabulary``: a GGUF file to take the tokenizer from. Raises ValueError for a shape that is
    no Qwen2 model's, OSError where the disk is full."""
    if shape.far or shape.experts:
        raise ValueError("only Qwen2's shapes can be written as a folder")
    tokenizer = _synthetic(shape.vocabulary)
    if vocabulary is not None:
        tokenizer, _ = read_vocabulary(gguf.GGUFReader(vocabulary), vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, shape, torch.Generator().manual_seed(seed), shard)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config.write(folder, _ends(tokenizer), tokenizer)
    config = Qwen2Config(  # type: ignore[no-untyped-call]
        architectures=["Qwen2ForCausalLM"], vocab_size=shape.vocabulary, hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context, rms_norm_eps=EPSILON, rope_theta=BASE,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)


def _ends(tokenizer: Tokenizer) -> tokenizer_config.TokenizerConfig:
    text, _, turn = (tokenizer.token_to_id(token) for token in CONTROL)
    template = CHAT_TEMPLATE
    return tokenizer_config.TokenizerConfig(template, eos=turn, eot=turn, bos=None, pad=text)


def _synthetic(size: int) -> Tokenizer:
    tokens, types, merges = synthetic_vocabulary(size)
    plain = {token: i for i, token in enumerate(tokens) if types[i] != gguf.TokenType.UNUSED}
    pairs = [(a, b) for a, b in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(plain, pairs))
    tokenizer.pre_tokenizer = pretokenizers.build(pretokenizers.CUTS["qwen2"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def _tensor(name: str, size: torch.Size, generator: torch.Generator) -> Tensor:
    """Norms near 1, biases near 0, matrices that keep the size of what they multiply."""
    value = torch.randn(size, generator=generator)
    if len(size) == 1:
        return (0.1 * value + (0.0 if name.endswith(".bias") else 1.0)).bfloat16()
    spread = 0.05 if "embed_tokens" in name else float(size[1] ** -0.5)
    return (spread * value).bfloat16()


def _write_weights(folder: Path, shape: Shape, generator: torch.Generator, shard: int) -> None:
    config = SelmConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_size, attention_bias=True,
    )  # fmt: skip
    # Without random values nothing of it is in memory yet: here it is but names and shapes.
    sizes = {name: value.shape for name, value in empty_model(config).state_dict().items()}
    del sizes["lm_head.weight"]  # tied
    shards: list[list[str]] = [[]]
    full = 0
    for name, size in sizes.items():
        if full and full + 2 * size.numel() > shard:
            shards.append([])
            full = 0
        shards[-1].append(name)
        full += 2 * size.numel()
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _tensor(name, sizes[name], generator) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(names, file)
    total = 2 * sum(size.numel() for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
