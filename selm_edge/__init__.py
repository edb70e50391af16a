"""SELM Edge: a private assistant that lives on this device.

    from selm_edge import Model

Names load on first use, so that ``import selm_edge`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, whose import would cost more than all else here
if TYPE_CHECKING:
    from typing import Any

    from selm_edge.backends.base import GenerationStats as GenerationStats
    from selm_edge.backends.base import Sampling as Sampling
    from selm_edge.errors import Cancelled as Cancelled
    from selm_edge.errors import ContextError as ContextError
    from selm_edge.errors import ModelError as ModelError
    from selm_edge.errors import SelmError as SelmError
    from selm_edge.errors import SnapshotError as SnapshotError
    from selm_edge.errors import UnsupportedModelError as UnsupportedModelError
    from selm_edge.model import Model as Model
    from selm_edge.model import Tokenizer as Tokenizer
    from selm_edge.reply import Prompt as Prompt
    from selm_edge.reply import Reply as Reply
    from selm_edge.session import Session as Session
    from selm_edge.templates import Notice as Notice

__version__ = "0.1.0"

_HOME = {
    "Cancelled": "errors",
    "ContextError": "errors",
    "GenerationStats": "backends.base",
    "Model": "model",
    "ModelError": "errors",
    "Notice": "templates",
    "Prompt": "reply",
    "Reply": "reply",
    "Sampling": "backends.base",
    "SelmError": "errors",
    "Session": "session",
    "SnapshotError": "errors",
    "Tokenizer": "model",
    "UnsupportedModelError": "errors",
}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selm_edge' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"selm_edge.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
