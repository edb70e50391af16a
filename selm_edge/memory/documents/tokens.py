"""How many tokens a text has, without a tokenizer.

Words of Latin letters count one token for up to 7 letters, numbers one for 3 digits, other
scripts one for each sign or pair of letters, punctuation one for two marks, a line break with the
space around it one. No token has more than 17 characters, so that this bounds the length too.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"[a-zA-Z]{1,7}"
    r"|\d{1,3}"
    r"|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
    r"|[^\W\d_]{1,2}"
    r"|[^\w\s]{1,2}|_{1,8}"
    r"|\n\s{0,16}|[^\S\n]{16}"
)


def estimate(text: str) -> int:
    """About as many tokens as the common tokenizers make of ``text`` (32,000 to 150,000 entries):
    within a quarter on prose and code. Adding a part never lowers it."""
    return len(_TOKEN.findall(text))
