"""What the installed ONNX Runtime reads and implements on a CPU: it says itself, or it is tried."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any, NamedTuple

from ..ir.graph import Node
from ..ir.schema import canonical_opset
from .base import Problem
from .legalize import Support
from .revisions import revision_at

__all__ = ["Limits", "OrtTarget", "defines", "lacks_kernel", "limits"]

Kernel = tuple[int, int, dict[str, list[str]]]  # first and last version, and the types of each type variable

_OPEN = (1 << 31) - 1  # as the last version of a kernel: good for the definition that it was written for, and no other
_SLOW = {"AveragePool": 19}  # from this version on, a window of 3 x 3 takes 12 times as long (ONNX Runtime 1.31)
_QUIET = 4  # log only what is fatal


class Limits(NamedTuple):
    """The newest versions that an ONNX Runtime reads."""

    opset: int
    ir_version: int


@cache
def limits() -> Limits:
    """The newest versions that the installed ONNX Runtime reads, found by trial."""
    import onnx

    opset = next((v for v in range(canonical_opset(), 7, -1) if _reads(v, 8)), 7)
    return Limits(opset, next((v for v in range(onnx.IR_VERSION, 8, -1) if _reads(7, v)), 8))


def _reads(opset: int, ir_version: int) -> bool:
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its exceptions have no common base
        return False
    return True


class OrtTarget:
    """What the installed ONNX Runtime takes on a CPU.

    Args:
        custom_ops: whether a library adds operators of other domains.
    """

    name = "onnxruntime"

    def __init__(self, custom_ops: bool = False):
        self.custom_ops = custom_ops

    @property
    def opset(self) -> int:
        """The newest version of the standard operators."""
        return limits().opset

    @property
    def ir_version(self) -> int:
        """The newest version of the file format."""
        return limits().ir_version

    def since(self, op: str, opset: int) -> int:
        """The version of its own definition of ``op``, which may be older than onnx's; 0 if it has none."""
        return max((v for v in _definitions().get(op, ()) if v <= opset), default=0)

    def support(self, node: Node, since: int, opset: int) -> Support:
        """Whether there is a kernel, or a function body that it can run.

        With a kernel for other types, it may cast, or optimize the node away.
        """
        if node.domain:
            return Support.FULL if self.custom_ops or node.op in _definitions() else Support.NONE
        if node.op == "Constant":  # a sparse tensor, which becomes a dense one when the model is loaded
            return Support.FULL
        if _has_kernel(node.op, since, _types_of(node, since)) or _runs_body(node.op, since, opset):
            return Support.FULL
        return Support.PERHAPS if _kernels_for(node.op, since) else Support.NONE

    def is_slow(self, op: str, since: int) -> bool:
        """Whether that definition has a slower kernel than an older one."""
        return op in _SLOW and since >= _SLOW[op]


Types = frozenset[tuple[str, str]]  # of type variables


def _types_of(node: Node, since: int) -> Types:
    """The types that the type variables of the operator stand for, as far as they are known."""
    revision = revision_at(node.op, since)
    if revision is None:
        return frozenset()
    arguments = [*zip(node.operands, revision.inputs, strict=False), *zip(node.results, revision.outputs, strict=False)]
    return frozenset(
        (f.variable, f"tensor({v.dtype.text})") for v, f in arguments if v is not None and f.variable and v.dtype
    )


@cache
def _has_kernel(op: str, since: int, types: Types) -> bool:
    return any(all(v not in k[2] or t in k[2][v] for v, t in types) for k in _kernels_for(op, since))


def defines(op: str) -> bool:
    """Whether the installed ONNX Runtime has the operator, which may be one of its own."""
    return op in _definitions()


@cache
def _definitions() -> dict[str, list[int]]:
    """The versions of every operator that ONNX Runtime has a definition of."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    found: dict[str, list[int]] = defaultdict(list)
    for schema in get_all_operator_schema():
        found[f"{schema.domain}.{schema.name}" if schema.domain else schema.name].append(schema.since_version)
    return dict(found)


@cache
def _kernels() -> dict[str, list[Kernel]]:
    """The CPU kernels of standard operators."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    found: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and not kernel.domain:
            found[kernel.op_name].append((*kernel.version_range, kernel.type_constraints))
    return dict(found)


def _kernels_for(op: str, since: int) -> list[Kernel]:
    kernels = _kernels().get(op, ())
    return [k for k in kernels if k[0] == since or (k[1] != _OPEN and k[0] <= since <= k[1])]


@cache
def _runs_body(op: str, since: int, opset: int) -> bool:
    """Whether it runs the function body of an operator: only if none of the operators in it was revised after that."""
    from onnx import FunctionProto

    revision = revision_at(op, since)
    if revision is None or revision.since != since or not revision.has_body:
        return False
    import onnx.defs

    schema: Any = onnx.defs.get_schema(op, since, "")
    version = max((v for v in schema.function_opset_versions if v <= opset), default=0)
    if not version:
        return False
    body = FunctionProto.FromString(schema.get_function_with_opset_version(version))
    return all(onnx.defs.get_schema(n.op_type, opset, "").since_version <= version for n in body.node)


def lacks_kernel(node: Node, opset: int) -> Problem | None:
    """What is wrong with ``node`` if no kernel takes its types. ONNX Runtime may still optimize it away, or cast."""
    revision = None if node.domain else revision_at(node.op, opset)
    if revision is None or revision.has_body:
        return None
    types = _types_of(node, revision.since)
    if _has_kernel(node.op, revision.since, types):
        return None
    return Problem(node, f"no kernel for {', '.join(sorted({t for _, t in types})) or 'these types'}")
