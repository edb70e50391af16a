"""Text from a model or a document, made safe to show in a terminal.

A terminal obeys what it prints: an escape sequence can move the cursor, set the clipboard
(OSC 52), fake a link (OSC 8) or rename the window. Marks that reverse the reading order can make
code read as what it is not. All of these are removed; letters, newlines and tabs stay.
"""

from __future__ import annotations

import re

_STRING_BODY = r"[^\n\x07\x1b\x9c]*"
_SEQUENCE = re.compile(
    # strings: OSC, DCS, SOS, PM, APC, up to their end (BEL or ST), a newline, or the next escape
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])" + _STRING_BODY + r"(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI
    r"|\x1b[ -/]*[0-~]?"  # two-character and charset sequences
)
_UNFINISHED = re.compile(
    r"(?:(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])" + _STRING_BODY + r"\x1b?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*"
    r"|\x1b[ -/]*"
    r"|\r)\Z"
)
# C0 but newline and tab, DEL, C1, and the marks that embed, override or isolate direction.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_SURROGATES = "\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_SURROGATE = re.compile(f"[{_SURROGATES}]")
_ANY = re.compile(f"[{_CONTROLS}{_SURROGATES}]")
_LONGEST_HELD = 4096  # characters; a sequence that never ends must not hold a reply back for ever


def clean(text: str) -> str:
    """``text`` without terminal control; ``\\r\\n`` becomes ``\\n``."""
    if _ANY.search(text) is None:
        return text  # nearly all text, fifteen times as fast: documents come by the megabyte
    text = _SEQUENCE.sub("", text).replace("\r\n", "\n")
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", text))


def clean_line(text: str) -> str:
    """The same on one line, for titles, names and messages."""
    return " ".join(clean(text).split())


class Cleaner:
    """`clean` for text that comes in pieces, whose cuts may fall inside a sequence."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be shown now; the beginning of a possible sequence is held back."""
        text = self._held + piece
        self._held = ""
        unfinished = _UNFINISHED.search(text)
        if unfinished and len(text) - unfinished.start() <= _LONGEST_HELD:
            self._held = text[unfinished.start() :]
            text = text[: unfinished.start()]
        return clean(text)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return clean(held)
