"""Small files of architecture `selm-embedder`, made with the `gguf` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

Type = gguf.GGMLQuantizationType
CONTROL, UNKNOWN = ("[PAD]", "[CLS]", "[SEP]", "[MASK]"), "[UNK]"


def write_embedder(
    path: Path,
    tokens: Sequence[str],
    rows: npt.NDArray[np.float32],
    kind: Type = Type.F32,
    most: int = 100,
) -> npt.NDArray[np.float64]:
    """Returns the rows as the file has them."""
    data = gguf.quants.quantize(rows, kind)
    types = [3 if t in CONTROL else 2 if t == UNKNOWN else 1 for t in tokens]
    writer = gguf.GGUFWriter(path, "selm-embedder")
    writer.add_uint32("selm-embedder.embedding_length", rows.shape[1])
    writer.add_uint32("selm-embedder.max_word_characters", most)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(tokens))
    writer.add_token_types(types)
    if UNKNOWN in tokens:
        writer.add_unk_token_id(tokens.index(UNKNOWN))
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(data, kind).astype(np.float64)


def reference(tokens: Sequence[str], most: int = 100) -> Tokenizer:
    """The same vocabulary in the `tokenizers` library; no token is cut out before the words are."""
    ids = {token: i for i, token in enumerate(tokens)}
    bert = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=most))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return bert


def expected(
    tokens: Sequence[str], rows: npt.NDArray[np.float64], ids: Sequence[int]
) -> npt.NDArray[np.float64] | None:
    """The vector in float64; None where no token is known."""
    unknown = tokens.index(UNKNOWN)
    total = rows[[i for i in ids if i != unknown]].sum(axis=0)
    length = np.sqrt((total * total).sum())
    return total / length if length > 0 else None
