"""Ensembles of decision trees: all rows go down all trees at once, one level per step.

The nodes of all trees are numbered together; a leaf is its own child, so that a fixed number of steps, the depth of the
deepest tree, ends at leaves everywhere. Definitions: the specification of ``ai.onnx.ml``, version 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..values import traced
from .ml import post_transform

Array = Any
Known = np.ndarray[Any, Any]

_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_COMPARISONS = (jnp.less_equal, jnp.less, jnp.greater_equal, jnp.greater, jnp.equal, jnp.not_equal)
_MEMBER = 6
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_AGGREGATIONS = ("AVERAGE", "SUM", "MIN", "MAX")


@dataclass
class _Forest:
    """All trees; every field but ``roots`` has an element per node, that of a leaf does not matter but for children.

    Attributes:
        roots: the first node of each tree.
        features: the column that the node compares.
        splits: what it compares it with.
        modes: how, an index of `_MODES`.
        children: ``[nodes, 2]``, where to go if the comparison is false, and if it is true.
        missing: whether the comparison with NaN counts as true.
    """

    roots: Known
    features: Known
    splits: Known
    modes: Known
    children: Known
    missing: Known

    def depth(self) -> int:
        """The number of steps after which all are at leaves.

        Raises:
            ValueError: there are cycles.
        """
        here, steps = np.unique(self.roots), 0
        while (inner := here[self.children[here, 0] != here]).size:
            here, steps = np.unique(self.children[inner]), steps + 1
            if steps > len(self.features):
                raise ValueError("the nodes are no trees")
        return steps

    def leaves(self, x: Array) -> Array:
        """The leaf ``[rows, trees]`` that each row reaches in each tree."""
        tables = [traced(v) for v in (self.features, self.splits.astype(x.dtype), self.modes, self.missing)]
        children = traced(self.children)
        used = np.unique(self.modes)

        def step(_: Array, at: Array) -> Array:
            features, splits, modes, missing = (table[at] for table in tables)
            values = jnp.take_along_axis(x, features, axis=1, mode="promise_in_bounds")
            truth = _COMPARISONS[used[0]](values, splits)
            for mode in used[1:]:
                truth = jnp.where(modes == mode, _COMPARISONS[mode](values, splits), truth)
            if self.missing.any():
                truth |= missing & jnp.isnan(values)
            return children[at, truth.astype(at.dtype)]

        start = jnp.broadcast_to(traced(self.roots), (x.shape[0], self.roots.size))
        return lax.fori_loop(0, self.depth(), step, start)


def _aggregated(forest: _Forest, x: Array, leaf_values: tuple[Known, Known, Known], targets: int, how: str) -> Array:
    """What the leaves that each row reaches say of each target.

    Args:
        forest: the trees.
        x: the rows.
        leaf_values: leaves, the target that each tells something of, and what.
        targets: the number of targets.
        how: one of `_AGGREGATIONS`.
    """
    at, target, weights = leaf_values
    nodes = len(forest.features)
    if how in ("SUM", "AVERAGE"):
        table = np.zeros((nodes, targets), weights.dtype)
        np.add.at(table, (at, target), weights)
        total = traced(table)[forest.leaves(x)].sum(1)
        return total / forest.roots.size if how == "AVERAGE" else total
    extreme = np.finfo(weights.dtype)
    table = np.full((nodes, targets), extreme.max if how == "MIN" else extreme.min, weights.dtype)
    (np.minimum if how == "MIN" else np.maximum).at(table, (at, target), weights)
    reached = traced(table)[forest.leaves(x)]
    return reached.min(1) if how == "MIN" else reached.max(1)


def _rows(x: Array) -> Array:
    """``x`` as what trees compare: float64, or float32."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


# the older form: nodes by tree and number


def _array(call: Call, name: str) -> Known | None:
    """Attribute ``name``, or what it is as a tensor."""
    found = call.node.attrs.get(f"{name}_as_tensor")
    if found is not None:
        return np.asarray(found.numpy())
    values = call.node.attrs.get(name)
    return None if values is None else np.asarray(values, np.float32)


def _numbered_forest(call: Call) -> tuple[_Forest, dict[tuple[int, int], int]]:
    """The trees, and the places of their nodes by tree and number."""
    keys = list(zip(call["nodes_treeids"], call["nodes_nodeids"], strict=True))
    places = {key: i for i, key in enumerate(keys)}
    names = [m.decode() if isinstance(m, bytes) else m for m in call["nodes_modes"]]
    leaf = np.array([name == "LEAF" for name in names])
    children = np.stack([np.arange(len(keys))] * 2, axis=1)
    for i in np.flatnonzero(~leaf).tolist():
        tree = keys[i][0]
        children[i] = places[tree, call["nodes_falsenodeids"][i]], places[tree, call["nodes_truenodeids"][i]]
    inner = [_MODES.index(name) for name in names if name != "LEAF"]
    modes = np.full(len(keys), inner[0] if inner else 0)
    modes[~leaf] = inner
    splits = _array(call, "nodes_values")
    missing = call["nodes_missing_value_tracks_true"] or [0] * len(keys)
    first: dict[int, int] = {}
    for i, (tree, _) in enumerate(keys):
        first.setdefault(tree, i)
    forest = _Forest(
        np.array(list(first.values())),
        np.where(leaf, 0, np.asarray(call["nodes_featureids"])),
        np.zeros(len(keys), np.float32) if splits is None else splits,
        modes,
        children,
        np.asarray(missing, bool) & ~leaf,
    )
    return forest, places


def _numbered_leaves(call: Call, places: dict[tuple[int, int], int], what: str) -> tuple[Known, Known, Known]:
    at = [places[key] for key in zip(call[f"{what}_treeids"], call[f"{what}_nodeids"], strict=True)]
    weights = _array(call, f"{what}_weights")
    if weights is None:
        raise call.error(f"{what}_weights is not given")
    return np.asarray(at), np.asarray(call[f"{what}_ids"]), weights


@lowers("ai.onnx.ml.TreeEnsembleRegressor")
def _tree_ensemble_regressor(call: Call, x: Array) -> Array:
    forest, places = _numbered_forest(call)
    leaf_values = _numbered_leaves(call, places, "target")
    scores = _aggregated(forest, _rows(x), leaf_values, call["n_targets"], call["aggregate_function"])
    base = _array(call, "base_values")
    scores = scores if base is None or not base.size else scores + base.astype(scores.dtype)
    return post_transform(call["post_transform"], scores).astype(call.dtype())


@lowers("ai.onnx.ml.TreeEnsembleClassifier")
def _tree_ensemble_classifier(call: Call, x: Array) -> tuple[Array, Array]:
    labels = np.asarray(call["classlabels_int64s"], np.int64)
    forest, places = _numbered_forest(call)
    leaf_values = _numbered_leaves(call, places, "class")
    scores = _aggregated(forest, _rows(x), leaf_values, labels.size, "SUM")
    base = _array(call, "base_values")
    scores = scores if base is None or not base.size else scores + base.astype(scores.dtype)
    transform = call["post_transform"]
    if len(set(leaf_values[1].tolist())) == 1 and labels.size <= 2:  # two classes, of which the leaves tell one
        positive = scores[:, :1]
        negative = 1 - positive if transform in ("NONE", "PROBIT") else -positive
        scores = jnp.concatenate([negative, positive], axis=1)
        labels = np.array([0, 1]) if labels.size == 1 else labels
    scores = post_transform(transform, scores)
    return traced(labels)[jnp.argmax(scores, axis=1)], scores.astype(call.dtype(1))


# the newer form: inner nodes and leaves apart


@lowers("ai.onnx.ml.TreeEnsemble")
def _tree_ensemble(call: Call, x: Array) -> Array:
    forest, leaf_start = _split_forest(call)
    weights = np.asarray(call["leaf_weights"].numpy())
    at = leaf_start + np.arange(weights.size)
    leaf_values = at, np.asarray(call["leaf_targetids"]), weights
    how = _AGGREGATIONS[call["aggregate_function"]]
    scores = _aggregated(forest, _rows(x), leaf_values, call["n_targets"], how)
    return post_transform(_TRANSFORMS[call["post_transform"]], scores).astype(call.dtype())


def _split_forest(call: Call) -> tuple[_Forest, int]:
    """The trees, and the place of the first leaf. A test of membership becomes tests of equality, one after another."""
    splits = np.asarray(call["nodes_splits"].numpy())
    modes = np.asarray(call["nodes_modes"].numpy()).astype(int)
    members = _members(call, modes)
    extra = sum(max(len(m) - 1, 0) for m in members.values())
    count = len(modes)
    first_leaf, total = count + extra, count + extra + call["leaf_weights"].size
    is_leaf = np.stack([np.asarray(call["nodes_falseleafs"]), np.asarray(call["nodes_trueleafs"])], axis=1)
    inner = np.stack([np.asarray(call["nodes_falsenodeids"]), np.asarray(call["nodes_truenodeids"])], axis=1)
    children = np.stack([np.arange(total)] * 2, axis=1)
    children[:count] = np.where(is_leaf, inner + first_leaf, inner)
    missing = call["nodes_missing_value_tracks_true"] or [0] * count
    forest = _Forest(
        np.asarray(call["tree_roots"]),
        _extended(call["nodes_featureids"], total),
        _extended(splits, total),
        _extended(modes, total, modes[0] if modes[0] != _MEMBER else _MODES.index("BRANCH_EQ")),
        children,
        _extended(np.asarray(missing, bool), total),
    )
    _chain(forest, members, count)
    return forest, first_leaf


def _extended(values: Sequence[Any] | Known, total: int, fill: Any = 0) -> Known:
    array = np.asarray(values)
    return np.concatenate([array, np.full(total - len(array), fill, array.dtype)])


def _members(call: Call, modes: Known) -> dict[int, Known]:
    """The members that each node tests for. They are listed in the order of the nodes, NaN after each list."""
    found = np.flatnonzero(modes == _MEMBER)
    if not found.size:
        return {}
    values = call["membership_values"]
    values = np.zeros(0) if values is None else np.asarray(values.numpy())
    ends = np.flatnonzero(np.isnan(values))
    if ends.size != found.size:
        raise call.error(f"lists {ends.size} sets of members for {found.size} nodes")
    starts = [0, *(ends[:-1] + 1)]
    return {int(i): values[a:b] for i, a, b in zip(found, starts, ends, strict=True)}


def _chain(forest: _Forest, members: dict[int, Known], place: int) -> None:
    """Replace the tests of membership by chains of new nodes from ``place`` on."""
    equal = _MODES.index("BRANCH_EQ")
    for node, values in members.items():
        otherwise, here = forest.children[node, 0], node
        forest.modes[node] = equal
        forest.splits[node] = values[0] if len(values) else np.nan  # nothing equals NaN
        for value in values[1:]:
            forest.children[here, 0] = place
            forest.children[place] = otherwise, forest.children[node, 1]
            forest.features[place], forest.missing[place] = forest.features[node], forest.missing[node]
            forest.modes[place], forest.splits[place] = equal, value
            here, place = place, place + 1
