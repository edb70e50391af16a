"""An exit speaks unverified where it is sure: as torch says, counted, never without calibration."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import numpy as np
import torch
from click.testing import CliRunner
from selm_export import calibrate
from selm_export.calibrate import Bound, Trial, fewest_prompts, p_value, weights_sha256
from selm_export.cli import main
from selm_export.gguf_file import Label, copy_keys, whole_file
from selm_export.modeling.file import write_model
from support.core import ISAS, require_isa
from support.selm_models import some_model, some_tokenizer

from selm_edge import Model, SelmError, _core

KINDS = {
    "softmax": {"attention_kinds": ["softmax"] * 3},
    "far": {"attention_kinds": ["performer", "window", "performer"], "sinks": 2},
    "experts": {
        "expert_names": ["a", "b"], "expert_rank": 4, "trunk_layers": 2, "expert_kind": "full",
        "expert_route": "early", "attention_kinds": ["softmax", "performer", "performer"],
    },
}  # fmt: skip
SHORTLIST = list(range(5, 300))


def hesitant(share: float = 0.1, **changes: Any) -> Any:
    """The layers above the exit add little, so that it is often right, and often not."""
    model = some_model(exit_layers=[1, 2], draft_vocabulary=SHORTLIST, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(1.0 if name.startswith("model.layers.0.") else share)
        model.model.exits["1"].weight.copy_(model.model.norm.weight)
    return model


@pytest.fixture(scope="module", params=KINDS)
def made(request: Any, tmp_path_factory: Any) -> tuple[Path, Any]:
    model = hesitant(**KINDS[request.param])
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    write_model(path, model, some_tokenizer(), Label("Test"))
    return path, model.double()


def greedy(heat: float = 0.0) -> Any:
    sampling = _core.Sampling()
    sampling.temperature = heat
    return sampling


def reply(session: Any, prompt: list[int], **options: Any) -> tuple[list[int], Any]:
    generation = _core.Generation(
        session, prompt, options.pop("sampling", greedy()), ignore_end=True, draft="calibrated",
        **options,
    )  # fmt: skip
    tokens, finish = [], 0
    while not finish:
        _, token, finish = generation.next()
        tokens += [token] if token >= 0 else []
    return tokens, generation.stats


def test_the_exit_says_what_torch_says(made: tuple[Path, Any]) -> None:
    """Where its probability reaches the threshold, and there alone; wrong ones are counted."""
    path, model = made
    session = _core.Session(_core.Model(str(path)), context=200, threads=2, kv_type="f32")
    threshold, early, wrong, clear = 0.02, 0, 0, 0
    for trial in range(6):
        prompt = np.random.default_rng(trial).integers(5, 300, 9 + 8 * trial).tolist()
        tokens, stats = reply(session, prompt, max_tokens=60, exit_threshold=threshold)
        with torch.no_grad():
            out = model(torch.tensor([prompt + tokens]), output_exits=True)
        whole = out.logits[0].numpy()
        said = out.exit_logits[0, 0].numpy()[:, SHORTLIST]
        in_a_row = expected_early = expected_wrong = 0
        for i, token in enumerate(tokens):
            at = len(prompt) + i - 1
            chances = np.exp(said[at] - said[at].max())
            likely = chances.max() / chances.sum()
            if abs(likely / threshold - 1) < 1e-3:
                break  # too near to tell
            clear += 1
            # The first comes with the prompt; of 16 tokens that wait, the last goes through.
            if i > 0 and likely >= threshold and in_a_row < 15:
                in_a_row += 1
                expected_early += 1
                expected_wrong += whole[at].max() > whole[at][token]
                assert token == SHORTLIST[int(said[at].argmax())]
            else:
                in_a_row = 0
                assert token == int(whole[at].argmax())
        else:
            assert (stats.early_tokens, stats.early_wrong) == (expected_early, expected_wrong)
            early, wrong = early + expected_early, wrong + expected_wrong
    assert clear > 200 and early > 20 and wrong > 5


def test_held_to_a_grammar_the_exit_speaks_of_what_may_come(made: tuple[Path, Any]) -> None:
    """Sure of a token that may not come, it knows nothing of those that may: the model speaks."""
    path, model = made
    core = _core.Model(str(path))
    session = _core.Session(core, context=200, threads=2, kv_type="f32")
    grammar = _core.Grammar(core.tokenizer(), "gbnf", "root ::= [a-pA-P1-6 .,?]+")
    threshold, early, refused, clear = 0.02, 0, 0, 0
    for trial in range(6):
        prompt = np.random.default_rng(90 + trial).integers(5, 300, 9 + 8 * trial).tolist()
        tokens, _ = reply(session, prompt, max_tokens=60, exit_threshold=threshold, grammar=grammar)
        with torch.no_grad():
            out = model(torch.tensor([prompt + tokens]), output_exits=True)
        whole = out.logits[0].numpy()
        said = out.exit_logits[0, 0].numpy()[:, SHORTLIST]
        matcher, in_a_row = _core.Matcher(grammar), 0
        for i, token in enumerate(tokens):
            at = len(prompt) + i - 1
            allowed = np.frombuffer(matcher.allowed(), dtype=np.uint8).astype(bool)
            matcher.read(token)  # an error where it may not come
            chances = np.exp(said[at] - said[at].max())
            likely, best = chances.max() / chances.sum(), SHORTLIST[int(chances.argmax())]
            if abs(likely / threshold - 1) < 1e-3:
                break  # too near to tell
            clear += 1
            sure = i > 0 and likely >= threshold and in_a_row < 15
            refused += sure and not allowed[best]
            in_a_row = in_a_row + 1 if sure and allowed[best] else 0
            early += in_a_row > 0
            expected = np.where(allowed, whole[at], -np.inf).argmax()
            assert token == (best if in_a_row else expected)
    assert clear > 100 and early > 20 and refused > 10, (clear, early, refused)


@pytest.mark.parametrize("isa", ISAS)
def test_the_exit_s_probability_is_torch_s(made: tuple[Path, Any], isa: str) -> None:
    """To 1e-4 of it: a threshold so much above or below decides who speaks."""
    path, model = made
    core = _core.Model(str(path), isa=require_isa(isa))
    session = _core.Session(core, context=200, kv_type="f32", threads=1)
    for trial in range(6):
        prompt = np.random.default_rng(50 + trial).integers(5, 300, 5 + 6 * trial).tolist()
        first, _ = reply(session, prompt, max_tokens=1, exit_threshold=2.0)
        with torch.no_grad():
            out = model(torch.tensor([prompt + first]), output_exits=True)
        said = out.exit_logits[0, 0, -1].numpy()[SHORTLIST]
        likely = 1.0 / np.exp(said - said.max()).sum()
        for threshold, early in ((likely * (1 - 1e-4), 1), (likely * (1 + 1e-4), 0)):
            tokens, stats = reply(session, prompt, max_tokens=2, exit_threshold=threshold)
            assert tokens[0] == first[0] and stats.early_tokens == early


def test_what_is_held_is_the_whole_model_s(made: tuple[Path, Any]) -> None:
    """Layers that were left out have seen every token since, bit for bit."""
    model = _core.Model(str(made[0]))
    session = _core.Session(model, context=200, threads=2)
    fresh = _core.Session(model, context=200, threads=1)
    rng = np.random.default_rng(3)
    for most in (1, 2, 17, 40, 5):
        prompt = [*session.tokens(), *rng.integers(5, 300, 3).tolist()]
        tokens, stats = reply(session, prompt, max_tokens=most, exit_threshold=0.01)
        assert len(tokens) == most == stats.tokens
        held = session.tokens()
        assert held == (prompt + tokens)[: len(held)] and len(held) >= len(prompt) + most - 1
        more = rng.integers(5, 300, 4).tolist()
        fresh.truncate(0)
        for token in held:
            expected = fresh.eval([token], "last")
        expected = fresh.eval(more, "all")
        assert np.array_equal(session.eval(more, "all"), expected)


def test_never_is_the_whole_model(made: tuple[Path, Any]) -> None:
    model = _core.Model(str(made[0]))
    session = _core.Session(model, context=200)
    for heat in (0.0, 0.8):
        prompt = [9, 8, 7]
        tokens, stats = reply(
            session, prompt, max_tokens=50, exit_threshold=2.0, sampling=greedy(heat)
        )
        plain = _core.Generation(session, prompt, greedy(heat), ignore_end=True, draft="off",
                                 max_tokens=50)  # fmt: skip
        assert tokens == [plain.next()[1] for _ in range(50)]
        plain.close()
        assert stats.early_tokens == 0


def test_the_context_fills_to_the_end_and_a_cancel_leaves_a_session(made: tuple[Path, Any]) -> None:
    session = _core.Session(_core.Model(str(made[0])), context=32)
    tokens, stats = reply(session, [9] * 10, exit_threshold=1e-6)
    assert stats.finish == 3 and session.position == 32 and len(tokens) == 23
    session = _core.Session(_core.Model(str(made[0])), context=200)
    generation = _core.Generation(session, [9] * 10, greedy(), draft="calibrated",
                                  exit_threshold=1e-6, ignore_end=True)  # fmt: skip
    given = [generation.next()[1] for _ in range(7)]
    session.cancel()
    while generation.next()[2] == 0:
        pass
    held = session.tokens()
    assert held == ([9] * 10 + given)[: len(held)] and len(held) >= 10
    fresh = _core.Session(_core.Model(str(made[0])), context=200)
    fresh.eval(held[:10], "none")
    for token in held[10:]:
        fresh.eval([token], "none")
    assert np.array_equal(session.eval([5], "all"), fresh.eval([5], "all"))


def test_a_reply_that_is_left_leaves_no_trace(made: tuple[Path, Any]) -> None:
    """Layers below the exit have seen more than those above: the session goes back."""
    model = _core.Model(str(made[0]))
    rng = np.random.default_rng(4)
    for early in (1, 3, 9, 15):
        session, fresh = _core.Session(model, context=200), _core.Session(model, context=200)
        prompt = rng.integers(5, 300, 60).tolist()
        generation = _core.Generation(session, prompt, greedy(), draft="calibrated",
                                      exit_threshold=1e-6, ignore_end=True)  # fmt: skip
        for _ in range(1 + early):
            generation.next()
        assert generation.stats.early_tokens == early
        generation.close()
        assert session.tokens() == prompt
        fresh.eval(prompt[:-1], "none")
        fresh.eval(prompt[-1:], "none")
        more = rng.integers(5, 300, 40).tolist()
        for piece in (more[:1], more[1:12], more[12:]):
            assert np.array_equal(session.eval(piece, "all"), fresh.eval(piece, "all"))


# ---- the calibration in the file ----------------------------------------------------------------


def calibrated(path: Path, output: Path, threshold: float = 0.02) -> Path:
    calibrate._write(output, [gguf.GGUFReader(path)], [threshold, 2.0], Bound(0.1, 0.05), 300)
    return output


def test_the_core_takes_the_file_s_threshold(made: tuple[Path, Any], tmp_path: Path) -> None:
    path = calibrated(made[0], tmp_path / "c.gguf")
    asked = _core.Session(_core.Model(str(made[0])), context=200)
    own = _core.Session(_core.Model(str(path)), context=200)
    tokens, stats = reply(own, [9, 8, 7], max_tokens=60)
    expected, looked = reply(asked, [9, 8, 7], max_tokens=60, exit_threshold=np.float32(0.02))
    assert tokens == expected and stats.early_tokens == looked.early_tokens > 0
    assert stats.early_wrong == 0 < looked.early_wrong  # counted for calibrating alone
    with Model.load(path, context=200) as model:
        early = 0
        for question in ("1 and 2", "the sum", "What is it?", "7", "Is 3 more than 2?"):
            made_text = model.generate(question, temperature=0.0, max_tokens=40, draft="calibrated")
            list(made_text)
            now, steps = made_text.stats.early, made_text.stats.decode_steps + 1
            assert made_text.stats.mean_layers == pytest.approx(3 - 2 * now / steps)
            early += now
        assert early > 0


def test_hash_and_keys_are_those_of_the_format(made: tuple[Path, Any], tmp_path: Path) -> None:
    reader = gguf.GGUFReader(calibrated(made[0], tmp_path / "c.gguf"))
    raw = (tmp_path / "c.gguf").read_bytes()
    expected = hashlib.sha256()
    for tensor in reader.tensors:
        expected.update(tensor.name.encode() + b"\0")
        expected.update(raw[tensor.data_offset : tensor.data_offset + int(tensor.n_bytes)])
    assert reader.get_field("selm.exit.model_sha256").contents() == expected.hexdigest()
    assert weights_sha256(gguf.GGUFReader(made[0])) == expected.hexdigest()
    before = gguf.GGUFReader(made[0])
    for key, field in before.fields.items():
        if not key.startswith("GGUF."):
            assert reader.get_field(key).contents() == field.contents(), key
    again = calibrated(tmp_path / "c.gguf", tmp_path / "again.gguf", 0.5)
    assert gguf.GGUFReader(again).get_field("selm.exit.thresholds").contents() == [0.5, 2.0]


def rewritten(path: Path, output: Path, key: str, value: Any) -> Path:
    """The same file with a key of the calibration changed, or without it."""
    reader = gguf.GGUFReader(path)
    with whole_file(output, "selm") as writer:
        changed = f"selm.exit.{key}"
        copy_keys(writer, reader, lambda name: name != changed)
        if value is not None:
            types = reader.get_field(changed).types
            writer.add_key_value(changed, value, types[0], types[1] if len(types) > 1 else None)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    return output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("thresholds", None, "not calibrated: selm.exit.thresholds is missing"),
        ("thresholds", [0.5], "an array of 2 numbers"),
        ("thresholds", [-0.5, 2.0], "a threshold is more than 0"),
        ("thresholds", [math.nan, 2.0], "a threshold is more than 0"),
        ("delta", None, "exit.delta is missing"),
        ("delta", 1.5, "exit.delta is 1.5; it lies between 0 and 1"),
        ("epsilon", None, "exit.epsilon is missing"),
        ("calibration_count", None, "exit.calibration_count is missing"),
        ("calibration_count", 0, "exit.calibration_count is missing"),
        ("model_sha256", None, "exit.model_sha256 is missing"),
        ("model_sha256", "00" * 32, "calibrated for other weights: .* is 0000000000000000"),
    ],
)
def test_a_calibration_that_is_not_whole_is_refused(
    made: tuple[Path, Any], tmp_path: Path, key: str, value: Any, message: str
) -> None:
    good = calibrated(made[0], tmp_path / "c.gguf")
    session = _core.Session(_core.Model(str(rewritten(good, tmp_path / "d.gguf", key, value))))
    with pytest.raises(_core.CoreError, match=message):
        _core.Generation(session, [5, 6], greedy(), draft="calibrated")
    _core.Generation(session, [5, 6], greedy(), draft="exit").close()  # verified drafts need none


def test_one_changed_weight_is_other_weights(made: tuple[Path, Any], tmp_path: Path) -> None:
    path = calibrated(made[0], tmp_path / "c.gguf")
    tensor = gguf.GGUFReader(path).tensors[3]
    content = bytearray(path.read_bytes())
    content[tensor.data_offset + 2] ^= 1
    (tmp_path / "d.gguf").write_bytes(bytes(content))
    with (
        Model.load(tmp_path / "d.gguf", context=64) as model,
        pytest.raises(SelmError, match=r"other weights(.|\n)*selm-export calibrate"),
    ):
        model.generate("the", max_tokens=4, draft="calibrated")


def test_thresholds_are_for_calibrated_drafts(made: tuple[Path, Any]) -> None:
    session = _core.Session(_core.Model(str(made[0])))
    for draft, threshold in (("off", 0.5), ("exit", 0.5), ("calibrated", -1.0)):
        with pytest.raises(_core.CoreError, match="for calibrated drafts alone"):
            _core.Generation(session, [5], greedy(), draft=draft, exit_threshold=threshold)


# ---- finding it ----------------------------------------------------------------------------------


def test_the_bound_holds_for_binomial_losses() -> None:
    """p is at least the chance of so few losses where the expected one is just delta."""
    for n in (60, 300, 1000):
        for delta in (0.02, 0.05, 0.2):
            most = int(n * delta)
            for count in range(0, most, max(1, most // 6)):
                chances = [math.comb(n, k) * delta**k * (1 - delta) ** (n - k) for k in range(n)]
                simple = math.exp(-2 * n * (delta - count / n) ** 2)
                p = p_value(count / n, delta, n)
                assert sum(chances[: count + 1]) * (1 - 1e-9) <= p <= simple * (1 + 1e-9)
    assert p_value(0.2, 0.2, 50) == p_value(0.3, 0.2, 50) == 1.0
    few = fewest_prompts(Bound(0.05, 0.05))
    assert p_value(0.0, 0.05, few) <= 0.05 < p_value(0.0, 0.05, few - 1)


class Stats:
    def __init__(self, wrong: int, early: int, seconds: float) -> None:
        self.early_wrong, self.early_tokens, self.decode_seconds = wrong, early, seconds
        self.decode_steps = 19


class FakeReplies:
    """The exit errs more the less it has to be sure; below 0.5 nothing is faster any more."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def make(self, threshold: float | None) -> list[Stats]:
        if threshold is None:
            return [Stats(0, 0, 1.0)] * 400
        self.asked.append(threshold)
        wrong = 2 if threshold < 0.4 else 0
        return [Stats(wrong, 10, max(threshold, 0.5))] * 400


def test_the_search_ends_at_the_first_that_is_not_proven() -> None:
    replies = FakeReplies()
    lines: list[str] = []
    trials = calibrate.search(replies, Bound(0.05, 0.05), lines.append)  # type: ignore[arg-type]
    assert [t.threshold for t in trials] == [t / 100 for t in range(95, 39, -5)]
    assert replies.asked[-1] == 0.35 and "not proven" in lines[-1]
    assert trials[-1] == Trial(0.4, 0.0, p_value(0.0, 0.05, 400), 0.5, 2.0)


@pytest.fixture
def silent_above(tmp_path: Path) -> Path:
    """Nothing above the exit: it says what the end says."""
    model = hesitant(0.0)
    path = tmp_path / "m.gguf"
    write_model(path, model, some_tokenizer(), Label("Test"))
    return path


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.txt"
    path.write_text(
        "\n\n".join(f"U: What is {i} and {i + 3}?\nA: It is {2 * i + 3}." for i in range(80))
    )
    return path


def test_a_file_is_calibrated(silent_above: Path, talk: Path, tmp_path: Path) -> None:
    run = [
        "calibrate", str(silent_above), "--data", str(talk), "--context", "128", "--max-tokens",
        "6", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*run, "--output", str(tmp_path / "c.gguf")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["prompts"] == 80 and found["delta"] == 0.05
    assert found["loss"] <= 0.05 and found["p"] <= 0.05
    assert all(trial["p"] <= 0.05 for trial in found["trials"])
    session = _core.Session(_core.Model(str(tmp_path / "c.gguf")), context=128)
    reply(session, [5, 6], max_tokens=8)
    # In place, and whole or not at all.
    done = CliRunner().invoke(main, run)
    assert done.exit_code == 0, done.output
    assert gguf.GGUFReader(silent_above).get_field("selm.exit.thresholds") is not None


def test_what_cannot_be_calibrated_is_said(silent_above: Path, talk: Path, tmp_path: Path) -> None:
    before = silent_above.read_bytes()

    def refused(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["calibrate", *arguments, "--data", str(talk)])
        assert done.exit_code == 1
        return done.output

    assert "at least 149 are needed" in refused(
        str(silent_above), "--delta", "0.02", "--epsilon", "0.05"
    )
    write_model(tmp_path / "plain.gguf", some_model(), some_tokenizer(), Label("Test"))
    assert "no trained exits" in refused(str(tmp_path / "plain.gguf"))
    assert "not a GGUF file" in refused(str(talk))
    # An exit that is nearly always wrong, and sure of it.
    loud = hesitant(1.0)
    with torch.no_grad():
        loud.model.exits["1"].weight.mul_(50.0)
    write_model(tmp_path / "loud.gguf", loud, some_tokenizer(), Label("Test"))
    unproven = refused(str(tmp_path / "loud.gguf"), "--max-tokens", "12", "--context", "128")
    assert "no threshold keeps the loss below 0.05" in unproven
    assert silent_above.read_bytes() == before
