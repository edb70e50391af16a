"""How many tokens a text has, without a tokenizer, fast: all passages are cut by it.

A token is a run of up to 7 Latin letters, of 3 digits, of 2 letters of another alphabet, of 2
marks of punctuation, one sign of Chinese, Japanese or Korean, one or two line ends, or 16 spaces.
So no token has more than 16 characters, and a bound on tokens is one on characters too.
"""

from __future__ import annotations

_LETTER = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGIT = b"0123456789"
_MARK = bytes(set(range(0x21, 0x7F)) - set(_LETTER) - set(_DIGIT))
# UTF-8 says in a character's first byte which part of Unicode it is in.
_ALPHABET = bytes([*range(0xC2, 0xE2)])  # to U+1FFF: the alphabets
_DASH = bytes([0xE2])  # to U+2FFF: punctuation, arrows, mathematics
_SIGN = bytes([*range(0xE3, 0xF5)])  # Chinese, Japanese, Korean, emoji
_REST = bytes(range(0x80, 0xC0))  # what goes on with a character


def _only(kept: bytes, sign: bytes) -> bytes:
    """A table for bytes: ``sign`` for those of ``kept``, a space for all others."""
    return bytes(sign[0] if byte in kept else 0x20 for byte in range(256))


_LETTERS = _only(_LETTER, b"a")
_DIGITS = _only(_DIGIT, b"0")
_MARKS = _only(_MARK + _DASH, b".")
_ALPHABETS = _only(_ALPHABET, b"u")


def estimate(text: str) -> int:
    """About as many tokens as the common tokenizers make of ``text`` (32,000 to 150,000 entries):
    within a quarter on English prose and code, and within a half on most other languages."""
    data = b" " + text.encode("utf-8", "replace")
    marks = data.translate(_MARKS)
    count = (
        data.translate(_LETTERS).replace(b"aaaaaaa", b"a ").count(b" a")
        + data.translate(_DIGITS).replace(b"000", b"0 ").count(b" 0")
        + marks.count(b".") - marks.count(b"..")
        + data.count(b"\n") - data.count(b"\n\n")
        + data.count(b" " * 16) + data.count(b"\t" * 16)
    )  # fmt: skip
    if text.isascii():
        return count
    others = data.translate(_ALPHABETS, _REST)
    signs = len(data) - len(data.translate(None, _SIGN))
    return count + others.count(b"u") - others.count(b"uu") + signs
