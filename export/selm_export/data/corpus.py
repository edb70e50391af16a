"""Reads every source file of the recipe into conversations."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selm_export.data.chat import Conversation, Message, chat
from selm_export.errors import RecipeError


def read_text(path: Path) -> str:
    """The whole text of a plain or .xz file."""
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
    except FileNotFoundError:
        raise RecipeError(path, "the file does not exist", "Check the recipe") from None
    except (lzma.LZMAError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(path, f"cannot be read ({error})", "Fetch the file again") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file, plain or .xz."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RecipeError(path, f"line {number} is no JSON ({error})", "Mend it") from error
        if not isinstance(value, dict):
            raise RecipeError(path, f"line {number} is no JSON object", "Mend it")
        yield value


def parse_talk(text: str, source: str, path: Path | str = "talk") -> list[Conversation]:
    """Talk files: ``U:`` and ``A:`` turns, ``N:`` notes before a question, blank line between
    conversations. Notes go into the user's turn: what memory finds is data, not instruction."""
    conversations = []
    for block in re.split(r"\n\s*\n", text.strip()):
        messages: list[Message] = []
        notes: list[str] = []
        for line in block.split("\n"):
            mark, _, content = line.partition(":")
            content = content.strip()
            if mark == "N":
                notes.append(f"N: {content}")
            elif mark == "U":
                messages.append(Message("user", "\n".join([*notes, content])))
                notes = []
            elif mark == "A":
                messages.append(Message("assistant", content))
            else:
                raise RecipeError(
                    path, f"a line begins with neither U:, A: nor N: ({line[:40]!r})", "Mend it"
                )
        if messages and messages[-1].role == "user":
            messages.pop()
        if messages:
            conversations.append(Conversation(tuple(messages), source))
    return conversations


def read_talk(path: Path) -> list[Conversation]:
    return parse_talk(read_text(path), f"talk/{path.name.split('.')[0]}", path)


def sentences(text: str, limit: int) -> str:
    """The leading whole sentences of a text, at most ``limit`` characters; empty if none fits."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if len(kept) + len(sentence) + 1 > limit:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def _dialogue(turns: list[tuple[str, str]], source: str, user: str) -> Conversation | None:
    """Consecutive turns of one speaker are joined; the chat begins with the user, ends with a
    reply."""
    joined: list[tuple[bool, str]] = []
    for speaker, text in turns:
        mine = speaker == user
        plain = " ".join(text.split())
        if joined and joined[-1][0] == mine:
            joined[-1] = (mine, f"{joined[-1][1]} {plain}")
        else:
            joined.append((mine, plain))
    if joined and not joined[0][0]:
        joined = joined[1:]
    if len(joined) % 2:
        joined = joined[:-1]
    return chat(source, *(text for _, text in joined)) if joined else None


def read_topical(path: Path) -> list[Conversation]:
    found = []
    for row in read_lines(path):
        turns = [(turn[0], turn[1]) for turn in row["turns"]]
        # Sixteen turns are longer than a training row; halves also let either speaker lead.
        for part, user in ((turns[:10], "agent_1"), (turns[10:], "agent_2")):
            conversation = _dialogue(part, "topical", user)
            if conversation:
                found.append(conversation)
    return found


def read_taskmaster(path: Path) -> list[Conversation]:
    found = []
    for row in read_lines(path):
        conversation = _dialogue([(t[0], t[1]) for t in row["turns"]], "taskmaster", "user")
        if conversation:
            found.append(conversation)
    return found


def gsm8k_reply(answer: str) -> str:
    """Drops the calculator marks and says the result the way the talk files do."""
    steps, _, result = answer.partition("####")
    steps = re.sub(r"<<[^>]*>>", "", steps)
    return f"{' '.join(steps.split())} The answer is {result.strip()}."


def read_gsm8k(path: Path) -> list[Conversation]:
    rows = read_lines(path)
    return [chat("gsm8k", r["question"].strip(), gsm8k_reply(r["answer"])) for r in rows]


def read_medquad(path: Path) -> list[Conversation]:
    found, seen = [], set()
    for row in read_lines(path):
        question = re.sub(r"\s+\?", "?", " ".join(row["question"].split()))
        answer = re.sub(r"^(What|How|Who|Is|Are)\b[^.?!]*\?\s*", "", row["answer"].strip())
        reply = sentences(answer, 260)
        # The phenotype tables say nothing in sentences, and stock answers repeat by the hundred.
        if len(reply) < 30 or "Phenotype" in answer[:400] or reply in seen:
            continue
        seen.add(reply)
        found.append(chat("medquad", question, reply))
    return found


def read_pubmedqa(path: Path) -> list[Conversation]:
    found = []
    for row in read_lines(path):
        reply = sentences(row["long_answer"], 260)
        if reply:
            verdict = {"yes": "Yes.", "no": "No.", "maybe": "Perhaps."}[row["decision"]]
            found.append(chat("pubmedqa", row["question"], f"{verdict} {reply}"))
    return found


def read_boolq(path: Path) -> list[Conversation]:
    found = []
    for row in read_lines(path):
        question = row["question"].split("\n")[0].strip()
        found.append(chat("boolq", question, "Yes." if row["answer"] == "true" else "No."))
    return found


CHOICE = re.compile(r"question: (.*?)\s*\n\nAnswer1: (.*?)\n\nAnswer format", re.S)


def read_choices(path: Path, source: str) -> list[Conversation]:
    """Multiple-choice questions as facts: the question, or the beginning of a sentence, and its
    right answer, with no other answer named."""
    found = []
    for row in read_lines(path):
        match = CHOICE.search(row["instruction"])
        if not match:
            raise RecipeError(
                path, f"a question has no answers ({row['instruction'][:40]!r})", "Fetch it again"
            )
        options = re.split(r"\s*\bAnswer\d: ", match[2])
        question = " ".join(match[1].split())
        right = options[int(row["answer"].removeprefix("answer")) - 1].strip().rstrip(".?!")
        reply = right if question.endswith("?") else f"{question} {right}"
        found.append(chat(source, question, f"{reply[:1].upper()}{reply[1:]}."))
    return found


READERS: dict[str, tuple[str, Callable[[Path], list[Conversation]]]] = {
    "talk": ("talk/*.txt.xz", read_talk),
    "topical": ("general/topical-chat.jsonl.xz", read_topical),
    "taskmaster": ("general/taskmaster4-dialogs.jsonl.xz", read_taskmaster),
    "gsm8k": ("math/gsm8k-train.jsonl.xz", read_gsm8k),
    "gsm8k-test": ("math/gsm8k-test.jsonl.xz", read_gsm8k),
    "medquad": ("medical/medquad-train.jsonl.xz", read_medquad),
    "medquad-test": ("medical/medquad-test.jsonl.xz", read_medquad),
    "pubmedqa": ("medical/pubmedqa.jsonl.xz", read_pubmedqa),
    "boolq": ("general/boolq-train.jsonl.xz", read_boolq),
    "arc": ("general/arc-easy-train.jsonl.xz", partial(read_choices, source="arc")),
    "openbookqa": ("general/openbookqa-train.jsonl.xz", partial(read_choices, source="openbookqa")),
}


def source_files(data: Path, source: str) -> list[Path]:
    if source not in READERS:
        raise RecipeError(data, f"the source {source!r} is unknown", f"Known: {', '.join(READERS)}")
    pattern, _ = READERS[source]
    files = sorted(data.glob(pattern))
    if not files:
        raise RecipeError(
            data / pattern, "no such file", "Name the data's folder: --set data.folder='DIRECTORY'"
        )
    return files


def read_source(data: Path, source: str) -> list[Conversation]:
    reader = READERS[source][1]
    return [c for path in source_files(data, source) for c in reader(path)]
