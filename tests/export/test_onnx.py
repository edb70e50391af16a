"""ONNX folders against transformers and torch: prompts at once, then token by token, past the
window; the state keeps its shape; int8 stays close; what is not right gets no name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from selm_export import checkpoint, onnx_export, onnx_quantize
from selm_export.checkpoint import Checkpoint
from selm_export.errors import RecipeError
from selm_export.modeling import step
from selm_export.modeling.experts import speakers
from selm_export.modeling.model import SelmForCausalLM
from selm_export.stages import onnx as stage
from selm_export.stages.job import Job
from support.onnx_models import EXPERTS, PERFORMER, Oracle, some_checkpoint, write
from support.selm_models import some_model, some_tokenizer
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

IDS = random.Random(1).choices(range(400), k=60)
TOLERANCE = 1e-3


@torch.no_grad()
def torch_logits(model: Any, ids: list[int] = IDS) -> np.ndarray[Any, Any]:
    logits: np.ndarray[Any, Any] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


# ---- Standard architectures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name", "kind"),
    [
        ({"rope_factors": [1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0]}, "llama", LlamaForCausalLM),
        ({"attention_bias": True}, "qwen2", Qwen2ForCausalLM),
        ({"qk_norm": True, "tie_word_embeddings": False}, "qwen3", Qwen3ForCausalLM),
    ],
)
def test_a_standard_model_computes_what_transformers_does(
    tmp_path: Path, changes: dict[str, Any], name: str, kind: type
) -> None:
    made, figures = write(tmp_path / "out", num_hidden_layers=2, **changes)
    assert figures["architecture"] == name and figures["largest_difference"] < TOLERANCE
    standard = onnx_export.standard_of(made.model.config)
    assert standard is not None
    theirs = onnx_export.convert(made.model, standard)
    assert type(theirs) is kind
    expected = torch_logits(theirs)
    assert np.abs(expected - torch_logits(made.model)).max() < TOLERANCE
    found = Oracle(tmp_path / "out").logits(IDS, [30, 1])
    assert np.abs(found - expected).max() < TOLERANCE
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "model.json", "model.onnx", "tokenizer.json",
    ]  # fmt: skip
    weights = sum(p.numel() for p in made.model.parameters()) * 4
    assert (tmp_path / "out/model.onnx").stat().st_size < weights + 300_000  # no matrix twice


@pytest.mark.parametrize(
    "changes",
    [
        {"head_gate": True}, {"ranks": {"mlp.up_proj": 8}},
        {"qk_norm": True, "attention_bias": True}, {"expert_names": ["a", "b"], "trunk_layers": 1},
        {"attention_kinds": ["window", "softmax", "softmax"]},
    ],
)  # fmt: skip
def test_what_is_not_standard_is_known(changes: dict[str, Any]) -> None:
    assert onnx_export.standard_of(some_model(**changes).config) is None
    assert onnx_export.standard_of(some_model(exit_layers=[1]).config) is onnx_export.LLAMA


# ---- SELM models ---------------------------------------------------------------------------------


def stepped(model: SelmForCausalLM, sizes: list[int]) -> torch.Tensor:
    """Through `step.Step` in torch alone."""
    stepping, out, at = step.Step(model, 64), [], 0
    kept = step.states(model.config)
    types = {"float32": torch.float32, "int64": torch.long}
    states = [torch.full([n or 0 for n in s.shape], s.start, dtype=types[s.type]) for s in kept]
    nobody = (torch.tensor([-1]),) if model.config.expert_names else ()
    for size in [*sizes, *[sizes[-1]] * len(IDS)]:
        if at < len(IDS):
            ids = torch.tensor([IDS[at : at + size]])
            found = stepping(ids, torch.tensor([at]), states, *nobody)
            out.append(found[0])
            states = list(found[2 : 2 + len(kept)])
        at += size
    return torch.cat(out, dim=1)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_kinds": ["window"] * 3},
        {"attention_kinds": ["window"] * 3, "sinks": 3, "window": 1},
        {"attention_kinds": ["performer"] * 3, "sinks": 3},
        {"attention_kinds": ["performer"] * 3, "window": 1},
        {"attention_kinds": ["performer"] * 3, "sinks": 40, "window": 64},
        {"attention_kinds": ["performer"] * 3, "feature_map": "elu1", "features": 16},
        {"attention_kinds": ["performer"] * 3, "feature_map": "relu"},
        {"attention_kinds": ["performer"] * 3, "feature_map": "hedgehog", "head_gate": True},
        {**PERFORMER, "ranks": {"mlp.up_proj": 8}},
        EXPERTS,
        {**EXPERTS, "expert_kind": "full", "expert_route": "full"},
    ],
)
@torch.no_grad()
def test_steps_of_any_size_are_the_model(changes: dict[str, Any]) -> None:
    model = some_model(**changes)
    expected = model(torch.tensor([IDS])).logits[0]
    for sizes in ([60], [1], [7], [3, 1, 20]):
        assert (stepped(model, sizes) - expected).abs().max() < 1e-4, sizes


@pytest.mark.parametrize("stickiness", [0.0, 0.3, 5.0])
def test_who_speaks_is_found_without_waiting(stickiness: float) -> None:
    torch.manual_seed(3)
    for count in (1, 2, 9, 32):
        scores = torch.randn(1, count, 3)
        for last in (-1, 0, 2):
            valid = torch.ones(1, count, dtype=torch.bool)
            expected, _ = speakers(scores, valid, torch.tensor([last]), stickiness)
            found = step.spoken(scores[0], torch.tensor([last]), stickiness, 32)
            assert found.tolist() == expected[0].tolist()


@pytest.fixture(scope="module")
def performer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    path = tmp_path_factory.mktemp("onnx") / "performer"
    return path, write(path, **PERFORMER)[0]


def test_a_selm_model_computes_what_torch_does(performer: tuple[Path, Checkpoint]) -> None:
    """60 tokens with a window of 5: most are long past it."""
    path, made = performer
    expected = torch_logits(made.model)
    for sizes in ([60], [40, 1], [3, 1, 7]):
        found = Oracle(path).logits(IDS, sizes)  # which checks the shapes of the states, too
        assert np.abs(found - expected).max() < TOLERANCE
    said = json.loads((path / "model.json").read_text())
    grows = [row["input"] for row in said["states"] if None in row["shape"]]
    assert grows == ["past.layer0.keys", "past.layer0.values"]  # the softmax layer's alone
    assert said["metadata"]["selm.attention.kinds"] == PERFORMER["attention_kinds"]


def test_experts_speak_in_their_turn(tmp_path: Path) -> None:
    made, _ = write(tmp_path / "out", **EXPERTS)
    with torch.no_grad():
        expected = made.model(torch.tensor([IDS]))
        alone = made.model(torch.tensor([IDS]), expert="medical").logits[0].numpy()
    assert expected.speakers is not None
    turns = expected.speakers[0].tolist()
    assert len(set(turns)) > 1
    oracle = Oracle(tmp_path / "out")
    for first, last in ((0, 40), (40, 41), (41, 60)):
        found = oracle.step(IDS[first:last])
        assert found["speakers"][0].tolist() == turns[first:last]
        difference = found["logits"][0] - expected.logits[0, first:last].numpy()
        assert np.abs(difference).max() < TOLERANCE
    found = Oracle(tmp_path / "out").step(IDS, expert=1)
    assert np.abs(found["logits"][0] - alone).max() < TOLERANCE


# ---- int8 ----------------------------------------------------------------------------------------


def test_int8_stays_close_and_small(performer: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    path, made = performer
    figures = {}
    for head in (True, False):
        out = tmp_path / str(head)
        figures[head] = onnx_quantize.quantize(path, out, head=head)
        figures[head] |= stage.compare(path, out, [IDS, IDS[::-1]])
        assert figures[head]["kld"] < 0.1 and figures[head]["same_top"] > 0.7
        assert figures[head]["tokens"] == 2 * len(IDS)
        expected, found = torch_logits(made.model), Oracle(out).logits(IDS, [20, 1])
        logs = [torch.from_numpy(x).double().log_softmax(-1) for x in (expected, found)]
        kld = torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean")
        assert kld < 0.1
        whole = Oracle(out).logits(IDS, [len(IDS)])  # each token has a scale of its own
        assert np.abs(found - whole).max() < TOLERANCE
    assert figures[True]["bytes"] < figures[False]["bytes"] - 400 * 64 * 2.8
    graph = onnx.load(tmp_path / "True/model.onnx").graph
    matrices = {
        list(t.dims) == [64, 400] or list(t.dims) == [400, 64]: t for t in graph.initializer
    }
    assert matrices[True].data_type == onnx.TensorProto.INT8  # one for both ends
    kept = [n for n in graph.node if n.op_type == "MatMul" and "head_gate" in n.name]
    assert len(kept) == 3


def test_divergence_is_that_of_torch() -> None:
    draw = np.random.default_rng(5)
    a, b = (draw.normal(0, 3, (9, 50)).astype(np.float32) for _ in range(2))
    found, same = onnx_quantize.divergence(a, b)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (a, b))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert np.allclose(found, expected.numpy(), atol=1e-9)
    assert same.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


# ---- The stage, and what goes wrong --------------------------------------------------------------


def a_job(tmp_path: Path) -> Job:
    made = some_checkpoint(attention_bias=True, num_hidden_layers=1)
    checkpoint.save(tmp_path / "model", made.model, made.tokenizer)
    (tmp_path / "out").mkdir()
    return Job(
        "tiny", (tmp_path / "model",), tmp_path / "out", tmp_path / "data", 1, lambda _: None
    )


def test_the_stage_writes_both_kinds(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    found = stage.run(job, stage.Settings(samples=2, tokens=50, sampling={"temperature": 0.4}))
    assert sorted(f.name for f in job.output.iterdir()) == ["fp32", "int8"]
    assert found["fp32"]["largest_difference"] < TOLERANCE
    added = found["int8"]["kld_int8_head"] - found["int8"]["kld_fp32_head"]
    assert (found["int8"]["head"] == "int8") == (added <= 0.002)
    json.dumps(found)
    for kind in ("fp32", "int8"):
        said = json.loads((job.output / kind / "model.json").read_text())
        assert said["type"] == kind and said["metadata"]["general.name"] == "tiny"
        assert said["metadata"]["general.sampling.temp"] == 0.4
        assert said["metadata"]["tokenizer.ggml.eos_token_id"] == 2
    again = stage.run(job, stage.Settings(("int8",), samples=2, tokens=50, head_kld=-1.0))
    assert list(again) == ["int8"] and again["int8"]["head"] == "fp32"
    assert [f.name for f in job.output.iterdir()] == ["int8"]


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    job = Job("tiny", (tmp_path,), tmp_path, tmp_path, 1, lambda _: None)
    with pytest.raises(RecipeError, match="'int4' under kinds"):
        stage.run(job, stage.Settings(kinds=("int4",)))
    with pytest.raises(RecipeError, match="'heat' under sampling"):
        stage.run(job, stage.Settings(sampling={"heat": 1.0}))
    with pytest.raises(RecipeError, match="is given 0 models"):
        stage.run(Job("tiny", (), tmp_path, tmp_path, 1, lambda _: None), stage.Settings())


def test_what_differs_from_torch_gets_no_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "before").write_text("stays")
    made = some_checkpoint(num_hidden_layers=1)
    with pytest.raises(RecipeError, match="differ from torch's by"):
        onnx_export.export(made, out, "Test", tolerance=0.0)
    with torch.no_grad():
        made.model.model.norm.weight[0] = torch.nan
    with pytest.raises(RecipeError, match="differ from torch's by nan"):
        onnx_export.export(made, out, "Test")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]  # nothing unfinished is left
    assert [f.name for f in out.iterdir()] == ["before"]


def test_a_model_that_cannot_be_exported(tmp_path: Path) -> None:
    made = some_checkpoint()
    small = Checkpoint(Path("here"), some_model(vocab_size=300), some_tokenizer())
    with pytest.raises(RecipeError, match="here: its tokenizer has 400 tokens of 300"):
        onnx_export.export(small, tmp_path / "out", "Test")
    made.model.bfloat16()
    with pytest.raises(RecipeError, match="no float32"):
        onnx_export.export(made, tmp_path / "out", "Test")


def test_weights_too_large_for_one_message_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1000)
    made, figures = write(tmp_path / "out", attention_bias=True, num_hidden_layers=1)
    assert (tmp_path / "out/model.onnx.data").stat().st_size > 200_000
    assert (tmp_path / "out/model.onnx").stat().st_size < 200_000
    assert "model.onnx.data" in json.loads((tmp_path / "out/model.json").read_text())["files"]
    onnx_quantize.quantize(tmp_path / "out", tmp_path / "int8", head=True)
    found = Oracle(tmp_path / "int8").logits(IDS, [30, 1])
    kld, _ = onnx_quantize.divergence(torch_logits(made.model), found)
    assert kld.mean() < 0.1 and figures["largest_difference"] < TOLERANCE
