"""A bad file gets a ModelError with file, place and cause; never a crash, a hang or much memory."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.bad_files import MODEL_CASES, Case, arch_of, broken
from support.gguf_files import CONFIGS, write_model
from support.raw_gguf import BOOL, STRING, U32, RawFile

from selm_edge import Model, Tokenizer, _core
from selm_edge.errors import ModelError, UnsupportedModelError

SECONDS = 1.0  # to refuse any file


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The good file that a case starts from, by architecture."""
    folder = tmp_path_factory.mktemp("good")
    return {
        arch: write_model(folder / f"{arch}.gguf", CONFIGS[arch]) for arch in ("llama", "qwen2")
    }.__getitem__


def refused(load: Callable[[str], object], path: Path) -> ModelError:
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        load(str(path))
    assert time.perf_counter() - start < SECONDS
    error = caught.value
    assert error.path == str(path)
    assert str(path) in str(error)
    assert error.hint
    return error


def check(case: Case, error: ModelError) -> None:
    assert re.search(case.message, error.cause, re.DOTALL), error.cause
    if case.has_offset is not None:
        assert (error.offset is not None) == case.has_offset, str(error)
    if case.unsupported is not None:
        assert isinstance(error, UnsupportedModelError) == case.unsupported, str(error)
    if case.unsupported:
        assert "llama-cpp" in str(error)


def test_the_good_files_open(good: Callable[[str], Path], tmp_path: Path) -> None:
    """Taken apart and put together again, they are the same and open: so each case's cause is
    what was changed."""
    for arch in ("llama", "qwen2"):
        raw = RawFile.read(good(arch))
        assert raw.build() == good(arch).read_bytes()
        with Model.load(good(arch), context=64, threads=1) as model:
            assert len(memoryview(model.session().eval([5])).tobytes()) == 352 * 4


@pytest.mark.parametrize("name", MODEL_CASES)
def test_a_model_is_refused(name: str, good: Callable[[str], Path], tmp_path: Path) -> None:
    path = broken(MODEL_CASES[name], tmp_path / "bad.gguf", good(arch_of(name)))
    check(MODEL_CASES[name], refused(lambda p: Model.load(p, context=64, threads=1), path))


FILE_CASES = [n for n in MODEL_CASES if n.split("/")[0] in ("header", "metadata", "tensors")]
VOCABULARY_CASES = [n for n in MODEL_CASES if n.split("/")[0] in ("vocabulary", "bpe")]
# A tokenizer alone knows of no embedding that its size contradicts.
VOCABULARY_CASES.remove("vocabulary/tokens-fewer")


@pytest.mark.parametrize("name", [*FILE_CASES, *VOCABULARY_CASES])
def test_a_tokenizer_is_refused(name: str, good: Callable[[str], Path], tmp_path: Path) -> None:
    path = broken(MODEL_CASES[name], tmp_path / "bad.gguf", good(arch_of(name)))
    check(MODEL_CASES[name], refused(Tokenizer.load, path))


def test_a_vocabulary_without_tensors_is_a_tokenizer(
    good: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = RawFile.read(good("llama"))
    raw.tensors.clear()
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(raw.build())
    tokenizer = Tokenizer.load(path)
    assert tokenizer.detokenize(tokenizer.tokenize("the wind")) == "the wind"


def test_a_file_cut_anywhere_is_refused(good: Callable[[str], Path], tmp_path: Path) -> None:
    """At every byte of the first keys, then here and there; one byte short of the end, too."""
    data = good("llama").read_bytes()
    head = len(RawFile.read(good("llama")).head())
    path = tmp_path / "cut.gguf"
    cuts = [*range(500), *range(500, head, 29), *range(head, len(data), 4999), len(data) - 1]
    for cut in cuts:
        path.write_bytes(data[:cut])
        error = refused(lambda p: Model.load(p, context=64, threads=1), path)
        assert error.offset is None or error.offset <= cut


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_never_crash(seed: int, good: Callable[[str], Path], tmp_path: Path) -> None:
    """Bytes of the directory overwritten at random: refused, or it runs on what it then says."""
    rng, path = np.random.default_rng(seed), tmp_path / "damaged.gguf"
    source = good("llama" if seed % 2 else "qwen2")
    data, head = source.read_bytes(), len(RawFile.read(source).head())
    for _ in range(60):
        bad = bytearray(data)
        for at in rng.integers(0, head, rng.integers(1, 4)):
            bad[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, bad[at] ^ (1 << rng.integers(8))])
        path.write_bytes(bad)
        try:
            with Model.load(path, context=32, threads=1) as model:
                model.tokenize("Hello 123 you")
                model.session().eval([0, 1, 2])
        except ModelError as error:
            assert error.path == str(path)


def test_infinite_weights_are_found_when_asked(good: Callable[[str], Path], tmp_path: Path) -> None:
    """In a matrix they cost a read of the whole file to find, so only `check_weights` does."""
    raw = RawFile.read(good("llama"))
    data = bytearray(raw.tensor("blk.1.ffn_up.weight").data)
    data[4000:4004] = struct.pack("<f", math.inf)
    raw.tensor("blk.1.ffn_up.weight").data = bytes(data)
    path = tmp_path / "infinite.gguf"
    path.write_bytes(raw.build())
    _core.Model(str(path))
    _core.Model(str(good("llama")), check_weights=True)
    with pytest.raises(_core.CoreError, match=r"row 15 .*blk\.1\.ffn_up\.weight") as caught:
        _core.Model(str(path), check_weights=True)
    assert caught.value.args[0] == "format"


MISSING = {
    "absent": lambda p: None,
    "a-directory": lambda p: p.mkdir(),
    "a-socket-name": lambda p: p.symlink_to(p.parent / "nothing"),
}


@pytest.mark.parametrize("make", MISSING.values(), ids=MISSING)
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    # A folder might be an ONNX model (tests/runtime/test_onnx_backend.py); the core takes files.
    assert refused(partial(Model.load, backend="native"), path).offset is None
    assert refused(Tokenizer.load, path).offset is None


def test_invalid_utf8_in_names_and_texts_is_survived(
    good: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = RawFile.read(good("qwen2"))
    raw.set("general.name", STRING, b"\xff\xfe model")
    raw.more_keys.append((b"\xff\x80", U32, bytes(4)))
    raw.set("general.flag", BOOL, True)
    path = tmp_path / "odd.gguf"
    path.write_bytes(raw.build())
    with Model.load(path, context=32, threads=1) as model:
        assert "model" in str(model.metadata["general.name"])
        assert len(list(model.metadata)) == len(raw.keys) + 1


HOSTILE = [
    *("header/many-keys", "header/most-keys", "header/one-key-more", "header/many-tensors"),
    *("header/most-tensors", "metadata/huge-array", "metadata/huge-string-array"),
    *("metadata/huge-string", "tensors/dims-2^32-squared", "tensors/dims-triple"),
    *("tensors/far-past-the-end", "hyperparameters/blocks-huge", "hyperparameters/width-huge"),
]
LIMITED = """
import resource, sys
from selm_edge import Model, _core
from selm_edge.errors import ModelError
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        Model.load(path, context=64, threads=1)
    except ModelError as error:
        if "memory" in error.cause:
            sys.exit(f"{path}: {error}")
    else:
        sys.exit(f"{path} opened")
"""


def test_hostile_counts_allocate_nothing(good: Callable[[str], Path], tmp_path: Path) -> None:
    """All of them within 64 MB of address space beyond what Python itself takes."""
    pytest.importorskip("resource", reason="address-space limits are POSIX")
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much address space a process has")
    paths = [
        broken(MODEL_CASES[name], tmp_path / f"{i}.gguf", good("llama"))
        for i, name in enumerate(HOSTILE)
    ]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
