"""``onnx.ModelProto`` and `Graph`, both ways: `from_proto` and `to_proto`."""

from __future__ import annotations

from .proto_export import to_proto
from .proto_import import from_proto
from .proto_types import ExternalWriter, Resolver, SparseTensor

__all__ = ["ExternalWriter", "Resolver", "SparseTensor", "from_proto", "to_proto"]
