"""A model as ONNX: a folder that the ``onnx`` backend of `selm_edge` runs, and other runtimes can.

``model.onnx`` (its weights in ``model.onnx.data`` beside it where they exceed what one protobuf
message may hold), ``tokenizer.json``, and ``model.json``, which says what a runtime has to know of
them: the names and shapes of inputs and outputs, which outputs are the next step's inputs, the
keys that a GGUF file would have, and each file's size and SHA-256.

What is Llama, Qwen2 or Qwen3 goes through `optimum`, as other exports of these do. All else goes
through torch's own exporter, with the layers' state as inputs and outputs (`modeling.step`).
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from optimum.exporters.onnx import onnx_export_from_model  # type: ignore[import-untyped]
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from selm_export.checkpoint import TOKENIZER, Checkpoint
from selm_export.errors import RecipeError
from selm_export.ledger import file_hash, write_json
from selm_export.modeling.configuration import SelmConfig
from selm_export.modeling.model import SelmForCausalLM
from selm_export.modeling.step import StateTensor, Step, states

GRAPH, WEIGHTS, MANIFEST = "model.onnx", "model.onnx.data", "model.json"
FORMAT = 1  # of model.json
OPSET = 18
MOST_BYTES = 2**31 - 2**26  # of weights in one protobuf message, room for the graph left
CHUNK_VALUES = 2**24  # logits that one call may give, 64 MB: long texts go through in chunks
TOLERANCE = 1e-3  # of logits in float32, as optimum's own exports are held to
RECOMMENDED = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
}
STEPS = 16  # tokens that are checked one by one, after a prompt


@dataclass(frozen=True)
class Standard:
    """What computes the same in `transformers`, and the name of it in GGUF files."""

    name: str
    config: type[PretrainedConfig]
    model: type[PreTrainedModel]


LLAMA = Standard("llama", LlamaConfig, LlamaForCausalLM)
QWEN2 = Standard("qwen2", Qwen2Config, Qwen2ForCausalLM)
QWEN3 = Standard("qwen3", Qwen3Config, Qwen3ForCausalLM)


def standard_of(config: SelmConfig) -> Standard | None:
    """The architecture that others know, if it is one. Exits are left away: ONNX has no drafts."""
    plain = not (config.head_gate or config.expert_names or config.ranks)
    if not plain or set(config.attention_kinds) != {"softmax"}:
        return None
    kinds = {(False, False): LLAMA, (True, False): QWEN2, (False, True): QWEN3}
    return kinds.get((config.attention_bias, config.qk_norm))


@dataclass(frozen=True)
class Interface:
    """How a graph is called: by the role of each input and output its name."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    states: list[dict[str, Any]]


def convert(model: SelmForCausalLM, standard: Standard) -> Any:
    """The same weights, in the same memory, as `transformers` computes with them."""
    config = model.config
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        "rope_theta", "rms_norm_eps", "tie_word_embeddings",
    )  # fmt: skip
    known: dict[str, Any] = {name: getattr(config, name) for name in same}
    with torch.device("meta"):
        made = standard.model(standard.config(**known))
    weights = {k: v for k, v in model.state_dict().items() if ".exits." not in k}
    made.load_state_dict(weights, assign=True)
    made.tie_weights()  # type: ignore[no-untyped-call]
    body = made.model
    rotary = type(body.rotary_emb)(config=made.config)  # its buffers are in no checkpoint
    if config.rope_factors:
        rotary.inv_freq = rotary.inv_freq / torch.tensor(config.rope_factors)
    body.rotary_emb = rotary
    made.train(False)
    return made


def _through_optimum(model: SelmForCausalLM, standard: Standard, folder: Path) -> Interface:
    converted = convert(model, standard)
    onnx_export_from_model(
        converted, folder, task="text-generation-with-past", opset=OPSET, do_validation=False
    )
    heads, size = model.config.num_key_value_heads, model.config.head_dim
    caches = [
        _state(StateTensor("", (1, heads, None, size)), f"past_key_values.{i}.{part}",
               f"present.{i}.{part}")
        for i in range(model.config.num_hidden_layers) for part in ("key", "value")
    ]  # fmt: skip
    return Interface(
        {"ids": "input_ids", "mask": "attention_mask", "positions": "position_ids"},
        {"logits": "logits", "hidden": "hidden"}, caches,
    )  # fmt: skip


def _through_torch(model: SelmForCausalLM, folder: Path, most: int) -> Interface:
    config = model.config
    kept = states(config)
    # Examples alone; what varies is said below. The exporter that traces torch.export's graphs
    # writes the same, but takes minutes for symbolic shapes where this one takes seconds.
    ids = torch.zeros(1, 5, dtype=torch.long)
    memory = [_start(state, length=3) for state in kept]
    expert = (torch.tensor([-1]),) if config.expert_names else ()
    grown = [f"{way}.{s.name}" for s in kept if None in s.shape for way in ("past", "present")]
    outputs = ["logits", "hidden", *(f"present.{s.name}" for s in kept)]
    torch.onnx.export(
        Step(model, most).eval(), (ids, torch.tensor([3]), memory, *expert), folder / GRAPH,
        input_names=["input_ids", "seen", *(f"past.{s.name}" for s in kept),
                     *(["expert"] if expert else [])],
        output_names=[*outputs, *(["speakers"] if expert else [])],
        dynamic_axes={"input_ids": {1: "tokens"}, "logits": {1: "tokens"}, "hidden": {1: "tokens"},
                      **({"speakers": {1: "tokens"}} if expert else {}),
                      **{name: {2: name.split(".")[0] + "_length"} for name in grown}},
        opset_version=OPSET, dynamo=False,
    )  # fmt: skip
    inputs = {"ids": "input_ids", "seen": "seen", **({"expert": "expert"} if expert else {})}
    named = {"logits": "logits", "hidden": "hidden"}
    return Interface(
        inputs, {**named, **({"speakers": "speakers"} if expert else {})},
        [_state(s, f"past.{s.name}", f"present.{s.name}") for s in kept],
    )  # fmt: skip


def _state(state: StateTensor, name: str, result: str) -> dict[str, Any]:
    row = asdict(state) | {"input": name, "output": result, "shape": list(state.shape)}
    del row["name"]
    return row


def _start(state: StateTensor, length: int = 0) -> Tensor:
    """The state before the first token (or as if there had been ``length``)."""
    shape = [length if n is None else n for n in state.shape]
    kind = torch.long if state.type == "int64" else torch.float32
    return torch.full(shape, state.start, dtype=kind)


# ---- The graph, as the exporters leave it --------------------------------------------------------


def producer(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in graph.node if name in node.output)
    return found


def _show_hidden(graph: onnx.GraphProto, width: int) -> None:
    """What the head is applied to becomes an output: embeddings are made of it."""
    if any(output.name == "hidden" for output in graph.output):
        return
    head = producer(graph, "logits")
    graph.node.append(helper.make_node("Identity", [head.input[0]], ["hidden"], name="/hidden"))
    shape: list[str | int | None] = ["batch_size", "sequence_length", width]
    graph.output.append(helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, shape))


def _tie_head(graph: onnx.GraphProto) -> None:
    """One matrix where the exporter wrote two: the embedding, and for the head its transpose."""
    head = producer(graph, "logits")
    weights = {tensor.name: tensor for tensor in graph.initializer}
    lookup = next((n for n in graph.node if n.op_type == "Gather" and "input_ids" in n.input), None)
    if lookup is None or head.input[1] not in weights:
        return
    embedding, transposed = weights[lookup.input[0]], weights[head.input[1]]
    if list(transposed.dims) != list(reversed(embedding.dims)):
        return
    graph.initializer.remove(transposed)
    turn = helper.make_node(
        "Transpose", [embedding.name], ["/head/weight"], name="/head/Transpose", perm=[1, 0]
    )
    head.input[1] = "/head/weight"
    graph.node.insert(list(graph.node).index(head), turn)


def save_graph(model: onnx.ModelProto, folder: Path) -> None:
    """One file, or two where one protobuf message cannot hold the weights."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    for file in (GRAPH, WEIGHTS):
        (folder / file).unlink(missing_ok=True)
    if size > MOST_BYTES:
        onnx.save(
            model, folder / GRAPH, save_as_external_data=True, location=WEIGHTS, size_threshold=1024
        )
    else:
        onnx.save(model, folder / GRAPH)


def _finish_graph(folder: Path, config: SelmConfig) -> None:
    graph = onnx.load(folder / GRAPH)  # with the weights that lie in files of their own
    _show_hidden(graph.graph, config.hidden_size)
    if config.tie_word_embeddings:
        _tie_head(graph.graph)
    for file in folder.iterdir():
        file.unlink()
    save_graph(graph, folder)


# ---- The folder ----------------------------------------------------------------------------------


def _metadata(
    checkpoint: Checkpoint, architecture: str, title: str, sampling: Mapping[str, float]
) -> dict[str, Any]:
    """The keys that the GGUF file of this model would have, where a runtime asks for them."""
    config, speech = checkpoint.model.config, checkpoint.tokenizer_config
    found: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": title,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.vocab_size": config.vocab_size,
        "tokenizer.chat_template": speech.chat_template,
        "tokenizer.ggml.bos_token_id": speech.bos,
        "tokenizer.ggml.eos_token_id": speech.eos,
        "tokenizer.ggml.eot_token_id": speech.eot,
        "tokenizer.ggml.add_bos_token": speech.add_bos,
        "tokenizer.ggml.add_eos_token": speech.add_eos,
        **{RECOMMENDED[name]: value for name, value in sampling.items()},
    }
    if architecture == "selm":
        found["selm.attention.kinds"] = config.attention_kinds
    if config.expert_names:
        found["selm.expert.names"] = config.expert_names
        found["selm.expert.route"] = config.expert_route
    return {key: value for key, value in found.items() if value is not None}


def write_manifest(folder: Path, said: dict[str, Any]) -> None:
    """``said`` with the sizes and hashes of the files that lie there, last of all."""
    names = [name for name in (GRAPH, WEIGHTS, TOKENIZER) if (folder / name).is_file()]
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
        for name in names
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **said, "files": files})


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name once it is whole, or not at all; what was there before
    is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}.writing-"))
    try:
        yield writing
        writing.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        writing.replace(path)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of what validation answers: whether a trace holds for other shapes."""
    loggers = [logging.getLogger(name) for name in ("optimum", "torch.onnx", "onnxruntime", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def export(
    checkpoint: Checkpoint, path: Path, title: str,
    sampling: Mapping[str, float] = MappingProxyType({}), tolerance: float = TOLERANCE,
) -> dict[str, Any]:  # fmt: skip
    """Fills ``path`` in float32 and gives its figures; RecipeError where its logits differ from
    torch's by more than ``tolerance``, and then ``path`` is as before. ``sampling``: what the
    model recommends (`RECOMMENDED`)."""
    model, config = checkpoint.model, checkpoint.model.config
    if next(model.parameters()).dtype != torch.float32:
        raise RecipeError(checkpoint.path, "its weights are no float32", "Load it as float32")
    if checkpoint.tokenizer.get_vocab_size() > config.vocab_size:
        more = f"{checkpoint.tokenizer.get_vocab_size()} tokens of {config.vocab_size}"
        raise RecipeError(checkpoint.path, f"its tokenizer has {more}", "Give the model's own one")
    chunk = min(256, max(16, CHUNK_VALUES // config.vocab_size))
    standard = standard_of(config)
    with whole_folder(path) as folder:
        with torch.no_grad(), quiet():
            if standard is not None:
                interface = _through_optimum(model, standard, folder)
            else:
                interface = _through_torch(model, folder, chunk)
        _finish_graph(folder, config)
        checkpoint.tokenizer.save(str(folder / TOKENIZER))
        name = standard.name if standard is not None else "selm"
        write_manifest(folder, {
            "type": "fp32", "vocabulary": config.vocab_size, "width": config.hidden_size,
            "chunk": chunk, **asdict(interface),
            "metadata": _metadata(checkpoint, name, title, sampling),
        })  # fmt: skip
        worst = largest_difference(folder, model)
        if not worst <= tolerance:
            cause = f"its logits differ from torch's by {worst:.2g}, more than {tolerance:.2g}"
            raise RecipeError(path, cause, "This is a fault of the export: report it")
        size = sum(file.stat().st_size for file in folder.iterdir())
    return {"architecture": name, "bytes": size, "largest_difference": worst}


def _lengths(config: SelmConfig, chunk: int) -> tuple[int, int]:
    """Of the prompt, past the window and one chunk, and how many tokens follow one by one."""
    recurrent = set(config.attention_kinds) != {"softmax"}
    prompt = max(24, 2 * config.window + config.sinks + 8 if recurrent else 0)
    steps = min(STEPS, config.max_position_embeddings // 2)
    return min(max(prompt, chunk + 8), 512, config.max_position_embeddings - steps), steps


@torch.no_grad()
def largest_difference(folder: Path, model: SelmForCausalLM) -> float:
    """Between the folder's logits, a prompt's and then token by token, and torch's, of the same
    random tokens."""
    from selm_edge.backends.onnx import OnnxBackend

    config = model.config
    engine = OnnxBackend().load(str(folder), context=config.max_position_embeddings)
    prompt, steps = _lengths(config, engine.chunk)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, prompt + steps).tolist()
    expected = model(torch.tensor([ids])).logits[0].numpy()
    session, worst = engine.session(), 0.0
    for first, last in [(0, prompt), *((i, i + 1) for i in range(prompt, prompt + steps))]:
        found = np.asarray(session.eval(ids[first:last]))
        worst = float(np.maximum(worst, np.abs(found - expected[first:last]).max()))  # nan stays
    return worst


def logits_of(folder: Path, texts: Sequence[Sequence[int]]) -> Iterator[np.ndarray[Any, Any]]:
    """The logits [tokens, vocab] of each text, as the device computes them."""
    from selm_edge.backends.onnx import OnnxBackend

    engine = OnnxBackend().load(str(folder), context=2**24)
    for ids in texts:
        session = engine.session()
        yield np.asarray(session.eval(list(ids)[: engine.context]))
