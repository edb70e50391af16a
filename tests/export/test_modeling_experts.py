"""Experts over a shared trunk, against models that have only the one expert, and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import numpy as np
import numpy.typing as npt
import torch
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.experts import mixture_loss, speakers
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM, register
from transformers import AutoModelForCausalLM

Doubles = npt.NDArray[np.float64]

NAMES = ["general", "medical", "math"]
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "window": 5, "features": 16,
    "initializer_range": 0.3, "attention_kinds": ["performer", "softmax", "window", "performer"],
}  # fmt: skip
EXPERTS: dict[str, Any] = {"expert_names": NAMES, "expert_rank": 3, "trunk_layers": 2}
STICKY = 8.0  # the scores of these models differ by tens
ROUTES: list[dict[str, Any]] = [
    {"expert_kind": "delta", "expert_route": "early"},
    {"expert_kind": "delta", "expert_route": "full"},
    {"expert_kind": "full", "expert_route": "early", "expert_stickiness": STICKY},
    {"expert_kind": "full", "expert_route": "full"},
    {"expert_kind": "delta", "expert_route": "full", "expert_stickiness": STICKY},
]


def ensemble(**changes: Any) -> SelmForCausalLM:
    torch.manual_seed(8)
    model = SelmForCausalLM(SelmConfig(**{**SHAPE, **EXPERTS, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "delta_b" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.train(False)
    return model


def alone(model: SelmForCausalLM, expert: int) -> SelmForCausalLM:
    """A model without experts that has this one's weights, deltas added in."""
    plain = SelmForCausalLM(SelmConfig(**SHAPE))
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("model.experts."):
            _, _, owner, layer, rest = name.split(".", 4)
            if int(owner) == expert:
                state[f"model.layers.{2 + int(layer)}.{rest}"] = value
        elif "delta" not in name and not name.startswith("model.scores."):
            state[name] = value
    for name, module in model.named_modules():
        if isinstance(module, Projection) and module.has_deltas and "experts" not in name:
            state[f"{name}.weight"] = (
                module.weight + module.delta_b[expert] @ module.delta_a[expert]
            )
    plain.load_state_dict(state, strict=True)
    plain.train(False)
    return plain


def tokens(count: int) -> torch.Tensor:
    return torch.randint(0, 61, (2, count), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", ["delta", "full"])
def test_an_expert_is_the_model_that_has_its_weights(kind: str) -> None:
    model, ids = ensemble(expert_kind=kind), tokens(20)
    with torch.no_grad():
        logits = [model(ids, expert=name).logits for name in NAMES]
        for expert, got in enumerate(logits):
            torch.testing.assert_close(got, alone(model, expert)(ids).logits, atol=2e-4, rtol=1e-4)
    assert float((logits[0] - logits[1]).abs().max()) > 0.1


def score(model: SelmForCausalLM, expert: int, x: torch.Tensor) -> Doubles:
    """The scalar head [..., width] -> [...], in numpy and float64."""
    weights = {
        name: value.double().numpy()
        for name, value in model.model.scores[expert].state_dict().items()
    }
    y = x.double().numpy()
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * weights["norm.weight"] + weights["norm.bias"]
    for i in range(3):
        y = y @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        y = np.maximum(y, 0) if i < 2 else y
    return y[..., 0]


def hidden(model: SelmForCausalLM, expert: int, route: str, ids: torch.Tensor) -> torch.Tensor:
    """What the head of the expert looks at, from the model that has only this expert."""
    single, seen = alone(model, expert), []
    module = single.model.layers[1] if route == "early" else single.model.norm
    module.register_forward_hook(lambda _m, _i, y: seen.append(y[0] if route == "early" else y))
    single(ids)
    return seen[0]


@pytest.mark.parametrize("stickiness", [0.0, STICKY])
@pytest.mark.parametrize("route", ["early", "full"])
@pytest.mark.parametrize("kind", ["delta", "full"])
def test_the_highest_score_speaks(kind: str, route: str, stickiness: float) -> None:
    model = ensemble(expert_kind=kind, expert_route=route, expert_stickiness=stickiness)
    ids = tokens(20)
    with torch.no_grad():
        out = model(ids, output_experts=True)
        scores = np.stack(
            [score(model, e, hidden(model, e, route, ids)) for e in range(len(NAMES))], axis=-1
        )
        logits = [model(ids, expert=name).logits for name in NAMES]
    np.testing.assert_allclose(out.scores.numpy(), scores, rtol=2e-4, atol=2e-4)
    expected = np.zeros((2, 20), int)
    for row, t in np.ndindex(2, 20):
        now = scores[row, t].copy()
        if t:
            now[expected[row, t - 1]] += stickiness
        expected[row, t] = now.argmax()
        speaker = logits[expected[row, t]]
        torch.testing.assert_close(out.logits[row, t], speaker[row, t], atol=2e-4, rtol=1e-4)
    assert np.array_equal(out.speakers.numpy(), expected)
    assert len(np.unique(expected)) > 1  # else nothing was shown
    assert bool((expected != scores.argmax(-1)).any()) == (stickiness > 0)


def test_who_spoke_last_is_favoured() -> None:
    nothing = [0.0, 0.0, 0.0]
    scores = torch.tensor([[[1.0, 0, 0], [0, 0.4, 0], [0, 0, 0.6], [0.4, 0, 0], nothing]])
    valid, nobody = torch.ones(1, 5, dtype=torch.bool), torch.tensor([-1])

    def say(stickiness: float, valid: torch.Tensor, last: torch.Tensor) -> tuple[list[int], int]:
        spoke, final = speakers(scores, valid, last, stickiness)
        return spoke[0].tolist(), int(final)

    assert say(0.0, valid, nobody) == ([0, 1, 2, 0, 0], 0)
    assert say(0.5, valid, nobody) == ([0, 0, 2, 2, 2], 2)
    assert say(1.5, valid, torch.tensor([1])) == ([1, 1, 1, 1, 1], 1)
    padded = torch.tensor([[False, False, True, True, True]])
    spoke, final = say(0.5, padded, nobody)
    assert (spoke[2:], final) == ([2, 2, 2], 2)
    assert say(0.5, torch.zeros_like(valid), torch.tensor([1]))[1] == 1


@pytest.mark.parametrize(
    ("changes", "expert"), [*((changes, None) for changes in ROUTES), (ROUTES[0], "math")]
)
def test_a_cache_changes_nothing(changes: dict[str, Any], expert: str | None) -> None:
    model, ids = ensemble(**changes), tokens(22)
    with torch.no_grad():
        whole = model(ids, expert=expert)
        cache, parts = None, []
        for first, last in ((0, 11), (11, 12), (12, 17), *((t, t + 1) for t in range(17, 22))):
            out = model(ids[:, first:last], past_key_values=cache, expert=expert)
            cache = out.past_key_values
            parts.append(out)
    logits = torch.cat([p.logits for p in parts], 1)
    torch.testing.assert_close(logits, whole.logits, atol=2e-4, rtol=1e-4)
    if expert is None:
        assert torch.equal(torch.cat([p.speakers for p in parts], 1), whole.speakers)
        assert len(whole.speakers.unique()) > 1


@pytest.mark.parametrize(
    ("changes", "expert", "beams"),
    [*((changes, None, 1) for changes in ROUTES), (ROUTES[4], None, 2), (ROUTES[0], "math", 1)],
)
def test_generate_with_a_cache_is_generate_without(
    changes: dict[str, Any], expert: str | None, beams: int
) -> None:
    model, ids = ensemble(**changes), tokens(9)
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (
        model.generate(ids, use_cache=cached, expert=expert, num_beams=beams, **options)
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_padding_on_the_left_changes_nothing() -> None:
    model, ids = ensemble(expert_stickiness=STICKY), tokens(20)[:1]
    padded = torch.cat((torch.full((1, 7), 60), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 7), torch.ones(1, 20)), dim=1).long()
    with torch.no_grad():
        got, expected = model(padded, attention_mask=mask), model(ids)
    assert torch.equal(got.speakers[:, 7:], expected.speakers)
    torch.testing.assert_close(got.logits[:, 7:], expected.logits, atol=2e-4, rtol=1e-4)


def test_saved_and_loaded_by_the_auto_class(tmp_path: Path) -> None:
    register()
    model, ids = ensemble(expert_route="full", expert_stickiness=STICKY), tokens(12)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded.train(False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_an_expert_that_is_not_there_cannot_be_asked_for() -> None:
    ids = tokens(3)
    with pytest.raises(ValueError, match="no expert 'law'; there are general, medical, math"):
        ensemble()(ids, expert="law")
    with pytest.raises(ValueError, match="no expert 'math'; there are none"):
        SelmForCausalLM(SelmConfig(**SHAPE))(ids, expert="math")


def test_an_expert_that_missed_tokens_cannot_go_on() -> None:
    model, ids = ensemble(), tokens(9)
    with torch.no_grad():
        cache = model(ids, expert="math").past_key_values
        with pytest.raises(ValueError, match="general has not seen all tokens"):
            model(ids[:, :1], past_key_values=cache, expert="general")


def test_the_mixture_loss_pulls_scores_to_the_responsibilities() -> None:
    """dL/ds = w - r, with r each expert's share in explaining the token (arXiv 2403.03870)."""
    torch.manual_seed(0)
    scores = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    logs = torch.randn(7, 3, dtype=torch.float64) - 2
    loss = mixture_loss(scores, logs)
    weights = scores.softmax(-1)
    joint = weights * logs.exp()
    torch.testing.assert_close(loss, -joint.sum(-1).log().mean())
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, (weights - joint / joint.sum(-1, keepdim=True)) / 7)
    sure = mixture_loss(scores, logs, confident=0.1) - loss
    torch.testing.assert_close(sure, 0.1 * -(weights * weights.log()).sum(-1).mean())
    mean = weights.mean(0)
    even = mixture_loss(scores, logs, balanced=0.1) - loss
    torch.testing.assert_close(even, 0.1 * (mean * mean.log()).sum())


@pytest.mark.parametrize("route", ["early", "full"])
def test_a_training_step_moves_heads_and_experts(route: str) -> None:
    """The loss of `labels` is the mixture's, here in float64; without the tokens left out."""
    model, ids = ensemble(expert_route=route), tokens(20)
    labels = ids.clone()
    labels[0, :6] = -100
    out = model(ids, labels=labels, output_experts=True)
    scores, logits = (x.detach().double().numpy() for x in (out.scores, out.expert_logits))
    losses = []
    for row, t in np.ndindex(2, 19):
        if labels[row, t + 1] < 0:
            continue
        weights = np.exp(scores[row, t]) / np.exp(scores[row, t]).sum()
        told = np.exp(logits[:, row, t])
        told /= told.sum(-1, keepdims=True)
        losses.append(-np.log(weights @ told[:, labels[row, t + 1]]))
    assert len(losses) == 38 - 5
    assert out.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    before = out.loss.item()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert model(ids, labels=labels).loss.item() < before


def test_the_loss_of_one_expert_is_its_own() -> None:
    model, ids = ensemble(), tokens(20)
    loss = model(ids, labels=ids, expert="medical").loss
    torch.testing.assert_close(loss, alone(model, 1)(ids, labels=ids).loss, atol=1e-4, rtol=1e-4)
    loss.backward()
    delta = model.model.layers[3].mlp.up_proj.delta_b.grad
    assert [bool(of.any()) for of in delta] == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trunk_layers": 4}, "trunk of 4 layers of 4"),
        ({"expert_kind": "adapter"}, "delta or full"),
        ({"expert_route": "late"}, "early or full"),
        ({"exit_layers": [3]}, "within the trunk"),
        ({"expert_rank": 0}, "expert_rank must be at least 1"),
        ({"expert_stickiness": -0.1}, "expert_stickiness at least 0"),
        ({"expert_stickiness": float("nan")}, "expert_stickiness at least 0"),
        ({"expert_names": ["math", "math"]}, "names of their own"),
        ({"expert_names": ["math", "auto"]}, "none is auto"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SelmConfig(**{**SHAPE, **EXPERTS, **changes})
