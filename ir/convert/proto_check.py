"""Whether nodes have the operands, results and attributes that their operators ask for.

Only what everything behind the import relies on, and only for operators that the installed onnx defines. The types of
operands are inference's matter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import onnx
from onnx import AttributeProto

from ..errors import ModelError
from ..graph import Value

__all__ = ["Signature", "kind_name", "prose", "shown", "signature", "text"]

_Option = onnx.defs.OpSchema.FormalParameterOption
_KINDS: dict[str, int] = dict(AttributeProto.AttributeType.items())
_KIND_NAMES = {number: name.lower() for name, number in _KINDS.items()}


class Signature:
    """What an operator asks for in one version of its domain.

    Attributes:
        operands: how many it takes, at least and at most.
        results: how many it gives, at least and at most.
        attributes: the ONNX type of each.
        needed: the attributes that have no default.
        optional: for each formal operand, whether it may be left out.
    """

    __slots__ = ("attributes", "needed", "operands", "optional", "results")

    def __init__(self, schema: onnx.defs.OpSchema):
        self.operands = schema.min_input, schema.max_input
        self.results = schema.min_output, schema.max_output
        self.attributes = {name: _KINDS[str(a.type).rpartition(".")[2]] for name, a in schema.attributes.items()}
        self.needed = tuple(name for name, a in schema.attributes.items() if a.required)
        self.optional = tuple(formal.option != _Option.Single for formal in schema.inputs)

    def check(self, operands: list[Value | None], attrs: dict[str, Any], results: int) -> None:
        """Check a node, but for the types of its attributes.

        Raises:
            ModelError: it does not fit.
        """
        low, high = self.operands
        if not low <= len(operands) <= high:
            raise ModelError(f"{len(operands)} inputs instead of {_range(low, high)}")
        low, high = self.results
        if not low <= results <= high:
            raise ModelError(f"{results} outputs instead of {_range(low, high)}")
        if None in operands:
            for operand, optional in zip(operands, self.optional, strict=False):
                if operand is None and not optional:
                    raise ModelError("a required input is left out")
        for name in self.needed:
            if name not in attrs:
                raise ModelError(f"attribute {name!r} is missing")


@lru_cache(4096)
def signature(op: str, domain: str, version: int) -> Signature | None:
    """The signature of operator ``op`` of ``domain`` in ``version``, or None if onnx does not define it."""
    try:
        return Signature(onnx.defs.get_schema(op, version, domain))
    except onnx.defs.SchemaError:
        return None


def text(value: str | bytes) -> str:
    """``value`` itself. Protobuf gives strings that are not UTF-8 as bytes.

    Raises:
        ModelError: it is bytes.
    """
    if isinstance(value, str):
        return value
    raise ModelError(f"{shown(value)} is not UTF-8")


def prose(value: str | bytes) -> str:
    """``value`` as text, whatever is in it: doc strings and metadata, which mean nothing."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def shown(name: str | bytes) -> str:
    """``name`` in quotes for a message, cut if it is long."""
    name = prose(name)
    return repr(name if len(name) <= 100 else name[:97] + "…")


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} or more" if high > 1 << 20 else f"{low} to {high}"


def kind_name(number: int) -> str:
    """The name of an ONNX attribute type."""
    return _KIND_NAMES[number]
