"""Who speaks and how tokens are guessed ahead, from the core up to the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import EXPERTS, write_ensemble

from selm_edge import Model, SelmError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ensemble(tmp_path_factory.mktemp("models") / "ensemble.gguf", exits=True)


@pytest.fixture(scope="module")
def without_exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ensemble(tmp_path_factory.mktemp("models") / "plain.gguf")


def spoken(model: Model, **options: Any) -> tuple[str, list[tuple[str | None, str]], Any]:
    """Text, its pieces with who spoke them, and the figures."""
    reply = model.generate("Once upon a time", **{**GREEDY, **options})
    pieces = [(reply.speaker, piece) for piece in reply]
    assert "".join(piece for _, piece in pieces) == reply.text
    return reply.text, pieces, reply.stats


def test_a_reply_says_who_spoke(ensemble: Path) -> None:
    with Model.load(ensemble, threads=1) as model:
        assert model.experts == EXPERTS and model.layers == 3
        _, pieces, stats = spoken(model)
        assert sum(stats.experts.values()) == stats.tokens == 40
        assert len(stats.experts) > 1 and set(stats.experts) <= set(EXPERTS)
        assert {name for name, _ in pieces} <= set(stats.experts)
        assert stats.mean_layers == 3.0
        ids = model.tokenize("Once upon a time", parse_special=True)
        # The same from the core's own session, token by token.
        from selm_edge import _core

        session = _core.Session(_core.Model(bytes(ensemble)), context=256, threads=1)
        expected: dict[str, int] = {}
        for _ in range(40):
            row = session.eval(ids[session.position :], "last").view().tolist()[0]
            name = EXPERTS[session.speaker(session.position - 1)]
            expected[name] = expected.get(name, 0) + 1
            ids.append(row.index(max(row)))
        assert stats.experts == expected


def test_one_expert_can_be_asked_for(ensemble: Path) -> None:
    with Model.load(ensemble, threads=1) as model:
        free, _, before = spoken(model)
        texts = {}
        for name in EXPERTS:
            texts[name], pieces, stats = spoken(model, expert=name)
            assert stats.experts == {name: 40} and {who for who, _ in pieces} == {name}
        assert len(set(texts.values())) == len(EXPERTS)
        again, _, after = spoken(model)  # nothing of them is left in the session
        assert (again, after.experts) == (free, before.experts)
        assert spoken(model, expert="auto")[0] == free


def test_a_session_may_be_closed_in_the_middle(ensemble: Path) -> None:
    with Model.load(ensemble, threads=1) as model:
        whole, _, _ = spoken(model)
        session = model.session()
        reply = model.generate("Once upon a time", session=session, **GREEDY)
        next(reply)
        assert reply.speaker in EXPERTS
        session.close()
        assert reply.finish().text == whole and reply.speaker is None
        assert sum(reply.stats.experts.values()) < reply.stats.tokens == 40


def test_guessing_ahead_changes_no_reply(ensemble: Path) -> None:
    with Model.load(ensemble, threads=1) as model:
        plain, _, stats = spoken(model, draft="off", max_tokens=120)
        assert stats.drafted == stats.accepted == 0
        for draft in ("auto", "exit", "lookup"):
            text, _, ahead = spoken(model, draft=draft, max_tokens=120)
            assert (text, ahead.experts) == (plain, stats.experts)
            assert ahead.drafted >= ahead.accepted >= 0
            assert draft != "auto" or ahead.drafted > 0  # the later ones may have learnt not to


def test_what_the_model_has_not_is_said(
    without_exits: Path, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model.load(without_exits, threads=1) as model:
        with pytest.raises(SelmError, match="no expert 'poet': it has general, medical, math"):
            model.generate("x", expert="poet")
        with pytest.raises(SelmError, match=r"no trained exits.*\nChoose draft lookup"):
            model.generate("x", draft="exit")
        with pytest.raises(ValueError, match="draft is one of auto, off, exit, lookup"):
            model.generate("x", draft="fast")  # type: ignore[arg-type]
        assert spoken(model)[2].tokens == 40  # the session was given back
    with Model.load(stories, threads=1) as model:
        assert model.experts == ()
        with pytest.raises(SelmError, match="it has no experts"):
            model.generate("x", expert="general")
        _, pieces, stats = spoken(model)
        assert stats.experts == {} and {who for who, _ in pieces} == {None}


def test_ask_with_experts(cli: Any, ensemble: Path, without_exits: Path) -> None:
    ask = ("ask", "-m", str(ensemble), "--temperature", "0", "--max-tokens", "12", "--json", "Hi")
    free = json.loads(cli(*ask).stdout)
    assert sum(free["experts"].values()) == free["tokens"] and free["mean_layers"] == 3.0
    assert free["accepted_drafts"] <= free["drafted_tokens"]
    fixed = json.loads(cli(*ask, "--expert", "medical", "--draft", "off").stdout)
    assert fixed["experts"] == {"medical": fixed["tokens"]}
    assert fixed["drafted_tokens"] == fixed["accepted_drafts"] == 0
    exits = json.loads(cli(*ask, "--expert", "auto", "--draft", "exit").stdout)
    assert exits["text"] == free["text"]

    done = cli(*ask, "--expert", "poet")
    assert done.returncode == 1 and done.stdout == ""
    assert "no expert 'poet': it has general, medical, math" in done.stderr
    done = cli("ask", "-m", str(without_exits), "--draft", "exit", "Hi")
    assert done.returncode == 1 and "no trained exits" in done.stderr
    assert "lookup or off" in done.stderr
    done = cli("ask", "-m", str(ensemble), "--draft", "fast", "Hi")
    assert done.returncode == 2 and "'fast'" in done.stderr


def test_models_info_shows_what_only_selm_files_have(
    cli: Any, ensemble: Path, stories: Path
) -> None:
    facts = json.loads(cli("models", "info", str(ensemble), "--json").stdout)
    assert facts["experts"] == list(EXPERTS) and facts["exits"] == [1]
    assert facts["attention"] == {"softmax": 2, "window": 1}
    assert (facts["expert_kind"], facts["expert_route"]) == ("delta", "early")
    shown = cli("models", "info", str(ensemble)).stdout
    assert "general, medical, math" in shown and "2 softmax, 1 window" in shown
    assert "expert" not in cli("models", "info", str(stories)).stdout


def test_the_plain_chat_with_an_expert(cli: Any, ensemble: Path) -> None:
    chat = ("chat", "--plain", "--model", str(ensemble), "--expert")
    lines = "/set max_tokens 5\n/expert\nHello\n/expert math\n/expert poet\n"
    done = cli(*chat, "medical", stdin=lines)
    assert "medical speaks" in done.stdout and "math speaks" in done.stdout
    assert "has no expert 'poet'" in done.stdout and done.returncode == 1
    done = cli(*chat, "poet", stdin="/expert\n")
    assert "has no expert 'poet'" in done.stdout and done.returncode == 1
    assert "The model decides who speaks: general, medical, math." in done.stdout
