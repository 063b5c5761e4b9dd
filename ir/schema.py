"""Facts about operators from onnx's schemas, at the canonical opset, looked up when needed and remembered."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["canonical_opset", "default_attribute", "is_current", "schema_of"]


@cache
def schema_of(op: str) -> Any | None:
    """The newest ``onnx.defs.OpSchema`` of ``op``, or None if onnx does not define it."""
    import onnx.defs

    domain, _, name = op.rpartition(".")
    try:
        return onnx.defs.get_schema(name, canonical_opset(), "") if not domain else onnx.defs.get_schema(name, domain)
    except onnx.defs.SchemaError:
        return None


@cache
def canonical_opset() -> int:
    """The version of the standard operators inside planish: the newest that onnx defines and planish has reviewed."""
    import onnx.defs

    from .opsets import NEWEST

    return min(int(onnx.defs.onnx_opset_version()), NEWEST)


@cache
def is_current(op: str, version: int) -> bool:
    """Whether ``op`` in ``version`` of its domain is defined as in the newest one, or onnx does not define it."""
    import onnx.defs

    newest = schema_of(op)
    if newest is None or version >= newest.since_version:
        return True
    domain, _, name = op.rpartition(".")
    try:
        return bool(onnx.defs.get_schema(name, version, domain).since_version == newest.since_version)
    except onnx.defs.SchemaError:
        return False


@cache
def default_attribute(op: str, name: str) -> Any:
    """The default of attribute ``name``, in the form in which nodes hold attributes; None if there is none."""
    schema = schema_of(op)
    if schema is None or name not in schema.attributes:
        return None
    import onnx.helper

    proto = schema.attributes[name].default_value
    if not proto.type:
        return None
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value
