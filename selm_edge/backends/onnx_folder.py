"""The folder of an ONNX model: what its ``model.json`` says, checked against what lies there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from selm_edge.backends.base import MetadataValue
from selm_edge.errors import ModelError, UnsupportedModelError

MANIFEST, GRAPH, TOKENIZER = "model.json", "model.onnx", "tokenizer.json"
FORMAT = 1
AGAIN = "Copy the folder again, or write it again: selm-export onnx"
_TYPES = {"float32": 4, "int64": 8}  # and their bytes


@dataclass(frozen=True)
class StateTensor:
    """One tensor that each step hands to the next; None in ``shape`` is the length of the text."""

    input: str
    output: str
    shape: tuple[int | None, ...]
    start: float
    type: str


@dataclass(frozen=True)
class OnnxFolder:
    """``inputs`` and ``outputs`` give names by role; ``chunk`` is the most tokens at once."""

    path: Path
    type: str
    vocabulary: int
    width: int
    chunk: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    states: tuple[StateTensor, ...]
    metadata: Mapping[str, MetadataValue]

    @property
    def graph(self) -> Path:
        return self.path / GRAPH

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    def number(self, name: str) -> int | None:
        """Of the model's shape, by the end of its key."""
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.{name}")
        return value if isinstance(value, int) else None


def is_folder(path: str) -> bool:
    """Whether that is what `read` takes, by its name and kind alone."""
    file = Path(path)
    return file.is_dir() or file.suffix == ".onnx" or file.name == MANIFEST


def manifest_of(path: str) -> Path:
    """The ``model.json`` of a folder, of itself, or of the ``model.onnx`` beside it."""
    file = Path(path)
    return file / MANIFEST if file.is_dir() else file.with_name(MANIFEST)


def read(path: str) -> OnnxFolder:
    """ModelError names the file that is missing, damaged or of another format."""
    if not is_folder(path) and Path(path).exists():
        hint = "The native backend may run it: --backend native (backend='native')."
        raise UnsupportedModelError(path, "is no folder of an ONNX model", hint=hint)
    manifest = manifest_of(path)
    try:
        said = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        wanted = "Give a folder that `selm-export onnx` wrote: model.onnx alone says too little"
        raise ModelError(str(manifest), "no such file", hint=wanted) from None
    except (OSError, ValueError) as error:
        raise ModelError(str(manifest), f"cannot be read: {error}", hint=AGAIN) from None
    if isinstance(said, dict) and said.get("format") not in (None, FORMAT):
        cause = f"is of format {said['format']}, and this program knows {FORMAT}"
        raise ModelError(str(manifest), cause, hint="Install a newer selm-edge.")
    try:
        folder = _folder(manifest.parent, said)
        files = dict(said["files"])
        for name in (GRAPH, TOKENIZER, *files):
            if Path(name).name != name:
                raise ValueError(f"names a file {name!r} elsewhere")
            _check_file(manifest.parent / name, int(files[name]["size"]), files[name]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        missing = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(str(manifest), f"makes no sense: {missing}", hint=AGAIN) from None
    return folder


def _folder(path: Path, said: Any) -> OnnxFolder:
    inputs, outputs = dict(said["inputs"]), dict(said["outputs"])
    for role, names in (("ids", inputs), ("logits", outputs), ("hidden", outputs)):
        if not isinstance(names[role], str):
            raise ValueError(f"{role} has no name")
    vocabulary, width, chunk = (int(said[name]) for name in ("vocabulary", "width", "chunk"))
    if min(vocabulary, width, chunk) < 1:
        raise ValueError("sizes are at least 1")
    states = tuple(_state(row) for row in said["states"])
    metadata = cast("dict[str, MetadataValue]", dict(said["metadata"]))
    return OnnxFolder(
        path, str(said["type"]), vocabulary, width, chunk, inputs, outputs, states, metadata
    )


def _state(row: Any) -> StateTensor:
    shape = tuple(None if n is None else int(n) for n in row["shape"])
    if row["type"] not in _TYPES or any(n is not None and n < 1 for n in shape):
        raise ValueError(f"the state {row['input']} has the type {row['type']} and shape {shape}")
    if None in shape and shape.index(None) != 2:
        raise ValueError(f"the state {row['input']} grows along another axis than the third")
    return StateTensor(
        str(row["input"]), str(row["output"]), shape, float(row["start"]), row["type"]
    )


def _check_file(file: Path, size: int, sha256: str) -> None:
    try:
        found = file.stat().st_size
        if found != size:
            raise ModelError(str(file), f"has {found} bytes instead of {size}", hint=AGAIN)
        import hashlib  # not for those who only ask `is_folder`

        digest = hashlib.sha256()
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelError(str(file), error.strerror or str(error), hint=AGAIN) from None
    if digest.hexdigest() != sha256:
        cause = f"its SHA-256 is {digest.hexdigest()}, and model.json says {sha256}"
        raise ModelError(str(file), cause, hint=AGAIN)
