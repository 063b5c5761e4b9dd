"""Classical models, as far as they are simple arithmetic: ``ai.onnx.ml``."""

from __future__ import annotations

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.tensor import Tensor
from ..legality import Row
from ..versions import Version
from .elementwise import cast, scalar

__all__ = ["FORMS", "ROWS"]


def _floats(node: Node, name: str) -> Value | None:
    values = node.attrs.get(name)
    return constant(np.asarray(values, np.float32)) if values else None


def _binarizer(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    return [cast(op.Greater(x, scalar(node.attrs.get("threshold", 0.0), x)), node.result.dtype or x.dtype)]


def _feature_extractor(node: Node, version: Version) -> list[Value] | None:
    x, places = node.given(0), op.Reshape(node.given(1), constant([-1], DType.INT64))
    if not x.rank:
        return None
    found = op.Gather(x, places, axis=-1)
    return [op.Unsqueeze(found, constant([0], DType.INT64)) if x.rank == 1 else found]


def _scaler(node: Node, version: Version) -> list[Value] | None:
    result = cast(node.given(0), DType.FLOAT)
    if (offset := _floats(node, "offset")) is not None:
        result = op.Sub(result, offset)
    if (scale := _floats(node, "scale")) is not None:
        result = op.Mul(result, scale)
    return [result]


def _normalizer(node: Node, version: Version) -> list[Value] | None:
    x, last = cast(node.given(0), DType.FLOAT), constant([-1], DType.INT64)
    if x.rank not in (1, 2):
        return None
    norm = node.attrs.get("norm", "MAX")
    name = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}[norm]
    size = getattr(op, name)(op.Abs(x) if norm == "MAX" else x, last, keepdims=1)
    return [op.Div(x, op.Where(op.Equal(size, 0.0), constant(1.0, DType.FLOAT), size))]


def _linear_regressor(node: Node, version: Version) -> list[Value] | None:
    x, weights, targets = node.given(0), node.attrs.get("coefficients"), node.attrs.get("targets", 1)
    if not weights or node.attrs.get("post_transform", "NONE") != "NONE":
        return None
    matrix = np.asarray(weights, np.float32).reshape(targets, -1).T
    result = op.MatMul(cast(x, DType.FLOAT), constant(np.ascontiguousarray(matrix)))
    intercepts = _floats(node, "intercepts")
    return [result if intercepts is None else op.Add(result, intercepts)]


def _imputer(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    kind = "floats" if x.dtype.is_floating else "int64s"
    values = node.attrs.get(f"imputed_value_{kind}")
    replaced = node.attrs.get(f"replaced_value_{kind[:-1]}", 0)
    if not values:
        return None
    missing = op.IsNaN(x) if replaced != replaced else op.Equal(x, scalar(replaced, x))
    return [op.Where(missing, constant(np.asarray(values).astype(x.dtype.numpy)), x)]


def _vectorizer(node: Node, version: Version) -> list[Value] | None:
    return [op.Concat(*(cast(o, DType.FLOAT) for o in node.operands if o is not None), axis=1)]


def _table(node: Node, what: str) -> np.ndarray | None:
    for kind in ("int64s", "floats"):
        if node.attrs.get(f"{what}_{kind}"):
            return np.asarray(node.attrs[f"{what}_{kind}"], np.int64 if kind == "int64s" else np.float32)
    tensor = node.attrs.get(f"{what}_tensor")
    return tensor.numpy() if isinstance(tensor, Tensor) and tensor.dtype is not DType.STRING else None


def _label_encoder(node: Node, version: Version) -> list[Value] | None:
    """Of numbers to numbers: the place of the key that is equal."""
    x, keys, values = node.given(0), _table(node, "keys"), _table(node, "values")
    if keys is None or values is None or x.rank is None or x.rank > 7:
        return None
    last, dtype = constant([-1], DType.INT64), DType.from_numpy(values.dtype)
    usual = {DType.INT64: ("default_int64", -1), DType.FLOAT: ("default_float", -0.0)}.get(dtype, ("", 0))
    given = node.attrs.get("default_tensor")
    default = given.numpy().ravel()[0] if isinstance(given, Tensor) else node.attrs.get(*usual)
    column = op.Unsqueeze(x, last)
    same = op.Equal(column, constant(keys.astype(x.dtype.numpy)))
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        same = op.Or(same, op.And(op.IsNaN(column), constant(np.isnan(keys))))
    hits = cast(same, DType.INT32)
    place = op.ArgMax(hits, axis=-1, keepdims=0)
    is_known = op.Greater(op.ReduceMax(hits, last, keepdims=0), constant(0, DType.INT32))
    return [op.Where(is_known, op.Gather(constant(values), place), constant(np.asarray(default).astype(values.dtype)))]


ROWS: dict[str, Row] = {}

FORMS = {
    "ai.onnx.ml.ArrayFeatureExtractor": _feature_extractor,
    "ai.onnx.ml.Binarizer": _binarizer,
    "ai.onnx.ml.FeatureVectorizer": _vectorizer,
    "ai.onnx.ml.Imputer": _imputer,
    "ai.onnx.ml.LabelEncoder": _label_encoder,
    "ai.onnx.ml.LinearRegressor": _linear_regressor,
    "ai.onnx.ml.Normalizer": _normalizer,
    "ai.onnx.ml.Scaler": _scaler,
}
