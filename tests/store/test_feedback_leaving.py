"""Feedback on its way out of the device: bundles, redaction, what is worth asking about."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from selm_edge.cli.feedback import feedback
from selm_edge.errors import SelmError
from selm_edge.feedback import bundle
from selm_edge.feedback.log import ReplyRecord
from selm_edge.feedback.redact import Redactor
from selm_edge.feedback.select import LEAST, NEAREST, NEW, Candidate, choose, unsure
from selm_edge.feedback.unrated import messages_of, unrated, worth_asking
from selm_edge.memory.embedder import open_embedder
from selm_edge.store.conversations import ReplyFacts
from selm_edge.store.opening import Store, open_store

TURNS = [{"role": "user", "content": "My name is Jonas Berg. What is 17 + 25?"}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SELM_NEW_PASSPHRASE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Store:
    return open_store(home / "selm.db")


def rated(store: Store) -> None:
    store.feedback.add("up", ReplyRecord(TURNS, "Jonas, it is 42.", message=1, model="tiny"))
    store.feedback.add(
        "correction",
        ReplyRecord(TURNS, "5", message=2, model="tiny", entropy=1.5, recalled=[3]),
        correction="Write to jo@example.org, Mr Berg.",
    )
    store.feedback.add("down", ReplyRecord(TURNS, "secret", message=3), consent=False)


def run(*args: str, ok: bool = True, **environment: str) -> str:
    result = CliRunner().invoke(feedback, args, env=environment)
    assert (result.exit_code == 0) is ok, result.output
    return result.output if ok else result.output + str(result.exception)


# ---- Bundles -------------------------------------------------------------------------------------


def test_a_bundle_is_the_same_each_time_and_merges_by_row(home: Path, store: Store) -> None:
    rated(store)
    one, two = home / "one.bundle", home / "two.bundle"
    run("export", "--format", "bundle", "-o", str(one))
    run("export", "--format", "bundle", "-o", str(two))
    first, second = bundle.read(one), bundle.read(two)
    assert first == second and one.read_bytes() == two.read_bytes()
    assert one.stat().st_mode & 0o077 == 0
    assert first.manifest["kinds"] == {"correction": 1, "up": 1}
    assert "secret" not in json.dumps(first.rows)  # the user wants it to stay
    corrected = next(row for row in first.rows if row["kind"] == "correction")
    assert (corrected["entropy"], corrected["recalled"]) == (1.5, [3])
    store.feedback.add("up", ReplyRecord(TURNS, "more", message=4))
    run("export", "--format", "bundle", "-o", str(two))
    assert len(bundle.merge([first, bundle.read(two)])) == 3


def test_an_encrypted_bundle_opens_with_its_passphrase_alone(home: Path, store: Store) -> None:
    rated(store)
    path = home / "secret.bundle"
    run("export", "--format", "bundle", "--encrypt", "-o", str(path), SELM_NEW_PASSPHRASE="open")
    assert b"Jonas" not in path.read_bytes() and b"manifest" not in path.read_bytes()
    assert len(bundle.read(path, "open").rows) == 2
    for passphrase, reason in (("shut", "passphrase is wrong"), (None, "encrypted")):
        with pytest.raises(SelmError, match=reason):
            bundle.read(path, passphrase)
    with pytest.raises(SelmError, match="not encrypted"):
        run("export", "--format", "bundle", "-o", str(home / "plain.bundle"))
        bundle.read(home / "plain.bundle", "open")


def test_a_changed_bundle_is_refused(home: Path, store: Store) -> None:
    rated(store)
    path = home / "a.bundle"

    def fresh() -> sqlite3.Connection:
        run("export", "--format", "bundle", "-o", str(path))
        return sqlite3.connect(path)

    for change, reason in (
        ("update row set line = replace(line, '42', '7')", "is not what was written"),
        ("delete from row where rowid = 1", "the list of its rows"),
        ("update manifest set value = '2' where key = 'version'", "selm-feedback' 2"),
        ("drop table row", "no bundle that can be read"),
    ):
        with fresh() as connection:
            connection.execute(change)
        connection.close()
        with pytest.raises(SelmError, match=reason):
            bundle.read(path)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(SelmError):
        bundle.read(path)
    with pytest.raises(SelmError, match="no such file"):
        bundle.read(home / "missing")


def test_a_folder_that_is_not_there_loses_nothing(home: Path, store: Store) -> None:
    rated(store)
    where = str(home / "missing" / "x.bundle")
    assert "cannot be written" in run("export", "--format", "bundle", "-o", where, ok=False)


# ---- Redaction -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Ada Lovelace. Ada likes sums.", "My name is [NAME 1]. [NAME 1] likes sums."),
        ("Hi Tom, see you", "Hi [NAME 1], see you"),
        ("My wife Clara and Dr. Miller met", "My wife [NAME 2] and Dr. [NAME 1] met"),
        ("Regards,\nTom Hale", "Regards,\n[NAME 1]"),
        ("I wrote to a.b+c@mail.example.org!", "I wrote to [MAIL 1]!"),
        ("see https://x.org/me?id=3 now", "see [LINK 1] now"),
        ("call +49 170 1234567 or 030 1234567", "call [NUMBER 1] or [NUMBER 2]"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [NUMBER 1] please"),
        ("my card 4111-1111-1111-1111, PIN 9921", "my card [NUMBER 1], PIN [NUMBER 2]"),
        ("I live at 12 Green Hill Road, today", "I live at [ADDRESS 1], today"),
        ("Lindenstraße 14, 10115 Berlin", "[ADDRESS 1], [ADDRESS 2]"),
        ("from 192.168.1.20", "from [ADDRESS 1]"),
        ("born on 3 May 1984 in Rome", "born on [DATE 1] in Rome"),
        ("mail me@x.org, yes me@x.org", "mail [MAIL 1], yes [MAIL 1]"),
    ],
)
def test_details_are_taken_out(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "What is 1234567 + 25?", "7000000 - 1234567 = 5765433", "Pi is 3.1415926535.",
        "In 2024 there were 1,000,000 people at 15:30.", "Order 2 pizzas in May.",
        "My name is not important. I am happy.", "Take 12 cups and wait 45 minutes.",
        "My doctor is kind. My friend May I ask?", "Hello, who are you?",
    ],
)  # fmt: skip
def test_what_names_nobody_stays(text: str) -> None:
    redactor = Redactor()
    assert redactor.text(text) == text and not redactor.seen


@given(st.text(st.sampled_from("aA1 .,@-+/:'\n[]éÄ"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_survived_and_taken_once(text: str) -> None:
    redactor = Redactor()
    once = redactor.text(text)
    assert all(finding.text in text for finding in redactor.seen)
    assert len(once) <= len(text) + 12 * len(redactor.seen)


def test_names_are_learnt_from_the_whole_export(home: Path, store: Store) -> None:
    rated(store)
    shown = run("export", "--redact", "--format", "messages")
    lines = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert [line["messages"][1]["content"] for line in lines] == ["[NAME 1], it is 42.", "5"]
    assert lines[1]["correction"] == "Write to [MAIL 1], Mr [NAME 1]."
    assert "Jonas" not in "".join(map(json.dumps, lines)) and "Berg" not in str(lines)
    assert "details are taken out" in shown and "jo@example.org" in shown  # the preview


def test_nothing_is_written_before_the_preview_is_agreed_to(home: Path, store: Store) -> None:
    rated(store)
    target = home / "x.jsonl"
    assert "--yes" in run("export", "--redact", "-o", str(target), ok=False)
    assert not target.exists()
    run("export", "--redact", "--yes", "-o", str(target))
    assert "Jonas" not in target.read_text() and "[NAME 1]" in target.read_text()


# ---- What is worth asking about -----------------------------------------------------------------


def on_circle(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle)]


def test_the_unsure_and_the_new_are_chosen_apart_from_each_other() -> None:
    # Two groups of alike replies, one far away that the model is sure of, one that was rated.
    candidates = [Candidate(i, 2.0 + 0.01 * i, on_circle(0.01 * i)) for i in range(5)]
    candidates += [Candidate(10 + i, 1.0, on_circle(1.5 + 0.01 * i)) for i in range(5)]
    candidates.append(Candidate(20, 0.0, on_circle(-1.5)))
    first, second = choose(candidates, [], 2)
    assert first.key == 4 and second.key in {20, *range(10, 15)}
    rated = [on_circle(0.02)]
    assert choose(candidates, rated, 1)[0].key in range(10, 15)  # what is alike was judged already
    assert [c.key for c in choose(candidates, rated, 99)][:1] != []
    assert len(choose(candidates, rated, 99)) == len(candidates)


def test_without_vectors_the_most_unsure_are_chosen() -> None:
    draw = random.Random(1)
    candidates = [Candidate(i, draw.random()) for i in range(50)]
    best = sorted(candidates, key=lambda c: -c.uncertainty)[:3]
    assert choose(candidates, [], 3) == best
    assert choose([], [], 3) == choose(candidates, [], 0) == []
    # Where only some have a vector, that is no reason to prefer them or to leave them out.
    candidates[7] = Candidate(7, 2.0, on_circle(0.0))
    candidates[8] = Candidate(8, 3.0)
    assert [c.key for c in choose(candidates, [on_circle(3.0)], 2)] == [8, 7]


def directions(draw: random.Random, count: int) -> list[list[float]]:
    found = [[draw.gauss(0, 1) for _ in range(64)] for _ in range(count)]
    return [[x / math.hypot(*vector) for x in vector] for vector in found]


def test_what_is_typical_of_many_comes_before_the_odd_ones() -> None:
    # Three themes of 40, 30 and 20 replies, and 60 that are like nothing else, all as unsure.
    draw = random.Random(2)
    themes = directions(draw, 3)
    vectors = [
        [x + 0.08 * draw.gauss(0, 1) for x in theme]
        for theme, size in zip(themes, (40, 30, 20), strict=True)
        for _ in range(size)
    ]
    vectors = [[x / math.hypot(*vector) for x in vector] for vector in vectors]
    vectors += directions(draw, 60)
    order = draw.sample(range(len(vectors)), len(vectors))
    candidates = [Candidate(key, 0.5, vectors[i]) for key, i in enumerate(order)]
    best = Candidate(999, 0.9, directions(draw, 1)[0])
    found = [c.key for c in choose([*candidates, best], [], 4)]
    assert found[0] == 999  # the best by score, then one of each theme, the largest first
    themed = [0] * 40 + [1] * 30 + [2] * 20 + [3] * 60
    assert [themed[order[key]] for key in found[1:]] == [0, 1, 2]


def test_the_gains_are_worked_out_anew_as_if_all_were_each_time() -> None:
    draw = random.Random(3)
    candidates = [
        Candidate(key, draw.random(), vector) for key, vector in enumerate(directions(draw, 30))
    ]
    assert len(candidates) <= NEAREST  # each is near all others: nothing is approximate

    def alike(one: Candidate, other: Candidate) -> float:
        assert one.vector is not None and other.vector is not None
        return max(sum(x * y for x, y in zip(one.vector, other.vector, strict=True)), 0.0)

    chosen = choose(candidates, [], 10)
    assert chosen[0] == max(candidates, key=lambda c: c.uncertainty)
    for place in range(1, 10):
        before = chosen[:place]

        def gain(new: Candidate, before: list[Candidate] = before) -> float:
            return sum(
                c.uncertainty * max(alike(c, new) - max(alike(c, b) for b in before), 0.0)
                for c in candidates
            )

        assert gain(chosen[place]) == pytest.approx(max(map(gain, candidates)))


def test_only_the_most_unsure_are_looked_at() -> None:
    draw = random.Random(4)
    vectors = directions(draw, 2 * LEAST)
    candidates = [Candidate(i, 1 - i / len(vectors), v) for i, v in enumerate(vectors)]
    assert all(c.key < LEAST for c in choose(candidates, [], 20))


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 12)), max_size=30),
    st.lists(st.integers(0, 12), max_size=3),
    st.integers(1, 2),
)
@settings(deadline=None)
def test_the_first_is_the_best_by_score_of_all(
    pairs: list[tuple[float, int]], judged: list[int], count: int
) -> None:
    candidates = [Candidate(i, u, on_circle(0.5 * a)) for i, (u, a) in enumerate(pairs)]
    rated = [on_circle(0.5 * a) for a in judged]

    def score(candidate: Candidate) -> float:
        assert candidate.vector is not None
        near = max((sum(x * y for x, y in zip(candidate.vector, r, strict=True)) for r in rated),
                   default=0.0)  # fmt: skip
        return candidate.uncertainty * min(1.0, (1.0 - near) / NEW)

    chosen = choose(candidates, rated, count)
    assert len(chosen) == min(count, len(candidates))
    if chosen:
        assert score(chosen[0]) == pytest.approx(max(map(score, candidates)))


def test_uncertainty_of_what_is_known() -> None:
    assert unsure(None, 0.25) == unsure(9.0, 0.25) == 0.75  # the margin comes first
    assert unsure(math.log(4), None) == pytest.approx(0.75) == unsure(math.log(4), math.nan)
    assert unsure(None, None) == unsure(math.nan, None) == unsure(-3.0, None) == 0.0
    assert unsure(None, -1.0) == 1.0 and unsure(None, 2.0) == 0.0


def filled(store: Store) -> list[int]:
    """Replies by how unsure the model was; the last question but one is asked twice."""
    made = []
    for number, (question, reply, entropy) in enumerate(
        [
            ("What is 2+2?", "4", 0.1), ("Who wrote Faust?", "Goethe", 0.4),
            ("How do I prune roses?", "In late winter.", 2.0),
            ("How do I prune the roses?", "In the late winter.", 1.9),
            ("Which tyre fits my car?", "A round one.", 1.8),
        ]
    ):  # fmt: skip
        talk = store.conversations.create()
        asked = store.conversations.add(talk.id, None, "user", question)
        facts = ReplyFacts(model="tiny", entropy=entropy, finish_reason="stop", system="Be brief.")
        if number == 0:
            facts = ReplyFacts(entropy=9.0, finish_reason="cancelled")  # broken off: says little
        made.append(store.conversations.add(talk.id, asked.id, "assistant", reply, facts=facts).id)
    return made


def test_unrated_replies_that_would_teach_most(home: Path, store: Store) -> None:
    cancelled, faust, roses, again, tyre = filled(store)
    assert [turn.message for turn in unrated(store.database)] == [faust, roses, again, tyre]
    with open_embedder("builtin") as embedder:
        two = [turn.message for turn in worth_asking(store.database, embedder, 2)]
        assert two[0] == roses and again not in two  # not the same question twice
        store.feedback.add(
            "up", ReplyRecord([{"role": "user", "content": "How do I prune roses?"}],
                              "In late winter.", message=roses),
        )  # fmt: skip
        assert [t.message for t in worth_asking(store.database, embedder, 1)] == [tyre]
    assert next(t.message for t in worth_asking(store.database, None, 2)) == again
    assert cancelled not in [t.message for t in unrated(store.database)]
    assert messages_of(store.database, tyre) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which tyre fits my car?"},
        {"role": "assistant", "content": "A round one."},
    ]


def test_the_command_writes_what_is_to_be_judged(home: Path, store: Store) -> None:
    filled(store)
    lines = [json.loads(line) for line in run("export", "--select", "2").splitlines()]
    assert len(lines) == 2 and lines[0]["entropy"] == 2.0 and lines[0]["rating"] is None
    assert lines[0]["messages"][-1] == {"role": "assistant", "content": "In late winter."}
    for wrong in (
        ("--select", "2", "--format", "kto"),
        ("--format", "bundle"),
        ("--encrypt", "--format", "kto"),
    ):
        assert "Error" in run("export", *wrong, ok=False)
