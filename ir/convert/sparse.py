"""Sparse tensors of ONNX: from arrays, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import SparseTensorProto, numpy_helper

from ..tensor import TensorError
from .proto_types import SparseTensor, static_shape

__all__ = ["to_dense", "to_sparse"]

Array = np.ndarray[Any, Any]


def to_sparse(array: Array, name: str = "") -> SparseTensor:
    """The elements of ``array`` that are not 0, each with its place in row-major order."""
    places = np.flatnonzero(array)
    proto = SparseTensorProto(dims=array.shape)
    proto.values.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array).reshape(-1)[places], name))
    proto.indices.CopyFrom(numpy_helper.from_array(places.astype(np.int64)))
    return SparseTensor(proto.SerializeToString(deterministic=True))


def to_dense(sparse: bytes) -> Array:
    """The array that ``sparse`` stands for; its places count in row-major order, or are one index per dimension.

    Raises:
        TensorError: a place is outside, or the numbers do not fit together.
    """
    proto = SparseTensorProto.FromString(sparse)
    shape = static_shape(proto, proto.values.name)
    values, places = numpy_helper.to_array(proto.values), numpy_helper.to_array(proto.indices)
    each = places[:, None] if places.ndim == 1 else places
    limits = np.array([int(np.prod(shape))] if places.ndim == 1 else shape)
    if each.ndim != 2 or each.shape != (values.size, len(limits)) or ((each < 0) | (each >= limits)).any():
        raise TensorError(f"sparse tensor {proto.values.name!r}: places do not fit {list(shape)}")
    dense = np.zeros(shape, values.dtype)
    dense.reshape(-1)[places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), shape)] = values
    return dense
