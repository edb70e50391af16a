"""The core's WordPiece against the `tokenizers` library: equal sums of rows of random numbers mean
equal tokens (their order is checked in C++)."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import expected, reference, write_embedder
from tokenizers.normalizers import BertNormalizer

from selm_edge import _core

MOST = 12  # characters of a word
CODES = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
# Marks that stay (of several orders), marks that go, what is cleaned away, what decomposes.
HIGH, LOW = "\u302e", "\U0001d165"  # marks that stay, of orders 224 and 216
ODD = [
    *(HIGH, "\u302f", LOW, "\U0001d16d", "\U0001d16e", "\u1df6", "\u08d4", "\u1b44"),
    *("\u09cb", "\U0001133b", "\u0d3b", "\U000111c0", "\u0301", "\u0323", "\u034f", "\u0345"),
    *("\u200b", "\x00", "\x85", "\ufffd", "\u0130", "\u1e9e", "\uac01", "\ud7a3", "\uf900"),
    *("\u2260", "\U0001d15e", "\u4e2d", "\u3000", "\u2028", "\u00a0", "\u0344", "\U0002fa1d"),
    *("\u212b", "\u03a3", "\u1fef"),
]


class Pair:
    """A vocabulary in the core and in the library."""

    def __init__(self, path: Path, characters: Sequence[str]) -> None:
        pieces = ["ab", "abc", "ing", "the", "##ab", "##ing", "##bc"]
        self.tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces]
        for character in dict.fromkeys(characters):
            self.tokens += [character, "##" + character]
            if unicodedata.combining(character):  # a sum knows no order, but for tokens of two
                self.tokens += [f"##{character}{mark}" for mark in (HIGH, LOW)]
                self.tokens += [f"##{mark}{character}" for mark in (HIGH, LOW)]
        self.tokens = list(dict.fromkeys(self.tokens))
        draw = np.random.default_rng(4)
        rows = draw.integers(-999, 999, (len(self.tokens), 16)).astype(np.float32)
        self.rows = write_embedder(path, self.tokens, rows, most=MOST)
        self.core = _core.StaticEmbedder(str(path))
        self.bert = reference(self.tokens, most=MOST)

    def differ(self, texts: Sequence[str]) -> list[str]:
        """Those that the two cut otherwise."""
        found = []
        encoded = self.bert.encode_batch(list(texts), add_special_tokens=False)
        for text, ids, got in zip(texts, encoded, self.core.embed(list(texts)), strict=True):
            want = expected(self.tokens, self.rows, ids.ids)
            if want is None or got is None:
                same = want is got
            else:
                same = bool(np.abs(np.frombuffer(got, "<f4") - want).max() < 1e-6)
            if not same:
                found.append(text)
        return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Knows ASCII, whatever some other code point becomes, and what the odd ones are made of."""
    whole = BertNormalizer()
    letters = [chr(code) for code in range(0x21, 0x7F)]
    assigned = [chr(c) for c in CODES if unicodedata.category(chr(c)) not in ("Cn", "Co")]
    becomes = [whole.normalize_str(char).strip(" ") for char in assigned]
    for char, out in zip(assigned, becomes, strict=True):
        if out != char or unicodedata.combining(char):
            letters += out
    letters += whole.normalize_str("".join(ODD)).replace(" ", "")
    return Pair(tmp_path_factory.mktemp("wordpiece") / "embedder.gguf", letters)


def test_every_code_point(pair: Pair) -> None:
    """Inside a word, between two marks that are put in order unless it divides them."""

    def text(codes: Sequence[int]) -> str:
        return " ".join(f"a{HIGH}{chr(code)}{LOW}b" for code in codes)

    step = 512
    for start in range(0, len(CODES), step):
        codes = CODES[start : start + step]
        if pair.differ([text(codes)]):
            wrong = [code for code in codes if pair.differ([text([code])])]
            raise AssertionError(f"cut otherwise: {[hex(code) for code in wrong]}")


@settings(max_examples=400, deadline=None)
@given(
    st.text(
        st.one_of(
            st.sampled_from(ODD),
            st.sampled_from("ab ing.,'#[]ABC\t\n"),
            st.characters(exclude_categories=["Cs"]),
        ),
        max_size=40,
    )
)
def test_any_text(pair: Pair, text: str) -> None:
    assert pair.differ([text]) == []


def test_sentences(pair: Pair) -> None:
    texts = [
        "The Ring of the Nibelung, bringing thing after thing!",
        "Crème brûlée — naïve façade; İstanbul'da ÇALIŞMAK",
        "Прийти к выводу: ёлка и ещё Йод",
        "日本語のテキスト、カタカナとひらがな。한국어 문장",
        "हिन्दी में पाठ, বাংলা লেখা, தமிழ் உரை, ភាសាខ្មែរ",
        "العربية بِالتَّشْكِيل, עִבְרִית",
        "emoji 👩‍👩‍👧 and 🇩🇪, x² ≠ y², ﬁne",
        "[CLS] a [UNK] b [SEP] ##ab",
        "a" * MOST + " " + "a" * (MOST + 1) + " " + "é" * MOST,
    ]
    assert pair.differ(texts) == []


def test_lone_surrogates_count_as_replacement_characters(pair: Pair) -> None:
    same = pair.core.embed(["a\ufffdb \ufffd the", "a\ud800b \udfff the", "ab the"])
    assert same[0] is not None and same[0] == same[1] == same[2]
