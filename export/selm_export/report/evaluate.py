"""Bits per byte of replies, computed by the inference core on the file that ships.

Nothing here imports torch: what is measured is what a user's machine will run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from selm_export.data.chat import CHAT_TEMPLATE, Conversation, Message
from selm_export.data.corpus import parse_talk, read_lines, read_text
from selm_export.errors import RecipeError


class Session(Protocol):
    def eval(self, ids: Sequence[int]) -> Any: ...


class Core(Protocol):
    """The part of ``selm_edge.Model`` that an evaluation needs."""

    @property
    def metadata(self) -> Any: ...
    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]: ...
    def session(self) -> Session: ...
    def chat(self, messages: Any, *, temperature: float, max_tokens: int) -> Any: ...


@dataclass
class Score:
    nats: float = 0.0
    tokens: int = 0
    size: int = 0
    cut: int = 0  # conversations that did not fit into the context

    def __add__(self, other: Score) -> Score:
        return Score(
            self.nats + other.nats, self.tokens + other.tokens, self.size + other.size,
            self.cut + other.cut,
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        nll = self.nats / max(1, self.tokens)
        return {
            "bits_per_byte": self.nats / math.log(2) / max(1, self.size),
            "nll": nll,
            "tokens": self.tokens,
            "perplexity": math.exp(min(nll, 700.0)),
            "bytes": self.size,
            "cut_conversations": self.cut,
        }


def read_data(path: Path) -> list[Conversation]:
    """A talk file, or a .jsonl file whose lines hold ``messages``; plain or .xz."""
    if ".jsonl" not in path.suffixes:
        return parse_talk(read_text(path), path.name, path)
    found = []
    for number, row in enumerate(read_lines(path), start=1):
        try:
            messages = tuple(Message(m["role"], str(m["content"])) for m in row["messages"])
        except (KeyError, TypeError):
            raise RecipeError(
                path, f"line {number} has no list 'messages' of role and content", "Mend it"
            ) from None
        found.append(Conversation(messages, path.name))
    return found


def written(template: str, conversation: Conversation) -> str:
    """The conversation as the model's own template writes it."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=False, bos_token="", eos_token=""
    )


def spans(text: str, conversation: Conversation) -> Iterator[tuple[str, bool]]:
    """Cuts the written conversation into what was given and what the assistant said."""
    start = position = 0
    for message in conversation.messages:
        content = message.content.strip()
        found = text.find(content, position)
        if found < 0:
            raise RecipeError(
                conversation.source, "the model's chat template changes the messages' text",
                "Evaluate a model whose template writes them as they are",
            )  # fmt: skip
        position = found + len(content)
        if message.role == "assistant" and content:
            yield text[start:found], False
            yield content, True
            start = position


def log_softmax_at(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probability of each row's target, in float64."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    found: NDArray[np.float64] = wide[np.arange(len(targets)), targets] - total
    return found


def score(core: Core, conversation: Conversation, template: str, context: int, into: Score) -> None:
    ids: list[int] = []
    counted: list[bool] = []
    sizes: list[int] = []  # bytes of a reply, at its first token
    for text, reply in spans(written(template, conversation), conversation):
        piece = core.tokenize(text, add_special=not ids, parse_special=not reply)
        ids.extend(piece)
        counted.extend([reply] * len(piece))
        if piece:
            sizes.extend([len(text.encode()) if reply else 0, *[0] * (len(piece) - 1)])
    if len(ids) > context:
        # Whole replies only: half of one would count all of its bytes.
        into.cut += 1
        end = context
        while 0 < end < len(ids) and counted[end] and sizes[end] == 0:
            end -= 1
        ids, counted, sizes = ids[:end], counted[:end], sizes[:end]
    if not any(counted):
        return
    logits = np.asarray(core.session().eval(ids[:-1]), dtype=np.float32)
    logits = logits.reshape(len(ids) - 1, -1)
    places = np.flatnonzero(np.array(counted[1:]))
    found = log_softmax_at(logits[places], np.array(ids[1:], dtype=np.int64)[places])
    into.nats -= float(found.sum())
    into.tokens += len(places)
    into.size += sum(sizes)


def evaluate(core: Core, conversations: Sequence[Conversation], context: int = 4096) -> Score:
    template = str(core.metadata.get("tokenizer.chat_template") or CHAT_TEMPLATE)
    result = Score()
    for conversation in conversations:
        score(core, conversation, template, context, result)
    return result


def find_model(name: str) -> Path:
    """A path, or the name of a model that the installed package carries."""
    path = Path(name)
    if path.exists():
        return path
    from importlib.resources import files

    try:
        folder = Path(str(files("selm_edge"))) / "models"
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return folder / str(card["file"])
    except (ModuleNotFoundError, OSError, ValueError, KeyError):
        raise RecipeError(
            name, "is neither a file nor a bundled model", "Give the path of a .gguf file"
        ) from None


def load_core(path: Path, context: int) -> Core:
    try:
        from selm_edge import Model
    except ImportError as error:
        raise RecipeError(
            "selm_edge", f"the inference core cannot be imported ({error})",
            "Install the package with a compiler: pip install .",
        ) from error  # fmt: skip
    core: Core = Model.load(path, context=context)
    return core
