"""Bytes to text: which encoding a file is in, and whether it is text at all."""

from __future__ import annotations

import codecs
from pathlib import Path

from selm_edge.memory.documents.blocks import DocumentError
from selm_edge.memory.documents.hygiene import tidy

_MARKS = (  # the longer first: UTF-32's mark begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KNOWN = (
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"SQLite format 3\x00", "a database"),
    (b"GGUF", "a model"),
)
_CONTROL = bytes(set(range(32)) - set(b"\t\n\x0b\x0c\r\x08\x1b")) + b"\x7f"
_SAVE_AS = "Save it as text, HTML or PDF and add that file."


def decode(path: Path, data: bytes) -> tuple[str, list[str]]:
    """The tidy text of a file and what its user should know.

    UTF-8, or what a byte order mark says; anything else is read as Windows-1252, which holds all
    printable characters of Latin-1, and said. Raises DocumentError for what is not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return tidy(data.decode(encoding)), []
            except UnicodeDecodeError:
                text = data.decode(encoding, "replace")
                if text.count("\ufffd") > len(text) // 100:
                    raise _not_text(path, data) from None
                return tidy(text), [f"damaged {encoding.upper()}: some characters are replaced"]
    controls = len(data) - len(data.translate(None, _CONTROL))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        if controls * 500 > len(data) or b"\0" in data:
            raise _not_text(path, data) from None
        text = data.decode("cp1252", "replace")
        return tidy(text), ["not UTF-8: read as Western European (Windows-1252)"]
    if controls * 50 > len(data):  # a few NULs in a log are no reason to refuse it
        raise _not_text(path, data)
    return tidy(text), []


def _not_text(path: Path, data: bytes) -> DocumentError:
    for beginning, what in _KNOWN:
        if data.startswith(beginning):
            return DocumentError(path, f"not text but {what}", _SAVE_AS)
    return DocumentError(path, "not text", _SAVE_AS)
