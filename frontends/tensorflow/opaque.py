"""Operations that stay as they are, on request: operators of the domain ``tensorflow``, for a runtime that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ir.graph import Value
from ..emit import Refused

if TYPE_CHECKING:
    from .translate import Operation, Translator

__all__ = ["DOMAIN", "kept"]

DOMAIN = "tensorflow"


def kept(t: Translator, o: Operation, *operands: Any) -> list[Value]:
    """The results of an operator with the operation's type, inputs, and attributes.

    Numbers, texts and lists of them are attributes; element types are their names, shapes lists with -1 for what is
    open.

    Raises:
        Refused: an input is no tensor, or an attribute is nothing of this kind.
    """
    if not all(isinstance(x, Value) for x in operands):
        raise Refused("it works on what is no tensor, so it cannot stay as it is")
    attrs = {name: _attribute(name, o.attr(name)) for name in o.attributes if not name.startswith("_")}
    results = t.append(f"{DOMAIN}.{o.type}", operands, attrs, len(o.tensors))
    t.root.opsets[DOMAIN] = 1
    t.kept.add(o.type)
    return list(results)


def _attribute(name: str, value: Any) -> Any:
    """An attribute as ONNX has it; None for an empty list, which ONNX cannot state.

    Raises:
        Refused: it has no such form.
    """
    if isinstance(value, list | tuple):
        return [_attribute(name, part) for part in value] or None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "as_numpy_dtype"):
        return str(value.name)
    if hasattr(value, "dim") and hasattr(value, "unknown_rank"):
        return [int(d.size) for d in value.dim] or None
    raise Refused(f"its attribute {name!r} has no form in ONNX, so it cannot stay as it is")
