"""Constants, variables, and operations that only pass values on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ....ir.graph import Value, constant
from ...emit import Refused
from ..translate import Operation, Translator, dtype_of, rule

__all__: list[str] = []

_SMALL = 16  # elements of constants that get no name


@rule("Const")
def _const(t: Translator, o: Operation) -> Any:
    dtype = dtype_of(o.tensors[0].dtype)
    array = tf.make_ndarray(o.attr("value"))
    return constant(array, dtype) if array.size <= _SMALL else t.weights.array(array, o.name)


@rule("ReadVariableOp")
def _read(t: Translator, o: Operation, handle: Any) -> Any:
    if isinstance(handle, Value):
        raise Refused("it is not known which variable this is")
    return t.weights.variable(handle, o.attr("dtype"), o.name)


@rule("VarHandleOp", "VariableV2", "Variable", "_VarHandlesOp")
def _variable(t: Translator, o: Operation) -> Any:
    raise Refused(
        f"the variable {o.attr('shared_name') or o.name!r} has no value here: freeze the graph, or give the model that "
        "holds its variables"
    )


@rule(
    "Identity", "StopGradient", "PreventGradient", "Snapshot", "EnsureShape", "CheckNumerics", "CheckNumericsV2",
    "PlaceholderWithDefault", "GuaranteeConst", "DeepCopy", "Copy", "CopyHost", "Print",
)  # fmt: skip
def _identity(t: Translator, o: Operation, x: Any, *rest: Any) -> Any:
    return x


@rule("IdentityN")
def _identities(t: Translator, o: Operation, *operands: Any) -> Any:
    return operands


@rule("NoOp", "ControlTrigger", "Assert", "PrintV2")
def _nothing(t: Translator, o: Operation, *operands: Any) -> Any:
    """It has no results, and a graph no effects."""
    return []


@rule("Placeholder", "PlaceholderV2")
def _placeholder(t: Translator, o: Operation) -> Any:
    raise Refused("nothing stands for it")
