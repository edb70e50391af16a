"""Words and vectors made one ranking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selm_edge.memory.fusion import fuse, names_code

IDS = st.integers(1, 12)
LEXICAL = st.dictionaries(IDS, st.floats(0, 60)).map(
    lambda found: sorted(found.items(), key=lambda pair: -pair[1])
)
VECTOR = st.dictionaries(IDS, st.floats(-1, 1)).map(
    lambda found: sorted(found.items(), key=lambda pair: -pair[1])
)


def order(fused: list[tuple[int, float]]) -> list[int]:
    return [key for key, _ in fused]


def test_one_ranking_alone_keeps_its_order() -> None:
    assert order(fuse([(3, 9.0), (1, 4.0), (2, 0.5)], [])) == [3, 1, 2]
    assert order(fuse([], [(3, 0.9), (1, 0.4), (2, 0.1)])) == [3, 1, 2]
    assert fuse([], []) == []


def test_a_rare_word_outweighs_a_slightly_nearer_vector_and_a_common_one_does_not() -> None:
    vector = [(1, 0.52), (2, 0.50)]
    assert order(fuse([(2, 12.0)], vector, "what must Nora not eat")) == [2, 1]
    assert order(fuse([(2, 1.0)], vector, "what must she not eat")) == [1, 2]


def test_a_code_in_the_question_is_trusted_more() -> None:
    vector, lexical = [(1, 0.80), (2, 0.60)], [(2, 8.0), (1, 1.0)]
    assert order(fuse(lexical, vector, "which invoice is it")) == [1, 2]
    assert order(fuse(lexical, vector, "who sent INV-20417")) == [2, 1]


@pytest.mark.parametrize(
    ("question", "code"),
    [("what does E17 mean", True), ("at 7?", True), ("who is Nora", False), ("", False)],
)
def test_what_counts_as_a_code(question: str, code: bool) -> None:
    assert names_code(question) is code


@given(LEXICAL, VECTOR, st.sampled_from(["who", "INV-1"]))
def test_every_id_once_best_first(
    lexical: list[tuple[int, float]], vector: list[tuple[int, float]], question: str
) -> None:
    fused = fuse(lexical, vector, question)
    assert sorted(order(fused)) == sorted({key for key, _ in [*lexical, *vector]})
    scores = [score for _, score in fused]
    assert scores == sorted(scores, reverse=True)
    assert fused == fuse(lexical, vector, question)


@given(LEXICAL.filter(len), VECTOR, st.floats(0, 30))
def test_a_better_match_by_words_never_costs_a_place(
    lexical: list[tuple[int, float]], vector: list[tuple[int, float]], more: float
) -> None:
    key, score = lexical[-1]
    better = sorted([*lexical[:-1], (key, score + more)], key=lambda pair: -pair[1])
    before = order(fuse(lexical, vector)).index(key)
    assert order(fuse(better, vector)).index(key) <= before
