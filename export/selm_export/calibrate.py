"""Finds from where on an exit is sure enough to speak for the whole model, and what that costs.

Learn then Test (arXiv 2110.01052), as CALM (2207.07061) uses it for exits. The loss of a prompt is
the share of its greedy reply's tokens that the exit said and the whole model would have chosen
otherwise at that place. Thresholds are tried from the safest on; each is a hypothesis "the expected
loss is above delta", rejected where the Hoeffding bound for n prompts of mean loss r below delta,

    p = exp(-n (r ln(r / delta) + (1 - r) ln((1 - r) / (1 - delta)))),

is at most epsilon. The first that is not rejected ends the search, so no correction is needed for
their number: with probability 1 - epsilon, each rejected one loses at most delta on prompts like
those of the data. The replies are made by the inference core from the very file, quantised as it
is, and the thresholds hold for these weights alone: the file says which, and the core looks. With
an adapter the weights are others, so its file has a calibration of its own.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf

from selm_export.data.chat import Conversation
from selm_export.errors import RecipeError
from selm_export.gguf_file import copy_keys, whole_file

Say = Callable[[str], None]
THRESHOLDS = tuple(percent / 100 for percent in (*range(95, 5, -5), 5, 2))
LAYERS = "selm.exit.layers"
NEVER = 2.0  # no probability reaches it
AGAIN = "Give the .gguf file of a selm model, as selm-export exits writes it"


@dataclass(frozen=True)
class Bound:
    delta: float  # the loss that is allowed
    epsilon: float  # how likely the bound may fail


@dataclass(frozen=True)
class Trial:
    """Of one threshold: means over prompts; tokens a second beside those without exits."""

    threshold: float
    loss: float
    p: float
    early: float  # share of tokens that the exit said
    speed_up: float


def p_value(loss: float, delta: float, prompts: int) -> float:
    """How likely a mean loss as low as this is, if the expected one is ``delta`` or more."""
    if loss >= delta:
        return 1.0
    apart = (1 - loss) * math.log((1 - loss) / (1 - delta))
    if loss > 0:
        apart += loss * math.log(loss / delta)
    return math.exp(-prompts * apart)


def fewest_prompts(bound: Bound) -> int:
    """With fewer, not even a threshold that loses nothing can be proven."""
    return math.ceil(math.log(bound.epsilon) / math.log(1 - bound.delta))


def weights_sha256(*readers: gguf.GGUFReader) -> str:
    """Of all tensors in the files' order: name, a zero byte, data (docs/selm-format.md)."""
    found = hashlib.sha256()
    for reader in readers:
        for tensor in reader.tensors:
            found.update(tensor.name.encode() + b"\0")
            found.update(tensor.data.tobytes())
    return found.hexdigest()


def bound_of(path: Path) -> Bound | None:
    """What a file was calibrated for; None where it was not."""
    reader = gguf.GGUFReader(path)
    delta, epsilon = (reader.get_field(f"selm.exit.{name}") for name in ("delta", "epsilon"))
    if delta is None or epsilon is None:
        return None
    return Bound(float(delta.contents()), float(epsilon.contents()))


class Replies:
    """Greedy replies of a file to the same prompts, with a threshold or as the whole model."""

    def __init__(
        self, path: Path, conversations: Sequence[Conversation], *, context: int, most: int,
        adapter: Path | None = None,
    ) -> None:  # fmt: skip
        from selm_edge import Model, _core

        with Model.load(path, context=context) as model:
            asked = [
                [{"role": m.role, "content": m.content} for m in c.messages[:-1]]
                for c in conversations
            ]
            prompts = [list(model.chat_prompt(messages, max_tokens=most).ids) for messages in asked]
        self._core, self.prompts, self.most = _core, prompts, most
        base = _core.Model(str(path))
        self._session = _core.Session(base, context=context)
        if adapter is not None:
            self._session.set_adapters([(_core.Adapter(base, str(adapter)), 1.0)])
        self._sampling = _core.Sampling()
        self._sampling.temperature = 0.0

    def make(self, threshold: float | None) -> list[Any]:
        """The core's figures of each reply."""
        ahead: dict[str, Any] = {"draft": "off"}
        if threshold is not None:
            ahead = {"draft": "calibrated", "exit_threshold": threshold}
        found = []
        for prompt in self.prompts:
            reply = self._core.Generation(
                self._session, prompt, self._sampling, max_tokens=self.most, **ahead
            )
            while reply.next()[2] == 0:
                pass
            found.append(reply.stats)
        return found


def _speed(stats: Sequence[Any]) -> float:
    steps, seconds = sum(s.decode_steps for s in stats), sum(s.decode_seconds for s in stats)
    return steps / seconds if seconds > 0 else 0.0


def search(replies: Replies, bound: Bound, say: Say) -> list[Trial]:
    """The thresholds whose loss is proven to be small enough, the fastest last."""
    plain = _speed(replies.make(None))
    found: list[Trial] = []
    for threshold in THRESHOLDS:
        stats = replies.make(threshold)
        # The first token of a reply always comes from the whole model.
        losses = [s.early_wrong / (s.decode_steps + 1) for s in stats]
        loss = sum(losses) / len(losses)
        trial = Trial(
            threshold, loss, p_value(loss, bound.delta, len(losses)),
            sum(s.early_tokens for s in stats) / sum(s.decode_steps + 1 for s in stats),
            _speed(stats) / plain if plain else 0.0,
        )  # fmt: skip
        kept = trial.p <= bound.epsilon
        say(
            f"  from {threshold:.2f} on: {trial.early:6.1%} early, loss {loss:.4f},"
            f" p {trial.p:.3g}, {trial.speed_up:.2f} times as fast"
            + ("" if kept else ": not proven")
        )
        if not kept:
            break
        found.append(trial)
    return found


def run(
    path: Path, conversations: Sequence[Conversation], bound: Bound, *, output: Path, context: int,
    most: int, prompts: int, say: Say, adapter: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes ``output``, the same file with its calibration (the adapter's, if there is one); what
    was found."""
    reader = _read(path)
    exits = reader.get_field(LAYERS)
    if exits is None:
        raise RecipeError(path, "it has no trained exits", AGAIN)
    chosen = [c for c in conversations if len(c.messages) > 1]
    random.Random(1).shuffle(chosen)
    chosen = chosen[:prompts]
    if len(chosen) < fewest_prompts(bound):
        raise RecipeError(
            path, f"{len(chosen)} prompts prove nothing at delta {bound.delta}, epsilon"
            f" {bound.epsilon}: at least {fewest_prompts(bound)} are needed",
            "Give more --data, or allow more",
        )  # fmt: skip
    say(f"replies to {len(chosen)} prompts, for each threshold")
    replies = Replies(path, chosen, context=context, most=most, adapter=adapter)
    trials = search(replies, bound, say)
    if not trials:
        raise RecipeError(
            path, f"no threshold keeps the loss below {bound.delta}",
            "Allow more with --delta, give more --data, or train the exits for longer",
        )  # fmt: skip
    best = max(trials, key=lambda trial: trial.speed_up)
    count = len(exits.contents())
    files = [reader] if adapter is None else [reader, _read(adapter)]
    _write(output, files, [best.threshold, *[NEVER] * (count - 1)], bound, len(chosen))
    return {
        **asdict(best), "delta": bound.delta, "epsilon": bound.epsilon, "prompts": len(chosen),
        "trials": [asdict(trial) for trial in trials],
    }  # fmt: skip


def _read(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as problem:
        raise RecipeError(path, f"not a GGUF file that can be read ({problem})", AGAIN) from None


def _write(
    output: Path, files: Sequence[gguf.GGUFReader], thresholds: list[float], bound: Bound,
    prompts: int,
) -> None:  # fmt: skip
    """The last of ``files``, calibrated for what all of them hold."""
    kind, reader = gguf.GGUFValueType, files[-1]
    with whole_file(output, "selm") as writer:
        copy_keys(writer, reader, lambda key: not key.startswith("selm.exit.") or key == LAYERS)
        writer.add_key_value("selm.exit.thresholds", thresholds, kind.ARRAY, kind.FLOAT32)
        writer.add_float32("selm.exit.delta", bound.delta)
        writer.add_float32("selm.exit.epsilon", bound.epsilon)
        writer.add_uint32("selm.exit.calibration_count", prompts)
        writer.add_string("selm.exit.model_sha256", weights_sha256(*files))
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
