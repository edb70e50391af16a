"""The figures of a model's card, all computed by the inference core on the finished file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selm_export.data import questions
from selm_export.data.chat import Conversation
from selm_export.report import evaluate
from selm_export.report.scores import SUMS

Say = Callable[[str], None]

REPLY_TOKENS = 120  # longer replies are cut; no question here needs so many
ASKED = (
    "Hello, who are you?", "What is 17 + 25?", "What is the capital of France?",
    "I have a headache.", "Tell me a story about a fox.", "Can you help me write a birthday card?",
    "N: The spare key is under the blue pot.\nN: Mia's train comes at 14:20.\n"
    "When does Mia's train come?",
    "N: Mia's train comes at 14:20.\nWhat is Mia's phone number?",
)  # fmt: skip


def answerer(core: evaluate.Core) -> questions.Reply:
    """The greedy reply to one question."""

    def answer(question: str) -> str:
        asked = [{"role": "user", "content": question}]
        return str(core.chat(asked, temperature=0.0, max_tokens=REPLY_TOKENS))

    return answer


def measure(
    core: evaluate.Core, held_out: Sequence[Conversation], context: int, count: int, say: Say
) -> dict[str, Any]:
    """``count`` questions of each kind, half as many sums."""
    whole, by_file = evaluate.Score(), dict[str, evaluate.Score]()
    for name in sorted({c.source for c in held_out}):
        some = [c for c in held_out if c.source == name]
        by_file[name] = evaluate.evaluate(core, some, context)
        whole += by_file[name]
    talk = whole.summary()
    say(f"  held-out talk: {talk['bits_per_byte']:.3f} bits per byte")
    model = answerer(core)
    answered = questions.share(questions.ask_notes(model, count, True))
    declined = questions.share(questions.ask_notes(model, count, False))
    say(f"  notes: {answered:.1%} answered exactly, {declined:.1%} of unanswerable ones declined")
    arithmetic = {}
    for kind, largest in SUMS:
        name = f"{kind} up to {largest}"
        asked = questions.sums(count // 2, kind, largest)
        arithmetic[name] = round(questions.share(questions.ask_sums(model, asked)), 4)
        say(f"  {name}: {arithmetic[name]:.1%}")
    return {
        "held_out_talk": {
            "bits_per_byte": round(talk["bits_per_byte"], 4), "tokens": whole.tokens,
            "bytes": whole.size, "conversations": len(held_out),
            "by_file": {k: round(s.summary()["bits_per_byte"], 3) for k, s in by_file.items()},
        },
        "notes": {"questions": count, "answered_exactly": answered, "declined": declined},
        "arithmetic": {"questions": count // 2, "right": arithmetic},
        "samples": [{"user": q, "assistant": model(q)} for q in ASKED],
    }  # fmt: skip
