"""The SELM model in torch against numpy in float64, `transformers` and published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from selm_export.modeling.attention import Rule, Tokens, attend, empty_state
from selm_export.modeling.configuration import FEATURE_MAPS, SelmConfig
from selm_export.modeling.features import FeatureMap, orthogonal_features
from selm_export.modeling.layers import CHUNK
from selm_export.modeling.model import SelmForCausalLM, register
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

Doubles = npt.NDArray[np.float64]
SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "window": 5, "features": 16, "initializer_range": 0.3,
}  # fmt: skip
MIXED = ["performer", "softmax", "window"]


def features_of(feature_map: str) -> int:
    return 8 if feature_map == "elu1" else 16


def small(**changes: Any) -> SelmForCausalLM:
    torch.manual_seed(3)
    model = SelmForCausalLM(SelmConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():  # nothing is at its first, neutral value
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "projection" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randint(0, 61, (batch, count), generator=torch.Generator().manual_seed(5))


# ---- Attention, term by term ------------------------------------------------------------------


def phi(kind: str, x: Doubles, projection: Doubles | None) -> Doubles:
    """As the papers write it, without any scale taken out."""
    if kind == "elu1":
        return np.where(x > 0, x + 1, np.exp(x))
    assert projection is not None
    y = projection @ x
    if kind == "favor+":
        return np.exp(y - x @ x / 2) / np.sqrt(len(y))
    if kind == "relu":
        return np.maximum(y, 0)
    e = np.exp(np.concatenate((y, -y)))
    return e / e.sum()


def naive(rule: Rule, q: Doubles, k: Doubles, v: Doubles) -> Doubles:
    """One row: q [kv_heads, group, tokens, size], k and v [kv_heads, tokens, size]."""
    config, kind, size = rule.config, rule.kind, rule.config.head_dim
    assert rule.gain is not None
    gain, projection = rule.gain.numpy(), getattr(rule.feature_map, "projection", None)

    def far_features(x: Doubles, head: int) -> Doubles:
        x = x * size**-0.25
        x = x * min(1.0, config.clamp / np.linalg.norm(x))
        w = None if projection is None else projection[head].detach().numpy().astype(np.float64)
        return phi(config.feature_map, x, w)

    out = np.zeros(q.shape)
    for head, group, t in np.ndindex(*q.shape[:3]):
        total, weighted = 0.0, np.zeros(size)
        for s in range(t + 1):
            if kind == "softmax" or t - s < config.window or s < config.sinks:
                weight = np.exp(q[head, group, t] @ k[head, s] / np.sqrt(size))
            elif kind == "performer":
                weight = np.exp(gain[head, group]) * (
                    far_features(q[head, group, t], head) @ far_features(k[head, s], head)
                )
            else:
                continue
            total += weight
            weighted += weight * v[head, s]
        out[head, group, t] = weighted / total
    return out


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize(
    ("kind", "feature_map"),
    [("softmax", "favor+"), ("window", "favor+"), *(("performer", m) for m in FEATURE_MAPS)],
)
def test_recurrent_chunked_and_quadratic_are_the_written_sums(
    kind: str, feature_map: str, sinks: int
) -> None:
    config = SelmConfig(
        **{**SMALL, "feature_map": feature_map, "features": features_of(feature_map)},
        sinks=sinks, attention_kinds=[kind] * 3,
    )  # fmt: skip
    torch.manual_seed(1)
    module = FeatureMap(config, seed=4).double()
    if isinstance(getattr(module, "projection", None), torch.nn.Parameter):
        module.projection.data.add_(0.5 * torch.randn_like(module.projection))
    gain = torch.randn(2, 2, dtype=torch.float64)
    count = 23
    q = 2 * torch.randn(1, 2, 2, count, 8, dtype=torch.float64)
    k, v = (2 * torch.randn(1, 2, count, 8, dtype=torch.float64) for _ in range(2))
    rule = Rule(config, kind, module, gain)
    expected = naive(rule, q[0].numpy(), k[0].numpy(), v[0].numpy())
    valid = torch.ones(1, count, dtype=torch.bool)
    for size in (1, 2, 7, count):
        state, parts = empty_state(config, kind, k), []
        for first in range(0, count, size):
            out, state = attend(rule, state, Tokens(q, k, v, valid).part(first, size))
            parts.append(out)
        got = torch.cat(parts, dim=3)[0].detach().numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)
        if kind != "softmax":
            assert len(state.slots) == sinks + config.window - 1


def test_keys_of_any_size_neither_overflow_nor_vanish() -> None:
    """The clamp off, keys of length 30: exp of their features is beyond float32."""
    config = SelmConfig(**SMALL, attention_kinds=["performer"] * 3, clamp=1e6)
    rule = Rule(config, "performer", FeatureMap(config), torch.zeros(2, 2))
    q = torch.randn(1, 2, 2, 40, 8)
    k, v = 30 * torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    valid = torch.ones(1, 40, dtype=torch.bool)
    out, state = attend(rule, empty_state(config, "performer", k), Tokens(q, k, v, valid))
    assert bool(out.isfinite().all())
    assert state.sums is not None and bool(state.sums.isfinite().all())
    assert float(out.abs().max()) <= float(v.abs().max()) * (1 + 1e-5)  # a mean of values


def test_orthogonal_features_estimate_the_kernel_as_published() -> None:
    """arXiv 2009.14794, lemma 2: relative variance (exp(|q + k|^2) - 1) / m for independent
    features, and less for orthogonal ones; unbiased."""
    size, features, length = 64, 256, 0.5
    generator = torch.Generator().manual_seed(0)
    config = SelmConfig(
        hidden_size=size, num_attention_heads=1, num_key_value_heads=1, features=features
    )
    q = torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0)
    other = torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0)
    other = torch.nn.functional.normalize(other - (other @ q) * q, dim=0)
    k = 0.5 * q + 0.75**0.5 * other  # cosine 0.5
    q, k = length * q, length * k
    estimates = []
    for seed in range(400):
        both = FeatureMap(config, seed)(torch.stack((q, k))[None])[0]
        estimates.append(float((both[0] + both[1]).exp().mean() / (q @ k).exp()))
    error = np.array(estimates) - 1
    independent = np.sqrt((np.exp(float((q + k).square().sum())) - 1) / features)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
    assert 0.75 * independent < error.std() < independent


def test_blocks_of_features_are_orthogonal() -> None:
    w = orthogonal_features(24, 16, torch.Generator().manual_seed(2))
    unit = w / w.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(unit[:16] @ unit[:16].T, torch.eye(16), atol=1e-5, rtol=0)


# ---- The model --------------------------------------------------------------------------------


def test_softmax_layers_alone_are_llama() -> None:
    config = LlamaConfig(
        **{k: SMALL[k] for k in SMALL if k not in ("window", "features")}, rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = LlamaForCausalLM(config).eval()
    model = SelmForCausalLM(SelmConfig(**SMALL)).eval()
    model.load_state_dict(llama.state_dict(), strict=True)
    ids = tokens(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, llama(ids).logits, atol=2e-5, rtol=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "performer": {"attention_kinds": ["performer"] * 3},
    "mixed with sinks": {"attention_kinds": MIXED, "sinks": 2},
    "gates and norms": {"attention_kinds": MIXED, "head_gate": True, "qk_norm": True},
    "hedgehog": {"attention_kinds": MIXED, "feature_map": "hedgehog"},
    "factorized": {
        "attention_kinds": MIXED,
        "ranks": {"mlp.up_proj": 8, "self_attn.q_proj": 6, "mlp.down_proj": 4},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_changes_nothing(variant: str) -> None:
    model, ids = small(**VARIANTS[variant]), tokens(2, 30)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :11], use_cache=True)
        cache, parts = first.past_key_values, [first.logits]
        for t in range(11, 30):
            parts.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generate_with_a_cache_is_generate_without(variant: str) -> None:
    model, ids = small(**VARIANTS[variant]), tokens(2, 9)
    options: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(ids, use_cache=True, **options)
    without = model.generate(ids, use_cache=False, **options)
    assert torch.equal(with_cache, without)
    beams = model.generate(ids, use_cache=True, num_beams=3, **options)
    assert torch.equal(beams, model.generate(ids, use_cache=False, num_beams=3, **options))


def test_padding_on_the_left_changes_nothing() -> None:
    model, ids = small(attention_kinds=MIXED, sinks=0), tokens(1, 20)
    padded = torch.cat((torch.full((1, 7), 60), ids), dim=1)
    mask = torch.cat((torch.zeros(1, 7), torch.ones(1, 20)), dim=1).long()
    with torch.no_grad():
        got = model(padded, attention_mask=mask).logits[:, 7:]
        torch.testing.assert_close(got, model(ids).logits, atol=2e-4, rtol=1e-4)


def test_saved_and_loaded_by_the_auto_class(tmp_path: Path) -> None:
    register()
    model, ids = small(attention_kinds=MIXED, head_gate=True, exit_layers=[1, 2]), tokens(1, 12)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, SelmForCausalLM)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_exits_are_the_shared_head_on_their_own_norm() -> None:
    model, ids = small(exit_layers=[1, 2]), tokens(1, 10)
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0]))
    with torch.no_grad():
        out = model(ids, output_exits=True)
        assert out.exit_logits.shape == (2, 1, 10, 61)
        for i in (0, 1):
            x = seen[i]
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            x = x * model.model.exits[str(i + 1)].weight
            torch.testing.assert_close(
                out.exit_logits[i], x @ model.model.embed_tokens.weight.T, atol=1e-4, rtol=1e-4
            )


def test_state_does_not_grow_beyond_the_window() -> None:
    model = small(attention_kinds=["performer", "window", "performer"], max_position_embeddings=900)
    sizes = []
    with torch.no_grad():
        for count in (CHUNK, 3 * CHUNK + 5):
            out = model(tokens(1, count), use_cache=True, logits_to_keep=1)
            sizes.append(out.past_key_values.bytes())
    assert sizes[0] == sizes[1]


def test_far_memory_reaches_the_loss() -> None:
    """The token to be told lies beyond what three windows of 5 can see: only features carry it."""
    ids = tokens(1, 40)
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 61
    for kind, sees in (("window", False), ("performer", True)):
        model = small(attention_kinds=[kind] * 3)
        with torch.no_grad():
            moved = (model(ids).logits - model(changed).logits)[0, -1].abs().max()
        assert bool(moved > 1e-6) == sees
    model = small(attention_kinds=["performer"] * 3)
    model(ids, labels=ids).loss.backward()
    assert float(model.model.layers[0].self_attn.far_gain.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attention_kinds": ["softmax"]}, "names 1 layers of 3"),
        ({"attention_kinds": ["linear"] * 3}, "none of softmax, window, performer"),
        ({"feature_map": "cosine"}, "none of favor"),
        ({"feature_map": "elu1", "features": 16}, "as many features as a head"),
        ({"exit_layers": [3]}, "after layer 3 of 3"),
        ({"num_key_value_heads": 3}, "do not share"),
        ({"ranks": {"layers.3.mlp.up_proj": 4}}, "layers.3.mlp.up_proj, which is no projection"),
        ({"ranks": {"mlp.up": 4}}, "mlp.up, which is no projection"),
        ({"ranks": {"mlp.up_proj": 0}}, "rank 0; the least is 1"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SelmConfig(**{**SMALL, **changes})
