"""Sessions that are saved, restored, forked and rolled back, beside a run that never was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selm_edge import _core
from support.core import Floats, array

LONGEST = 300
# Context, batch and threads.
SHAPES = [(320, 0, 1), (320, 32, 2), (400, 187, 1), (512, 64, 2)]


@dataclass
class Going:
    """A session and the tokens that it should hold."""

    core: _core.Session
    tokens: list[int]


class Walk:
    """Some sessions of one model and some snapshots, changed by one random step after another."""

    def __init__(self, path: Path, folder: Path, *, kv_type: str = "f16", seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = _core.Model(str(path))
        self.kv_type = kv_type
        self.fresh = self._session(*SHAPES[0])
        self.sessions = [Going(self._session(*shape), []) for shape in SHAPES]
        self.folder = folder
        self.saved: list[tuple[Path | bytes, list[int]]] = []
        self.done: dict[str, int] = {}

    def _session(self, context: int, batch: int, threads: int) -> _core.Session:
        shape = {"context": context, "batch": batch, "threads": threads}
        return _core.Session(self.model, **shape, kv_type=self.kv_type, exact=True)

    def sequence(self) -> None:
        """A few steps on one session; what comes last has the logits of a fresh run."""
        at = int(self.rng.integers(len(self.sessions)))
        self.go_on(at, check=False)
        for _ in range(int(self.rng.integers(1, 4))):
            step = str(self.rng.choice(["save", "restore", "fork", "roll_back", "go_on"]))
            self.done[step] = self.done.get(step, 0) + 1
            if step == "go_on":
                self.go_on(at, check=False)
            else:
                getattr(self, step)(at)
        self.go_on(at, check=True)

    def go_on(self, at: int, *, check: bool) -> None:
        going = self.sessions[at]
        count = int(self.rng.choice([1, 2, 7, 33, 90, 190]))
        if len(going.tokens) + count > LONGEST:
            self._cut(going, int(self.rng.integers(0, LONGEST // 4)))
        new = self.rng.integers(0, 300, count).tolist()
        logits = array(going.core.eval(new))
        going.tokens += new
        if check:
            assert going.core.tokens() == going.tokens
            assert np.array_equal(logits, self.expected(going.tokens)[-count:])

    def expected(self, tokens: list[int]) -> Floats:
        self.fresh.truncate(0)
        return array(self.fresh.eval(tokens))

    def save(self, at: int) -> None:
        going = self.sessions[at]
        if self.rng.random() < 0.5:
            kept: Path | bytes = going.core.snapshot()
        else:
            kept = self.folder / f"{int(self.rng.integers(6))}.snapshot"
            self.saved = [entry for entry in self.saved if entry[0] != kept]
            going.core.save(str(kept))
        self.saved = [*self.saved[-5:], (kept, list(going.tokens))]

    def restore(self, at: int) -> None:
        if not self.saved:
            return
        kept, tokens = self.saved[int(self.rng.integers(len(self.saved)))]
        if self.rng.random() < 0.5:  # as another process would
            shape = SHAPES[int(self.rng.integers(len(SHAPES)))]
            self.sessions[at] = Going(self._session(*shape), [])
        going = self.sessions[at]
        going.core.restore(kept) if isinstance(kept, bytes) else going.core.restore_file(str(kept))
        going.tokens = list(tokens)

    def fork(self, at: int) -> None:
        """In place of another one, which is gone."""
        going = self.sessions[at]
        other = int(self.rng.integers(len(self.sessions)))
        if other != at:
            self.sessions[other] = Going(going.core.fork(), list(going.tokens))

    def roll_back(self, at: int) -> None:
        going = self.sessions[at]
        back = int(self.rng.choice([1, 5, 32, 60, 200]))
        self._cut(going, max(0, len(going.tokens) - back))

    def _cut(self, going: Going, length: int) -> None:
        length = min(length, len(going.tokens))
        kept = going.core.truncate(length)
        assert kept <= length
        del going.tokens[kept:]
