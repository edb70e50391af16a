"""Does the far memory work? Multi-query associative recall (arXiv 2312.04927), from nothing.

A row tells pairs of a key and a value, then asks for the value of every key in another order. With
a window that cannot reach back to the pairs, only features carry them::

    python -m selm_export.recall --pairs 8 --kinds performer
    python -m selm_export.recall --pairs 8 --kinds window
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from selm_export.modeling.configuration import ATTENTION_KINDS, FEATURE_MAPS, SelmConfig
from selm_export.modeling.model import SelmForCausalLM


def rows(batch: int, pairs: int, words: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """ids [batch, 4 * pairs], and where the answers stand [2 * pairs]. Keys are the words below
    ``words``, no two alike in a row; values those above."""
    keys = torch.rand(batch, words, generator=generator).argsort(-1)[:, :pairs]
    values = torch.randint(words, 2 * words, (batch, pairs), generator=generator)
    told = torch.stack((keys, values), dim=-1).flatten(1)
    order = torch.rand(batch, pairs, generator=generator).argsort(-1)
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), dim=-1).flatten(1)
    return torch.cat((told, asked), dim=-1), torch.arange(2 * pairs + 1, 4 * pairs, 2)


def answers(model: SelmForCausalLM, ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [batch, answers, vocabulary] of the answers, and the answers."""
    logits = model(ids, use_cache=False).logits
    return logits[:, places - 1], ids[:, places]


@torch.no_grad()
def accuracy(model: SelmForCausalLM, pairs: int, words: int, count: int, seed: int) -> float:
    """Share of ``count`` rows' answers that are right."""
    generator = torch.Generator().manual_seed(seed)
    right = total = 0
    for _ in range(math.ceil(count / 100)):
        logits, truth = answers(model, *rows(100, pairs, words, generator))
        right += int((logits.argmax(-1) == truth).sum())
        total += truth.numel()
    return right / total


def learn(
    config: SelmConfig,
    *,
    pairs: int,
    words: int,
    steps: int,
    batch: int,
    rate: float,
    seconds: float,
) -> SelmForCausalLM:
    """Until the steps or the seconds are over; the rate rises for a twentieth, then falls."""
    torch.manual_seed(0)
    model = SelmForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.98))
    start = time.monotonic()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - start) / seconds)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate * min(done * 20 + 0.01, 0.5 * (1 + math.cos(math.pi * done)))
        logits, truth = answers(model, *rows(batch, pairs, words, generator))
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0:
            right = float((logits.argmax(-1) == truth).float().mean())
            click.echo(f"step {step:5}  loss {loss.item():.3f}  right {100 * right:5.1f} %")
    model.train(False)
    return model


@click.command()
@click.option("--pairs", default=8, show_default=True)
@click.option("--words", default=64, show_default=True, help="Keys to choose from, and values.")
@click.option("--kinds", type=click.Choice(ATTENTION_KINDS), default="performer", show_default=True)
@click.option("--feature-map", type=click.Choice(FEATURE_MAPS), default="favor+", show_default=True)
@click.option("--features", default=128, show_default=True)
@click.option("--window", default=8, show_default=True)
@click.option("--layers", default=2, show_default=True)
@click.option("--width", default=128, show_default=True)
@click.option("--steps", default=100_000, show_default=True)
@click.option("--seconds", default=180.0, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--rate", default=1e-3, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Folder for the trained model.")
def main(pairs: int, words: int, kinds: str, save: Path | None, **options: Any) -> None:
    """Trains a small model on associative recall and tells how much it recalls."""
    layers = options["layers"]
    config = SelmConfig(
        vocab_size=2 * words, hidden_size=options["width"], intermediate_size=2 * options["width"],
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=4 * pairs, attention_kinds=[kinds] * layers,
        window=options["window"], features=options["features"], qk_norm=True,
        feature_map=options["feature_map"],
    )  # fmt: skip
    model = learn(
        config, pairs=pairs, words=words, steps=options["steps"], batch=options["batch"],
        rate=options["rate"], seconds=options["seconds"],
    )  # fmt: skip
    if save is not None:
        model.save_pretrained(save)
    right = accuracy(model, pairs, words, 1000, seed=2)
    click.echo(f"{kinds}, window {config.window}, {pairs} pairs: {100 * right:.1f} % of 1000 rows")


if __name__ == "__main__":
    main()
