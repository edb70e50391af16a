"""Whether thumbs are learnt: real ratings of replies, learnt by KTO, judged on other conversations.

    python scripts/thumbs.py tm-3-2020-reward.jsonl.xz tm-4-2024-reward.jsonl.xz --folder FOLDER

Each line of a file is a reply in its conversation with a reward of 0 or 1 (Taskmaster, CC BY 4.0).
Seven conversations in ten teach an adapter, the others judge it: by how many nats per token the
margin of liked over disliked replies rises, with 95 % of a bootstrap over conversations. Files are
apart, as whole domains are liked more than others. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from selm_export import checkpoint
from selm_export.finetune import familiar, gate
from selm_export.finetune.adapter import AdapterLabel, write_adapter
from selm_export.finetune.examples import Example, examples, split
from selm_export.finetune.learn import Plan, learn
from selm_export.report.evaluate import find_model, load_core

ROLES = {"agent": "assistant", "user": "user", "api": "user"}


def said(turn: dict[str, Any]) -> str:
    """A turn's text; what it asks of an interface, or is answered by one, as JSON."""
    return str(turn.get("text") or json.dumps(turn.get("api") or turn.get("response")))


def rows(path: Path) -> list[dict[str, Any]]:
    found = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            turns = json.loads(row["context"])
            messages = [{"role": ROLES[t["role"]], "content": said(t)} for t in turns]
            found.append({
                "uid": f"{path.name}:{number}", "talk": row["conversation_id"],
                "kind": "up" if row["reward"] else "down", "messages": messages,
                "reply": said(json.loads(row["generation"])),
            })  # fmt: skip
    return found


def by_conversation(found: Sequence[dict[str, Any]], tokenizer: Any, length: int) -> list[Example]:
    """As `examples`, but a talk is what the data calls one: all begin with the same greeting."""
    made = examples(found, tokenizer, length)
    talks = {row["uid"]: row["talk"] for row in found}
    return [Example(**{**vars(e), "talk": talks[e.uid]}) for e in made]


def margin(
    judged: Sequence[Example], moved: Sequence[float], seed: int
) -> tuple[float, float, float]:
    """How much more liked replies gained than others, with 95 % of the draws of conversations."""
    talks = sorted({e.talk for e in judged})
    index = {talk: i for i, talk in enumerate(talks)}
    sums, counts = np.zeros((2, len(talks))), np.zeros((2, len(talks)))
    for example, value in zip(judged, moved, strict=True):
        sums[int(example.wanted), index[example.talk]] += value
        counts[int(example.wanted), index[example.talk]] += 1
    drawn = np.random.default_rng(seed).integers(0, len(talks), (gate.DRAWS, len(talks)))
    means = sums[:, drawn].sum(-1) / counts[:, drawn].sum(-1)
    low, high = np.quantile(means[1] - means[0], (0.025, 0.975))
    whole = sums.sum(1) / counts.sum(1)
    return float(whole[1] - whole[0]), float(low), float(high)


def study(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    base, plan = find_model(options.base), Plan(rate=options.rate, length=384)
    found = checkpoint.load(base)
    made = by_conversation(rows(path), found.tokenizer, plan.length)
    random.Random(options.seed).shuffle(made)
    learnt, aside = split(made, 0.3, options.seed)
    learnt, aside = learnt[: options.rows], aside[: options.rows]
    own, _ = familiar.talk(None)
    old = familiar.replayed(found.tokenizer, round(plan.replay * len(learnt)), 1, own, plan.length)
    done = learn(
        found.model, learnt, old, plan, options.folder / path.name, seed=options.seed,
        say=lambda text: print(text, flush=True), rounds=options.rounds,
    )  # fmt: skip
    assert done is not None
    adapter, figures = done
    file = options.folder / f"{path.name}.gguf"
    write_adapter(file, adapter, found.model, AdapterLabel("Thumbs", ""))
    core: Any = load_core(base, 1024)
    before = [gate.per_token(core, example) for example in aside]
    core.set_adapters({file: 1.0})
    after = [gate.per_token(core, example) for example in aside]
    core.close()
    moved = [new - was for new, was in zip(after, before, strict=True)]
    rises, low, high = margin(aside, moved, options.seed)
    return {
        "learnt": len(learnt), "liked": sum(e.wanted for e in learnt),
        "judged": len(aside), "judged_liked": sum(e.wanted for e in aside),
        "margin_before": round(margin(aside, before, options.seed)[0], 4),
        "rises": round(rises, 4), "low": round(low, 4), "high": round(high, 4), **figures,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, required=True, help="of what is made")
    parser.add_argument("--base", default="selm-tiny")
    parser.add_argument("--rows", type=int, default=800, help="to learn, and at most to judge by")
    parser.add_argument("--rounds", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=Plan.rate)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps({path.name: study(path, options) for path in options.files}, indent=2))


if __name__ == "__main__":
    main()
