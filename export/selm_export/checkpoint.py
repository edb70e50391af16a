"""A model between two stages: a folder as `transformers` writes it, with its tokenizer.

``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``. A folder
appears under its name once it is whole, or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

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
