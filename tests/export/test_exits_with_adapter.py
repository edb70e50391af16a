"""With an adapter the weights are others: the core wants a calibration of both, `calibrate
--adapter` finds one, and `finetune` of a calibrated base does so by itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import torch
from click.testing import CliRunner
from selm_export.cli import main
from selm_export.finetune import anew, familiar, run
from selm_export.finetune.adapter import Adapter, AdapterLabel, write_adapter
from selm_export.finetune.learn import Plan
from selm_export.gguf_file import Label
from selm_export.ledger import file_hash
from selm_export.modeling.file import write_model
from support.selm_models import some_model, some_tokenizer

from selm_edge import Model, SelmError, _core
from selm_edge.feedback import bundle


def silent_above(**changes: Any) -> Any:
    """Nothing above the exit, so it says what the end says."""
    model = some_model(exit_layers=[1, 2], **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("o_proj" in name or "down_proj" in name) and not name.startswith("model.layers.0."):
                parameter.mul_(0.0)
        model.model.exits["1"].weight.copy_(model.model.norm.weight)
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    write_model(path, silent_above(), some_tokenizer(), Label("Test"))
    return path


def some_adapter(path: Path, base: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    model = silent_above()
    adapter = Adapter(model, rank=4)
    with torch.no_grad():
        for _, pair in adapter.tensors():
            pair.b.normal_(0, 0.02)
    write_adapter(path, adapter, model, AdapterLabel("One", file_hash(base)), architecture="selm")
    return path


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.txt"
    path.write_text("\n\n".join(f"U: What is {i} and {i + 3}?\nA: It is {i}." for i in range(80)))
    return path


def calibrate(base: Path, talk: Path, *more: str) -> dict[str, Any]:
    run_ = ["calibrate", str(base), "--data", str(talk), "--context", "128", "--max-tokens", "6",
            "--json", *more]  # fmt: skip
    done = CliRunner().invoke(main, run_)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_an_adapter_has_a_calibration_of_its_own(base: Path, talk: Path, tmp_path: Path) -> None:
    calibrate(base, talk)
    before = base.read_bytes()
    one, other = some_adapter(tmp_path / "1.gguf", base), some_adapter(tmp_path / "2.gguf", base, 2)

    def says(given: dict[Path, float], draft: str = "calibrated") -> list[int]:
        core = _core.Model(str(base))
        session = _core.Session(core, context=64)
        session.set_adapters([(_core.Adapter(core, str(a)), scale) for a, scale in given.items()])
        sampling = _core.Sampling()
        sampling.temperature = 0.0
        reply = _core.Generation(
            session, [5, 6, 7], sampling, max_tokens=12, ignore_end=True, draft=draft
        )
        tokens, finish = [], 0
        while not finish:
            _, token, finish = reply.next()
            tokens += [token] if token >= 0 else []
        return tokens

    plain, wanted = says({}), says({one: 1.0}, "off")  # what is verified needs no calibration
    with pytest.raises(_core.CoreError, match="not calibrated with this adapter"):
        says({one: 1.0})
    with Model.load(base, context=128) as model:
        model.set_adapters({one: 1.0})
        with pytest.raises(SelmError, match=r"with this adapter(.|\n)*selm-export calibrate"):
            model.generate("What is", max_tokens=12, draft="calibrated")

    found = calibrate(base, talk, "--adapter", str(one))
    assert found["prompts"] == 80 and found["p"] <= 0.05
    assert base.read_bytes() == before
    hashed = hashlib.sha256()
    readers = [gguf.GGUFReader(base), gguf.GGUFReader(one)]
    for tensor in (t for reader in readers for t in reader.tensors):
        hashed.update(tensor.name.encode() + b"\0" + tensor.data.tobytes())
    assert readers[1].get_field("selm.exit.model_sha256").contents() == hashed.hexdigest()
    assert readers[1].get_field("general.name").contents() == "One"
    assert says({one: 1.0}) == wanted != plain == says({})  # the exit says what the end says
    for adapters in ({one: 0.5}, {one: 1.0, other: 1.0}):
        with pytest.raises(_core.CoreError, match="with one adapter at scale 1"):
            says(adapters)
    with pytest.raises(_core.CoreError, match="not calibrated with this adapter"):
        says({other: 1.0})


def test_a_session_asks_anew_after_each_change(base: Path, talk: Path, tmp_path: Path) -> None:
    calibrate(base, talk)
    path = some_adapter(tmp_path / "1.gguf", base)
    core = _core.Model(str(base))
    session, adapter = _core.Session(core, context=64), _core.Adapter(core, str(path))

    def calibrated() -> None:
        _core.Generation(session, [5, 6], _core.Sampling(), draft="calibrated").close()

    for _ in range(2):
        calibrated()
        session.set_adapters([(adapter, 1.0)])
        with pytest.raises(_core.CoreError, match="with this adapter"):
            calibrated()
        session.set_adapters([])


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_other_weights_on_either_side_are_noticed(
    base: Path, talk: Path, tmp_path: Path, which: str
) -> None:
    adapter = some_adapter(tmp_path / "1.gguf", base)
    calibrate(base, talk, "--adapter", str(adapter))
    changed = base if which == "base" else adapter
    tensor = gguf.GGUFReader(changed).tensors[2]
    content = bytearray(changed.read_bytes())
    content[tensor.data_offset + 1] ^= 1
    changed.write_bytes(bytes(content))
    core = _core.Model(str(base))
    session = _core.Session(core, context=64)
    session.set_adapters([(_core.Adapter(core, str(adapter)), 1.0)])
    with pytest.raises(_core.CoreError, match="calibrated for other weights"):
        _core.Generation(session, [5, 6], _core.Sampling(), draft="calibrated")


def corrections(base: Path) -> list[dict[str, Any]]:
    return [
        {
            "uid": f"{i:02}", "kind": "correction", "created": i, "reply": "none",
            "correction": "7", "model_sha256": file_hash(base),
            "messages": [{"role": "user", "content": f"What is {i} + {i}?"}],
        }
        for i in range(24)
    ]  # fmt: skip


EXPERTS = {"expert_names": ["a", "b"], "expert_rank": 4, "trunk_layers": 2, "expert_kind": "full",
           "expert_route": "early"}  # fmt: skip


def test_finetune_finds_anew_what_the_base_was_measured_for(
    tmp_path: Path, talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.gguf"
    write_model(base, silent_above(**EXPERTS), some_tokenizer(), Label("Test"))
    calibrate(base, talk)
    monkeypatch.setattr(anew, "PROMPTS", 60)
    monkeypatch.setattr(anew, "MOST", 6)
    path = tmp_path / "a.bundle"
    bundle.write(corrections(base), path)
    plan = Plan(rounds=8, trial=6, rate=0.01, rank=4, rows=2, length=128, micro_batches=1,
                dropout=0.0)  # fmt: skip
    request = run.Request((path,), base, tmp_path / "out", plan=plan, suites=(), questions=4)
    report = run.finetune(request, lambda _: None)
    assert report is not None and report["verdict"]["accepted"], report
    speakers = report["anew"]["speakers"]
    assert sorted(speakers) == ["a", "b"]
    assert [sum(side) for side in zip(*speakers.values(), strict=True)] == pytest.approx([1, 1])
    assert report["anew"]["exits"]["prompts"] == 118  # twice what a proof needs
    assert "exits speak from a probability" in (tmp_path / "out" / "report.md").read_text()
    adapter = tmp_path / "out" / "adapter.gguf"
    held = gguf.GGUFReader(adapter).get_field("selm.exit.thresholds")
    assert held.contents()[0] == pytest.approx(report["anew"]["exits"]["threshold"])
    core = _core.Model(str(base))
    session = _core.Session(core, context=64)
    session.set_adapters([(_core.Adapter(core, str(adapter)), 1.0)])
    _core.Generation(session, [5, 6], _core.Sampling(), draft="calibrated").close()


def test_what_cannot_be_found_anew_is_said(base: Path, talk: Path, tmp_path: Path) -> None:
    adapter = some_adapter(tmp_path / "1.gguf", base)
    before = adapter.read_bytes()
    known = familiar.talk(None)[1][:10]
    said: list[str] = []
    assert anew.found_anew(base, adapter, known, said.append) == {}  # was never calibrated
    calibrate(base, talk)
    found = anew.found_anew(base, adapter, known, said.append)
    assert "at least 59 are needed" in found["exits"]["problem"]
    assert adapter.read_bytes() == before
