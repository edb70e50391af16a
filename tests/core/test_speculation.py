"""Guessing ahead changes the speed of a reply and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gguf_files import CONFIGS, random_weights, spm_vocabulary, write_model
from support.scripted import CONFIG, chain, write_scripted

from selm_edge import _core

NAMES = ["llama", "qwen2", "qwen3"]


def reply(model: _core.Model, prompt: list[int], sampling: Any, **options: Any) -> tuple[Any, Any]:
    session = _core.Session(model, context=512, threads=2, kv_type="f16")
    generation = _core.Generation(session, prompt, sampling, ignore_end=True, **options)
    tokens, finish = [], 0
    while not finish:
        _, token, finish = generation.next()
        tokens.append(token)
    stats = generation.stats
    generation.close()
    assert session.tokens()[: len(prompt)] == prompt
    assert session.position <= len(prompt) + stats.tokens
    return tokens, stats


def sampled(seed: int = 0, **changes: Any) -> Any:
    sampling = _core.Sampling()
    sampling.seed = seed
    for name, value in changes.items():
        setattr(sampling, name, value)
    return sampling


@pytest.fixture(scope="module", params=NAMES)
def model(request: Any, tmp_path_factory: Any) -> _core.Model:
    config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    return _core.Model(str(write_model(path, config, random_weights(config, seed=1))))


def copying(rng: Any) -> list[int]:
    """A prompt with the same passage twice, as when a text is to be quoted."""
    passage = rng.integers(3, 350, 12).tolist()
    return [*passage, *rng.integers(3, 350, 5).tolist(), *passage[: int(rng.integers(2, 9))]]


def test_greedy_replies_are_the_same_with_lookup(model: _core.Model) -> None:
    rng = np.random.default_rng(4)
    accepted = 0
    for _ in range(70):
        prompt = copying(rng)
        plain, _ = reply(model, prompt, sampled(temperature=0.0), max_tokens=40, draft="off")
        ahead, stats = reply(model, prompt, sampled(temperature=0.0), max_tokens=40, draft="lookup")
        assert ahead == plain
        assert stats.accepted_tokens <= stats.drafted_tokens
        accepted += stats.accepted_tokens
    assert accepted > 0


def test_sampled_replies_are_the_same_for_a_seed(model: _core.Model) -> None:
    rng = np.random.default_rng(5)
    for seed in range(40):
        prompt = copying(rng)
        sampling = sampled(seed, temperature=0.4, repeat_penalty=1.1, top_k=5)
        plain, _ = reply(model, prompt, sampling, max_tokens=30, draft="off")
        ahead, _ = reply(model, prompt, sampling, max_tokens=30, draft="auto")
        assert ahead == plain


def test_limits_hold(model: _core.Model) -> None:
    prompt = [7, 8, 9] * 6
    for most in range(1, 12):
        tokens, stats = reply(model, prompt, sampled(temperature=0.0), max_tokens=most)
        assert stats.tokens == most == len([t for t in tokens if t >= 0])
    session = _core.Session(model, context=24, threads=1)
    generation = _core.Generation(session, prompt, sampled(temperature=0.0), ignore_end=True)
    given = 0
    while generation.next()[2] == 0:
        given += 1
    assert given == 24 - len(prompt) + 1  # the last one is picked, not evaluated
    assert session.position == 24


def test_drafts_by_exits_need_exits(model: _core.Model) -> None:
    session = _core.Session(model, context=64)
    with pytest.raises(_core.CoreError, match="no trained exits"):
        _core.Generation(session, [5, 6], sampled(), draft="exit")
    with pytest.raises(_core.CoreError, match="draft is auto, off, exit, lookup or calibrated"):
        _core.Generation(session, [5, 6], sampled(), draft="maybe")


def test_a_stop_string_ends_between_guesses(tmp_path: Path) -> None:
    ids = {token: i for i, token in enumerate(spm_vocabulary(CONFIG.vocab)["tokens"])}
    loop = [ids[t] for t in ("▁Once", "▁the", "▁w", "in", "d")]
    path = write_scripted(tmp_path / "m.gguf", {**chain(loop), loop[-1]: loop[0]})
    session = _core.Session(_core.Model(str(path)), context=200, threads=1)
    generation = _core.Generation(session, loop * 3 + loop[:1], sampled(temperature=0.0),
                                  stop=["the wind Once the w"])  # fmt: skip
    pieces, finish = [], 0
    while not finish:
        piece, _, finish = generation.next()
        pieces.append(piece)
    assert "".join(pieces).strip() == ""
    assert generation.stats.accepted_tokens > 0
    held = len(loop * 3) + 1 + generation.stats.tokens
    assert held - 1 <= session.position <= held
