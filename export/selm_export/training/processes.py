"""The processes that train together: those of torchrun or `accelerate launch`, or the only one."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

WAIT = timedelta(hours=48)  # one process may measure or write for long while the others wait


def on_cpu() -> bool:
    """Said outright, as accelerate takes several processes without a GPU for one otherwise."""
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def fast_bf16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32, rather than by detours."""
    if not on_cpu():
        return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public names
    return any(getattr(torch.cpu, name, bool)() for name in known)


def processes() -> PartialState:
    return PartialState(cpu=on_cpu(), timeout=WAIT)
