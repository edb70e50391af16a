"""Text as it is kept: what a reader sees, and nothing that hides, reorders or commands.

Three kinds of characters are taken out: what a terminal obeys (`selm_edge.clean`), what has no
width (zero-width spaces and joiners, tag characters, variation selectors: they carry hidden text
or break words apart), and what reverses the reading order. Joiners stay between letters of the
scripts that are written with them. The number of lines stays the same.
"""

from __future__ import annotations

import re
import unicodedata

from selm_edge.clean import clean

# Invisible everywhere: soft hyphen, grapheme joiner, fillers, zero-width space, direction marks,
# word joiner and invisible operators, byte order mark, variation selectors, tag characters.
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_INVISIBLE = re.compile(f"[{_UNSEEN}]")
# Arabic to Thaana, the scripts of India and South-East Asia, Mongolian.
_JOINING = "\u0600-\u07bf\u0840-\u086f\u08a0-\u0dff\u1000-\u109f\u1780-\u17ff\u1800-\u18af"
_JOINER = re.compile(f"(?<![{_JOINING}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINING}])")
# Other marks that end a line somewhere, or would be taken out where words must stay apart.
_BREAKS = str.maketrans(dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", " "))


_ANY = re.compile(f"[{_UNSEEN}\x00-\x08\x0b-\x1f\x7f-\x9f\u200c\u200d\u2028-\u202e\ud800-\udfff]")
"""Whatever `tidy` may have to take out; most text has none of it."""


def tidy(text: str) -> str:
    """``text`` as NFC, with ``\\n`` as the only end of a line and nothing hidden or active."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _ANY.search(text) is None:
        return unicodedata.normalize("NFC", text)
    text = _JOINER.sub("", _INVISIBLE.sub("", text))
    return clean(unicodedata.normalize("NFC", text).translate(_BREAKS))


def tidy_line(text: str) -> str:
    """The same on one line, for headings and names."""
    return " ".join(tidy(text).split())


def strange_name(name: str) -> bool:
    """Whether a file's name holds what no honest name does: it could not be shown as it is."""
    name = name.replace("\ufe0f", "").replace("\u200d", "")  # parts of emoji
    return "\n" in name or tidy(name) != unicodedata.normalize("NFC", name)
