"""Checkpoints out as GGUF: torch, our core and llama.cpp agree on logits, text and tokens."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import gguf
import numpy as np
import torch
from selm_export import checkpoint, llama2c, random_hub
from selm_export.checkpoint import Checkpoint
from selm_export.errors import RecipeError
from selm_export.gguf_export import read_gguf, write_gguf
from selm_export.gguf_file import Label, copy_keys, plain
from selm_export.random_model import Shape
from selm_export.stages import gguf as stage
from selm_export.stages.job import Job
from selm_export.tokenizer_config import TokenizerConfig, own
from support.core import Session, llama_python
from support.faults import largest_file
from support.hub_models import (
    HARD,
    LLAMA3,
    PUBLISHED,
    TEMPLATE,
    VARIANTS,
    byte_level,
    transformers_model,
    write_folder,
)
from support.selm_models import some_model, some_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

from selm_edge import Model
from selm_edge import Tokenizer as CoreTokenizer

Type = gguf.GGMLQuantizationType
F32 = plain(Type.F32)
DATA = Path(__file__).parent.parent / "data"
IDS = torch.randint(0, 380, (1, 100), generator=torch.Generator().manual_seed(1))
PROMPT = IDS[0, :20].tolist()
GREEDY = 16
# Factors of single pairs belong to llama alone, so these are selm.
OURS = {"qwen2, factors": ("Qwen2", {"rope_scaling": LLAMA3})}
ARCHITECTURES = {"Llama": "llama", "Mistral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"}


def greedy(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in range(GREEDY):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    found: list[int] = ids[0, len(PROMPT) :].tolist()
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Files by variant, and transformers' own model of each."""
    folder, found = tmp_path_factory.mktemp("gguf"), {}
    for number, (name, (kind, changes)) in enumerate({**VARIANTS, **OURS}.items()):
        model = transformers_model(kind, **changes)
        loaded = checkpoint.load(write_folder(folder / str(number), model))
        path = folder / f"{number}.gguf"
        write_gguf(path, loaded, encode=F32, label=Label(name))
        found[name] = (path, model)
    return found


LLAMA_SCRIPT = """
import itertools, json, sys
import numpy as np
import llama_cpp

ids, prompt, count, out, *paths = json.loads(sys.stdin.read())
logits, texts = [], []
for path in paths:
    model = llama_cpp.Llama(
        path, n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1, logits_all=True,
        type_k=0, type_v=0, flash_attn=False, verbose=False)
    model.eval(ids)
    logits.append(np.array(model.scores[: len(ids)], np.float32))
    model.reset()
    stream = model.generate(prompt, temp=0.0, repeat_penalty=1.0)
    texts.append(list(itertools.islice(stream, count)))
np.savez(out, *logits)
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def llama_cpp(
    written: dict[str, tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, list[int]]]:
    """Logits and greedy tokens of llama.cpp, of all files that are of a standard architecture."""
    python = llama_python()
    if python is None:
        pytest.skip("llama-cpp-python is not installed (nor named by SELM_TEST_LLAMA_PYTHON)")
    files = {name: path for name, (path, _) in written.items() if name not in OURS}
    out = tmp_path_factory.mktemp("llama") / "logits.npz"
    asked = [IDS[0].tolist(), PROMPT, GREEDY, str(out), *map(str, files.values())]
    done = subprocess.run(
        [python, "-c", LLAMA_SCRIPT], input=json.dumps(asked), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout)
    with np.load(out) as arrays:
        return {name: (arrays[f"arr_{i}"], texts[i]) for i, name in enumerate(files)}


@pytest.mark.parametrize("variant", [*VARIANTS, *OURS])
def test_our_core_computes_what_transformers_computes(
    variant: str, written: dict[str, tuple[Path, Any]]
) -> None:
    path, model = written[variant]
    architecture = gguf.GGUFReader(path).get_field("general.architecture")
    kind = {**VARIANTS, **OURS}[variant][0]
    assert architecture is not None
    assert architecture.contents() == ("selm" if variant in OURS else ARCHITECTURES[kind])
    with torch.no_grad():
        expected = model(IDS).logits[0].numpy()
    np.testing.assert_allclose(Session(path).eval(IDS[0].tolist()), expected, atol=1e-3, rtol=0)
    session, next_ids, found = Session(path), PROMPT, []
    for _ in range(GREEDY):
        found.append(int(session.eval(next_ids)[-1].argmax()))
        next_ids = found[-1:]
    assert found == greedy(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_what_transformers_computes(
    variant: str, written: dict[str, tuple[Path, Any]], llama_cpp: dict[str, tuple[Any, list[int]]]
) -> None:
    model, (logits, text) = written[variant][1], llama_cpp[variant]
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(IDS).logits[0].numpy(), atol=1e-3, rtol=0)
    assert text == greedy(model)


@pytest.mark.parametrize("variant", [*VARIANTS, *OURS])
def test_the_way_back_is_exact(variant: str, written: dict[str, tuple[Path, Any]]) -> None:
    """Weights, tokenizer, template and ids; and what is written again is the same file."""
    path, _ = written[variant]
    first = checkpoint.load(path.with_suffix(""))
    back = read_gguf(path)
    assert back.model.config.rope_factors == pytest.approx(first.model.config.rope_factors)
    for name, value in first.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name
    assert back.tokenizer_config == first.tokenizer_config
    for text in HARD:
        assert back.tokenizer.encode(text).ids == first.tokenizer.encode(text).ids, text
    again = path.with_suffix(".again")
    write_gguf(again, checkpoint.load(path), encode=F32, label=Label(variant))
    assert again.read_bytes() == path.read_bytes()


# ---- Tokenizers ----------------------------------------------------------------------------------


def tokens_file(path: Path, tokenizer: Tokenizer, config: TokenizerConfig) -> Path:
    """A small model with this tokenizer."""
    size = max(tokenizer.get_vocab().values()) + 1
    model = some_model(vocab_size=size, num_hidden_layers=1)
    write_gguf(path, Checkpoint(path, model, tokenizer, config), encode=F32, label=Label("x"))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_of_each_published_cut(name: str, tmp_path: Path) -> None:
    tokenizer = byte_level(name)
    end = tokenizer.token_to_id("<|im_end|>")
    config = TokenizerConfig(TEMPLATE, eos=end, bos=tokenizer.token_to_id("<|im_start|>"))
    path = tokens_file(tmp_path / "m.gguf", tokenizer, config)
    pre = gguf.GGUFReader(path).get_field("tokenizer.ggml.pre")
    assert pre is not None and pre.contents() == name
    core, back = CoreTokenizer.load(path), read_gguf(path).tokenizer
    for text in [*HARD, "<|im_start|>user\nhi<|im_end|> <tool>{}"]:
        expected = tokenizer.encode(text).ids
        assert core.tokenize(text, add_special=False, parse_special=True) == expected, repr(text)
        assert back.encode(text).ids == expected, repr(text)
    assert (core.eos, core.bos) == (end, config.bos)
    assert core.tokenize("a") == core.tokenize("a", add_special=False)  # no token before a text


def test_a_cut_may_be_written_in_another_way(tmp_path: Path) -> None:
    """Removing what is no match is keeping the matches, where every character is in one."""
    spec = json.loads(byte_level("gpt-4o").to_str())
    spec["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    core = CoreTokenizer.load(tokens_file(tmp_path / "m.gguf", tokenizer, own(tokenizer)))
    for text in HARD:
        assert core.tokenize(text, add_special=False) == tokenizer.encode(text).ids, repr(text)


def sentencepiece(prefix: str) -> Tokenizer:
    """stories260K's vocabulary, as transformers converts a SentencePiece model. ``prefix``: how a
    space is put before a text."""
    pieces = llama2c.read_tokens(DATA / "stories260K-tokenizer.bin", 512)
    texts, _ = llama2c.vocabulary(pieces)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += [t.decode() for t in texts[259:]]
    ids = {t: i for i, t in enumerate(tokens)}
    # Of the plain pieces; those of the bytes' names would join texts such as "<0x41>".
    scores = {t: s for t, (_, s) in zip(tokens[259:], pieces[259:], strict=True)}
    merges = generate_merges({t: ids[t] for t in scores}, scores)
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prefix == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    else:
        steps: list[Any] = [normalizers.Replace(" ", "▁")]
        if prefix == "normalizer":
            steps.insert(0, normalizers.Prepend("▁"))
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


@pytest.mark.parametrize("prefix", ["normalizer", "metaspace", "none"])
def test_tokens_of_sentencepiece_models(prefix: str, tmp_path: Path) -> None:
    tokenizer = sentencepiece(prefix)
    config = TokenizerConfig(None, eos=2, bos=1, add_bos=True)
    path = tokens_file(tmp_path / "m.gguf", tokenizer, config)
    model = gguf.GGUFReader(path).get_field("tokenizer.ggml.model")
    assert model is not None and model.contents() == "llama"
    core, checkpoint_back = CoreTokenizer.load(path), read_gguf(path)
    # Texts of bytes' names and special tokens are read by the tokenizers package in its own way.
    # Metaspace adds no space to one that is there; GGUF's readers do, as SentencePiece does.
    texts = [t for t in HARD if "<" not in t and not (prefix == "metaspace" and t[:1] == " ")]
    texts += ["Lily and Ben went to the park. " * 6]
    for text in texts:
        expected = tokenizer.encode(text).ids
        assert core.tokenize(text, add_special=False) == expected, repr(text)
        back = checkpoint_back.tokenizer.encode(text, add_special_tokens=False).ids
        assert back == expected, repr(text)
    assert core.tokenize("Lily")[0] == 1 and core.eos == 2
    assert checkpoint_back.tokenizer_config == config
    assert checkpoint_back.tokenizer.encode("Lily").ids[0] == 1


def test_a_bpe_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    """Where not every way to put a token together is a merge, scores cannot say the same."""
    spec = json.loads(sentencepiece("none").to_str())
    spec["model"]["merges"] = spec["model"]["merges"][10:]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(RecipeError, match="was not made from a SentencePiece model"):
        tokens_file(tmp_path / "m.gguf", tokenizer, TokenizerConfig())
    assert not [*tmp_path.iterdir()]


def test_rows_without_a_token_are_padding(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "m.gguf", some_tokenizer()
    model = some_model(vocab_size=410)
    write_gguf(
        path, Checkpoint(path, model, tokenizer, own(tokenizer)), encode=F32, label=Label("x")
    )
    reader = gguf.GGUFReader(path)
    tokens, kinds = (reader.get_field(f"tokenizer.ggml.{k}") for k in ("tokens", "token_type"))
    assert tokens is not None and kinds is not None
    assert tokens.contents()[399:] == [
        tokenizer.id_to_token(399),
        *(f"[PAD{i}]" for i in range(400, 410)),
    ]
    assert kinds.contents()[400:] == [5] * 10
    assert read_gguf(path).tokenizer.get_vocab_size() == 400
    with Model.load(path, threads=1) as core:
        assert core.detokenize(core.tokenize("1 + 1")) == "1 + 1"


# ---- Types, and faults ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0])
def test_types_of_matrices(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", transformers_model("Llama"))
    path = tmp_path / "m.gguf"
    weights = write_gguf(
        path, checkpoint.load(folder), encode=plain(kind), label=Label("x", license="mit"),
        sampling={"temperature": 0.5, "top_k": 7},
    )  # fmt: skip
    reader = gguf.GGUFReader(path)
    kinds = {t.name: t.tensor_type for t in reader.tensors}
    assert kinds["blk.1.attn_q.weight"] == kinds["output.weight"] == kind
    assert kinds["blk.1.attn_norm.weight"] == Type.F32
    assert set(weights) == {kind, Type.F32}
    assert sum(weights.values()) == sum(t.n_elements for t in reader.tensors)
    keys = {
        "general.file_type": getattr(gguf.LlamaFileType, f"MOSTLY_{kind.name}"),
        "general.license": "mit", "general.sampling.temp": 0.5, "general.sampling.top_k": 7,
        "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    for key, value in keys.items():
        field = reader.get_field(key)
        assert field is not None and field.contents() == value
    with torch.no_grad():
        expected = read_gguf(path).model(IDS).logits[0].numpy()
    found = Session(path, exact=True).eval(IDS[0].tolist())
    # The core rounds activations too where weights are blocks.
    share = 2e-3 if kind == Type.Q8_0 else 1e-5
    assert np.square(found - expected).mean() < share * np.square(expected).mean()


@pytest.mark.parametrize("limit", [5_000, 300_000])
def test_a_full_disk_is_said_and_loses_nothing(limit: int, tmp_path: Path) -> None:
    """Within the header, and within the tensors."""
    made = checkpoint.load(write_folder(tmp_path / "a", transformers_model("Llama")))
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    target.write_bytes(b"what was here")
    told = re.escape(f"{target}: it could not be written (") + ".*Free space on the disk"
    with largest_file(limit), pytest.raises(RecipeError, match=told):
        write_gguf(target, made, encode=F32, label=Label("x"))
    assert [*target.parent.iterdir()] == [target] and target.read_bytes() == b"what was here"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    model, path = some_model(), tmp_path / "none" / "m.gguf"
    made = Checkpoint(path, model, some_tokenizer(), own(some_tokenizer()))
    with pytest.raises(RecipeError, match=r"m\.gguf: it could not be written \(No such file"):
        write_gguf(path, made, encode=F32, label=Label("x"))


def test_what_only_selm_has_is_selm(tmp_path: Path) -> None:
    for number, changes in enumerate(
        (
            {"exit_layers": [1]}, {"head_gate": True}, {"ranks": {"mlp.up_proj": 8}},
            {"attention_kinds": ["softmax", "window", "softmax"]},
            {"attention_bias": True, "qk_norm": True},
            {"expert_names": ["a", "b"], "trunk_layers": 1},
        )
    ):  # fmt: skip
        path, model = tmp_path / f"{number}.gguf", some_model(**changes)
        made = Checkpoint(path, model, some_tokenizer(), own(some_tokenizer()))
        write_gguf(path, made, encode=F32, label=Label("x"))
        field = gguf.GGUFReader(path).get_field("general.architecture")
        assert field is not None and field.contents() == "selm"
        ids = torch.arange(30)[None]
        with torch.no_grad():
            assert torch.equal(read_gguf(path).model(ids).logits, model(ids).logits)


# ---- The stage -----------------------------------------------------------------------------------


def job(folder: Path, *inputs: Path, name: str = "small") -> Job:
    folder.mkdir(exist_ok=True)
    return Job(name, inputs, folder, folder, 0, lambda _: None)


def test_the_stage_makes_a_file_of_a_folder_of_shards(tmp_path: Path) -> None:
    shape = Shape(64, 96, 2, 4, 2, 16, vocabulary=384, context=512)
    random_hub.write_folder(tmp_path / "hub", shape, shard=30_000)
    assert len([*(tmp_path / "hub").glob("*.safetensors")]) > 4
    settings = stage.Settings(type="f16", title="Small", sampling={"top_p": 0.5})
    figures = stage.run(job(tmp_path / "out", tmp_path / "hub"), settings)
    path = tmp_path / "out" / "model.gguf"
    norms = 5 * 64 + 2 * 128  # and biases of queries, keys and values
    assert figures == {
        "file": "model.gguf", "architecture": "qwen2", "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in checkpoint.load(tmp_path / "hub").model.parameters()),
        "weights_by_type": {"F16": figures["parameters"] - norms, "F32": norms},
    }  # fmt: skip
    expected = checkpoint.load(tmp_path / "hub").model
    with torch.no_grad():  # bf16 of this size is F16 too, but for what is nearly nothing
        logits = expected(IDS).logits[0].numpy()
    np.testing.assert_allclose(Session(path).eval(IDS[0].tolist()), logits, atol=1e-3, rtol=0)
    with Model.load(path, threads=1) as core:
        assert core.name == "Small" and core.metadata["general.sampling.top_p"] == 0.5


@pytest.mark.parametrize(
    ("settings", "inputs", "told"),
    [
        (stage.Settings(type="q4_k"), 1, "small: has the type 'q4_k', none of f32"),
        (stage.Settings(sampling={"top_q": 1}), 1, "small: has an unknown key sampling.top_q"),
        (stage.Settings(), 2, "small: is given 2 models"),
        (stage.Settings(), 1, "holds no model"),
    ],
)
def test_what_the_stage_cannot_do_is_told(
    settings: stage.Settings, inputs: int, told: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)):
        stage.run(job(tmp_path / "out", *[tmp_path / "none"] * inputs), settings)


# ---- Files of others -----------------------------------------------------------------------------


def test_a_file_of_another_writer_is_read(tmp_path: Path) -> None:
    """stories260K, whose rows stand in llama's own order from the start, with its SPM tokenizer."""
    path = tmp_path / "stories.gguf"
    llama2c.convert(DATA / "stories260K.bin", DATA / "stories260K-tokenizer.bin", path)
    found = checkpoint.load(path)
    ids = found.tokenizer.encode("Once upon a time, a little girl").ids
    assert ids == CoreTokenizer.load(path).tokenize("Once upon a time, a little girl")
    with torch.no_grad():
        logits = found.model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(Session(path).eval(ids), logits, atol=1e-3, rtol=0)
    assert found.tokenizer.decode(ids) == "Once upon a time, a little girl"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tokenizer.ggml.pre", "falcon", "cuts text into words as 'falcon', which is unknown here"),
        ("tokenizer.ggml.model", "bert", "its tokenizer is bert, not gpt2 or llama"),
        ("llama.rope.scaling.type", "yarn", "its RoPE scaling is yarn"),
        ("llama.rope.dimension_count", 8, "its heads turn in part"),
        ("llama.feed_forward_length", 95, "blk.0.ffn_gate.weight has the shape [96, 64], not [95,"),
        ("llama.attention.head_count_kv", 3, "4 heads do not share 3 evenly"),
    ],
)
def test_keys_that_cannot_be_followed_are_told(
    key: str, value: Any, told: str, written: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    source, path = gguf.GGUFReader(written["llama"][0]), tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    copy_keys(writer, source, lambda name: name != key)
    (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RecipeError, match=re.escape(told)) as caught:
        read_gguf(path)
    assert str(caught.value).startswith(f"{path}: ")
