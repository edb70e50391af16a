"""The process that reads a PDF: a file from anywhere may ask for any time and memory.

Run as ``python -m selm_edge.memory.documents.pdf_worker``: the file's bytes come on standard
input, one line of JSON for each page goes to standard output. The process is bounded (memory
here, time by who started it), so a page that asks for too much ends this process and no other.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

MEMORY = 1536 * 1024 * 1024
"""Bytes of address space, where the system can bound it."""
MAX_PAGES = 20_000
LONGEST_PAGE = 1_000_000  # characters


def main() -> None:
    """Pages as ``{"page": 1, "text": "..."}``, a page that fails as ``{"page": 1, "error": ...}``,
    a file that fails as ``{"error": a code, "detail": ...}``, last ``{"end": number of pages}``."""
    _bound_memory()
    logging.disable(logging.CRITICAL)
    data = sys.stdin.buffer.read()
    try:
        _read(data)
    except MemoryError:
        _say(error="memory")
    except RecursionError:
        _say(error="damaged", detail="nested without end")
    except Exception as error:  # whatever a damaged file makes the library do
        _say(error="damaged", detail=_words(error))


def _read(data: bytes) -> None:
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError:
        return _say(error="missing")
    reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
    if reader.is_encrypted:
        try:
            opened = reader.decrypt("")  # many have only an owner's password, against changes
        except DependencyError as error:
            return _say(error="cipher", detail=_words(error))
        if not opened:
            return _say(error="encrypted")
    number = 0
    for number, page in enumerate(reader.pages, 1):
        if number > MAX_PAGES:
            return _say(error="pages")
        _page(number, page)
    return _say(end=number)


def _page(number: int, page: Any) -> None:
    try:
        text = page.extract_text() or ""
    except MemoryError:
        _say(page=number, error="it needs too much memory")
    except Exception as error:  # the other pages may be sound
        _say(page=number, error=_words(error))
    else:
        _say(page=number, text=text[:LONGEST_PAGE])


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _say(**entry: object) -> None:
    print(json.dumps(entry), flush=True)


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows: there only the time is bounded
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    main()
