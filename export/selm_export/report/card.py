"""The model card and the picture of the loss."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.modeling.configuration import SelmConfig
from selm_export.report.form import Stage, figure, quality_of

LICENSES = {
    "talk": "SELM talk (written for this project): Apache-2.0",
    "topical": "Topical-Chat (alexa/Topical-Chat): CDLA-Sharing-1.0",
    "gsm8k": "GSM8K train (openai/grade-school-math): MIT",
    "medquad": "MedQuAD (abachaa/MedQuAD): CC BY 4.0; shortened to leading sentences",
    "pubmedqa": "PubMedQA (pubmedqa/pubmedqa): MIT; shortened to leading sentences",
    "boolq": "BoolQ questions: CC BY-SA 3.0",
    "taskmaster": "Taskmaster-4 (google-research-datasets/Taskmaster): CC BY 4.0",
    "arithmetic": "arithmetic: made by the recipe",
    "notes": "notes: made by the recipe",
    "identity": "identity: made by the recipe",
    "copy": "copy: made by the recipe",
    "reading": "reading: made by the recipe of the conversations' own passages",
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


def _made(lines: Sequence[Stage]) -> str:
    """What each step did, as the run's own report has it."""
    rows = [
        "| step | stage | tokens | bits per byte | mean KLD | time |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        figures = line.figures
        kld = figure(quality_of(figures).get("mean_kld"))
        bits, tokens = figure(figures.get("bits_per_byte")), figure(figures.get("tokens"))
        rows.append(
            f"| {line.name} | {line.kind} | {_number(tokens.value / 1e6, 2, ' M')} |"
            f" {_number(bits.value, 3)} | {_number(kld.value, 4)} |"
            f" {_number(line.seconds.value / 60, 1, ' min')} |"
        )
    return "\n".join(rows)


def _number(value: float, digits: int, unit: str = "") -> str:
    return f"{value:.{digits}f}{unit}" if math.isfinite(value) else ""


def _routing(told: Mapping[str, Any]) -> str:
    """Nats per reply token of the ensemble and of each expert, and who speaks."""
    names = list(told["experts"])
    rows = ["| domain | ensemble | " + " | ".join(f"{n} alone" for n in names) + " | speaks most |",
            "|---" * (len(names) + 3) + "|"]  # fmt: skip
    for domain, of in told["domains"].items():
        own, route = of["by_expert"], of["route"]
        alone = " | ".join(_number(figure(own.get(n)).value, 3) for n in names)
        speaks = max(names, key=lambda n: route.get(n, 0.0))
        rows.append(f"| {domain} | {_number(figure(of['nll']).value, 3)} | {alone} | {speaks} |")
    return "\n".join(rows)


@dataclass(frozen=True)
class Facts:
    """What a card tells of: ``config`` of the model, ``metrics`` of the file (metrics.py),
    ``lines`` of the run's report, ``counts`` of conversations by source."""

    title: str
    recipe: str
    picture: str
    size: int
    config: SelmConfig
    metrics: Mapping[str, Any]
    lines: Sequence[Stage]
    counts: Mapping[str, int]
    remarks: str = ""


def _figures(facts: Facts) -> str:
    metrics = facts.metrics
    talk, notes, numbers = metrics["held_out_talk"], metrics["notes"], metrics["arithmetic"]
    rows = [
        "| measure | value |", "|---|---|",
        f"| bits per byte of held-out talk replies ({talk['conversations']} conversations,"
        f" {talk['bytes']:,} bytes) | {talk['bits_per_byte']:.3f} |",
        f"| held-out *answer from notes*: answered exactly ({notes['questions']} questions, names"
        f" and most values kept out of training) | {_percent(notes['answered_exactly'])} |",
        f"| questions that no note answers: declined ({notes['questions']}) |"
        f" {_percent(notes['declined'])} |",
    ]  # fmt: skip
    rows += [
        f"| arithmetic, {name} ({numbers['questions']} questions) | {_percent(value)} |"
        for name, value in numbers["right"].items()
    ]
    return "\n".join(rows)


def _shape(facts: Facts) -> str:
    config = facts.config
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(config.attention_kinds).items())
    text = (
        f"{config.num_hidden_layers} layers ({kinds}), {config.hidden_size} wide,"
        f" {config.num_attention_heads} heads, {config.num_key_value_heads} key-value heads,"
        f" feed-forward {config.intermediate_size}, context {config.max_position_embeddings};"
        f" byte-level BPE of {config.vocab_size} tokens, one digit at a time; ChatML. Notes stand"
        " in the user's turn as lines `N: ...` before the question."
    )
    if config.expert_names:
        text += (
            f" The experts {', '.join(config.expert_names)} share the first {config.trunk_layers}"
            " layers; heads on the trunk decide token by token who speaks."
        )
    if config.exit_layers:
        text += f" It may draft for itself after layer {', '.join(map(str, config.exit_layers))}."
    return text


def write_card(facts: Facts) -> str:
    metrics = facts.metrics
    known = [(LICENSES[s], f"{facts.counts[s]:,}") for s in LICENSES if s in facts.counts]
    drawn = [
        (LICENSES[s], "no end") for s in ("arithmetic", "notes", "copy", "identity", "reading")
    ]
    by_file = metrics["held_out_talk"]["by_file"]
    parts = [
        f"# {facts.title}",
        f"A model that comes with SELM Edge: {metrics['parameters'] / 1e6:.1f} million"
        f" parameters, {facts.size / 1e6:.1f} MB, made by `selm-export run {facts.recipe}`. It"
        " answers at once on any machine; it is a small companion and a test bed, not a source of"
        " knowledge. Licence: Apache-2.0.",
        "## How good it is",
        "All figures are of the shipped file (quantised weights), greedy replies.",
        _figures(facts),
        "Answered exactly: the value stands in the reply word for word and no other note's value"
        " does. Arithmetic: the last number of the reply is right; sums of one or two digits may"
        " have been practised. Bits per byte by file: "
        + ", ".join(f"{k.split('/')[-1]} {v}" for k, v in by_file.items()) + ".",
        *(["## Who speaks", _routing(metrics["routing"])] if metrics.get("routing") else []),
        "## What it says",
        "\n\n".join(
            "> **User:** " + s["user"].replace("\n", "  \n> ") + f"  \n> **SELM:** {s['assistant']}"
            for s in metrics["samples"]
        ),
        "## What it is made of",
        _shape(facts),
        "| data | conversations |\n|---|---|\n"
        + "\n".join(f"| {licence} | {count} |" for licence, count in (*known, *drawn)),
        f"{facts.counts.get('held out', 0)} talk conversations were held out, whole groups of"
        " near-identical ones together, decided by a hash of their content.",
        "## How it was made",
        *([facts.remarks] if facts.remarks else []),
        _made(facts.lines),
        f"![Loss and held-out bits per byte]({facts.picture})",
        "## Limits",
        LIMITS.rstrip(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"
