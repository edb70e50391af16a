"""Recall: the right memory, by words and vectors, with the reasons; nothing where nothing fits."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.word_embedder import WordEmbedder

from selm_edge.memory import lexical, vectors
from selm_edge.memory.embedding import adopt, bring_up_to_date, to_embed
from selm_edge.memory.memories import Memories, Passage
from selm_edge.memory.recall import recall
from selm_edge.store import vector_table
from selm_edge.store.database import Database

FACTS = (
    "My dog is called Rex",
    "I live in Rome near the station",
    "My sister Anna works as a nurse",
    "The wifi password is A-113/B",
    "I am allergic to peanuts",
    "The dentist appointment is on 3 May",
    "My favourite colour is green",
)


@pytest.fixture(params=["words only", "vectors"])
def memories(request: pytest.FixtureRequest) -> Memories:
    made = Memories(Database(None), WordEmbedder() if request.param == "vectors" else None)
    for fact in FACTS:
        made.add(fact, anyway=True)
    return made


def texts(memories: Memories, question: str, **options: object) -> list[str]:
    return [one.memory.text for one in recall(memories, question, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the name of my dog?", FACTS[0]),
        ("Which station am I living near?", FACTS[1]),
        ("Who in my family is a nurse?", FACTS[2]),
        ("a-113/b?", FACTS[3]),
        ("Can I eat peanuts?", FACTS[4]),
        ('appointment "AND" NOT dentist* OR (', FACTS[5]),
    ],
)
def test_the_right_one_comes_first(memories: Memories, question: str, answer: str) -> None:
    assert texts(memories, question)[:1] == [answer]


def test_words_are_told_as_the_text_has_them(memories: Memories) -> None:
    """By stem and without accents, what is written together as a whole, each once."""
    text = "Rerouting cable A-113/B, routed via the Cafe\u0301s: B routes, Cable again"
    memories.add(text, anyway=True)
    found = recall(memories, "which cables are routed by a-113/b to the cafe?")
    words = next(one.words for one in found if one.memory.text == text)
    assert words == ("cable", "a-113/b", "routed", "cafe\u0301s", "b", "routes")


@pytest.mark.parametrize("question", ["Hi", "hello there!", "", "?!", "Thanks, good morning", "ok"])
def test_small_talk_recalls_nothing(memories: Memories, question: str) -> None:
    assert texts(memories, question) == []


def test_why_it_was_recalled(memories: Memories) -> None:
    (found, *_) = recall(memories, "Which nurses are in my family, sister?")
    assert found.memory.text == FACTS[2]
    assert found.lexical_rank == 1 and set(found.words) == {"nurse", "sister"}
    assert 0 <= found.age_ms < 60_000 and found.score > 0
    if memories.vectors_problem is None:
        assert found.vector_rank is not None and 0 < (found.cosine or 0) <= 1
    else:
        assert found.vector_rank is None and found.cosine is None


def test_pinned_first_whatever_is_asked(memories: Memories) -> None:
    green = memories.list()[0]
    assert green.text == FACTS[6]
    memories.pin(green.id)
    assert texts(memories, "dog")[:2] == [FACTS[6], FACTS[0]]
    assert texts(memories, "Hi") == [FACTS[6]]
    assert texts(memories, "dog", limit=1) == [FACTS[6]]
    assert texts(memories, "dog", relevant_only=False)[0] == FACTS[0]


def test_superseded_and_never_stay_out(memories: Memories) -> None:
    rome = next(one for one in memories.list() if "Rome" in one.text)
    memories.supersede(rome.id, "I live in Oslo now")
    assert texts(memories, "where do I live?")[0] == "I live in Oslo now"
    assert FACTS[1] not in texts(memories, "where do I live, Rome?")
    dog = next(one for one in memories.list() if "Rex" in one.text)
    memories.set_status(dog.id, "never")
    assert FACTS[0] not in texts(memories, "What is my dog called?")


def test_a_newer_correction_stands_before_the_older_fact(memories: Memories) -> None:
    memories.database.rows("update memory set created = created - 1000")
    memories.add("My dog is called Bello", kind="correction", anyway=True)
    found = texts(memories, "What is my dog called?")
    assert found[:2] == ["My dog is called Bello", FACTS[0]]


def test_of_passages_that_say_the_same_one_is_enough(memories: Memories) -> None:
    same = "The harbour bridge was opened in 1932 by the mayor of the town"
    rows = []
    for name in ("a.txt", "b.txt", "c.txt"):
        found = memories.database.one(
            "insert into document(space, path, kind, sha256, size, modified, state, created,"
            " updated) values(1, ?, 'text', 'ab', 1, 1, 'complete', 1, 1) returning id",
            (name,),
        )
        rows.append(found)
        memories.add_many([Passage(same)], source=name, document=found[0] if found else None)
    other = "The harbour bridge is painted every seven years"
    memories.add_many([Passage(other)], source="d.txt")
    assert sorted(texts(memories, "harbour bridge")) == sorted([same, other])


def test_filters_hold_before_the_limit(memories: Memories) -> None:
    work = memories.space("work", create=True).id
    for number in range(80):
        memories.add(f"The dog number {number} barks", anyway=True)
    wanted = memories.add("The office dog is called Ada", space=work).memory
    assert texts(memories, "dog", space=work) == [wanted.text]
    turn = memories.add("User said: the dog is ill", kind="turn").memory
    assert texts(memories, "dog", kinds=["turn"]) == [turn.text]
    assert texts(memories, "dog", kinds=["turn", "passage"]) == [turn.text]
    assert texts(memories, "dog", until=1) == []
    memories.database.rows("update memory set created = 5 where id = ?", (turn.id,))
    memories.database.rows("update memory set embedded = 0")
    if memories.embedder is not None:
        from selm_edge.memory.embedding import bring_up_to_date

        memories.index.create(memories.embedder.id, 256)
        bring_up_to_date(memories)
    assert texts(memories, "dog", until=6) == [turn.text]
    assert texts(memories, "dog", since=4, until=6) == [turn.text]


def test_the_budget_is_kept(memories: Memories) -> None:
    def count(text: str) -> int:
        return len(text.split())

    memories.add("My dog " + "barks " * 100 + "at night", anyway=True)
    found = texts(memories, "dog bark", budget=12, count_tokens=count)
    assert found and sum(map(count, found)) <= 12
    assert texts(memories, "dog", budget=0, count_tokens=count) == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_no_question_is_syntax(question: str) -> None:
    memories = Memories(Database(None))
    memories.add("My dog is called Rex")
    recall(memories, question)
    recall(memories, f"dog {question}")


# -- words -----------------------------------------------------------------------------------------


def test_words_worth_looking_for() -> None:
    assert lexical.words_of("What is the name of Anna's dog?") == ["name", "anna", "dog"]
    assert lexical.words_of("code A-113/B, please") == ["code", "a 113 b", "113", "b"]
    assert lexical.words_of("Who are you?") == []
    assert len(lexical.words_of(" ".join(f"w{n}" for n in range(500)))) == lexical.MOST_WORDS


def many(database: Database) -> Memories:
    memories = Memories(database)
    chance = random.Random(1)
    rows = []
    for number in range(3000):
        words = ["every"]
        words += ["common"] * (chance.random() < 0.7) + ["frequent"] * (chance.random() < 0.6)
        words += ["seldom"] * (number % 100 == 0) + ["unique"] * (number == 1234)
        rows.append(Passage(f"{' '.join(words)} number{number}"))
    memories.add_many(rows, source="numbers.txt")
    return memories


def test_common_words_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical, "MOST_SCORED", 100)
    monkeypatch.setattr(lexical, "MOST_COUNTED", 2500)
    memories = many(Database(None))
    database = memories.database

    def planned(text: str) -> tuple[str, bool]:
        query = lexical.plan(database, text)
        assert query is not None
        return query.match, query.scored

    assert planned("unique seldom") == ('"unique" OR "seldom"', True)
    # the common word adds to the score of rows with the rare one; the one in every row does not
    match, scored = planned("every common seldom")
    assert scored and match == '("seldom") AND ("seldom" OR "common")'
    match, scored = planned("every frequent common")
    assert not scored and " AND " in match
    assert lexical.plan(database, "nowhere") is None
    found = recall(memories, "every common frequent", limit=5)
    assert len(found) == 5 and all("common" in one.memory.text for one in found)
    assert "unique" in recall(memories, "unique common", limit=1)[0].memory.text


def test_a_small_store_scores_every_word() -> None:
    memories = many(Database(None))
    query = lexical.plan(memories.database, "every common seldom")
    assert query == lexical.Query('"every" OR "common" OR "seldom"', True)


# -- vectors ---------------------------------------------------------------------------------------


def stored(count: int, file: Path | None = None) -> tuple[Memories, list[array[float]]]:
    """``count`` random vectors in two spaces and all kinds, and the vectors."""
    chance = random.Random(3)
    memories = Memories(Database(file), WordEmbedder(dim=64))
    memories.space("other", create=True)
    made = []
    with memories.database.write() as connection:
        for number in range(count):
            vector = array("f", [chance.gauss(0, 1) for _ in range(64)])
            length = sum(x * x for x in vector) ** 0.5
            vector = array("f", [x / length for x in vector])
            made.append(vector)
            memories.index.put(
                connection,
                [(number + 1, 1 + number % 2, vectors.KINDS[number % 4], number, vector.tobytes())],
            )
    return memories, made


def nearest(made: list[array[float]], query: array[float], take: set[int], count: int) -> list[int]:
    """The truth, from the float32."""
    cosines = {n: sum(x * y for x, y in zip(made[n - 1], query, strict=True)) for n in take}
    return sorted(cosines, key=lambda n: -cosines[n])[:count]


def on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 3000 vectors were many."""
    monkeypatch.setattr(vectors, "SHARED_ABOVE", 0)
    monkeypatch.setattr(vectors, "_SHARD_BLOCK", 100)


@pytest.mark.parametrize("cores", ["one core", "all cores"])
@pytest.mark.parametrize("sampled_above", [0, 10**9])
def test_exact_search_finds_the_nearest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampled_above: int, cores: str
) -> None:
    monkeypatch.setattr(vectors, "_SAMPLED_ABOVE", sampled_above)
    if cores == "all cores":
        on_all_cores(monkeypatch)
    memories, made = stored(3000, tmp_path / "selm.db")
    every = set(range(1, 3001))
    for number in range(8):
        query = made[number * 37]
        found = memories.index.search(query.tobytes(), 10)
        assert found[0][0] == number * 37 + 1 and found[0][1] == pytest.approx(1, abs=0.01)
        truth = nearest(made, query, every, 10)
        assert len(set(truth) & {key for key, _ in found}) >= 9  # int8 may swap the last two
        for filters, take in (
            ((2, None, None, None), {n for n in every if n % 2 == 0}),
            ((None, ["fact", "turn"], None, None), {n for n in every if (n - 1) % 4 in (0, 2)}),
            ((None, ["passage"], None, None), {n for n in every if (n - 1) % 4 == 3}),
            ((1, None, 100, 120), {n for n in range(101, 121) if n % 2 == 1}),
        ):
            narrowed = memories.index.search(query.tobytes(), 10, filters)  # type: ignore[arg-type]
            assert {key for key, _ in narrowed} <= take
            truth = nearest(made, query, take, 10)
            assert len(narrowed) == 10
            assert len(set(truth) & {key for key, _ in narrowed}) >= 9


@pytest.mark.parametrize("cores", ["one core", "all cores"])
def test_bits_and_rescoring_find_nearly_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: str
) -> None:
    monkeypatch.setattr(vectors, "EXACT_UP_TO", 0)
    monkeypatch.setattr(vectors, "_SAMPLED_ABOVE", 0)
    if cores == "all cores":
        on_all_cores(monkeypatch)
    memories, made = stored(3000, tmp_path / "selm.db")
    right = 0
    for number in range(10):
        query = made[number * 31]
        found = [key for key, _ in memories.index.search(query.tobytes(), 10)]
        right += len(set(found) & set(nearest(made, query, set(range(1, 3001)), 10)))
    assert right >= 80  # of 100: with no likeness among the vectors, 64 signs say little


def test_all_cores_recall_what_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memories = Memories(Database(tmp_path / "selm.db"), WordEmbedder())
    memories.add_many([Passage(f"{fact} {n}") for n in range(60) for fact in FACTS], source="a")
    questions = ["Who is a nurse 31?", "peanuts", "station 7", "a-113/b 12"]
    alone = [recall(memories, question) for question in questions]
    on_all_cores(monkeypatch)
    together = [recall(memories, question) for question in questions]
    assert all(together)
    assert [[replace(one, age_ms=0) for one in found] for found in together] == [
        [replace(one, age_ms=0) for one in found] for found in alone
    ]


def test_an_index_without_shards_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As early builds made it."""
    path, embedder = tmp_path / "selm.db", WordEmbedder()
    with monkeypatch.context() as early:
        early.setattr(vectors, "SHARDS", 1)
        Memories(Database(path), embedder)
    database = Database(path)
    with database.write() as connection:
        vector_table.drop(connection)
        connection.execute(
            "create virtual table memory_vector using vec0(id integer primary key, space integer"
            f" partition key, kind integer, created integer, vector int8[{embedder.dim}],"
            f" bits bit[{embedder.dim}], chunk_size=512)"
        )
    on_all_cores(monkeypatch)
    memories = Memories(database, embedder)
    for fact in FACTS:
        memories.add(fact, anyway=True)
    assert (memories.index.made_by, memories.index.count()) == (embedder.id, len(FACTS))
    assert recall(memories, "nurse sister")[0].vector_rank == 1
    memories.forget([recall(memories, "nurse sister")[0].memory.id])
    assert memories.index.count() == len(FACTS) - 1


def test_a_zero_question_finds_nothing() -> None:
    memories, _ = stored(10)
    assert memories.index.search(bytes(256), 5) == []


def test_another_embedder_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    Memories(Database(path), WordEmbedder("one")).add("My dog is called Rex")
    other = Memories(Database(path), WordEmbedder("two", 128))
    assert "another embedder" in str(other.vectors_problem)
    assert [one.vector_rank for one in recall(other, "dog")] == [None]
    assert other.add("The cat is called Tom").outcome == "new"
    assert other.index.count() == 1


# -- embedding again -------------------------------------------------------------------------------


def test_embedding_again_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    plain = Memories(Database(path))
    plain.add_many([Passage(f"passage {n} of the book") for n in range(600)], source="b.txt")
    plain.add("...? !x")
    memories = Memories(Database(path), WordEmbedder("one"))
    assert to_embed(memories) == 601
    steps: list[tuple[int, int]] = []
    done = bring_up_to_date(memories, lambda *s: steps.append(s), stopped=lambda: bool(steps))
    assert done == 256 and to_embed(memories) == 345
    assert bring_up_to_date(memories) == 345 and memories.index.count() == 601
    other = Memories(Database(path), WordEmbedder("two", 128))
    adopt(other)
    assert other.vectors_problem is None and to_embed(other) == 601
    assert bring_up_to_date(other) == 601 == other.index.count()
    adopt(other)  # theirs already: nothing is thrown away
    assert other.index.count() == 601
    assert other.index.made_by == "two" and memories.vectors_problem is not None
