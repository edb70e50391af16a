"""The user's own files as conversations and texts: .jsonl, .txt, .md, folders of documents, and
folders that Hugging Face's `datasets` has saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from selm_export.data.chat import Conversation, Message, chat
from selm_export.data.corpus import parse_talk, read_lines, read_text
from selm_export.errors import RecipeError

TEXT_ENDINGS = (".txt", ".md", ".rst")
PIECE = 1600  # characters of a document that go into one training text
QUESTIONS = ("question", "prompt", "instruction", "input")
ANSWERS = ("answer", "response", "output", "completion")


def read_user_files(path: Path) -> list[Conversation]:
    """What a file or folder holds; its name, without endings, is the source."""
    name = path.name.split(".")[0]
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return [_row(row, name, path, i) for i, row in enumerate(_dataset(path), start=1)]
        return [c for file in _documents(path) for c in _texts(read_text(file), name)]
    if ".jsonl" in path.suffixes:
        return [_row(row, name, path, i) for i, row in enumerate(read_lines(path), start=1)]
    text = read_text(path)
    if re.match(r"\s*[UN]: ", text):
        return parse_talk(text, name, path)
    return list(_texts(text, name))


def _documents(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix in TEXT_ENDINGS and p.is_file())
    if not found:
        raise RecipeError(
            folder, f"holds no document ({', '.join(TEXT_ENDINGS)})", "Name another folder"
        )
    return found


def _dataset(folder: Path) -> Iterable[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(
            folder, "is a folder of the datasets package, which is not installed",
            "pip install datasets, or save the rows as .jsonl",
        ) from error  # fmt: skip
    found = datasets.load_from_disk(str(folder))
    splits = found.values() if isinstance(found, dict) else [found]
    return (row for split in splits for row in split)


def _row(row: dict[str, Any], source: str, path: Path, number: int) -> Conversation:
    """A row with ``messages``, or with a question and an answer, or with ``text``."""
    if isinstance(row.get("messages"), list):
        try:
            messages = tuple(Message(m["role"], str(m["content"])) for m in row["messages"])
        except (KeyError, TypeError):
            raise RecipeError(
                path, f"row {number}: 'messages' is no list of role and content", "Mend it"
            ) from None
        return Conversation(messages, source)
    question = next((str(row[key]) for key in QUESTIONS if row.get(key)), None)
    answer = next((str(row[key]) for key in ANSWERS if row.get(key)), None)
    if question and answer:
        return chat(source, question, answer)
    if row.get("text"):
        return Conversation((Message("text", str(row["text"])),), source)
    raise RecipeError(
        path, f"row {number} has neither 'messages', nor 'text', nor a question and an answer",
        f"Questions: {', '.join(QUESTIONS)}; answers: {', '.join(ANSWERS)}",
    )  # fmt: skip


def _texts(text: str, source: str) -> Iterator[Conversation]:
    """Whole paragraphs, as many as fit into a piece."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        plain = " ".join(paragraph.split())
        if piece and len(piece) + len(plain) > PIECE:
            yield Conversation((Message("text", piece),), source)
            piece = ""
        piece = f"{piece}\n{plain}".strip()
    if piece:
        yield Conversation((Message("text", piece),), source)
