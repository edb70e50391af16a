"""The int8 variant of an ONNX folder: onnxruntime's dynamic quantisation, and two things more.

Every matrix product with a weight becomes one of int8, the weight scaled per output channel, what
it is applied to scaled anew at each step, and that per token: the standard's DynamicQuantizeLinear
has one scale for all tokens of a step, so the largest of them (a text's first has activations that
dwarf all others) would cost the rest, and a text's result would depend on how it was cut. Scalar
heads and head gates stay in float32: they are small and decide much. With a tied head the embedding
is looked up in the head's int8 matrix, a token being one of its output channels, so no second one
is stored.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import (  # type: ignore[import-untyped]
    QuantType,
    quantize_dynamic,
)

from selm_export.checkpoint import TOKENIZER
from selm_export.onnx_export import (
    GRAPH,
    MANIFEST,
    WEIGHTS,
    producer,
    quiet,
    save_graph,
    whole_folder,
    write_manifest,
)

KEPT = ("/scores.", "/head_gate/")  # parts of the names of nodes that stay as they are


def _untransposed(graph: onnx.GraphProto) -> None:
    """Weights that products find through a Transpose are stored as they are used: the quantiser
    takes no others."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    turns = {n.output[0]: n for n in graph.node if n.op_type == "Transpose"}
    for product in [n for n in graph.node if n.op_type == "MatMul"]:
        turn = turns.pop(product.input[1], None)  # the second of two that share it finds it done
        if turn is None or turn.input[0] not in weights:
            continue
        order = next((a.ints for a in turn.attribute if a.name == "perm"), None)  # None: reversed
        value = numpy_helper.to_array(weights[turn.input[0]]).transpose(order)
        stored = numpy_helper.from_array(np.ascontiguousarray(value), turn.output[0])
        graph.initializer.append(stored)
        graph.node.remove(turn)


PER_TOKEN: dict[str, np.ndarray[Any, Any]] = {
    "last": np.array([-1], np.int64), "most": np.array(127, np.float32),
    "least": np.array(1e-30, np.float32), "middle": np.array(128, np.float32),
    "zero": np.array(128, np.uint8),
}  # fmt: skip


def _token_by_token(x: str, result: str, scale: str) -> list[onnx.NodeProto]:
    """x [..., tokens, n] as uint8 around 128, and its scales [..., tokens, 1]."""
    steps = (
        ("Abs", [x], f"{result}/size"),
        ("ReduceMax", [f"{result}/size", "/token/last"], f"{result}/largest"),
        ("Div", [f"{result}/largest", "/token/most"], f"{result}/step"),
        ("Max", [f"{result}/step", "/token/least"], scale),  # a token may be all zeros
        ("Div", [x, scale], f"{result}/ratio"),
        ("Round", [f"{result}/ratio"], f"{result}/whole"),
        ("Add", [f"{result}/whole", "/token/middle"], f"{result}/moved"),
    )
    made = [helper.make_node(kind, given, [out], name=out) for kind, given, out in steps]
    last = helper.make_node(
        "Cast", [f"{result}/moved"], [result], name=result, to=onnx.TensorProto.UINT8
    )
    return [*made, last]


def _per_token(graph: onnx.GraphProto) -> None:
    """Each DynamicQuantizeLinear replaced; products are multiplied first by the weight's scales,
    then by the tokens': onnxruntime takes one product of both for the one scale that it was."""
    for name, value in PER_TOKEN.items():
        graph.initializer.append(numpy_helper.from_array(value, f"/token/{name}"))
    nodes: list[onnx.NodeProto] = []
    zeros, scales, both = set(), set(), dict[str, tuple[str, str]]()
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            scales.add(node.output[1])
            zeros.add(node.output[2])
            nodes += _token_by_token(node.input[0], *node.output[:2])
        elif node.op_type == "Mul" and node.input[0] in scales:
            both[node.output[0]] = node.input[0], node.input[1]
        elif node.op_type == "Mul" and node.input[1] in both:
            of_tokens, of_weight = both[node.input[1]]
            half = f"{node.output[0]}/half"
            nodes.append(helper.make_node("Mul", [node.input[0], of_weight], [half], name=half))
            node.input[:] = [half, of_tokens]
            nodes.append(node)
        else:
            node.input[:] = ["/token/zero" if name in zeros else name for name in node.input]
            nodes.append(node)
    del graph.node[:], graph.value_info[:]  # which still has one scale's shape
    graph.node.extend(nodes)


def _share_with_head(graph: onnx.GraphProto, head: str) -> None:
    """Rows of the embedding become columns of the head's int8 matrix times their scales."""
    lookup = next(n for n in graph.node if n.op_type == "Gather" and "input_ids" in n.input)
    embedding, ids, result = lookup.input[0], lookup.input[1], lookup.output[0]
    weights = {f"{head}_quantized", f"{head}_scale"}
    assert weights <= {tensor.name for tensor in graph.initializer}
    at = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    names = [f"/embedding/{part}" for part in ("columns", "scales", "rows", "floats", "scale")]
    columns, scales, rows, floats, scale = names
    last = numpy_helper.from_array(np.array([-1], np.int64), "/embedding/last")
    graph.initializer.append(last)
    made = [
        helper.make_node("Gather", [f"{head}_quantized", ids], [columns], axis=1),
        helper.make_node("Transpose", [columns], [rows], perm=[1, 2, 0]),
        helper.make_node("Cast", [rows], [floats], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{head}_scale", ids], [scales], axis=0),
        helper.make_node("Unsqueeze", [scales, last.name], [scale]),
        helper.make_node("Mul", [floats, scale], [result]),
    ]
    for offset, node in enumerate(made):
        node.name = node.output[0]
        graph.node.insert(at + offset, node)
    stored = next(tensor for tensor in graph.initializer if tensor.name == embedding)
    graph.initializer.remove(stored)


@dataclass(frozen=True)
class Plan:
    """``kept``: the nodes that stay in float32; ``head``: the name of the head's weight, if that
    and a tied embedding become one int8 matrix."""

    kept: list[str]
    head: str | None


def _prepare(source: Path, folder: Path, head: bool) -> Plan:
    """The graph as the quantiser wants it. (Any part of a graph holds all of its memory, so none is
    left when this returns: each step here takes some times the weights as it is.)"""
    model = onnx.load(source / GRAPH)
    graph = model.graph
    last = producer(graph, "logits")
    weight = str(last.input[1])
    tied = any(n.op_type == "Transpose" and n.output[0] == weight for n in graph.node)
    kept = [str(n.name) for n in graph.node if any(part in n.name for part in KEPT)]
    if not head:
        kept.append(str(last.name))
    if head or not tied:
        _untransposed(graph)
    save_graph(model, folder)
    return Plan(kept, weight if head and tied else None)


def _finish(folder: Path, plan: Plan) -> None:
    """What the quantiser wrote, as it gets its name."""
    made = onnx.load(folder / "int8.onnx")
    for file in folder.iterdir():
        file.unlink()
    _per_token(made.graph)
    if plan.head is not None:
        _share_with_head(made.graph, plan.head)
    save_graph(made, folder)


def quantize(source: Path, path: Path, *, head: bool) -> dict[str, Any]:
    """Fills ``path`` from the float32 folder ``source``; ``head``: the head (and a tied embedding)
    too. Gives its figures."""
    with whole_folder(path) as folder, quiet():
        plan = _prepare(source, folder, head)
        quantize_dynamic(
            folder / GRAPH, folder / "int8.onnx", op_types_to_quantize=["MatMul"],
            per_channel=True, weight_type=QuantType.QInt8, nodes_to_exclude=plan.kept,
            use_external_data_format=(folder / WEIGHTS).exists(),
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip
        _finish(folder, plan)
        shutil.copyfile(source / TOKENIZER, folder / TOKENIZER)
        said = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        del said["files"]
        write_manifest(folder, said | {"type": "int8"})
        size = sum(file.stat().st_size for file in folder.iterdir())
    return {"bytes": size, "head": "int8" if head else "fp32"}


def divergence(
    reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each row of logits [tokens, vocab]: the KL divergence of ``other`` from ``reference`` in
    nats, and whether the likeliest token is the same."""

    def logs(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = x.astype(np.float64)
        x = x - x.max(-1, keepdims=True)
        normal: np.ndarray[Any, Any] = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return normal

    p, q = logs(reference), logs(other)
    same: np.ndarray[Any, Any] = p.argmax(-1) == q.argmax(-1)
    return (np.exp(p) * (p - q)).sum(-1), same
