"""Legalization: the oldest opset of a node, the version to state, and function bodies for what is missing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from planish.backends import LoweringError, backend
from planish.backends.legalize import Support, legalize
from planish.backends.ort_target import OrtTarget
from planish.backends.revisions import oldest_opset, revision_at
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import DType, Graph, Node, TensorType, op, sym, tensor_type
from planish.ir.builder import make_node
from planish.ir.convert.proto import from_proto, to_proto
from planish.ir.edit import insert_floating
from planish.ir.schema import canonical_opset
from planish.ir.types import Type


def parsed(text: str) -> Graph:
    return from_proto(parser.parse_model(text), upgrade=upgrade)


class Fake:
    """A runtime with the standard operators up to ``opset``, but for ``lacking``: operators, or single versions."""

    name = "fake"
    ir_version = 10

    def __init__(self, opset: int, *lacking: str | tuple[str, int], slow: tuple[str, int] = ("", 0)):
        self.opset = opset
        self.lacking = lacking
        self.slow = slow

    def since(self, op: str, opset: int) -> int:
        revision = revision_at(op, opset)
        return 0 if revision is None else revision.since

    def support(self, node: Node, since: int, opset: int) -> Support:
        return Support.NONE if node.domain or {node.op, (node.op, since)} & set(self.lacking) else Support.FULL

    def is_slow(self, op: str, since: int) -> bool:
        return op == self.slow[0] and since >= self.slow[1]


def one_node(name: str, *operands: Type | np.ndarray | np.generic, imported: int = 0, **attrs: object) -> Graph:
    """A graph of one node. Types become inputs, arrays constants."""
    graph = Graph("g", opsets={"": canonical_opset()})
    if imported:
        graph.info["imported_opset"] = imported
    values = [graph.add_input(o, f"x{i}") if isinstance(o, TensorType) else o for i, o in enumerate(operands)]
    node = make_node(name, tuple(values), dict(attrs), name="the_node")
    insert_floating(node.results, graph.ret)
    for i, result in enumerate(node.results):
        result.name = f"y{i}"
    graph.set_outputs(node.results)
    return graph


F = tensor_type(DType.FLOAT, 2, 3)
D = tensor_type(DType.DOUBLE, 2, 3)
B = tensor_type(DType.BFLOAT16, 2, 3)
INT = tensor_type(DType.INT32, 2, 3)
S = np.array([3, 2])


@pytest.mark.parametrize(
    ("graph", "oldest"),
    [
        (one_node("Relu", F), 7),
        (one_node("Relu", B), 13),
        (one_node("Relu", INT), 14),
        (one_node("Cast", F, to=int(DType.INT64)), 7),
        (one_node("Cast", F, to=int(DType.BFLOAT16)), 13),
        (one_node("Cast", F, to=int(DType.FLOAT8E5M2)), 19),
        (one_node("Cast", F, to=int(DType.INT4)), 21),
        (one_node("Cast", F, to=int(DType.FLOAT8E5M2), saturate=0), 19),
        (one_node("Reshape", F, S), 7),
        (one_node("Reshape", F, S, allowzero=0), 7),
        (one_node("Reshape", F, S, allowzero=1), 14),
        (one_node("Softmax", F), 13),
        (one_node("Unsqueeze", F, np.array([0])), 13),
        (one_node("ReduceMean", F, np.array([0])), 18),
        (one_node("ReduceSum", F, np.array([0])), 13),
        (one_node("Gelu", F), 20),
        (one_node("Concat", F, F, axis=1), 7),
        (one_node("Concat", F, F, axis=-1), 11),
        (one_node("Max", F, F), 7),
        (one_node("Max", F, tensor_type(DType.FLOAT, 3)), 8),
        (one_node("Max", F, tensor_type(DType.FLOAT, sym("n"), 3)), 8),
        (one_node("Pow", F, INT), 12),
        (one_node("Mod", F, F, fmod=1), 10),
        (one_node("Mod", F, F), 28),
        (one_node("Mod", INT, INT), 10),
        (one_node("Pad", F, np.array([1, 1, 1, 1])), 11),
        (one_node("Pad", F, np.array([1, 1, 1, 1]), mode="wrap"), 19),
        (one_node("ScatterND", F, np.array([[0]]), tensor_type(DType.FLOAT, 1, 3)), 11),
        (one_node("ScatterND", F, np.array([[0]]), tensor_type(DType.FLOAT, 1, 3), reduction="add"), 16),
        (one_node("ScatterND", F, np.array([[0]]), tensor_type(DType.FLOAT, 1, 3), reduction="max"), 18),
        (one_node("QuantizeLinear", F, np.float32(1), np.uint8(0)), 10),
        (one_node("QuantizeLinear", F, np.ones(3, np.float32), np.zeros(3, np.uint8), axis=1), 13),
        (one_node("QuantizeLinear", F, np.float32(1), np.array(0, ml_dtypes.int4)), 21),
        (one_node("Dropout", F), 12),
        (one_node("Range", np.int64(0), tensor_type(DType.INT64), np.int64(1)), 11),
        (one_node("Range", np.float16(0), tensor_type(DType.FLOAT16), np.float16(1)), 27),
        (one_node("DepthToSpace", tensor_type(DType.FLOAT, 1, 4, 2, 2), blocksize=2, mode="DCR"), 7),
        (one_node("DepthToSpace", tensor_type(DType.FLOAT, 1, 4, 2, 2), blocksize=2, mode="CRD"), 11),
    ],
    ids=lambda v: to_proto(v).graph.node[0].op_type if isinstance(v, Graph) else str(v),
)
def test_the_oldest_opset_of_a_node(graph: Graph, oldest: int) -> None:
    node = next(graph.nodes)
    assert oldest_opset(node) == oldest
    assert oldest_opset(node, 17) == max(17, oldest)


def test_the_imported_opset_is_kept() -> None:
    assert legalize(one_node("Relu", F, imported=15), Fake(22)).opset == 15


def test_a_newer_node_raises_it() -> None:
    assert legalize(one_node("Gelu", F, imported=15), Fake(22)).opset == 20


def test_the_runtime_bounds_it() -> None:
    graph = one_node("Relu", F, imported=canonical_opset())
    graph.info["ir_version"] = 13
    assert legalize(graph, Fake(22)) == (22, 10)
    assert legalize(one_node("Relu", F), Fake(22)).opset == 22


def test_a_newer_version_where_the_imported_one_is_not_implemented() -> None:
    assert legalize(one_node("Relu", F, imported=12), Fake(22, ("Relu", 6), ("Relu", 13))).opset == 14


def test_an_older_version_where_nothing_newer_is_implemented() -> None:
    assert legalize(one_node("Round", F, imported=22), Fake(24, ("Round", 22))).opset == 21


def test_an_older_version_where_newer_ones_are_slow() -> None:
    assert legalize(one_node("Round", F, imported=22), Fake(24, slow=("Round", 22))).opset == 21
    assert legalize(one_node("Round", F, imported=20), Fake(24, slow=("Round", 22))).opset == 20
    assert legalize(one_node("Gelu", F, imported=22), Fake(24, slow=("Gelu", 20))).opset == 22  # there is no older one
    both = one_node("Round", F, imported=22)
    gelu = make_node("Gelu", (both.outputs[0],), {})
    insert_floating(gelu.results, both.ret)
    both.set_outputs(gelu.results)
    assert legalize(both, Fake(24, slow=("Round", 22))).opset == 21
    assert legalize(both, Fake(24, slow=("Round", 11))).opset == 22  # all are slow


def test_means_of_windows_are_stated_in_the_version_that_is_fast_in_onnx_runtime() -> None:
    images = tensor_type(DType.FLOAT, 1, 3, 8, 8)
    assert legalize(one_node("AveragePool", images, kernel_shape=(3, 3)), OrtTarget()).opset == 18
    dilated = one_node("AveragePool", images, kernel_shape=(3, 3), dilations=(2, 2))
    assert legalize(dilated, OrtTarget()).opset >= 19


def test_attributes_that_state_a_default_are_dropped() -> None:
    graph = one_node("Reshape", F, S, allowzero=0, imported=13)
    assert legalize(graph, Fake(22)).opset == 13
    assert next(graph.nodes).attrs == {}
    graph = one_node("Reshape", F, S, allowzero=0, imported=14)
    assert legalize(graph, Fake(22)).opset == 14
    assert next(graph.nodes).attrs == {"allowzero": 0}


# function bodies


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.walk()]


def test_what_is_too_new_is_replaced_by_its_body() -> None:
    graph = one_node("SwiGLU", F, F, alpha=1.5)
    node = next(graph.nodes)
    node.metadata = {"key": "value"}
    array = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    wanted = backend("reference").compile(graph)(array, array + 1)[0]
    assert legalize(graph, Fake(24)).opset == 24
    assert "SwiGLU" not in ops(graph)
    assert all(n.name.startswith("the_node/") and n.metadata == {"key": "value"} for n in graph.nodes)
    assert graph.outputs[0].name == "y0"
    np.testing.assert_allclose(backend("reference").compile(graph)(array, array + 1)[0], wanted, rtol=1e-5)


def test_bodies_within_bodies() -> None:
    graph = one_node("SwiGLU", F, F)
    legalize(graph, Fake(24, "Swish"))
    assert {"SwiGLU", "Swish"}.isdisjoint(ops(graph))


def test_bodies_with_left_out_operands_and_defaults() -> None:
    graph = one_node("Clip", F, None, np.float32(1))  # type: ignore[arg-type]
    legalize(graph, Fake(22, "Clip"))
    assert "Clip" not in ops(graph)
    (found,) = backend("reference").compile(graph)(np.float32([[-5, 0, 5], [0, 1, 2]]))
    np.testing.assert_array_equal(found, [[-5, 0, 1], [0, 1, 1]])


def test_bodies_in_nested_graphs() -> None:
    text = """<ir_version: 10, opset_import: ["" : 22]> g (bool c, float[2] x) => (float[2] y) {
      y = If (c) <
        then_branch = t () => (float[2] a) { a = Mish(x) },
        else_branch = e () => (float[2] b) { b = Neg(x) }
      > }"""
    graph = parsed(text)
    legalize(graph, Fake(22, "Mish"))
    assert "Mish" not in ops(graph)
    (found,) = backend("onnxruntime").compile(graph)(np.array(True), np.float32([0, 1]))
    np.testing.assert_allclose(found, [0, 0.8651], atol=1e-4)


def test_loops_as_bodies() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]> g (seq(float[n]) s) => (seq(float[n]) t) {
      t = SequenceMap <body = b (float[n] x) => (float[n] y) { y = Neg(x) }> (s) }"""
    graph = parsed(text)
    legalize(graph, Fake(22, "SequenceMap"))
    assert "Loop" in ops(graph)
    (found,) = backend("onnxruntime").compile(graph)([np.float32([1]), np.float32([2, 3])])
    assert [v.tolist() for v in found] == [[-1], [-2, -3]]


def test_functions_of_the_model_itself() -> None:
    text = """<ir_version: 10, opset_import: ["" : 22, "own" : 1]> g (float[2] x) => (float[2] y) { y = own.twice(x) }
      <domain: "own", opset_import: ["" : 22]> twice (x) => (y) { y = Add(x, x) }"""
    graph = from_proto(parser.parse_model(text), upgrade=upgrade, opaque_functions=True)
    assert ops(graph) == ["own.twice"]
    (found,) = backend("onnxruntime").compile(graph)(np.float32([1, 2]))
    np.testing.assert_array_equal(found, [2, 4])


# what cannot be lowered


def test_every_node_is_listed_before_anything_starts() -> None:
    graph = Graph("g", opsets={"": canonical_opset()})
    x = graph.add_input(F, "x")
    y = op.Mod(op.Round(op.Neg(x)), op.Mod(x, x))
    insert_floating([y], graph.ret)
    graph.set_outputs([y])
    for i, node in enumerate(graph.nodes):
        node.name = f"{node.op}_{i}"
        node.metadata = {"pkg.torch.onnx.stack_trace": f'File "net.py", line {i}, in forward'}
    with pytest.raises(LoweringError) as error:
        legalize(graph, Fake(24, "Round"))
    assert str(error.value).splitlines() == [
        "fake cannot run 3 nodes:",
        "  Mod: needs opset 28; the newest that fake reads is 24 [net.py:0 Mod_0]",
        "  Round: not implemented [net.py:2 Round_2]",
        "  Mod: needs opset 28; the newest that fake reads is 24 [net.py:3 Mod_3]",
    ]


def test_nodes_that_need_different_versions() -> None:
    graph = Graph("g", opsets={"": canonical_opset()})
    x = graph.add_input(F, "x")
    y = op.Cast(x, to=int(DType.FLOAT8E8M0))
    z = op.Round(x)
    insert_floating([y, z], graph.ret)
    graph.set_outputs([y, z])
    with pytest.raises(LoweringError, match="Round: not implemented in opset 24, which other nodes need"):
        legalize(graph, Fake(24, ("Round", 22)))


def test_unknown_operators() -> None:
    graph = one_node("Relu", F)
    next(graph.nodes).op = "Rleu"
    with pytest.raises(LoweringError, match=r"Rleu: no such operator \[the_node\]"):
        legalize(graph, Fake(24))


# ONNX Runtime


def test_kernels_decide_between_versions() -> None:
    target = OrtTarget()
    if target.opset >= 22 and not target.support(next(one_node("RoiAlign", *ROI).nodes), 22, 22):
        assert legalize(one_node("RoiAlign", *ROI, imported=22), target).opset < 22
    assert legalize(one_node("Max", D, D, imported=7), target).opset == 8  # Max-6 has no kernel for double


ROI = (tensor_type(DType.FLOAT, 1, 2, 8, 8), tensor_type(DType.FLOAT, 1, 4), np.array([0]))


def test_its_definitions_may_lag_behind() -> None:
    qkv = tensor_type(DType.FLOAT, 1, 2, 4, 8)
    graph = one_node("Attention", qkv, qkv, qkv, left_window_size=1)
    array = np.random.default_rng(0).normal(size=(1, 2, 4, 8)).astype(np.float32)
    wanted = backend("reference").compile(graph)(array, array, array)[0]
    np.testing.assert_allclose(
        backend("onnxruntime").compile(graph)(array, array, array)[0], wanted, rtol=1e-4, atol=1e-5
    )


def test_compiling_leaves_the_graph_alone() -> None:
    graph = one_node("SwiGLU", F, F)
    before = str(graph)
    backend("onnxruntime").compile(graph)
    assert str(graph) == before
