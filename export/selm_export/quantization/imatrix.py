"""The importance of a matrix's columns: the mean square of what each is multiplied with.

To first order, rounding errors D of a matrix change its output by D x, so their expected square is
sum_ij D_ij^2 E[x_j^2]: what `quantize` lessens. (The idea is llama.cpp's importance matrix.)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.modeling.experts import ScoreHead
from selm_export.modeling.file import tensor_name
from selm_export.modeling.layers import Projection
from selm_export.modeling.model import SelmForCausalLM

Importance = dict[str, npt.NDArray[np.float32]]  # by the tensor's name in the file: [columns]


class _Squares:
    """Sums over tokens, by tensor."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        found = rows.square().sum(0).cpu()
        self.sums[name] = self.sums[name] + found if name in self.sums else found
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def means(self) -> Importance:
        return {
            name: (total / self.counts[name]).float().numpy() for name, total in self.sums.items()
        }


Look = Callable[[nn.Module, Any], None]  # at a module and what it is given


def _at_projection(module: Projection, whole: str, squares: _Squares) -> Look:
    """``whole`` is the name of the matrix, were it no product."""

    def look(_: nn.Module, arguments: tuple[Tensor, int | None]) -> None:
        x, expert = arguments
        if module.factorized:
            squares.add(f"{whole}.lora_a", x)
            squares.add(f"{whole}.lora_b", module.lora_a(x))
        else:
            squares.add(whole, x)
        if module.has_deltas and expert is not None:
            squares.add(f"expert.{expert}.{whole}.lora_a", x)
            inner = nn.functional.linear(x, module.delta_a[expert])
            squares.add(f"expert.{expert}.{whole}.lora_b", inner)

    return look


def _at_matrix(name: str, squares: _Squares) -> Look:
    return lambda _, arguments: squares.add(name, arguments[0])


def _places(model: SelmForCausalLM, squares: _Squares) -> Iterator[tuple[nn.Module, Look]]:
    tied = model.config.tie_word_embeddings
    yield model.lm_head, _at_matrix("token_embd.weight" if tied else "output.weight", squares)
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            whole = tensor_name(f"{name}.weight", model.config.trunk_layers)
            yield module, _at_projection(module, whole, squares)
        elif isinstance(module, ScoreHead):
            for i, layer in enumerate(module.layers):
                whole = tensor_name(f"{name}.layers.{i}.weight")
                yield layer, _at_matrix(whole, squares)


@torch.no_grad()
def measure(model: SelmForCausalLM, documents: Iterable[Document]) -> Importance:
    """Of every matrix that the model multiplies with, over all tokens of the documents (each cut
    at the model's context). The columns of an embedding that is only looked up count alike."""
    squares = _Squares()
    with ExitStack() as hooks:
        for module, look in _places(model, squares):
            hooks.callback(module.register_forward_pre_hook(look).remove)
        for document in documents:
            ids = document.ids[: model.config.max_position_embeddings]
            if ids:
                model(torch.tensor([ids], device=model.device), use_cache=False)
    found = squares.means()
    if found and not model.config.tie_word_embeddings:
        found["token_embd.weight"] = np.ones(model.config.hidden_size, np.float32)
    return found


def save(path: Path, importance: Importance) -> None:
    """As safetensors; the file appears once it is whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".writing")
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(importance, temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Importance:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as problem:
        raise RecipeError(
            path, f"no importance matrix that can be read ({problem})",
            "Leave it out, and one is measured",
        ) from problem  # fmt: skip
