"""A sequence of one's own: tokens in, logits out, and its state kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from selm_edge.backends.base import EngineSession, LogitRows, Snapshots
from selm_edge.errors import SelmError

if TYPE_CHECKING:
    from typing_extensions import Self


class Session:
    """One sequence and its cache. For one thread at a time, but `cancel` is for any."""

    def __init__(self, engine: EngineSession) -> None:
        self.engine = engine

    def eval(self, ids: Sequence[int], logits: LogitRows = "all") -> memoryview:
        """Append tokens; their logits, float32 [len(ids), vocab] (``numpy.asarray`` takes it).

        logits: "last" gives the last row only, [1, vocab]; "none" none. ContextError where they do
        not fit; then nothing was evaluated.
        """
        return self.engine.eval(ids, logits)

    @property
    def position(self) -> int:
        """Tokens held."""
        return self.engine.position

    @property
    def state_bytes(self) -> int:
        """Memory of the tokens held (KV cache and other state), in bytes."""
        return self.engine.state_bytes

    def truncate(self, length: int) -> int:
        """Forget all but the first `length` tokens; how many are left.

        Fewer than `length` where layers whose state does not grow with the text (`selm` models)
        cannot go back so far: what is missing is to be evaluated again. They can go back by 32
        tokens, to where a long `eval`, a reply or a restored snapshot began, and to 0.
        """
        return self.engine.truncate(length)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file: the tokens, and what was computed of them.

        The file is replaced whole, or after a SnapshotError (a full disk, no such folder) not at
        all. Nobody but its owner may read it. The native backend can.
        """
        self._snapshots().save(os.fspath(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved state, instead of what the session holds, exactly as it would have.

        The model's file must be the one that it was saved with; context and threads may differ.
        SnapshotError where it is damaged, of another model, or longer than this context; then the
        session is as before.
        """
        self._snapshots().load(os.fspath(path))

    def fork(self) -> Session:
        """Another session in the same state, which then goes its own way."""
        return Session(self._snapshots().fork())

    def _snapshots(self) -> Snapshots:
        if isinstance(self.engine, Snapshots):
            return self.engine
        raise SelmError("this backend keeps no snapshots of sessions; the native one does")

    def cancel(self) -> None:
        """Stop the running `eval` or reply within one layer; from any thread.

        When none runs, the next `eval` is stopped; `generate` begins anew and is not.
        """
        self.engine.cancel()

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
