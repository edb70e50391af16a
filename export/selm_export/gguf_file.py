"""GGUF files as containers: written whole or not at all, one tensor in memory at a time."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.gguf_writer import TensorInfo, WriterState
from tokenizers import Tokenizer
from torch import Tensor

from selm_export.errors import RecipeError
from selm_export.network import Network

Type = gguf.GGMLQuantizationType
Floats = npt.NDArray[np.float32]
# A tensor's name and values to its bytes (rows of blocks) and their type.
Encode = Callable[[str, Floats], tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]]

# general.file_type by the type of most weights.
FILE_TYPES = {
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    Type.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1,
    Type.Q5_0: gguf.LlamaFileType.MOSTLY_Q5_0,
    Type.Q5_1: gguf.LlamaFileType.MOSTLY_Q5_1,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    Type.Q2_K: gguf.LlamaFileType.MOSTLY_Q2_K,
    Type.Q3_K: gguf.LlamaFileType.MOSTLY_Q3_K_M,
    Type.Q4_K: gguf.LlamaFileType.MOSTLY_Q4_K_M,
    Type.Q5_K: gguf.LlamaFileType.MOSTLY_Q5_K_M,
    Type.Q6_K: gguf.LlamaFileType.MOSTLY_Q6_K,
    Type.IQ4_NL: gguf.LlamaFileType.MOSTLY_IQ4_NL,
    Type.IQ4_XS: gguf.LlamaFileType.MOSTLY_IQ4_XS,
}


@dataclass(frozen=True)
class Label:
    """Who made the file, for its metadata."""

    title: str
    version: str = "1"
    author: str = "The SELM Edge authors"
    license: str = "apache-2.0"
    description: str = "A small assistant that runs on this device"


SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def write_sampling(writer: gguf.GGUFWriter, sampling: Mapping[str, float]) -> None:
    add: dict[str, Callable[[Any], None]] = {
        "temperature": writer.add_sampling_temp, "top_k": writer.add_sampling_top_k,
        "top_p": writer.add_sampling_top_p, "min_p": writer.add_sampling_min_p,
    }  # fmt: skip
    for name, value in sampling.items():
        add[name](value)


def write_label(writer: gguf.GGUFWriter, label: Label) -> None:
    writer.add_name(label.title)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_version(label.version)
    writer.add_author(label.author)
    writer.add_license(label.license)
    writer.add_description(label.description)
    writer.add_languages(["en"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


@contextmanager
def _whole(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """A writer of a file beside ``path``, which takes its place when all went well."""
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".writing")
        os.close(handle)
        temporary = Path(name)
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # what is left in its buffer has no place either
                writer.close()
            raise
        writer.close()
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as problem:
        cause = f"it could not be written ({problem.strerror or problem})"
        raise RecipeError(
            path, cause, "Free space on the disk, or name another folder"
        ) from problem
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """A writer whose file appears under its name once it is whole, or not at all."""
    with _whole(path, architecture) as writer:
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def stored_as(
    name: str, shape: Sequence[int], kind: gguf.GGMLQuantizationType
) -> gguf.GGMLQuantizationType:
    """Norms, gains and frozen features are small, and what depends on them is not: F32.
    Rows that blocks of the kind do not fill, as those of a factor of low rank: F16."""
    if len(shape) != 2 or any(part in name for part in ("performer", "head_gate")):
        return Type.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[1] % block == 0 else Type.F16


def plain(kind: gguf.GGMLQuantizationType) -> Encode:
    """Matrices as ``kind``, rounded to nearest by the gguf package."""

    def encode(name: str, value: Floats) -> tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]:
        stored = stored_as(name, value.shape, kind)
        return gguf.quants.quantize(value, stored), stored

    return encode


@dataclass(frozen=True)
class Tensors:
    """What is to be written, in order: names and our own memory of them. ``encode`` gives the
    bytes; ``change`` turns our order of rows into the file's before."""

    named: Sequence[tuple[str, Tensor]]
    encode: Encode
    change: Callable[[str, Floats], Floats] = lambda _, value: value


def write_streamed(
    path: Path, architecture: str, add_keys: Callable[[gguf.GGUFWriter], None], tensors: Tensors
) -> Counter[gguf.GGMLQuantizationType]:
    """Writes a whole file, with one tensor as floats in memory at a time; weights by type.

    What a tensor is stored as is known only once it is encoded, so the header, whose length does
    not depend on it, is written first to take its place and again at the end.
    """
    weights: Counter[gguf.GGMLQuantizationType] = Counter()
    with _whole(path, architecture) as writer:
        add_keys(writer)
        writer.add_file_type(FILE_TYPES[Type.F32])
        for name, tensor in tensors.named:
            writer.add_tensor_info(name, [*tensor.shape], np.dtype(np.float32), 0)
        file = _write_head(writer)
        for name, tensor in tensors.named:
            own = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
            data, kind = tensors.encode(name, tensors.change(name, own))
            wanted = math.prod(gguf.quant_shape_to_byte_shape(own.shape, kind))
            if data.nbytes != wanted:
                told = f"{name} as {kind.name} has {wanted} bytes, not {data.nbytes}"
                raise ValueError(told)  # a mistake of the encoder, not of a user
            writer.tensors[0][name] = TensorInfo([*own.shape], kind, wanted)
            data.tofile(file)
            writer.write_padding(file, data.nbytes)
            weights[kind] += own.size
        most = max(weights, key=lambda kind: (weights[kind], kind))
        writer.kv_data[0][gguf.Keys.General.FILE_TYPE].value = FILE_TYPES.get(
            most, gguf.LlamaFileType.GUESSED
        )
        file.seek(0)
        writer.state = WriterState.EMPTY
        _write_head(writer)
    return weights


def _write_head(writer: gguf.GGUFWriter) -> Any:
    """All before the tensors' data; the open file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    file.flush()
    return file


def open_file(path: Path, advice: str) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as problem:
        cause = f"not a GGUF file that can be read ({problem})"
        raise RecipeError(path, cause, advice) from problem


def copy_keys(
    writer: gguf.GGUFWriter, source: gguf.GGUFReader, wanted: Callable[[str], bool]
) -> None:
    """What another file says under these keys; its architecture is the writer's own affair."""
    for key, field in source.fields.items():
        if wanted(key) and key != "general.architecture" and not key.startswith("GGUF."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)


@torch.no_grad()
def fill(
    path: Path, tensors: dict[str, gguf.ReaderTensor], parameters: Iterable[tuple[str, Tensor]],
    advice: str, change: Callable[[str, Floats], Floats] = lambda _, value: value,
) -> None:  # fmt: skip
    """Copies a file's tensors into parameters, by the names they have there: every one must be
    there and fit, and no other be there. ``change`` turns the file's order of rows into ours."""
    for name, own in parameters:
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise RecipeError(path, f"the tensor {name} is missing", advice)
        shape = [int(n) for n in reversed(tensor.shape)]
        if shape != [*own.shape]:
            shapes = f"{shape}, not {[*own.shape]}"
            raise RecipeError(path, f"the tensor {name} has the shape {shapes}", advice)
        value = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        own.copy_(torch.from_numpy(np.ascontiguousarray(change(name, value))))
    if tensors:
        raise RecipeError(path, f"the tensor {next(iter(tensors))} has no place in it", advice)


def write_gguf(
    path: Path, network: Network, tokenizer: Tokenizer, label: Label,
    sampling: Mapping[str, float] = MappingProxyType({}),
) -> None:  # fmt: skip
    """A network as ``recipes/bundled.toml`` trains it, its matrices as Q8_0."""
    from selm_export import gguf_export
    from selm_export.checkpoint import Checkpoint
    from selm_export.exits import to_selm
    from selm_export.tokenizer_config import own

    checkpoint = Checkpoint(path, to_selm(network, []), tokenizer, own(tokenizer))
    gguf_export.write_gguf(
        path, checkpoint, encode=plain(Type.Q8_0), label=label, sampling=sampling
    )
