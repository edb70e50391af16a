"""The onnx backend serves the same protocol: texts against torch's and the native backend's."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from selm_export.checkpoint import Checkpoint
from selm_export.gguf_export import write_gguf
from selm_export.gguf_file import Label, plain
from support.onnx_models import EXPERTS, PERFORMER, write

from selm_edge import Cancelled, ContextError, Model, ModelError, SelmError, UnsupportedModelError
from selm_edge.backends import onnx as backend
from selm_edge.backends.base import Engine, EngineSession, EngineTokenizer, TokenStream
from selm_edge.cli.app import selm

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}
TEXT = "What is 17 + 25? The answer"
ASKED = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Checkpoint]]:
    """Folders of random models by name; each is big enough to lie as GGUF, too."""
    path = tmp_path_factory.mktemp("onnx")
    kinds: dict[str, dict[str, Any]] = {
        "qwen2": {"attention_bias": True}, "selm": {**PERFORMER, "attention_bias": False},
        "ensemble": EXPERTS,
    }  # fmt: skip
    return {
        name: (path / name, write(path / name, max_position_embeddings=256, **kind)[0])
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def native(made: dict[str, tuple[Path, Checkpoint]], tmp_path_factory: Any) -> dict[str, Path]:
    """The same models as GGUF files."""
    path, found = tmp_path_factory.mktemp("gguf"), {}
    for name, (_, checkpoint) in made.items():
        found[name] = path / f"{name}.gguf"
        encode = plain(gguf.GGMLQuantizationType.F32)
        write_gguf(found[name], checkpoint, encode=encode, label=Label(name))
    return found


@pytest.fixture(params=["qwen2", "selm", "ensemble"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(made: dict[str, tuple[Path, Checkpoint]], name: str) -> Any:
    with Model.load(made[name][0], threads=1) as opened:
        yield opened


@torch.no_grad()
def greedy(checkpoint: Checkpoint, ids: list[int], count: int) -> list[int]:
    """By torch, everything computed anew for each token."""
    ids, given = list(ids), len(ids)
    while len(ids) < given + count:
        ids.append(int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[given:]


# ---- Replies -------------------------------------------------------------------------------------


def test_it_serves_the_protocol(model: Model) -> None:
    engine, session = model.engine, model.engine.session()
    assert engine.name == "onnx" and model.name == "Test" and model.layers in (2, 3)
    assert isinstance(engine, Engine) and isinstance(session, EngineSession)
    assert isinstance(engine.tokenizer, EngineTokenizer)
    reply = model.generate(TEXT, **GREEDY)
    assert isinstance(reply._stream, TokenStream)
    reply.close()
    assert model.template.source is not None and model.context == 256 and model.full_context


def test_greedy_text_is_torchs(
    model: Model, name: str, made: dict[str, tuple[Path, Checkpoint]]
) -> None:
    reply = model.generate(TEXT, **GREEDY).finish()
    expected = greedy(made[name][1], model.tokenize(TEXT), 40)
    ends = [i for i, token in enumerate(expected) if model.engine.tokenizer.is_end(token)]
    expected = expected[: ends[0]] if ends else expected
    assert reply.text == model.detokenize(expected) and reply.stats.tokens == len(expected)
    assert reply.stats.prompt_tokens == len(model.tokenize(TEXT))
    assert reply.stats.mean_layers == model.layers and reply.stats.tokens_per_second > 0


def test_replies_are_those_of_the_native_backend(
    model: Model, name: str, native: dict[str, Path]
) -> None:
    """The same logits (but for the other's cache in f16) and sampler: the same text for a seed."""
    with Model.load(native[name], threads=1) as other:
        same: dict[str, Any] = {"draft": "off", "max_tokens": 10}
        if name == "ensemble":  # random scores are too close for the route to be the same
            same["expert"] = "math"
        for options in (
            {"temperature": 0.0}, {"seed": 7, "temperature": 1.0},
            {"seed": 8, "temperature": 2.0, "top_k": 5, "top_p": 0.8},
            {"seed": 9, "repeat_penalty": 1.3, "presence_penalty": 0.2},
            {"seed": 9, "logit_bias": {70: 9.0}, "min_p": 0.2, "typical_p": 0.9},
        ):  # fmt: skip
            ours, theirs = (m.chat(ASKED, **same, **options) for m in (model, other))
            assert ours.text == theirs.text and ours.stats.experts == theirs.stats.experts
            assert ours.stats.finish_reason == theirs.stats.finish_reason
            assert ours.prompt.ids == theirs.prompt.ids
        assert np.allclose(model.embed(TEXT), other.embed(TEXT), atol=5e-3)
        texts = ["a näïve 你好 🙂", "<|im_end|> is text", "\ud800", ""]
        for text in texts:
            for special in (True, False):
                ids = model.tokenize(text, parse_special=special)
                assert ids == other.tokenize(text, parse_special=special)
                assert model.detokenize(ids) == other.detokenize(ids)
        ours, theirs = (m.engine.tokenizer for m in (model, other))
        assert ours.control_tokens() == theirs.control_tokens()
        assert (ours.bos, ours.eos, ours.vocab_size) == (theirs.bos, theirs.eos, theirs.vocab_size)
        assert [ours.is_end(i) for i in range(9)] == [theirs.is_end(i) for i in range(9)]
        assert [ours.token_text(i) for i in range(400)] == [
            theirs.token_text(i) for i in range(400)
        ]


def test_a_conversation_reuses_what_it_has_read(model: Model) -> None:
    first = model.generate(TEXT, **GREEDY).finish()
    longer = [*first.prompt.ids, *model.tokenize(first.text), *model.tokenize(" and then")]
    second = model.generate(longer, **GREEDY).finish()
    assert second.stats.cached_tokens >= first.stats.prompt_tokens
    with model.session() as fresh:
        assert model.generate(longer, session=fresh, **GREEDY).finish().text == second.text
    again = model.generate(TEXT, **GREEDY).finish()  # back to before: caches are cut, states go
    assert again.text == first.text


def test_long_texts_go_in_pieces(
    model: Model, name: str, made: dict[str, tuple[Path, Checkpoint]]
) -> None:
    model.engine.chunk = 16  # type: ignore[attr-defined]
    ids = (model.tokenize(TEXT) * 20)[:150]
    with model.session() as session, torch.no_grad():
        expected = made[name][1].model(torch.tensor([ids])).logits[0].numpy()
        found = np.asarray(session.eval(ids))
        assert found.shape == (150, 400) and np.abs(found - expected).max() < 1e-3
        held = session.state_bytes
        for length in (149, 120, 70, 3, 0):  # to where it can go back; the rest is read again
            left = session.truncate(length)
            assert left <= length and (name != "qwen2" or left == length)
            last = session.eval(ids[left:], "last")
            assert np.abs(np.asarray(last)[0] - expected[-1]).max() < 1e-3
        assert session.state_bytes == held and session.position == 150
        session.truncate(0)
        assert list(session.eval(ids[:5], "none").shape) == [0]


def test_memory_does_not_grow_with_the_text(made: dict[str, tuple[Path, Checkpoint]]) -> None:
    with Model.load(made["ensemble"][0]) as model, model.session() as session:
        before = session.state_bytes
        session.eval([5] * 200)
        assert session.state_bytes == before


def test_pieces_are_the_text(made: dict[str, tuple[Path, Checkpoint]]) -> None:
    with Model.load(made["qwen2"][0]) as model:
        tokenizer = model.engine.tokenizer
        assert isinstance(tokenizer, backend.OnnxTokenizer)
        text = " a näïve 你好 🙂, and <|im_end|>more"
        ids = model.tokenize(text, parse_special=True)
        pieces = backend.Pieces(tokenizer, model.tokenize("Before"))
        found = [pieces.feed(token).decode() for token in ids]
        assert "".join(found) == text.replace("<|im_end|>", "") and "" in found
        assert pieces.rest() == b""
        half = backend.Pieces(tokenizer, [])
        fed = b"".join(half.feed(token) for token in model.tokenize("🙂")[:-1])
        assert fed == b"" and half.rest().decode() == "\ufffd"
        draw = random.Random(4)
        for _ in range(20):  # mostly no text at all
            ids = [draw.randrange(400) for _ in range(30)]
            pieces = backend.Pieces(tokenizer, ids[:5])
            whole = b"".join(map(pieces.feed, ids[5:])) + pieces.rest()
            said = [c for c in model.detokenize(ids[5:]) if c != "\ufffd"]
            assert [c for c in whole.decode() if c != "\ufffd"] == said


# ---- Ends of replies -----------------------------------------------------------------------------


def test_stops_limits_and_deadlines(model: Model) -> None:
    whole = model.generate(TEXT, **GREEDY).finish().text
    cut = model.generate(TEXT, stop=whole[5:8], **GREEDY).finish()
    assert cut.text == whole[: whole.index(whole[5:8])] and cut.stats.finish_reason == "stop"
    short = model.generate(TEXT, temperature=0.0, max_tokens=3).finish()
    assert short.stats.finish_reason == "length" and short.stats.tokens == 3
    assert model.generate(TEXT, deadline=0).finish().stats.finish_reason == "deadline"
    ignoring = {"logit_bias": dict.fromkeys((0, 2), -100.0), "temperature": 0.0}
    full = model.generate(TEXT, **ignoring).finish()
    assert full.stats.finish_reason == "context"
    assert full.stats.prompt_tokens + full.stats.tokens in (256, 257)


def test_cancelling(model: Model) -> None:
    reply = model.generate(TEXT, temperature=1.0, logit_bias={2: -100.0})
    first = next(reply)
    canceller = threading.Thread(target=reply.cancel)
    canceller.start()
    canceller.join()
    assert reply.finish().text.startswith(first) and reply.stats.finish_reason == "cancelled"
    assert model.generate(TEXT, **GREEDY).finish().stats.finish_reason != "cancelled"
    with model.session() as session:
        session.eval([5, 6, 7])
        session.cancel()  # the next one is stopped, and nothing was evaluated
        with pytest.raises(Cancelled):
            session.eval([5] * 100)
        assert session.position == 3
        assert session.eval([5]).shape == (1, 400)


def test_what_does_not_fit(model: Model) -> None:
    with pytest.raises(ContextError):
        model.generate("word " * 600)
    with model.session() as session:
        with pytest.raises(ContextError):
            session.eval([5] * 257)
        with pytest.raises(ValueError, match="tokens are numbers from 0 to 399"):
            session.eval([5, 400])
        assert session.position == 0
    with pytest.raises(SelmError, match=r"(?s)draft lookup.*--backend native"):
        model.generate("Once", draft="lookup")
    with pytest.raises(ContextError):
        model.engine.embed([])
    with pytest.raises(SelmError, match="takes no adapters"):
        model.set_adapters({"x": 1.0})


def test_experts(made: dict[str, tuple[Path, Checkpoint]], native: dict[str, Path]) -> None:
    with Model.load(made["ensemble"][0]) as model, Model.load(native["ensemble"]) as other:
        assert model.experts == ("general", "medical", "math")
        free = model.generate(TEXT, **GREEDY)
        spoke = {free.speaker for _ in free}
        assert len(spoke) > 1 and spoke <= set(model.experts)
        assert sum(free.stats.experts.values()) == free.stats.tokens
        for name in model.experts:
            options = {"expert": name, "draft": "off", "temperature": 0.0, "max_tokens": 10}
            ours, theirs = (m.generate(TEXT, **options).finish() for m in (model, other))
            assert ours.text == theirs.text
            assert ours.stats.experts == {name: ours.stats.tokens}
        assert model.generate(TEXT, expert="auto", **GREEDY).finish().text == free.text
        with pytest.raises(SelmError, match="no expert 'law': it has general, medical, math"):
            model.generate(TEXT, expert="law")
    with (
        Model.load(made["qwen2"][0]) as plain_model,
        pytest.raises(SelmError, match="it has no experts"),
    ):
        plain_model.generate(TEXT, expert="law")


# ---- Folders that are not right ------------------------------------------------------------------


@pytest.fixture
def folder(made: dict[str, tuple[Path, Checkpoint]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["qwen2"][0], tmp_path / "folder"))


def change(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**said, **changes}))


def no_manifest(folder: Path) -> None:
    (folder / "model.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "model.json").write_text("{")


def no_graph(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def truncated(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def flipped(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def rehash(folder: Path) -> None:
    """As if the files had been meant so."""
    from selm_export.onnx_export import write_manifest

    said = json.loads((folder / "model.json").read_text())
    for key in ("files", "format"):
        said.pop(key)
    write_manifest(folder, said)


def no_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"not a graph")
    rehash(folder)


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    rehash(folder)


def elsewhere(folder: Path) -> None:
    files = json.loads((folder / "model.json").read_text())["files"]
    change(folder, files={**files, "../secret": {"size": 1, "sha256": ""}})


@pytest.mark.parametrize(
    ("damage", "file", "cause"),
    [
        (no_manifest, "model.json", "no such file"),
        (no_json, "model.json", "cannot be read"),
        (lambda f: (f / "model.json").write_text("[]"), "model.json", "makes no sense"),
        (lambda f: change(f, format=2), "model.json", "is of format 2"),
        (lambda f: change(f, files={}), "model.json", "has no 'model.onnx'"),
        (lambda f: change(f, inputs={}), "model.json", "has no 'ids'"),
        (lambda f: change(f, chunk=0), "model.json", "sizes are at least 1"),
        (lambda f: change(f, states=[{"shape": [0], "type": "float32", "input": "x"}]),
         "model.json", "the state x has"),
        (elsewhere, "model.json", "names a file '../secret' elsewhere"),
        (no_graph, "model.onnx", "No such file"),
        (no_tokenizer, "tokenizer.json", "No such file"),
        (truncated, "model.onnx", "bytes instead of"),
        (flipped, "model.onnx", "its SHA-256 is"),
        (no_onnx, "model.onnx", "onnxruntime does not open it"),
        (another_tokenizer, "tokenizer.json", "no tokenizer that can be read"),
        (lambda f: change(f, vocabulary=399), "tokenizer.json", "has 400 tokens, and the model"),
        (lambda f: change(f, vocabulary=401), "model.onnx", "has 400 logits"),
        (lambda f: change(f, states=[]), "model.onnx", "does not fit its model.json"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_right(
    folder: Path, damage: Callable[[Path], None], file: str, cause: str
) -> None:
    damage(folder)
    with pytest.raises(ModelError) as error:
        Model.load(folder)
    assert error.value.path == str(folder / file)
    assert cause in error.value.cause and error.value.hint


def test_what_is_for_another_backend(folder: Path, native: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="--backend native"):
        Model.load(native["qwen2"], backend="onnx")
    with pytest.raises(UnsupportedModelError, match="--backend onnx"):
        Model.load(folder, backend="native")


def test_without_its_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.util, "find_spec", lambda name: None)
    with pytest.raises(SelmError, match=r"pip install 'selm-edge\[onnx\]'"):
        Model.load(folder)


# ---- The command line ----------------------------------------------------------------------------


def run(*args: str, stdin: str | None = None) -> Any:
    """In this process."""
    return CliRunner().invoke(selm, list(args), input=stdin, prog_name="selm")


def test_ask_and_chat(cli: Cli, folder: Path) -> None:
    ask = ("ask", "--temperature", "0", "--max-tokens", "12", "--json", "What is 2 + 2?")
    with Model.load(folder) as model:
        expected = model.chat(ASKED, temperature=0.0, max_tokens=12).text
    done = cli(*ask, "--backend", "onnx", "--model", str(folder))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"].strip() == expected.strip() and answer["tokens"] == 12
    assert answer["model"] == "folder"
    assert "onnx" not in done.stderr  # the runtime's own warnings stay away
    assert json.loads(run(*ask, "--model", str(folder)).stdout)["text"] == answer["text"]
    talk = cli("chat", "--plain", "--model", str(folder), stdin="What is 2 + 2?\n/quit\n")
    assert talk.returncode == 0, talk.stderr


def test_the_list_of_models(folder: Path) -> None:
    assert run("models", "add", str(folder / "model.onnx"), "--name", "mine").exit_code == 0
    entries = json.loads(run("models", "list", "--json").stdout)
    (listed,) = (entry for entry in entries if not entry["bundled"])
    assert listed["name"] == "mine" and listed["size"] > 600_000 and listed["problem"] is None
    facts = json.loads(run("models", "info", "mine", "--json").stdout)
    assert facts["type"] == "onnx, fp32" and facts["layers"] == 3 and facts["vocabulary"] == 400
    assert run("models", "verify", "mine").exit_code == 0
    truncated(folder)
    (verdict,) = json.loads(run("models", "verify", "mine", "--json").stdout)
    assert not verdict["ok"] and verdict["checks"]["sha256"] is None
    assert "has" in verdict["checks"]["size"] and "model.onnx" in verdict["checks"]["opens"]
    failed = run("ask", "--model", "mine", "Hello")
    assert failed.exit_code == 1 and "model.onnx: has" in str(failed.exception)
    (row,) = (
        c for c in json.loads(run("doctor", "--json").stdout)["checks"] if c["item"] == "onnx"
    )
    assert row["value"] == "available"
