"""Export and import: everything, once, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.word_embedder import WordEmbedder

from selm_edge.errors import SelmError
from selm_edge.memory.memories import Filters, Memories, Passage
from selm_edge.memory.portable import export, export_lines, import_file, import_lines
from selm_edge.memory.recall import recall
from selm_edge.store.database import Database


def full(database: Database) -> Memories:
    memories = Memories(database)
    rome = memories.add("I live in Rome", source="shell").memory
    memories.supersede(rome.id, "I live in Paris")
    memories.add("The cat is called Tom\u2028or so", pinned=True)
    memories.set_status(memories.add("I like tea").memory.id, "never")
    work = memories.space("work", create=True).id
    memories.add("The boss is called Ada", space=work)
    made = database.one(
        "insert into document(space, path, kind, sha256, size, modified, state, created, updated)"
        " values(?, '/b/manual.pdf', 'pdf', 'ab', 10, 5, 'complete', 6, 7) returning id",
        (work,),
    )
    assert made is not None
    passages = [Passage(f"Step {n} of the manual", "Steps", n, 2, 3) for n in range(1, 4)]
    memories.add_many(passages, space=work, source="/b/manual.pdf", document=made[0])
    return memories


def content(memories: Memories) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export_lines(memories.database)]


def test_everything_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "out" / "memories.jsonl"
    memories = full(Database(None))
    assert export(memories, file) == 8
    other = Memories(Database(None), WordEmbedder())
    imported = import_file(other, file)
    assert (imported.new, imported.known) == (8, 0)
    assert content(other) == content(memories)
    found = recall(other, "boss", space=other.space("work").id)
    assert [one.memory.text for one in found] == ["The boss is called Ada"]
    with pytest.raises(SelmError, match="exists"):
        export(memories, file)
    assert export(memories, file, overwrite=True) == 8


def test_a_second_import_changes_nothing(tmp_path: Path) -> None:
    memories = full(Database(None))
    lines = list(export_lines(memories.database))
    other = Memories(Database(None))
    import_lines(other, lines)
    before = content(other)
    again = import_lines(other, lines)
    assert (again.new, again.known) == (0, 8) and content(other) == before
    assert import_lines(memories, lines).new == 0


def test_ids_of_another_device_do_not_collide() -> None:
    memories = full(Database(None))
    other = Memories(Database(None))
    for number in range(5):
        other.add(f"The number {number} is mine", anyway=True)
    mine = other.space("garden", create=True).id
    other.add("The rose is red", space=mine)
    import_lines(other, export_lines(memories.database))
    assert [space.name for space in other.spaces()] == ["personal", "garden", "work"]
    rome = next(m for m in other.list(Filters(statuses=None)) if m.text == "I live in Rome")
    assert rome.superseded_by is not None
    assert other.get(rome.superseded_by).text == "I live in Paris"
    work = other.space("work").id
    passages = other.list(Filters(space=work, kinds=["passage"]))
    assert len(passages) == 3 and len({p.document for p in passages}) == 1
    assert len(other.list(Filters(space=mine))) == 1


GOOD = {"memory": {"id": 1, "kind": "fact", "space": 1, "text": "x", "created": 1, "updated": 1}}
HEAD = '{"format":"selm-memory","version":1}'
SPACE = '{"space":{"id":1,"name":"personal","created":1}}'


def changed(**values: object) -> str:
    return json.dumps({"memory": {**GOOD["memory"], "id": 2, **values}})


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{broken", "line 4: "),
        ("[]", "line 4: neither a space nor a document nor a memory"),
        ('{"table": {}}', "line 4: neither"),
        ('{"memory": 3}', "line 4: the memory is no object"),
        ('{"memory": {"id": 2}}', "line 4: kind is missing|line 4: space is missing"),
        (changed(kind="wish"), "line 4: kind is not one of fact"),
        (changed(text=" "), "line 4: text is not a text"),
        (changed(text="x" * 20_001), "line 4: text is not a text of at most"),
        (changed(created="now"), "line 4: created is not a whole number"),
        (changed(space=7), "line 4: its space 7 is not in the file"),
        (changed(document=7), "line 4: its document 7 is not in the file"),
        (changed(id=1), "line 4: a second memory with the id 1"),
        (changed(status="gone"), "line 4: status is not one of"),
        ("[" * 100_000, "line 4: "),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(line: str, cause: str) -> None:
    memories = Memories(Database(None))
    with pytest.raises(SelmError, match=cause):
        import_lines(memories, [HEAD, SPACE, json.dumps(GOOD), line])
    assert memories.count(Filters(statuses=None)) == 0
    assert import_lines(memories, [HEAD, SPACE, json.dumps(GOOD)]).new == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    memories = Memories(Database(None))
    for text in ("", "hello", '{"a": 1}\n', '{"format":"selm-memory","version":2}\n'):
        file = tmp_path / "file.jsonl"
        file.write_text(text)
        with pytest.raises(SelmError, match=r"file\.jsonl"):
            import_file(memories, file)
    with pytest.raises(SelmError, match="cannot be read"):
        import_file(memories, tmp_path / "missing.jsonl")
