"""Upgrading imported graphs: every adapter against ONNX Runtime, numpy, or onnx.version_converter, on values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.version_converter
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from planish.backends import backend
from planish.frontends.onnx.adapters import ADAPTERS
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import Graph
from planish.ir.convert.proto import from_proto
from planish.ir.errors import ModelError
from planish.ir.opsets import NEWEST, OLDEST, is_compatible, least_ir_version
from planish.ir.schema import canonical_opset

HISTORY = {(s.name, s.since_version) for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
REVISIONS = {(op, since) for op, since in HISTORY if since >= OLDEST}
NEW = {(op, min(since for s, since in HISTORY if s == op)) for op, _ in HISTORY}  # an operator's first version
ADAPTED = {(op, since) for op, history in ADAPTERS.items() for since in history}


def test_every_revision_was_reviewed() -> None:
    assert onnx.defs.onnx_opset_version() <= NEWEST, "a new release of onnx: review what it revised, then set NEWEST"
    unreviewed = REVISIONS - NEW - ADAPTED
    assert {r for r in unreviewed if not is_compatible(*r)} == set()


def test_no_revision_is_both_adapted_and_compatible() -> None:
    assert {r for r in ADAPTED if is_compatible(*r)} == set()
    assert {r for r in ADAPTED if r[1] <= onnx.defs.onnx_opset_version()} <= REVISIONS


# single operators, before and after

R = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return R.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass
class Case:
    """An old node: ``expected`` is computed by ONNX Runtime on the old model unless it is given.

    ``constants`` are the operands that are initializers; ``unranked`` inputs have no shape; ``converter`` says whether
    onnx.version_converter gets it right, so that it can judge, too.
    """

    op: str
    opset: int
    operands: list[np.ndarray | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    results: int = 1
    expected: Callable[..., Any] | None = None
    constants: tuple[int, ...] = ()
    unranked: bool = False
    converter: bool = True
    runner: str = "reference"

    def __str__(self) -> str:
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items() if isinstance(v, int | float | str | list))
        return f"{self.op}-{self.opset}[{attrs}]" + ("?" if self.unranked else "")

    def model(self) -> onnx.ModelProto:
        names = ["" if o is None else f"x{i}" for i, o in enumerate(self.operands)]
        results = [f"y{i}" for i in range(self.results)]
        node = helper.make_node(self.op, names, results, name="the_node", doc_string="its doc", **self.attrs)
        inputs, initializers = [], []
        for i, (name, array) in enumerate(zip(names, self.operands, strict=True)):
            if array is not None and i in self.constants:
                initializers.append(numpy_helper.from_array(array, name))
            elif array is not None:
                dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
                inputs.append(helper.make_tensor_value_info(name, dtype, None if self.unranked else array.shape))
        outputs = [helper.make_value_info(r, onnx.TypeProto()) for r in results]
        graph = helper.make_graph([node], "single", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def feeds(self) -> dict[str, np.ndarray]:
        return {f"x{i}": o for i, o in enumerate(self.operands) if o is not None and i not in self.constants}

    def want(self) -> list[Any]:
        if self.expected is not None:
            found = self.expected(*self.operands)
            return list(found) if isinstance(found, tuple) else [found]
        session = onnxruntime.InferenceSession(self.model().SerializeToString(), providers=["CPUExecutionProvider"])
        return list(session.run(None, self.feeds()))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def group_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    grouped = x.reshape(x.shape[0], len(scale), -1)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    return (normal * scale[None, :, None] + bias[None, :, None]).reshape(x.shape)


def batch_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def batch_norm_training(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray) -> Any:
    now, spread = x.mean((0, 2)), x.var((0, 2))
    y = (x - now[:, None]) / np.sqrt(spread[:, None] + 1e-5) * scale[:, None] + bias[:, None]
    return y, mean * 0.9 + now * 0.1, var * 0.9 + spread * 0.1


X = floats(2, 3, 4, 5)
IMAGE = floats(1, 1, 4, 4)
BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}
LOGICAL = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}
COMPARE = {"Less": np.less, "Greater": np.greater}
CHANNELS = [floats(3), floats(3), floats(3), np.abs(floats(3)) + 1]


def along_channels(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(a, b.reshape(3, 1, 1))


def integral(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *_: function(x).astype(np.int64)


def recurrent(op: str) -> Callable[..., Any]:
    """The same node in opset 7, by ONNX Runtime."""
    return lambda *operands: tuple(Case(op, 7, list(operands), {"hidden_size": 4}, 2).want())


CASES = [
    # opset 7
    *[
        Case(op, 6, [abs(X), abs(floats(3))], {"broadcast": 1, "axis": 1}, expected=along_channels(f), converter=False)
        for op, f in BINARY.items()
    ],
    *[
        Case(op, 6, [X > 0, floats(3) > 0], {"broadcast": 1, "axis": -3}, expected=along_channels(f), converter=False)
        for op, f in LOGICAL.items()
    ],
    *[
        Case(op, 6, [X, floats(3)], {"broadcast": 1, "axis": 1}, expected=along_channels(f), converter=False)
        for op, f in COMPARE.items()
    ],
    Case(
        "Equal", 6, [ints(1, 2, 3, 4).reshape(2, 2), ints(1, 4)], {"broadcast": 1}, expected=np.equal, converter=False
    ),
    Case("Add", 6, [X, floats(4, 5)], {"broadcast": 1}, expected=np.add),
    Case("Add", 6, [X, X], {}, expected=np.add),
    Case("PRelu", 6, [X, floats(3)], expected=lambda x, s: np.where(x < 0, x * s.reshape(3, 1, 1), x), converter=False),
    Case("PRelu", 6, [X, floats(1)], expected=lambda x, s: np.where(x < 0, x * s, x)),
    Case("Gemm", 6, [floats(2, 3), floats(3, 4), floats(4)], {"broadcast": 1}, expected=lambda a, b, c: a @ b + c),
    Case(
        "BatchNormalization",
        6,
        [floats(2, 3, 4), *CHANNELS],
        {"is_test": 1},
        expected=lambda x, *p: batch_norm(x, *[v[:, None] for v in p]),
    ),
    Case("Dropout", 6, [X], {"is_test": 1, "ratio": 0.3}, expected=lambda x: x),
    Case("Dropout", 6, [X], {"ratio": 0.0}, expected=lambda x: x, converter=False),
    *[
        Case(
            op,
            6,
            [floats(2, 1, 3), floats(1, 4 * g, 3), floats(1, 4 * g, 4)],
            {"hidden_size": 4, "output_sequence": 1},
            2,
            recurrent(op),
            converter=False,
        )
        for op, g in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
    ],
    Case(
        "Upsample",
        6,
        [IMAGE],
        {"height_scale": 2.0, "width_scale": 3.0},
        expected=lambda x: x.repeat(2, 2).repeat(3, 3),
        converter=False,
    ),
    # opset 9
    Case(
        "BatchNormalization",
        7,
        [floats(2, 3, 4), *[abs(floats(3, 4)) for _ in range(4)]],
        {"spatial": 0},
        expected=batch_norm,
        converter=False,
    ),
    Case("BatchNormalization", 7, [floats(2, 3, 4), *CHANNELS], {"spatial": 1}),
    Case("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}, converter=False),
    Case("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}, converter=False),
    # opset 10
    Case("Dropout", 7, [X], {"ratio": 0.4}, 2, expected=lambda x: (x, np.ones_like(x)), converter=False),
    Case("Slice", 9, [X], {"starts": [1, -3], "ends": [3, 100], "axes": [1, 3]}),
    Case("Slice", 9, [X], {"starts": [1, 1], "ends": [2, 3]}),
    Case("TopK", 9, [X], {"k": 2, "axis": 1}, 2),
    Case(
        "Upsample", 9, [IMAGE, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, constants=(1,), converter=False
    ),
    Case("Upsample", 9, [IMAGE, np.array([1, 1, 2, 3], np.float32)], {"mode": "linear"}, converter=False),
    # opset 11
    Case("Clip", 10, [X], {"min": -0.5, "max": 0.7}),
    Case("Clip", 10, [X], {"max": 0.7}),
    Case("Clip", 10, [X], {"min": 0.0, "max": 3.4028234663852886e38}),
    Case("Clip", 10, [X], {"min": -0.5, "max": 0.7}, unranked=True),
    Case("Pad", 10, [X], {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "value": 1.5}),
    Case("Pad", 10, [X], {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "mode": "reflect"}),
    Case(
        "Pad",
        2,
        [X.astype(np.float64)],
        {"pads": [0, 0, 1, 2, 0, 0, -2, 1], "value": 1.5},
        expected=lambda x: np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)), constant_values=1.5)[:, :, :3],
        runner="onnxruntime",
        converter=False,
    ),
    Case("Scatter", 10, [floats(3, 3), ints(0, 2, 1).reshape(1, 3), floats(1, 3)], {"axis": 0}),
    *[
        Case("Resize", 10, [IMAGE, np.array([1, 1, *s], np.float32)], {"mode": mode}, constants=known, converter=False)
        for mode in ("nearest", "linear")
        for s in ((2, 3), (0.6, 0.6), (0.6, 2), (1, 1))
        for known in ((1,), ())
    ],
    # opset 12
    Case("Dropout", 11, [X], {"ratio": 0.4}),
    # opset 13
    Case("Erf", 12, [ints(-1, 0, 2)], expected=lambda x: np.array([0, 0, 0]), converter=False),
    Case("Erf", 12, [X]),
    *[
        Case(op, 12, [x], a, unranked=unranked, converter=not unranked and op != "Hardmax")
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for x, a, unranked in (
            (X, {}, False),
            (X, {"axis": 0}, False),
            (X, {"axis": 2}, False),
            (X, {"axis": 3}, False),
            (X, {"axis": -1}, False),
            (X, {"axis": 2}, True),
            (X, {"axis": -1}, True),
            (floats(2, 3, 1, 1), {}, False),
        )
    ],
    Case("Softmax", 9, [np.empty((2, 0, 3), np.float32)], {"axis": 1}, expected=lambda x: x),
    Case("ReduceSum", 12, [X], {"axes": [1, -1], "keepdims": 0}),
    Case("ReduceSum", 12, [X], {"axes": [1]}, unranked=True),
    Case("ReduceSum", 12, [X], {}),
    Case("Split", 12, [floats(6, 2)], {"split": [1, 2, 3]}, 3),
    Case("Split", 12, [floats(2, 6)], {"axis": 1}, 3),
    Case("Squeeze", 12, [floats(1, 3, 1)], {"axes": [0]}),
    Case("Squeeze", 12, [floats(1, 3, 1)], {}),
    Case("Unsqueeze", 12, [floats(3)], {"axes": [0, 2]}),
    Case(
        "Resize",
        11,
        [IMAGE, np.empty(0, np.float32), np.empty(0, np.float32), ints(1, 1, 3, 6)],
        {"mode": "linear"},
        constants=(1, 2),
    ),
    *[
        Case(
            "Resize",
            11,
            [IMAGE, np.empty(0, np.float32), np.array([1, 1, a, b], np.float32)],
            {"coordinate_transformation_mode": "tf_half_pixel_for_nn", **rounding},
            constants=(1, 2),
            converter=False,
        )
        for a, b in ((2, 3), (0.5, 0.7))
        for rounding in ({"nearest_mode": "floor"}, {})
    ],
    # opset 14
    Case("BatchNormalization", 9, [floats(2, 3, 4), *CHANNELS], {}, 3, expected=batch_norm_training, converter=False),
    # opset 16
    Case(
        "RoiAlign",
        10,
        [floats(1, 2, 8, 8), np.array([[0, 0, 6, 5], [1, 2, 7, 7]], np.float32), ints(0, 0)],
        {"output_height": 3, "output_width": 3, "sampling_ratio": 2},
        converter=False,
    ),
    # opset 18
    *[
        Case(op, 17, [abs(X) + 0.1], {"axes": [-1, 1], "keepdims": k})
        for op in ADAPTERS
        if op.startswith("Reduce") and op != "ReduceSum"
        for k in (0, 1)
    ],
    Case("Split", 17, [floats(4, 6)], {"axis": 1}, 3),
    # opset 20
    Case(
        "DFT",
        17,
        [floats(1, 4, 6, 1)],
        {},
        expected=lambda x: np.stack([(z := np.fft.fft(x[..., 0], axis=1)).real, z.imag], -1),
        converter=False,
    ),
    Case("DFT", 17, [floats(1, 4, 6, 1)], {"axis": 2, "onesided": 1}),
    *[
        Case("GridSample", 16, [floats(1, 1, 4, 4), R.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)], {"mode": m})
        for m in ("bilinear", "nearest", "bicubic")
    ],
    Case("GridSample", 16, [floats(1, 1, 4, 4), R.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)]),
    # opset 21
    *[
        Case(
            "GroupNormalization",
            18,
            [floats(2, 6, 5), floats(3), floats(3)],
            {"num_groups": 3},
            constants=known,
            unranked=unranked,
            expected=group_norm,
            converter=False,
        )
        for known, unranked in (((1, 2), False), ((), False), ((), True))
    ],
    # opset 28
    *[
        Case(
            op,
            20,
            [ints(1, 2, 3, 4).reshape(2, 2), ints(0)],
            {"keepdims": 0},
            expected=integral(log),
            constants=(1,),
            converter=False,
        )
        for op, log in (
            ("ReduceLogSum", lambda x: np.log(x.sum(0))),
            ("ReduceLogSumExp", lambda x: np.log(np.exp(x).sum(0))),
        )
    ],
]


def run(graph: Graph, case: Case) -> list[Any]:
    return backend(case.runner).compile(graph)(*case.feeds().values())


def check(found: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def imported(model: onnx.ModelProto) -> Graph:
    return from_proto(model, upgrade=upgrade)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_node_means_the_same_in_the_canonical_opset(case: Case) -> None:
    graph = imported(case.model())
    assert graph.opsets[""] == canonical_opset()
    assert graph.info["imported_opset"] == case.opset
    check(run(graph, case), case.want())


@pytest.mark.parametrize("case", [c for c in CASES if c.converter], ids=str)
def test_version_converter_agrees(case: Case) -> None:
    model = onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(case.model()), canonical_opset())
    check(run(imported(case.model()), case), run(imported(model), case))


def test_every_adapter_has_a_case() -> None:
    met = {(c.op, since) for c in CASES for since in ADAPTERS.get(c.op, ()) if since > c.opset}
    assert ADAPTED - met == {("Scan", 9)}  # its body is below


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_main_node_keeps_its_identity(case: Case) -> None:
    graph = imported(case.model())
    assert [o.name for o in graph.output_info] == [f"y{i}" for i in range(case.results)]
    names = [n.name for n in graph.nodes]
    assert "the_node" in names
    assert all(n.startswith("the_node") for n in names)
    assert [n.doc for n in graph.nodes if n.name == "the_node"] == ["its doc"]


# loops and nested graphs

SCAN_8 = """
<ir_version: 3, opset_import: ["" : 8]>
scan (float[2,2] initial, float[2,3,2] x) => (float[2,2] final, float[2,3,2] sums) {
  final, sums = Scan <
    num_scan_inputs = 1, directions = [%d],
    body = step (float[2] state, float[2] part) => (float[2] next, float[2] out) {
      next = Add(state, part)
      out = Identity(next)
    }
  > ("", initial, x)
}
"""


@pytest.mark.parametrize("direction", [0, 1])
def test_scan_over_a_batch(direction: int) -> None:
    model = parser.parse_model(SCAN_8 % direction)
    initial, x = floats(2, 2), floats(2, 3, 2)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"initial": initial, "x": x})
    for name in ("reference", "onnxruntime") if not direction else ("onnxruntime",):
        check(backend(name).compile(imported(model))(initial, x), wanted)


NESTED = """
<ir_version: 7, opset_import: ["" : 11]>
nested (bool flag, float[1,3,1] x) => (float[] y) {
  y = If (flag) <
    then_branch = yes () => (float[] a) { a = Squeeze<axes = [0]>(x) },
    else_branch = no () => (float[] b) { c = Squeeze<axes = [2]>(x)  b = Softmax<axis = 0>(c) }
  >
}
"""


def test_nested_graphs_are_upgraded() -> None:
    graph = imported(parser.parse_model(NESTED))
    x = floats(1, 3, 1)
    compiled = backend("onnxruntime").compile(graph)
    check(compiled(np.array(True), x), [x[0]])
    check(compiled(np.array(False), x), [softmax(x[..., 0].reshape(-1), 0).reshape(1, 3)])


# what is rejected


def rejected(text: str) -> str:
    with pytest.raises(ModelError) as error:
        imported(parser.parse_model(text))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_newer_than_the_installed_onnx() -> None:
    newer = onnx.defs.onnx_opset_version() + 1
    assert f"opset {newer}" in rejected(
        f'<ir_version: 8, opset_import: ["" : {newer}]> g (float[1] x) => (float[1] y) {{ y = Neg(x) }}'
    )


def test_too_old() -> None:
    assert "opset 5 is too old for Add" in rejected(
        '<ir_version: 3, opset_import: ["" : 5]> g (float[1] x) => (float[1] y) { y = Add(x, x) }'
    )


def test_old_but_never_revised() -> None:
    imported(parser.parse_model('<ir_version: 3, opset_import: ["" : 1]> g (bool[1] x) => (bool[1] y) { y = Not(x) }'))


@pytest.mark.parametrize(
    ("opset", "nodes", "reason"),
    [
        (6, "y = Add<broadcast = 1, axis = 1>(x, z)", "needs the rank"),
        (
            11,
            'y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil">(x, z, z)',
            "tf_half_pixel",
        ),
        (18, "y = GroupNormalization<num_groups = 0>(x, z, z)", "not what its definition asks for"),
        (8, "y = BatchNormalization<spatial = 0>(x, z, z, z, )", "BatchNormalization"),
    ],
)
def test_what_cannot_be_expressed(opset: int, nodes: str, reason: str) -> None:
    message = rejected(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[2,2] x, float[] z) => (float[] y) {{ {nodes} }}'
    )
    assert reason in message


def test_a_canonical_model_is_left_alone() -> None:
    text = f"""<ir_version: 10, opset_import: ["" : {NEWEST}]> g (float[2] x) => (float[1,2] y) {{
      a = Constant<value = int64[1] {{0}}>() y = Unsqueeze(x, a) }}"""
    graph = imported(parser.parse_model(text))
    assert [n.op for n in graph.nodes] == ["Unsqueeze"]
    assert graph.info["imported_opset"] == NEWEST


def test_without_standard_operators() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["ai.onnx.ml" : 1]> g (float[2] x) => (float[2] y) {'
        " y = ai.onnx.ml.Binarizer(x) }"
    )
    assert "" not in imported(model).opsets


@pytest.mark.parametrize("version", range(5, NEWEST + 1))
def test_the_ir_version_of_an_opset_is_the_one_that_onnx_states(version):
    stated = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    assert least_ir_version({"": version}) == stated
    assert least_ir_version({"": version, "com.example": 1}) == stated
    assert least_ir_version({"": version, "ai.onnx.ml": 5}) == max(stated, 10)
