"""LoRA adapters of random pairs, in llama.cpp's file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

RANK, ALPHA = 4, 6.0


def pairs(weights: dict[str, Any], seed: int, parts: list[str]) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {}
    for name, value in weights.items():
        if any(f".{part}.weight" in name for part in parts):
            rows, columns = value.shape
            a = rng.standard_normal((RANK, columns)).astype(np.float32) * columns**-0.5
            b = rng.standard_normal((rows, RANK)).astype(np.float32) * 0.3
            found[name] = (a, b)
    return found


def write_adapter(path: Path, arch: str, low: dict[str, Any], **changes: str) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(changes.get("type", "adapter"))
    writer.add_string("adapter.type", changes.get("adapter", "lora"))
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for key in ("name", "base_sha256"):
        if key in changes:
            writer.add_string(
                {"name": "general.name"}.get(key, f"selm.adapter.{key}"), changes[key]
            )
    for name, (a, b) in low.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
