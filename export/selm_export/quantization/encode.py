"""Tensors of a model as a file's writer asks for them, and as the file gives them back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from selm_export.errors import RecipeError
from selm_export.gguf_file import Encode
from selm_export.modeling.file import _tensors
from selm_export.modeling.model import SelmForCausalLM
from selm_export.quantization.imatrix import Importance
from selm_export.quantization.mixes import Types
from selm_export.quantization.quantize import Floats, Type, dequantize, quantize, rounds


class Encoder:
    """Called by writers of files with a tensor's name and values; gives its data and type.

    ``importance`` None: rounded to nearest, or searched for the least plain error. Otherwise each
    matrix whose type's search weighs columns must have one. ``where`` is named in errors.
    """

    def __init__(self, where: Path, types: Types, importance: Importance | None = None) -> None:
        self.where, self.types, self.importance = where, types, importance

    def __call__(self, name: str, value: Floats) -> tuple[npt.NDArray[Any], Type]:
        kind = self.types.get(name, Type.F32)
        if kind == Type.F32:
            self._finite(name, value)
            return value, kind
        try:
            return quantize(value, kind, self._importance_of(name, kind)), kind
        except ValueError as problem:
            raise RecipeError(
                self.where, f"the tensor {name} cannot become {kind.name}: {problem}",
                "Train or convert it again, or choose another type",
            ) from problem  # fmt: skip

    def _finite(self, name: str, value: Floats) -> None:
        if not np.isfinite(value).all():
            raise RecipeError(
                self.where, f"the tensor {name} holds what is no finite number",
                "Train or convert it again",
            )  # fmt: skip

    def _importance_of(self, name: str, kind: Type) -> Floats | None:
        if self.importance is None or rounds(kind):
            return None
        found = self.importance.get(name)
        if found is None:
            raise RecipeError(
                self.where, f"the importance matrix has no entry for the tensor {name}",
                "Measure it again on this very model",
            )  # fmt: skip
        return found


class Blank:
    """Encodes every tensor as nothing of the right size: a file's size, before its content."""

    def __init__(self, types: Types) -> None:
        self.types = types

    def __call__(self, name: str, value: Floats) -> tuple[npt.NDArray[Any], Type]:
        kind = self.types.get(name, Type.F32)
        if kind == Type.F32:
            return value, kind
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return np.zeros((value.shape[0], value.shape[1] // block * size), np.uint8), kind


@torch.no_grad()
def applied(model: SelmForCausalLM, encode: Encode) -> SelmForCausalLM:
    """A copy of the model with the weights that a file would give back."""
    changed = copy.deepcopy(model)
    for name, tensor in _tensors(changed):
        data, kind = encode(name, tensor.float().cpu().numpy())
        if kind != Type.F32:
            tensor.copy_(torch.from_numpy(dequantize(data, kind)))
    return changed
