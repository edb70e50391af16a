"""Experts over a shared trunk, against models that have only the one expert."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import torch
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.experts import mixture_loss
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM

NAMES = ["general", "medical", "math"]
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "window": 5, "features": 16,
    "initializer_range": 0.3, "attention_kinds": ["performer", "softmax", "window", "performer"],
}  # fmt: skip
EXPERTS: dict[str, Any] = {"expert_names": NAMES, "expert_rank": 3, "trunk_layers": 2}


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
            state[f"{name}.weight"] = module.weight + module.delta_b[expert] @ module.delta_a[expert]
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


@pytest.mark.parametrize("route", ["early", "full"])
@pytest.mark.parametrize("kind", ["delta", "full"])
def test_the_highest_score_speaks(kind: str, route: str) -> None:
    model, ids = ensemble(expert_kind=kind, expert_route=route), tokens(20)
    with torch.no_grad():
        out = model(ids, output_experts=True)
        for expert, name in enumerate(NAMES):
            seen: list[torch.Tensor] = []
            hook = model.model.norm.register_forward_hook(lambda _m, _i, y: seen.append(y))  # noqa: B023
            torch.testing.assert_close(out.expert_logits[expert], model(ids, expert=name).logits)
            hook.remove()
            head = model.model.scores[expert]
            if route == "full":
                torch.testing.assert_close(out.scores[..., expert : expert + 1], head(seen[0]))
            else:
                stream: list[torch.Tensor] = []
                hook = model.model.layers[1].register_forward_hook(
                    lambda _m, _i, y: stream.append(y[0])  # noqa: B023
                )
                model(ids)
                hook.remove()
                torch.testing.assert_close(out.scores[..., expert : expert + 1], head(stream[0]))
    assert torch.equal(out.speakers, out.scores.argmax(-1))
    assert len(out.speakers.unique()) > 1  # else nothing was shown
    for row in range(2):
        for t in range(20):
            speaker = int(out.speakers[row, t])
            assert torch.equal(out.logits[row, t], out.expert_logits[speaker, row, t])


@pytest.mark.parametrize("kind", ["delta", "full"])
@pytest.mark.parametrize("expert", [None, "math"])
def test_generate_with_a_cache_is_generate_without(kind: str, expert: str | None) -> None:
    model, ids = ensemble(expert_kind=kind), tokens(9)
    options: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(ids, use_cache=True, expert=expert, **options)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, expert=expert, **options))


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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trunk_layers": 4}, "trunk of 4 layers of 4"),
        ({"expert_kind": "adapter"}, "delta or full"),
        ({"exit_layers": [3]}, "within the trunk"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SelmConfig(**{**SHAPE, **EXPERTS, **changes})
