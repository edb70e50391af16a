"""`selm bench --replies`: what guessing ahead gains on real prompts, and what experts cost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selm_edge.cli.common import plain
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge import _core
    from selm_edge.model import Model

CONTEXT = 4096


@dataclass
class Way:
    """One way to make the same replies: how tokens are guessed ahead, or who speaks."""

    name: str
    draft: str
    expert: str | None
    session: _core.Session
    replies: list[tuple[int, ...]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def reply(self, prompt: list[int], most: int, ignore_end: bool) -> None:
        from selm_edge import _core

        greedy = _core.Sampling()
        greedy.temperature = 0.0
        self.session.set_expert(self.expert)
        generation = _core.Generation(
            self.session, prompt, greedy, max_tokens=most, ignore_end=ignore_end, draft=self.draft
        )
        tokens, finish = [], 0
        while not finish:
            _, token, finish = generation.next()
            tokens.append(token)
        stats = generation.stats
        generation.close()
        self.replies.append(tuple(tokens))
        for name in ("decode_steps", "decode_seconds", "drafted_tokens", "accepted_tokens",
                     "early_tokens"):  # fmt: skip
            self.figures[name] = self.figures.get(name, 0) + getattr(stats, name)

    @property
    def rate(self) -> float:
        """Tokens a second; 0 where each reply ended with its first token."""
        seconds = self.figures["decode_seconds"]
        return self.figures["decode_steps"] / seconds if seconds > 0 else 0.0

    def result(self, first: Way) -> dict[str, Any]:
        found = self.figures
        drafted = found["drafted_tokens"]
        return {
            "decode_tps": round(self.rate, 2),
            "ratio": round(self.rate / first.rate, 3) if first.rate else None,
            "tokens": int(found["decode_steps"]),
            "drafted": int(drafted),
            "accepted": round(found["accepted_tokens"] / drafted, 3) if drafted else None,
            "early": round(found["early_tokens"] / max(1, found["decode_steps"]), 3),
            "same_replies": sum(a == b for a, b in zip(self.replies, first.replies, strict=True)),
        }  # fmt: skip


def read_prompts(path: Path) -> list[str]:
    """One a line; in .jsonl, its first message."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SelmError(f"{path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if path.suffix != ".jsonl":
            found.append(line.replace("\\n", "\n"))
            continue
        try:
            found.append(str(json.loads(line)["messages"][0]["content"]))
        except (ValueError, KeyError, IndexError, TypeError):
            raise SelmError(f"{path}: line {number} has no list 'messages'") from None
    found = [prompt for prompt in found if prompt.strip()]
    if not found:
        raise SelmError(f"{path}: holds no prompt\nWrite one a line.")
    return found


def _ways(model: Model, path: Path, threads: int) -> Iterator[Way]:
    from selm_edge import _core

    core = _core.Model(os.fsencode(path))

    def session() -> _core.Session:
        return _core.Session(core, context=min(CONTEXT, model.context), threads=threads)

    if model.experts:
        for name in model.experts:
            yield Way(f"{name} alone", "off", name, session())
        yield Way("whoever should", "off", None, session())
        return
    yield Way("plain", "off", None, session())
    yield Way("lookup", "lookup", None, session())
    if model.metadata.get("selm.exit.layers"):
        yield Way("exit", "exit", None, session())
        yield Way("auto", "auto", None, session())
    if model.metadata.get("selm.exit.thresholds"):
        yield Way("calibrated", "calibrated", None, session())


def compare(path: Path, prompts: list[str], threads: int, most: int, rounds: int) -> dict[str, Any]:
    """Each prompt is answered each way in turn; the first way is the measure of the others. Who
    speaks changes what is said, so replies of experts all have the same length."""
    from selm_edge import Model

    with Model.load(path, context=CONTEXT, threads=threads or None) as model:
        asked = [
            list(model.chat_prompt([{"role": "user", "content": prompt}], max_tokens=most).ids)
            for prompt in prompts
        ]
        ways = list(_ways(model, path, threads))
        ignore_end = bool(model.experts)
    for way in ways:
        way.reply(asked[0], most, ignore_end)
        way.replies, way.figures = [], {}
    for _ in range(rounds):
        for prompt in asked:
            for way in ways:
                way.reply(prompt, most, ignore_end)
    return {
        "threads": ways[0].session.threads,
        "prompts": len(asked),
        "rounds": rounds,
        "ways": {way.name: way.result(ways[0]) for way in ways},
    }


def report(result: dict[str, Any]) -> None:
    click.echo(
        plain(f"{result['model']}, {result['threads']} threads, {result['prompts']} prompts")
    )
    click.echo(
        f"{'':18}{'decode':>12}{'ratio':>8}{'guesses right':>15}{'unverified':>12}{'same':>9}"
    )
    count = result["prompts"] * result["rounds"]
    for name, row in result["ways"].items():
        right = "-" if row["accepted"] is None else f"{row['accepted']:.0%} of {row['drafted']}"
        early = f"{row['early']:.0%}" if row["early"] else "-"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        click.echo(
            plain(f"{name:18}{row['decode_tps']:>8.1f} t/s{ratio:>8}{right:>15}{early:>12}")
            + f"{row['same_replies']:>5}/{count}"
        )
