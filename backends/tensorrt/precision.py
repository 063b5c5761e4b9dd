"""The option ``precision``: which types a graph computes in, and which flags of the builder go with it.

From TensorRT 10 on, networks are strongly typed: a layer computes in the types of the graph, and precision is a change
of the graph: half precision by the pass ``convert-precision``, with casts; float8 by another format of what is
quantized. TensorRT 8 chooses types itself, among those that flags allow, and the graph stays as it is.

``fp16``, ``bf16`` and ``fp32`` say what computes in floating point, ``int8`` and ``fp8`` what becomes of what is
quantized; ``int8+fp16`` says both. Ranges need samples, so the pass ``quantize`` must have run before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import DType, Graph, Node, Tensor, Value, constant, edit
from ...ir.errors import PlanishError
from ...ir.quantization import FAKE_QUANTIZE, format_of, parse_format
from ...passes.base import Context
from ...passes.pipeline import Pipeline
from ...passes.quantize.convert_precision import ConvertPrecision
from .versions import Version

__all__ = ["Precision", "apply_precision", "builder_flags", "parse_precision", "sparse_layers"]

Array = np.ndarray[Any, Any]
_TYPES = {"fp32": None, "fp16": "float16", "bf16": "bfloat16"}
_CODES = {"int8": "int8", "fp8": "float8e4m3fn"}
_FLAGS = {DType.FLOAT16: "FP16", DType.INT8: "INT8"}  # of TensorRT 8
_PRODUCTS = ("MatMul", "Gemm")
_GROUP = 4  # neighbours of which two may differ from 0


@dataclass(frozen=True)
class Precision:
    """What a graph computes in.

    Attributes:
        floats: ``fp32``, ``fp16`` or ``bf16``: what floating-point numbers are.
        codes: ``int8`` or ``fp8``: what is quantized is; "": as it is.
    """

    floats: str = "fp32"
    codes: str = ""

    def __str__(self) -> str:
        return "+".join(filter(None, [self.codes, self.floats if self.floats != "fp32" or not self.codes else ""]))


def parse_precision(text: str) -> Precision:
    """The precision called ``text``: ``fp16``, ``int8``, ``int8+fp16`` …; "" is ``fp32``.

    Raises:
        PlanishError: there is none of that name.
    """
    floats, codes = "", ""
    for part in filter(None, text.split("+")):
        if part in _TYPES and not floats:
            floats = part
        elif part in _CODES and not codes:
            codes = part
        else:
            names = ", ".join((*_TYPES, *_CODES))
            raise PlanishError(f"no precision {text!r}: there are {names}, and two of them such as int8+fp16")
    return Precision(floats or "fp32", codes)


def apply_precision(graph: Graph, precision: str, version: Version, ctx: Context | None = None) -> list[str]:
    """Let ``graph`` compute in ``precision``, in place. Inputs and outputs keep their types.

    Args:
        graph: a graph in the canonical operators, quantized where ``precision`` asks for it.
        precision: see `parse_precision`.
        version: for which TensorRT.
        ctx: its samples, if it has any, show which values float16 does not hold.

    Returns:
        what its user must know, one line each.

    Raises:
        PlanishError: there is no such precision, ``version`` has no such types, or nothing is quantized.
    """
    wanted = parse_precision(precision)
    if not version.strongly_typed and (wanted.codes == "fp8" or wanted.floats == "bf16"):
        lacks = "fp8" if wanted.codes == "fp8" else "bf16"
        raise PlanishError(f"precision {lacks}: {version} has no such numbers; give fp16 or int8")
    notes = []
    if wanted.codes and not any(node.op == FAKE_QUANTIZE for node in graph.walk()):
        raise PlanishError(
            f"precision {wanted.codes}: nothing is quantized. Ranges are chosen by the pass quantize, from samples: "
            "planish optimize MODEL -p int8 --data SAMPLES --target tensorrt"
        )
    if wanted.codes == "fp8":
        notes += _as_float8(graph)
    half = _TYPES[wanted.floats]
    if half is not None and version.strongly_typed:
        Pipeline(ConvertPrecision(to=half)).run(graph, ctx or Context())  # type: ignore[arg-type]
    return notes


def builder_flags(version: Version, precision: str, graph: Graph) -> tuple[str, ...]:
    """The members of ``BuilderFlag`` that ``graph`` needs.

    Args:
        version: for which TensorRT. From 10 on, types are those of the graph, and there are no flags for them.
        precision: see `parse_precision`.
        graph: what is to be built, lowered or not.
    """
    flags = []
    if not version.strongly_typed:
        used = {r.dtype for node in graph.walk() for r in node.results} | {v.dtype for v in graph.inputs}
        if parse_precision(precision).floats == "fp16":
            used.add(DType.FLOAT16)
        if any(node.op in (FAKE_QUANTIZE, "QuantizeLinear", "DequantizeLinear") for node in graph.walk()):
            used.add(DType.INT8)
        flags = [name for dtype, name in _FLAGS.items() if dtype in used]
    if any(True for _ in _sparse(graph)):
        flags.append("SPARSE_WEIGHTS")
    return tuple(flags)


# float8


def _as_float8(graph: Graph) -> list[str]:
    """Let products whose factors are both integers with known scales multiply float8 numbers of the same ranges."""
    products = [n for n in graph.walk() if n.op in _PRODUCTS and all(map(_symmetric, n.operands[:2]))]
    chosen, changed = set(products), True
    while changed:
        alone = {n for n in chosen if any(u not in chosen for o in n.operands[:2] if o is not None for u in o.users)}
        chosen, changed = chosen - alone, bool(alone)
    for fake in dict.fromkeys(o.producer for n in products if n in chosen for o in n.operands[:2] if o is not None):
        if fake is not None:
            _change_format(fake)
    stay = sum(n.op in ("Conv", "ConvTranspose", *_PRODUCTS) and n not in chosen for n in _quantized_layers(graph))
    if not chosen:
        raise PlanishError("precision fp8: no product has two quantized factors that could be float8; give int8")
    return [f"{stay} quantized layers stay in int8: TensorRT multiplies float8 in MatMul and Gemm"] if stay else []


def _quantized_layers(graph: Graph) -> Iterator[Node]:
    for node in graph.walk():
        if any(o is not None and o.producer is not None and o.producer.op == FAKE_QUANTIZE for o in node.operands[:2]):
            yield node


def _symmetric(value: Value | None) -> bool:
    """Whether it is quantized to integers around 0, with scales that are known and not in blocks."""
    node = value.producer if value is not None else None
    if node is None or node.op != FAKE_QUANTIZE or node.attrs.get("block_size"):
        return False
    form, scale, zero = format_of(node), node.operand(1), node.operand(2)
    if scale is None or scale.const is None or not form.is_integer:
        return False
    middle = 0.0 if form.is_signed else (form.high + 1) / 2
    if zero is None:
        return middle == 0
    return zero.const is not None and bool((zero.const.numpy().astype(np.float64) == middle).all())


def _change_format(fake: Node) -> None:
    """Let float8 span what integers spanned."""
    old, new = format_of(fake), parse_format(_CODES["fp8"])
    scale = fake.given(1)
    assert scale.const is not None
    span = old.high if old.is_signed else old.high - (old.high + 1) / 2
    wider = (scale.const.numpy().astype(np.float64) * span / new.high).astype(scale.dtype.numpy)
    edit.set_operands(fake, [fake.given(0), constant(wider, scale.dtype, scale.name)])
    edit.set_attr(fake, "format", new.name)


# sparsity


def sparse_layers(graph: Graph) -> list[Node]:
    """The layers with 2:4 weights: at most two of four neighbours along the input channels differ from 0.

    Args:
        graph: lowered or not; weights may be quantized.
    """
    return list(_sparse(graph))


def _sparse(graph: Graph) -> Iterator[Node]:
    known: dict[tuple[int, int], bool] = {}
    for node in graph.walk():
        found = _weight_of(node)
        if found is None:
            continue
        tensor, axis = found
        key = (id(tensor), axis)
        if key not in known:
            known[key] = _is_sparse(tensor, axis)
        if known[key]:
            yield node


def _weight_of(node: Node) -> tuple[Tensor, int] | None:
    """The constant that ``node`` multiplies by, and the dimension of it that is added up."""
    weight = node.operand(1)
    if node.op not in ("Conv", *_PRODUCTS) or weight is None or weight.rank is None or weight.rank < 2:
        return None
    axis = {"Conv": 1, "MatMul": weight.rank - 2, "Gemm": 1 if node.attrs.get("transB") else 0}[node.op]
    while weight.const is None:
        source = weight.producer
        if source is None or source.op not in (
            FAKE_QUANTIZE,
            "QuantizeLinear",
            "DequantizeLinear",
            "Cast",
            "Transpose",
        ):
            return None
        if source.op == "Transpose":
            axis = source.attrs.get("perm", tuple(range(weight.rank or 0))[::-1])[axis]
        weight = source.given(0)
    return weight.const, axis


def _is_sparse(tensor: Tensor, axis: int) -> bool:
    size = tensor.shape[axis]
    if size % _GROUP or not tensor.size:
        return False
    filled = np.moveaxis(tensor.numpy() != 0, axis, -1).reshape(-1, size // _GROUP, _GROUP)
    counts = filled.sum(axis=-1)
    return bool(counts.any() and (counts <= _GROUP // 2).all())
