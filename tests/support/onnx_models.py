"""ONNX folders, read by onnxruntime and numpy alone: an oracle for our backend and our exporter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from selm_export import onnx_export
from selm_export.checkpoint import Checkpoint
from selm_export.tokenizer_config import own

from support.selm_models import some_model, some_tokenizer

Floats = npt.NDArray[np.float32]
PERFORMER: dict[str, Any] = {
    "attention_kinds": ["softmax", "window", "performer"], "sinks": 2, "head_gate": True,
    "qk_norm": True, "attention_bias": True,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "attention_kinds": ["performer"] * 2, "expert_names": ["general", "medical", "math"],
    "trunk_layers": 1, "expert_stickiness": 0.1, "num_hidden_layers": 2,
}  # fmt: skip


@torch.no_grad()
def some_checkpoint(**changes: Any) -> Checkpoint:
    tokenizer, model = some_tokenizer(), some_model(**changes)
    if changes.get("expert_names"):  # random scores would let one expert speak all the time
        scores = model(torch.arange(400)[None]).scores[0]
        for head, mean, deviation in zip(
            model.model.scores, scores.mean(0), scores.std(0), strict=True
        ):
            head.layers[-1].weight /= deviation
            head.layers[-1].bias.sub_(mean).div_(deviation)
    return Checkpoint(Path("random"), model, tokenizer, own(tokenizer))


def write(path: Path, **changes: Any) -> tuple[Checkpoint, dict[str, Any]]:
    """A random model as a folder, and the exporter's figures."""
    made = some_checkpoint(**changes)
    return made, onnx_export.export(made, path, "Test")


class Oracle:
    """Steps through a folder by what its ``model.json`` says."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.said = json.loads((folder / "model.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.seen = 0
        self.states: dict[str, npt.NDArray[Any]] = {
            row["input"]: np.full([n or 0 for n in row["shape"]], row["start"], row["type"])
            for row in self.said["states"]
        }

    def step(self, ids: Sequence[int], expert: int = -1) -> dict[str, Any]:
        """Outputs by role."""
        count, inputs, outputs = len(ids), self.said["inputs"], self.said["outputs"]
        given = {
            "ids": np.array([ids]),
            "positions": np.arange(self.seen, self.seen + count)[None],
            "mask": np.ones((1, self.seen + count), np.int64),
            "seen": np.array([self.seen]),
            "expert": np.array([expert]),
        }
        feed = self.states | {name: given[role] for role, name in inputs.items()}
        names = [*outputs.values(), *(row["output"] for row in self.said["states"])]
        found = dict(zip(names, self.session.run(names, feed), strict=True))
        for row in self.said["states"]:
            self.states[row["input"]] = found[row["output"]]
            shape = found[row["output"]].shape
            assert all(n in (None, m) for n, m in zip(row["shape"], shape, strict=True))
        self.seen += count
        return {role: found[name] for role, name in outputs.items()}

    def logits(self, ids: Sequence[int], sizes: Sequence[int]) -> Floats:
        """[tokens, vocab], the tokens cut into pieces of these sizes, the last one repeated."""
        rows, at = [], 0
        for size in [*sizes, *[sizes[-1]] * len(ids)]:
            if at < len(ids):
                rows.append(self.step(ids[at : at + size])["logits"][0])
            at += size
        whole: Floats = np.concatenate(rows)
        return whole
