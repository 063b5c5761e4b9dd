"""Counts of n-grams and ensembles of trees."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import planish
from planish.backends import backend
from planish.ir.convert.proto import from_proto

from .trt_check import check

X = np.random.default_rng(0).integers(0, 6, (3, 9))


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_n_grams_are_counted(mode: str, kind: str) -> None:
    text = f"""g ({kind}[3,9] x) => (y) {{ y = TfIdfVectorizer <mode = "{mode}", min_gram_length = 1,
      max_gram_length = 3, max_skip_count = 2, ngram_counts = [0, 3, 9], ngram_indexes = [2, 0, 1, 4, 3, 6, 5],
      pool_int64s = [1, 2, 5, 0, 1, 2, 2, 3, 4, 1, 2, 3], weights = [1.0, 0.5, 2.0, 3.0, 4.0, 5.0, 6.0]> (x) }}"""
    check(text, x=X)


def test_n_grams_of_one_row() -> None:
    text = """g (int64[9] x) => (y) { y = TfIdfVectorizer <mode = "TF", min_gram_length = 2, max_gram_length = 2,
      max_skip_count = 0, ngram_counts = [0, 2], ngram_indexes = [0, 1, 3, 2],
      pool_int64s = [1, 2, 0, 1, 2, 2]> (x) }"""
    check(text, x=X[0])


def forest(aggregate: int, after: int) -> onnx.ModelProto:
    """Two trees on four features, with a comparison of each kind and one with a set; NaN ends a set."""
    tensor = lambda a, dtype=np.float32: numpy_helper.from_array(np.array(a, dtype))  # noqa: E731
    node = helper.make_node(
        "TreeEnsemble",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=2,
        aggregate_function=aggregate,
        post_transform=after,
        tree_roots=[0, 3],
        nodes_featureids=[0, 1, 2, 3, 0],
        nodes_modes=tensor([0, 1, 6, 3, 5], np.uint8),
        nodes_splits=tensor([0.5, -0.2, 2, 0.1, 1]),
        membership_values=tensor([1.0, 3.0, np.nan]),
        nodes_truenodeids=[1, 0, 2, 4, 5],
        nodes_trueleafs=[0, 1, 1, 0, 1],
        nodes_falsenodeids=[2, 1, 3, 4, 6],
        nodes_falseleafs=[0, 1, 1, 1, 1],
        nodes_missing_value_tracks_true=[1, 0, 0, 0, 0],
        leaf_targetids=[0, 1, 0, 1, 1, 0, 1],
        leaf_weights=tensor([1.5, -2, 0.25, 4, 3, -1, 0.5]),
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_tensor_value_info("y", 1, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(("aggregate", "after"), [(0, 0), (1, 0), (1, 1), (1, 2)])
def test_all_rows_go_down_all_trees_at_once(aggregate: int, after: int) -> None:
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    x[:20, 2] = np.arange(20) % 5
    x[0, 0] = np.nan
    y = backend("reference").run(from_proto(forest(aggregate, 0)), {"x": x})["y"]  # it knows no transforms
    weights = np.exp(y)
    y = (y, weights / weights.sum(1, keepdims=True), weights / (1 + weights))[after]
    check(str(planish.load(forest(aggregate, after))), 1e-4, expected={"y": y}, x=x)
