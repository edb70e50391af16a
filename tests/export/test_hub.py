"""Hugging Face folders in: transformers' logits, and what is wrong with a folder named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")

import torch
from safetensors.torch import load_file, save_file
from selm_export import checkpoint
from selm_export.checkpoint import Checkpoint, same_tokenizer
from selm_export.errors import RecipeError
from selm_export.tokenizer_config import TokenizerConfig, own
from support.faults import largest_file
from support.hub_models import (
    LLAMA3,
    TEMPLATE,
    VARIANTS,
    byte_level,
    edit_json,
    transformers_model,
    write_folder,
)
from support.selm_models import some_model, some_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.randint(0, 380, (2, 80), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[variant]
    model = transformers_model(kind, **changes)
    loaded = checkpoint.load(write_folder(tmp_path, model))
    expected = logits(model)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits(loaded.model), expected, atol=1e-5, rtol=1e-5)
    assert loaded.model.config.tie_word_embeddings == bool(changes.get("tie_word_embeddings"))
    head, embedding = loaded.model.lm_head.weight, loaded.model.model.embed_tokens.weight
    assert (head.data_ptr() == embedding.data_ptr()) == loaded.model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_shards_of_16_bits(kind: torch.dtype, tmp_path: Path) -> None:
    model = transformers_model("Qwen2", tie_word_embeddings=True).to(kind)
    write_folder(tmp_path, model, shard="50KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 3
    loaded = checkpoint.load(tmp_path).model
    assert loaded.dtype == torch.float32 and not loaded.training
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(theirs), atol=1e-5, rtol=1e-5)


def test_a_stage_hands_on_what_it_was_given(tmp_path: Path) -> None:
    """Saved and loaded again, and read by transformers' tokenizer."""
    source = write_folder(
        tmp_path / "a", transformers_model("Llama", rope_scaling=LLAMA3), bos_token="<|im_start|>",
        eos_token={"content": "<|endoftext|>", "lstrip": False}, add_bos_token=True,
    )  # fmt: skip
    first = checkpoint.load(source)
    special = {
        t: first.tokenizer.token_to_id(f"<|{t}|>") for t in ("endoftext", "im_start", "im_end")
    }
    assert first.tokenizer_config == TokenizerConfig(
        TEMPLATE, eos=special["endoftext"], eot=special["im_end"], bos=special["im_start"],
        pad=special["endoftext"], add_bos=True,
    )  # fmt: skip
    checkpoint.save(tmp_path / "b", first.model, first.tokenizer, first.tokenizer_config)
    again = checkpoint.load(tmp_path / "b")
    assert again.tokenizer_config == first.tokenizer_config
    assert again.model.config.rope_factors == first.model.config.rope_factors != []
    assert torch.equal(logits(again.model), logits(first.model))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert (theirs.eos_token, theirs.bos_token) == ("<|endoftext|>", "<|im_start|>")
    said = [{"role": "user", "content": "Hello"}]
    written = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert written == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    same_tokenizer([first, again])


def test_a_folder_filled_again_holds_nothing_of_before(tmp_path: Path) -> None:
    big, small = transformers_model("Qwen2"), some_model()
    write_folder(tmp_path, big, shard="50KB")
    (tmp_path / "chat_template.jinja").write_text("of before")
    checkpoint.save(tmp_path, small, some_tokenizer())
    assert len([*tmp_path.glob("*.safetensors")]) == 1
    again = checkpoint.load(tmp_path)
    assert torch.equal(logits(again.model), logits(small))
    assert again.tokenizer_config == own(some_tokenizer())


def test_a_full_disk_is_said_and_the_model_of_before_stays(tmp_path: Path) -> None:
    before = some_model()
    checkpoint.save(tmp_path, before, some_tokenizer())
    told = f"^{re.escape(str(tmp_path))}: it could not be written .*Free space"
    with largest_file(100_000), pytest.raises(RecipeError, match=told):
        checkpoint.save(tmp_path, some_model(num_hidden_layers=5), some_tokenizer())
    assert torch.equal(logits(checkpoint.load(tmp_path).model), logits(before))
    assert not [*tmp_path.glob("writing-*")]


def test_where_templates_and_ids_may_stand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, transformers_model("Qwen2"), eos_token=None, pad_token=None)
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    edit_json(folder / "tokenizer_config.json", chat_template=named, add_bos_token=...)
    tokenizer = byte_level()
    ends = [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    edit_json(folder / "config.json", pad_token_id=ends[1], bos_token_id=5000)
    found = checkpoint.load(folder).tokenizer_config
    assert found == TokenizerConfig(TEMPLATE, eos=ends[0], eot=ends[0], bos=None, pad=ends[1])
    (folder / "chat_template.jinja").write_text("{{ 'newer' }}")
    assert checkpoint.load(folder).tokenizer_config.chat_template == "{{ 'newer' }}"
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    bare = checkpoint.load(folder).tokenizer_config
    assert bare.chat_template is None and bare.eot is None and bare.eos == ends[0]


def test_what_the_tokenizer_puts_before_a_text_is_seen(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(byte_level("llama-bpe").to_str())
    start = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", start)]
    )
    folder = write_folder(
        tmp_path, transformers_model("Llama"), tokenizer, bos_token="<|im_start|>"
    )
    edit_json(folder / "tokenizer_config.json", add_bos_token=...)
    assert checkpoint.load(folder).tokenizer_config.add_bos


def test_the_way_transformers_5_writes_rope(tmp_path: Path) -> None:
    model = transformers_model("Llama", rope_scaling=LLAMA3, rope_theta=500000.0)
    folder = write_folder(tmp_path, model)
    together = {**LLAMA3, "rope_theta": 500000.0}
    edit_json(folder / "config.json", rope_parameters=together, rope_theta=..., rope_scaling=...)
    found = logits(checkpoint.load(folder).model)
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)


def test_spare_tensors_are_left_out(tmp_path: Path) -> None:
    model = transformers_model("Qwen2", tie_word_embeddings=True)
    folder = write_folder(tmp_path, model)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.full((384, 64), 7.0)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(
        checkpoint.load(folder).model.lm_head.weight, model.get_input_embeddings().weight
    )


# ---- What is wrong is named ----------------------------------------------------------------------

Damage = Callable[[Path], object]


def config(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **changes)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model-00001-of-00002.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file)
        index = folder / "model.safetensors.index.json"
        named = json.loads(index.read_text())["weight_map"]
        gone = [k for k, v in named.items() if v == file.name and k not in found]
        edit_json(index, weight_map={k: v for k, v in named.items() if k not in gone}
                  | dict.fromkeys(found, file.name))  # fmt: skip

    return damage


def cut_file(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def point(name: str, to: str) -> Damage:
    def damage(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        named = json.loads(index.read_text())["weight_map"]
        edit_json(index, weight_map=named | {name: to})

    return damage


def tokenizer_of(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        spec = json.loads((folder / "tokenizer.json").read_text())
        change(spec)
        (folder / "tokenizer.json").write_text(json.dumps(spec))

    return damage


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
EMBEDDING = "model.embed_tokens.weight"
ODD = {"type": "Whitespace"}
CASES: dict[str, tuple[Damage, str, str]] = {
    # name: what is done to the folder; the file that is named; the cause
    "no config": (lambda f: (f / "config.json").unlink(), "", "holds no model (no config.json)"),
    "config no JSON": (cut_file("config.json", 40), "config.json", "cannot be read as JSON"),
    "other model": (config(model_type="gpt_neox"), "config.json", "model_type is gpt_neox, none"),
    "no model type": (config(model_type=...), "config.json", "model_type is none"),
    "experts": (config(model_type="qwen2_moe", num_experts=8), "config.json", "mixture of experts"),
    "pictures": (
        config(model_type="qwen2_vl", vision_config={}), "config.json", "takes images or sound",
    ),
    "packed": (
        config(quantization_config={"quant_method": "gptq"}), "config.json", "quantised (gptq)",
    ),
    "window": (
        config(use_sliding_window=True, sliding_window=64), "config.json",
        "sliding window of 64 tokens. Texts of up to 64 tokens are read in the same way without it:"
        " set sliding_window to null and max_position_embeddings to 64",
    ),
    "yarn": (
        config(rope_scaling={"rope_type": "yarn", "factor": 4.0,
                             "original_max_position_embeddings": 64}),
        "config.json", "rope_scaling is yarn, not linear or llama3. Without rope_scaling",
    ),
    "activation": (config(hidden_act="gelu"), "config.json", "hidden_act is gelu, not silu"),
    "heads": (config(num_key_value_heads=3), "config.json", "4 heads do not share 3 evenly"),
    "missing shard": (
        lambda f: (f / SECOND).unlink(), SECOND,
        "is missing, though model.safetensors.index.json says that it holds",
    ),
    "truncated shard": (cut_file(FIRST, 5000), FIRST, "no whole safetensors file"),
    "empty shard": (cut_file(FIRST, 0), FIRST, "no whole safetensors file"),
    "index names what is not there": (
        point("model.norm.weight", FIRST), FIRST, "does not hold the tensor model.norm.weight",
    ),
    "index without map": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "model.safetensors.index.json", "has no weight_map",
    ),
    "pickled": (
        lambda f: [x.unlink() for x in f.glob("model*")] + [(f / "pytorch_model.bin").touch()], "",
        "it holds no weights (neither model.safetensors nor model.safetensors.index.json). Save it"
        " again with transformers",
    ),
    "tensor missing": (
        tensors(lambda t: t.pop(EMBEDDING)), "model.safetensors.index.json",
        f"the tensor {EMBEDDING} is missing",
    ),
    "tensor too many": (
        tensors(lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.zeros(64)})),
        FIRST, "the tensor model.layers.0.self_attn.o_proj.bias has no place",
    ),
    "shape": (
        tensors(lambda t: t.update({EMBEDDING: t[EMBEDDING][:300].clone()})), FIRST,
        f"the tensor {EMBEDDING} has the shape [300, 64], where config.json wants [384, 64]",
    ),
    "type": (
        tensors(lambda t: t.update({EMBEDDING: t[EMBEDDING].to(torch.int8)})), FIRST,
        f"the tensor {EMBEDDING} is stored as I8",
    ),
    "NaN": (
        tensors(lambda t: t[EMBEDDING][3].fill_(float("nan"))), FIRST,
        f"the tensor {EMBEDDING} holds a value that is not finite",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json", "is missing. Make it with",
    ),
    "broken tokenizer": (cut_file("tokenizer.json", 300), "tokenizer.json", "is no tokenizer"),
    "tokens without rows": (
        config(vocab_size=300), "tokenizer.json",
        "its last token is 379, but the embedding has 300 rows (vocab_size)",
    ),
    "unknown cut": (
        tokenizer_of(lambda s: s.update(pre_tokenizer=ODD)), "tokenizer.json",
        'cuts text into words in a way that has no name in GGUF files: {"type": "Whitespace"}',
    ),
    "unknown normalizer": (
        tokenizer_of(lambda s: s.update(normalizer={"type": "Lowercase"})), "tokenizer.json",
        "its normalizer is Lowercase",
    ),
    "no such token": (
        lambda f: edit_json(f / "tokenizer_config.json", eos_token="<eos>"),
        "tokenizer_config.json",
        'names the eos_token "<eos>", which tokenizer.json does not have',
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    write_folder(folder, transformers_model("Qwen2"), shard="250KB")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(case: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    assert (tmp_path / SECOND).is_file()
    damage, file, told = CASES[case]
    damage(tmp_path)
    with pytest.raises(RecipeError, match=re.escape(told)) as caught:
        checkpoint.load(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / file if file else tmp_path}: ")
    assert said.rpartition(". ")[2]  # a next step


def test_mistral_with_a_window_in_use(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, transformers_model("Mistral", sliding_window=100))
    with pytest.raises(RecipeError, match="sliding window of 100"):
        checkpoint.load(folder)
    edit_json(folder / "config.json", sliding_window=None, max_position_embeddings=100)
    checkpoint.load(folder)


def test_experts_with_other_tokens_are_refused(tmp_path: Path) -> None:
    model = checkpoint.load(write_folder(tmp_path / "a", transformers_model("Qwen2")))
    same = Checkpoint(tmp_path / "b", model.model, byte_level("qwen2"))
    same_tokenizer([model, same])
    other = Checkpoint(tmp_path / "c", model.model, byte_level("smollm"))
    with pytest.raises(RecipeError) as caught:
        same_tokenizer([model, same, other])
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'c'}: ") and f"that of {tmp_path / 'a'}" in said
    a, c = (x.get_vocab() for x in (model.tokenizer, other.tokenizer))
    number = min(i for t, i in c.items() if a.get(t) != i)
    names = [next(t for t, i in x.items() if i == number) for x in (c, a)]
    assert f"token {number} is {names[0]!r} here and {names[1]!r} there" in said
    spec = json.loads(model.tokenizer.to_str())
    spec["pre_tokenizer"] = json.loads(byte_level("llama-bpe").to_str())["pre_tokenizer"]
    cut = Checkpoint(tmp_path / "d", model.model, type(model.tokenizer).from_str(json.dumps(spec)))
    with pytest.raises(RecipeError, match="the tokens are the same, but not how text is cut"):
        same_tokenizer([model, cut])
