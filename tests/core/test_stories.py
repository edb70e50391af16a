"""A real trained model end to end: llama2.c's stories260K, converted, tells its story."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from selm_export import llama2c
from support.core import Session, Type
from support.oracles import relative_error
from support.raw_gguf import RawFile
from support.reference import Reference

from selm_edge import Model
from selm_edge.errors import ModelError

DATA = Path(__file__).parents[1] / "data"
SOURCE, TOKENIZER = DATA / "stories260K.bin", DATA / "stories260K-tokenizer.bin"
PROMPT = "Once upon a time"
# Read and found sane; the numpy reference says the same for as long as is compared below.
OPENING = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    " One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\""
)


@pytest.fixture(scope="module", params=["f32", "f16"])
def stories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories") / f"stories260K-{request.param}.gguf"
    llama2c.convert(SOURCE, TOKENIZER, path, kind=request.param)
    return path


def test_the_story_is_that_of_the_reference(stories: Path) -> None:
    reference = Reference(stories)
    with Model.load(stories, context=512, threads=2) as model:
        prompt = model.tokenize(PROMPT)
        assert prompt == [1, 403, 407, 261, 378]  # <s>, ▁Once, ▁upon, ▁a, ▁time
        expected = reference.greedy(prompt, 200)
        pieces = list(model.generate(PROMPT, max_tokens=200, temperature=0.0))
        text = "".join(pieces)
        assert model.detokenize(prompt + expected) == PROMPT + text
        assert (PROMPT + text).startswith(OPENING)
        assert len(pieces) > 150


def test_logits_of_a_trained_model(stories: Path) -> None:
    reference = Reference(stories)
    tokens = [1, 403, 407, 261, 378, *reference.greedy([1, 403, 407, 261, 378], 100)]
    reference.reset()
    expected = reference.eval(tokens)
    assert relative_error(Session(stories).eval(tokens), expected) <= 1e-4
    assert relative_error(Session(stories, kv_type="f16").eval(tokens), expected) <= 5e-3


def test_words_of_the_command(tmp_path: Path) -> None:
    out = tmp_path / "stories.gguf"
    command = [sys.executable, "-m", "selm_export.llama2c", str(SOURCE), str(TOKENIZER), str(out)]
    subprocess.run([*command, "--type", "f16"], cwd=tmp_path, check=True)
    kinds = {t.name: t.kind for t in RawFile.read(out).tensors}
    assert kinds[b"blk.0.ffn_down.weight"] == Type.F16
    assert kinds[b"blk.0.ffn_norm.weight"] == Type.F32
    bad = subprocess.run(
        [*command[:3], str(TOKENIZER), str(TOKENIZER), str(out)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 1
    assert str(TOKENIZER) in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("cut", [0, 27, 28, 1000, 1056539])
def test_a_source_that_was_cut_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(SOURCE.read_bytes()[:cut])
    with pytest.raises(llama2c.ConversionError, match=re.escape(str(path))):
        llama2c.convert(path, TOKENIZER, tmp_path / "out.gguf")
    path.write_bytes(TOKENIZER.read_bytes()[: cut % 6000])
    with pytest.raises(llama2c.ConversionError, match=re.escape(str(path))):
        llama2c.convert(SOURCE, path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("tensor", "kind", "row"),
    [
        *(("blk.0.ffn_down.weight", kind, 172) for kind in (Type.Q8_0, Type.Q4_0, Type.IQ4_NL)),
        *(("blk.3.attn_q.weight", kind, 64) for kind in (Type.Q4_K, Type.Q6_K, Type.IQ4_XS)),
        ("token_embd.weight", Type.Q2_K, 64),
    ],
    ids=lambda value: value.name if isinstance(value, Type) else None,
)
def test_types_whose_blocks_do_not_fit_are_refused(
    tensor: str, kind: Type, row: int, stories: Path, tmp_path: Path
) -> None:
    """Rows of 64 and 172 cannot be cut into blocks of 256, nor those of 172 into blocks of 32."""
    raw = RawFile.read(stories)
    raw.tensor(tensor).kind = kind
    path = tmp_path / "quantised.gguf"
    path.write_bytes(raw.build())
    with pytest.raises(ModelError) as caught:
        Model.load(path)
    assert caught.value.offset is not None
    for word in (tensor, kind.name, str(row)):
        assert word in caught.value.cause
