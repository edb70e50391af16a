"""BLEU against sacrebleu, the overlap of words against counts by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selm_edge.feedback.overlap import Grams, bleu, overlap

TEXT = st.text(st.sampled_from("abc AB12.,-'\"&;<>\n(é%"), max_size=40) | st.text(max_size=12)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def test_words_overlap_as_squad_counts() -> None:
    """'The cat sat' against 'a cat sat on the mat': articles do not count."""
    assert overlap("The cat sat.", "a cat sat on the mat") == (1.0, 0.5, pytest.approx(2 / 3))
    assert overlap("dog", "cat") == (0.0, 0.0, 0.0)
    assert overlap("", "cat") == (0.0, 0.0, 0.0)
    assert overlap("", "the") == (1.0, 1.0, 1.0)
    assert overlap("a cat cat", "cat dog") == (0.5, 0.5, 0.5)  # one cat is in both


@given(PAIRS)
def test_bleu_is_what_sacrebleu_gives(pairs: list[tuple[str, str]]) -> None:
    metric = pytest.importorskip("sacrebleu.metrics.bleu").BLEU()
    replies, references = map(list, zip(*pairs, strict=True))
    expected = metric.corpus_score(replies, [references]).score
    assert bleu(replies, references) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_bleu_of_sentences_as_people_write_them() -> None:
    metric = pytest.importorskip("sacrebleu.metrics.bleu").BLEU()
    said = (
        "Descale it with white vinegar, half and half, for 20 minutes; rinse twice (at least).",
        'He said: "Don\'t!" - and left at 10:30, with $1,200.50 &amp; a state-of-the-art phone.',
        "Version 3.2-rc1 fixes <b>it</b>.\nReally.",
    )
    draw = random.Random(7)
    for _ in range(50):
        replies, references = [], []
        for text in said:
            words = text.split(" ")
            references.append(text)
            replies.append(" ".join(w for w in words if draw.random() < 0.8))
        expected = metric.corpus_score(replies, [references]).score
        assert bleu(replies, references) == pytest.approx(expected, rel=1e-12)
    assert bleu(said, said) == pytest.approx(100)


def test_bleu_by_hand_and_when_it_says_nothing() -> None:
    """17 tokens on either side; 12 of 17, 6 of 14, 4 of 11 and 3 of 8 n-grams match."""
    replies = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    product = 12 / 17 * 6 / 14 * 4 / 11 * 3 / 8
    assert bleu(replies, references) == pytest.approx(100 * product**0.25, rel=1e-12)
    assert not Grams.of("Paris.", "Paris.").long_enough and bleu(["Paris."], ["Paris."]) == 0
    with pytest.raises(ValueError, match="shorter"):
        bleu(["one"], [])
