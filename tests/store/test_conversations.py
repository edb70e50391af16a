"""Conversations: a tree where nothing is overwritten, found by search, gone when deleted."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selm_edge.errors import SelmError
from selm_edge.store.conversations import ReplyFacts, quote_terms
from selm_edge.store.database import Database
from selm_edge.store.errors import NotFound, StoreError
from selm_edge.store.export import export, file_name, to_json, to_markdown
from selm_edge.store.migrations import MIGRATIONS
from selm_edge.store.opening import Store, open_store, open_store_or_memory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "home" / "selm.db")


def chat(store: Store, *texts: str) -> tuple[int, list[int]]:
    """A conversation with these turns in turn; its id and theirs."""
    conversation = store.conversations.create().id
    ids: list[int] = []
    for number, text in enumerate(texts):
        role = "assistant" if number % 2 else "user"
        parent = ids[-1] if ids else None
        ids.append(store.conversations.add(conversation, parent, role, text).id)
    return conversation, ids


def shown(store: Store, conversation: int) -> list[str]:
    return [turn.text for turn in store.conversations.path(conversation)]


def test_the_file_and_its_folder_are_private(store: Store) -> None:
    path = store.database.path
    assert path is not None
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_the_settings_that_keep_data_safe(store: Store) -> None:
    connection = store.database._connection
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("synchronous") == 2  # FULL
    assert connection.pragma("secure_delete") == 1
    assert connection.pragma("busy_timeout") == 5000


def test_a_conversation_is_read_back_as_written(store: Store) -> None:
    facts = ReplyFacts("tiny", "ab" * 32, "chatml-1", {"temperature": 0.5}, 7, 12, 34, 56.5, "stop")
    conversation = store.conversations.create(system="Be brief.", sampling={"top_k": 5})
    first = store.conversations.add(conversation.id, None, "user", "Hello\nthere")
    reply = store.conversations.add(conversation.id, first.id, "assistant", "Hi!", facts=facts)
    again = store.conversations.get(conversation.id)
    assert (again.title, again.system, again.sampling) == (
        "Hello there",
        "Be brief.",
        {"top_k": 5},
    )
    assert again.leaf == reply.id and again.turns == 2
    assert store.conversations.path(conversation.id) == [first, reply]
    assert store.conversations.message(reply.id).facts == facts


def test_an_edit_forks_and_both_branches_stay(store: Store) -> None:
    conversation, (one, two, three, four) = chat(store, "q1", "a1", "q2", "a2")
    edited = store.conversations.add(conversation, two, "user", "q2 edited")
    assert shown(store, conversation) == ["q1", "a1", "q2 edited"]
    shown_now = store.conversations.path(conversation)
    assert store.conversations.sibling_table(shown_now)[edited.id] == [three, edited.id]
    store.conversations.show(three)
    assert shown(store, conversation) == ["q1", "a1", "q2", "a2"]
    store.conversations.show(edited.id)
    assert shown(store, conversation) == ["q1", "a1", "q2 edited"]
    first_again = store.conversations.add(conversation, None, "user", "q1 edited")
    assert shown(store, conversation) == ["q1 edited"]
    assert {turn.id for turn in store.conversations.tree(conversation)} >= {one, two, three, four}
    table = store.conversations.sibling_table(store.conversations.path(conversation))
    assert table == {first_again.id: [one, first_again.id]}


def test_a_parent_of_another_conversation_is_refused(store: Store) -> None:
    _, ids = chat(store, "q")
    other = store.conversations.create()
    with pytest.raises(ValueError, match="another conversation"):
        store.conversations.add(other.id, ids[0], "assistant", "a")


def test_a_very_long_conversation_can_be_shown_and_deleted(store: Store) -> None:
    # SQLite stops a cascade at 1000 levels: parents must not cascade one by one.
    conversation, ids = chat(store, *(f"turn {n}" for n in range(2500)))
    assert len(store.conversations.path(conversation)) == 2500
    store.conversations.show(ids[0])
    assert store.conversations.get(conversation).leaf == ids[-1]
    store.conversations.delete(conversation)
    assert store.conversations.recent() == []
    assert store.database.rows("select count(*) from message") == [(0,)]


def test_titles_come_from_the_first_question_until_the_user_names_it(store: Store) -> None:
    conversation, _ = chat(store, "How do I " + "very " * 30 + "carefully fold a map?")
    title = store.conversations.get(conversation).title
    assert title.endswith("…") and len(title) <= 60
    store.conversations.rename(conversation, "  Maps \n and folds ")
    store.conversations.add(conversation, None, "user", "Other first question")
    assert store.conversations.get(conversation).title == "Maps and folds"
    with pytest.raises(ValueError, match="title"):
        store.conversations.rename(conversation, " \n ")
    with pytest.raises(NotFound):
        store.conversations.rename(conversation + 1, "x")


def test_search_finds_words_of_turns_and_titles_and_best_first(store: Store) -> None:
    kettle, _ = chat(store, "My kettle is descaled with vinegar", "Rinse the kettle twice.")
    garden, _ = chat(store, "When do I plant tulips?", "In autumn.")
    store.conversations.rename(garden, "Gärten und Zwiebeln")
    found = store.conversations.search("kettle vine")
    assert [hit.conversation.id for hit in found] == [kettle]
    assert "vinegar" in found[0].snippet and found[0].message is not None
    assert [h.conversation.id for h in store.conversations.search("garten")] == [garden]
    assert [h.conversation.id for h in store.conversations.search("autumn")] == [garden]
    assert store.conversations.search("kettle tulips") == []
    assert [h.conversation.id for h in store.conversations.search("  ")] == [garden, kettle]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_valid_search(text: str) -> None:
    database = Database(None)
    database.rows(
        "select 1 from message_fts where message_fts match ?", (quote_terms(text) or '""',)
    )
    database.close()


@pytest.mark.parametrize("query", ['"', "a AND", "NEAR(", "title:x", "-x", "*", "a\0b", "^a"])
def test_search_syntax_in_a_query_is_only_text(store: Store, query: str) -> None:
    chat(store, "plain words")
    store.conversations.search(query)


# -- delete means gone ---------------------------------------------------------------------------


def bytes_on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


def test_deleted_words_leave_every_file(store: Store) -> None:
    from selm_edge.feedback.log import ReplyRecord

    path = store.database.path
    assert path is not None
    keep, _ = chat(store, "keepsakeword stays", "indeed")
    for round_ in range(30):  # enough to split pages and FTS segments
        conversation, ids = chat(
            store, f"zanzibarquestion {round_} " + "filler " * 200, "quixoticanswer " * 50
        )
        store.conversations.rename(conversation, f"mytitlexylophone {round_}")
        turns = [{"role": "user", "content": "zanzibarquestion"}]
        record = ReplyRecord(turns, "quixoticanswer", conversation=conversation, message=ids[1])
        store.feedback.add("correction", record, correction="betterwordjuniper")
    for found in store.conversations.search("mytitlexylophone", 100):
        assert store.conversations.delete(found.conversation.id)
    left = bytes_on_disk(path.parent)
    for word in (b"zanzibar", b"quixotic", b"xylophone", b"juniper"):
        assert word not in left, word
    assert b"keepsakeword" in left
    assert shown(store, keep) == ["keepsakeword stays", "indeed"]
    assert store.feedback.count() == 0


def test_feedback_stays_where_the_user_keeps_it(store: Store) -> None:
    from selm_edge.feedback.log import ReplyRecord

    conversation, ids = chat(store, "q", "a")
    record = ReplyRecord([], "a", conversation=conversation, message=ids[1])
    store.feedback.add("up", record)
    store.conversations.delete(conversation, keep_feedback=True)
    assert store.feedback.count() == 1


def test_bytes_held_by_a_reader_leave_when_it_ends(store: Store) -> None:
    path = store.database.path
    assert path is not None
    conversation, _ = chat(store, "zanzibarquestion")
    reader = apsw.Connection(str(path))
    reader.execute("begin")
    reader.execute("select * from message").fetchall()
    assert store.conversations.delete(conversation) is False
    reader.execute("rollback")
    reader.close()
    store.close()
    assert b"zanzibar" not in bytes_on_disk(path.parent)


def test_an_unknown_conversation_cannot_be_deleted(store: Store) -> None:
    with pytest.raises(NotFound):
        store.conversations.delete(99)


# -- migrations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_an_older_file_is_backed_up_then_brought_up(tmp_path: Path, version: int) -> None:
    path = tmp_path / "selm.db"
    old = Database(path, MIGRATIONS[:version])
    with old.write() as connection:
        connection.execute(
            "insert into conversation(title, created, updated) values('old talk', 1, 1)"
        )
    old.close()
    store = open_store(path)
    assert [found.title for found in store.conversations.recent()] == ["old talk"]
    assert store.database._connection.pragma("user_version") == len(MIGRATIONS)
    (backup,) = store.database.backups()
    assert backup.name == f"selm.db.before-v{version + 1}"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    before = apsw.Connection(str(backup))
    assert before.pragma("user_version") == version
    assert list(before.execute("select title from conversation")) == [("old talk",)]
    # A backup holds deleted words too: deleting removes it.
    store.conversations.delete(store.conversations.recent()[0].id)
    assert store.database.backups() == []
    assert b"old talk" not in bytes_on_disk(tmp_path)


def test_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    Database(path, MIGRATIONS[:1]).close()
    with pytest.raises(StoreError, match="setting"):
        Database(path, (*MIGRATIONS[:1], "create table extra(x); create table setting(y);"))
    same = Database(path, MIGRATIONS[:1])
    assert same.rows("select count(*) from sqlite_master where name = 'extra'") == [(0,)]


def test_a_newer_file_is_refused_politely(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    Database(path, (*MIGRATIONS, "create table later(x);")).close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer SELM Edge") as caught:
        open_store(path)
    assert caught.value.cause == "newer"
    assert path.read_bytes() == before


def test_a_foreign_or_damaged_file_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    connection = apsw.Connection(str(foreign))
    connection.execute("create table theirs(x)")
    connection.close()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all, " * 300)
    for path, cause in ((foreign, "foreign"), (damaged, "damaged")):
        before = path.read_bytes()
        opened = open_store_or_memory(path)
        assert opened.problem is not None and opened.problem.cause == cause
        assert str(path) in str(opened.problem)
        assert not opened.saving
        chat(opened, "works", "still")
        assert path.read_bytes() == before


# -- export --------------------------------------------------------------------------------------


def test_markdown_reads_as_the_branch_on_show(store: Store) -> None:
    conversation, ids = chat(store, "First?", "```py\nprint(1)\n```", "Second?", "Yes.")
    store.conversations.set_system(conversation, "Be kind.")
    store.conversations.set_context_from(ids[3], ids[2])
    text = to_markdown(store.conversations, conversation)
    assert text.startswith("# First?\n")
    assert text.index("> Be kind.") < text.index("## You\n\nFirst?") < text.index("## Assistant")
    assert "```py\nprint(1)\n```" in text and "no longer sent" in text


def test_json_holds_every_branch(store: Store, tmp_path: Path) -> None:
    conversation, ids = chat(store, "q", "a")
    store.conversations.add(conversation, ids[0], "assistant", "b")
    document = json.loads(to_json(store.conversations, conversation))
    assert document["format"] == "selm-conversation"
    assert [m["text"] for m in document["messages"]] == ["q", "a", "b"]
    assert [m["parent"] for m in document["messages"]] == [None, ids[0], ids[0]]
    target = tmp_path / "deep" / "out.json"
    assert export(store.conversations, conversation, target) == target
    assert json.loads(target.read_text()) == document
    assert [p.name for p in target.parent.iterdir()] == ["out.json"]


def test_export_overwrites_only_when_asked(store: Store, tmp_path: Path) -> None:
    conversation, _ = chat(store, "q", "a")
    target = tmp_path / "notes.md"
    target.write_text("precious")
    with pytest.raises(SelmError, match=r"notes\.md exists; choose another name"):
        export(store.conversations, conversation, target)
    assert target.read_text() == "precious"
    export(store.conversations, conversation, target, overwrite=True)
    assert target.read_text() == to_markdown(store.conversations, conversation)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".md"] == ["notes.md"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_an_older_file_that_others_could_read_is_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    Database(path).close()
    path.chmod(0o644)
    tmp_path.chmod(0o755)
    Database(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o755  # the folder is its owner's choice


def test_a_file_name_that_every_system_takes(store: Store) -> None:
    conversation, _ = chat(store, "../../etc/passwd: what\x1b is C:\\ 'this'?")
    name = file_name(store.conversations.get(conversation), ".md")
    assert name == "etc-passwd-what-is-c-this.md"


def test_settings_round_trip(store: Store) -> None:
    store.settings.set("theme", "nord")
    store.settings.set("sampling", {"top_k": 3})
    assert store.settings.get("theme") == "nord"
    assert store.settings.get("sampling") == {"top_k": 3}
    store.settings.set("theme", None)
    assert store.settings.get("theme", "x") == "x"
    with store.database.write() as connection:
        connection.execute("update setting set value = '{' where key = 'sampling'")
    assert store.settings.get("sampling", 1) == 1
