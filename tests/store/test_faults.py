"""Faults that are really caused: killed writers, full disks, read-only homes, many writers."""

from __future__ import annotations

import os
import random
import resource
import signal
import tempfile
import time
from pathlib import Path

import apsw
import pytest
from support.processes import run_python

from selm_edge.feedback.log import ReplyRecord
from selm_edge.store.errors import StoreError
from selm_edge.store.opening import open_store, open_store_or_memory

_FEEDBACK_WRITER = """
import sys
from pathlib import Path
from selm_edge.feedback.log import ReplyRecord
from selm_edge.store.opening import open_store
store = open_store(Path(sys.argv[1]))
number = 0
while True:
    row = store.feedback.add("up", ReplyRecord([], f"{sys.argv[2]}-{number}"))
    print(row.record.reply, flush=True)      # the acknowledgement
    number += 1
"""


def test_acknowledged_feedback_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "selm.db"
    open_store(path).close()
    chance = random.Random(20)
    acknowledged: list[str] = []
    for round_ in range(40):
        writer = run_python(_FEEDBACK_WRITER, str(path), str(round_))
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.readline().strip())
        time.sleep(chance.random() * 0.02)  # the moment of death is the thing that varies
        os.kill(writer.pid, signal.SIGKILL)
        # A line cut by the death was not an acknowledgement.
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.communicate()
    store = open_store(path)
    stored = {row.record.reply for row in store.feedback.rows()}
    assert len(acknowledged) > 40
    assert [reply for reply in acknowledged if reply not in stored] == []
    assert store.database.rows("pragma integrity_check") == [("ok",)]


_FULL_DISK = """
import resource, sys
from pathlib import Path
from selm_edge.feedback.log import ReplyRecord
from selm_edge.store.errors import StoreError
from selm_edge.store.opening import open_store
store = open_store(Path(sys.argv[1]))
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
number = 0
try:
    while True:
        store.feedback.add("up", ReplyRecord([], f"row-{number} " + "x" * 500))
        print(f"row-{number}", flush=True)
        number += 1
except StoreError as error:
    print("ERROR", error.cause, str(error).replace("\\n", " | "))
    # The chat goes on, with all that was saved before.
    store.go_on_in_memory(error)
    store.feedback.add("down", ReplyRecord([], "after"))
    print("IN-MEMORY", store.feedback.count(), store.saving)
"""


@pytest.mark.parametrize(("limit", "least"), [(300_000, 3), (1_000_000, 20), (4_500_000, 100)])
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, limit: int, least: int) -> None:
    path = tmp_path / "selm.db"
    out, err = run_python(_FULL_DISK, str(path), str(limit)).communicate(timeout=120)
    assert err == ""
    *rows, error, memory = out.splitlines()
    assert error.startswith("ERROR full") and str(path) in error and "Make room" in error
    assert len(rows) >= least
    assert memory == f"IN-MEMORY {len(rows) + 1} False"
    store = open_store(path)
    assert [row.record.reply.split()[0] for row in store.feedback.rows()] == rows
    assert store.database.rows("pragma integrity_check") == [("ok",)]


_BUSY_WRITER = """
import sys
from pathlib import Path
from selm_edge.feedback.log import ReplyRecord
from selm_edge.store.opening import open_store
store = open_store(Path(sys.argv[1]))
talk = store.conversations.create(f"writer {sys.argv[2]}").id
parent = None
for number in range(int(sys.argv[3])):
    role = "assistant" if number % 2 else "user"
    parent = store.conversations.add(talk, parent, role, f"turn {number}").id
    if number % 5 == 0:
        store.feedback.add("up", ReplyRecord([], "r", conversation=talk, message=parent))
store.close()
"""


def test_eight_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "new" / "selm.db"  # they also race to make it
    turns = 100
    writers = [run_python(_BUSY_WRITER, str(path), str(n), str(turns)) for n in range(8)]
    for writer in writers:
        _, err = writer.communicate(timeout=180)
        assert (writer.returncode, err) == (0, "")
    store = open_store(path)
    talks = store.conversations.recent()
    assert len(talks) == 8
    assert [len(store.conversations.path(talk.id)) for talk in talks] == [turns] * 8
    assert store.feedback.count() == 8 * turns // 5
    assert store.database.rows("pragma integrity_check") == [("ok",)]
    store.database.rows("insert into message_fts(message_fts) values('integrity-check')")


_IN_READ_ONLY_HOME = """
import os, sys
from pathlib import Path
from selm_edge.store.opening import open_store_or_memory
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)  # root may write anywhere
store = open_store_or_memory(Path(sys.argv[1]))
talk = store.conversations.create().id
store.conversations.add(talk, None, "user", "hello")
print(store.saving, store.problem.cause, store.problem)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_a_read_only_home_means_memory_only(existing: bool) -> None:
    # Not in tmp_path, whose parents are closed to the user that root becomes here.
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        path = home / "selm.db"
        if existing:
            open_store(path).close()
            path.chmod(0o444)
        home.chmod(0o555)
        out, err = run_python(_IN_READ_ONLY_HOME, str(path)).communicate(timeout=60)
        home.chmod(0o755)
        assert err == "" and out.startswith("False readonly"), (out, err)
        assert str(path) in out and "SELM_HOME" in out


def test_a_locked_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selm_edge.store import database

    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr(database, "_BUSY_TRIES", 2)
    path = tmp_path / "selm.db"
    store = open_store(path)
    other = apsw.Connection(str(path))
    other.execute("begin immediate")
    with pytest.raises(StoreError, match="another program keeps it locked") as caught:
        store.feedback.add("up", ReplyRecord([], "r"))
    assert caught.value.cause == "busy"
    other.execute("rollback")
    store.feedback.add("up", ReplyRecord([], "r"))
    assert store.feedback.count() == 1


def test_damaged_pages_are_an_error_not_a_crash(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, of other tests too
    path = tmp_path / "selm.db"
    store = open_store(path)
    for number in range(50):
        talk = store.conversations.create().id
        store.conversations.add(talk, None, "user", f"question {number} " + "words " * 50)
    store.close()
    whole = path.read_bytes()
    for seed in range(60):
        chance = random.Random(seed)
        broken = bytearray(whole)
        for _ in range(40):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        opened = open_store_or_memory(path)
        try:
            for talk in opened.conversations.recent():
                opened.conversations.path(talk.id)
            opened.conversations.search("question words")
        except StoreError as error:
            assert error.cause == "damaged", error
        finally:
            opened.close()
        for extra in path.parent.glob("selm.db-*"):
            extra.unlink()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after <= max(before, 1_000_000)
