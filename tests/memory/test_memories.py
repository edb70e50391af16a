"""Memories: added once, corrected, edited, kept apart by space, forgotten to the last byte."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from support.word_embedder import WordEmbedder

from selm_edge.errors import SelmError
from selm_edge.memory.memories import (
    PERSONAL,
    Filters,
    Memories,
    Passage,
    normalised,
)
from selm_edge.store.errors import NotFound
from selm_edge.store.opening import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "selm.db")


@pytest.fixture(params=["words only", "vectors"])
def memories(store: Store, request: pytest.FixtureRequest) -> Memories:
    embedder = WordEmbedder() if request.param == "vectors" else None
    return Memories(store.database, embedder)


def vectors_fit(memories: Memories) -> bool:
    """Exactly the active memories have a vector, where vectors are on."""
    if memories.vectors_problem is not None:
        return memories.index.count() == 0
    active = {memory.id for memory in memories.list(Filters(), 10_000)}
    rows = memories.database.rows("select rowid from memory_vector_rowids")
    return {row[0] for row in rows} == active


def test_a_fact_is_read_back_as_told(memories: Memories) -> None:
    added = memories.add("  My dog is called Rex. ", source="shell", pinned=True)
    assert added.outcome == "new"
    memory = memories.get(added.memory.id)
    assert memory == added.memory
    assert (memory.text, memory.kind, memory.source) == ("My dog is called Rex.", "fact", "shell")
    assert (memory.space, memory.pinned, memory.status) == (PERSONAL, True, "active")
    assert memories.list() == [memory] and vectors_fit(memories)


def test_the_same_again_is_a_duplicate(memories: Memories) -> None:
    first = memories.add("My dog is called Rex.").memory
    for again in ("my dog  is called REX", "My dog is called Rex!", "\uff2dy dog is called Rex"):
        added = memories.add(again)
        assert (added.outcome, added.memory) == ("duplicate", first)
    assert memories.count() == 1
    other = memories.space("work", create=True)
    assert memories.add("My dog is called Rex.", space=other.id).outcome == "new"


def test_something_near_is_asked_about_and_stored_only_then(memories: Memories) -> None:
    first = memories.add("The spare key of the house is in the blue box").memory
    near = memories.add("The spare key of the house is in the blue box upstairs")
    assert (near.outcome, near.near, memories.count()) == ("near", (first,), 1)
    assert memories.add("The cat eats at seven").outcome == "new"
    again = memories.add("The spare key of the house is in the blue box upstairs", anyway=True)
    assert again.outcome == "new" and memories.count() == 3


def test_a_correction_supersedes_and_can_be_corrected_in_turn(memories: Memories) -> None:
    old = memories.add("I live in Rome").memory
    new = memories.supersede(old.id, "I live in Paris").memory
    assert (new.kind, new.status) == ("correction", "active")
    before = memories.get(old.id)
    assert (before.status, before.superseded_by) == ("superseded", new.id)
    newest = memories.supersede(new.id, "I live in Oslo").memory
    assert [memory.id for memory in memories.list()] == [newest.id]
    assert memories.count(Filters(statuses=None)) == 3 and vectors_fit(memories)
    with pytest.raises(SelmError, match="says the same"):
        memories.supersede(newest.id, "i live in oslo.")


def test_what_was_superseded_holds_again_when_it_is_told_again(memories: Memories) -> None:
    old = memories.add("I live in Rome").memory
    memories.supersede(old.id, "I live in Paris")
    paris = memories.list()[0]
    back = memories.supersede(paris.id, "I live in Rome")
    assert (back.outcome, back.memory.id, back.memory.status) == ("new", old.id, "active")
    assert [memory.text for memory in memories.list()] == ["I live in Rome"]
    assert vectors_fit(memories)


def test_correcting_what_is_not_there_stores_nothing(memories: Memories) -> None:
    with pytest.raises(NotFound):
        memories.add("I live in Oslo", kind="correction", corrects=[99])
    assert memories.count(Filters(statuses=None)) == 0


def test_an_edit_changes_text_words_and_vector(memories: Memories) -> None:
    memory = memories.add("My dog is called Rex").memory
    other = memories.add("Tea is at four").memory
    edited = memories.edit(memory.id, "My dog is called Bello")
    assert (edited.id, edited.text) == (memory.id, "My dog is called Bello")
    find = "select count(*) from memory_fts where memory_fts match ?"
    assert memories.database.rows(find, ("rex",)) == [(0,)]
    assert memories.database.rows(find, ("bello",)) == [(1,)]
    assert vectors_fit(memories)
    with pytest.raises(SelmError, match=f"memory {other.id} says this already"):
        memories.edit(memory.id, "tea is at FOUR")


def test_never_keeps_it_out_and_active_brings_it_back(memories: Memories) -> None:
    memory = memories.add("My dog is called Rex").memory
    assert memories.set_status(memory.id, "never").status == "never"
    assert memories.list() == [] and vectors_fit(memories)
    assert memories.set_status(memory.id, "active").status == "active"
    assert len(memories.list()) == 1 and vectors_fit(memories)


def test_empty_and_endless_texts_are_refused(memories: Memories) -> None:
    for text in ("", " \n", "\x1b[31m", "..."):
        with pytest.raises(SelmError, match="nothing to remember"):
            memories.add(text)
    with pytest.raises(SelmError, match="20000 characters, this has 30000"):
        memories.add("x" * 30_000)
    assert memories.count() == 0


def test_terminal_control_is_not_kept(memories: Memories) -> None:
    memory = memories.add("My \x1b]52;c;ZXZpbA==\x07dog\x1b[2J is \u202eRex").memory
    assert memory.text == "My dog is Rex"


def test_passages_go_in_at_once_and_once_for_each_document(store: Store) -> None:
    memories = Memories(store.database, WordEmbedder())
    documents = []
    for name in ("a.txt", "b.txt"):
        row = store.database.one(
            "insert into document(space, path, kind, sha256, size, modified, state, created,"
            " updated) values(1, ?, 'text', 'ab', 1, 1, 'complete', 1, 1) returning id",
            (name,),
        )
        assert row is not None
        documents.append(row[0])
    passages = [Passage(f"Passage number {n}", "Head", 2, n, n + 1) for n in range(5)]
    first = memories.add_many(passages, source="a.txt", document=documents[0])
    assert len(first) == 5
    assert memories.add_many(passages, source="a.txt", document=documents[0]) == []
    second = memories.add_many(passages, source="b.txt", document=documents[1])
    assert len(second) == 5 and vectors_fit(memories)
    memory = memories.get(first[3])
    assert (memory.heading, memory.page, memory.line, memory.line_end) == ("Head", 2, 3, 4)
    assert memories.forget_document(documents[0])
    assert memories.count(Filters(document=documents[1])) == 5 == memories.count()
    assert vectors_fit(memories)
    with pytest.raises(NotFound):
        memories.forget_document(documents[0])


def test_spaces_are_apart(memories: Memories) -> None:
    work = memories.space("Work", create=True)
    assert memories.space("work") == work
    memories.add("The boss is called Ada", space=work.id)
    memories.add("The cat is called Tom")
    assert [s.memories for s in memories.spaces()] == [1, 1]
    assert [m.text for m in memories.list(Filters(space=work.id))] == ["The boss is called Ada"]
    memories.rename_space(work.id, "office")
    with pytest.raises(SelmError, match="already"):
        memories.rename_space(work.id, "Personal")
    with pytest.raises(NotFound, match="personal, office"):
        memories.space("nowhere")
    assert memories.forget_space(work.id)
    assert [m.text for m in memories.list()] == ["The cat is called Tom"] and vectors_fit(memories)
    with pytest.raises(SelmError, match="personal space stays"):
        memories.forget_space(PERSONAL)


def test_filters(memories: Memories) -> None:
    fact = memories.add("The cat is called Tom").memory
    turn = memories.add("I went to the lake today", kind="turn").memory
    memories.pin(fact.id)
    assert [m.id for m in memories.list(Filters(pinned=True))] == [fact.id]
    assert [m.id for m in memories.list(Filters(pinned=False, space=1))] == [turn.id]
    assert [m.id for m in memories.list(Filters(kinds=["turn"]))] == [turn.id]
    assert memories.list(Filters(since=turn.created + 10_000)) == []
    assert memories.count(Filters(until=turn.created + 10_000, since=0)) == 2
    assert not memories.pin(fact.id, False).pinned


def test_a_deleted_conversation_keeps_its_facts_and_loses_its_turns(store: Store) -> None:
    memories = Memories(store.database, WordEmbedder())
    talk = store.conversations.create().id
    said = store.conversations.add(talk, None, "user", "My dog is called Rex")
    fact = memories.add("My dog is called Rex", message=said.id).memory
    memories.add("User said: my dog is called Rex", kind="turn", message=said.id)
    assert memories.count(Filters(conversation=talk)) == 2
    store.conversations.delete(talk)
    assert [m.id for m in memories.list()] == [fact.id]
    assert memories.get(fact.id).message is None and vectors_fit(memories)


def test_facts_of_a_conversation_go_when_asked(store: Store) -> None:
    memories = Memories(store.database)
    talk = store.conversations.create().id
    said = store.conversations.add(talk, None, "user", "My dog is called Rex")
    memories.add("My dog is called Rex", message=said.id)
    memories.add("Tea is at four")
    assert memories.forget_conversation(talk)
    assert [m.text for m in memories.list()] == ["Tea is at four"]


def test_a_conversation_has_its_memory_space_and_what_was_recalled(store: Store) -> None:
    from selm_edge.store.conversations import ReplyFacts

    memories = Memories(store.database)
    work = memories.space("work", create=True).id
    talk = store.conversations.create().id
    assert store.conversations.get(talk).memory and store.conversations.get(talk).space is None
    store.conversations.set_memory(talk, False)
    store.conversations.set_space(talk, work)
    assert not store.conversations.get(talk).memory and store.conversations.get(talk).space == work
    recalled = [{"memory": 3, "number": 1}]
    reply = store.conversations.add(
        talk, None, "assistant", "Rex [1]", facts=ReplyFacts(recalled=recalled)
    )
    assert store.conversations.message(reply.id).facts.recalled == recalled
    memories.forget_space(work)
    assert store.conversations.get(talk).space is None


def test_stats(memories: Memories) -> None:
    fact = memories.add("The cat is called Tom").memory
    memories.supersede(fact.id, "The cat is called Jerry")
    stats = memories.stats()
    assert stats["memories"] == 2
    assert stats["kinds"] == {"correction": 1, "fact": 1}
    assert stats["statuses"] == {"active": 1, "superseded": 1}
    on = memories.vectors_problem is None
    assert (stats["vectors"], stats["to_embed"]) == ((1, 0) if on else (0, 1))
    assert (stats["vectors_off"] is None) == on and stats["bytes"] > 0


def test_the_schema_of_an_older_file_is_brought_up(tmp_path: Path) -> None:
    from selm_edge.store.database import Database
    from selm_edge.store.migrations import MIGRATIONS

    path = tmp_path / "selm.db"
    old = Database(path, MIGRATIONS[:3])
    old.rows("insert into conversation(title, created, updated) values('Old', 1, 1)")
    old.close()
    store = open_store(path)
    assert [talk.title for talk in store.conversations.recent()] == ["Old"]
    assert store.conversations.recent()[0].memory
    assert Memories(store.database).add("The cat is called Tom").outcome == "new"
    assert len(store.database.backups()) == 1


# -- forgetting ------------------------------------------------------------------------------------

WORDS = (b"quetzalcoatl", b"QUETZALCOATL", b"Quetzalcoatl", b"quetzalcoat")


def files_with(folder: Path, *needles: bytes) -> list[str]:
    found = []
    for file in sorted(folder.rglob("*")):
        data = file.read_bytes() if file.is_file() else b""
        found += [f"{file.name}: {needle!r}" for needle in needles if needle in data]
    return found


@pytest.mark.parametrize("passphrase", [None, "open sesame"])
def test_forgotten_means_gone_from_every_file(tmp_path: Path, passphrase: str | None) -> None:
    home = tmp_path / "home"
    store = open_store(home / "selm.db", passphrase)
    memories = Memories(store.database, WordEmbedder())
    for number in range(300):  # so that it shares pages and index segments with others
        memories.add(f"fact {number} of the year {number * 7}", anyway=True)
    secret = memories.add("The password of Quetzalcoatl is 4711").memory
    stored = memories.index.vectors([secret.id])[secret.id]
    signs = store.database.rows("select bits from memory_vector where id = ?", (secret.id,))[0][0]
    assert len(stored) == 256 and len(signs) == 32
    for number in range(300, 400):
        memories.add(f"fact {number} of the year {number * 7}", anyway=True)
    (home / "selm.db.before-v4").write_bytes(b"a backup with quetzalcoatl")
    (home / "selm.db.damaged-20260101-000000").write_bytes(b"set aside with quetzalcoatl")
    if passphrase is None:  # or the test itself would be blind
        store.database.rows("pragma wal_checkpoint(passive)")
        assert files_with(home, WORDS[2], b"quetzalcoatl", stored, signs)
    assert memories.forget([secret.id])
    assert files_with(home, *WORDS, stored, signs) == []
    assert memories.count() == 400 and vectors_fit(memories)
    store.database.rows("insert into memory_fts(memory_fts, rank) values('integrity-check', 1)")
    store.close()
    assert files_with(home, *WORDS, stored, signs) == []


def test_forgetting_without_sqlite_vec_takes_all_vectors_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selm_edge.store import vector_table

    path = tmp_path / "selm.db"
    store = open_store(path)
    memories = Memories(store.database, WordEmbedder())
    secret = memories.add("My dog is called Rex").memory
    memories.add("Tea is at four")
    stored = memories.index.vectors([secret.id])[secret.id]
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(vector_table, "find_spec", lambda name: None)
        bare = open_store(path)
        words = Memories(bare.database, WordEmbedder())
        assert words.vectors_problem == "sqlite-vec is not installed"
        assert words.forget([secret.id])
        assert words.add("The cat is called Tom").outcome == "new"
        bare.close()
    assert files_with(tmp_path, stored, b"Rex", b"rex") == []
    from selm_edge.memory.embedding import bring_up_to_date

    again = Memories(open_store(path).database, WordEmbedder())
    assert bring_up_to_date(again) == 2 and vectors_fit(again)


def test_an_unloadable_sqlite_vec_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.machinery import ModuleSpec

    from selm_edge.store import vector_table

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "vec0.so").write_bytes(b"no library")
    spec = ModuleSpec("sqlite_vec", None, origin=str(broken / "__init__.py"))
    monkeypatch.setattr(vector_table, "find_spec", lambda name: spec)
    memories = Memories(open_store(tmp_path / "selm.db").database, WordEmbedder())
    assert "could not be loaded" in str(memories.vectors_problem)
    assert memories.add("Tea is at four").outcome == "new"


def test_vectors_that_mean_nothing_are_refused(store: Store) -> None:
    memories = Memories(store.database, WordEmbedder())
    good = memories.embed(["a b"])[0]
    assert good is not None
    nan = array("f", [float("nan")] * 256).tobytes()
    for bad in (good[:-4], good + b"\0\0\0\0", nan):
        with pytest.raises(ValueError, match="vector"), store.database.write() as connection:
            memories.index.put(connection, [(1, 1, "fact", 1, bad)])
    with store.database.write() as connection:
        memories.index.put(connection, [(1, 1, "fact", 1, bytes(1024)), (2, 1, "fact", 1, None)])
    assert memories.index.count() == 0


def test_normalised() -> None:
    assert normalised('  "My  DOG\n is \uff32ex!" ') == "my dog is rex"
    assert normalised("C++") != normalised("C")
