"""The tokenizer and the GGUF file, and the measuring that reads it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="needs the [export] extra: tokenizers is not installed")
pytest.importorskip("numpy")

import numpy as np
from selm_export import evaluate
from selm_export.data import generate_notes, generate_numbers
from selm_export.data.chat import CHAT_TEMPLATE, SPECIAL_TOKENS, chat
from selm_export.data.vocabulary import encode, end_of_turn, train_vocabulary
from selm_export.errors import RecipeError

SIZE = 600


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = []
    for i in range(300):
        for make in (generate_numbers.conversation, generate_notes.conversation):
            texts += [m.content for m in make(random.Random(i)).messages]
    return train_vocabulary(texts, SIZE)


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    assert tokenizer.get_vocab_size() == SIZE
    for text in ("1234567890", "a12b345", " 17 + 25 = 42"):
        tokens = tokenizer.encode(text).tokens
        assert all(len(t) == 1 for t in tokens if any(c.isdigit() for c in t)), tokens


@pytest.mark.parametrize(
    "text", ["héllo wörld 😀", "  two  spaces\n\n\ttab", "日本語 ١٢", "\x00\x7f"]
)
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_encode_marks_replies_and_equals_the_whole_text(tokenizer: Any) -> None:
    conversation = chat("x", "What is 1 + 1?", "1 + 1 = 2.", "Thanks", "You are welcome!")
    ids, reply = encode(tokenizer, conversation)
    whole = (
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n1 + 1 = 2.<|im_end|>\n"
        "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\nYou are welcome!<|im_end|>\n"
    )
    assert ids == tokenizer.encode(whole).ids
    said = [i for i, r in zip(ids, reply, strict=True) if r]
    assert tokenizer.decode(said, skip_special_tokens=False) == (
        "1 + 1 = 2.<|im_end|>You are welcome!<|im_end|>"
    )
    assert said.count(end_of_turn(tokenizer)) == 2


@pytest.fixture(scope="module")
def model_path(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="needs the [export] extra: torch is not installed")
    pytest.importorskip("gguf")
    from selm_export.gguf_file import Label, write_gguf
    from selm_export.network import Network, Shape, initialise

    network = Network(Shape(vocab=640, width=64, layers=2, heads=2, kv_heads=1, feed_forward=96))
    initialise(network, 1)
    path: Path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path, network, tokenizer, Label("Small"), {"temperature": 0.25, "top_k": 10})
    return path


def test_gguf_says_what_readers_need(tokenizer: Any, model_path: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(str(model_path))

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    assert value("general.architecture") == "qwen2"
    assert value("general.name") == "Small"
    assert value("general.license") == "apache-2.0"
    assert value("general.file_type") == gguf.LlamaFileType.MOSTLY_Q8_0
    assert value("general.quantization_version") == gguf.GGML_QUANT_VERSION
    expected = {
        "context_length": 1024, "embedding_length": 64, "block_count": 2,
        "feed_forward_length": 96, "attention.head_count": 2, "attention.head_count_kv": 1,
        "rope.freq_base": 10000.0,
    }  # fmt: skip
    assert {k: value(f"qwen2.{k}") for k in expected} == expected
    assert value("qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "qwen2"
    assert value("tokenizer.ggml.add_bos_token") is False
    assert value("tokenizer.ggml.eos_token_id") == end_of_turn(tokenizer)
    assert value("tokenizer.chat_template") == CHAT_TEMPLATE
    tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    assert len(tokens) == len(kinds) == len(set(tokens)) == 640
    for token in SPECIAL_TOKENS:
        assert kinds[tokens.index(token)] == gguf.TokenType.CONTROL
    assert kinds[SIZE:] == [gguf.TokenType.UNUSED] * 40
    names = {t.name: t for t in reader.tensors}
    assert names["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert names["blk.1.attn_q.bias"].tensor_type == gguf.GGMLQuantizationType.F32
    assert len(names) == 2 + 2 * 12
    assert not list(model_path.parent.glob("*.writing"))


def read_network(path: Path) -> Any:
    """The network of a file that ``write_gguf`` wrote, dequantised: read by the gguf package."""
    import gguf
    import torch
    from selm_export.modeling.file import tensor_name
    from selm_export.network import Network, Shape

    reader = gguf.GGUFReader(str(path))

    def number(key: str) -> float:
        field = reader.fields[f"qwen2.{key}"]
        return float(field.parts[field.data[0]][0])

    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    shape = Shape(
        vocab=tensors["token_embd.weight"].shape[0],
        width=int(number("embedding_length")),
        layers=int(number("block_count")),
        heads=int(number("attention.head_count")),
        kv_heads=int(number("attention.head_count_kv")),
        feed_forward=int(number("feed_forward_length")),
        context=int(number("context_length")),
        rope_base=number("rope.freq_base"),
        norm_epsilon=number("attention.layer_norm_rms_epsilon"),
    )
    network = Network(shape)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            value = torch.from_numpy(np.array(tensors[tensor_name(name)]))
            parameter.copy_(value.view_as(parameter))
    return network.eval()


def test_gguf_holds_the_weights(model_path: Path) -> None:
    import torch
    from selm_export.network import Network, initialise

    read = read_network(model_path)
    original = Network(read.shape)
    initialise(original, 1)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        a, b = original(ids), read(ids)
    assert float((a - b).pow(2).mean() / a.pow(2).mean()) < 5e-4


class FakeCore:
    """Stands for the inference core: bytes as tokens, logits from a fixed table."""

    def __init__(self, template: str | None = None) -> None:
        self.metadata = {"tokenizer.chat_template": template} if template else {}
        self.table = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def session(self) -> FakeCore:
        return self

    def eval(self, ids: list[int]) -> Any:
        return memoryview(self.table[np.array(ids)])


def test_bits_per_byte_against_an_independent_computation() -> None:
    core = FakeCore()
    conversations = [chat("x", "héllo", "wörld"), chat("x", "a", "b", "c", "a longer reply")]
    got = evaluate.evaluate(core, conversations).summary()
    nats, count = 0.0, 0
    for c in conversations:
        text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in c.messages)
        data, at = text.encode(), 0
        for message in c.messages:
            content = message.content.encode()
            at = data.index(b"\n" + content + b"<|im_end|>", at) + 1
            if message.role != "assistant":
                continue
            for i in range(at, at + len(content)):
                row = core.table[data[i - 1]].astype(np.float64)
                nats += math.log(np.exp(row).sum()) - row[data[i]]
                count += 1
    assert got["tokens"] == got["bytes"] == count
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, rel=1e-9)
    assert got["nll"] == pytest.approx(nats / count, rel=1e-9)
    assert got["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-9)


def test_long_conversations_are_cut_to_whole_replies() -> None:
    conversation = chat("x", "a", "short", "b", "c" * 300)
    got = evaluate.evaluate(FakeCore(), [conversation], context=200).summary()
    assert (got["bytes"], got["cut_conversations"]) == (5, 1)


def test_a_template_that_changes_text_is_refused() -> None:
    template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(RecipeError, match="template"):
        evaluate.evaluate(FakeCore(template), [chat("x", "a", "b")])


def test_evaluation_reads_messages_and_talk(tmp_path: Path) -> None:
    lines = tmp_path / "x.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    lines.write_text(json.dumps({"messages": messages}) + "\n")
    talk = tmp_path / "x.txt"
    talk.write_text("U: hi\nA: hello\n")
    assert evaluate.read_data(lines)[0].messages == evaluate.read_data(talk)[0].messages
    lines.write_text('{"no": 1}\n')
    with pytest.raises(RecipeError, match=r"x\.jsonl: line 1 has no list"):
        evaluate.read_data(lines)


def test_the_file_recommends_its_sampling(model_path: Path) -> None:
    pytest.importorskip("selm_edge._core", reason="the inference core is not built")
    from selm_edge import Model

    with Model.load(model_path, context=64) as model:
        assert (model.sampling.temperature, model.sampling.top_k) == (0.25, 10)
        assert model.sampling.top_p == 0.95  # says nothing of it


def test_the_core_scores_the_shipped_format(model_path: Path) -> None:
    """The C++ core and torch agree on a file that this package wrote."""
    native = pytest.importorskip("selm_edge._core", reason="the inference core is not built")
    del native

    core = evaluate.load_core(model_path, 1024)
    conversation = chat("x", "What is 17 + 25?", "17 + 20 = 37, 37 + 5 = 42. The answer is 42.")
    got = evaluate.evaluate(core, [conversation], 1024).summary()
    network = read_network(model_path)
    import torch

    ids = core.tokenize(
        "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n", True, True
    )
    reply = core.tokenize(conversation.messages[1].content, False, False)
    with torch.no_grad():
        logits = network(torch.tensor([ids + reply]))[0]
    rows = logits[len(ids) - 1 : -1]
    nats = torch.nn.functional.cross_entropy(rows, torch.tensor(reply), reduction="sum")
    assert got["nll"] * got["tokens"] == pytest.approx(float(nats), rel=2e-2)
