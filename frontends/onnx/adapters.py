"""One adapter per revision of a standard operator that changed what existing nodes mean.

An adapter edits its node in place and returns False, or replaces it by nodes of the canonical opset and returns True:
then it needs no later adapter. Nodes that an adapter adds are canonical and keep the name, doc and metadata of the node
that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...ir.edit import erase, insert, replace, set_attr, set_operand, set_operands
from ...ir.errors import ModelError
from ...ir.graph import Graph, Node, Value, constant
from ...ir.types import UNKNOWN, DType, TensorType, Type

__all__ = ["ADAPTERS", "Adapter"]

Adapter = Callable[[Node], bool]
ADAPTERS: dict[str, dict[int, tuple[Adapter, bool]]] = {}  # by operator and version; whether it reads types
FLOAT_MAX = float(np.finfo(np.float32).max)


def _adapter(ops: str, since: int, *, typed: bool = False) -> Callable[[Callable[[Node], bool | None]], Adapter]:
    """Register the adapter of ``ops`` for their revision in version ``since``."""

    def register(function: Callable[[Node], bool | None]) -> Adapter:
        def adapt(node: Node) -> bool:
            return bool(function(node))

        for op in ops.split():
            ADAPTERS.setdefault(op, {})[since] = (adapt, typed)
        return adapt

    return register


# building blocks


def _emit(node: Node, op: str, operands: Iterable[Value | None], attrs: dict[str, Any] | None = None) -> Value:
    """The result of a new node in front of ``node``."""
    name = f"{node.name}/{op}" if node.name else ""
    new = Node(op, operands, attrs or {}, name=name, metadata=dict(node.metadata) if node.metadata else None)
    insert(new, node)
    return new.result


def _replace(node: Node, op: str, operands: Iterable[Value | None], attrs: dict[str, Any], results: int = 0) -> Node:
    """A new node in place of ``node``, with its results, or the first few of them."""
    types = [r.type for r in node.results[: results or None]]
    new = Node(op, operands, attrs, types, name=node.name, doc=node.doc, metadata=node.metadata)
    new.overload, new.rules = node.overload, node.rules
    insert(new, node)
    for old, result in zip(node.results, new.results, strict=False):
        _succeed(old, result)
    erase(node)
    return new


def _succeed(old: Value, new: Value) -> None:
    new.name, new.metadata = old.name, old.metadata
    replace(old, new)


def _ints(values: Iterable[int] | int, name: str = "") -> Value:
    """An int64 constant: a list, or a scalar."""
    return constant(np.array(values if isinstance(values, int) else list(values), np.int64), name=name)


def _scalar_like(node: Node, number: float, like: Value | None) -> Value:
    """The scalar ``number`` in the element type of ``like``, also where that is not known yet."""
    if like is not None and like.dtype:
        with np.errstate(over="ignore"):
            return constant(np.array(number).astype(like.dtype.numpy))
    return _emit(node, "CastLike", (constant(np.float32(number)), like))


def _attr_to_operand(node: Node, name: str, index: int, *, scalar: bool = False) -> None:
    """Turn an integer attribute, if it is there, into operand ``index``."""
    if name not in node.attrs:
        return
    value = node.attrs[name]
    set_attr(node, name)
    if not scalar and isinstance(value, int):
        value = (value,)
    set_operand(node, index, _ints(value))


def _operand(node: Node, index: int) -> Value:
    value = node.operand(index)
    if value is None:
        raise ModelError(f"operand {index} is missing")
    return value


def _rank(value: Value, what: str) -> int:
    if value.rank is None:
        raise ModelError(f"{what} needs the rank of %{value.name}, which is not known")
    return value.rank


# opset 7: broadcasting


@_adapter("Add Sub Mul Div Pow And Or Xor Less Greater Equal", 7, typed=True)
def _align_second_operand(node: Node) -> None:
    """``broadcast=1, axis=a`` aligned the second operand with axis ``a`` of the first one, not with the last."""
    axis = node.attrs.get("axis")
    if node.attrs.get("broadcast") and axis is not None:
        a, b = _operand(node, 0), _operand(node, 1)
        rank = _rank(a, "broadcasting along an axis")
        missing = rank - (axis + rank if axis < 0 else axis) - _rank(b, "broadcasting along an axis")
        if missing > 0:
            set_operand(node, 1, _emit(node, "Unsqueeze", (b, _ints(range(-missing, 0)))))
    for name in ("axis", "broadcast"):
        if name in node.attrs:
            set_attr(node, name)


@_adapter("PRelu", 7, typed=True)
def _align_slope(node: Node) -> None:
    """The slope was one number, or one per channel."""
    x, slope = _operand(node, 0), _operand(node, 1)
    if slope.rank == 1 and slope.shape != (1,) and _rank(x, "a slope per channel") > 2:
        set_operand(node, 1, _emit(node, "Unsqueeze", (slope, _ints(range(2 - _rank(x, ""), 0)))))


@_adapter("Gemm", 7)
def _forget_broadcast(node: Node) -> None:
    set_attr(node, "broadcast")


@_adapter("LSTM GRU RNN", 7)
def _forget_output_sequence(node: Node) -> None:
    """Whether the sequence is an output is now said by the output."""
    set_attr(node, "output_sequence")


# normalization and dropout


@_adapter("BatchNormalization", 7)
def _forget_is_test(node: Node) -> None:
    """Training is said by the outputs."""
    set_attr(node, "is_test")


@_adapter("BatchNormalization", 9, typed=True)
def _normalize_per_activation(node: Node) -> bool:
    """``spatial=0`` had statistics for every activation instead of every channel."""
    if node.attrs.get("spatial", 1):
        set_attr(node, "spatial")
        return False
    if _is_training(node):
        raise ModelError("training with spatial=0 is not supported")
    x, scale, bias, mean, variance = node.operands
    epsilon = _scalar_like(node, node.attrs.get("epsilon", 1e-5), variance)
    deviation = _emit(node, "Sqrt", (_emit(node, "Add", (variance, epsilon)),))
    factor = _emit(node, "Div", (scale, deviation))
    scaled = _emit(node, "Mul", (_emit(node, "Sub", (x, mean)), factor))
    _replace(node, "Add", (scaled, bias), {})
    return True


def _is_training(node: Node) -> bool:
    return any(r.name or r.is_used for r in node.results[1:])


@_adapter("BatchNormalization", 14)
def _say_training_mode(node: Node) -> bool:
    """Training was said by the number of outputs, two of which are gone."""
    if len(node.results) == 1:
        return False
    if any(r.is_used for r in node.results[3:]):
        raise ModelError("the saved statistics of BatchNormalization before opset 14 are not supported")
    attrs = dict(node.attrs)
    training = _is_training(node)
    if training:
        attrs["training_mode"] = 1
    _replace(node, "BatchNormalization", node.operands, attrs, 3 if training else 1)
    return True


@_adapter("Dropout", 7)
def _say_dropout_mode(node: Node) -> None:
    """``is_test`` was 0, for training, unless the model said otherwise."""
    if not node.attrs.get("is_test", 0):
        ratio = constant(np.float32(node.attrs.get("ratio", 0.5)))
        set_operands(node, (node.operands[0], ratio, constant(np.array(True))))
        set_attr(node, "ratio")
    set_attr(node, "is_test")


@_adapter("Dropout", 10)
def _cast_mask(node: Node) -> bool | None:
    """The mask had the type of the data."""
    if len(node.results) < 2 or not node.results[1].is_used:
        return None
    data, old_mask = node.results
    attrs = dict(node.attrs)
    operands = list(node.operands)
    if len(operands) == 1 and "ratio" in attrs:
        operands.append(constant(np.float32(attrs.pop("ratio"))))
    types = (data.type, UNKNOWN)
    dropout = Node("Dropout", operands, attrs, types, name=node.name, doc=node.doc, metadata=node.metadata)
    insert(dropout, node)
    _succeed(data, dropout.results[0])
    _succeed(old_mask, _emit(node, "CastLike", (dropout.results[1], operands[0])))
    erase(node)
    return True


@_adapter("Dropout", 12)
def _ratio_to_operand(node: Node) -> None:
    if "ratio" in node.attrs:
        ratio = constant(np.float32(node.attrs["ratio"]))
        set_attr(node, "ratio")
        set_operand(node, 1, ratio)


@_adapter("GroupNormalization", 21, typed=True)
def _scale_per_channel(node: Node) -> None:
    """Scale and bias were per group."""
    x, scale, bias = node.operands
    groups = node.attrs["num_groups"]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    if isinstance(channels, int):
        shape = _ints((1, channels // groups))
    else:
        per_group = _emit(node, "Div", (_emit(node, "Shape", (x,), {"start": 1, "end": 2}), _ints((groups,))))
        shape = _emit(node, "Concat", (_ints((1,)), per_group), {"axis": 0})
    for i, value in ((1, scale), (2, bias)):
        column = _emit(node, "Reshape", (value, _ints((-1, 1))))
        set_operand(node, i, _emit(node, "Reshape", (_emit(node, "Expand", (column, shape)), _ints((-1,)))))


# attributes that became operands


@_adapter("ReduceSum Squeeze Unsqueeze", 13)
@_adapter("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare", 18)
@_adapter("ReduceMax ReduceMean ReduceMin ReduceProd", 18)
def _axes_to_operand(node: Node) -> None:
    _attr_to_operand(node, "axes", 1)


@_adapter("Slice", 10)
def _bounds_to_operands(node: Node) -> None:
    for i, name in enumerate(("starts", "ends", "axes"), 1):
        _attr_to_operand(node, name, i)


@_adapter("TopK", 10)
def _k_to_operand(node: Node) -> None:
    _attr_to_operand(node, "k", 1)


@_adapter("DFT", 20)
def _axis_to_operand(node: Node) -> None:
    """The default axis was 1; now it is the last but one."""
    axis = node.attrs.get("axis", 1)
    set_attr(node, "axis")
    set_operand(node, 2, _ints(axis))


@_adapter("Split", 13)
def _sizes_to_operand(node: Node) -> None:
    _attr_to_operand(node, "split", 1)


@_adapter("Split", 18)
def _say_number_of_parts(node: Node) -> None:
    if node.operand(1) is None:
        set_attr(node, "num_outputs", len(node.results))


@_adapter("Clip", 11, typed=True)
def _limits_to_operands(node: Node) -> None:
    """A limit at the end of the float range was none."""
    x = _operand(node, 0)
    for i, name in enumerate(("min", "max"), 1):
        limit = node.attrs.get(name)
        if limit is None:
            continue
        set_attr(node, name)
        if abs(limit) < FLOAT_MAX or (limit > 0) == (name == "min"):
            set_operand(node, i, _scalar_like(node, limit, x))


@_adapter("Pad", 11, typed=True)
def _pads_to_operands(node: Node) -> None:
    x = _operand(node, 0)
    _attr_to_operand(node, "pads", 1)
    value = node.attrs.get("value", 0.0)
    set_attr(node, "value")
    if value != 0.0:
        set_operand(node, 2, _scalar_like(node, value, x))


# softmax


@_adapter("Softmax LogSoftmax Hardmax", 13, typed=True)
def _flatten_softmax(node: Node) -> bool:
    """They worked on the matrix that the operand becomes when cut in two at ``axis``, whose default was 1."""
    x = _operand(node, 0)
    axis = node.attrs.get("axis", 1)
    if x.shape is not None:
        axis %= max(len(x.shape), 1)
        if all(d == 1 for d in x.shape[axis + 1 :]):
            set_attr(node, "axis", axis)
            return False
    elif axis == -1:
        return False
    flat = _emit(node, "Flatten", (x,), {"axis": axis})
    result = _emit(node, node.op, (flat,), {"axis": -1})
    _replace(node, "Reshape", (result, _emit(node, "Shape", (x,))), {"allowzero": 1})
    return True


# operators over integers, which they have lost


@_adapter("Erf", 13, typed=True)
@_adapter("ReduceLogSum ReduceLogSumExp", 28, typed=True)
def _through_floating_point(node: Node) -> bool:
    x = _operand(node, 0)
    if not x.dtype.is_integer:
        return False
    wide = DType.FLOAT if node.op == "Erf" else DType.DOUBLE
    real = _emit(node, "Cast", (x,), {"to": int(wide)})
    _replace(node, "Cast", (_emit(node, node.op, (real, *node.operands[1:]), dict(node.attrs)),), {"to": int(x.dtype)})
    return True


# images


@_adapter("Upsample", 7)
def _scales_from_factors(node: Node) -> None:
    """Upsample-1 had two factors, for images in NCHW."""
    scales = (1.0, 1.0, node.attrs.get("height_scale", 1.0), node.attrs.get("width_scale", 1.0))
    for name in ("height_scale", "width_scale"):
        set_attr(node, name)
    set_attr(node, "scales", scales)
    if node.attrs.get("mode") == "bilinear":
        set_attr(node, "mode", "linear")


@_adapter("Upsample", 9)
def _scales_to_operand(node: Node) -> None:
    if "scales" in node.attrs:
        scales = constant(np.array(node.attrs["scales"], np.float32))
        set_attr(node, "scales")
        set_operand(node, 1, scales)


@_adapter("Upsample", 10)
@_adapter("Resize", 11)
def _say_how_to_resize(node: Node) -> bool:
    """They mapped coordinates by the scale alone; "nearest" rounded down when enlarging and up when shrinking."""
    x, scales = _operand(node, 0), _operand(node, 1)
    attrs: dict[str, Any] = {"mode": node.attrs.get("mode", "nearest"), "coordinate_transformation_mode": "asymmetric"}
    if attrs["mode"] != "nearest":
        _replace(node, "Resize", (x, None, scales), attrs)
        return True
    factors = None if scales.const is None else scales.const.numpy()
    grow, shrink = {**attrs, "nearest_mode": "floor"}, {**attrs, "nearest_mode": "ceil"}
    if node.op == "Upsample" or (factors is not None and (factors >= 1).all()):
        _replace(node, "Resize", (x, None, scales), grow)
    elif factors is not None and (factors <= 1).all():
        _replace(node, "Resize", (x, None, scales), shrink)
    else:  # each axis is resized for itself: first those that grow, then those that shrink
        one = constant(np.float32(1))
        larger, smaller = _emit(node, "Max", (scales, one)), _emit(node, "Min", (scales, one))
        _replace(node, "Resize", (_emit(node, "Resize", (x, None, larger), grow), None, smaller), shrink)
    return True


# half_pixel, rounded the other way, stands for tf_half_pixel_for_nn: that is the same coordinate plus a half
_TF_HALF_PIXEL = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}


@_adapter("Resize", 13)
def _leave_out_empty(node: Node) -> None:
    """Operands to ignore were empty tensors; one way to map coordinates is gone."""
    for i in (1, 2):
        value = node.operand(i)
        if value is not None and value.shape == (0,):
            set_operand(node, i, None)
    if node.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        rounding = _TF_HALF_PIXEL.get(node.attrs.get("nearest_mode", "round_prefer_floor"))
        if rounding is None or node.attrs.get("mode", "nearest") != "nearest":
            raise ModelError("tf_half_pixel_for_nn with this rounding is not supported")
        set_attr(node, "coordinate_transformation_mode", "half_pixel")
        set_attr(node, "nearest_mode", rounding)


@_adapter("RoiAlign", 16)
def _say_roi_coordinates(node: Node) -> None:
    """The coordinates were those of output_half_pixel; the default is half_pixel."""
    set_attr(node, "coordinate_transformation_mode", "output_half_pixel")


@_adapter("GridSample", 20)
def _rename_modes(node: Node) -> None:
    mode = node.attrs.get("mode", "bilinear")
    set_attr(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


# renamed, and loops


@_adapter("Scatter", 11)
def _scatter_elements(node: Node) -> bool:
    _replace(node, "ScatterElements", node.operands, dict(node.attrs))
    return True


@_adapter("Scan", 9)
def _scan_every_sample(node: Node) -> bool:
    """Scan-8 ran once for every sample of a batch: now a scan over the batch, whose body scans the sequence."""
    lengths, *values = node.operands
    body = node.attrs.get("body")
    if lengths is not None or not isinstance(body, Graph):
        raise ModelError("sequence lengths of Scan-8 are not supported")
    inputs: int = node.attrs["num_scan_inputs"]
    attrs: dict[str, Any] = {"body": body, "num_scan_inputs": inputs}
    if "directions" in node.attrs:
        attrs["scan_input_directions"] = node.attrs["directions"]
    set_attr(node, "body")
    sample = Graph(f"{body.name}_sample")
    operands = [sample.add_input(_sample_type(v), f"{v.name}_sample" if v is not None else "") for v in values]
    types = [_sample_type(r) for r in node.results]
    scan = Node("Scan", operands, attrs, types, name=sample.name, metadata=dict(node.metadata or {}))
    insert(scan, sample.ret)
    for i, result in enumerate(scan.results):
        result.name = f"{node.results[i].name}_sample" if node.results[i].name else f"{sample.name}_{i}"
    sample.set_outputs(scan.results)
    _replace(node, "Scan", values, {"body": sample, "num_scan_inputs": len(values)})
    return True


def _sample_type(value: Value | None) -> Type:
    """The type of one sample of a batch."""
    if value is None or not isinstance(value.type, TensorType):
        return UNKNOWN
    shape = value.type.shape
    return TensorType(value.type.dtype, shape[1:] if shape else None)
