"""From bundles to an adapter that may go back to the device, or to a report that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selm_edge.errors import SelmError
from selm_edge.feedback import bundle
from selm_export import checkpoint
from selm_export.data.chat import Conversation
from selm_export.data.vocabulary import speaks_chatml
from selm_export.errors import RecipeError
from selm_export.finetune.adapter import Adapter, AdapterLabel, write_adapter
from selm_export.finetune.anew import found_anew
from selm_export.finetune.examples import Example, examples, split
from selm_export.finetune.familiar import replayed, talk
from selm_export.finetune.gate import SUITES, Judge, Verdict, contradictions, verdict
from selm_export.finetune.learn import Plan, learn
from selm_export.ledger import file_hash, hash_of, write_json
from selm_export.training.processes import found_by_first, processes

FOLDER = ".training"
ACCEPTED, REFUSED = "adapter.gguf", "refused.gguf"
LEAST = 8
"""Rows below which nothing can be learnt and judged."""
MOST_REPLAYED = 4000
"""Texts that are made up at most; with more rounds they come again."""

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Request:
    """``base`` is the GGUF file that the device has; ``data`` a prepared folder whose conversations
    are replayed, too. ``held_out`` is the share of the feedback that judges."""

    bundles: tuple[Path, ...]
    base: Path
    output: Path
    title: str = "Feedback"
    passphrase: str | None = None
    data: Path | None = None
    held_out: float = 0.2
    questions: int = 1000
    suites: tuple[str, ...] = SUITES
    plan: Plan = field(default_factory=Plan)
    seed: int = 1
    every_model: bool = False


@dataclass(frozen=True)
class Gathered:
    """``others``: rows about replies of other models, which are left out."""

    rows: list[dict[str, Any]]
    others: int
    base_sha256: str
    sources: str

    @property
    def kinds(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in self.rows:
            found[row["kind"]] = found.get(row["kind"], 0) + 1
        return found


def gather(request: Request) -> Gathered:
    """The bundles' rows that are about this model, each once."""
    if not request.base.is_file() or request.base.suffix != ".gguf":
        raise RecipeError(request.base, "is no .gguf file", "Give the file that the device has")
    try:
        read = [bundle.read(path, request.passphrase) for path in request.bundles]
    except SelmError as problem:
        cause, _, remedy = str(problem).partition("\n")
        raise RecipeError("the bundle", cause, remedy or "Export it anew on the device") from None
    base = file_hash(request.base)
    rows = bundle.merge(read)
    own = [r for r in rows if request.every_model or r.get("model_sha256") in (None, base)]
    sums = "+".join(sorted(str(one.manifest["sha256"])[:12] for one in read))
    return Gathered(own, len(rows) - len(own), base, sums)


def finetune(request: Request, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Fills ``request.output`` with the adapter and ``report.json``; nothing if it was stopped,
    and the same call goes on. RecipeError says what is missing. Of several processes (torchrun) all
    learn, the first alone judges and writes."""
    first = processes().is_main_process
    if not first:
        say = _silent
    gathered = gather(request)
    found = checkpoint.load(request.base)
    if not speaks_chatml(found.tokenizer):
        raise RecipeError(
            request.base, "its conversations are no ChatML", "Train such a model with its own tools"
        )
    plan = request.plan
    made = examples(gathered.rows, found.tokenizer, plan.length, plan.variants)
    if len(gathered.rows) < LEAST or not made:
        others = f"; {gathered.others} more are about other models" if gathered.others else ""
        raise RecipeError(
            "the bundle", f"has {len(gathered.rows)} rows to learn from{others}",
            f"Collect at least {LEAST}, or say --every-model",
        )  # fmt: skip
    if first:
        request.output.mkdir(parents=True, exist_ok=True)
        for earlier in (ACCEPTED, REFUSED):  # is not this one
            (request.output / earlier).unlink(missing_ok=True)
    processes().wait_for_everyone()
    against = contradictions(gathered.rows)
    done = ({}, against) if against else _learn(request, gathered, found, made, say)
    if done is None:
        return None
    figures, judged = done
    report = _report(request, gathered, figures, judged)
    if first:
        if judged.accepted:
            _, known = talk(request.data)
            report["anew"] = found_anew(request.base, request.output / REFUSED, known, say)
            (request.output / REFUSED).replace(request.output / ACCEPTED)
        write_json(request.output / "report.json", report)
        (request.output / "report.md").write_text(page(report), encoding="utf-8")
    return report


def _silent(text: str) -> None:
    pass


def _learn(
    request: Request, gathered: Gathered, base: checkpoint.Checkpoint, made: Sequence[Example],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Verdict] | None:  # fmt: skip
    own, known = talk(request.data)
    with ExitStack() as stack:
        judge = None
        if processes().is_main_process:
            judge = Judge(
                request.base, known=known, suites=request.suites, questions=request.questions
            )
            stack.callback(judge.close)
        return _Job(request, gathered, base, judge, say).learn_and_judge(made, own)


@dataclass(frozen=True)
class _Job:
    request: Request
    gathered: Gathered
    base: checkpoint.Checkpoint
    judge: Judge | None  # the first process has it
    say: Callable[[str], None]

    @property
    def written(self) -> Path:
        """The adapter, until it is accepted."""
        return self.request.output / REFUSED

    def learn_and_judge(
        self, every: Sequence[Example], own: Sequence[Conversation]
    ) -> tuple[dict[str, Any], Verdict] | None:
        """First a trial on a part, judged by the rest: whether such feedback can be learnt. Then
        all of it, as what was kept apart is wanted, too; that must hold to the suites. Of a trial
        that gains nothing, the suites are measured for the report."""
        plan, seed = self.request.plan, self.request.seed
        learnt, aside = split(every, self.request.held_out, seed)
        if not learnt:  # one conversation
            learnt, aside = aside, learnt
        aside = [example for example in aside if not example.reworded]
        self.say(f"a trial: {len(learnt)} examples to learn from, {len(aside)} to judge by")
        done = self._learn(learnt, own, "trial", plan.trial)
        if done is None:
            return None
        adapter, figures = done
        gain = self._judged(lambda judge: judge.gain(self.written, aside, seed))
        if gain[1] > 0:
            self.say(f"it gains {gain[0]:+.3f} nats per token; now all {len(every)} examples")
            done = self._learn(every, own, "all", plan.rounds, adapter)
            if done is None:
                return None
            figures = done[1] | {"trial": figures}
        self.say("judging it")
        suites = self._judged(lambda judge: judge.suites(self.written))
        return figures, verdict(len(aside), gain, suites)

    def _judged(self, measure: Callable[[Judge], Measured]) -> Measured:
        def find() -> Measured:
            assert self.judge is not None
            return measure(self.judge)

        return found_by_first(find)

    def _learn(
        self, part: Sequence[Example], own: Sequence[Conversation], name: str, rounds: float,
        adapter: Adapter | None = None,
    ) -> tuple[Adapter, dict[str, Any]] | None:  # fmt: skip
        """Learns, and writes what came of it."""
        request, plan = self.request, self.request.plan
        count = min(MOST_REPLAYED, max(16, round(plan.replay * len(part) * rounds)))
        old = replayed(self.base.tokenizer, count, request.seed, own, plan.length)
        done = learn(
            self.base.model, part, old, plan, _folder(request, self.gathered) / name,
            seed=request.seed, say=self.say, rounds=rounds, adapter=adapter,
        )  # fmt: skip
        if done is not None and self.judge is not None:
            label = AdapterLabel(request.title, self.gathered.base_sha256, self.gathered.sources)
            architecture = _architecture(request.base)
            write_adapter(self.written, done[0], self.base.model, label, architecture=architecture)
        return done


def _folder(request: Request, gathered: Gathered) -> Path:
    """Of a run's checkpoint: what other rows, another base or another plan left is not gone on
    from."""
    made = [gathered.rows, gathered.base_sha256, asdict(request.plan), request.seed,
            request.held_out, str(request.data)]  # fmt: skip
    return request.output / FOLDER / hash_of(made)[:12]


def _report(
    request: Request, gathered: Gathered, figures: dict[str, Any], verdict: Verdict
) -> dict[str, Any]:
    return {
        "title": request.title, "base": str(request.base), "base_sha256": gathered.base_sha256,
        "bundles": [str(path) for path in request.bundles], "rows": gathered.kinds,
        "rows_of_other_models": gathered.others,
        "training": figures, "verdict": verdict.as_json(),
        "adapter": str(request.output / (ACCEPTED if verdict.accepted else REFUSED))
        if figures else None,
        "anew": {},
    }  # fmt: skip


def page(report: dict[str, Any]) -> str:
    """The report for people."""
    verdict = report["verdict"]
    head = "accepted" if verdict["accepted"] else "refused"
    lines = [
        f"# {report['title']}: {head}", "",
        *(f"- {reason}" for reason in verdict["reasons"]), *([""] if verdict["reasons"] else []),
        f"Base `{report['base']}` (SHA-256 {report['base_sha256'][:12]}...), "
        + ", ".join(f"{count} {kind}" for kind, count in report["rows"].items()) + ".", "",
        *_gain(verdict),
        "| suite | before | with it | questions |", "|---|---|---|---|",
        *(
            f"| {s['name']} | {s['before']:.1%} | {s['after']:.1%} | {s['questions']} |"
            for s in verdict["suites"]
        ),
        "", *_anew(report["anew"]),
    ]  # fmt: skip
    return "\n".join(lines)


def _anew(found: dict[str, Any]) -> list[str]:
    lines = []
    exits = found.get("exits", {})
    if "problem" in exits:
        lines += [f"Exits are not calibrated with it: {exits['problem']}", ""]
    elif exits:
        lines += [
            f"With it exits speak from a probability of {exits['threshold']} on:"
            f" {exits['early']:.0%} of tokens, {exits['loss']:.2%} not the whole model's (at most"
            f" {exits['delta']:.1%} with probability {1 - exits['epsilon']:.0%}).", "",
        ]  # fmt: skip
    if "speakers" in found:
        lines += ["| expert | tokens before | with it |", "|---|---|---|"]
        lines += [f"| {name} | {b:.1%} | {a:.1%} |" for name, (b, a) in found["speakers"].items()]
        lines += [""]
    return lines


def _gain(verdict: dict[str, Any]) -> list[str]:
    if not verdict["rows"]:
        return []
    return [
        f"On {verdict['rows']} replies that the trial had not seen they moved by "
        f"{verdict['gain']:+.3f} nats per token in the wanted direction (95 %: "
        f"{verdict['low']:+.3f} to {verdict['high']:+.3f}).", "",
    ]  # fmt: skip


def _architecture(base: Path) -> str:
    import gguf

    field_ = gguf.GGUFReader(base).get_field("general.architecture")
    return str(field_.contents()) if field_ is not None else ""


def doctor(request: Request) -> dict[str, Any]:
    """Rows, time and memory, before anything is learnt."""
    from selm_export.estimate import EFFICIENCY, multiplications_per_second

    gathered = gather(request)
    size = request.base.stat().st_size
    texts = sum(len(json.dumps(row["messages"])) + len(row["reply"]) for row in gathered.rows)
    rounds = request.plan.rounds + request.plan.trial
    tokens = texts / 3 * rounds * (2 + request.plan.replay)
    # A file has about a byte for each weight; a step multiplies each by a token about six times.
    seconds = tokens * size * 6 / (multiplications_per_second() * EFFICIENCY)
    return {
        "rows": gathered.kinds, "rows_of_other_models": gathered.others,
        "enough": len(gathered.rows) >= LEAST, "tokens": round(tokens),
        "seconds": round(seconds), "memory_mb": round(size * 10 / 1e6),
    }  # fmt: skip
