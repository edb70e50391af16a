"""Whether corrections are learnt: 200 of them, and questions in other words before and after.

    python scripts/corrections.py FOLDER [--base selm-tiny] [--rounds 30]

160 facts about invented people, each corrected once ("Where does Nils Falk live?"), and 40 replies
corrected in style (explanations that begin with "In short:"). `selm-export finetune` learns an
adapter from them, and each is asked for in words that no correction had. Prints JSON: the share of
right answers before and after, the gate's verdict, and seconds. FOLDER keeps all files.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.finetune import run
from selm_export.finetune.learn import Plan
from selm_export.ledger import file_hash
from selm_export.report.evaluate import find_model

from selm_edge import Model
from selm_edge.feedback import bundle


def words(text: str) -> list[str]:
    return text.split()


FIRST = words(
    "Anna Ben Cleo Dario Elin Finn Greta Hugo Ines Jonas Kira Leo Mara Nils Olga Paul Rosa Sven"
    " Tilda Uwe Vera Wim Xenia Yuri Zoe"
)
LAST = words("Abel Brandt Castell Drews Ebert Falk Gruber Hoff Imhof Jansen")
VALUES = {
    "town": words("Aldor Brimme Corvell Dunmar Estwick Glenby Harsk Jolden Kestle Lorne Norvale"),
    "job": words("baker plumber teacher nurse gardener pilot tailor painter farmer dentist cook"),
    "pet": words("cat dog parrot hamster rabbit goldfish tortoise canary ferret pony snake"),
    "colour": words("red blue green yellow orange purple brown grey black white pink"),
}
ASKED = {
    "town": ["Where does {n} live?", "In which town does {n} live?", "Tell me where {n} lives."],
    "job": ["What is the job of {n}?", "What does {n} do for a living?",
            "Which job does {n} have?"],
    "pet": ["Which pet does {n} have?", "What pet has {n} got?", "Tell me what pet {n} keeps."],
    "colour": ["What is the favourite colour of {n}?", "Which colour does {n} like best?",
               "Tell me the favourite colour of {n}."],
}  # fmt: skip
SAID = {
    "town": "{n} lives in {v}.", "job": "{n} is a {v}.", "pet": "{n} has a {v}.",
    "colour": "The favourite colour of {n} is {v}.",
}  # fmt: skip
TOPICS = """rain snow bread gravity music sleep the moon salt sugar wood iron glass paper a river
a desert an island a forest wind fire ice tea coffee milk honey a bridge a clock a wheel a magnet
electricity a rainbow a volcano an earthquake a glacier yeast soap cotton wool rubber a compass
a candle""".replace("\n", " ")
STYLE = "In short:"


@dataclass(frozen=True)
class Case:
    asked: str
    correction: str | None  # none: the reply's own first sentence, in another style
    probe: str
    wanted: str
    style: bool = False


def cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    names = [f"{a} {b}" for a in FIRST for b in LAST]
    draw.shuffle(names)
    made = []
    for i in range(160):
        kind = list(VALUES)[i % len(VALUES)]
        name, value = names[i], draw.choice(VALUES[kind])
        first, *others = ASKED[kind]
        said = SAID[kind].format(n=name, v=value)
        made.append(Case(first.format(n=name), said, draw.choice(others).format(n=name), value))
    for topic in topics():
        probe = draw.choice(["Can you explain {t}?", "Explain {t} to me."]).format(t=topic)
        made.append(Case(f"What is {topic}?", None, probe, STYLE, style=True))
    return made


def topics() -> list[str]:
    found, words = [], iter(TOPICS.split())
    for word in words:
        found.append(f"{word} {next(words)}" if word in ("a", "an", "the") else word)
    return found[:40]


def reply(model: Model, question: str) -> str:
    asked: Any = [{"role": "user", "content": question}]
    return model.chat(asked, temperature=0.0, max_tokens=40).text


def corrected(model: Model, case: Case, number: int, sha256: str) -> dict[str, Any]:
    said = reply(model, case.asked)
    text = case.correction or f"{STYLE} {said.split('.')[0].strip()}."
    return {
        "uid": f"c{number:03}", "kind": "correction", "created": number, "reply": said,
        "correction": text, "messages": [{"role": "user", "content": case.asked}],
        "model_sha256": sha256,
    }  # fmt: skip


def shares(model: Model, asked: list[Case]) -> dict[str, float]:
    right: dict[bool, list[bool]] = {False: [], True: []}
    for case in asked:
        said = reply(model, case.probe)
        fits = said.startswith(STYLE) if case.style else case.wanted.lower() in said.lower()
        right[case.style].append(fits)
    every = right[False] + right[True]
    parts = {"facts": right[False], "style": right[True], "all": every}
    return {name: round(sum(found) / len(found), 3) for name, found in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="selm-tiny")
    parser.add_argument("--rounds", type=float, default=Plan.rounds)
    parser.add_argument("--rate", type=float, default=Plan.rate)
    parser.add_argument("--replay", type=float, default=Plan.replay)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base, asked = find_model(options.base), cases(options.seed)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "corrections.bundle"
    with Model.load(base) as model:
        sha256 = file_hash(base)
        rows = [corrected(model, case, i, sha256) for i, case in enumerate(asked)]
        bundle.write(rows, path)
        before = shares(model, asked)
        begin = time.monotonic()
        plan = Plan(rounds=options.rounds, rate=options.rate, replay=options.replay)
        request = run.Request((path,), base, options.folder / "out", plan=plan, seed=options.seed)
        report = run.finetune(request, lambda text: print(text, flush=True))
        assert report is not None
        seconds = round(time.monotonic() - begin)
        model.set_adapters({report["adapter"]: 1.0})
        after = shares(model, asked)
    found = {"before": before, "after": after, "seconds": seconds, "verdict": report["verdict"]}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
