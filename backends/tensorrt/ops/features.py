"""What classical models make of features: counts of n-grams, and ensembles of trees.

TensorRT has neither; both are comparisons with constants, and sums of what is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ..legality import INDICES
from ..sizes import size_vector
from ..versions import Version

__all__ = ["FORMS", "ROWS"]

ROWS: dict[str, Any] = {}

_INT64 = DType.INT64
Array = np.ndarray[Any, Any]


def _ints(*numbers: int) -> Value:
    return constant(list(numbers), _INT64)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# --- n-grams ---------------------------------------------------------------------------------------------------------


def _tfidf(node: Node, version: Version) -> Sequence[Value] | None:
    """By length and distance, all windows are compared with all n-grams."""
    x, attrs = node.given(0), node.attrs
    length = x.shape[-1] if x.shape else None
    if x.dtype not in INDICES or not isinstance(length, int) or "pool_int64s" not in attrs:
        return None
    pool, columns = np.array(attrs["pool_int64s"]), np.array(attrs["ngram_indexes"])
    starts = [*attrs["ngram_counts"], len(pool)]
    rows = op.Reshape(x, _ints(-1, length, 1))
    counts: Value = constant(np.zeros((1, columns.max() + 1), np.float32))
    first = 0
    for size, (start, end) in enumerate(pairwise(starts), 1):
        grams = pool[start:end].reshape(-1, size)
        places = columns[first : first + len(grams)]
        first += len(grams)
        if not attrs["min_gram_length"] <= size <= attrs["max_gram_length"] or not len(grams):
            continue
        for distance in range(1, 2 + (attrs["max_skip_count"] if size > 1 else 0)):
            if (windows := length - (size - 1) * distance) > 0:
                met = _met(rows, grams, distance, windows)
                spread = np.eye(columns.max() + 1, dtype=np.float32)[places]
                counts = op.Add(counts, op.MatMul(met, constant(spread)))
    result = _weighted(node, counts)
    target = op.Concat(op.Shape(x, end=-1), _ints(int(columns.max()) + 1), axis=0)
    return [op.Reshape(result, target)]


def _met(rows: Value, grams: Array, distance: int, windows: int) -> Value:
    """How often each of ``grams`` is met, by row."""
    is_met: Value | None = None
    for i, tokens in enumerate(grams.T):
        part = op.Slice(rows, _ints(i * distance), _ints(i * distance + windows), _ints(1))
        is_equal = op.Equal(part, constant(tokens.astype(rows.dtype.numpy)))
        is_met = is_equal if is_met is None else op.And(is_met, is_equal)
    return op.ReduceSum(op.Cast(is_met, to=DType.FLOAT), _ints(1), keepdims=0)


def _weighted(node: Node, counts: Value) -> Value:
    mode, given = _text(node.attrs["mode"]), node.attrs.get("weights")
    columns = np.array(node.attrs["ngram_indexes"])
    weights = np.ones(columns.max() + 1, np.float32)
    if given and mode != "TF":
        weights[columns] = np.array(given)
    if mode == "IDF":
        counts = op.Min(counts, constant(1.0, DType.FLOAT))
    return op.Mul(counts, constant(weights))


# --- trees -----------------------------------------------------------------------------------------------------------

_MEMBER = 6
_COMPARISONS = ("LessOrEqual", "Less", "GreaterOrEqual", "Greater", "Equal")
_SUM, _MIN, _MAX = 1, 2, 3


@dataclass(frozen=True)
class _Trees:
    """Nodes and then leaves, numbered together; a leaf is its own child.

    Attributes:
        roots: the first node of each tree.
        children: ``[nodes and leaves, 2]``, where to go if the comparison is false, and if it is true.
        features: the column that each compares.
        splits: what it compares with.
        modes: how.
        missing: whether a missing value goes where the comparison is true.
        members: for those that compare with a set, its elements, filled up with NaN.
    """

    roots: Array
    children: Array
    features: Array
    splits: Array
    modes: Array
    missing: Array
    members: Array

    def depth(self) -> int:
        """The number of comparisons to the deepest leaf."""
        here, steps = np.unique(self.roots), 0
        while (inner := here[self.children[here, 0] != here]).size and steps <= len(self.features):
            here, steps = np.unique(self.children[inner]), steps + 1
        return steps


def _trees_of(node: Node) -> _Trees:
    attrs = node.attrs
    count, leaves = len(attrs["nodes_featureids"]), len(attrs["leaf_targetids"])
    children = np.tile(np.arange(count + leaves)[:, None], (1, 2))
    for column, side in enumerate(("false", "true")):
        is_leaf = np.array(attrs[f"nodes_{side}leafs"], bool)
        children[:count, column] = np.array(attrs[f"nodes_{side}nodeids"]) + count * is_leaf

    def pad(values: Any) -> Array:
        return np.pad(np.asarray(values), (0, leaves))

    modes = pad(attrs["nodes_modes"].numpy())
    sets: list[list[float]] = [[]]
    for value in attrs["membership_values"].numpy().tolist() if "membership_values" in attrs else ():
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(value)
    members = np.full((count + leaves, max(map(len, sets)) or 1), np.nan)
    for place, elements in zip(np.flatnonzero(modes == _MEMBER), sets, strict=False):
        members[place, : len(elements)] = elements
    return _Trees(
        np.array(attrs["tree_roots"]),
        children,
        pad(attrs["nodes_featureids"]),
        pad(attrs["nodes_splits"].numpy()),
        modes,
        pad(attrs.get("nodes_missing_value_tracks_true") or [0] * count).astype(bool),
        members,
    )


def _ensemble(node: Node, version: Version) -> Sequence[Value] | None:
    """All rows go down all trees at once, one level per step."""
    x, how, after = node.given(0), node.attrs.get("aggregate_function", _SUM), node.attrs.get("post_transform", 0)
    if x.rank != 2 or after not in (0, 1, 2):
        return None
    trees, targets = _trees_of(node), node.attrs["n_targets"]
    if x.dtype is not DType.FLOAT:
        x = op.Cast(x, to=DType.FLOAT)
    at = op.Expand(constant(trees.roots, _INT64), op.Concat(size_vector(x, 0), _ints(len(trees.roots)), axis=0))
    for _ in range(trees.depth()):
        at = op.Where(_goes_true(trees, x, at), _look_up(trees.children[:, 1], at), _look_up(trees.children[:, 0], at))
    empty = {_MIN: np.finfo(np.float32).max, _MAX: np.finfo(np.float32).min}.get(how, 0.0)
    weights = np.full((len(trees.features), targets), empty, np.float32)
    leaves = np.arange(len(node.attrs["leaf_targetids"])) + len(node.attrs["nodes_featureids"])
    weights[leaves, np.array(node.attrs["leaf_targetids"])] = node.attrs["leaf_weights"].numpy().ravel()
    together = {_MIN: op.ReduceMin, _MAX: op.ReduceMax, _SUM: op.ReduceSum}.get(how, op.ReduceMean)
    total = together(op.Gather(constant(weights), at), _ints(1), keepdims=0)
    total = op.Softmax(total, axis=-1) if after == 1 else op.Sigmoid(total) if after else total
    return [total if node.result.dtype is DType.FLOAT else op.Cast(total, to=node.result.dtype)]


def _look_up(table: Array, at: Value) -> Value:
    return op.Gather(constant(table), at)


def _goes_true(trees: _Trees, x: Value, at: Value) -> Value:
    """Which comparisons hold for the nodes that the rows have come to."""
    values = op.GatherElements(x, _look_up(trees.features.astype(np.int64), at), axis=1)
    splits, modes = _look_up(trees.splits.astype(np.float32), at), _look_up(trees.modes.astype(np.int64), at)
    result: Value | None = None
    for mode in np.unique(trees.modes[trees.children[:, 0] != np.arange(len(trees.modes))]).tolist():
        if mode == _MEMBER:
            found = op.Equal(op.Unsqueeze(values, _ints(2)), _look_up(trees.members.astype(np.float32), at))
            holds = op.Cast(op.ReduceMax(op.Cast(found, to=DType.INT32), _ints(2), keepdims=0), to=DType.BOOL)
        elif mode < len(_COMPARISONS):
            holds = getattr(op, _COMPARISONS[mode])(values, splits)
        else:
            holds = op.Not(op.Equal(values, splits))
        holds = op.And(holds, op.Equal(modes, constant(mode, _INT64)))
        result = holds if result is None else op.Or(result, holds)
    assert result is not None
    if trees.missing.any():
        result = op.Or(result, op.And(_look_up(trees.missing, at), op.IsNaN(values)))
    return result


FORMS = {
    "TfIdfVectorizer": _tfidf,
    "ai.onnx.ml.TreeEnsemble": _ensemble,
}
