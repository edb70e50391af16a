"""A forward pass in numpy float64: the oracle for logits where no torch is needed.

Reads a GGUF file through the `gguf` package, so nothing of ours is between file and logits.
Sources: Llama 2 (arXiv:2307.09288), RoFormer (2104.09864), YaRN (2309.00071), the Qwen2 and
Qwen3 reports; layouts from ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Reference:
    """One model and one growing sequence."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.keys: dict[str, Any] = {k: f.contents() for k, f in reader.fields.items()}
        self.arch: str = self.keys["general.architecture"]
        self.weights: dict[str, Array] = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
            for t in reader.tensors
        }
        self.n_layer: int = self.key("block_count")
        self.n_head: int = self.key("attention.head_count")
        self.eps: float = self.key("attention.layer_norm_rms_epsilon")
        embedding = self.weights["token_embd.weight"]
        self.d_head: int = self.key("attention.key_length", embedding.shape[1] // self.n_head)
        self.head = self.weights.get("output.weight", embedding)  # absent: tied
        self.frequencies, self.magnitude = self.rope_frequencies()
        self.reset()

    def key(self, name: str, default: Any = None) -> Any:
        return self.keys.get(f"{self.arch}.{name}", default)

    def n_head_kv(self, layer: int) -> int:
        count = self.key("attention.head_count_kv", self.n_head)
        return int(count[layer]) if isinstance(count, list) else int(count)

    def reset(self) -> None:
        self.cache_k: list[list[Array]] = [[] for _ in range(self.n_layer)]
        self.cache_v: list[list[Array]] = [[] for _ in range(self.n_layer)]

    def rope_frequencies(self) -> tuple[Array, float]:
        """Angle per position of each pair [n_rot / 2], and what the pair's length is scaled by."""
        n_rot: int = self.key("rope.dimension_count", self.d_head)
        base: float = self.key("rope.freq_base", 10000.0)
        plain = base ** (-np.arange(0, n_rot, 2) / n_rot)
        kind, factor = self.key("rope.scaling.type"), self.key("rope.scaling.factor", 1.0)
        if "rope_freqs.weight" in self.weights:
            plain = plain / self.weights["rope_freqs.weight"]
        if kind == "linear":
            return plain / factor, 1.0
        if kind != "yarn":
            return plain, 1.0
        original = self.key("rope.scaling.original_context_length")

        def dimension(turns: float) -> float:  # the pair that makes so many turns in `original`
            return n_rot * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(dimension(32)), 0)
        high = min(math.ceil(dimension(1)), n_rot - 1)
        ramp = np.clip((np.arange(n_rot // 2) - low) / max(high - low, 0.001), 0, 1)
        attention = self.key("rope.scaling.attn_factor", 1.0) * (1 + 0.1 * math.log(factor))
        return plain / factor * ramp + plain * (1 - ramp), attention

    def rotate(self, x: Array, position: int) -> Array:
        """x [heads, d_head]: llama turns adjacent pairs, the others pairs half a head apart."""
        half = len(self.frequencies)
        angle = position * self.frequencies
        cos, sin = np.cos(angle) * self.magnitude, np.sin(angle) * self.magnitude
        first, second = (
            (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
            if self.arch == "llama"
            else (slice(0, half), slice(half, 2 * half))
        )
        out = x.copy()
        out[:, first] = x[:, first] * cos - x[:, second] * sin
        out[:, second] = x[:, first] * sin + x[:, second] * cos
        return out

    def norm(self, x: Array, name: str) -> Array:
        weight = self.weights[f"{name}.weight"]
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight

    def linear(self, x: Array, name: str) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights.get(f"{name}.bias", 0.0)

    def attention(self, x: Array, layer: int) -> Array:
        p = f"blk.{layer}."
        n_kv = self.n_head_kv(layer)
        q = self.linear(x, f"{p}attn_q").reshape(self.n_head, self.d_head)
        k = self.linear(x, f"{p}attn_k").reshape(n_kv, self.d_head)
        v = self.linear(x, f"{p}attn_v").reshape(n_kv, -1)
        if f"{p}attn_q_norm.weight" in self.weights:
            q, k = self.norm(q, f"{p}attn_q_norm"), self.norm(k, f"{p}attn_k_norm")
        position = len(self.cache_k[layer])
        q, k = self.rotate(q, position), self.rotate(k, position)
        self.cache_k[layer].append(k)
        self.cache_v[layer].append(v)
        keys, values = np.stack(self.cache_k[layer]), np.stack(self.cache_v[layer])
        group = np.arange(self.n_head) // (self.n_head // n_kv)  # kv head of each query head
        scores = np.einsum("hd,phd->hp", q, keys[:, group]) / math.sqrt(self.d_head)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mixed = np.einsum("hp,phd->hd", weights, values[:, group])
        return self.linear(mixed.ravel(), f"{p}attn_output")

    def feed_forward(self, x: Array, layer: int) -> Array:
        p = f"blk.{layer}."
        gate, up = self.linear(x, f"{p}ffn_gate"), self.linear(x, f"{p}ffn_up")
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"{p}ffn_down")

    def hidden(self, token: int) -> Array:
        """Appends one token; its state after the output norm [n_embd]."""
        x = self.weights["token_embd.weight"][token]
        for layer in range(self.n_layer):
            x = x + self.attention(self.norm(x, f"blk.{layer}.attn_norm"), layer)
            x = x + self.feed_forward(self.norm(x, f"blk.{layer}.ffn_norm"), layer)
        return self.norm(x, "output_norm")

    def eval(self, tokens: Sequence[int]) -> Array:
        """Appends tokens; logits [n_tokens, n_vocab]."""
        return np.stack([self.head @ self.hidden(t) for t in tokens])

    def greedy(self, prompt: Sequence[int], n: int, end: Sequence[int] = ()) -> list[int]:
        """The n most likely next tokens, one after the other, or fewer if an `end` comes."""
        self.reset()
        logits, out = self.eval(prompt)[-1], []
        while len(out) < n:
            token = int(logits.argmax())
            if token in end:
                break
            out.append(token)
            logits = self.eval([token])[-1]
        return out
