"""The processes that train together: those of torchrun or `accelerate launch`, or the only one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

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


Found = TypeVar("Found")


def found_by_first(find: Callable[[], Found]) -> Found:
    """What the first process finds out, in all of them; the others wait for it."""
    found = [find() if processes().is_main_process else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]
