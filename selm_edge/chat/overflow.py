"""How large a context a conversation that no longer fits would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selm_edge.assistant import Overflow


def larger_context(overflow: Overflow, trained: int | None) -> int | None:
    """Doubled until it fits, but no more than the model was trained for; None if that is short."""
    if trained is None or trained < overflow.needed or trained <= overflow.context:
        return None
    size = overflow.context * 2
    while size < overflow.needed:
        size *= 2
    return min(size, trained)
