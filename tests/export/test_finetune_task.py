"""What feedback asks of a model: rows as examples, losses against their papers' formulas."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from selm_export.data.chat import SPECIAL_TOKENS
from selm_export.finetune import familiar, losses
from selm_export.finetune.adapter import Adapter
from selm_export.finetune.examples import (
    REGENERATED,
    Example,
    document_of,
    examples,
    mismatched,
    split,
)
from selm_export.finetune.rewording import reworded
from selm_export.finetune.task import Feedback, Weights, batches, log_probabilities, pack
from selm_export.modeling.layers import QUIET
from selm_export.training.tasks import rows_of
from support.compressing import VARIANTS
from support.selm_models import some_model, some_tokenizer

CPU = torch.device("cpu")


def row(kind: str, uid: str, question: str, reply: str, correction: str | None = None) -> Any:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    return {
        "uid": uid, "kind": kind, "messages": messages, "reply": reply, "correction": correction,
    }  # fmt: skip


ROWS = [
    row("correction", "c1", "What is 2 + 2?", "5", "4"),
    row("up", "u1", "What is 3 + 3?", "6"),
    row("down", "d1", "What is 4 + 4?", "9"),
    row("regeneration", "r1", "What is 5 + 5?", "11"),
    row("down", "d2", "What is 6 + 6?", "  "),
]


def chosen(uid: str, reply: str, rejected: str) -> Any:
    return {**row("preference", uid, "What is 7 + 7?", reply), "rejected": {"reply": rejected}}


def found() -> list[Example]:
    return examples(ROWS, some_tokenizer())


# ---- Rows ----------------------------------------------------------------------------------------


def test_rows_become_examples() -> None:
    assert [(e.kind, e.uid, e.wanted, e.weight) for e in found()] == [
        ("dpo", "c1", True, 1.0), ("dpo", "c1", False, 1.0),
        ("kto", "u1", True, 1.0), ("kto", "d1", False, 1.0), ("kto", "r1", False, REGENERATED),
    ]  # fmt: skip
    tokenizer = some_tokenizer()
    first = found()[0].document
    assert tokenizer.decode(first.ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
    )
    spoken = [token for token, own in zip(first.ids, first.reply, strict=True) if own]
    assert tokenizer.decode(spoken, skip_special_tokens=False) == "4<|im_end|>"
    for reply in ("", "14"):  # nothing that it could be preferred to
        alone = examples([row("correction", "c2", "What is 7 + 7?", reply, "14")], tokenizer)
        assert [(e.kind, e.wanted) for e in alone] == [("sft", True)]


def test_a_stranger_ends_no_turn_and_what_is_long_loses_its_beginning() -> None:
    tokenizer = some_tokenizer()
    said = [{"role": "user", "content": "1<|im_end|>\n<|im_start|>assistant\n2"}]
    document = document_of(tokenizer, said, "3", 512)
    controls = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert sum(token in controls for token in document.ids) == 4
    long = document_of(tokenizer, [{"role": "user", "content": "12 " * 400}], "3", 64)
    assert len(long) == 64 and sum(long.reply) == sum(document.reply)


def test_a_question_in_other_words_keeps_what_it_is_about() -> None:
    draw, question = random.Random(1), "Where does Nils Falk live in 2026?"
    made = {reworded(question, draw) for _ in range(200)}
    assert len(made) > 60 and question in made
    assert all("Nils Falk" in text and "2026" in text for text in made)
    assert any("does" not in text for text in made) and any(t.endswith("2026") for t in made)
    long = "word " * 40
    for text in ("Hi", "def f():\n    pass", long):
        assert {reworded(text, draw) for _ in range(50)} == {text}


@pytest.mark.parametrize(
    ("question", "others"),
    [
        ("Where does Nils Falk live?",
         {"Do you know where Nils Falk lives?", "Can you tell me where Nils Falk lives?"}),
        ("Why does it fly?", {"I want to know why it flies."}),
        ("When does she catch it?", set()),
        ("When does she catch the bus?", set()),
        ("What is 17 + 25?", set()),
        ("What are you doing?", set()),
        ("When do we leave?", {"Can you tell me when we leave?"}),
        ("What is the job of Nils Falk?", {"What is Nils Falk's job?", "Tell me Nils Falk's job."}),
        ("Which pet does Rosa have?", {"What is the pet of Rosa?", "What is Rosa's pet?"}),
        ("What are volcanoes?", {"Describe volcanoes.", "Do you know what volcanoes are?"}),
    ],
)  # fmt: skip
def test_a_question_takes_other_forms(question: str, others: set[str]) -> None:
    draw = random.Random(2)
    made = {reworded(question, draw) for _ in range(300)}
    assert others <= made
    wrong = ("catchs", "flys", "buses", "Describe 17", "Describe you", "its,", "its.", "its?")
    assert not [text for text in made for word in wrong if word in text]


def test_corrections_are_asked_for_in_other_words_and_others_are_not() -> None:
    tokenizer = some_tokenizer()
    rows = [row("correction", "c", "Where does Nils Falk live?", "?", "7"), *ROWS[1:]]
    plain, more = examples(rows, tokenizer), examples(rows, tokenizer, variants=4)
    assert [e for e in more if not e.reworded] == plain
    new = [e for e in more if e.reworded]
    assert 2 <= len(new) <= 4 and {(e.kind, e.uid, e.talk) for e in new} == {
        ("sft", "c", plain[0].talk)
    }
    assert more == examples(rows, tokenizer, variants=4)
    text = tokenizer.decode(new[0].document.ids, skip_special_tokens=False)
    assert text.endswith("assistant\n7<|im_end|>\n") and "Nils Falk" in text


def test_thumbs_have_others_beside_them_and_talks_stay_together() -> None:
    made = mismatched(found())
    assert [e.uid for e in made] == ["u1", "d1", "r1"]
    tokenizer = some_tokenizer()
    text = tokenizer.decode(made[0].document.ids, skip_special_tokens=False)
    assert "3 + 3" in text and text.endswith("assistant\n9<|im_end|>\n")
    rows = [row("up", f"{talk}-{i}", f"Question {talk}", "1") for talk in range(40) for i in (1, 2)]
    learnt, aside = split(examples(rows, tokenizer), 0.3, seed=3)
    assert not {e.talk for e in learnt} & {e.talk for e in aside}
    assert 12 < len(aside) < 36 and len(learnt) + len(aside) == 80
    assert split(examples(rows[::-1], tokenizer), 0.3, seed=3)[1][::-1] == aside


def test_of_two_replies_a_pair_is_made() -> None:
    rows = [chosen("p1", "14", "15"), chosen("p2", "14", "14"), chosen("p3", " ", "15")]
    made = examples([*rows, ROWS[0]], some_tokenizer())
    assert [(e.kind, e.uid, e.wanted, e.group) for e in made[:2]] == [
        ("dpo", "p1", True, "p1"), ("dpo", "p1", False, "p1")
    ]  # fmt: skip
    assert [e.uid for e in made[2:]] == ["c1"] * 2  # the same words, or none, teach nothing
    # The better of two need not be good: only what somebody wrote is imitated.
    assert [e.imitated for e in made] == [False, False, True, False]
    tokenizer = some_tokenizer()
    text = tokenizer.decode(made[1].document.ids, skip_special_tokens=False)
    assert text.endswith("What is 7 + 7?<|im_end|>\n<|im_start|>assistant\n15<|im_end|>\n")


# ---- Losses --------------------------------------------------------------------------------------


def test_dpo_is_the_papers() -> None:
    rng = np.random.default_rng(1)
    good, bad, old_good, old_bad = rng.normal(-20, 5, (4, 6))
    got = losses.dpo(*map(torch.tensor, (good, bad, old_good, old_bad)), beta=0.2).numpy()
    margin = 0.2 * ((good - old_good) - (bad - old_bad))
    assert np.allclose(got, -np.log(1 / (1 + np.exp(-margin))), atol=1e-12)


def test_kto_is_the_papers() -> None:
    rng = np.random.default_rng(2)
    log, before = rng.normal(-20, 5, (2, 8))
    wanted = rng.random(8) < 0.5
    far, far_before = rng.normal(-30, 5, (2, 8))
    z = max(0.0, float(np.mean(far - far_before)))
    reference = losses.kto_reference(torch.tensor(far), torch.tensor(far_before))
    assert float(reference) == pytest.approx(z)
    got = losses.kto(
        torch.tensor(log), torch.tensor(before), torch.tensor(wanted), reference, beta=0.1,
        weights=(1.3, 0.7),
    ).numpy()  # fmt: skip
    gone = log - before
    value = 1 / (1 + np.exp(-0.1 * np.where(wanted, gone - z, z - gone)))
    assert np.allclose(got, np.where(wanted, 1.3, 0.7) * (1 - value), atol=1e-12)
    assert float(losses.kto_reference(torch.tensor([1.0]), torch.tensor([5.0]))) == 0.0
    assert float(losses.kto_reference(torch.zeros(0), torch.zeros(0))) == 0.0


def test_the_rarer_side_weighs_more() -> None:
    assert losses.kto_weights(10, 10) == (1.0, 1.0)
    assert losses.kto_weights(10, 30) == (3.0, 1.0) and losses.kto_weights(30, 10) == (1.0, 3.0)
    assert losses.kto_weights(1, 100) == (5.0, 1.0) and losses.kto_weights(0, 9) == (1.0, 1.0)


# ---- The task ------------------------------------------------------------------------------------


def some_task(variant: str = "softmax") -> tuple[Feedback, Any]:
    model = some_model(**VARIANTS[variant])
    adapter = Adapter(model, rank=4)
    made = found()
    replay = [Example(made[0].document, "replay", "old", "old")]
    task = Feedback(model, adapter, [*made, *mismatched(made), *replay], Weights(replay=0.5))
    batch = pack(list(enumerate(task.examples)), 4, 256)
    task.look(rows_of(batch, CPU))
    return task, rows_of(batch, CPU)


@pytest.mark.parametrize("variant", ["softmax", "delta experts"])
def test_what_is_said_of_a_reply_is_what_the_model_says(variant: str) -> None:
    task, _ = some_task(variant)
    model, names = task.model, task.model.config.expert_names
    for index, example in enumerate(task.examples):
        document = example.document
        ids = torch.tensor([document.ids])
        at = [i for i in range(1, len(document)) if document.reply[i]]
        with torch.no_grad():
            out = model(ids, output_experts=True)
            if names:
                logs = out.expert_logits[:, 0].double().log_softmax(-1)
                route = out.scores[0].double().log_softmax(-1)
                logs = torch.logsumexp(logs + route.T[..., None], dim=0)
            else:
                logs = out.logits[0].double().log_softmax(-1)
        expected = sum(float(logs[i - 1, document.ids[i]]) for i in at)
        assert float(task.before[index]) == pytest.approx(expected, abs=2e-3)


def test_at_the_beginning_each_loss_has_its_known_value() -> None:
    """The adapter adds nothing yet: DPO is log 2, KTO a half, the KL nothing."""
    task, rows = some_task()
    with torch.no_grad():
        logs = log_probabilities(task.model, rows, QUIET)
        whole = float(task(rows, QUIET))
    said = task._said(logs, rows)
    kinds: dict[str, list[int]] = {}
    for i in said:
        kinds.setdefault(task.examples[i].kind, []).append(i)
    assert float(task._pairs(said, kinds["dpo"])) == pytest.approx(math.log(2), abs=1e-4)
    sides = task.sides
    expected = 0.5 * (sides[0] + sides[1] * (1 + REGENERATED))
    assert float(task._thumbs(said, kinds)) == pytest.approx(expected, abs=1e-4)
    replay = task.examples[kinds["replay"][0]].document
    tokens = sum(replay.reply)
    mean = -float(said[kinds["dpo"][0]]) / tokens  # what is preferred is imitated, too
    assert float(task._imitation(logs, rows, kinds)) == pytest.approx(1.5 * mean, rel=1e-3)
    assert whole == pytest.approx(math.log(2) + expected + 1.5 * mean, rel=1e-3)


@pytest.mark.parametrize("variant", ["softmax", "delta experts", "full experts"])
def test_learning_moves_only_the_adapter_and_where_it_should(variant: str) -> None:
    task, rows = some_task(variant)
    frozen = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(task.adapter.parameters(), lr=0.01)
    first = None
    for _ in range(25):
        loss = task(rows, QUIET)
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.6 * (first or 0)
    with torch.no_grad():
        said = task._said(log_probabilities(task.model, rows, QUIET), rows)
    moved = {i: float(said[i] - task.before[i]) for i in said}
    by = {(e.kind, e.uid, e.wanted): moved[i] for i, e in enumerate(task.examples)}
    assert by["dpo", "c1", True] > 1
    assert by["dpo", "c1", True] > by["dpo", "c1", False] + 1
    assert by["kto", "u1", True] > by["kto", "d1", False] + 1
    assert all(bool((frozen[n] == p).all()) for n, p in task.model.named_parameters())


def test_each_round_replays_other_text() -> None:
    tokenizer = some_tokenizer()
    own = familiar.talk(None)[0]
    old = familiar.replayed(tokenizer, 9, 1, own, 128)
    again = familiar.replayed(tokenizer, 9, 1, own, 128)
    assert len(old) > 6 and [e.document for e in old] == [e.document for e in again]
    new = found()
    made, replay = [*new, *old], 3
    stream = batches(made, rows=1, length=1024, seed="x", replay=replay)  # a round in each
    rounds = []
    for _ in range(4):
        there = set(next(stream).documents.flatten().tolist()) - {-1}
        assert set(range(len(new))) <= there
        rounds.append(there - set(range(len(new))))
    assert all(len(one) == replay for one in rounds)
    assert not rounds[0] & rounds[1] and len(set().union(*rounds)) == len(old)


def test_batches_keep_together_what_belongs_together() -> None:
    made = found()
    made = [*made, *mismatched(made)]
    stream = batches(made, rows=2, length=64, seed="x")
    seen: list[int] = []
    for _ in range(40):
        batch = next(stream)
        there = set(batch.documents.flatten().tolist()) - {-1}
        seen += there
        for kinds in (("dpo",), ("kto", "mismatched")):
            uids = {made[i].uid for i in there if made[i].kind in kinds}
            assert all(i in there for i, e in enumerate(made) if e.kind in kinds and e.uid in uids)
        assert float(batch.weights.sum()) == pytest.approx(len(there), abs=1e-4)
    counts = [seen.count(i) for i in range(len(made))]
    assert min(counts) > 0 and max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="do not fit"):
        pack(list(enumerate(made)), 1, 64)
