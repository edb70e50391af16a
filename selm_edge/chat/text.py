"""Small pieces of wording and text that both faces of the chat share."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from selm_edge.clean import clean, clean_line
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge.assistant import Overflow
    from selm_edge.chat.memory import Source
    from selm_edge.feedback.log import Kind
    from selm_edge.store.conversations import Message

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.M | re.S)

EXAMPLES = (
    "What can you help me with?",
    "Convert 72 °F to °C and show the steps",
    "Write a short note to thank a neighbour",
)
ENDINGS = {
    "cancelled": "stopped",
    "length": "cut at the reply limit",
    "context": "stopped: the context is full",
    "deadline": "stopped: out of time",
    "corrected": "your correction",
    "error": "broke off",
}
KEPT = "Kept only on this device. It becomes training data when you run `selm feedback export`."
KEPT_HERE = "Kept only on this device, and left out of every export."
KEPT_UNTIL_QUIT = "Kept until you quit: nothing is being saved."
MARKS: dict[Kind, str] = {
    "up": "▲ good", "down": "▼ bad", "correction": "✎ corrected", "preference": "◆ taken of two",
}  # fmt: skip


def spoken_path(text: str) -> Path:
    """A path as a person types it: ``~``, quotes and spaces around it are understood."""
    path = text.strip().strip("'\"")
    if not path:
        raise SelmError("give the path of a file")
    return Path(os.path.expandvars(path)).expanduser()


def free_path(path: Path) -> Path:
    """The path itself, or the first of ``name-2``, ``name-3``, ... that is not there yet."""
    free, number = path, 2
    while free.exists():
        free, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return free


def write_new(path: Path, text: str) -> Path:
    """Write a file that is not there yet. SelmError where it is, or where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SelmError(f"{path} exists; choose another name") from None
    except OSError as error:
        raise SelmError(f"{path}: {error.strerror or error}") from None
    return path


def code_blocks(markdown: str) -> list[str]:
    """The text of each fenced code block, an unfinished last one included."""
    return [match.group(2).rstrip("\n") for match in _FENCE.finditer(markdown)]


def figures(message: Message) -> str:
    """One line about how a reply was made."""
    facts = message.facts
    parts = [clean(facts.model or "")]
    if facts.finish_reason in ENDINGS:
        parts.append(ENDINGS[facts.finish_reason])
    if facts.finish_reason != "corrected" and facts.tokens:
        parts.append(f"{facts.tokens} tokens")
        if facts.tokens_per_second:
            parts.append(f"{facts.tokens_per_second:.1f}/s")
    return " · ".join(part for part in parts if part)


def ago(milliseconds: int, now: float | None = None) -> str:
    """How long ago, in the largest unit that says it."""
    seconds = max(0.0, (time.time() if now is None else now) - milliseconds / 1000)
    for size, unit in (
        (86400 * 365, "y"),
        (86400 * 30, "mo"),
        (86400, "d"),
        (3600, "h"),
        (60, "m"),
    ):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return "now"


def source_words(source: Source, *, whole: bool = False) -> str:
    """A memory in a line: its number and place, or the fact; ``whole`` adds all of its text."""
    memory = source.memory
    text = clean_line(memory.text)
    if memory.kind != "passage":
        return text if whole or len(text) <= 72 else text[:71] + "…"
    place = [clean_line(Path(memory.source).name)]
    if memory.page is not None:
        place.append(f"p. {memory.page}")
    elif memory.line is not None:
        place.append(f"line {memory.line}")
    number = f"[{source.number}] " if source.number is not None else ""
    return f"{number}{', '.join(place)}" + (f": {text}" if whole else "")


def amount(number: int, noun: str) -> str:
    """``1 turn``, ``2 turns``, ``2 memories``."""
    if number != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun}"


def overflow_words(overflow: Overflow) -> str:
    """What no longer fits, in a sentence."""
    text = (
        f"With room for a reply this needs {overflow.needed:,} tokens;"
        f" the model reads at most {overflow.context:,} at once."
    )
    if overflow.drop is None:
        return text + " The question alone is too long."
    return text + f" The oldest {amount(overflow.drop, 'turn')} would not fit."


def meter(used: int, size: int, width: int = 10) -> str:
    """A bar of ``width`` cells."""
    full = 0 if size <= 0 else min(width, round(width * used / size))
    return "▰" * full + "▱" * (width - full)
