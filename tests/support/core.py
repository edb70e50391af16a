"""The binding `selm_edge._core` with numpy arrays, for tests of the core itself."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from selm_edge import _core

Floats = npt.NDArray[np.float32]
Type = gguf.GGMLQuantizationType
# What a processor of this architecture may have; tests skip what this one lacks.
ARM = platform.machine().lower() in ("aarch64", "arm64")
ISAS = ("scalar", *(("neon", "dotprod", "i8mm") if ARM else ("avx2", "avx512", "amx")))
BLOCK_TYPES = [
    *(Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0),
    *(Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS),
]


def array(floats: Any) -> Floats:
    """A copy of what the binding returned."""
    return np.array(memoryview(floats), np.float32)


def dequantize(kind: Type, data: bytes, n: int) -> Floats:
    return array(_core.dequantize(int(kind), data, n))


def matmul(
    kind: Type, weights: npt.NDArray[np.uint8], activations: Floats, isa: str | None = None
) -> Floats:
    """[columns, rows] = activations [columns, n] times weights [rows, row_bytes]."""
    columns, n = activations.shape
    data = np.ascontiguousarray(activations, np.float32).tobytes()
    out = _core.matmul(int(kind), weights.tobytes(), len(weights), n, data, columns, isa=isa)
    return array(out)


@functools.cache
def isa_available(name: str) -> bool:
    try:
        _core.matmul(int(Type.F32), bytes(4), 1, 1, bytes(4), 1, isa=name)
    except _core.CoreError:
        return False
    return True


def require_isa(name: str) -> str:
    if not isa_available(name):
        pytest.skip(f"this processor or build has no {name}")
    return name


class Session:
    """One sequence of a model; logits as numpy [n_tokens, n_vocab]."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context: int = 256,
        batch: int = 0,
        kv_type: str = "f32",
        isa: str | None = None,
        exact: bool = False,
    ) -> None:
        self.model = _core.Model(str(path), isa=isa)
        self.core = _core.Session(
            self.model,
            context=context,
            threads=threads,
            batch=batch,
            kv_type=kv_type,
            exact=exact,
        )

    def eval(self, tokens: Sequence[int]) -> Floats:
        return array(self.core.eval(list(tokens)))

    def eval_in_pieces(self, tokens: Sequence[int], sizes: Sequence[int]) -> Floats:
        """The tokens cut into pieces of these sizes, again and again until none is left."""
        out, at, i = [], 0, 0
        while at < len(tokens):
            size = sizes[i % len(sizes)]
            out.append(self.eval(tokens[at : at + size]))
            at, i = at + size, i + 1
        return np.concatenate(out)


LLAMA_SCRIPT = """
import sys
import numpy as np
import llama_cpp

out, tokens, paths = sys.argv[1], [int(t) for t in sys.argv[2].split(",")], sys.argv[3:]
logits = []
for path in paths:
    path, _, lora = path.partition("\\n")
    model = llama_cpp.Llama(
        path, lora_path=lora or None, n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1,
        logits_all=True, type_k=0, type_v=0, flash_attn=False, use_mmap=True, verbose=False)
    model.eval(tokens)
    logits.append(np.array(model.scores[: len(tokens)], np.float32))
np.savez(out, *logits)
"""


@functools.cache
def llama_python() -> str | None:
    """An interpreter that has llama-cpp-python: this one, or what SELM_TEST_LLAMA_PYTHON names."""
    for python in (sys.executable, os.environ.get("SELM_TEST_LLAMA_PYTHON")):
        if python:
            probe = [python, "-c", "import llama_cpp, numpy"]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return python
    return None


def llama_cpp_logits(
    paths: Sequence[Path | str], tokens: Sequence[int], scratch: Path
) -> list[Floats]:
    """Logits [n_tokens, n_vocab] of each file from llama.cpp, with an F32 cache; of a file and,
    after a line end, an adapter's."""
    python = llama_python()
    if python is None:
        pytest.skip("llama-cpp-python is not installed (nor named by SELM_TEST_LLAMA_PYTHON)")
    out = scratch / "llama.npz"
    listed = ",".join(map(str, tokens))
    command = [python, "-c", LLAMA_SCRIPT, str(out), listed, *map(str, paths)]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(out) as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(paths))]
