"""Images in other sizes, and parts of them.

TensorFlow computes coordinates in float32, and cubic weights from a table. Resize is used where it gives the same;
else elements are gathered, or each dimension is multiplied with a matrix of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from ....ir.dims import Dim, product
from ....ir.evaluate import can_evaluate, evaluate
from ....ir.graph import Value, constant
from ....ir.infer.engine import content_of
from ....ir.types import DType
from ...emit import Refused
from ...sizes import integer
from ..resampling import (
    KERNELS,
    Computed,
    Real,
    Term,
    area_weights,
    coordinates,
    cubic_weights,
    sampled_weights,
    scale_of,
)
from ..translate import Operation, Translator, rule

__all__: list[str] = []

Array = np.ndarray[Any, Any]
Grid = Literal["align_corners", "half_pixel", "asymmetric"]

_ROUNDING = {"align_corners": "round_prefer_ceil", "half_pixel": "round_prefer_ceil", "asymmetric": "floor"}
_TABLE = 1024  # steps between two elements in TensorFlow's table of cubic weights
_RESIZABLE = (DType.FLOAT, DType.FLOAT16, DType.INT32, DType.INT8, DType.UINT8)  # others no runtime resizes
_MAX_FACTOR = 64  # of open sizes


def _grid(o: Operation) -> Grid:
    """Where elements of the result are in the operand, as Resize calls it."""
    if o.attr("align_corners"):
        return "align_corners"
    return "half_pixel" if o.attr("half_pixel_centers") else "asymmetric"


class _Line(NamedTuple):
    """A dimension as numbers of NumPy, or as terms of a graph.

    Attributes:
        xp: NumPy, or what stands for it.
        given: its size.
        wanted: the size that it gets.
        source: its elements, as a row.
        x: the elements of the result, as a column.
    """

    xp: Any
    given: Real
    wanted: Real
    source: Real
    x: Real

    def scale(self, grid: Grid) -> Real:
        """How far elements of the result are apart."""
        return scale_of(self.xp, self.given, self.wanted, grid == "align_corners")

    def at(self, grid: Grid) -> Real:
        """Where they are in the operand."""
        return coordinates(self.x, self.scale(grid), grid)

    def computed(self, t: Translator) -> _Line:
        """All of it as terms."""
        if self.xp is not np:
            return self
        return _Line(Computed(t), *[Term(t, constant(np.asarray(n, np.float32))) for n in self[1:]])


class _Resizing:
    """An image with channels first and the sizes that it gets.

    Attributes:
        x: the image.
        given: its height and width.
        wanted: those of the result.
        sizes: those of the result, as a value.
    """

    def __init__(self, t: Translator, x: Value, sizes: Value, dtype: DType | None = None):
        self._t = t
        x = t.layouts.first(x)
        self.x = x if dtype is None else t.cast(x, dtype)
        self.given: list[Dim] = list((x.shape or ())[2:])
        elements = content_of(sizes)
        self.sizes = t.cast(sizes, DType.INT64)
        self.wanted: list[Dim | None] = [None, None] if elements is None else list(elements)

    def known(self, axis: int) -> tuple[int, int] | None:
        """Both sizes of a dimension, where they are known."""
        given, wanted = self.given[axis], self.wanted[axis]
        return (given, wanted) if isinstance(given, int) and isinstance(wanted, int) and given else None

    def factor(self, axis: int) -> int | None:
        """By how much a dimension grows, if that is a known integer."""
        given, wanted = self.given[axis], self.wanted[axis]
        if isinstance(given, int) and isinstance(wanted, int):
            return wanted // given if given and wanted % given == 0 else None
        return next((k for k in range(1, _MAX_FACTOR + 1) if given * k == wanted), None)

    def scale(self, axis: int) -> np.float32 | None:
        """The factor of a dimension, where it is known: the least with which its size is as wanted."""
        known, factor = self.known(axis), self.factor(axis)
        if known is None:
            return None if factor is None else np.float32(factor)
        scale = np.float32(known[1]) / np.float32(known[0])
        return np.nextafter(scale, np.float32(np.inf)) if float(scale) * known[0] < known[1] else scale

    def resize(self, **attrs: Any) -> Value:
        """The result of Resize."""
        t, scales = self._t, [self.scale(0), self.scale(1)]
        if all(s is not None for s in scales):
            result = t.op.Resize(self.x, None, constant(np.array([1, 1, *scales], np.float32)), **attrs)
        else:  # runtimes make errors where only some axes are named
            whole = t.op.Concat(t.op.Shape(self.x, end=2), self.sizes, axis=0)
            result = t.op.Resize(self.x, None, None, whole, **attrs)
        found: Value = t.layouts.last(result)
        return found

    def line(self, axis: int) -> _Line:
        """A dimension and the sizes that it has and gets."""
        t, known = self._t, self.known(axis)
        if known is not None:
            source, x = (np.arange(n, dtype=np.float32) for n in known)
            return _Line(np, np.float32(known[0]), np.float32(known[1]), source[None], x[:, None])
        given = t.op.Squeeze(t.op.Shape(self.x, start=2 + axis, end=3 + axis), t.integers([0]))
        wanted = t.op.Gather(self.sizes, t.scalar(axis, DType.INT64))
        source, x = (t.op.Range(t.scalar(0, DType.INT64), n, t.scalar(1, DType.INT64)) for n in (given, wanted))
        values = (given, wanted, source, t.unsqueeze(x, [1]))
        return _Line(Computed(t), *[Term(t, t.cast(v, DType.FLOAT)) for v in values])

    def multiplied(self, weights: Callable[[int, _Line], Real]) -> Value:
        """Each dimension multiplied with a matrix ``[out, in]``: first the one that shrinks more."""
        t, result = self._t, self.x
        for axis in sorted((0, 1), key=lambda axis: self.scale(axis) or 1):
            matrix = weights(axis, self.line(axis))
            if isinstance(matrix, np.ndarray) and np.array_equal(matrix, np.eye(len(matrix))):
                continue
            if isinstance(matrix, Term):
                value = matrix.value if axis == 0 else t.op.Transpose(matrix.value, perm=(1, 0))
            else:
                value = t.weights.array(np.ascontiguousarray(matrix if axis == 0 else matrix.T, np.float32), t.label)
            result = t.op.MatMul(value, result) if axis == 0 else t.op.MatMul(result, value)
        found: Value = t.layouts.last(result)
        return found


@rule("ResizeBilinear")
def _bilinear(t: Translator, o: Operation, x: Value, sizes: Value) -> Any:
    resizing = _Resizing(t, x, sizes, DType.FLOAT)
    return resizing.resize(mode="linear", coordinate_transformation_mode=_grid(o))


# the nearest element


@rule("ResizeNearestNeighbor")
def _nearest(t: Translator, o: Operation, x: Value, sizes: Value) -> Any:
    resizing, grid = _Resizing(t, x, sizes), _grid(o)
    if resizing.x.dtype in _RESIZABLE and all(_is_nearest_exact(resizing, axis, grid) for axis in (0, 1)):
        return resizing.resize(mode="nearest", coordinate_transformation_mode=grid, nearest_mode=_ROUNDING[grid])
    result = resizing.x
    for axis in (0, 1):
        line = resizing.line(axis)
        found = _nearest_to(line, grid)
        if isinstance(found, Term):
            index = t.cast(t.squeeze(found.value, [1]), DType.INT64)
        else:
            index = t.integers([int(i) for i in found[:, 0]])
        result = t.op.Gather(result, index, axis=2 + axis)
    return t.layouts.last(result)


def _nearest_to(line: _Line, grid: Grid) -> Real:
    """Which elements TensorFlow takes, as a column."""
    scale, half = line.scale(grid), np.float32(0.5)
    match grid:
        case "asymmetric":
            at = line.x * scale
        case "half_pixel":
            at = (line.x + half) * scale
        case "align_corners":
            at = line.x * scale + half
    return line.xp.minimum(line.xp.floor(at), line.given - 1)


def _is_nearest_exact(resizing: _Resizing, axis: int, grid: Grid) -> bool:
    """Whether Resize takes the elements that TensorFlow takes, which depends on how coordinates are rounded."""
    known, scale = resizing.known(axis), resizing.scale(axis)
    if known is None or scale is None:
        factor = resizing.factor(axis)
        return factor is not None and grid != "align_corners" and factor & (factor - 1) == 0
    given, wanted = known
    x, half = np.arange(wanted), np.float32(0.5)
    at, last = x.astype(np.float32), max(wanted - 1, 1)
    match grid:  # in float32, as runtimes compute it, and without rounding
        case "asymmetric":
            found, exact = at / scale, x * given // wanted
        case "half_pixel":
            found, exact = (at + half) / scale - half + half, (2 * x + 1) * given // (2 * wanted)
        case "align_corners":
            found = at * np.float32(given - 1) / np.float32(last) + half
            exact = (2 * x * (given - 1) + last) // (2 * last)
    wanted_elements = _nearest_to(resizing.line(axis), grid)[:, 0]
    computed = np.clip(np.floor(found), 0, given - 1)
    return np.array_equal(computed, wanted_elements) and np.array_equal(exact, wanted_elements)


# cubic interpolation, and means


@rule("ResizeBicubic")
def _bicubic(t: Translator, o: Operation, x: Value, sizes: Value) -> Any:
    resizing, grid = _Resizing(t, x, sizes, DType.FLOAT), _grid(o)
    is_keys = grid == "half_pixel"
    if all(_is_in_table(resizing, axis, grid) for axis in (0, 1)):
        return _cubic(resizing, grid, is_keys)
    return resizing.multiplied(lambda _, line: cubic_weights(line.xp, line.source, line.at(grid), line.given, is_keys))


def _cubic(resizing: _Resizing, grid: Grid, is_keys: bool, **attrs: Any) -> Value:
    attrs |= {"cubic_coeff_a": -0.5 if is_keys else -0.75, "exclude_outside": int(is_keys)}
    return resizing.resize(mode="cubic", coordinate_transformation_mode=grid, **attrs)


def _is_in_table(resizing: _Resizing, axis: int, grid: Grid) -> bool:
    """Whether TensorFlow's table has all cubic weights that are needed; and the dimension grows.

    Where it shrinks, ONNX Runtime fails once it has moved a Transpose to the other side of the Resize.
    """
    known, factor = resizing.known(axis), resizing.factor(axis)
    if factor is not None and grid != "align_corners":
        return _TABLE % (2 * factor) == 0
    if known is None or known[1] < known[0]:
        return False
    given, wanted = known
    if grid == "align_corners":
        return (given - 1) * _TABLE % max(wanted - 1, 1) == 0
    return given * (_TABLE // 2) % wanted == 0


@rule("ResizeArea")
def _area(t: Translator, o: Operation, x: Value, sizes: Value) -> Any:
    resizing, grid = _Resizing(t, x, sizes, DType.FLOAT), _grid(o)
    shrinks = [_shrinks(resizing, axis) for axis in (0, 1)]
    if grid == "asymmetric" and all(s is not None for s in shrinks):
        return t.layouts.last(t.op.AveragePool(resizing.x, kernel_shape=shrinks, strides=shrinks))
    return resizing.multiplied(lambda _, line: area_weights(line.xp, line.source, line.x, line.given, line.scale(grid)))


def _shrinks(resizing: _Resizing, axis: int) -> int | None:
    """By how much a dimension shrinks, if that is a known integer."""
    known = resizing.known(axis)
    return known[0] // known[1] if known is not None and known[0] % known[1] == 0 else None


# scaled and moved, with filters


@rule("ScaleAndTranslate")
def _scale_and_translate(t: Translator, o: Operation, x: Value, sizes: Value, scale: Value, shift: Value) -> Any:
    resizing, kernel, antialias = _Resizing(t, x, sizes, DType.FLOAT), o.attr("kernel_type"), bool(o.attr("antialias"))
    if kernel not in KERNELS:
        raise Refused(f"planish does not know its kernel {kernel}")
    shifts, factors = _numbers(shift), _numbers(scale)
    if shifts is not None and not shifts.any() and _is_ratio(scale, factors, resizing):
        whole = _filtered(resizing, kernel, antialias)
        if whole is not None:
            return whole

    def number(value: Value, found: Array | None, axis: int, line: _Line) -> Real:
        if found is not None and line.xp is np:
            return np.float32(found[axis])
        return Term(t, t.op.Gather(value, t.scalar(axis, DType.INT64)))

    def weights(axis: int, line: _Line) -> Real:
        if factors is None or shifts is None:
            line = line.computed(t)
        own = number(scale, factors, axis, line), number(shift, shifts, axis, line)
        return sampled_weights(line.xp, line.source, line.x, line.given, *own, kernel, antialias)

    return resizing.multiplied(weights)


def _filtered(resizing: _Resizing, kernel: str, antialias: bool) -> Value | None:
    """A whole image resized with a filter that Resize has; None where it has none, or matrices are faster."""
    attrs: dict[str, Any] = {}
    if antialias and not all(_grows(resizing, axis) for axis in (0, 1)):
        if resizing.known(0) and resizing.known(1):
            return None
        attrs = {"antialias": 1, "exclude_outside": 1}
    if kernel == "triangle":
        return resizing.resize(mode="linear", coordinate_transformation_mode="half_pixel", **attrs)
    return _cubic(resizing, "half_pixel", is_keys=True, **attrs) if kernel == "keyscubic" else None


def _grows(resizing: _Resizing, axis: int) -> bool:
    known = resizing.known(axis)
    return resizing.factor(axis) is not None if known is None else known[1] >= known[0]


def _is_ratio(scale: Value, factors: Array | None, resizing: _Resizing) -> bool:
    """Whether ``scale`` is what the sizes of the result are divided by those of the image."""
    known = [resizing.known(0), resizing.known(1)]
    if factors is not None:
        return all(
            n is not None and f == np.float32(n[1]) / np.float32(n[0]) for f, n in zip(factors, known, strict=True)
        )
    made = scale.producer
    if made is None or made.op != "Div":
        return False
    return [_sizes(made.given(i)) for i in (0, 1)] == [resizing.wanted, resizing.given]


def _sizes(value: Value) -> list[Dim]:
    """The elements of a vector of sizes as float32, as far as they are known."""
    if value.const is not None:
        return [int(n) for n in value.const.numpy().ravel()]
    made = value.producer
    return list(content_of(made.given(0)) or ()) if made is not None and made.op == "Cast" else []


def _numbers(value: Value) -> Array | None:
    """The elements of a small value that is computed from what is known."""
    if value.const is not None:
        return value.const.numpy()
    elements, made = content_of(value), value.producer
    if elements is not None and all(isinstance(e, int) for e in elements):
        return np.array(elements, value.dtype.numpy).reshape([integer(d) for d in value.shape or ()])
    if made is None or not can_evaluate(made.op) or len(made.results) != 1:
        return None
    operands = [None if x is None else _numbers(x) for x in made.operands]
    found = None if any(x is None for x in operands) else evaluate(made, operands)
    return None if found is None else found[0]


# parts of images


@rule("CropAndResize")
def _crop_and_resize(t: Translator, o: Operation, x: Value, boxes: Value, images: Value, sizes: Value) -> Any:
    """Boxes have coordinates from 0 to 1; pixels are gathered from all images as rows of one table."""
    wanted, shape = t.known(sizes), x.shape
    if wanted is None or shape is None:
        raise Refused("the size of its results is computed: state numbers")
    x = t.cast(x, DType.FLOAT)
    height, width = (t.size_scalar(n) for n in shape[1:3])
    pixels = t.reshape(x, (product(shape[:3]), shape[3]))
    rows, row_inside = _box_positions(t, boxes, height, 0, wanted[0])
    columns, column_inside = _box_positions(t, boxes, width, 1, wanted[1])
    image = t.unsqueeze(t.cast(images, DType.INT64), [1, 2])

    def taken(row: Value, column: Value) -> Value:
        """[box, row, column, channel] at integer positions."""
        line = t.op.Add(t.op.Mul(image, height), t.unsqueeze(t.cast(row, DType.INT64), [2]))
        return t.op.Gather(
            pixels, t.op.Add(t.op.Mul(line, width), t.unsqueeze(t.cast(column, DType.INT64), [1])), axis=0
        )

    if o.attr("method") == "nearest":
        half = t.scalar(0.5, DType.FLOAT)
        found = taken(*(t.op.Floor(t.op.Add(p, half)) for p in (rows, columns)))
    else:
        found = _between(t, taken, rows, columns)
    inside = t.op.And(t.unsqueeze(row_inside, [2, 3]), t.unsqueeze(column_inside, [1, 3]))
    return t.op.Where(inside, found, t.scalar(float(o.attr("extrapolation_value")), DType.FLOAT))


def _box_positions(t: Translator, boxes: Value, size: Value, axis: int, count: int) -> tuple[Value, Value]:
    """Positions [box, count] along a dimension of images, moved inside, and whether they were inside."""
    low, high = (t.op.Gather(boxes, t.integers([axis + i]), axis=1) for i in (0, 2))
    last = t.cast(t.op.Sub(size, t.scalar(1, DType.INT64)), DType.FLOAT)
    if count > 1:
        step = t.op.Div(t.op.Mul(t.op.Sub(high, low), last), t.scalar(count - 1, DType.FLOAT))
        steps = t.op.Mul(t.reshape(t.arange(count, DType.FLOAT), (1, count)), step)
        at = t.op.Add(t.op.Mul(low, last), steps)
    else:
        at = t.op.Mul(t.op.Mul(t.scalar(0.5, DType.FLOAT), t.op.Add(low, high)), last)
    zero = t.scalar(0, DType.FLOAT)
    inside = t.op.And(t.op.GreaterOrEqual(at, zero), t.op.LessOrEqual(at, last))
    return t.op.Min(t.op.Max(at, zero), last), inside


def _between(t: Translator, taken: Callable[[Value, Value], Value], rows: Value, columns: Value) -> Value:
    """Bilinear interpolation between the four pixels around positions."""
    top, left = t.op.Floor(rows), t.op.Floor(columns)
    bottom, right = t.op.Ceil(rows), t.op.Ceil(columns)
    down, across = t.unsqueeze(t.op.Sub(rows, top), [2, 3]), t.unsqueeze(t.op.Sub(columns, left), [1, 3])

    def mixed(a: Value, b: Value, share: Value) -> Value:
        return t.op.Add(a, t.op.Mul(t.op.Sub(b, a), share))

    upper = mixed(taken(top, left), taken(top, right), across)
    lower = mixed(taken(bottom, left), taken(bottom, right), across)
    return mixed(upper, lower, down)
