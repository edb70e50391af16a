"""Terminal control in text from a model or document never reaches the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selm_edge.clean import Cleaner, clean, clean_line

CASES = [
    ("plain\ttext\nwith lines", "plain\ttext\nwith lines"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("a\x1b[2J\x1b[Hb", "ab"),
    ("\x1b]52;c;aGk=\x07clip", "clip"),
    ("\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x1b]0;title\x9crest", "rest"),
    ("\x9b31mc1\x9d0;t\x07", "c1"),
    ("\x1bPq#0\x1b\\dcs", "dcs"),
    ("\x1b(Bcharset\x1bc\x1b7", "charset"),
    ("bell\x07 back\x08 del\x7f nul\x00", "bell back del nul"),
    ("win\r\nmac\rx", "win\nmacx"),
    ("\x1b]unterminated\nnext line", "\nnext line"),
    ("if \u202eadmin\u2066", "if admin"),
    ("half\ud83d", "half\ufffd"),
    ("end\x1b", "end"),
    ("ünïcode 🙂 עברית 日本", "ünïcode 🙂 עברית 日本"),
]


@pytest.mark.parametrize(("raw", "shown"), CASES)
def test_cases(raw: str, shown: str) -> None:
    assert clean(raw) == shown
    for size in (1, 2, 3):
        cleaner = Cleaner()
        pieces = [cleaner.feed(raw[i : i + size]) for i in range(0, len(raw), size)]
        assert "".join(pieces) + cleaner.finish() == shown, size


_hostile = st.text(alphabet="\x1b[]0;m\x07\x9b\x9d\x9cP\\\r\nab(52c", max_size=40)


@given(_hostile, st.lists(st.integers(1, 5), max_size=40))
def test_any_cut_gives_safe_text(raw: str, cuts: list[int]) -> None:
    cleaner, shown, at = Cleaner(), "", 0
    for cut in [*cuts, len(raw)]:
        shown += cleaner.feed(raw[at : at + cut])
        at += cut
    shown += cleaner.finish()
    for text in (shown, clean(raw)):
        assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in text)


def test_a_sequence_that_never_ends_does_not_hold_a_reply_for_ever() -> None:
    cleaner = Cleaner()
    shown = "".join(cleaner.feed(word) for word in ["\x1b]"] + ["word "] * 2000)
    assert shown.endswith("word ")


def test_one_line() -> None:
    assert clean_line("a\n b\x1b[1m\tc ") == "a b c"
