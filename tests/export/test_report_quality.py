"""KLD and its companions against numpy in float64; who speaks, in the core and in torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import numpy as np
import torch
from selm_export.data.chat import Conversation, chat
from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.gguf_file import Label
from selm_export.modeling.file import write_model
from selm_export.report import evaluate, quality, routing, spread
from support.selm_models import some_model, some_tokenizer

from selm_edge import _core

NAMES = ["general", "medical", "math"]
EXPERTS: dict[str, Any] = {
    "expert_names": NAMES, "expert_rank": 4, "trunk_layers": 2, "num_hidden_layers": 4,
    "expert_kind": "delta", "expert_route": "early",
}  # fmt: skip
LABELLED = [
    ("general", chat("talk", "What is 3 + 4?", "3 + 4 = 7.", "And 12 - 5?", "12 - 5 = 7.")),
    ("math", chat("math", "What is 17 + 25?", "17 + 20 = 37, and 37 + 5 = 42. So 42.")),
    ("math", chat("math", "What is 8 * 9?", "8 * 9 = 72.")),
    ("law", chat("law", "Divide 91 by 13.", "91 / 13 = 7, remainder 0.")),
]


def ensemble(**changes: Any) -> Any:
    model = some_model(**{**EXPERTS, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "delta_b" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def documents(count: int = 6, vocab: int = 400) -> list[Document]:
    rng = np.random.default_rng(4)
    made = []
    for _ in range(count):
        n = int(rng.integers(5, 60))
        ids, reply = rng.integers(0, vocab, n).tolist(), (rng.random(n) < 0.5).tolist()
        reply[-1] = True
        made.append(Document(ids, reply))
    return made


def by_hand(own: Any, other: Any, made: list[Document], replies: bool) -> dict[str, Any]:
    """The definitions, token by token, in float64."""
    nats, reference, kld, delta, same, counts = [], [], [], [], [], []
    klds: list[float] = []
    for document in made:
        q, p = (np.asarray(f(torch.tensor(document.ids[:-1]))).astype(np.float64)
                for f in (own, other))  # fmt: skip
        rows = []
        for i in range(len(document) - 1):
            if replies and not document.reply[i + 1]:
                continue
            y = document.ids[i + 1]
            qi, pi = np.exp(q[i]) / np.exp(q[i]).sum(), np.exp(p[i]) / np.exp(p[i]).sum()
            rows.append((-np.log(qi[y]), -np.log(pi[y]), (pi * np.log(pi / qi)).sum(),
                         (qi[y] - pi[y]) ** 2, float(qi.argmax() == pi.argmax())))  # fmt: skip
        klds += [row[2] for row in rows]
        for into, values in zip((nats, reference, kld, delta, same), zip(*rows, strict=True),
                                strict=True):  # fmt: skip
            into.append(sum(values))
        counts.append(len(rows))
    n, total = len(counts), sum(counts)

    def error(sums: list[float]) -> float:
        r = sum(sums) / total
        squares = sum((s - r * c) ** 2 for s, c in zip(sums, counts, strict=True))
        return math.sqrt(n / (n - 1) * squares) / total

    worse = [a - b for a, b in zip(nats, reference, strict=True)]
    ratio = math.exp(sum(worse) / total)
    rms = math.sqrt(sum(delta) / total)
    return {
        "tokens": total, "documents": n,
        "perplexity": (math.exp(sum(nats) / total), math.exp(sum(nats) / total) * error(nats)),
        "perplexity_ratio": (ratio, ratio * error(worse)),
        "mean_kld": (sum(kld) / total, error(kld)),
        "kld_99": float(np.percentile(klds, 99)),
        "rms_delta_p": (rms, error(delta) / (2 * rms)),
        "same_top_token": (sum(same) / total, error(same)),
    }  # fmt: skip


def check(got: quality.Quality, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        found = getattr(got, name)
        if isinstance(value, tuple):
            assert (found.value, found.error) == pytest.approx(value, rel=1e-9), name
        else:
            assert found == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("chunk", [1 << 22, 7 * 400])
def test_quality_is_what_numpy_says(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the logits are looked at in several pieces."""
    monkeypatch.setattr(quality, "CHUNK", chunk)
    reference = some_model()
    model = some_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    made = documents()
    own, other = quality.by_route(model), quality.by_route(reference)
    got = quality.compare(own, other, made, context=400)
    with torch.no_grad():
        check(got["replies"], by_hand(own, other, made, True))
        check(got["all"], by_hand(own, other, made, False))
    assert 0.001 < got["all"].mean_kld.value < 5
    assert 0 < got["all"].same_top_token.value < 1


def test_a_model_is_its_own_equal() -> None:
    model = some_model()
    found = quality.figures(model, model, documents(), "m")
    assert found["replies"]["perplexity_ratio"] == {"value": 1.0, "error": 0.0}
    assert found["all"]["mean_kld"]["value"] == found["all"]["kld_99"] == 0.0
    assert found["all"]["rms_delta_p"]["value"] == 0.0
    assert found["all"]["same_top_token"] == {"value": 1.0, "error": 0.0}
    assert "by_expert" not in found


def test_known_divergence() -> None:
    """Two tokens: KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2."""
    p = torch.log(torch.tensor([[0.75, 0.25]]))
    found = quality.at_places(torch.zeros(1, 2), p, torch.tensor([1]))
    expected = [math.log(2), math.log(4), 0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0625, 1]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-7)
    impossible = quality.at_places(torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]]),
                                   torch.tensor([0]))  # fmt: skip
    assert impossible[2].item() == pytest.approx(math.log(2))  # 0 ln 0 is 0


def test_bad_figures_are_refused() -> None:
    model, other = some_model(), some_model(vocab_size=500)
    made = documents()
    with pytest.raises(RecipeError, match="m: has 400 tokens, its reference 500"):
        quality.figures(model, other, made, "m")
    with pytest.raises(RecipeError, match="holds a reply"):
        silent = [Document(d.ids, [False] * len(d)) for d in made]
        quality.figures(model, model, silent, "m")
    with torch.no_grad():
        next(model.parameters())[made[2].ids[0]] = math.nan
    with pytest.raises(RecipeError, match=r"at document \d its logits.*no numbers"):
        quality.figures(model, some_model(), made, "m")


def test_experts_are_compared_alone_and_by_route() -> None:
    model, reference = ensemble(), ensemble()
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.delta_b[1].add_(0.5)  # the medical expert alone
    found = quality.figures(model, reference, documents(), "m")
    assert list(found["by_expert"]) == NAMES
    assert found["by_expert"]["general"]["mean_kld"]["value"] == 0.0
    assert found["by_expert"]["medical"]["mean_kld"]["value"] > 0.01
    assert found["all"]["mean_kld"]["value"] > 0  # it speaks at some tokens only
    base = some_model(num_hidden_layers=4)
    against_base = quality.figures(model, base, documents(), "m")
    assert list(against_base["by_expert"]) == NAMES


def test_the_soft_mixture_is_that_of_the_loss() -> None:
    model = ensemble().double()
    made = documents(3)
    forward = quality.of_mixture(model)
    nats, count = 0.0, 0
    with torch.no_grad():
        for document in made:
            ids = torch.tensor(document.ids)
            logs = forward(ids[:-1])
            assert logs.exp().sum(-1).numpy() == pytest.approx(1.0)
            nats -= float(logs[torch.arange(len(ids) - 1), ids[1:]].sum())
            count += len(ids) - 1
        losses = [
            float(model(torch.tensor([d.ids]), labels=torch.tensor([d.ids])).loss) * (len(d) - 1)
            for d in made
        ]
    assert nats / count == pytest.approx(sum(losses) / count, rel=1e-6)


@pytest.fixture(scope="module", params=["early", "full"])
def written(request: Any, tmp_path_factory: Any) -> tuple[Path, Any]:
    model = ensemble(expert_route=request.param)
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    write_model(path, model, some_tokenizer(), Label("Test"))
    return path, model


def test_routing_by_the_core_is_torchs(written: tuple[Path, Any]) -> None:
    path, model = written
    core = evaluate.load_core(path, 400)
    template = evaluate.template_of(core)
    texts = [(d, evaluate.read(core, c, template, 400)) for d, c in LABELLED]
    route = model.config.expert_route
    ensemble = routing.CoreEnsemble(path, 400)
    device = routing.measure(ensemble, texts, route)
    ensemble._session = _core.Session(ensemble._model, context=400, kv_type="f32")
    got = routing.measure(ensemble, texts, route)
    expected = routing.measure(routing.TorchEnsemble(model), texts, route)
    assert got.experts == expected.experts == tuple(NAMES)
    assert [r.spoke for r in got.rows] == [r.spoke for r in expected.rows]
    assert [r.led for r in got.rows] == [r.led for r in expected.rows]
    for ours, theirs in zip(got.rows, expected.rows, strict=True):
        assert ours.nats == pytest.approx(theirs.nats, rel=1e-4)
        assert ours.alone == pytest.approx(theirs.alone, rel=1e-4)
    # and what the core says of whole conversations without looking at experts
    plain = evaluate.evaluate(core, [c for _, c in LABELLED], 400).summary()
    assert device.score().summary() == pytest.approx(plain, rel=1e-6)
    assert len({n for row in got.rows for n, k in zip(NAMES, row.spoke, strict=True) if k}) > 1


class TwoVoices:
    """Expert 0 says token 1 with 3/4, expert 1 with 1/2, of two tokens; 1 speaks after token 1."""

    experts = ("general", "math")
    tables = tuple(np.log(np.array(p, np.float32)) for p in ([0.25, 0.75], [0.5, 0.5]))

    def speak(self, ids: Any) -> tuple[Any, list[int]]:
        spoke = [int(i == 1) for i in ids]
        return np.stack([self.tables[e] for e in spoke]), spoke

    def alone(self, ids: Any, expert: int) -> Any:
        return np.stack([self.tables[expert] for _ in ids])


def test_routing_by_hand() -> None:
    """Replies: 1 1 1 0 (spoken after 0 1 1 1: by general, math, math, math), 1 (after 0)."""
    text = evaluate.Text([0, 1, 1, 1, 0, 0, 1], [False, True, True, True, True, False, True],
                         5, False)  # fmt: skip
    found = routing.measure(TwoVoices(), [("math", text), ("law", text)], "early")
    part = found.domains()["math"]
    assert (part.tokens, part.replies) == (5, 2)
    assert part.route == {"general": 0.4, "math": 0.6}
    assert part.own == 0.5  # it leads the first reply, not the second
    route = -(2 * math.log(0.75) + 3 * math.log(0.5)) / 5
    general, maths = -(4 * math.log(0.75) + math.log(0.25)) / 5, math.log(2)
    assert part.nll.value == pytest.approx(route, rel=1e-6)
    assert part.by_expert["general"].value == pytest.approx(general, rel=1e-6)
    assert part.best == "general"
    assert part.behind_own is not None
    assert part.behind_own.value == pytest.approx(route - maths, rel=1e-6)
    assert part.behind_best.value == pytest.approx(route - general, rel=1e-6)
    law = found.domains()["law"]
    assert (law.own, law.behind_own) == (None, None)
    assert found.mixed().tokens == 10
    as_json = found.as_json()
    assert as_json["mixed"]["route"] == {"general": 0.4, "math": 0.6}
    assert as_json["domains"]["math"]["nll"]["error"] is None  # one conversation says nothing of it


def test_an_ensemble_of_no_numbers_is_refused() -> None:
    class Broken(TwoVoices):
        tables = (np.array([math.nan, 0.0], np.float32),) * 2

    text = evaluate.Text([0, 1], [False, True], 1, False)
    with pytest.raises(RecipeError, match="no numbers"):
        routing.measure(Broken(), [("math", text)], "early")
    with pytest.raises(RecipeError, match="no reply"):
        routing.measure(TwoVoices(), [("math", evaluate.Text([0, 1], [False] * 2, 0, True))], "x")


def test_quantising_costs_what_the_core_says(tmp_path: Path) -> None:
    """Q8_0 is nearer to the model than Q4_0; both run by the core."""
    model = some_model(initializer_range=0.08)
    paths = {k: tmp_path / f"{k}.gguf" for k in ("F32", "Q8_0", "Q4_0")}
    for kind, path in paths.items():
        of = gguf.GGMLQuantizationType[kind]
        write_model(path, model, some_tokenizer(), Label("Test"), of)
    made = documents()
    forwards = {k: quality.of_core(evaluate.load_core(p, 400)) for k, p in paths.items()}
    torchs = quality.compare(forwards["F32"], quality.by_route(model), made, context=400)
    assert torchs["all"].mean_kld.value < 1e-5
    klds = {
        kind: quality.compare(forwards[kind], forwards["F32"], made, context=400)["all"].mean_kld
        for kind in ("Q8_0", "Q4_0")
    }
    assert 0 < klds["Q8_0"].value < klds["Q4_0"].value / 10


def test_domains_by_name() -> None:
    for name, domain in {
        "talk/math2": "math", "gsm8k": "math", "arithmetic": "math", "test-math.jsonl": "math",
        "talk/medical": "medical", "medquad": "medical", "pubmedqa": "medical",
        "medqa-us-test.jsonl.xz": "medical", "talk/smalltalk": "general", "boolq": "general",
        "held-out.jsonl": "general",
    }.items():  # fmt: skip
        assert evaluate.domain_of(name) == domain, name


def test_spread() -> None:
    assert spread.mean([1.0, 0.0, 1.0, 1.0]).value == 0.75
    values = [1.0, 0.0, 1.0, 1.0]
    assert spread.mean(values).error == pytest.approx(np.std(values, ddof=1) / 2)
    assert math.isnan(spread.mean([1.0]).error)
    assert math.isnan(spread.ratio([], []).value)
    assert spread.Estimate(math.nan, math.inf).as_json() == {"value": None, "error": None}


def labelled_file(path: Path, labelled: list[tuple[str, Conversation]]) -> None:
    import json

    lines = [
        {"domain": d, "messages": [{"role": m.role, "content": m.content} for m in c.messages]}
        for d, c in labelled
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_a_file_says_its_domains(tmp_path: Path) -> None:
    labelled_file(tmp_path / "x.jsonl", LABELLED)
    assert [d for d, _ in evaluate.read_labelled(tmp_path / "x.jsonl")] == [d for d, _ in LABELLED]
    (tmp_path / "y.jsonl").write_text('{"source": "talk/math", "messages": []}\n')
    assert evaluate.read_labelled(tmp_path / "y.jsonl")[0][0] == "math"
    (tmp_path / "medical.txt").write_text("U: a\nA: b\n")
    assert evaluate.read_labelled(tmp_path / "medical.txt")[0][0] == "medical"
