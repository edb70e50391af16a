"""Bits per byte of replies, computed by the inference core on the file that ships.

Nothing here imports torch: what is measured is what a user's machine will run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from selm_export.data.chat import CHAT_TEMPLATE, Conversation, Message
from selm_export.data.corpus import parse_talk, read_lines, read_text
from selm_export.errors import RecipeError


class Session(Protocol):
    def eval(self, ids: Sequence[int], /) -> Any: ...


class Core(Protocol):
    """The part of ``selm_edge.Model`` that an evaluation needs."""

    @property
    def metadata(self) -> Any: ...
    @property
    def context(self) -> int: ...
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


def domain_of(name: str) -> str:
    """Which expert a source belongs to, by its name: ``talk/math2`` and ``gsm8k`` are math,
    ``test-medical`` and ``medquad`` medical, the rest general."""
    stem = re.split(r"[/\\]", name)[-1].removeprefix("test-").split(".")[0].lower()
    if stem.startswith(("math", "gsm8k", "arithmetic")):
        return "math"
    if stem.startswith(("med", "pubmedqa", "health")):
        return "medical"
    return "general"


def read_labelled(path: Path) -> list[tuple[str, Conversation]]:
    """The conversations of a talk file, or of a .jsonl file whose lines hold ``messages``, each
    with its domain: a line's ``domain``, else what its ``source`` or the file's name says. Plain
    or .xz."""
    if ".jsonl" not in path.suffixes:
        domain = domain_of(path.name)
        return [(domain, c) for c in parse_talk(read_text(path), path.name, path)]
    found = []
    for number, row in enumerate(read_lines(path), start=1):
        try:
            messages = tuple(Message(m["role"], str(m["content"])) for m in row["messages"])
        except (KeyError, TypeError):
            raise RecipeError(
                path, f"line {number} has no list 'messages' of role and content", "Mend it"
            ) from None
        domain = row.get("domain") or domain_of(str(row.get("source") or path.name))
        found.append((str(domain), Conversation(messages, path.name)))
    return found


def read_data(path: Path) -> list[Conversation]:
    return [conversation for _, conversation in read_labelled(path)]


@cache
def _compiled(template: str) -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


def written(template: str, messages: Sequence[Message], *, reply: bool = False) -> str:
    """The conversation as the model's own template writes it; with ``reply`` up to where the
    assistant would go on. RecipeError where the template refuses it."""
    from jinja2.exceptions import TemplateError

    try:
        text: str = _compiled(template).render(
            messages=[{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=reply, bos_token="", eos_token="",
        )  # fmt: skip
    except TemplateError as error:
        raise RecipeError(
            "tokenizer.chat_template", f"does not take the conversation ({error})",
            "Evaluate on data of another form, or a model with another template",
        ) from error  # fmt: skip
    return text


def template_of(core: Core) -> str:
    return str(core.metadata.get("tokenizer.chat_template") or CHAT_TEMPLATE)


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


@dataclass(frozen=True)
class Text:
    """A conversation as a model reads it."""

    ids: list[int]
    reply: list[bool]  # which tokens are text of a reply; the end-of-turn token is none
    size: int  # bytes of those replies
    cut: bool  # it was longer than the context

    @property
    def places(self) -> NDArray[np.int64]:
        """Rows of the logits of ``ids[:-1]`` whose next token is of a reply."""
        return np.flatnonzero(np.array(self.reply[1:], dtype=bool))

    @property
    def targets(self) -> NDArray[np.int64]:
        """What comes there."""
        return np.array(self.ids[1:], dtype=np.int64)[self.places]


def read(core: Core, conversation: Conversation, template: str, context: int) -> Text:
    """What does not fit into the context is cut, to whole replies: half of one would count all of
    its bytes."""
    ids: list[int] = []
    reply: list[bool] = []
    sizes: list[int] = []  # bytes of a reply, at its first token
    for text, said in spans(written(template, conversation.messages), conversation):
        piece = core.tokenize(text, add_special=not ids, parse_special=not said)
        ids.extend(piece)
        reply.extend([said] * len(piece))
        if piece:
            sizes.extend([len(text.encode()) if said else 0, *[0] * (len(piece) - 1)])
    end = len(ids)
    if len(ids) > context:
        end = context
        while end > 0 and reply[end] and sizes[end] == 0:
            end -= 1
    return Text(ids[:end], reply[:end], sum(sizes[:end]), end < len(ids))


def rows_of(logits: Any) -> NDArray[np.float32]:
    """What a session's ``eval`` gives, as [tokens, vocab]."""
    found = np.asarray(logits, dtype=np.float32)
    return found.reshape(-1, found.shape[-1])


def score(core: Core, text: Text) -> Score:
    result = Score(size=text.size, cut=int(text.cut))
    if any(text.reply):
        logits = rows_of(core.session().eval(text.ids[:-1]))
        found = log_softmax_at(logits[text.places], text.targets)
        result.nats, result.tokens = -float(found.sum()), len(found)
    return result


def evaluate(core: Core, conversations: Sequence[Conversation], context: int = 4096) -> Score:
    template = template_of(core)
    result = Score()
    for conversation in conversations:
        result += score(core, read(core, conversation, template, context))
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


def load_core(path: Path, context: int, backend: str | None = None) -> Core:
    """By the package's own core, or another backend of ``selm_edge`` by name."""
    try:
        from selm_edge import Model, SelmError
    except ImportError as error:
        raise RecipeError(
            "selm_edge", f"the inference core cannot be imported ({error})",
            "Install the package with a compiler: pip install .",
        ) from error  # fmt: skip
    try:
        core: Core = Model.load(path, context=context, backend=backend)
    except SelmError as error:
        cause, _, remedy = str(error).removeprefix(f"{path}: ").partition("\n")
        raise RecipeError(path, cause, remedy or "Choose another file or backend") from error
    return core
