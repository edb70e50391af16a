"""What exits are worth, and the stage that teaches them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
import torch
from selm_export import checkpoint, drafts
from selm_export.data import dataset
from selm_export.data.chat import chat
from selm_export.data.packing import Document
from selm_export.data.vocabulary import end_of_turn
from selm_export.drafts import Cycle, Guess, Rule, best_rule, cost_of, play
from selm_export.errors import RecipeError
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.layers import QUIET
from selm_export.stages import exits
from selm_export.stages.job import Job
from selm_export.training.settings import Phase, Training
from selm_export.training.tasks import Exits, Rows, mixture_teacher
from support.selm_models import VOCABULARY, some_model, some_tokenizer

TRAIN = Training(
    tokens=600, phases=(Phase({"talk": 2, "arithmetic": 1}),), rows=2, length=64, places=96,
    micro_batches=2, warmup_steps=1,
)  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Prepared data and a random model."""
    r = random.Random(0)
    words = ["red", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "sings", "today"]
    talk = [
        chat("talk/small", f"Where is the {' '.join(r.sample(words, 3))}?",
             f"It is {' '.join(r.sample(words, 3))}.")
        for _ in range(60)
    ]  # fmt: skip
    data, output = tmp_path / "data", tmp_path / "exits"
    data.mkdir()
    output.mkdir()
    dataset.write_conversations(data / dataset.TRAINING, talk[:50])
    dataset.write_conversations(data / dataset.HELD_OUT, talk[50:])
    model = some_model(attention_bias=True, max_position_embeddings=128)
    checkpoint.save(tmp_path / "base", model, some_tokenizer())
    return Job("exits", (tmp_path / "base",), output, data, 1, lambda text: None)


def test_a_model_learns_to_speak_early(job: Job) -> None:
    settings = exits.Settings((1, 2), TRAIN, shortlist=40)
    figures = exits.run(job, settings)
    assert figures is not None and figures["steps"] == 2
    assert set(figures["exit_1"]) == {"as_written", "own_replies", "by_shortlist"}
    made = checkpoint.load(job.output)
    assert made.model.config.exit_layers == [1, 2]
    assert len(made.model.config.draft_vocabulary) == 40
    assert made.tokenizer.get_vocab() == some_tokenizer().get_vocab()
    base = checkpoint.load(job.inputs[0]).model
    ids = torch.randint(0, VOCABULARY, (1, 12))
    assert not torch.equal(made.model(ids).logits, base(ids).logits)  # it has learned
    said = made.model(ids, output_exits=True).exit_logits
    assert said.shape == (2, 1, 12, VOCABULARY) and not torch.allclose(said[0], said[1])


@pytest.mark.parametrize(("layers", "cause"), [((3,), "an exit after layer 3 of 3"),
                                               ((0,), "an exit after layer 0")])  # fmt: skip
def test_an_exit_where_none_can_be_is_refused(
    job: Job, layers: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(RecipeError, match=cause):
        exits.run(job, exits.Settings(layers, TRAIN, shortlist=40))


def test_the_shortlist_holds_what_replies_hold_most(job: Job) -> None:
    sources = dataset.Sources(job.data, some_tokenizer(), TRAIN.packing, job.seed)
    shortlist = exits.choose_shortlist(sources.stream(TRAIN.phases[0], "x"), 12)
    counts: Counter[int] = Counter()
    for batch in islice(sources.stream(TRAIN.phases[0], "x"), exits.COUNTED):
        for target, weight in zip(batch.targets, batch.weights, strict=True):
            counts[int(target)] += bool(weight == 1.0)
    assert len(shortlist) == 12
    assert [counts[t] for t in shortlist] == sorted(counts.values(), reverse=True)[:12]
    mask = drafts.only(shortlist, VOCABULARY)
    assert torch.isfinite(mask).nonzero().flatten().tolist() == sorted(shortlist)
    # What is counted as listed are the model's own likeliest tokens.
    model = some_model(exit_layers=[1])
    documents = dataset.sample(job.data / dataset.HELD_OUT, some_tokenizer(), 5, 1)
    tally = drafts.teacher_forced(drafts.model_says(model), [1], documents, mask, 128)[1]
    listed = places = 0
    for document in documents:
        with torch.no_grad():
            likeliest = model(torch.tensor([document.ids])).logits[0].argmax(-1).tolist()
        for token, reply in zip(likeliest, document.reply[1:], strict=False):
            places += reply
            listed += reply and token in shortlist
    assert (tally.places, tally.listed) == (places, listed)


def test_an_exit_that_says_what_the_end_says_is_always_right() -> None:
    """The layers above add nothing, so every draft is accepted whole."""
    model = some_model(
        exit_layers=[1], draft_vocabulary=list(range(VOCABULARY)), max_position_embeddings=128
    )
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.exits["1"].weight.copy_(model.model.norm.weight)
    documents = [Document(list(range(9, 29)), [n >= 12 for n in range(20)])] * 2
    found = drafts.measure(model, documents, end_of_turn(some_tokenizer()), 2)["exit_1"]
    assert found["as_written"] == found["own_replies"]
    assert found["own_replies"] == {"agreed": 1.0, "drafted": 1.0, "listed": 1.0}
    best = found["by_shortlist"][str(VOCABULARY)]["of_any_probability"]
    assert best["gained"] >= 1.9 if best["longest"] == 1 else best["gained"] > 2.0


@pytest.mark.parametrize("longest", range(1, 6))
def test_tokens_gained_are_those_of_speculation_played_out(longest: int) -> None:
    r = np.random.default_rng(4)
    replies = [r.random(n) < 0.7 for n in (1, 7, 40, 200)]
    cycles = drafted = 0
    for reply in replies:
        left = [*reply]
        while left:  # the accepted draft goes, and the token that the model says after it
            cycles += 1
            draft = left[:longest]
            drafted += len(draft)
            left = left[(draft.index(False) if False in draft else len(draft)) + 1 :]
    guessed = [[Guess(bool(right), 0.5) for right in reply] for reply in replies]
    found = play(guessed, Rule(longest, 0.0))
    assert found.gained == pytest.approx(248 / cycles)
    assert found.drafted == found.looked_at == pytest.approx(drafted / cycles)


def test_an_unlikely_draft_ends() -> None:
    reply = [Guess(True, 0.9), Guess(True, 0.5), Guess(False, 0.9), Guess(True, 0.3)]
    # Three are drafted (0.9, 0.45, 0.405), the fourth is too unlikely; after two that are right
    # and the model's own comes the last, which is looked at only.
    assert play([reply], Rule(8, 0.4)) == Cycle(gained=4 / 2, drafted=3 / 2, looked_at=5 / 2)
    assert play([reply], Rule(2, 0.5)) == Cycle(gained=4 / 3, drafted=2 / 3, looked_at=5 / 3)


def test_the_cost_of_a_cycle_by_hand() -> None:
    shape = SelmConfig(
        vocab_size=8192, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, intermediate_size=768,
    )  # fmt: skip
    layer, head = 1.835e6, 4.194e6
    plain = 6 * layer + head
    wanted = (4 * layer + 3.5 * 0.5 * 1024**2 + 1.3 * (5 * layer + head)) / plain
    assert cost_of(shape, 1, 1024, Cycle(2, 3, 3.5)) == pytest.approx(wanted, rel=1e-3)
    always = best_rule(shape, 1, 1024, [[Guess(True, 0.9)] * 900])
    never = best_rule(shape, 1, 1024, [[Guess(False, 0.1)] * 900])
    assert always["longest"] == drafts.LONGEST_DRAFT and always["speed_up"] > 2
    assert never["drafted"] == 0 and 0.95 < never["speed_up"] < 1


def test_the_loss_is_that_of_the_definition() -> None:
    """KL of the end, and of each exit at temperature 0.5, times it."""
    model, before = some_model(exit_layers=[1]), some_model(initializer_range=0.3)
    ids = torch.randint(0, VOCABULARY, (1, 9))
    rows = Rows(
        ids, torch.zeros_like(ids), torch.tensor([2, 5]), ids[0, :2], torch.tensor([1, 0.5])
    )
    found = Exits(model, mixture_teacher(before))(rows, QUIET)
    with torch.no_grad():
        said = model(ids, output_exits=True)
        wanted = before(ids).logits[0, [2, 5]].double().numpy()
    end = said.logits[0, [2, 5]].double().numpy()
    early = said.exit_logits[0, 0, [2, 5]].double().numpy()

    def divergence(taught: Any, other: Any, temperature: float) -> Any:
        p, q = (np.exp(x / temperature) for x in (taught, other))
        p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
        return temperature * (p * np.log(p / q)).sum(-1)

    loss = divergence(wanted, end, 1.0) + divergence(wanted, early, 0.5)
    assert float(found.detach()) == pytest.approx(float((loss * [1, 0.5]).sum()), rel=1e-4)
