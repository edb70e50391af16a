"""What replies have to be, compiled once for a model and kept."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from selm_edge.backends.base import Constraint
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from selm_edge import _core

_KEPT = 16  # of one model: what was found out about its vocabulary stays with each
_HINTS = {
    "invalid_argument": "Correct the {what}.",
    "unsupported": "Leave that out of the {what}, and check the reply yourself.",
}


class Constraints:
    """The grammars of one model, by their text; usable from several threads."""

    def __init__(self, tokenizer: _core.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._made: dict[Constraint, _core.Grammar] = {}
        self._lock = threading.Lock()

    def get(self, constraint: Constraint) -> _core.Grammar:
        """SelmError says what is wrong with it, or what the core cannot hold a reply to."""
        from selm_edge import _core

        with self._lock:
            made = self._made.pop(constraint, None)
            if made is None:
                try:
                    made = _core.Grammar(self._tokenizer, constraint.kind, constraint.text)
                except _core.CoreError as error:
                    status, message = error.args
                    hint = _HINTS.get(status, "").format(what=constraint.kind)
                    raise SelmError(f"{message}\n{hint}".strip()) from None
            self._made[constraint] = made  # the latest is the last
            while len(self._made) > _KEPT:
                del self._made[next(iter(self._made))]
            return made
