"""Sparse tensors in files: smaller where there are many zeros, and the same numbers for whoever reads them."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import SparseTensorProto, helper, numpy_helper

import planish
from planish.backends import backend
from planish.backends.onnx_file import save
from planish.ir import Graph, constant, edit, op, sym, tensor_type
from planish.ir.convert.sparse import to_dense, to_sparse
from planish.ir.tensor import TensorError
from planish.ir.types import DType
from planish.passes import Context, Pipeline


def product(share, size=256, dtype=np.float32):
    """``x @ w + b`` with a share of zeros in ``w``."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((size, size)) * (rng.random((size, size)) >= share)).astype(dtype)
    graph = Graph("g", opsets={"": 21})
    x = graph.add_input(tensor_type(DType.from_numpy(np.dtype(dtype)), sym("n"), size), "x")
    y = op.MatMul(x, constant(weight, name="w")) + constant(np.ones(size, dtype), name="b")
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    return graph, weight


def rows(size=256, dtype=np.float32):
    return {"x": np.random.default_rng(1).standard_normal((3, size)).astype(dtype)}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_zeros_are_not_stored(tmp_path, dtype, external):
    graph, weight = product(0.9, dtype=dtype)
    before = str(graph)
    save(graph, tmp_path / "dense.onnx", external=external)
    save(graph, tmp_path / "sparse.onnx", external=external, sparse=True)
    assert str(graph) == before
    dense, sparse = (sum(f.stat().st_size for f in tmp_path.glob(f"{n}.onnx*")) for n in ("dense", "sparse"))
    kept = np.count_nonzero(weight)
    assert dense - sparse == pytest.approx(weight.nbytes - kept * (weight.itemsize + 8), abs=1000)
    onnx.checker.check_model(str(tmp_path / "sparse.onnx"), full_check=True)
    sessions = [
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        for name in ("dense.onnx", "sparse.onnx")
    ]
    expected, found = (session.run(None, rows(dtype=dtype))[0] for session in sessions)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.6])
def test_what_would_be_larger_stays_dense(tmp_path, share):
    graph, _ = product(share)
    save(graph, tmp_path / "a.onnx")
    save(graph, tmp_path / "b.onnx", sparse=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_planish_reads_and_runs_what_it_wrote(tmp_path):
    graph, weight = product(0.9)
    expected = backend("onnxruntime").run(graph, rows())["y"]
    save(graph, tmp_path / "m.onnx", sparse=True)
    loaded = planish.load(tmp_path / "m.onnx")
    assert [node.op for node in loaded.nodes].count("Constant") == 1
    np.testing.assert_array_equal(backend("onnxruntime").run(loaded, rows())["y"], expected)
    Pipeline("simplify").run(loaded, Context(lambda: backend("onnxruntime")))
    assert not [node for node in loaded.nodes if node.op == "Constant"]  # passes see a weight again
    found = next(node for node in loaded.nodes if node.op in ("MatMul", "Gemm")).given(1).const.numpy()
    np.testing.assert_array_equal(found, weight)
    save(loaded, tmp_path / "again.onnx", sparse=True)
    assert (tmp_path / "again.onnx").stat().st_size == pytest.approx((tmp_path / "m.onnx").stat().st_size, abs=500)


def test_results_are_saved_so(tmp_path):
    graph, _ = product(0.0)
    result = planish.optimize(graph, "sparsify{ratio=0.9}", measure=False)
    result.save(tmp_path / "dense.onnx")
    result.save(tmp_path / "sparse.onnx", sparse=True)
    assert (tmp_path / "sparse.onnx").stat().st_size < 0.4 * (tmp_path / "dense.onnx").stat().st_size


def test_a_sparse_tensor_that_would_explode_is_not_folded(tmp_path):
    """Sixty bytes that say they are a gigabyte."""
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
        [1 << 14, 1 << 14],
    )
    output = helper.make_tensor_value_info("y", 1, ["n", 1 << 14])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 1 << 14])],
        [output],
        sparse_initializer=[sparse],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    loaded = planish.load(tmp_path / "m.onnx")
    Pipeline("simplify").run(loaded, Context())
    assert [node.op for node in loaded.nodes] == ["Constant", "MatMul"]


# tensors


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.int8, np.bool_, np.float64]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_there_and_back(array):
    array = np.where(array != array, array.dtype.type(0), array)  # NaN is not itself
    sparse = to_sparse(array, "w")
    found = to_dense(sparse)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert numpy_helper.to_array(SparseTensorProto.FromString(sparse).values).size == np.count_nonzero(array)


def test_bfloat16_goes_there_and_back():
    array = np.array([[0, 1.5], [-2, 0]], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(to_dense(to_sparse(array)), array)


def tensor(values, places, shape):
    parts = (numpy_helper.from_array(np.asarray(a), "w") for a in (np.float32(values), np.int64(places)))
    proto = SparseTensorProto(dims=shape)
    for field, part in zip((proto.values, proto.indices), parts, strict=True):
        field.CopyFrom(part)
    return proto.SerializeToString()


def test_places_may_have_an_index_per_dimension():
    found = to_dense(tensor([5, 6], [[0, 2], [1, 0]], [2, 3]))
    np.testing.assert_array_equal(found, [[0, 0, 5], [6, 0, 0]])


@pytest.mark.parametrize(
    ("values", "places", "shape"),
    [
        ([1], [6], [2, 3]),
        ([1], [-1], [2, 3]),
        ([1, 2], [0], [2, 3]),
        ([1], [[0, 3]], [2, 3]),
        ([1], [[-1, 0]], [2, 3]),
        ([1], [[0, 0, 0]], [2, 3]),
        ([1], [0], [0, 3]),
        ([1], 0, [2, 3]),
    ],
)
def test_places_that_do_not_fit(values, places, shape):
    with pytest.raises(TensorError, match="places do not fit"):
        to_dense(tensor(values, places, shape))
