"""A checkpoint as a GGUF file, and a GGUF file as a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf

from selm_export.checkpoint import Checkpoint
from selm_export.gguf_file import Encode, Label, open_file, write_label, write_sampling
from selm_export.gguf_vocabulary import read_vocabulary, write_vocabulary
from selm_export.modeling.file import AGAIN, architecture_of, model_of, write

NO_SAMPLING: Mapping[str, float] = MappingProxyType({})


def write_gguf(
    path: Path, checkpoint: Checkpoint, *, encode: Encode, label: Label,
    sampling: Mapping[str, float] = NO_SAMPLING,
) -> Counter[gguf.GGMLQuantizationType]:  # fmt: skip
    """Writes ``llama``, ``qwen2`` or ``qwen3`` where that computes the same, else ``selm``; the
    number of weights of each type.

    ``encode`` is given each tensor by its name in the file, rows as they lie there (llama's
    queries and keys in the order of its rotary embedding), and gives its bytes and their type;
    what is no matrix has to stay F32. ``sampling`` (``temperature``, ``top_k``, ``top_p``,
    ``min_p``) is what the file recommends. Raises RecipeError where the tokenizer cannot be said
    in a file or the disk is full; nothing is left then, and what stood under this name still does.
    """
    config = checkpoint.model.config

    def keys(writer: gguf.GGUFWriter) -> None:
        write_label(writer, label)
        write_vocabulary(
            writer, checkpoint.tokenizer, config.vocab_size, checkpoint.tokenizer_config,
            checkpoint.path,
        )  # fmt: skip
        write_sampling(writer, sampling)

    return write(path, checkpoint.model, keys, encode, architecture_of(config))


def read_gguf(path: Path) -> Checkpoint:
    """A file of ``llama``, ``qwen2``, ``qwen3`` or ``selm``, weights of any type as floats."""
    reader = open_file(path, AGAIN)
    model = model_of(reader, path)
    tokenizer, config = read_vocabulary(reader, path)
    return Checkpoint(path, model, tokenizer, config)
