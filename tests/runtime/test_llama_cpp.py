"""The llama-cpp backend serves the same protocol. Where llama-cpp-python is missing in this Python,
another one that has it may be named by SELM_TEST_LLAMA_PYTHON; else these tests are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.processes import child_environment

import selm_edge
from selm_edge.backends.streaming import TextStream

SCRIPT = r"""
import json, sys, threading
sys.path.insert(0, sys.argv[1])
from selm_edge import ContextError, Model, ModelError
from selm_edge.backends import llama_cpp
from selm_edge.backends.base import Engine, EngineSession, EngineTokenizer, TokenStream

out = {}
model = Model.load(sys.argv[2], backend="llama-cpp", threads=1)
engine = model.engine
session = engine.session()
greedy = dict(temperature=0.0, max_tokens=20)
reply = model.generate("Once upon a time", **greedy)
out["protocol"] = [
    isinstance(engine, Engine), isinstance(session, EngineSession),
    isinstance(engine.tokenizer, EngineTokenizer), isinstance(reply._stream, TokenStream),
]
out["story"] = reply.finish().text
out["finish"] = reply.stats.finish_reason
out["tokens"] = reply.stats.tokens
again = model.generate("Once upon a time" + out["story"], **greedy).finish()
out["cached"] = again.stats.cached_tokens >= reply.stats.prompt_tokens
out["stopped"] = model.generate("Once upon a time", temperature=0.0, stop=["girl"]).finish().text
ids = model.tokenize("Once upon a time")
out["ids"] = ids
out["round_trip"] = model.detokenize(model.tokenize("a näïve 你好 🙂"))
logits = session.eval(ids)
out["shape"] = list(logits.shape)
out["last_row"] = [logits[len(ids) - 1, i] for i in range(512)]
out["last"] = list(session.eval([5], "last").shape) + list(session.eval([5], "none").shape)
session.truncate(2)
out["position"] = session.position
out["state"] = session.state_bytes > 0
out["seeds"] = [model.generate("Once", max_tokens=20, seed=s).finish().text for s in (7, 7, 8)]
penalised = model.generate("Once", max_tokens=9, repeat_penalty=1.3, presence_penalty=0.1,
                           frequency_penalty=0.1, typical_p=0.9, logit_bias={5: -9.0}).finish()
out["penalised"] = penalised.stats.finish_reason
slow = model.generate("Once", max_tokens=400, temperature=1.0)
first = next(slow)
canceller = threading.Thread(target=slow.cancel)
canceller.start()
canceller.join()
out["cancelled"] = [slow.finish().text.startswith(first), slow.stats.finish_reason]
late = model.generate("Once", deadline=0.005, max_tokens=400).finish()
out["late"] = late.stats.finish_reason
out["after"] = model.generate("Once", max_tokens=3).finish().stats.finish_reason
out["embedding"] = sum(x * x for x in model.embed("a red ball"))
for name, work in {
    "long": lambda: model.generate("word " * 600),
    "full": lambda: session.eval([5] * 600),
    "missing": lambda: Model.load("/no/file.gguf", backend="llama-cpp"),
    "broken": lambda: Model.load(__file__ if "__file__" in globals() else sys.executable,
                                 backend="llama-cpp"),
    "draft": lambda: model.generate("Once", draft="lookup"),
    "expert": lambda: model.generate("Once", expert="medical"),
}.items():
    try:
        work()
        out[name] = None
    except Exception as error:
        out[name] = type(error).__name__
        out[name + " says"] = str(error)
plain = model.generate("Once", draft="off", max_tokens=2).finish()
out["plain"] = [plain.speaker, plain.stats.experts, plain.stats.drafted, plain.stats.mean_layers]
out["chat"] = [n.code for n in model.chat([{"role": "user", "content": "x"}], max_tokens=2).notices]
out["system"] = llama_cpp.system_info()
out["metadata"] = [model.name, model.context, model.metadata["llama.block_count"]]
session.close(); session.close(); model.close(); model.close()
json.dump(out, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def seen(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    python = os.environ.get("SELM_TEST_LLAMA_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("llama-cpp-python is not installed (nor named by SELM_TEST_LLAMA_PYTHON)")
    out = tmp_path_factory.mktemp("llama") / "out.json"
    package = Path(selm_edge.__file__).parent.parent
    # Behind that Python's own packages, which may be of another version than this one's.
    script = SCRIPT.replace("sys.path.insert(0, sys.argv[1])", "sys.path.append(sys.argv[1])")
    environment = child_environment()
    del environment["PYTHONPATH"]
    done = subprocess.run(
        [python, "-c", script, str(package), str(stories), str(out)],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # its log is kept, not printed
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_it_serves_the_protocol(seen: dict[str, Any]) -> None:
    assert seen["protocol"] == [True] * 4
    assert seen["metadata"] == ["stories260K", 512, 5]
    assert "AVX" in seen["system"] or "NEON" in seen["system"] or seen["system"]


def test_replies(seen: dict[str, Any]) -> None:
    assert seen["story"].startswith(", there was a little girl named Lily.")
    assert (seen["finish"], seen["tokens"], seen["cached"]) == ("length", 20, True)
    assert seen["stopped"] == ", there was a little "
    assert seen["seeds"][0] == seen["seeds"][1] != seen["seeds"][2]
    assert seen["penalised"] in ("length", "stop")
    assert seen["cancelled"] == [True, "cancelled"]
    assert seen["late"] in ("deadline", "stop") and seen["after"] == "length"
    assert seen["chat"] == ["template-missing"]


def test_tokens_logits_and_embeddings(seen: dict[str, Any], stories: Path) -> None:
    from selm_edge.model import Model

    assert seen["round_trip"] == "a näïve 你好 🙂"
    assert seen["last"] == [1, 512, 0] and seen["shape"] == [len(seen["ids"]), 512]
    assert seen["position"] == 2 and seen["state"]
    assert abs(seen["embedding"] - 1) < 1e-4
    with Model.load(stories, threads=1) as model, model.session() as session:
        assert model.tokenize("Once upon a time") == seen["ids"]
        ours = session.eval(seen["ids"], "last")
        # f16 weights and caches on both sides, different orders of sums
        assert max(abs(ours[0, i] - seen["last_row"][i]) for i in range(512)) < 0.02


def test_errors(seen: dict[str, Any]) -> None:
    assert seen["long"] == seen["full"] == "ContextError"
    assert seen["missing"] == seen["broken"] == "ModelError"


def test_drafts_and_experts_are_for_the_native_backend(seen: dict[str, Any]) -> None:
    assert seen["draft"] == seen["expert"] == "SelmError"
    assert "draft lookup" in seen["draft says"] and "--backend native" in seen["draft says"]
    assert "'medical'" in seen["expert says"] and "--backend native" in seen["expert says"]
    assert seen["plain"] == [None, {}, 0, 5.0]


# ---- The text of engines that only give tokens -------------------------------------------------


def test_text_stream_holds_back_what_may_become_a_stop_string() -> None:
    stream = TextStream(["STOP", "TOP-X"])
    assert [stream.feed(piece) for piece in (b"a S", b"T", b"x ", b"STO", b"P rest")] == [
        "a ", "", "STx ", "", "",
    ]  # fmt: skip
    assert stream.stopped and stream.feed(b"more") == "" and stream.finish() == ""


def test_text_stream_finishes_what_was_held() -> None:
    stream = TextStream(["STOP"])
    assert stream.feed(b"a STO") == "a " and stream.finish() == "STO"


def test_text_stream_gives_whole_characters() -> None:
    data = "ä你🙂".encode()
    stream = TextStream([])
    pieces = [stream.feed(data[i : i + 1]) for i in range(len(data))]
    assert "".join(pieces) == "ä你🙂" and all("\ufffd" not in piece for piece in pieces)
    broken = TextStream([])
    assert broken.feed(b"x\xe4") == "x" and broken.finish() == "\ufffd"
