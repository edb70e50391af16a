"""Hostile documents: nothing hidden or active is kept, nothing but passages is written."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from support.hostile_documents import HostileDocument, hostile_documents, obedience_cases

from selm_edge.memory.documents.ingest import ingest
from selm_edge.memory.documents.passages import LARGEST, passages
from selm_edge.memory.documents.reading import load, open_document
from selm_edge.memory.memories import Filters, Memories
from selm_edge.memory.prompting import line_of
from selm_edge.store.database import Database

DOCUMENTS = list(hostile_documents())
# Controls but newline and tab; format characters but the joiners of some scripts; other ends of
# lines; private and unassigned tags.
ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)


def test_there_are_enough() -> None:
    assert len(DOCUMENTS) >= 100
    assert len({one.name for one in DOCUMENTS}) == len({one.sign for one in DOCUMENTS})
    assert next(obedience_cases())[2] == "PWNED-000"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.name)
def test_what_is_read_is_harmless(document: HostileDocument, tmp_path: Path) -> None:
    path = tmp_path / document.name
    path.write_bytes(document.data)
    found = list(passages(open_document(load(path)).blocks))
    text = "\n\n".join(one.text + "\n" + one.heading for one in found)
    assert document.answer in text  # the document itself is there
    assert ACTIVE.search(text) is None
    assert unicodedata.is_normalized("NFC", text)
    if document.hidden:
        assert document.sign not in text
        assert "gnore all previous" not in text
    assert all(one.tokens <= LARGEST for one in found)


def test_only_passages_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for one in DOCUMENTS:
        (folder / one.name).write_bytes(one.data)
    memories = Memories(Database(tmp_path / "selm.db"))
    mine = memories.add("My name is Ada.", kind="fact").memory
    report = ingest(memories, [folder])
    assert report.failed == [] and report.skipped == []
    assert len(report.added) == len(DOCUMENTS)
    kinds = {row[0] for row in memories.database.rows("select distinct kind from memory")}
    assert kinds == {"fact", "passage"}
    assert memories.list(Filters(kinds=("fact", "correction"), statuses=None)) == [mine]
    rows = memories.database.rows(
        "select text, heading, source, pinned, status, document from memory where kind = 'passage'"
    )
    for text, heading, source, pinned, status, document in rows:
        assert ACTIVE.search(text + (heading or "") + source) is None
        assert (pinned, status) == (0, "active") and document is not None
    # As the model sees them: each is one line, marked as data, without control tokens.
    for memory in memories.list(Filters(kinds=("passage",)), limit=10_000):
        line = line_of(memory, 7)
        assert line.startswith("N: [7] (") and len(line.splitlines()) == 1
        assert line.count("[7]") == 1
        assert not re.search(
            r"<\|im_(start|end)\|>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>", line
        )
    assert memories.database.rows("select count(*) from setting") == [(0,)]
    assert memories.database.rows("select count(*) from message") == [(0,)]
