"""Does the far memory work? Multi-query associative recall (arXiv 2312.04927), from nothing.

A row tells pairs of a key and a value, then asks for the value of every key in another order. With
a window that cannot reach back to the pairs, only features carry them::

    python -m selm_export.recall --kinds performer --write recall.gguf
    python -m selm_export.recall --kinds window

``docs/recall.md`` has the figures. Whatever the kind, the first layer is a window: all it has to
find is the word before. The others are softmax at first, over rows that begin with few pairs and
grow: what to look for is found in no time where all is seen. Then they turn into the kind asked
for and go on learning, at full length (arXiv 2103.13076 turns softmax models into linear ones that
way).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from selm_export import pretokenizers
from selm_export.data.chat import SPECIAL_TOKENS
from selm_export.gguf_file import Label
from selm_export.modeling.configuration import ATTENTION_KINDS, FEATURE_MAPS, SelmConfig
from selm_export.modeling.file import write_model
from selm_export.modeling.model import SelmForCausalLM

WARM_UP = 50  # steps
FEW = 4  # pairs, or fewer, in the first rows
MOST = 0.95  # right answers, on average of late, before the rows grow


class Rows(NamedTuple):
    """``ids`` [batch, 4 * pairs]; ``places`` [pairs], where the answers stand; ``back``
    [batch, pairs], how many tokens before its question each answer was told."""

    ids: Tensor
    places: Tensor
    back: Tensor


def rows(batch: int, pairs: int, words: int, generator: torch.Generator) -> Rows:
    """Keys are the words below ``words``, no two alike in a row; values those above."""
    keys = torch.rand(batch, words, generator=generator).argsort(-1)[:, :pairs]
    values = torch.randint(words, 2 * words, (batch, pairs), generator=generator)
    told = torch.stack((keys, values), dim=-1).flatten(1)
    order = torch.rand(batch, pairs, generator=generator).argsort(-1)
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), dim=-1).flatten(1)
    places = torch.arange(2 * pairs + 1, 4 * pairs, 2)
    return Rows(torch.cat((told, asked), dim=-1), places, places - 1 - (2 * order + 1))


def vocabulary(words: int) -> Tokenizer:
    """A character for each key and value (printable ASCII while it lasts), then the tokens that
    every file names."""
    characters = sorted(ByteLevel.alphabet())[: 2 * words]
    ids = {token: i for i, token in enumerate((*characters, *SPECIAL_TOKENS))}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pretokenizers.build(pretokenizers.CUTS["qwen2"])
    return tokenizer


def answers(model: SelmForCausalLM, asked: Rows) -> tuple[Tensor, Tensor]:
    """Logits [batch, answers, vocabulary] of the answers, and the answers."""
    logits = model(asked.ids, use_cache=False).logits
    return logits[:, asked.places - 1], asked.ids[:, asked.places]


class Recalled(NamedTuple):
    """Shares of the answers that were right: of all, and of those told further back than layers
    times window, where windows on windows do not reach (None: no answer was)."""

    all: float
    far: float | None


@torch.no_grad()
def recalled(model: SelmForCausalLM, pairs: int, words: int, count: int, seed: int) -> Recalled:
    """Of ``count`` rows, a multiple of 100."""
    generator = torch.Generator().manual_seed(seed)
    reach = model.config.num_hidden_layers * model.config.window
    hits, beyond = [], []
    for _ in range(count // 100):
        asked = rows(100, pairs, words, generator)
        logits, truth = answers(model, asked)
        hits.append(logits.argmax(-1) == truth)
        beyond.append(asked.back > reach)
    right, far = torch.cat(hits), torch.cat(beyond)
    share = float(right[far].float().mean()) if far.any() else None
    return Recalled(float(right.float().mean()), share)


def lengths(pairs: int) -> list[int]:
    """How many pairs the rows have, one after the other: 32 -> 4, 8, 16, 32."""
    found = [pairs]
    while found[0] > FEW:
        found.insert(0, (found[0] + 1) // 2)
    return found


@dataclass(frozen=True)
class Lesson:
    """``batch`` counts answers, so that rows of any length weigh the same in a step."""

    pairs: int
    words: int
    steps: int
    batch: int = 512
    rate: float = 3e-3
    seed: int = 0


def practise(
    model: SelmForCausalLM, lesson: Lesson, generator: torch.Generator,
    *, steps: int, left: list[int], until: float = 1.0,
) -> int:  # fmt: skip
    """Rows of as many pairs as ``left`` says, of the next length once more than ``until`` of the
    answers were right of late. Returns the steps taken, ``steps`` at most; the rate rises at
    first, then falls to nothing."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=lesson.rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    right = 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lesson.rate * min((step + 1) / WARM_UP, 1 - step / steps)
        asked = rows(max(1, lesson.batch // left[0]), left[0], lesson.words, generator)
        logits, truth = answers(model, asked)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        right += 0.1 * (float((logits.argmax(-1) == truth).float().mean()) - right)
        if step % 50 == 0 or right > until:
            click.echo(f"step {step:4}  {left[0]} pairs  loss {loss.item():.3f}  {right:.1%} right")
        if right > until:
            left, right = left[1:], 0.0
            if not left:
                return step + 1
    return steps


def learn(config: SelmConfig, lesson: Lesson) -> SelmForCausalLM:
    """First with softmax in place of the kinds of ``config`` after the first layer, then as it
    says, with the weights that both have."""
    torch.manual_seed(lesson.seed)
    generator = torch.Generator().manual_seed(lesson.seed + 1)
    first, *others = config.attention_kinds
    seeing = config.to_dict() | {"attention_kinds": [first, *["softmax"] * len(others)]}
    teacher = SelmForCausalLM(SelmConfig(**seeing))
    taken = practise(
        teacher, lesson, generator,
        steps=lesson.steps // 2, left=lengths(lesson.pairs), until=MOST,
    )  # fmt: skip
    click.echo(f"From here on, the layers are {', '.join(config.attention_kinds)}")
    model = SelmForCausalLM(config)
    model.load_state_dict(teacher.state_dict(), strict=False)  # the features are its own
    practise(model, lesson, generator, steps=lesson.steps - taken, left=[lesson.pairs])
    model.train(False)
    return model


@click.command()
@click.option("--pairs", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--words",
    type=click.IntRange(1, 128),
    default=64,
    show_default=True,
    help="Keys to choose from, and values.",
)
@click.option(
    "--kinds",
    type=click.Choice(ATTENTION_KINDS),
    default="performer",
    show_default=True,
    help="Of every layer but the first, which is a window.",
)
@click.option("--feature-map", type=click.Choice(FEATURE_MAPS), default="favor+", show_default=True)
@click.option("--features", default=256, show_default=True)
@click.option("--clamp", default=2.4, show_default=True, help="Of queries and keys in features.")
@click.option("--window", default=8, show_default=True)
@click.option("--layers", default=2, show_default=True)
@click.option("--width", default=64, show_default=True)
@click.option("--steps", default=800, show_default=True)
@click.option("--batch", default=512, show_default=True, help="Answers in a step.")
@click.option("--rate", default=3e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Folder for the trained model.")
@click.option("--write", type=click.Path(path_type=Path), help="GGUF file for the trained model.")
def main(
    pairs: int, words: int, kinds: str, save: Path | None, write: Path | None, **options: Any
) -> None:  # fmt: skip
    """Trains a small model on associative recall and tells how much it recalls."""
    if pairs > words:
        raise click.BadParameter(f"{pairs} pairs need as many keys; --words is {words}")
    layers, width, tokenizer = options["layers"], options["width"], vocabulary(words)
    config = SelmConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=4 * pairs, attention_kinds=["window", *[kinds] * (layers - 1)],
        window=options["window"], features=options["features"], qk_norm=True,
        feature_map=options["feature_map"], clamp=options["clamp"],
        rope_theta=1e6,  # slow turns: a word is to match itself at any distance
        initializer_range=0.01,  # small: what a layer adds must not drown the word itself
    )  # fmt: skip
    lesson = Lesson(
        pairs, words, options["steps"], options["batch"], options["rate"], options["seed"]
    )
    start, processor = time.monotonic(), time.process_time()
    model = learn(config, lesson)
    seconds, processor = time.monotonic() - start, time.process_time() - processor
    if save is not None:
        model.save_pretrained(save)
    if write is not None:
        label = Label("SELM recall", description=f"Associative recall of {pairs} pairs")
        write_model(write, model, tokenizer, label)
    right = recalled(model, pairs, words, 1000, seed=-1)
    far = f", {right.far:.1%} of what was told out of reach" if right.far is not None else ""
    click.echo(
        f"{kinds}, window {config.window}, {pairs} pairs: {right.all:.1%} of 1000 rows{far}; "
        f"{lesson.steps} steps in {seconds:.0f} s ({processor:.0f} s of processor time)"
    )


if __name__ == "__main__":
    main()
