"""A conversation as a file: Markdown to read, JSON with every branch and figure to keep."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from selm_edge import paths
from selm_edge.errors import SelmError
from selm_edge.store.conversations import Conversation, Conversations, Message

Format = Literal["markdown", "json"]
JSON_FORMAT = "selm-conversation"
JSON_VERSION = 1


def to_markdown(conversations: Conversations, conversation: int) -> str:
    """The branch on show, as one reads it."""
    head = conversations.get(conversation)
    path = conversations.path(conversation)
    parts = [f"# {head.title}", f"*{_date(head.created)}*"]
    if head.system:
        parts.append("> " + head.system.replace("\n", "\n> "))
    for turn in path:
        if turn.context_from is not None:
            parts.append("*(From here on the oldest turns were no longer sent to the model.)*")
        parts.append(f"## {_speaker(turn)}\n\n{turn.text}")
    return "\n\n".join(parts) + "\n"


def to_json(conversations: Conversations, conversation: int) -> str:
    """Everything: each turn of each branch with its parent, and which branch is on show."""
    head = conversations.get(conversation)
    document = {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "conversation": _head(head),
        "messages": [_turn(turn) for turn in conversations.tree(conversation)],
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def export(
    conversations: Conversations, conversation: int, path: Path, *, overwrite: bool = False
) -> Path:
    """Write it to ``path``: JSON where its name ends so, Markdown otherwise.

    SelmError where the file exists, unless ``overwrite``. Written beside and moved into place, so a
    full disk leaves no half file and no lost old one.
    """
    if not overwrite and path.exists():
        raise SelmError(f"{path} exists; choose another name")
    as_json = path.suffix.lower() == ".json"
    text = (to_json if as_json else to_markdown)(conversations, conversation)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths.write_atomically(path, text)
    return path


def file_name(conversation: Conversation, suffix: str) -> str:
    """A name for the export that every file system takes."""
    letters = (c if c.isalnum() else "-" for c in conversation.title.lower())
    words = [word for word in "".join(letters).split("-") if word]
    return ("-".join(words)[:48].strip("-") or f"conversation-{conversation.id}") + suffix


def _head(conversation: Conversation) -> dict[str, Any]:
    return asdict(conversation)


def _turn(message: Message) -> dict[str, Any]:
    turn = asdict(message)
    del turn["conversation"]
    facts = turn.pop("facts")
    if message.role == "assistant":
        turn["reply"] = facts
    return turn


def _speaker(turn: Message) -> str:
    if turn.role == "user":
        return "You"
    return f"Assistant ({turn.facts.model})" if turn.facts.model else "Assistant"


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
