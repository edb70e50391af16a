"""A model between two stages: a folder as `transformers` writes it, with its tokenizer.

``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``. A folder
appears under its name once it is whole, or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gguf
from tokenizers import Tokenizer

from selm_export.data.vocabulary import rebuild_vocabulary
from selm_export.errors import RecipeError
from selm_export.modeling.model import SelmForCausalLM, register

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    model: SelmForCausalLM  # float32, not in training mode
    tokenizer: Tokenizer


def load(path: Path) -> Checkpoint:
    if not (path / "config.json").is_file():
        raise RecipeError(path, "holds no model (no config.json)", "Name a model's folder")
    register()
    model = SelmForCausalLM.from_pretrained(path)
    return Checkpoint(path, model.eval(), Tokenizer.from_file(str(path / TOKENIZER)))


def read_tokenizer(path: Path) -> Tokenizer:
    """Of a model's folder, of its tokenizer.json, or of a .gguf file."""
    if path.is_dir():
        path = path / TOKENIZER
    if not path.is_file():
        raise RecipeError(path, "does not exist", "Name a folder, a tokenizer.json or a .gguf")
    if path.suffix == ".gguf":
        reader = gguf.GGUFReader(path)
        tokens, merges = (reader.get_field(f"tokenizer.ggml.{k}") for k in ("tokens", "merges"))
        if tokens is None or merges is None:
            raise RecipeError(path, "has no BPE vocabulary", "Name another file")
        return rebuild_vocabulary(tokens.contents(), merges.contents())
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no narrower one
        raise RecipeError(path, f"is no tokenizer ({error})", "Fetch the file again") from error


def save(path: Path, model: SelmForCausalLM, tokenizer: Tokenizer) -> None:
    """Fills ``path`` with the model; what an earlier run left of one there is replaced."""
    path.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(dir=path, prefix="writing-"))
    try:
        model.save_pretrained(writing)
        tokenizer.save(str(writing / TOKENIZER))
        # The configuration goes last: without it there is no model here.
        for file in sorted(writing.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(writing)
