"""Opening a file with the reader for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from selm_edge.memory.documents.blocks import (
    MAX_BYTES,
    Check,
    Document,
    DocumentError,
    no_check,
)
from selm_edge.memory.documents.code import LANGUAGES, NAMED, read_code
from selm_edge.memory.documents.encoding import decode

_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd", ".qmd", ".rmd", ".mdx")
_HTML = (".html", ".htm", ".xhtml", ".shtml")
_TABLES = (".csv", ".tsv", ".tab")
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Source:
    """A file as it was at one moment: ``data`` is None for a dump, which is streamed."""

    path: Path
    sha256: str
    data: bytes | None


def load(path: Path, check: Check = no_check) -> Source:
    """The file's bytes and their hash. Raises DocumentError where it cannot be read or is larger
    than 64 MB and no dump. ``check`` is called again and again and may raise, to end it."""
    from selm_edge.memory.documents.wikipedia import is_dump

    try:
        if path.exists() and not path.is_file():
            raise DocumentError(path, "not a file with content (a folder, a device or a pipe)")
        with path.open("rb") as file:
            beginning = file.read(_CHUNK)
            if path.suffix.lower() in (".xml", ".bz2") and is_dump(beginning):
                digest = hashlib.sha256(beginning)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    check()
                return Source(path, digest.hexdigest(), None)
            data = beginning + file.read(MAX_BYTES + 1 - len(beginning))
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise DocumentError(path, f"cannot be read: {cause}") from error
    if len(data) > MAX_BYTES:
        raise DocumentError(
            path, f"larger than {MAX_BYTES >> 20} MB", "Split it into several files."
        )
    return Source(path, hashlib.sha256(data).hexdigest(), data)


def open_document(source: Source, cursor: str | None = None, check: Check = no_check) -> Document:
    """The document in a file, by its content first and the end of its name second.

    ``cursor`` is of a `Unit` that the same file gave; ``check`` as for `load`. Raises
    DocumentError, here or while the blocks are taken.
    """
    path, data = source.path, source.data
    if data is None:
        from selm_edge.memory.documents.wikipedia import read_dump

        return read_dump(path, cursor, check)
    if b"%PDF-" in data[:1024]:
        from selm_edge.memory.documents.pdf import read_pdf

        return read_pdf(path, data)
    text, notices = decode(path, data)
    document = _of_text(path, text)
    document.notices += notices
    return document


def _of_text(path: Path, text: str) -> Document:
    from selm_edge.memory.documents import html, markdown
    from selm_edge.memory.documents import text as plain

    suffix = path.suffix.lower()
    if suffix == ".pdf":
        raise DocumentError(path, "not a PDF file, whatever its name says", "Rename it to .txt.")
    if suffix in _MARKDOWN:
        return Document(path, "markdown", markdown.read_markdown(text))
    if suffix in _HTML:
        return Document(path, "html", html.read_html(text))
    if suffix in _TABLES:
        return Document(path, "text", plain.read_table(text))
    language = LANGUAGES.get(suffix) or NAMED.get(path.name.lower())
    if language:
        return Document(path, "code", read_code(text), language)
    return Document(path, "text", plain.read_text(text))
