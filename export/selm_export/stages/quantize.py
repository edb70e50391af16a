"""A model's weights as block types: a file that the core runs, and what that cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selm_export import checkpoint as checkpoints
from selm_export.data.dataset import HELD_OUT, TRAINING, sample
from selm_export.data.packing import Document
from selm_export.errors import RecipeError
from selm_export.gguf_export import write_gguf
from selm_export.gguf_file import Encode
from selm_export.modeling.file import _tensors
from selm_export.quantization import imatrix
from selm_export.quantization.allocate import Menu, Probe, search_loss, smallest, within_bytes
from selm_export.quantization.divergence import Divergence, compare, first_tokens
from selm_export.quantization.encode import Blank, Encoder, applied
from selm_export.quantization.imatrix import Importance
from selm_export.quantization.mixes import (
    MIXES,
    Types,
    bytes_of,
    fitted,
    is_matrix,
    of_mix,
    of_routes,
    replaced,
)
from selm_export.stages.gguf import FILE, Said
from selm_export.stages.job import Job

IMPORTANCE = "importance.safetensors"
TYPES = "types.json"
NAMED = "q4_k_m"  # where nothing is asked for


@dataclass(frozen=True)
class Settings(Said):
    """At most one of ``mix``, ``bytes``, ``bits_per_weight`` and ``kld``; with none, q4_k_m."""

    mix: str | None = None  # a named mix of types: f16, q8_0, q6_k, q5_k_m, q4_k_m, q3_k_m, ...
    bytes: int | None = None  # the file may have; types are chosen by what each tensor loses
    bits_per_weight: float | None = None  # the same, of the whole file
    kld: float | None = None  # mean divergence in nats that held-out text may have; types as above
    importance: bool = True  # weigh errors by the activations on training documents
    calibration_tokens: int = 8192  # of training documents, for the importance
    probe_tokens: int = 1024  # of these, for what each tensor loses
    measured_tokens: int = 4096  # of held-out documents, for the figures
    compare: bool = False  # measure the same types without importance too


class _Quantization:
    """One run of the stage."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job, self.settings = job, settings
        self.checkpoint = checkpoints.load(job.one())
        tensors = dict(_tensors(self.checkpoint.model))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.parameters = sum(tensor.numel() for tensor in tensors.values())
        self.label = settings.label(job)

    def documents(self, file: str, tokens: int) -> list[Document]:
        path = self.job.data / file
        if not path.is_file():
            raise RecipeError(
                path, "there is no such data to calibrate with or to measure on",
                "Run the stage data first, or set importance = false and choose a mix",
            )  # fmt: skip
        drawn = sample(path, self.checkpoint.tokenizer, 32 + tokens // 32, self.job.seed)
        context = self.checkpoint.model.config.max_position_embeddings
        return first_tokens(drawn, tokens, context)

    def importance(self) -> Importance | None:
        if not self.settings.importance:
            return None
        documents = self.documents(TRAINING, self.settings.calibration_tokens)
        self.job.say(f"importance of columns, on {sum(map(len, documents))} tokens")
        found = imatrix.measure(self.checkpoint.model, documents)
        imatrix.save(self.job.output / IMPORTANCE, found)
        return found

    def measured(self, types: Types, importance: Importance | None) -> Divergence:
        model = self.checkpoint.model
        changed = applied(model, Encoder(self.checkpoint.path, types, importance))
        documents = self.documents(HELD_OUT, self.settings.measured_tokens)
        return compare(model, changed, documents)

    def types(self, importance: Importance | None) -> tuple[Types, dict[str, Any]]:
        """And figures on how they were chosen."""
        wanted = self.settings
        if wanted.bytes is None and wanted.bits_per_weight is None and wanted.kld is None:
            plan = of_mix(MIXES[wanted.mix or NAMED], self.shapes)
            types = fitted(plan, self.shapes)
            return types, {"replaced": replaced(types, plan)}
        fixed = fitted(of_routes(self.shapes), self.shapes)
        names = [n for n, shape in self.shapes.items() if is_matrix(n, shape) and n not in fixed]
        if wanted.kld is not None:
            chosen = search_loss(
                self.checkpoint.path, self._menu(names, importance), wanted.kld,
                lambda types: self.measured({**types, **fixed}, importance).mean,
            )  # fmt: skip
        else:
            left = self._left(smallest(self.shapes, names), fixed)
            chosen = within_bytes(self.checkpoint.path, self._menu(names, importance), left)
        return {**chosen.types, **fixed}, {"predicted_kld": chosen.loss}

    def _left(self, least: Types, fixed: Types) -> int:
        """Bytes for the tensors that have a choice; ``least`` is the smallest."""
        wanted = self.settings
        budget = wanted.bytes or int((wanted.bits_per_weight or 0) * self.parameters / 8)
        size = self.size({**least, **fixed})
        if size > budget:
            raise RecipeError(
                self.job.name, f"the file takes {size} bytes or more, and may have {budget}",
                "Allow more, or prune the model first",
            )  # fmt: skip
        return budget - size + sum(bytes_of(kind, self.shapes[n]) for n, kind in least.items())

    def _menu(self, names: Sequence[str], importance: Importance | None) -> Menu:
        documents = self.documents(TRAINING, self.settings.probe_tokens)
        probe = Probe(self.checkpoint.path, self.checkpoint.model, documents, importance)
        return probe.menu(names, self.job.say)

    def write(self, path: Path, encode: Encode) -> None:
        sampling = self.settings.sampling
        write_gguf(path, self.checkpoint, encode=encode, label=self.label, sampling=sampling)

    def size(self, types: Types) -> int:
        """Of the file in bytes, found by writing one without content."""
        path = self.job.output / "size.gguf"
        try:
            self.write(path, Blank(types))
            return path.stat().st_size
        finally:
            path.unlink(missing_ok=True)

    def figures(self, types: Types, importance: Importance | None) -> dict[str, Any]:
        size = (self.job.output / FILE).stat().st_size
        found: dict[str, Any] = {
            "bytes": size,
            "parameters": self.parameters,
            "bits_per_weight": 8 * size / self.parameters,
            "types": dict(Counter(kind.name for kind in types.values())),
        }
        if not (self.job.data / HELD_OUT).is_file():
            return found
        found |= self.measured(types, importance).summary()
        if self.settings.compare and importance is not None:
            found["without_importance"] = self.measured(types, None).summary()
        return found


def _check(job: Job, settings: Settings) -> None:
    budgets = {"bytes": settings.bytes, "bits_per_weight": settings.bits_per_weight,
               "kld": settings.kld}  # fmt: skip
    given = [name for name, value in {"mix": settings.mix, **budgets}.items() if value is not None]
    if len(given) > 1:
        raise RecipeError(job.name, f"{' and '.join(given)} are given", "Keep one of them")
    if settings.mix is not None and settings.mix not in MIXES:
        raise RecipeError(
            job.name, f"the mix {settings.mix!r} is unknown", f"Take one of: {', '.join(MIXES)}"
        )
    for name, value in budgets.items():
        if value is not None and not value > 0:
            raise RecipeError(job.name, f"{name} = {value} is no budget", "Give more than 0")


def run(job: Job, settings: Settings) -> dict[str, Any]:
    """Writes ``model.gguf``, ``types.json`` (each tensor's type) and, with it, the importance
    (``importance.safetensors``). Figures: the file's ``bytes`` and ``bits_per_weight`` (all of it),
    how many tensors have which of the ``types``, which were ``replaced`` as they did not fit, and
    on held-out text the mean and 99 % divergence from the model as it was, in nats, and the share
    of tokens where both find the same one likeliest."""
    _check(job, settings)
    work = _Quantization(job, settings)
    importance = work.importance()
    types, how = work.types(importance)
    names = {name: kind.name for name, kind in types.items()}
    (job.output / TYPES).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    job.say(f"writing {job.output / FILE}")
    work.write(job.output / FILE, Encoder(work.checkpoint.path, types, importance))
    return {**work.figures(types, importance), **how}
