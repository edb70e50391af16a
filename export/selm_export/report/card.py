"""The model card and the picture of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selm_export.recipe import Recipe

LICENSES = {
    "talk": "SELM talk (written for this project): Apache-2.0",
    "topical": "Topical-Chat (alexa/Topical-Chat): CDLA-Sharing-1.0",
    "gsm8k": "GSM8K train (openai/grade-school-math): MIT",
    "medquad": "MedQuAD (abachaa/MedQuAD): CC BY 4.0; shortened to leading sentences",
    "pubmedqa": "PubMedQA (pubmedqa/pubmedqa): MIT; shortened to leading sentences",
    "boolq": "BoolQ questions: CC BY-SA 3.0",
    "taskmaster": "Taskmaster-4 (google-research-datasets/Taskmaster): CC BY 4.0",
    "arithmetic": "made by the recipe",
    "notes": "made by the recipe",
    "identity": "made by the recipe",
    "copy": "made by the recipe",
}

LIMITS = """\
- It is tiny. It makes up facts, names, dates and numbers with a sure voice. Check what matters.
- Medical replies are general sentences, not advice. It cannot see an emergency. Ask a doctor.
- It knows English only, little of the world, and nothing of the present.
- Long multiplication, long sums and word problems with several steps often go wrong.
- It follows notes in the wording it was trained on (`N: ...` lines before the question); long or
  twisted notes are misread, and some questions that no note answers get an answer all the same.
- Conversations in its training are short; after several turns it may lose the thread.
- It was not trained to refuse harmful requests, and it has no filter.
"""


def draw_curve(log: Path, picture: Path) -> None:
    """Training loss (smoothed) and held-out bits per byte against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens: list[float] = []
    losses: list[float] = []
    held_out: list[tuple[float, float]] = []
    smooth = 0.0
    for text in log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "loss" in line:
            smooth = line["loss"] if not losses else 0.95 * smooth + 0.05 * line["loss"]
            tokens.append(line["tokens"] / 1e6)
            losses.append(smooth)
        if "bits_per_byte" in line and tokens:
            held_out.append((tokens[-1], line["bits_per_byte"]))
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=90)
    axes.plot(tokens, losses, color="#4477aa", label="training loss, nats per token")
    axes.set_xlabel("million tokens")
    axes.set_ylabel("nats per token")
    right = axes.twinx()
    right.plot(*zip(*held_out, strict=True), "o-", color="#cc6677", markersize=3,
               label="held-out talk, bits per byte")  # fmt: skip
    right.set_ylabel("bits per byte")
    figure.legend(loc="upper right", bbox_to_anchor=(0.88, 0.88), frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _phases(recipe: Recipe) -> list[str]:
    lines = []
    began = 0.0
    for phase in recipe.settings.phases:
        total = sum(phase.shares.values())
        shares = ", ".join(f"{n} {100 * s / total:.0f} %" for n, s in phase.shares.items())
        loss = (
            "replies only"
            if phase.user_weight == 0
            else (f"replies, other tokens weigh {phase.user_weight}")
        )
        lines.append(f"| {began:.0%} to {phase.until:.0%} | {shares} | {loss} |")
        began = phase.until
    return lines


def write_card(recipe: Recipe, metrics: dict[str, Any], size: int, counts: dict[str, int]) -> str:
    shape, talk = recipe.settings.shape, metrics["held_out_talk"]
    notes, numbers, training = metrics["notes"], metrics["arithmetic"], metrics["training"]
    used = {s for phase in recipe.settings.phases for s in phase.shares}
    parts = [
        f"# {recipe.title}",
        f"The model that comes with SELM Edge: {metrics['parameters'] / 1e6:.1f} million"
        f" parameters, {size / 1e6:.1f} MB as Q8_0, made by `selm-export run"
        " export/selm_export/recipes/bundled.toml`. It answers at once on any machine; it is a"
        " small companion and a test bed, not a source of knowledge. Licence: Apache-2.0.",
        "## How good it is",
        "All figures are of the shipped file (quantised weights), greedy replies.",
        "| measure | value |\n|---|---|\n"
        f"| bits per byte of held-out talk replies ({talk['conversations']} conversations,"
        f" {talk['bytes']:,} bytes) | {talk['bits_per_byte']:.3f} |\n"
        f"| held-out *answer from notes*: answered exactly ({notes['questions']} questions, names"
        f" and most values kept out of training) | {_percent(notes['answered_exactly'])} |\n"
        f"| questions that no note answers: declined ({notes['questions']}) |"
        f" {_percent(notes['declined'])} |\n"
        + "\n".join(
            f"| arithmetic, {name} ({numbers['questions']} questions) | {_percent(value)} |"
            for name, value in numbers["right"].items()
        ),
        "Answered exactly: the value stands in the reply word for word and no other note's value"
        " does. Arithmetic: the last number of the reply is right; sums of one or two digits may"
        " have been practised. Bits per byte by file: "
        + ", ".join(f"{k.split('/')[-1]} {v}" for k, v in talk["by_file"].items())
        + ".",
        "## What it says",
        "\n\n".join(
            "> **User:** " + s["user"].replace("\n", "  \n> ") + f"  \n> **SELM:** {s['assistant']}"
            for s in metrics["samples"]
        ),
        "## What it is made of",
        f"Architecture `qwen2`: {shape.layers} layers, {shape.width} wide, {shape.heads} heads,"
        f" {shape.kv_heads} key-value heads, feed-forward {shape.feed_forward}, tied head, context"
        f" {shape.context}; byte-level BPE of {shape.vocab} tokens, one digit at a time; ChatML."
        " Notes stand in the user's turn as lines `N: ...` before the question.",
        "| data | conversations |\n|---|---|\n"
        + "\n".join(
            f"| {LICENSES[s]} | {counts[s]:,} |"
            if s in counts
            else f"| {s}: {LICENSES[s]} | no end |"
            for s in LICENSES
            if s in used
        ),
        f"{counts['held out']} talk conversations were held out, whole groups of near-identical"
        " ones together, decided by a hash of their content.",
        "## How it was trained",
        f"{training['steps']:,} steps, {training['tokens'] / 1e6:.1f} million tokens,"
        f" {training['seconds'] / 60:.0f} minutes on two shared CPU cores in float32; Muon for the"
        " matrices inside the layers, AdamW for the rest, warmup, constant rate, linear decay over"
        f" the last {recipe.settings.decay_share:.0%}; the running mean of the weights is kept.",
        *([recipe.remarks] if recipe.remarks else []),
        "| part of the run | shares of tokens | loss on |\n|---|---|---|\n"
        + "\n".join(_phases(recipe)),
        f"![Loss and held-out bits per byte]({recipe.name}-loss.png)",
        "## Limits",
        LIMITS.rstrip(),
    ]
    return "\n\n".join(parts) + "\n"
