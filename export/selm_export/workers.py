"""Several single-threaded processes that share one model.

On a machine whose cores others use as well, threads inside one matrix product wait for the slowest
core at every operation. Here each process takes the next micro-batch when it is ready, so a busy
core costs its own share only.
"""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from selm_export.data.packing import Batch
from selm_export.network import Network, Shape
from selm_export.optimise import FlatState, Rates, step_matrix

Work = tuple[Any, ...]


class Hand:
    """Does the work items of one process: micro-batches and Muon steps."""

    def __init__(
        self, shape: Shape, state: FlatState, worker: int, rates: Rates, fast: bool
    ) -> None:
        self.network = Network(shape)
        self.state, self.rates = state, rates
        state.attach(self.network, worker)
        self.loss: Callable[..., torch.Tensor] = self.network.loss
        if fast:
            self.loss = torch.compile(self.network.loss)
        self.teacher = state.teacher(shape)

    def do(self, work: Work) -> float:
        if work[0] == "matrix":
            _, index, factor = work
            with torch.no_grad():
                step_matrix(self.state, index, factor, self.rates)
            return 0.0
        _, batch, scale, dropout, seed, end = work
        return self.learn(batch, scale, dropout, seed, end)

    def learn(self, batch: Batch, scale: float, dropout: float, seed: int, end: int) -> float:
        torch.manual_seed(seed)  # dropout must not depend on who does the work
        ids, documents = torch.from_numpy(batch.ids), torch.from_numpy(batch.documents)
        given: dict[str, Any] = {
            "positions": torch.from_numpy(batch.positions),
            "weights": torch.from_numpy(batch.weights) * scale,
            "dropout": dropout,
        }
        if self.teacher is None:
            targets = torch.from_numpy(batch.targets)
            loss = self.loss(ids, documents, targets=targets, **given)
        else:
            loss = self.network.taught(self.teacher, ids, documents, **given, end=end)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


def _serve(
    shape: Shape, state: FlatState, worker: int, rates: Rates, fast: bool, *queues: Any
) -> None:
    tasks, results = queues
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    hand = Hand(shape, state, worker, rates, fast)
    while (work := tasks.get()) is not None:
        results.put(hand.do(work))


class Crew:
    """The calling process and ``workers - 1`` others."""

    def __init__(
        self, shape: Shape, state: FlatState, workers: int, rates: Rates, fast: bool
    ) -> None:
        torch.set_num_threads(1)
        context = mp.get_context("spawn")
        self.tasks, self.results = context.Queue(), context.Queue()
        self.others = [
            context.Process(
                target=_serve,
                args=(shape, state, i, rates, fast, self.tasks, self.results),
                daemon=True,
            )
            for i in range(1, workers)
        ]
        for process in self.others:
            process.start()
        self.hand = Hand(shape, state, 0, rates, fast)

    def do(self, work: list[Work]) -> float:
        """Does all items and returns the sum of their results."""
        if not self.others:
            return sum(self.hand.do(item) for item in work)
        for item in work:
            self.tasks.put(item)
        done, total = 0, 0.0
        while True:
            try:
                item = self.tasks.get(timeout=0.01)
            except queue.Empty:
                break
            total += self.hand.do(item)
            done += 1
        for _ in range(len(work) - done):
            total += self._result()
        return total

    def _result(self) -> float:
        while True:
            try:
                return float(self.results.get(timeout=5))
            except queue.Empty:
                dead = [p.exitcode for p in self.others if not p.is_alive()]
                if dead:
                    raise RuntimeError(f"a training process ended with code {dead[0]}") from None

    def close(self) -> None:
        for _ in self.others:
            self.tasks.put(None)
        for process in self.others:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
