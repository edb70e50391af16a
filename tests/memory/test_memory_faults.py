"""Memories under faults that are really caused: killed writers, many writers, a full disk.

``SELM_TEST_KILLS`` and ``SELM_TEST_ROWS`` set how often and how many; the published figures are
200 kills for each kind of file and 10,000 rows by 8 processes.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.processes import run_python
from support.word_embedder import WordEmbedder

from selm_edge.memory.memories import Filters, Memories
from selm_edge.memory.recall import recall
from selm_edge.store import keys
from selm_edge.store.opening import open_store

KILLS = int(os.environ.get("SELM_TEST_KILLS", "10"))
ROWS = int(os.environ.get("SELM_TEST_ROWS", "1600"))
WRITERS = 8

_BEGIN = """
import sys
from pathlib import Path
from selm_edge.store import keys
keys.ARGON2_MEMORY_KIB = 64
from selm_edge.memory.memories import Memories, Passage
from selm_edge.store.errors import StoreError
from selm_edge.store.opening import open_store
from support.word_embedder import WordEmbedder
store = open_store(Path(sys.argv[1]), sys.argv[2] or None)
memories = Memories(store.database, WordEmbedder(dim=64))
"""


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ARGON2_MEMORY_KIB", 64)


def sound(memories: Memories) -> None:
    """The file, the words and the vectors fit together."""
    database = memories.database
    assert database.rows("pragma integrity_check") == [("ok",)]
    database.rows("insert into memory_fts(memory_fts, rank) values('integrity-check', 1)")
    active = database.rows("select id from memory where status = 'active' order by id")
    assert database.rows("select rowid from memory_vector_rowids order by rowid") == active


_WRITER = (
    _BEGIN
    + """
number = 0
while True:
    text = f"{sys.argv[3]}-{number} {'told again ' * 10}"
    added = memories.add(text, anyway=True)
    assert added.outcome == "new", added
    if number % 5 == 4:
        memories.supersede(added.memory.id, text + "corrected")
    if number % 7 == 6:
        memories.add_many([Passage(f"{text} passage {n}") for n in range(20)], source="x")
    print(f"{sys.argv[3]}-{number}", flush=True)      # the acknowledgement
    number += 1
"""
)


@pytest.mark.parametrize("passphrase", ["", "open sesame"])
def test_acknowledged_memories_survive_kill_9(tmp_path: Path, passphrase: str) -> None:
    path = tmp_path / "selm.db"
    open_store(path, passphrase or None).close()
    chance = random.Random(6)
    acknowledged: list[str] = []
    for round_ in range(KILLS):
        writer = run_python(_WRITER, str(path), passphrase, str(round_))
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.readline().strip())
        time.sleep(chance.random() * 0.05)  # the moment of death is the thing that varies
        os.kill(writer.pid, signal.SIGKILL)
        # A line cut by the death was not an acknowledgement.
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.communicate()
    store = open_store(path, passphrase or None)
    memories = Memories(store.database, WordEmbedder(dim=64))
    stored = {row[0].split()[0] for row in store.database.rows("select text from memory")}
    assert len(acknowledged) > KILLS
    assert [name for name in acknowledged if name not in stored] == []
    whole = store.database.rows(
        "select count(*) from memory where kind = 'passage'"
        " group by substr(text, 1, instr(text, ' '))"
    )
    assert all(count == (20,) for count in whole)  # never half of what was written at once
    sound(memories)


_BUSY = (
    _BEGIN
    + """
for number in range(int(sys.argv[4])):
    memories.add(f"row {number} of writer {sys.argv[3]}", anyway=True)
store.close()
"""
)


def test_eight_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "new" / "selm.db"  # they also race to make it
    each = ROWS // WRITERS
    writers = [run_python(_BUSY, str(path), "", str(n), str(each)) for n in range(WRITERS)]
    for writer in writers:
        _, err = writer.communicate(timeout=600)
        assert (writer.returncode, err) == (0, "")
    memories = Memories(open_store(path).database, WordEmbedder(dim=64))
    assert memories.count() == each * WRITERS
    sound(memories)


_FULL = (
    """
import resource, sys
"""
    + _BEGIN
    + """
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
number = 0
try:
    while True:
        memories.add(f"row-{number} " + "x " * 300, anyway=True)
        print(f"row-{number}", flush=True)
        number += 1
except StoreError as error:
    print("ERROR", error.cause, str(error).replace("\\n", " | "))
    print("READ", memories.count(), len(memories.list(limit=5)))
    store.go_on_in_memory(error)
    memories = Memories(store.database, WordEmbedder(dim=64))
    memories.add("My dog is called Rex", anyway=True)
    print("IN-MEMORY", memories.count(), store.saving)
"""
)


@pytest.mark.parametrize(("limit", "passphrase"), [(600_000, ""), (1_500_000, "open sesame")])
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, limit: int, passphrase: str) -> None:
    path = tmp_path / "selm.db"
    out, err = run_python(_FULL, str(path), passphrase, str(limit)).communicate(timeout=120)
    assert err == ""
    *rows, error, read, memory = out.splitlines()
    assert error.startswith("ERROR full") and str(path) in error and "Make room" in error
    assert read == f"READ {len(rows)} 5" and len(rows) >= 3
    assert memory == f"IN-MEMORY {len(rows) + 1} False"
    memories = Memories(open_store(path, passphrase or None).database, WordEmbedder(dim=64))
    stored = {m.text.split()[0] for m in memories.list(Filters(), 100_000)}
    assert set(rows) <= stored
    assert memories.add("The cat is called Tom", anyway=True).outcome == "new"
    assert recall(memories, "cat")[0].memory.text == "The cat is called Tom"
    sound(memories)
