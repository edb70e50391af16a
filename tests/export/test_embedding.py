"""The static embedder: its file, its training, its pairs; and the stage that makes it."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
import torch
from click.testing import CliRunner
from selm_export.cli import main
from selm_export.embedding import pairs, sentences, static, teacher, training
from selm_export.embedding.pairs import Pair
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from support.embedders import expected

from selm_edge.memory.embedder import StaticEmbedder

LABEL = Label("small", description="for a test")
WORDS = [
    "who", "has", "the", "drill", "key", "cat", "dog", "boat", "red", "blue", "is", "in", "where",
    "what", "tom", "anna", "walnut", "cake", "soup", "##s", "a", "of", "and", "not", "was", "it",
    ".",
]  # fmt: skip
TOKENS = [*teacher.NO_TEXT, *WORDS]
SMOKE = Path(static.__file__).parents[1] / "recipes" / "smoke-data"


def rows(dim: int = 32, seed: int = 3) -> teacher.Floats:
    made = np.random.default_rng(seed).normal(size=(len(TOKENS), dim)).astype(np.float32)
    made[: len(teacher.NO_TEXT)] = 0
    return made


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_the_file_is_read_back_and_run_by_the_core(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    static.write(path, static.StaticEmbedder(TOKENS, rows()), LABEL, "nowhere", kind)
    read = static.read(path)
    assert read.tokens == TOKENS
    np.testing.assert_allclose(
        read.rows, rows(), atol={"f32": 0, "f16": 2e-3, "q8_0": 2e-2, "q4_0": 0.3}[kind]
    )
    texts = ["Who has the DRILLS?", "the cat and the dog", "zzz", ""]
    held = read.rows.astype(np.float64)
    with StaticEmbedder(path) as core:
        for text, ids, ours, got in zip(
            texts, read.ids(texts), read.embed(texts), core.embed(texts), strict=True
        ):
            want = expected(TOKENS, held, ids)
            if want is None:
                assert got is None and not ours.any()
                continue
            assert got is not None, text
            np.testing.assert_allclose(ours, want, atol=1e-6)
            np.testing.assert_allclose(np.frombuffer(got, "<f4"), want, atol=1e-6)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF nothing")
    with pytest.raises(RecipeError, match=r"other\.gguf"):
        static.read(path)


def test_tokens_are_those_of_the_teacher() -> None:
    pytest.importorskip(teacher.PACKAGE)
    from transformers import BertTokenizer

    tokens = teacher.vocabulary()
    own = static.wordpiece(tokens)
    theirs = BertTokenizer(str(teacher.folder() / "vocab.txt"))
    for text in ("Nora's café, INV-20417!", "naïve Größe 東京 tower", "x" * 120, "  ", "don't"):
        assert own.encode(text).tokens == theirs.tokenize(text)


def test_the_teacher_is_the_one_of_sentence_transformers() -> None:
    pytest.importorskip(teacher.PACKAGE)
    library = pytest.importorskip("sentence_transformers")
    texts = ["Nora must not eat walnuts.", "The key hangs behind the boiler.", "Hi"]
    theirs = library.SentenceTransformer(str(teacher.folder()), device="cpu").encode(texts)
    np.testing.assert_allclose(teacher.Teacher().vectors(texts), theirs, atol=1e-5)


def test_a_missing_teacher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(RecipeError, match="pip install"):
        teacher.folder()


# -- learning --------------------------------------------------------------------------------------

PAIRS = [
    Pair("who has the drill", "tom", "anna"), Pair("where is the key", "in the boat"),
    Pair("what is the cake", "walnut", "soup"), Pair("what was it", "walnut"),
]  # fmt: skip


def source() -> tuple[static.StaticEmbedder, training.Source]:
    embedder = static.StaticEmbedder(TOKENS, rows())
    return embedder, training.Source(embedder, PAIRS)


def softmax_loss(logits: Any, right: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[right])


def test_the_loss_is_that_of_numpy() -> None:
    embedder, given = source()
    lesson = training.Lesson(temperature=0.5)
    learner = training._Learner(embedder, lesson, seed=0)
    order = np.random.default_rng(0).permutation(len(PAIRS))
    asked = embedder.embed([PAIRS[i].question for i in order]).astype(np.float64)
    told = embedder.embed([PAIRS[i].text for i in order]).astype(np.float64)
    beside = embedder.embed([PAIRS[i].other for i in order if PAIRS[i].other]).astype(np.float64)
    total = 0.0
    for i, one in enumerate(order):
        # The same text under another question is right too, so it is no wrong choice.
        twins = {j for j, o in enumerate(order) if j != i and PAIRS[o].text == PAIRS[one].text}
        kept = [j for j in range(len(order)) if j not in twins]
        forth = np.concatenate([asked[i] @ told[kept].T, asked[i] @ beside.T]) / 0.5
        total += softmax_loss(forth, kept.index(i))
        total += softmax_loss(told[i] @ asked[kept].T / 0.5, kept.index(i))
    loss = float(learner.pair_loss(given).detach())
    assert loss == pytest.approx(total / len(order), rel=1e-5)


def test_nothing_is_to_learn_from_a_teacher_who_sees_the_same() -> None:
    embedder, _ = source()
    texts = ["the cat", "the dog and the boat", "red soup", "blue cake of anna", "where is tom"]
    same = training.Anchors(embedder.ids(texts), embedder.embed(texts))
    other = training.Anchors(embedder.ids(texts), np.roll(embedder.embed(texts), 1, axis=0))
    learner = training._Learner(embedder, training.Lesson(), seed=0)
    assert float(learner.anchor_loss(same).detach()) == pytest.approx(0, abs=1e-5)
    assert float(learner.anchor_loss(other).detach()) > 0.01


def test_questions_come_to_find_their_texts() -> None:
    embedder, given = source()
    texts = [pair.text for pair in PAIRS[:3]]
    anchors = training.Anchors(embedder.ids(texts), embedder.embed(texts))
    lesson = training.Lesson(steps=60, rate=0.05, teacher=0.1, shares={"own": 1.0})
    said: list[str] = []
    torch.manual_seed(0)
    made = training.train(embedder, {"own": given}, anchors, lesson, seed=1, say=said.append)
    cosines = made.embed([p.question for p in PAIRS[:3]]) @ made.embed(texts).T
    assert cosines.argmax(1).tolist() == [0, 1, 2]
    assert said[-1].startswith("step 60 of 60: loss")
    np.testing.assert_array_equal(embedder.rows, rows())  # the one given stays as it is
    again = training.train(embedder, {"own": given}, anchors, lesson, seed=1, say=said.append)
    np.testing.assert_array_equal(again.rows, made.rows)


def test_lessons_that_make_no_sense() -> None:
    assert training.Lesson().faults() is None
    for wrong in (
        training.Lesson(steps=0), training.Lesson(rate=0), training.Lesson(teacher=-1),
        training.Lesson(shares={}),
    ):  # fmt: skip
        assert wrong.faults()


# -- what is learned from --------------------------------------------------------------------------


def test_made_up_facts_hold_what_is_asked_for() -> None:
    made = pairs.notes(random.Random(1), 200)
    assert len(made) == 200
    assert made == pairs.notes(random.Random(1), 200)
    assert all(pair.text and pair.text != pair.other for pair in made)
    assert all(not pair.text.startswith("N: ") for pair in made)
    assert len(pairs.reading(random.Random(1), 50)) == 50


def test_what_is_held_out_is_not_learned_from() -> None:
    every = pairs.medquad(SMOKE)
    learned, kept = pairs.held_out(every, 20)
    assert len(kept) == min(20, len(every) // 2)
    assert not {p.text for p in learned} & {p.text for p in kept}
    assert not set(learned) & set(kept)


def test_notes_of_the_talk_files_go_with_their_questions() -> None:
    told = pairs.talk(SMOKE)
    assert told["talk-notes"] and told["talk"]
    for pair in told["talk-notes"]:
        assert "N: " not in pair.text and "\n" not in pair.text + pair.question


# -- the stage -------------------------------------------------------------------------------------


def packed(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(lzma.compress(text.encode()))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for file in SMOKE.rglob("*.xz"):
        (folder / file.relative_to(SMOKE)).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.relative_to(SMOKE)).write_bytes(file.read_bytes())
    choice = "question: What is {n} plus one? \n\nAnswer1: {n}\n\nAnswer2: more\n\nAnswer format: x"
    rows = [{"instruction": choice.format(n=n), "answer": "answer2"} for n in range(20)]
    packed(folder / "general/arc-easy-train.jsonl.xz", rows)
    packed(folder / "general/openbookqa-train.jsonl.xz", rows)
    turns = [["agent_1", "Do you like the red boat?"], ["agent_2", "Yes, I like boats."]]
    packed(folder / "general/topical-chat.jsonl.xz", [{"turns": turns}])
    answer = {"question": "Does it help?", "long_answer": "It helps often.", "decision": "yes"}
    packed(folder / "medical/pubmedqa.jsonl.xz", [answer] * 3)
    packed(folder / sentences.INTENTS, [{"text": f"where is my red key {n}"} for n in range(9)])
    return folder


def test_the_stage_writes_the_file_and_its_card(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def vectors(self, texts: list[str]) -> teacher.Floats:
            return static.StaticEmbedder(TOKENS, rows(seed=4)).embed(texts)

    made: list[int] = []
    monkeypatch.setattr(teacher, "vocabulary", lambda: TOKENS)
    monkeypatch.setattr(teacher, "distilled", lambda dim, sif: made.append(dim) or rows(dim))
    monkeypatch.setattr(teacher, "Teacher", Silent)
    output, into = tmp_path / "out", tmp_path / "package"
    values = {"folder": data, "into": into, "dim": 32, "generated": 20, "read": 40,
              "train.steps": 3, "train.batch": 8, "train.anchors": 16}  # fmt: skip
    command = ["embedder", "--output", str(output), "--json"]
    command += [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    card = json.loads((into / "selm-embedder.json").read_text(encoding="utf-8"))
    file = into / "selm-embedder.gguf"
    assert file.read_bytes() == (output / "selm-embedder.gguf").read_bytes()
    assert card["size"] == file.stat().st_size and card["kind"] == "embedder"
    assert card["tokens"] == len(TOKENS) and card["dim"] == 32
    before = file.read_bytes()
    assert set(card["metrics"]) == {"split", "facts", "codes", "medquad", "unanswered"}
    # The same command again computes nothing of the teacher's again, and makes the same file.
    assert CliRunner().invoke(main, command).exit_code == 0
    assert made == [32]
    assert file.read_bytes() == before


@pytest.mark.parametrize("key", ["type=q3", "dim=100", "train.steps=0"])
def test_settings_that_make_no_sense(key: str, tmp_path: Path) -> None:
    command = ["embedder", "--output", str(tmp_path), "--set", "folder=x", "--set", key]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "Mend it" in done.output
