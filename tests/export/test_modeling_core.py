"""The core runs SELM files as torch does: every kind of attention, feature map, gate and factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
import torch
from selm_export.gguf_file import Label
from selm_export.modeling.file import read_model, write_model
from selm_export.recall import rows
from support.core import ISAS, Session, require_isa
from support.oracles import relative_error
from support.selm_models import some_model, some_tokenizer

from selm_edge import _core

DATA = Path(__file__).parents[1] / "data"
F32_LIMIT = 1e-4  # largest difference over largest logit
LENGTH = 330
IDS = np.random.default_rng(5).integers(0, 400, LENGTH).tolist()
FAR = ["performer"] * 3
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "window": {"attention_kinds": ["window"] * 3, "window": 7},
    "window and sinks": {"attention_kinds": ["window", "softmax", "window"], "sinks": 3},
    "favor+": {"attention_kinds": FAR},
    "favor+, sinks": {"attention_kinds": FAR, "sinks": 4, "clamp": 0.9},
    "favor+, sinks of more than a block": {"attention_kinds": FAR, "sinks": 40, "window": 3},
    "favor+, window of more than a chunk": {"attention_kinds": FAR, "window": 270},
    "favor+, odd features": {"attention_kinds": FAR, "features": 27},
    "elu1": {"attention_kinds": FAR, "feature_map": "elu1", "features": 16, "window": 33},
    "relu": {"attention_kinds": FAR, "feature_map": "relu", "window": 64},
    "hedgehog": {"attention_kinds": FAR, "feature_map": "hedgehog", "window": 1},
    "gates and norms": {"attention_kinds": FAR, "head_gate": True, "qk_norm": True},
    "gates on softmax": {"head_gate": True},
    "factors": {
        "attention_kinds": ["performer", "window", "softmax"],
        "ranks": {"mlp.up_proj": 12, "self_attn.q_proj": 8, "self_attn.o_proj": 8,
                  "mlp.down_proj": 6, "mlp.gate_proj": 5, "self_attn.v_proj": 4},
    },
    "factors, each layer its own": {
        "attention_kinds": ["performer", "window", "softmax"],
        "ranks": {"layers.0.mlp.up_proj": 12, "layers.2.mlp.up_proj": 7, "self_attn.o_proj": 8,
                  "layers.1.self_attn.o_proj": 20, "layers.1.self_attn.q_proj": 4},
    },
    "one KV head for all": {"attention_kinds": FAR, "num_key_value_heads": 1},
    "exits": {"attention_kinds": FAR, "exit_layers": [1, 2]},
    "exits, biases": {
        "attention_bias": True, "exit_layers": [2], "draft_vocabulary": [7, 3, 399],
        "ranks": {"self_attn.k_proj": 8},
    },
    "untied": {"tie_word_embeddings": False, "attention_kinds": FAR},
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS)
def written(request: Any, tmp_path_factory: Any) -> tuple[Path, Any]:
    """A model's file and torch's logits, in float64."""
    model = some_model(**VARIANTS[request.param])
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    write_model(path, model, some_tokenizer(), Label("Test"))
    with torch.no_grad():
        return path, model.double()(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("isa", ISAS)
def test_logits_are_those_of_torch(written: tuple[Path, Any], isa: str) -> None:
    path, expected = written
    session = Session(path, isa=require_isa(isa), context=400, threads=2)
    assert relative_error(session.eval(IDS), expected) <= F32_LIMIT
    session.core.truncate(0)
    assert relative_error(session.eval_in_pieces(IDS, [1, 100, 3, 40]), expected) <= F32_LIMIT


def test_pieces_and_threads_give_the_same_bits(written: tuple[Path, Any]) -> None:
    path, _ = written
    one = Session(path, context=400).eval_in_pieces(IDS, [1])
    for threads, sizes in ((1, [LENGTH]), (2, [16, 5, 1]), (3, [33, 100]), (2, [7])):
        session = Session(path, context=400, threads=threads)
        assert np.array_equal(session.eval_in_pieces(IDS, sizes), one), (threads, sizes)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_smaller_cache_is_near(kv_type: str, tmp_path: Path) -> None:
    changes = {"attention_kinds": FAR, "head_dim": 32, "qk_norm": True, "window": 20}
    model = some_model(**changes)
    write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"))
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    got = Session(tmp_path / "m.gguf", context=400, kv_type=kv_type).eval(IDS)
    assert relative_error(got, expected) <= (5e-3 if kv_type == "f16" else 8e-2)


def test_going_back_gives_the_bits_of_a_fresh_run(written: tuple[Path, Any]) -> None:
    """To any place: what a layer cannot go back to is evaluated again."""
    path, _ = written
    fresh = Session(path, context=400).eval(IDS)
    session = Session(path, context=400)
    rng = np.random.default_rng(1)
    for _ in range(60):
        wanted = int(rng.integers(0, session.core.position + 1))
        kept = session.core.truncate(wanted)
        assert kept == session.core.position <= wanted
        count = int(rng.choice([1, 2, 9, 40, 120]))
        stop = min(kept + count, LENGTH)
        if stop > kept:
            assert np.array_equal(session.eval(IDS[kept:stop]), fresh[kept:stop])


def test_a_long_piece_after_going_back_finds_what_it_overwrites_in_the_sums(tmp_path: Path) -> None:
    """A ring of one chunk: what is stored takes the places of tokens that no sum held yet."""
    write_model(tmp_path / "m.gguf", some_model(attention_kinds=FAR), some_tokenizer(), Label("T"))
    ids = np.random.default_rng(6).integers(0, 400, 500).tolist()
    fresh = Session(tmp_path / "m.gguf", context=512, batch=187).eval(ids)
    session = Session(tmp_path / "m.gguf", context=512, batch=187)
    session.eval(ids[:374])
    assert session.core.truncate(300) == 300
    assert np.array_equal(session.eval(ids[300:487]), fresh[300:487])


def test_a_few_tokens_can_always_be_taken_back(written: tuple[Path, Any]) -> None:
    path, _ = written
    fresh = Session(path, context=400).eval(IDS)
    session = Session(path, context=400)
    session.eval(IDS[:40])
    at = 40
    for step, back in enumerate((1, 5, 16, 32, 7, 31, 3) * 4):
        drafts = [(IDS[at] + step) % 400] * back
        session.eval_in_pieces(drafts, [1] if step % 2 else [back])
        assert session.core.truncate(at) == at
        assert np.array_equal(session.eval(IDS[at : at + 9]), fresh[at : at + 9])
        at += 9


def test_an_interrupted_eval_changes_nothing(written: tuple[Path, Any]) -> None:
    path, _ = written
    fresh = Session(path, context=400).eval(IDS)
    session = Session(path, context=400, batch=64)
    session.eval(IDS[:150])
    session.core.cancel()
    with pytest.raises(_core.CoreError):
        session.eval(IDS[:170])
    assert session.core.position == 150
    assert np.array_equal(session.eval(IDS[150:]), fresh[150:])


def test_the_state_does_not_grow(tmp_path: Path) -> None:
    model = some_model(attention_kinds=FAR, sinks=4)
    write_model(tmp_path / "m.gguf", model, some_tokenizer(), Label("Test"))
    session = Session(tmp_path / "m.gguf", context=4096, kv_type="f16")
    session.eval(IDS * 3)
    at_first = session.core.state_bytes
    session.eval(IDS * 6)
    assert session.core.state_bytes == at_first


def _reply(model: Any, prompt: list[int], *, seed: int, most: int, draft: str, heat: float) -> Any:
    session = _core.Session(model, context=400, threads=2)
    sampling = _core.Sampling()
    sampling.temperature, sampling.seed = heat, seed
    sampling.top_k, sampling.top_p, sampling.min_p = 0, 1.0, 0.0
    made = _core.Generation(
        session, prompt, sampling, ignore_end=True, max_tokens=most, draft=draft
    )
    tokens = []
    while len(tokens) < most:
        tokens.append(made.next()[1])
    return tokens, made.stats


@pytest.fixture(scope="module")
def with_exits(tmp_path_factory: Any) -> tuple[_core.Model, Any]:
    """The upper layer adds little, so that the exit is often right, and often not."""
    model = some_model(attention_kinds=["performer", "window", "performer"], exit_layers=[1, 2])
    with torch.no_grad():
        for layer in list(model.model.layers)[1:]:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        model.model.exits["1"].weight.copy_(model.model.norm.weight)
    path = tmp_path_factory.mktemp("exits") / "m.gguf"
    write_model(path, model, some_tokenizer(), Label("Test"))
    return _core.Model(str(path)), model


def test_drafts_by_an_exit_change_nothing(with_exits: tuple[_core.Model, Any]) -> None:
    core, rng = with_exits[0], np.random.default_rng(8)
    drafted = accepted = 0
    for trial in range(200):
        prompt = rng.integers(0, 400, int(rng.integers(1, 60))).tolist()
        heat = 0.0 if trial % 2 == 0 else 0.7
        plain, _ = _reply(core, prompt, seed=trial, most=30, draft="off", heat=heat)
        ahead, stats = _reply(core, prompt, seed=trial, most=30, draft="exit", heat=heat)
        assert ahead == plain
        drafted += stats.drafted_tokens
        accepted += stats.accepted_tokens
    assert 0.1 * drafted < accepted < drafted


def test_sampling_with_drafts_follows_the_distribution(with_exits: tuple[_core.Model, Any]) -> None:
    """Chi-square of the third token's bin: two tokens of the reply came before it."""
    core, model = with_exits
    prompt, bins, count = [3, 77, 200, 41], 8, 1500

    def tokens(seed: int, most: int, draft: str) -> list[int]:
        return list(_reply(core, prompt, seed=seed, most=most, draft=draft, heat=1.0)[0])

    third = [tokens(seed, 3, "exit")[2] for seed in range(count)]
    drawn = np.bincount(np.array(third) % bins, minlength=bins)
    plain = [tokens(10**6 + seed, 3, "off")[2] for seed in range(count)]
    with torch.no_grad():  # the truth, by torch: all second tokens for drawn first ones
        seen = [tokens(2 * 10**6 + seed, 2, "off") for seed in range(count)]
        logits = model(torch.tensor([prompt + two for two in seen])).logits[:, -1].double()
    truth = logits.softmax(-1).mean(0).view(-1, bins).sum(0).numpy() * count
    statistic = float(((drawn - truth) ** 2 / truth).sum())
    assert statistic < 26.0  # 7 degrees of freedom: one in 2,000 (the truth's own noise included)
    other = np.bincount(np.array(plain) % bins, minlength=bins)
    assert float(((drawn - other) ** 2 / (drawn + other)).sum()) < 26.0


def test_the_core_recalls_what_torch_recalls() -> None:
    """32 pairs of which the window reaches few (docs/recall.md): the features carry the rest."""
    file = DATA / "recall-32.gguf"
    told = rows(100, 32, 64, torch.Generator().manual_seed(9))
    with torch.no_grad():
        by_torch = read_model(file)(told.ids).logits[:, told.places - 1].argmax(-1).numpy()
    session = Session(file, context=128, kv_type="f32", threads=2)
    by_core = []
    for row in told.ids.tolist():
        session.core.truncate(0)
        by_core.append(session.eval(row)[told.places.numpy() - 1].argmax(-1))
    truth = told.ids[:, told.places].numpy()
    assert (np.array(by_core) == by_torch).mean() > 0.999
    assert (np.array(by_core) == truth).mean() > 0.98
