"""Lowerings of the operators of ai.onnx.ml on numbers, against onnxruntime, the reference and scikit-learn."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.ir import Graph
from planish.ir.convert.proto import from_proto

Array = np.ndarray[Any, Any]
FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def model(op: str, inputs: list[Array], outputs: list[int], version: int = 3, **attrs: Any) -> Graph:
    """A model of one operator with results of these element types."""
    names = [f"x{i}" for i in range(len(inputs))]
    results = [f"y{i}" for i in range(len(outputs))]
    node = helper.make_node(op, names, results, domain="ai.onnx.ml", **attrs)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
            for n, x in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(results, outputs, strict=True)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", version)]
    return from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def check(graph: Graph, *inputs: Array, truth: str = "onnxruntime", rtol: float = 1e-5) -> list[Any]:
    wanted = backend(truth).compile(graph)(*inputs)
    found = backend("xla").compile(graph)(*inputs)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
    return found


# features


def test_features() -> None:
    x = np.float32([[1, -2, 0], [np.nan, 3, 1], [0, 0, 0]])
    check(model("Binarizer", [x], [FLOAT], threshold=0.5), np.nan_to_num(x))
    check(model("Imputer", [x], [FLOAT], imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=float("nan")), x)
    check(model("Imputer", [x], [FLOAT], imputed_value_floats=[7.0], replaced_value_float=1.0), x)
    ints = np.array([[1, 2], [2, 3]])
    check(model("Imputer", [ints], [INT64], imputed_value_int64s=[5, 6], replaced_value_int64=2), ints)
    check(model("Scaler", [x], [FLOAT], offset=[1.0, 2.0, 3.0], scale=[2.0, 0.5, 1.0]), x)
    check(model("Scaler", [ints], [FLOAT], offset=[1.0], scale=[2.0]), ints)
    check(model("OneHotEncoder", [ints], [FLOAT], cats_int64s=[3, 1, 9]), ints)
    check(model("ArrayFeatureExtractor", [x, ints[0]], [FLOAT]), x, ints[0])
    parts = [numbers(2, 3), numbers(2, 1)]
    check(model("FeatureVectorizer", parts, [FLOAT], inputdimensions=[3, 1]), *parts)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalization_leaves_rows_of_zeros_with_a_gradient(norm: str) -> None:
    x = np.abs(numbers(3, 4))
    x[1] = 0
    graph = model("Normalizer", [x], [FLOAT], norm=norm)
    check(graph, x)
    assert np.isfinite(jax.grad(lambda x: to_jax(graph)({}, x)[0].sum())(x)).all()


def test_labels() -> None:
    x = np.array([[3, 1], [7, 5]])
    check(
        model("LabelEncoder", [x], [FLOAT], keys_int64s=[5, 3, 1], values_floats=[0.5, 0.3, 0.1], default_float=-2.0), x
    )
    y = np.float32([1.5, np.nan, 2.0])
    check(model("LabelEncoder", [y], [INT64], keys_floats=[2.0, float("nan")], values_int64s=[2, 9]), y)


# linear models


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_linear_models(transform: str) -> None:
    x, weights = numbers(5, 4), numbers(3, 4).ravel().tolist()
    check(
        model("LinearRegressor", [x], [FLOAT], coefficients=weights, intercepts=[1.0, 2.0, 3.0], targets=3), x
    )  # fmt: skip
    attrs = {"coefficients": weights, "intercepts": [0.1, 0.2, 0.3], "classlabels_ints": [4, 7, 9]}
    check(model("LinearClassifier", [x], [INT64, FLOAT], post_transform=transform, multi_class=1, **attrs), x)
    attrs = {"coefficients": weights[:4], "intercepts": [0.1], "classlabels_ints": [4, 7]}
    check(model("LinearClassifier", [x], [INT64, FLOAT], post_transform=transform, **attrs), x, truth="reference")


# support vector machines

KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")


@pytest.mark.parametrize("kernel", KERNELS)
def test_support_vector_regression(kernel: str) -> None:
    x, vectors, weights = numbers(6, 3), numbers(4, 3), numbers(4)
    attrs = {
        "kernel_type": kernel, "kernel_params": [0.5, 0.25, 2.0], "n_supports": 4, "rho": [0.1],
        "support_vectors": vectors.ravel().tolist(), "coefficients": weights.tolist(),
    }  # fmt: skip
    check(model("SVMRegressor", [x], [FLOAT], **attrs), x)
    check(model("SVMRegressor", [x], [FLOAT], one_class=1, **attrs), x)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_support_vector_classification(classes: int, probabilities: bool) -> None:
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 12)
    rows = (rng.normal(size=(labels.size, 3)) + 1.5 * np.eye(classes, 3)[labels]).astype(np.float32)
    fitted = SVC(kernel="rbf", gamma=0.3).fit(rows, labels)
    pairs = classes * (classes - 1) // 2
    # scikit-learn turns the signs of two classes around
    sign = -1 if classes == 2 else 1
    attrs: dict[str, Any] = {
        "kernel_type": "RBF", "kernel_params": [0.3, 0.0, 3.0], "vectors_per_class": fitted.n_support_.tolist(),
        "support_vectors": fitted.support_vectors_.ravel().tolist(), "classlabels_ints": list(range(10, 10 + classes)),
        "coefficients": (sign * fitted.dual_coef_).ravel().tolist(), "rho": (sign * fitted.intercept_).tolist(),
    }  # fmt: skip
    if probabilities:
        attrs |= {"prob_a": [-1.5 + 0.1 * i for i in range(pairs)], "prob_b": [0.1 * i for i in range(pairs)]}
    graph = model("SVMClassifier", [rows], [INT64, FLOAT], **attrs)
    found, _ = check(graph, rows, rtol=1e-3)
    np.testing.assert_array_equal(found, fitted.predict(rows) + 10)


# trees


def of_tree(number: int, tree: Any, scale: float) -> dict[str, list[Any]]:
    """Attributes of a tree of scikit-learn whose leaves tell the targets ``scale`` times their value."""
    count, leaf = tree.node_count, tree.children_left < 0
    values = tree.value[:, :, 0] if tree.value.shape[2] == 1 else tree.value[:, 0]
    leaves = [(i, k) for i in np.flatnonzero(leaf) for k in range(values.shape[1])]
    return {
        "nodes_treeids": [number] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_featureids": np.where(leaf, 0, tree.feature).tolist(),
        "nodes_values": np.where(leaf, 0, tree.threshold).tolist(),
        "nodes_modes": ["LEAF" if v else "BRANCH_LEQ" for v in leaf],
        "nodes_truenodeids": np.where(leaf, 0, tree.children_left).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, tree.children_right).tolist(),
        "treeids": [number] * len(leaves),
        "nodeids": [int(i) for i, _ in leaves],
        "ids": [k for _, k in leaves],
        "weights": [float(values[i, k]) * scale for i, k in leaves],
    }


def of_forest(fitted: Any, what: str, scale: float) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for number, estimator in enumerate(fitted.estimators_):
        for name, values in of_tree(number, estimator.tree_, scale).items():
            attrs.setdefault(name if name.startswith("nodes") else f"{what}_{name}", []).extend(values)
    return attrs


def test_a_forest_predicts_what_scikit_learn_predicts() -> None:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    targets = np.stack([x[:, 0] * x[:, 1], x.sum(1)], 1)
    fitted = RandomForestRegressor(7, max_depth=5, random_state=0).fit(x, targets)
    attrs = of_forest(fitted, "target", 1.0)
    graph = model("TreeEnsembleRegressor", [x], [FLOAT], aggregate_function="AVERAGE", n_targets=2, **attrs)
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], fitted.predict(x), rtol=1e-5, atol=1e-6)
    classes = np.digitize(x.sum(1), [-1, 1])
    fitted = RandomForestClassifier(7, max_depth=5, random_state=0).fit(x, classes)
    attrs = of_forest(fitted, "class", 1 / 7)
    graph = model("TreeEnsembleClassifier", [x], [INT64, FLOAT], classlabels_int64s=[3, 5, 8], **attrs)
    labels, scores = check(graph, x)
    np.testing.assert_array_equal(labels, np.array([3, 5, 8])[fitted.predict(x)])
    np.testing.assert_allclose(scores, fitted.predict_proba(x), atol=1e-6)


RANDOM = {
    "nodes_treeids": [0, 0, 0, 0, 0, 1, 1, 1, 2],
    "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2, 0],
    "nodes_featureids": [0, 1, 0, 0, 0, 2, 0, 0, 0],
    "nodes_values": [0.5, -0.25, 0, 0, 0, 1.0, 0, 0, 0],
    "nodes_truenodeids": [1, 3, 0, 0, 0, 1, 0, 0, 0],
    "nodes_falsenodeids": [2, 4, 0, 0, 0, 2, 0, 0, 0],
    "nodes_missing_value_tracks_true": [1, 0, 0, 0, 0, 1, 0, 0, 0],
}


def modes(first: str, second: str, third: str) -> list[str]:
    return [first, second, "LEAF", "LEAF", "LEAF", third, "LEAF", "LEAF", "LEAF"]


def leaves(what: str) -> dict[str, list[Any]]:
    return {
        f"{what}_treeids": [0, 0, 0, 0, 1, 1, 2, 2],
        f"{what}_nodeids": [2, 3, 3, 4, 1, 2, 0, 0],
        f"{what}_ids": [0, 1, 0, 1, 0, 1, 0, 1],
        f"{what}_weights": [1.0, 2.0, -3.0, 4.0, -5.0, 6.0, 0.25, 0.5],
    }


@pytest.mark.parametrize("aggregation", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("kinds", [("LEQ", "LT", "GTE"), ("GT", "GT", "GT"), ("EQ", "NEQ", "LEQ")])
def test_trees_with_missing_values(aggregation: str, kinds: tuple[str, str, str]) -> None:
    x = np.float32([[0.5, -0.25, 1], [0, 0, 0], [np.nan, np.nan, np.nan], [2, -1, 1], [0.5, 1, 3]])
    graph = model(
        "TreeEnsembleRegressor", [x], [FLOAT], aggregate_function=aggregation, n_targets=2, base_values=[1.0, -1.0],
        nodes_modes=modes(*(f"BRANCH_{kind}" for kind in kinds)), **RANDOM, **leaves("target"),
    )  # fmt: skip
    check(graph, x)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
def test_classification_by_trees(transform: str) -> None:
    x = np.float32([[0.5, -0.25, 1], [0, 0, 0], [2, -1, 1], [0.5, 1, 3]])
    attrs = RANDOM | {"nodes_modes": modes(*["BRANCH_LEQ"] * 3), "post_transform": transform, **leaves("class")}
    check(model("TreeEnsembleClassifier", [x], [INT64, FLOAT], classlabels_int64s=[2, 1], **attrs), x)
    one = attrs | {"class_ids": [0] * 8}
    if transform == "LOGISTIC":  # of two classes, the leaves tell one: what gradient boosting is exported as
        check(model("TreeEnsembleClassifier", [x], [INT64, FLOAT], classlabels_int64s=[0, 1], **one), x)
    check(
        model("TreeEnsembleClassifier", [x], [INT64, FLOAT], classlabels_int64s=[0, 1], **one), x, truth="reference"
    )  # fmt: skip


def test_double_trees_compare_in_double() -> None:
    x = np.array([[0.5, 1e-12 + 1, 0], [0.5, 1, 0]])
    attrs = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "nodes_values_as_tensor": helper.make_tensor("v", DOUBLE, [3], [1.0, 0, 0]), "n_targets": 1,
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
        "target_weights_as_tensor": helper.make_tensor("w", DOUBLE, [2], [1.0, 2.0]),
    }  # fmt: skip
    graph = model("TreeEnsembleRegressor", [x], [FLOAT], **attrs)
    np.testing.assert_array_equal(backend("xla").compile(graph)(x)[0], [[2], [1]])


def test_membership_with_missing_values() -> None:
    x = np.float32([[1, 0], [2, 0], [3, 0], [9, 0], [np.nan, 0]])
    attrs = {
        "tree_roots": [0], "n_targets": 1, "nodes_featureids": [0, 1],
        "nodes_modes": helper.make_tensor("m", TensorProto.UINT8, [2], [6, 0]),
        "nodes_splits": helper.make_tensor("s", FLOAT, [2], [0.0, 0.5]),
        "membership_values": helper.make_tensor("v", FLOAT, [4], [1.0, 3.0, 9.0, float("nan")]),
        "nodes_truenodeids": [1, 0], "nodes_trueleafs": [0, 1],
        "nodes_falsenodeids": [2, 1], "nodes_falseleafs": [1, 1], "nodes_missing_value_tracks_true": [1, 0],
        "leaf_targetids": [0, 0, 0], "leaf_weights": helper.make_tensor("w", FLOAT, [3], [10.0, 20.0, 30.0]),
    }  # fmt: skip
    graph = model("TreeEnsemble", [x], [FLOAT], version=5, **attrs)
    np.testing.assert_array_equal(backend("xla").compile(graph)(x)[0][:, 0], [10, 30, 10, 10, 10])


def test_nodes_in_a_circle_are_an_error() -> None:
    x = numbers(2, 3)
    attrs = RANDOM | {"nodes_truenodeids": [1, 0, 0, 0, 0, 1, 0, 0, 0], "nodes_modes": modes(*["BRANCH_LEQ"] * 3)}
    graph = model("TreeEnsembleRegressor", [x], [FLOAT], n_targets=2, **attrs, **leaves("target"))
    with pytest.raises(LoweringError, match="the nodes are no trees"):
        backend("xla").compile(graph)(x)


def test_trees_export_with_a_symbolic_number_of_rows() -> None:
    x = numbers(4, 3)
    attrs = {"n_targets": 2, "nodes_modes": modes(*["BRANCH_LEQ"] * 3), **RANDOM, **leaves("target")}
    graph = model("TreeEnsembleRegressor", [x], [FLOAT], **attrs)
    function = to_jax(graph)
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 3"), np.float32)
    (found,) = jax.export.export(jax.jit(lambda x: function({}, x)))(spec).call(x)
    np.testing.assert_array_equal(found, function({}, x)[0])


def test_strings_are_refused_up_front() -> None:
    x = numbers(2, 3)
    attrs = {"coefficients": [1.0, 2.0, 3.0], "intercepts": [0.0], "classlabels_strings": ["a", "b"]}
    graph = model("LinearClassifier", [x], [onnx.TensorProto.STRING, FLOAT], **attrs)
    with pytest.raises(LoweringError, match=r"LinearClassifier: works on strings"):
        to_jax(graph)
