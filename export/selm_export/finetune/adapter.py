"""A LoRA adapter (arXiv 2106.09685) of a model: beside every matrix inside its layers a product of
low rank, which all experts share, as the inference core adds it; and its file, as llama.cpp's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selm_export.compress.structure import parts
from selm_export.errors import RecipeError
from selm_export.modeling.file import LAYER_NAMES, adjacent, architecture_of
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM

RANK, ALPHA = 16, 32.0
BASE_KEY = "selm.adapter.base_sha256"


class Pair(nn.Module):
    """What is added to the product of one matrix: ``scale`` * b a x. It adds nothing yet."""

    def __init__(self, rows: int, columns: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b) * self.scale


class Adapter(nn.Module):
    """All pairs of a model, by the names of the weights in its file (``blk.0.attn_q``). Attached,
    the model's products have them added; `off` leaves them out for a while."""

    def __init__(self, model: SelmForCausalLM, rank: int = RANK, alpha: float = ALPHA) -> None:
        super().__init__()
        self.rank, self.alpha, self.on = rank, alpha, True
        self.pairs = nn.ModuleDict()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for name, module in projections(model):
            key = name.replace(".", "/")  # a module's name has no dots
            if key not in self.pairs:
                rows, columns = size_of(module)
                self.pairs[key] = Pair(rows, columns, rank, alpha / rank)
            self._hooks.append(module.register_forward_hook(self._adds(key)))

    def _adds(self, key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return out + self.pairs[key](given[0]) if self.on else out

        return hook

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def detach_from_model(self) -> None:
        """For good."""
        for hook in self._hooks:
            hook.remove()

    def tensors(self) -> Iterator[tuple[str, Pair]]:
        for key, pair in self.pairs.items():
            assert isinstance(pair, Pair)
            yield key.replace("/", "."), pair


def projections(model: SelmForCausalLM) -> Iterator[tuple[str, Projection]]:
    """Every matrix inside the layers that an adapter may add to, with its name in a file; experts
    of the kind ``full`` have several of one name."""
    for part in parts(model):
        for name, module in part.layer.named_modules():
            if isinstance(module, Projection) and name in LAYER_NAMES:
                yield f"blk.{part.number}.{LAYER_NAMES[name]}", module


def size_of(module: Projection) -> tuple[int, int]:
    """Rows and columns of the whole matrix."""
    if module.factorized:
        return module.lora_b.weight.shape[0], module.lora_a.weight.shape[1]
    return int(module.weight.shape[0]), int(module.weight.shape[1])


@dataclass(frozen=True)
class AdapterLabel:
    """``base_sha256`` of the model's file it was trained on; ``made_from`` says of what."""

    title: str
    base_sha256: str
    made_from: str = ""


def write_adapter(
    path: Path, adapter: Adapter, model: SelmForCausalLM, label: AdapterLabel, *,
    architecture: str | None = None,
) -> None:  # fmt: skip
    """The adapter as a GGUF file in F32, for this model's file of ``architecture`` (as it would be
    written, if not given). The file appears whole or, on an error, not at all."""
    name = architecture or architecture_of(model.config)
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    writing = path.with_name(f".{path.name}.writing")
    try:
        writer = gguf.GGUFWriter(writing, name)
        writer.add_type("adapter")
        writer.add_name(label.title)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.alpha)
        writer.add_string(BASE_KEY, label.base_sha256)
        if label.made_from:
            writer.add_string("selm.adapter.made_from", label.made_from)
        for tensor, pair in adapter.tensors():
            part = tensor.rpartition(".")[2]
            a, b = (np.ascontiguousarray(x.detach().cpu().float()) for x in (pair.a, pair.b))
            if name == "llama" and part in heads:
                b = adjacent(b, heads[part])  # rows as that file has its queries and keys
            writer.add_tensor(f"{tensor}.weight.lora_a", a)
            writer.add_tensor(f"{tensor}.weight.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with writing.open("rb") as file:
            os.fsync(file.fileno())
        writing.replace(path)
    except OSError as problem:
        with suppress(OSError):
            writing.unlink()
        raise RecipeError(
            path, f"could not be written ({problem})", "Free space, or name another folder"
        ) from problem
