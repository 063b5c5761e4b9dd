"""Operators of ``ai.onnx.ml`` on numbers: features, linear models and support vector machines.

Definitions: the specification of ``ai.onnx.ml``, version 5, and onnx.reference where it is silent.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..precision import precision_of
from ..values import traced

__all__ = ["post_transform"]

Array = Any
Known = np.ndarray[Any, Any]

_PREFIX = "ai.onnx.ml."


def post_transform(name: str, scores: Array) -> Array:
    """What ``post_transform`` makes of scores, row by row.

    Raises:
        ValueError: there is no such transformation.
    """
    match name:
        case "NONE":
            return scores
        case "LOGISTIC":
            return jax.nn.sigmoid(scores)
        case "SOFTMAX":
            return jax.nn.softmax(scores, axis=-1)
        case "SOFTMAX_ZERO":  # zeros stay zeros
            highest = scores.max(-1, keepdims=True)
            weights = jnp.where(jnp.abs(scores) > 1e-7, jnp.exp(scores - highest), scores * jnp.exp(-highest))
            total = weights.sum(-1, keepdims=True)
            return jnp.where(total == 0, 0.5, weights / jnp.where(total == 0, 1, total))
        case "PROBIT":
            return math.sqrt(2) * lax.erf_inv(2 * scores - 1)
        case _:
            raise ValueError(f"there is no post_transform {name!r}")


def _numbers(call: Call, name: str) -> Known | None:
    """An attribute that lists floats, if it is given."""
    found = call.node.attrs.get(name)
    return None if found is None or len(found) == 0 else np.asarray(found, np.float32)


def _floats(x: Array) -> Array:
    """``x`` as floating-point numbers: integers become float32."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


# features


@lowers(_PREFIX + "Binarizer")
def _binarizer(call: Call, x: Array) -> Array:
    return (x > jnp.asarray(call["threshold"], x.dtype)).astype(x.dtype)


@lowers(_PREFIX + "Imputer")
def _imputer(call: Call, x: Array) -> Array:
    kind = "float" if jnp.issubdtype(x.dtype, jnp.floating) else "int64"
    values, replaced = call[f"imputed_value_{kind}s"], call[f"replaced_value_{kind}"]
    if not values:
        raise call.error(f"imputed_value_{kind}s is not given")
    missing = jnp.isnan(x) if math.isnan(replaced) else x == jnp.asarray(replaced, x.dtype)
    return jnp.where(missing, jnp.asarray(values, x.dtype), x)


@lowers(_PREFIX + "Scaler")
def _scaler(call: Call, x: Array) -> Array:
    offset, scale = _numbers(call, "offset"), _numbers(call, "scale")
    result = x.astype(jnp.float32)
    result = result if offset is None else result - offset
    return result if scale is None else result * scale


@lowers(_PREFIX + "Normalizer")
def _normalizer(call: Call, x: Array) -> Array:
    x = x.astype(jnp.float32)
    match call["norm"]:
        case "MAX":
            divisor = jnp.abs(x).max(-1, keepdims=True)
        case "L1":
            divisor = jnp.abs(x).sum(-1, keepdims=True)
        case "L2":
            squares = jnp.square(x).sum(-1, keepdims=True)
            divisor = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        case other:
            raise call.error(f"there is no norm {other!r}")
    return x / jnp.where(divisor == 0, 1, divisor)


@lowers(_PREFIX + "OneHotEncoder")
def _one_hot_encoder(call: Call, x: Array) -> Array:
    if not call["zeros"]:
        raise call.error("asks to fail for unknown categories, which XLA cannot (zeros = 0)")
    categories = np.asarray(call["cats_int64s"], np.int64)
    return (x.astype(jnp.int64)[..., None] == traced(categories)).astype(jnp.float32)


@lowers(_PREFIX + "FeatureVectorizer")
def _feature_vectorizer(call: Call, *operands: Array) -> Array:
    parts = []
    for x, size in zip(operands, call["inputdimensions"], strict=True):
        x = (x if x.ndim == 2 else x.reshape(1, -1)).astype(jnp.float32)[:, :size]
        parts.append(jnp.pad(x, [(0, 0), (0, size - x.shape[1])]))
    return jnp.concatenate(parts, axis=1)


@lowers(_PREFIX + "ArrayFeatureExtractor")
def _array_feature_extractor(call: Call, x: Array, indices: Array) -> Array:
    picked = x.at[(..., indices.reshape(-1))].get(mode="promise_in_bounds")
    return picked[None] if x.ndim == 1 else picked


def _table(call: Call, what: str) -> Known:
    for kind, dtype in (("floats", np.float32), ("int64s", np.int64)):
        if found := call.node.attrs.get(f"{what}_{kind}"):
            return np.asarray(found, dtype)
    found = call.node.attrs.get(f"{what}_tensor")
    if found is None:
        raise call.error(f"{what} are not numbers")
    return np.asarray(found.numpy())


@lowers(_PREFIX + "LabelEncoder")
def _label_encoder(call: Call, x: Array) -> Array:
    keys, values = _table(call, "keys").reshape(-1), _table(call, "values").reshape(-1)
    keys, first = np.unique(keys[::-1], return_index=True)  # the last of equal keys, as in a dictionary
    values = values[::-1][first]
    default = call.node.attrs.get("default_tensor")
    if default is not None:
        other = default.numpy().reshape(())
    else:
        other = np.asarray(call["default_float"] if values.dtype.kind == "f" else call["default_int64"])
    at = jnp.clip(jnp.searchsorted(traced(keys), x), 0, keys.size - 1)
    return jnp.where(traced(keys)[at] == x, traced(values)[at], traced(other.astype(values.dtype)))


# linear models


@lowers(_PREFIX + "LinearRegressor")
def _linear_regressor(call: Call, x: Array) -> Array:
    return post_transform(call["post_transform"], _linear(call, x, call["targets"])).astype(call.dtype())


def _linear(call: Call, x: Array, rows: int) -> Array:
    """The products with ``rows`` rows of coefficients, and the intercepts."""
    x = _floats(x)
    coefficients = jnp.asarray(np.asarray(call["coefficients"], np.float32).reshape(rows, -1), x.dtype)
    scores = jnp.matmul(x, coefficients.T, precision=precision_of(call))
    intercepts = _numbers(call, "intercepts")
    return scores if intercepts is None else scores + intercepts.astype(x.dtype)


@lowers(_PREFIX + "LinearClassifier")
def _linear_classifier(call: Call, x: Array) -> tuple[Array, Array]:
    labels = np.asarray(call["classlabels_ints"], np.int64)
    scores = _linear(call, x, len(call["coefficients"]) // x.shape[1])
    if scores.shape[1] == 1 and labels.size == 2:
        scores = jnp.concatenate([-scores, scores], axis=1)
    scores = post_transform(call["post_transform"], scores)
    if scores.shape[1] == 1:
        wins = scores[:, 0] >= (0 if call["post_transform"] == "NONE" else 0.5)
        return jnp.where(wins, labels[0], 0).astype(call.dtype(0)), scores.astype(call.dtype(1))
    return traced(labels)[jnp.argmax(scores, 1)], scores.astype(call.dtype(1))


# support vector machines


def _kernel(call: Call, x: Array, vectors: Array) -> Array:
    """The kernel of every row of ``x`` with every row of ``vectors``."""
    gamma, offset, degree = call["kernel_params"] or (0.0, 0.0, 0.0)
    if call["kernel_type"] == "RBF":
        difference = x[:, None] - vectors
        return jnp.exp(-gamma * jnp.square(difference).sum(-1))
    products = jnp.matmul(x, vectors.T, precision=precision_of(call))
    match call["kernel_type"]:
        case "LINEAR":
            return products
        case "POLY":
            return lax.integer_pow(products * gamma + offset, int(degree))
        case "SIGMOID":
            return jnp.tanh(products * gamma + offset)
        case other:
            raise call.error(f"there is no kernel {other!r}")


@lowers(_PREFIX + "SVMRegressor")
def _svm_regressor(call: Call, x: Array) -> Array:
    x = _floats(x)
    coefficients = jnp.asarray(call["coefficients"], x.dtype)
    count = call["n_supports"]
    if count > 0:
        x = _kernel(call, x, jnp.asarray(call["support_vectors"], x.dtype).reshape(count, -1))
    scores = jnp.matmul(x, coefficients[:, None], precision=precision_of(call)) + call["rho"][0]
    if call["one_class"]:
        return jnp.where(scores > 0, 1, -1).astype(call.dtype())
    return post_transform(call["post_transform"], scores).astype(call.dtype())


@lowers(_PREFIX + "SVMClassifier")
def _svm_classifier(call: Call, x: Array) -> tuple[Array, Array]:
    labels = np.asarray(call["classlabels_ints"], np.int64)
    classes, x = labels.size, _floats(x)
    sizes = list(call["vectors_per_class"] or ())
    has_probabilities = bool(sizes and call["prob_a"])
    if sizes:
        vectors = jnp.asarray(call["support_vectors"], x.dtype).reshape(sum(sizes), -1)
        weights = jnp.asarray(_pair_weights(call, sizes), x.dtype)
        scores = jnp.matmul(_kernel(call, x, vectors), weights, precision=precision_of(call))
        scores = scores + jnp.asarray(call["rho"][: weights.shape[1]], x.dtype)
        wins = (scores > 0).astype(x.dtype)
        votes = wins @ _pairs(classes, 0).astype(x.dtype) + (1 - wins) @ _pairs(classes, 1).astype(x.dtype)
        scores = _probabilities(call, scores, classes) if has_probabilities else scores
    else:
        rows = jnp.asarray(np.asarray(call["coefficients"], np.float32).reshape(classes, -1), x.dtype)
        votes = scores = jnp.matmul(x, rows.T, precision=precision_of(call)) + call["rho"][0]
    winner = jnp.argmax(votes, axis=1)
    if len(call["rho"]) == 1 and classes == 2 and not has_probabilities and min(call["coefficients"]) >= 0:
        winner = jnp.where(votes.max(1) >= 0.5, 1, winner)
    chosen = traced(labels)[winner]
    if len(call["rho"]) == 1 and classes != 2:
        chosen = jnp.where(votes.max(1) > 0, 1, 0).astype(chosen.dtype)
    if scores.shape[1] == 1:
        scores = jnp.concatenate([-scores, scores], axis=1)
    return chosen, post_transform(call["post_transform"], scores).astype(call.dtype(1))


def _pairs(classes: int, which: int) -> Known:
    """For each pair of classes, in order, its first (0) or second (1) one, as rows of zeros and a one."""
    chosen = [(i, j)[which] for i in range(classes) for j in range(i + 1, classes)]
    return np.eye(classes)[chosen]


def _pair_weights(call: Call, sizes: list[int]) -> Known:
    """The weight of every support vector in the decision between every pair of classes."""
    coefficients = np.asarray(call["coefficients"], np.float32).reshape(-1, sum(sizes))
    starts = np.cumsum([0, *sizes])
    columns = []
    for i in range(len(sizes)):
        for j in range(i + 1, len(sizes)):
            column = np.zeros(sum(sizes), np.float32)
            column[starts[i] : starts[i + 1]] = coefficients[j - 1, starts[i] : starts[i + 1]]
            column[starts[j] : starts[j + 1]] = coefficients[i, starts[j] : starts[j + 1]]
            columns.append(column)
    return np.stack(columns, axis=1)


def _probabilities(call: Call, scores: Array, classes: int) -> Array:
    """Probabilities of the classes from those of pairs (Wu, Lin and Weng, 2004, second method, as in LIBSVM)."""
    a, b = (jnp.asarray(call[name], scores.dtype) for name in ("prob_a", "prob_b"))
    first = jnp.clip(jax.nn.sigmoid(-(scores * a + b)), 1e-7, 1 - 1e-7)
    rows, columns = np.triu_indices(classes, 1)
    pairwise = jnp.zeros((scores.shape[0], classes, classes), scores.dtype)
    pairwise = pairwise.at[:, rows, columns].set(first).at[:, columns, rows].set(1 - first)
    diagonal = jnp.square(pairwise).sum(1)
    q = jnp.where(np.eye(classes, dtype=bool), diagonal[:, :, None], -pairwise * jnp.swapaxes(pairwise, 1, 2))

    def improve(_: Array, p: Array) -> Array:
        products = jnp.einsum("nij,nj->ni", q, p, precision=lax.Precision.HIGHEST)
        total = (p * products).sum(1, keepdims=True)
        done = jnp.abs(products - total).max(1, keepdims=True) < 0.005 / classes
        _, new, _, _ = lax.fori_loop(0, classes, lambda t, state: _refine(t, *state), (q, p, products, total))
        return jnp.where(done, p, new)

    start = jnp.full((scores.shape[0], classes), 1 / classes, scores.dtype)
    return lax.fori_loop(0, max(100, classes), improve, start)


def _refine(t: Array, q: Array, p: Array, products: Array, total: Array) -> tuple[Array, Array, Array, Array]:
    """One coordinate of the probabilities made better."""
    row = lax.dynamic_index_in_dim(q, t, 1, keepdims=False)
    here, own = (lax.dynamic_slice_in_dim(v, t, 1, axis=1) for v in (products, row))
    step = (total - here) / own
    total = (total + step * (step * own + 2 * here)) / jnp.square(1 + step)
    products = (products + step * row) / (1 + step)
    unit = jnp.arange(p.shape[1]) == t
    return q, (p + step * unit) / (1 + step), products, total
