"""Exits retrofitted to a trained model: they learn, the file keeps them, drafts count right."""

from __future__ import annotations

import json
import lzma
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
pytest.importorskip("transformers")

import gguf
import numpy as np
import torch
from click.testing import CliRunner
from selm_export import drafts, exits
from selm_export.cli import main
from selm_export.data.chat import CHAT_TEMPLATE
from selm_export.data.packing import Document
from selm_export.data.vocabulary import end_of_turn
from selm_export.drafts import Cycle, Guess, Rule, best_rule, cost_of, play
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label, write_gguf
from selm_export.modeling.file import read_model
from selm_export.network import Network, Shape, divergence, initialise
from selm_export.recipe import Recipe, read_recipe
from selm_export.train import Budget, Phase, Trainer
from support.selm_models import VOCABULARY, some_tokenizer

SMALL = Shape(VOCABULARY, 32, 3, heads=2, kv_heads=1, feed_forward=32, context=128)
RECIPE = """
name = "tiny"
title = "Tiny"
data = "nowhere"
[split]
share = 0.2
[vocabulary]
size = 400
repeat = {}
generated = 1
[model]
width = 32
[train]
tokens = 600
fast = false
[train.packing]
rows = 2
tokens = 64
places = 96
[evaluate]
questions = 2
[[train.phases]]
until = 1.0
shares = { talk = 2, arithmetic = 1 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe, its data, and a random model that it might have made."""
    r = random.Random(0)
    words = ["red", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "sings", "today"]
    blocks = [
        f"U: Where is the {' '.join(r.sample(words, 3))}?\nA: It is {' '.join(r.sample(words, 3))}."
        for _ in range(60)
    ]
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "small.txt.xz").write_bytes(lzma.compress("\n\n".join(blocks).encode()))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    torch.manual_seed(1)
    network = Network(SMALL)
    initialise(network, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    write_gguf(tmp_path / "m.gguf", network, some_tokenizer(), Label("Tiny"), {"top_p": 0.5})
    return tmp_path


def recipe_of(folder: Path) -> Recipe:
    return read_recipe(folder / "tiny.toml", folder)


def test_a_model_learns_to_speak_early(folder: Path) -> None:
    arguments = [
        "exits", str(folder / "m.gguf"), str(folder / "tiny.toml"), "--data", str(folder),
        "--work", str(folder / "work"), "--output", str(folder / "out.gguf"), "--layers", "2,1",
        "--shortlist", "40", "--tokens", str(80 * 256), "--workers", "1", "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((folder / "work" / "exits.json").read_text())
    assert set(found) == {"exit_1", "exit_2"} and set(found["exit_1"]["by_shortlist"]) == {"40"}
    log = [json.loads(line) for line in (folder / "work" / "log.jsonl").read_text().splitlines()]
    steps = [line["loss"] for line in log if "loss" in line]
    assert len(steps) == 80 and np.mean(steps[-5:]) < 0.9 * np.mean(steps[:5])

    source = exits.read_source(folder / "m.gguf")
    conversations = exits.dataset.read_conversations(folder / "work" / "held-out.jsonl")
    documents = [exits.dataset.document(source.tokenizer, c) for c in conversations]
    before = exits.to_selm(exits.with_exits(source.network, (1, 2)), [])
    after = read_model(folder / "out.gguf")
    everything = drafts.only(range(VOCABULARY), VOCABULARY)
    shares = [
        drafts.teacher_forced(drafts.model_says(m), [1, 2], documents, everything, 128)[1].shares()
        for m in (before, after)
    ]
    assert shares[1]["agreed"] > shares[0]["agreed"] + 0.2
    assert shares[1]["agreed"] == pytest.approx(found["exit_1"]["as_written"]["agreed"])


def test_the_file_keeps_exits_and_what_the_model_said_of_itself(folder: Path) -> None:
    source = exits.read_source(folder / "m.gguf")
    network = exits.with_exits(source.network, (2,))
    with torch.no_grad():
        network.get_parameter("model.exits.2.weight").mul_(1.5)
    shortlist = [5, 300, 17]
    path = folder / "selm.gguf"
    model = exits.to_selm(network, shortlist)
    exits.write_like(path, model, source.reader, gguf.GGMLQuantizationType.F32)
    back = read_model(path)
    assert back.config.exit_layers == [2] and back.config.draft_vocabulary == shortlist
    ids = torch.tensor(some_tokenizer().encode("What is 12 + 34?").ids)
    with torch.no_grad():
        torch.testing.assert_close(
            drafts.model_says(back)(ids), drafts.network_says(network)(ids), atol=1e-4, rtol=1e-4
        )
    fields = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()}
    given = {k: f.contents() for k, f in source.reader.fields.items()}
    assert fields["general.architecture"] == "selm"
    assert fields["tokenizer.chat_template"] == CHAT_TEMPLATE
    for key, value in given.items():
        kept = key.startswith(("tokenizer.", "general.")) and not key.endswith(("_type", "ecture"))
        assert not kept or fields[key] == value, key
    assert fields["general.sampling.top_p"] == 0.5


def test_the_tokenizer_of_a_file_is_the_one_it_was_written_from(folder: Path) -> None:
    made, known = exits.read_source(folder / "m.gguf").tokenizer, some_tokenizer()
    assert made.get_vocab() == known.get_vocab()
    for text in ("<|im_start|>user\nHow much is 12 + 3?<|im_end|>\n", "it's  wörld\n\n x", " 99"):
        assert made.encode(text).ids == known.encode(text).ids
        assert made.decode(made.encode(text).ids) == known.decode(known.encode(text).ids)


def test_the_shortlist_holds_what_replies_hold_most(folder: Path) -> None:
    source = exits.read_source(folder / "m.gguf")
    wish = exits.Wish((1,), 12, 512)
    made = exits.Retrofit(recipe_of(folder), source, wish, folder / "work", lambda _: None)
    counts: Counter[int] = Counter()
    for batch in islice(made._stream(made.settings.phases[0], 1), exits.COUNTED):
        for target, weight in zip(batch.targets, batch.weights, strict=True):
            counts[int(target)] += bool(weight == 1.0)
    assert len(made.shortlist) == 12
    assert [counts[t] for t in made.shortlist] == sorted(counts.values(), reverse=True)[:12]
    mask = drafts.only(made.shortlist, VOCABULARY)
    assert torch.isfinite(mask).nonzero().flatten().tolist() == sorted(made.shortlist)
    # What is counted as listed are the model's own likeliest tokens.
    says = drafts.network_says(exits.with_exits(source.network, (1,)))
    tally = drafts.teacher_forced(says, [1], made.documents[:5], mask, 128)[1]
    listed = places = 0
    for document in made.documents[:5]:
        with torch.no_grad():
            likeliest = says(torch.tensor(document.ids))[0].argmax(-1).tolist()
        for token, reply in zip(likeliest, document.reply[1:], strict=False):
            places += reply
            listed += reply and token in made.shortlist
    assert (tally.places, tally.listed) == (places, listed)


def test_an_exit_that_says_what_the_end_says_is_always_right(folder: Path) -> None:
    """The layers above add nothing, so every draft is accepted whole."""
    source = exits.read_source(folder / "m.gguf")
    with torch.no_grad():
        for layer in source.network.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model = exits.to_selm(exits.with_exits(source.network, (1,)), list(range(VOCABULARY)))
    documents = [Document(list(range(9, 29)), [n >= 12 for n in range(20)])] * 2
    found = drafts.measure(model, SMALL, documents, end_of_turn(source.tokenizer), 2)["exit_1"]
    assert found["as_written"] == found["own_replies"]
    assert found["own_replies"] == {"agreed": 1.0, "drafted": 1.0, "listed": 1.0}
    best = found["by_shortlist"][str(VOCABULARY)]["of_any_probability"]
    assert best["gained"] == pytest.approx(64 / -(-64 // (best["longest"] + 1)))


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
    shape = Shape(vocab=8192, width=512, layers=6, heads=8, kv_heads=2, feed_forward=768)
    layer, head = 1.835e6, 4.194e6
    plain = 6 * layer + head
    wanted = (4 * layer + 3.5 * 0.5 * 1024**2 + 1.3 * (5 * layer + head)) / plain
    assert cost_of(shape, 1, 1024, Cycle(2, 3, 3.5)) == pytest.approx(wanted, rel=1e-3)
    always = best_rule(shape, 1, 1024, [[Guess(True, 0.9)] * 900])
    never = best_rule(shape, 1, 1024, [[Guess(False, 0.1)] * 900])
    assert always["longest"] == drafts.LONGEST_DRAFT and always["speed_up"] > 2
    assert never["drafted"] == 0 and 0.95 < never["speed_up"] < 1


def test_the_divergence_is_that_of_the_definition() -> None:
    r = np.random.default_rng(1)
    taught, drafted = r.normal(size=(2, 5, 9)) * 3

    def at(logits: Any) -> Any:
        e = np.exp(2 * logits)  # temperature 0.5
        return e / e.sum(-1, keepdims=True)

    wanted = 0.5 * (at(taught) * np.log(at(taught) / at(drafted))).sum(-1)
    found = divergence(torch.tensor(taught), torch.tensor(drafted), 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_exits_alone_learn_as_they_do_beside_the_end(folder: Path) -> None:
    """Without the end nothing above the last exit has a gradient, and exits have the same one;
    where nothing has moved yet, the end has nothing to learn."""
    teacher = exits.with_exits(exits.read_source(folder / "m.gguf").network, (1, 2))
    network = exits.with_exits(teacher, (1, 2))
    ids = torch.arange(20, 60).view(2, 20)
    given: dict[str, Any] = {
        "positions": torch.arange(0, 40, 3), "weights": torch.full((14,), 0.5), "dropout": 0.0,
    }  # fmt: skip
    gradients: list[dict[str, Any]] = []
    for end in (0, 3):
        network.zero_grad()
        network.taught(teacher, ids, torch.zeros_like(ids), **given, end=end).backward()
        gradients.append({n: p.grad for n, p in network.named_parameters()})
    alone, both = gradients
    for name, gradient in alone.items():
        assert (gradient is None) == name.startswith(("model.layers.2.", "model.norm.")), name
        wanted = torch.zeros_like(both[name]) if gradient is None else gradient
        torch.testing.assert_close(both[name], wanted, atol=1e-5, rtol=1e-3)


def test_layers_above_the_exits_move_less(folder: Path) -> None:
    source = exits.read_source(folder / "m.gguf")
    wish = exits.Wish((1,), 12, 8 * 256, workers=1)
    made = exits.Retrofit(recipe_of(folder), source, wish, folder / "work", lambda _: None)
    assert made.train(None)
    moved = exits.load_network(folder / "work" / "checkpoint.pt", averaged=False).state_dict()
    before = source.network.state_dict()
    name = "model.layers.{}.mlp.up_proj.weight"
    below, above = (float((moved[n] - before[n]).norm()) for n in (name.format(0), name.format(1)))
    assert 0 < above < 0.2 * below


def test_a_resumed_run_has_the_same_teacher_and_ends_the_same(folder: Path) -> None:
    source = exits.read_source(folder / "m.gguf")
    wish = exits.Wish((1,), 12, 6 * 256, workers=1)
    made = exits.Retrofit(recipe_of(folder), source, wish, folder / "work", lambda _: None)
    start = exits.with_exits(source.network, (1,))

    def run(name: str, stop_at: int | None) -> Any:
        path = folder / f"{name}.pt"
        trainer = Trainer(made.settings, made._stream, path, folder / f"{name}.jsonl", start)
        trainer.run(Budget(6, None), stop_at=stop_at)
        return exits.load_network(path).state_dict()

    whole = run("whole", None)
    run("parts", 2)
    for name, value in run("parts", None).items():
        assert torch.equal(value, whole[name]), name


def test_the_recipe_says_what_exits_learn_from(folder: Path) -> None:
    assert recipe_of(folder).exits.shares == {"talk": 2, "arithmetic": 1}  # of the last phase
    path = folder / "tiny.toml"
    path.write_text(RECIPE + "[exits]\nuser_weight = 0.0\nshares = { talk = 1, boolq = 2 }\n")
    found = recipe_of(folder)
    assert found.exits == Phase(1.0, {"talk": 1, "boolq": 2}, user_weight=0.0)
    assert found.sources() == ["talk", "boolq"]
    for table, cause in (
        ("[exits]\nshares = { tolk = 1 }\n", "the source 'tolk' is unknown"),
        ("[exits]\nshares = { talk = 1 }\nfollow = 0\n", r"\[exits\] has follow = 0"),
        ("follow = 2\n", r"\[train\.phases\] has follow = 2"),
    ):
        path.write_text(RECIPE + table)
        with pytest.raises(RecipeError, match=rf"tiny\.toml: {cause}"):
            recipe_of(folder)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        ("text", "not a GGUF file"),
        ("selm", "its architecture is selm, not qwen2"),
        ("bias", "the tensor blk.0.attn_q.bias is missing"),
        ("layers", "it has 3 layers, so no exit after layer 3"),
        ("shortlist", "it has 400 tokens, so no shortlist of 401"),
        ("checkpoint", "is of another model or of other exits"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, damage: str, cause: str) -> None:
    path, after, shortlist = folder / "m.gguf", "1", "12"
    if damage == "text":
        path.write_text("no model")
    elif damage == "selm":
        source = exits.read_source(path)
        model = exits.to_selm(exits.with_exits(source.network, (1,)), [])
        exits.write_like(path, model, source.reader, gguf.GGMLQuantizationType.F32)
    elif damage == "bias":
        path.write_bytes(path.read_bytes().replace(b"blk.0.attn_q.bias", b"blk.0.attn_q.bios"))
    elif damage == "layers":
        after = "1,3"
    elif damage == "shortlist":
        shortlist = "401"
    else:
        (folder / "work").mkdir()
        (folder / "work" / "checkpoint.pt").write_bytes(b"x")
        (folder / "work" / "checkpoint.inputs").write_text("another")
    result = CliRunner().invoke(main, [
        "exits", str(path), str(folder / "tiny.toml"), "--data", str(folder), "--work",
        str(folder / "work"), "--layers", after, "--shortlist", shortlist,
    ])  # fmt: skip
    assert result.exit_code == 1 and cause in result.output
    where = "checkpoint.pt" if damage == "checkpoint" else "m.gguf"
    assert f"{where}: " in result.output and result.output.rstrip().rpartition(". ")[2]


def test_no_list_of_layers() -> None:
    result = CliRunner().invoke(main, ["exits", "m.gguf", "r.toml", "--layers", "one"])
    assert result.exit_code == 2 and "'one' is no list of layers such as 1,2" in result.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.gguf: not a GGUF file"):
        exits.read_source(tmp_path / "none.gguf")
