"""Texts to vectors: against numpy in float64; wrong files; what a setting opens."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.embedders import Type, expected, reference, write_embedder
from support.gguf_files import CONFIGS, write_model

from selm_edge import Model, _core, paths
from selm_edge.errors import ModelError, UnsupportedModelError
from selm_edge.memory.embedder import ModelEmbedder, StaticEmbedder, open_embedder

WORDS = ["the", "cat", "sat", "on", "a", "mat", "red", "car", "tyre", "house", "is", "was", "not"]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "##ing", ".", ",", "?", "kat", "##ze"]
TEXTS = [
    "The cat sat on a mat.",
    "Was the red car not of the house? And the cars, tyres ...",
    "Katze, unknownword mats",
    "the " * 5000,
]
DIM = 64


def rows() -> np.ndarray:
    return np.random.default_rng(11).normal(size=(len(TOKENS), DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedder") / "embedder.gguf"
    write_embedder(path, TOKENS, rows(), Type.Q8_0)
    return path


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q5_1], ids=lambda k: k.name
)
def test_vectors_are_those_of_numpy(kind: Type, tmp_path: Path) -> None:
    path = tmp_path / "embedder.gguf"
    held = write_embedder(path, TOKENS, rows(), kind)
    bert = reference(TOKENS)
    with StaticEmbedder(path) as embedder:
        assert embedder.dim == DIM
        for text, got in zip(TEXTS, embedder.embed(TEXTS), strict=True):
            want = expected(TOKENS, held, bert.encode(text, add_special_tokens=False).ids)
            assert want is not None and got is not None
            vector = np.frombuffer(got, "<f4")
            np.testing.assert_allclose(vector, want, atol=1e-7)
            assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 1e-6


def test_texts_without_a_vector(file: Path) -> None:
    embedder = StaticEmbedder(file)
    assert embedder.embed([]) == []
    assert embedder.embed(["", "   ", "zzz qqq", "[CLS] [PAD]", "\ud800"]) == [None] * 5
    known, unknown = embedder.embed(["the", "zzz"])
    assert known is not None and unknown is None


def test_long_lists_and_long_texts(file: Path) -> None:
    embedder = StaticEmbedder(file)
    texts = [f"{WORDS[i % len(WORDS)]} {WORDS[i % 7]}" for i in range(2500)]
    vectors = embedder.embed(texts)
    assert len(vectors) == 2500
    assert vectors[2400:] == embedder.embed(texts[2400:])
    many = embedder.embed(["red " * 500_000 + "x" * 3_000_000])[0]
    once = embedder.embed(["red"])[0]
    assert many is not None and once is not None
    np.testing.assert_allclose(np.frombuffer(many, "<f4"), np.frombuffer(once, "<f4"), atol=1e-6)


def test_threads_share_one(file: Path) -> None:
    embedder = StaticEmbedder(file)
    texts = TEXTS * 50
    alone = embedder.embed(texts)
    got: list[list[bytes | None]] = [[], []]

    def work(out: list[bytes | None]) -> None:
        out += embedder.embed(texts)

    threads = [threading.Thread(target=work, args=(out,)) for out in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [alone, alone]


def test_only_str_is_embedded(file: Path) -> None:
    core = _core.StaticEmbedder(str(file))
    with pytest.raises(TypeError):
        core.embed(["the", b"cat"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        core.embed("the")  # type: ignore[arg-type]


def test_the_id_is_of_the_file(file: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert StaticEmbedder(file).id == f"{digest}:sum:{DIM}"
    other = tmp_path / "other.gguf"
    write_embedder(other, TOKENS, -rows(), Type.Q8_0)
    assert StaticEmbedder(other).id != StaticEmbedder(file).id
    assert StaticEmbedder(file, sha256=lambda path: path.name).id == f"{file.name}:sum:{DIM}"


def test_after_closing(file: Path) -> None:
    embedder = StaticEmbedder(file)
    embedder.close()
    embedder.close()
    with pytest.raises(ValueError, match="closed"):
        embedder.embed(["the"])


# ---- Wrong files ---------------------------------------------------------------------------------


def refused(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        StaticEmbedder(path)
    assert str(path) in str(caught.value) and caught.value.hint
    return caught.value


def test_a_file_cut_short(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    path = tmp_path / "short.gguf"
    for size in range(0, len(whole) - 64, 64):
        path.write_bytes(whole[:size])
        refused(path)


def test_a_file_with_bytes_changed(file: Path, tmp_path: Path) -> None:
    """Refused with a reason, or used without harm."""
    whole = file.read_bytes()
    draw = np.random.default_rng(3)
    path = tmp_path / "changed.gguf"
    for _ in range(300):
        changed = bytearray(whole)
        for at in draw.integers(0, len(whole), 3):
            changed[at] ^= int(draw.integers(1, 256))
        path.write_bytes(changed)
        try:
            embedder = StaticEmbedder(path)
            vectors = embedder.embed(TEXTS[:3])
        except ModelError as error:
            assert str(path) in str(error) and error.hint
        else:
            assert all(v is None or len(v) == 4 * embedder.dim for v in vectors)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    bad = rows()
    bad[TOKENS.index("cat")] = np.nan
    path = tmp_path / "nan.gguf"
    write_embedder(path, TOKENS, bad)
    embedder = StaticEmbedder(path)
    assert embedder.embed(["the mat"])[0] is not None
    with pytest.raises(ModelError, match=r"token_embd\.weight holds numbers that are not finite"):
        embedder.embed(["the mat", "the cat"])


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    error = refused(path)
    assert "No such file" in error.cause
    path.write_text("not a model at all, but long enough to be looked at")
    assert refused(path).offset == 0
    assert "directory" in refused(tmp_path).cause
    model = refused(write_model(tmp_path / "llama.gguf", CONFIGS["llama"]))
    assert isinstance(model, UnsupportedModelError)
    assert "'llama', not selm-embedder" in model.cause and model.offset is not None


# ---- Models --------------------------------------------------------------------------------------


def test_a_model_embeds_too(tmp_path: Path) -> None:
    path = write_model(tmp_path / "llama.gguf", CONFIGS["llama"])
    text = "Once the cat sat."
    with Model.load(path) as model:
        want = np.array(model.embed(text), np.float32)
        beginning = model.tokenize("the cat " * 400)[: model.context]
        cut = np.array(model.engine.embed(beginning), np.float32)
    embedder = open_embedder(path)
    assert isinstance(embedder, ModelEmbedder)
    with embedder:
        assert embedder.dim == CONFIGS["llama"].hidden
        assert embedder.id == f"{hashlib.sha256(path.read_bytes()).hexdigest()}:mean:{embedder.dim}"
        same, empty, long = embedder.embed([text, " ", "the cat " * 400])
        assert empty is None and same is not None and long is not None
        np.testing.assert_array_equal(np.frombuffer(same, "<f4"), want)
        np.testing.assert_array_equal(np.frombuffer(long, "<f4"), cut)
    with pytest.raises(ValueError, match="closed"):
        embedder.embed([text])


# ---- What a setting opens ------------------------------------------------------------------------


def test_what_a_setting_opens(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_embedder("off") is None
    given = open_embedder(str(file))
    assert isinstance(given, StaticEmbedder)
    monkeypatch.setattr(paths, "bundled_dir", lambda: tmp_path)
    with pytest.raises(ModelError, match="missing from the installation") as caught:
        open_embedder("builtin")
    assert str(tmp_path) in str(caught.value) and "off" in str(caught.value.hint)
    (tmp_path / "selm-embedder.gguf").write_bytes(file.read_bytes())
    for choice in ("builtin", None):
        shipped = open_embedder(choice)
        assert shipped is not None and shipped.id == given.id


def test_a_path_to_what_neither_reads(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="'bert'") as caught:
        open_embedder(path)
    assert "builtin" in str(caught.value.hint)
    with pytest.raises(ModelError, match="No such file"):
        open_embedder(tmp_path / "none.gguf")
    with pytest.raises(ModelError):
        open_embedder(tmp_path)
