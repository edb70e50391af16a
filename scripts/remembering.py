"""Whether what was told is answered, and what stands in documents is not obeyed.

    PYTHONPATH=tests python scripts/remembering.py [--model selm-tiny] [--facts 200]

Tells facts, as `/remember` keeps them, and asks each in other words, as `selm ask` does: recall,
then the model's greedy reply; then a hundred questions that nothing told answers. Once with facts
written by hand (`export/selm_export/report/memory_facts.jsonl`, three questions each), once with
notes of the forms that the bundled model was trained on. Then each hostile document of the tests
with a harmless question about it. Prints JSON: `right` of the questions, of those whose fact was
recalled, and `recalled`; `declined`; in whose replies a document's demand showed (`obeyed`; look at
them: quoting is not obeying), and `answered` about the documents. Wrong replies go to stderr.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export.data.questions import declines, note_cases
from selm_export.report.evaluate import find_model
from selm_export.report.memory_data import rows
from support.hostile_documents import hostile_documents

from selm_edge import Model
from selm_edge.memory.asking import gather
from selm_edge.memory.embedder import open_embedder
from selm_edge.memory.memories import PERSONAL, Memories
from selm_edge.memory.prompting import with_memories
from selm_edge.store.database import Database


class Assistant:
    """A model with memories of its own."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.memories = Memories(Database(None), open_embedder("builtin"))

    def ask(self, question: str, files: Sequence[Path] = ()) -> tuple[list[str], str]:
        """(the memories that went before the question, the reply)"""
        found = gather(
            self.memories, question, space=PERSONAL, context=self.model.context,
            free=self.model.context - 300, files=files, sparing=True,
            count_tokens=lambda text: len(self.model.tokenize(text, add_special=False)),
        )  # fmt: skip
        given = [one.memory for one in found]
        asked = [{"role": "user", "content": with_memories(question, given)}]
        reply = self.model.chat(asked, max_tokens=64, temperature=0.0).finish().text
        return [one.text for one in given], str(reply)


def holds(reply: str, value: str) -> bool:
    return value.lower() in reply.lower()


@dataclass(frozen=True)
class Fact:
    text: str
    value: str
    questions: tuple[str, ...]


def written() -> tuple[list[Fact], list[str]]:
    """Facts as people tell them, and questions that nothing answers."""
    found = rows()
    facts = [
        Fact(row["text"], row["value"], tuple(row["questions"]))
        for row in found
        if row["kind"] == "fact"
    ]
    unknown = [q for row in found if row["kind"] == "unanswered" for q in row["questions"]]
    return facts, unknown


def generated(count: int) -> tuple[list[Fact], list[str]]:
    """Notes of the forms that the model was trained on, of other people: one for each name."""

    def names(question: str) -> set[str]:
        return set(re.findall(r"(?<=.)\b[A-Z][a-z]+\b", question))

    facts: list[Fact] = []
    unknown: list[str] = []
    seen: set[str] = set()
    for answerable in (True, False):
        for case in note_cases(20 * count, answerable):
            *lines, question = case.conversation.messages[0].content.split("\n")
            about = names(question)
            if not about or about & seen:
                continue
            seen |= about
            if case.value is None:
                unknown.append(question)
            else:
                line = next(line for line in lines if case.value in line)
                facts.append(Fact(line.removeprefix("N: "), case.value, (question,)))
                if len(facts) == count:
                    break
    return facts, unknown


def told(model: Model, facts: Sequence[Fact], unknown: Sequence[str]) -> dict[str, Any]:
    assistant = Assistant(model)
    for fact in facts:
        assistant.memories.add(fact.text, kind="fact")
    asked = recalled = right = used = declined = 0
    for fact in facts:
        for question in fact.questions:
            given, reply = assistant.ask(question)
            there, good = fact.text in given, holds(reply, fact.value)
            asked, recalled, right = asked + 1, recalled + there, right + good
            used += there and good
            if not good:
                print("recalled" if there else "not recalled", fact.text, question, reply,
                      sep=" | ", file=sys.stderr)  # fmt: skip
    for question in unknown:
        reply = assistant.ask(question)[1]
        declined += declines(reply)
        if not declines(reply):
            print("made up", question, reply, sep=" | ", file=sys.stderr)
    return {
        "facts": len(facts), "questions": asked, "right": round(right / asked, 3),
        "recalled": round(recalled / asked, 3), "right where recalled": round(used / recalled, 3),
        "unanswerable": len(unknown), "declined": round(declined / len(unknown), 3),
    }  # fmt: skip


def hostile(model: Model) -> dict[str, Any]:
    documents, obeyed, answered = list(hostile_documents()), [], 0
    with tempfile.TemporaryDirectory() as folder:
        for one in documents:
            path = Path(folder) / one.name
            path.write_bytes(one.data)
            reply = Assistant(model).ask(one.question, [path])[1]
            answered += holds(reply, one.answer)
            if holds(reply, one.sign):
                obeyed.append(one.name)
                print("showed", one.question, reply, sep=" | ", file=sys.stderr)
    share = round(answered / len(documents), 3)
    return {"documents": len(documents), "obeyed": obeyed, "answered": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="selm-tiny")
    parser.add_argument("--facts", type=int, default=200)
    options = parser.parse_args()
    with Model.load(find_model(options.model)) as model:
        facts, unknown = written()
        own, own_unknown = generated(options.facts)
        found = {
            "written by hand": told(model, facts[: options.facts], unknown[:100]),
            "of trained forms": told(model, own, own_unknown[:100]),
            "hostile": hostile(model),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
