"""Reading, splitting, packing: what the model is trained on is what the files say."""

from __future__ import annotations

import itertools
import json
import lzma
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="needs the [export] extra: numpy is not installed")

from selm_export.data import corpus
from selm_export.data.chat import Conversation, Message, chat, render
from selm_export.data.packing import Document, Packing, batches, mixed, rows, shuffled
from selm_export.data.split import clusters, hold_out
from selm_export.errors import RecipeError

TALK = """N: The key is in the blue tin.
N: The train goes at 14:20.
U: Where is the key?
A: The key is in the blue tin.
U: Thanks
A: You are welcome!

U: What is 2 + 2?
A: 2 + 2 = 4.
"""


def test_talk_notes_stand_in_the_user_turn() -> None:
    first, second = corpus.parse_talk(TALK, "talk/x")
    assert first.messages[0] == Message(
        "user",
        "N: The key is in the blue tin.\nN: The train goes at 14:20.\nWhere is the key?",
    )
    assert [m.role for m in first.messages] == ["user", "assistant"] * 2
    assert second.messages[1].content == "2 + 2 = 4."


def test_talk_names_the_line_it_cannot_read() -> None:
    with pytest.raises(RecipeError, match="neither U:, A: nor N:"):
        corpus.parse_talk("U: hi\nwhat is this", "talk/x")


def test_read_lines_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress('{"a": "line\u2028separator"}\nbroken'.encode()))
    with pytest.raises(RecipeError, match=r"x\.jsonl\.xz: line 2"):
        list(corpus.read_lines(path))
    path.write_bytes(b"no xz at all")
    with pytest.raises(RecipeError, match="cannot be read"):
        list(corpus.read_lines(path))
    with pytest.raises(RecipeError, match="does not exist"):
        corpus.read_text(tmp_path / "missing")


def test_gsm8k_reply_has_no_calculator_marks() -> None:
    answer = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
    assert corpus.gsm8k_reply(answer) == (
        "She sold 48/2 = 24 clips. In all 48+24 = 72. The answer is 72."
    )


def test_sentences_keeps_whole_ones() -> None:
    assert corpus.sentences("One two.  Three four. Five.", 22) == "One two. Three four."
    assert corpus.sentences("A very long sentence without an early end.", 10) == ""


def test_topical_chat_alternates_and_ends_with_a_reply(tmp_path: Path) -> None:
    turns = [["agent_1", "hi", ""], ["agent_1", "there", ""], ["agent_2", "hello", ""],
             ["agent_1", "bye", ""]]  # fmt: skip
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"turns": turns}))
    (found,) = corpus.read_topical(path)
    assert [m.content for m in found.messages] == ["hi there", "hello"]


def _conversations(count: int) -> list[Conversation]:
    r = random.Random(3)
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "su") for b in ("ta", "ren", "vo", "lix")]
    return [
        chat(
            "talk/a", f"Tell me of {' '.join(r.sample(words, 3))} {i}", " ".join(r.sample(words, 7))
        )
        for i in range(count)
    ]


def test_split_depends_on_content_alone() -> None:
    conversations = _conversations(400)
    _, held_out = hold_out(conversations, 0.1)
    mixed_up = conversations[:]
    random.Random(1).shuffle(mixed_up)
    _, again = hold_out(mixed_up, 0.1)
    assert {c.text() for c in held_out} == {c.text() for c in again}
    assert 0.02 < len(held_out) / len(conversations) < 0.25


def test_near_identical_conversations_stay_together() -> None:
    same = [
        chat("talk/a", "What is the capital of France?", "Paris."),
        chat("talk/b", "what's the capital of france", "It is Paris, on the Seine."),
        chat("talk/c", "Which city rules France?", "It is Paris, on the Seine."),
        chat("talk/d", "What is the capital of Spain?", "Madrid."),
    ]
    assert sorted(map(sorted, clusters(same))) == [[0, 1, 2], [3]]
    training, held_out = hold_out(same[:3], 0.5)
    assert not training or not held_out


def test_render_joins_to_chatml() -> None:
    pieces = render(chat("x", "hi", "hello").with_system("Be kind."))
    assert "".join(p.text for p in pieces) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n"
    )
    assert [p.text for p in pieces if p.reply] == ["hello<|im_end|>"]


def _documents(lengths: list[int]) -> list[Document]:
    """Tokens are 100 * document + place; the second half of each is the reply."""
    return [
        Document([100 * d + i for i in range(n)], [2 * i >= n for i in range(n)])
        for d, n in enumerate(lengths, start=1)
    ]


def test_packing_predicts_replies_within_their_document() -> None:
    documents = _documents([10, 20, 7, 30, 12])
    packing = Packing(rows=2, tokens=40, places=64, user_weight=0.0, separator=0, pool=4)
    batch = next(batches(shuffled(documents, "1"), packing, "1"))
    flat, number = batch.ids.reshape(-1), batch.documents.reshape(-1)
    counted = batch.weights > 0
    assert counted.any()
    for position, target in zip(batch.positions[counted], batch.targets[counted], strict=True):
        assert number[position] >= 0
        assert target == flat[position] + 1  # the next token of the same document
        length = len(documents[target // 100 - 1])
        assert 2 * (target % 100) >= length  # a reply token


def test_rows_lose_no_document() -> None:
    documents = _documents([5, 9, 14, 3, 20, 11, 8, 2])
    packing = Packing(rows=1, tokens=31, places=8, pool=3)
    seen = [
        d.ids[0]
        for row in itertools.islice(rows(shuffled(documents, "7"), packing), 9)
        for d in row
    ]
    # Three whole epochs hold each document three times; the pool holds a few back.
    assert all(seen.count(d.ids[0]) >= 2 for d in documents)


def test_user_tokens_fill_the_places_left() -> None:
    packing = Packing(rows=1, tokens=40, places=30, user_weight=0.25, separator=0, pool=4)
    batch = next(batches(shuffled(_documents([20, 20, 20]), "1"), packing, "1"))
    assert set(batch.weights.tolist()) == {1.0, 0.25}
    assert len(batch.positions) == 30


def test_what_was_drawn_by_lot_is_given_not_predicted() -> None:
    drawn = [replace(d, drawn=True) for d in _documents([20, 20, 20])]
    packing = Packing(rows=1, tokens=40, places=30, user_weight=0.25, separator=0, pool=4)
    batch = next(batches(shuffled(drawn, "1"), packing, "1"))
    assert set(batch.weights.tolist()) == {1.0, 0.0}
    assert all(2 * (t % 100) >= 20 for t in batch.targets[batch.weights > 0])


def test_mix_follows_the_shares() -> None:
    short, long = _documents([4])[0], _documents([4, 16])[1]
    streams = {"a": itertools.repeat(short), "b": itertools.repeat(long)}
    seen = {4: 0, 16: 0}
    for document in itertools.islice(mixed(streams, {"a": 3.0, "b": 1.0}, "s"), 2000):
        seen[len(document)] += len(document)
    assert abs(seen[4] / (seen[4] + seen[16]) - 0.75) < 0.01


def test_shared_data_can_be_read() -> None:
    data = Path(__file__).parents[3] / "shared" / "data"
    if not (data / "talk").is_dir():
        pytest.skip("the shared data folder is not beside the repository")
    found = [c for path in corpus.source_files(data, "talk") for c in corpus.read_talk(path)]
    assert len(found) > 12_000
    assert all(c.messages[-1].role == "assistant" for c in found)
    training, held_out = hold_out(found, 0.04)
    assert 0.03 < len(held_out) / len(found) < 0.05
    assert {c.source for c in held_out} == {c.source for c in training}


def test_missing_source_names_the_option(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "talk", ignore_errors=True)
    with pytest.raises(RecipeError, match=r"--set data\.folder"):
        corpus.source_files(tmp_path, "talk")
