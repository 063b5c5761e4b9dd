"""Pooling: windows that TensorRT does not have, as padding and slices, and global pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, Row, refusal
from ..sizes import Size, at_least, decided, floor_divide, iota, minus, plus, reshape, size_of, times, vector
from ..versions import Version

__all__ = ["FORMS", "ROWS"]

_VOLUMES = {1: 100_000, 2: 100_000, 3: 1_000_000}  # windows are smaller than this, by spatial dimensions
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Window:
    """The windows along one spatial dimension.

    Attributes:
        size: how many elements each takes.
        stride: from one to the next.
        dilation: from element to element.
        before: the padding in front.
        after: the padding behind.
        surplus: how far the last window sticks out behind the padding (``ceil_mode``); negative: what no window takes.
    """

    size: int
    stride: int
    dilation: int
    before: Size
    after: Size
    surplus: Size

    @property
    def extent(self) -> int:
        """From its first element to its last."""
        return (self.size - 1) * self.dilation + 1


def _windows(node: Node, x: Value) -> list[_Window]:
    """The windows of a node. What sizes that are not known decide is computed."""
    sizes: tuple[int, ...] = node.attrs["kernel_shape"]
    rank = len(sizes)
    strides, dilations = (node.attrs.get(name) or (1,) * rank for name in ("strides", "dilations"))
    pads = node.attrs.get("pads") or (0,) * 2 * rank
    padding, ceil = node.attrs.get("auto_pad", "NOTSET"), node.attrs.get("ceil_mode", 0)
    found = []
    for i, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True)):
        extent = (size - 1) * dilation + 1
        if padding.startswith("SAME"):
            before, after = _same(x, i + 2, extent, stride, upper=padding == "SAME_UPPER")
            found.append(_Window(size, stride, dilation, before, after, 0))
            continue
        ends = (pads[i], pads[i + rank]) if padding == "NOTSET" else (0, 0)
        surplus = _surplus(size_of(x, i + 2), extent, stride, *ends) if ceil else 0
        found.append(_Window(size, stride, dilation, *ends, surplus))
    return found


def _same(x: Value, axis: int, extent: int, stride: int, *, upper: bool) -> tuple[Size, Size]:
    """The padding with which there is a window for every ``stride`` elements."""
    total: Size = extent - 1
    if stride > 1:
        n = size_of(x, axis)
        total = at_least(minus(plus(times(floor_divide(minus(n, 1), stride), stride), extent), n), 0)
    half = floor_divide(total, 2)
    return (half, minus(total, half)) if upper else (minus(total, half), half)


def _surplus(n: Size, extent: int, stride: int, before: int, after: int) -> Size:
    """What must follow the padding, so that the last window that starts before it is whole."""
    steps = floor_divide(plus(n, before - 1 + min(after + stride - extent, 0)), stride)
    return minus(plus(times(steps, stride), extent - before - after), n)


# legality


def _refusal(node: Node, version: Version) -> str:
    x, sizes = node.given(0), node.attrs.get("kernel_shape") or ()
    if x.rank is None or len(sizes) != x.rank - 2:
        return "its rank is not known"
    if len(node.results) > 1:
        return f"{version} has no indices of maxima"
    if math.prod(sizes) >= _VOLUMES.get(len(sizes), 0):
        return f"a window of {math.prod(sizes)} elements"
    if x.dtype is DType.INT8 and len(sizes) == 3:
        return "int8 in three dimensions"
    if any(d != 1 for d in node.attrs.get("dilations") or ()):
        return f"{version} has no dilation of pooling"
    if any(p < 0 for p in node.attrs.get("pads") or ()):
        return "negative padding"
    if node.op == "LpPool" and node.attrs.get("ceil_mode", 0) and version.opset < 18:
        return f"{version} rounds down"
    return next((r for i, w in enumerate(zip(*_flat(node), strict=True)) if (r := _unsure(node, x, i, *w))), "")


def _flat(node: Node) -> tuple[Sequence[int], ...]:
    """The sizes of the windows, their strides, and the padding in front and behind, by dimension."""
    sizes = node.attrs["kernel_shape"]
    given = node.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    pads = (given and node.attrs.get("pads")) or (0,) * 2 * len(sizes)
    return sizes, node.attrs.get("strides") or (1,) * len(sizes), pads[: len(sizes)], pads[len(sizes) :]


def _unsure(node: Node, x: Value, i: int, size: int, stride: int, before: int, after: int) -> str:
    """Why the windows along a dimension are not built, or would not be what they are in ONNX."""
    assert x.shape is not None
    counts = node.op == "AveragePool" and node.attrs.get("count_include_pad", 0)
    exclusive = node.op == "AveragePool" and not counts
    excess = 0
    if node.attrs.get("ceil_mode", 0) and not node.attrs.get("auto_pad", "NOTSET").startswith("SAME"):
        n = x.shape[i + 2]
        if isinstance(n, int):
            surplus = _surplus(n, size, stride, before, after)
            excess = max(surplus, 0) if isinstance(surplus, int) else 0
            if -(-(n + before + after - size) // stride) * stride >= n + before:
                return "a last window that starts behind the elements"
        elif after + stride > size:
            return "a last window that may start behind the elements"
        if counts and (excess > 0 if isinstance(n, int) else stride > 1):
            return "ceil_mode counts elements behind the padding"
    if exclusive and max(before, after + excess) >= size:
        return "padding as large as the window"
    return ""


# forms


def _is_odd(node: Node, x: Value) -> bool:
    """Whether windows cannot be told, or whether some may start far behind the elements, where runtimes differ."""
    if x.rank is None or x.rank < 3:
        return True
    attrs = node.attrs
    sizes, pads = attrs["kernel_shape"], attrs.get("pads") or ()
    dilations = attrs.get("dilations") or (1,) * len(sizes)
    extents = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    return bool(attrs.get("ceil_mode", 0)) and any(p > e for p, e in zip(pads[len(sizes) :], extents, strict=False))


def _max_pool(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    if _is_odd(node, x):
        return None
    windows = _windows(node, x)
    if len(node.results) > 1 and node.results[1].users:
        return _with_indices(node, x, windows)
    wide = x if x.dtype in FLOATS else op.Cast(x, to=DType.FLOAT)
    y = _max_pool_of(wide, windows)
    y = y if wide is x else op.Cast(y, to=x.dtype)
    return [y, *(op.Cast(y, to=DType.INT64) for _ in node.results[1:])]  # nobody reads the indices


def _max_pool_of(x: Value, windows: Sequence[_Window]) -> Value:
    padded = _padded(x, windows, -np.inf)
    if _is_dense(windows):
        return _pool("MaxPool", padded, windows)
    for axis, window in enumerate(windows, 2):
        padded = reduce(op.Max, _taps(padded, axis, window))
    return padded


def _is_dense(windows: Sequence[_Window]) -> bool:
    volume = math.prod(w.size for w in windows)
    return all(w.dilation == 1 for w in windows) and volume < _VOLUMES.get(len(windows), 0)


def _pool(name: str, x: Value, windows: Sequence[_Window]) -> Value:
    attrs = {"kernel_shape": [w.size for w in windows], "strides": [w.stride for w in windows]}
    return getattr(op, name)(x, **attrs)


def _padded(x: Value, windows: Sequence[_Window], value: float) -> Value:
    """``x`` with ``value`` around it, so that all windows are whole."""
    before = [w.before for w in windows]
    after = [plus(w.after, at_least(w.surplus, 0)) for w in windows]
    if all(isinstance(p, int) and p == 0 for p in (*before, *after)):
        return x
    lead = (x.rank or 0) - len(windows)
    pads = vector([*[0] * lead, *before, *[0] * lead, *after])
    return op.Pad(x, pads, constant(value, x.dtype))


def _taps(x: Value, axis: int, window: _Window) -> list[Value]:
    """The first elements of all windows along ``axis``, their second elements, and so on."""
    taps = []
    for i in range(window.size):
        start, left = i * window.dilation, window.extent - 1 - i * window.dilation
        bounds = [constant([n], DType.INT64) for n in (start, -left if left else _END, axis, window.stride)]
        taps.append(op.Slice(x, *bounds))
    return taps


def _with_indices(node: Node, x: Value, windows: Sequence[_Window]) -> list[Value]:
    """The maxima, and where in ``x`` they are: of equal ones the first."""
    spatial = [size_of(x, axis) for axis in range(2, len(windows) + 2)]
    strides: list[Size] = [1] * len(windows)
    order = range(len(windows)) if node.attrs.get("storage_order", 0) else range(len(windows) - 1, -1, -1)
    step: Size = 1
    for i in order:
        strides[i], step = step, times(step, spatial[i])
    ones = [1] * (len(windows) + 2)
    place = reduce(
        op.Add,
        [
            reshape(_scaled(iota(n), s), [*ones[: i + 2], -1, *ones[i + 3 :]])
            for i, (n, s) in enumerate(zip(spatial, strides, strict=True))
        ],
    )
    wide = x if x.dtype in FLOATS else op.Cast(x, to=DType.FLOAT)
    best, place = _padded(wide, windows, -np.inf), _padded(place, windows, 0)
    for axis in range(len(windows) + 1, 1, -1):
        values, places = (_taps(v, axis, windows[axis - 2]) for v in (best, place))
        best, place = values[0], places[0]
        for value, other in zip(values[1:], places[1:], strict=True):
            place = op.Where(op.Greater(value, best), other, place)
            best = op.Max(best, value)
    images = times(size_of(x, 0), size_of(x, 1))
    first = reshape(_scaled(iota(images), step), [size_of(x, 0), size_of(x, 1), *ones[2:]])
    return [best if wide is x else op.Cast(best, to=x.dtype), op.Add(place, first)]


def _scaled(x: Value, factor: Size) -> Value:
    return x if isinstance(factor, int) and factor == 1 else op.Mul(x, vector([factor]))


def _average_pool(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    if _is_odd(node, x):
        return None
    windows = _windows(node, x)
    if all(isinstance(p, int) and p == 0 for w in windows for p in (w.before, w.after)):
        plain = make_node("AveragePool", (x,), {**node.attrs, "count_include_pad": 0})
        if not refusal(plain, version):  # what lies behind the elements is not counted
            return [plain.result]
    inclusive = bool(node.attrs.get("count_include_pad", 0))
    wide = _wide(x)
    total = _sums(_padded(wide, windows, 0), windows)
    for axis, window in enumerate(windows, 2):
        counts = _counts(x, axis, window, inclusive)
        if counts is not None:
            total = op.Div(total, reshape(counts, [-1, *[1] * (len(windows) + 1 - axis)]))
        else:
            total = op.Mul(total, constant(1 / window.size, wide.dtype))
    return [_as(total, x)]


def _wide(x: Value) -> Value:
    return x if x.dtype is DType.FLOAT else op.Cast(x, to=DType.FLOAT)


def _as(wide: Value, x: Value) -> Value:
    return wide if x.dtype is DType.FLOAT else op.Cast(wide, to=x.dtype)


def _sums(padded: Value, windows: Sequence[_Window]) -> Value:
    """The sum of each window."""
    if _is_dense(windows):
        mean = _pool("AveragePool", padded, windows)
        return op.Mul(mean, constant(math.prod(w.size for w in windows), padded.dtype))
    for axis, window in enumerate(windows, 2):
        padded = reduce(op.Add, _taps(padded, axis, window))
    return padded


def _counts(x: Value, axis: int, window: _Window, inclusive: bool) -> Value | None:
    """How many elements each window along ``axis`` counts; None: all, in every window."""
    n, before, after, surplus = size_of(x, axis), window.before, window.after, window.surplus
    if isinstance(before, int) and isinstance(after, int) and isinstance(surplus, int):
        if max(surplus, 0 if inclusive else max(before, after)) <= 0:
            return None
        if isinstance(n, int):
            count = (n + before + after + max(surplus, 0) - window.extent) // window.stride + 1
            first = np.arange(count)[:, None] * window.stride - before
            places = first + np.arange(window.size) * window.dilation
            low, high = (-before, n + after) if inclusive else (0, n)
            return constant(((places >= low) & (places < high)).sum(1).astype(np.float32))
    ones = op.Expand(constant([1.0], DType.FLOAT), vector([n]))
    ones = _padded(ones, [replace(window, surplus=0)], 1 if inclusive else 0)
    rest = replace(window, before=0, after=0)
    return reduce(op.Add, _taps(_padded(ones, [rest], 0), 0, window))


def _lp_pool(node: Node, version: Version) -> list[Value] | None:
    x, p = node.given(0), node.attrs.get("p", 2)
    if _is_odd(node, x):
        return None
    windows, wide = _windows(node, x), op.Abs(_wide(x))
    powers = wide if p == 1 else op.Pow(wide, constant(float(p), wide.dtype))
    total = _sums(_padded(powers, windows, 0), windows)
    return [_as(total if p == 1 else op.Pow(total, constant(1 / p, wide.dtype)), x)]


def _global_pool(node: Node, version: Version) -> list[Value] | None:
    """Without spatial dimensions, what there is; with them, of odd powers the absolute values."""
    x = node.given(0)
    if x.rank is None:
        return None
    if x.rank == 2:
        return [op.Abs(x) if node.op == "GlobalLpPool" else op.Identity(x)]
    axes, wide, p = constant(np.arange(2, x.rank)), op.Abs(_wide(x)), node.attrs.get("p", 2)
    if node.op != "GlobalLpPool":
        return None
    total = op.ReduceSum(wide if p == 1 else op.Pow(wide, constant(float(p), wide.dtype)), axes, keepdims=1)
    return [_as(total if p == 1 else op.Pow(total, constant(1 / p, wide.dtype)), x)]


def _max_unpool(node: Node, version: Version) -> list[Value] | None:
    """The maxima put where they were in zeros; what a stated shape has more is zero."""
    x, places, stated = node.given(0), node.given(1), node.operand(2)
    if x.rank is None:
        return None
    rank = x.rank - 2
    sizes, strides = node.attrs["kernel_shape"], node.attrs.get("strides") or (1,) * rank
    pads = node.attrs.get("pads") or (0,) * 2 * rank
    spatial = [
        plus(times(minus(size_of(x, i + 2), 1), strides[i]), sizes[i] - pads[i] - pads[i + rank]) for i in range(rank)
    ]
    shape = [size_of(x, 0), size_of(x, 1), *spatial]
    zeros = op.Expand(constant([0], x.dtype), vector([reduce(times, shape)]))
    flat = op.ScatterElements(zeros, reshape(places, [-1]), reshape(x, [-1]), axis=0)
    y = reshape(flat, shape)
    if stated is None:
        return [y]
    wanted = vector([decided(node.results[0], i, stated, i) for i in range(x.rank)])
    more = op.Sub(wanted, vector(shape))
    pads_after = op.Concat(constant(np.zeros(x.rank, np.int64)), more, axis=0)
    return [op.Pad(y, pads_after, constant(0, x.dtype))]


FORMS = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalLpPool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "MaxUnpool": _max_unpool,
}
ROWS = {
    "AveragePool": Row({"T": FLOATS}, ranks=(3, 5), check=_refusal),
    "GlobalAveragePool": Row({"T": FLOATS}, ranks=(3, 8)),
    "GlobalLpPool": Row(
        {"T": FLOATS - {DType.BFLOAT16}}, ranks=(3, 8), attrs={"p": (2,)}
    ),  # it takes no absolute values
    "GlobalMaxPool": Row({"T": FLOATS}, ranks=(3, 8)),
    "LpPool": Row({"T": FLOATS - {DType.BFLOAT16}}, ranks=(4, 5), attrs={"p": (1, 2)}, check=_refusal),
    "MaxPool": Row({"T": FLOATS | {DType.INT8}}, ranks=(3, 5), check=_refusal),
}
