"""Tokenizers: published ids, round trips of any text, and three independent implementations.

SPM is held to a plain Python version of its rule, byte-level BPE to the `tokenizers` package,
both to llama.cpp, whichever of these are installed.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from selm_export import llama2c
from support.core import llama_python
from support.gguf_files import (
    SPECIALS,
    add_vocabulary,
    bpe_vocabulary,
    byte_alphabet,
    spm_vocabulary,
)

from selm_edge import Tokenizer

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
SHARED = Path(os.environ.get("SELM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
PUBLISHED = ["qwen2", "phi-3", "gpt-2"]
SEPARATOR = "\n__ggml_vocab_test__\n"

# What each name of `tokenizer.ggml.pre` means, as the models' own tokenizer.json files say it.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    "qwen2": rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}",
    "llama-bpe": rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
CORPUS = (
    "The quick brown fox jumps over the lazy dog, and then the dog doesn't mind: it's 2024, "
    "we've 1,234 foxes they'll see. Die Katze läuft über die Brücke; der Hund schläft. "
    "今天天气很好,我们去公园吧。 Привет, как дела? こんにちは世界 🦊🌍 "
    "def main():\n    return 3.14159\n\n\tif x == 10:\n\t\tprint('hello')\n"
) * 3
TEXTS = [
    *("", " ", "  ", "\t", "\n", "\n\n", " \n ", "Hello", " Hello", "Hello  world", "a\u0301"),
    *("I'm WE'VE they'Ll 'tis", "3 33 333 3333 33333", "x=1;y=2", "🦊🌍 fox", "e\u0300 é", "\x00"),
    *(
        "\u00a0nbsp\u2003em",
        "\u017f 's '\u017f 'S",
        "한국어 ภาษาไทย हिन्दी",
        "\r\n\r\n x",
        "....!!!",
        "½ ² Ⅷ ٣",
    ),
    *("<|im_start|>user", "</s><s>", "<0x41>", "ﷺ", "\U0010ffff", "x" * 300, " " * 50, CORPUS),
]
ASSIGNED = st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=60)
MIXED = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "12", "345", "the", "The", "."]
        ),
        st.text("abcdefgh the ond 0123456789'!?.,\n", max_size=12),
        ASSIGNED,
    ),
    max_size=8,
).map("".join)
HYPOTHESIS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def train_bpe(text: str, n_merges: int) -> list[str]:
    """Merges of a byte-level BPE, most frequent pair first (Sennrich 2016); words by spaces."""
    letters = byte_alphabet()
    words = Counter(text.replace(" ", "\0 ").split("\0"))
    split = {w: [letters[b] for b in w.encode()] for w in words}
    merges = []
    for _ in range(n_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(" ".join(best))
        for parts in split.values():
            for i in range(len(parts) - 1, 0, -1):
                if i < len(parts) and (parts[i - 1], parts[i]) == best:
                    parts[i - 1 : i + 1] = ["".join(best)]
    return merges


def trained_vocabulary(pre: str) -> dict[str, Any]:
    merges = train_bpe(CORPUS, 300)
    tokens = [*byte_alphabet(), *dict.fromkeys(m.replace(" ", "") for m in merges)]
    return {
        **bpe_vocabulary(352, pre),
        "tokens": tokens + SPECIALS,
        "types": [1] * len(tokens) + [3] * len(SPECIALS),
        "merges": merges,
        "bos": None if pre == "qwen2" else len(tokens),
        "eos": len(tokens) + 2,
    }


def write_vocabulary(path: Path, vocabulary: dict[str, Any], arch: str) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    # llama.cpp reads these even of a file without tensors.
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


OWN = ["spm", "stories", *PATTERNS]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small vocabularies of our own, by name."""
    folder = tmp_path_factory.mktemp("vocabularies")
    out = {
        pre: write_vocabulary(folder / f"{pre}.gguf", trained_vocabulary(pre), "qwen2")
        for pre in PATTERNS
    }
    out["spm"] = write_vocabulary(folder / "spm.gguf", spm_vocabulary(352), "llama")
    out["stories"] = folder / "stories.gguf"
    sources = (DATA / "stories260K.bin", DATA / "stories260K-tokenizer.bin")
    llama2c.convert(*sources, out["stories"])
    return out


@pytest.fixture(scope="module")
def loaded(files: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(path) for name, path in files.items()}


def shared_vocabulary(name: str) -> Path:
    path = SHARED / "tokenizers" / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path.name} is not here (SELM_SHARED_DATA names the folder with tokenizers/)")
    return path


@functools.cache
def published(name: str) -> Tokenizer:
    return Tokenizer.load(shared_vocabulary(name))


# ---- Published vocabularies --------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_line_is_exact(name: str) -> None:
    path = shared_vocabulary(name)
    tokenizer = Tokenizer.load(path)
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)[:-1]
    lines = Path(f"{path}.out").read_text().splitlines()
    assert len(texts) == len(lines)
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.tokenize(text, add_special=False) == [int(i) for i in line.split()], text
        if name != "phi-3":
            assert tokenizer.detokenize(tokenizer.tokenize(text, add_special=False)) == text


@pytest.mark.parametrize("name", PUBLISHED)
@settings(HYPOTHESIS, max_examples=60)
@given(text=st.one_of(ASSIGNED, MIXED))
def test_published_vocabularies_give_any_text_back(name: str, text: str) -> None:
    tokenizer = _published(name)
    assert tokenizer.detokenize(tokenizer.tokenize(text.replace("▁", "_"))) == text.replace(
        "▁", "_"
    )


_open: dict[str, Tokenizer] = {}


def _published(name: str) -> Tokenizer:
    if name not in _open:
        _open[name] = Tokenizer.load(shared_vocabulary(name))
    return _open[name]


# ---- Any text comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
@HYPOTHESIS
@given(text=st.one_of(st.text(st.characters(exclude_categories=["Cs"])), MIXED))
def test_any_text_comes_back(name: str, text: str, loaded: dict[str, Tokenizer]) -> None:
    """All of Unicode, unassigned too; but U+2581 is SPM's way to write a space."""
    text = text.replace("▁", "_")
    for add_special in (False, True):
        ids = loaded[name].tokenize(text, add_special=add_special)
        assert loaded[name].detokenize(ids) == text


@pytest.mark.parametrize("name", OWN)
def test_chosen_texts_come_back(name: str, loaded: dict[str, Tokenizer]) -> None:
    for text in TEXTS:
        assert loaded[name].detokenize(loaded[name].tokenize(text)) == text


@pytest.mark.parametrize("name", OWN)
@HYPOTHESIS
@given(ids=st.lists(st.integers(0, 300), max_size=30))
def test_any_ids_give_valid_text(name: str, ids: list[int], loaded: dict[str, Tokenizer]) -> None:
    loaded[name].detokenize(ids).encode()


def test_a_lone_surrogate_is_no_crash(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        assert "x" in tokenizer.detokenize(tokenizer.tokenize("a\ud800x"))


# ---- Special tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "spm"])
def test_control_tokens_are_read_only_when_asked(name: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[name]
    written = "<|im_start|>" if name == "qwen2" else "</s>"
    parsed = tokenizer.tokenize(f"a{written}b", add_special=False, parse_special=True)
    plain = tokenizer.tokenize(f"a{written}b", add_special=False, parse_special=False)
    assert len(parsed) < len(plain)
    assert tokenizer.detokenize(plain) == f"a{written}b"
    assert written not in tokenizer.detokenize(parsed)
    assert written in tokenizer.detokenize(parsed, special=True)


def test_bos_comes_where_the_file_asks(loaded: dict[str, Tokenizer]) -> None:
    assert loaded["spm"].tokenize("a")[0] == loaded["spm"].bos == 1
    assert loaded["spm"].tokenize("a", add_special=False)[0] != 1
    assert loaded["spm"].tokenize("") == [1]
    llama3 = loaded["llama-bpe"]
    assert llama3.tokenize("a")[0] == llama3.bos
    qwen = loaded["qwen2"]
    assert qwen.bos is None
    assert qwen.tokenize("") == []
    assert qwen.tokenize("a") == qwen.tokenize("a", add_special=False)


# ---- Independent implementations -----------------------------------------------------------------


def spm_reference(vocabulary: dict[str, Any]) -> Callable[[str], list[int]]:
    """Joins the neighbours with the best score (the first of equals) until none is a token."""
    ids = {t: i for i, t in enumerate(vocabulary["tokens"])}
    scores = vocabulary["scores"]

    def encode(text: str) -> list[int]:
        parts = list(("▁" + text.replace(" ", "▁")) if text else "")
        while True:
            joined = [(scores[ids[a + b]], -i) for i, (a, b) in pairs(parts) if a + b in ids]
            if not joined:
                break
            i = -max(joined)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out: list[int] = []
        for part in parts:
            out += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
        return out

    return encode


def pairs(parts: Sequence[str]) -> list[tuple[int, tuple[str, str]]]:
    return list(enumerate(itertools.pairwise(parts)))


@HYPOTHESIS
@given(text=MIXED)
def test_spm_is_that_of_plain_python(text: str, loaded: dict[str, Tokenizer]) -> None:
    expected = spm_reference(spm_vocabulary(352))(text)
    assert loaded["spm"].tokenize(text, add_special=False) == expected


def test_spm_of_a_trained_vocabulary_is_that_of_plain_python(loaded: dict[str, Tokenizer]) -> None:
    tokens = llama2c.read_tokens(DATA / "stories260K-tokenizer.bin", 512)
    texts, types = llama2c.vocabulary(tokens)
    plain = [
        t.decode() if k == 1 else f"\0{i}"
        for i, (t, k) in enumerate(zip(texts, types, strict=True))
    ]
    plain[3:259] = [f"<0x{b:02X}>" for b in range(256)]
    reference = spm_reference({"tokens": plain, "scores": [s for _, s in tokens]})
    for text in [t for t in TEXTS if len(t) < 400] + ["Lily and Ben went to the park. " * 6]:
        if "<0x" not in text:
            assert loaded["stories"].tokenize(text, add_special=False) == reference(text), text


@pytest.fixture(scope="module")
def others() -> dict[str, Callable[[str], list[int]]]:
    """The same vocabularies in the `tokenizers` package, by pre-tokenizer."""
    package = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    out: dict[str, Callable[[str], list[int]]] = {}
    for pre, pattern in PATTERNS.items():
        vocabulary = trained_vocabulary(pre)
        merges = [tuple(m.split(" ")) for m in vocabulary["merges"]]
        ids = {t: i for i, t in enumerate(vocabulary["tokens"])}
        other = package.Tokenizer(package.models.BPE(ids, merges, ignore_merges=pre == "llama-bpe"))
        other.pre_tokenizer = package.pre_tokenizers.Sequence(
            [
                package.pre_tokenizers.Split(package.Regex(pattern), "isolated"),
                package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        out[pre] = lambda text, other=other: other.encode(text, add_special_tokens=False).ids
    return out


@pytest.mark.parametrize("pre", PATTERNS)
@HYPOTHESIS
@given(text=st.one_of(ASSIGNED, MIXED))
def test_bpe_is_that_of_the_tokenizers_package(
    pre: str, text: str, loaded: dict[str, Tokenizer], others: dict[str, Any]
) -> None:
    assert loaded[pre].tokenize(text, add_special=False) == others[pre](text)


@pytest.mark.parametrize("pre", PATTERNS)
def test_bpe_of_chosen_texts(
    pre: str, loaded: dict[str, Tokenizer], others: dict[str, Any]
) -> None:
    for text in TEXTS:
        assert loaded[pre].tokenize(text, add_special=False) == others[pre](text), repr(text)


LLAMA_SCRIPT = """
import json, sys
import llama_cpp
texts, out = json.load(open(sys.argv[1])), {}
for path in sys.argv[2:]:
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    out[path] = [
        model.tokenize(t.encode(), add_bos=False, special=s) for t in texts for s in (False, True)]
print(json.dumps(out))
"""


def test_ids_are_those_of_llama_cpp(files: dict[str, Path], tmp_path: Path) -> None:
    python = llama_python()
    if python is None:
        pytest.skip("llama-cpp-python is not installed (nor named by SELM_TEST_LLAMA_PYTHON)")
    # Not "</s>": llama.cpp reads it as an end token even where the file says that it is plain text.
    texts = [t for t in TEXTS if "\0" not in t and "</s>" not in t]
    shared = [SHARED / "tokenizers" / f"ggml-vocab-{name}.gguf" for name in PUBLISHED]
    paths = [*files.values(), *(p for p in shared if p.exists())]
    listed = tmp_path / "texts.json"
    listed.write_text(json.dumps(texts))
    command = [python, "-c", LLAMA_SCRIPT, str(listed), *map(str, paths)]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for path in paths:
        tokenizer = Tokenizer.load(path)
        ours = [
            tokenizer.tokenize(text, add_special=False, parse_special=special)
            for text in texts
            for special in (False, True)
        ]
        for i, (mine, other) in enumerate(zip(ours, theirs[str(path)], strict=True)):
            assert mine == other, (path.name, texts[i // 2], i % 2)
