"""Samplers: how to draw operands and attributes of each operator, so that random left sides are well-typed.

A sampler asks its `Site` for what it needs; what is given by the left side comes back unchanged, what is open is made
on the spot. Degenerate choices (identity permutations, full slices, neutral elements, one-element axes) are likely on
purpose. `sampler` registers one for an operator of another package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from planish.ir import DType

from .draw import Array, Draw, Reject
from .site import Site, formal_types

__all__ = ["SAMPLERS", "NoSampler", "sample", "sampler"]

Sampler = Callable[[Site], None]
SAMPLERS: dict[str, Sampler] = {}
_INT64_MAX = (1 << 63) - 1


class NoSampler(LookupError):
    """Nobody has said how to draw operands for an operator."""


def sampler(*ops: str) -> Callable[[Sampler], Sampler]:
    """Register how to draw the operands of operators ``ops``."""

    def register(function: Sampler) -> Sampler:
        for op in ops:
            SAMPLERS[op] = function
        return function

    return register


def sample(site: Site) -> None:
    """Let the sampler of the site's operator choose everything that is open.

    Raises:
        NoSampler: there is none for the operator.
        Reject: what is given does not fit.
    """
    found = SAMPLERS.get(site.op)
    if found is None:
        raise NoSampler(
            f"no sampler for {site.op}: give the rule examples=[…], or register one with planish.testing.sampler"
        )
    try:
        found(site)
    except (ValueError, IndexError, ZeroDivisionError, np.exceptions.AxisError) as error:
        raise Reject(str(error)) from error
    site.finish()


def ints(values: Sequence[int] | int) -> Array:
    """A shape operand."""
    return np.array(values, np.int64)


# elementwise


def broadcast(site: Site, count: int, *, positive: Sequence[int] = ()) -> None:
    """Operands 0 to ``count`` - 1 that broadcast together."""
    draw = site.draw
    given = [a.shape for i in range(count) if (a := site[i]) is not None]
    base = np.broadcast_shapes(*given) if given else draw.shape()
    if given and draw.chance(0.25):
        base = _widened(draw, base)
    full = draw.integer(0, count - 1)  # this one has the whole shape, if it is open
    for i in range(count):
        shape = base if i == full and not given else draw.broadcast_part(base)
        role = "weight" if shape != base else "data"
        site.operand(i, lambda i=i, s=shape: draw.array(site.dtype(i), s, positive=i in positive), role)  # type: ignore[misc]
    np.broadcast_shapes(*(a.shape for i in range(count) if (a := site[i]) is not None))


def _widened(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape to which ``shape`` broadcasts."""
    wider = tuple(draw.dim() if d == 1 and draw.chance(0.7) else d for d in shape)
    return (*draw.shape(0, max(0, 4 - len(shape))), *wider) if draw.chance(0.5) else wider


def unary(site: Site) -> None:
    """An elementwise operator of one operand, with its attributes at random."""
    draw = site.draw
    positive = site.op in ("Sqrt", "Log") and draw.chance(0.9)
    site.data(0, lambda: draw.array(site.dtype(0), draw.shape(), positive=positive))
    for name in ("alpha", "beta", "gamma", "lambd", "bias"):
        if site.has_attr(name):
            site.attr(name, 0.1, 0.2, 0.5, 1.0, 2.0)


for _op in [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]:
    SAMPLERS[_op] = unary


@sampler("Gelu")
def _gelu(site: Site) -> None:
    unary(site)
    site.attr("approximate", "none", "tanh")


@sampler("IsInf")
def _is_inf(site: Site) -> None:
    unary(site)
    site.attr("detect_positive", 0, 1)
    site.attr("detect_negative", 0, 1)


@sampler(
    *[
        "Add",
        "Sub",
        "Mul",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "PRelu",
    ]
)
def _binary(site: Site) -> None:
    broadcast(site, 2)
    if site.op == "PRelu":
        _same_shape_as_broadcast(site)


def _same_shape_as_broadcast(site: Site) -> None:
    first, second = site[0], site[1]
    if first is None or second is None or np.broadcast_shapes(first.shape, second.shape) != first.shape:
        raise Reject("the slope has a larger shape")


@sampler("Div", "Mod")
def _div(site: Site) -> None:
    kind = site.draw.chance(0.9) or site.dtype(1).is_integer
    broadcast(site, 2, positive=(1,) if kind else ())
    if site.op == "Mod":
        floating = site.dtype(0).is_floating
        if floating and "fmod" not in site.fixed and not site.free("fmod"):
            raise Reject("Mod of floats needs fmod")
        site.attrs["fmod"] = 1 if floating else site.attr("fmod", 0, 1)


@sampler("Pow")
def _pow(site: Site) -> None:
    draw = site.draw
    if site.is_open(1) and draw.chance(0.7):
        exponent = draw.pick((0.5, 1, 2, 2, 3, -1)) if site.dtype(0).is_floating else draw.pick((1, 2, 3))
        shape = draw.pick([(), (), (1,)])
        dtype = site.dtype(1, [site.dtype(0)])
        site.operand(1, lambda: np.full(shape, exponent).astype(dtype.numpy), "weight")
    broadcast(site, 2, positive=(0, 1))


@sampler("BitShift")
def _bit_shift(site: Site) -> None:
    broadcast(site, 2, positive=(1,))
    site.required_attr("direction", "LEFT", "RIGHT")


@sampler("Min", "Max", "Sum", "Mean")
def _variadic(site: Site) -> None:
    broadcast(site, max(len(site), 1) if not site.more else max(len(site), site.draw.pick((1, 2, 2, 2, 3, 4))))


@sampler("Where")
def _where(site: Site) -> None:
    broadcast(site, 3)


_BOUNDS = (0.0, 0.0, 6.0, 1.0, -1.0, 3.0, -np.inf, np.inf, 0.5)


@sampler("Clip")
def _clip(site: Site) -> None:
    draw = site.draw
    site.data(0, lambda: draw.array(site.dtype(0), draw.shape()))
    dtype = site.dtype(0)

    def bound(low: float) -> Array:
        choices = [
            b for b in _BOUNDS if b >= low and (dtype.is_floating or np.isfinite(b)) and (dtype.is_signed or b >= 0)
        ]
        return np.asarray(draw.pick(choices or [max(low, 0)])).astype(dtype.numpy)

    low = site.optional(1, lambda: bound(-np.inf), "param", 0.8)
    least = float(low) if low is not None and draw.chance(0.9) else -np.inf
    site.optional(2, lambda: bound(least), "param", 0.8)


@sampler("Cast")
def _cast(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape()))
    same = int(DType.from_numpy(x.dtype))
    wanted = [int(d) for d in site._dtypes.values() if d != same]
    others = [int(draw.dtype([d for d in DType if d])) for _ in range(2)]
    site.required_attr("to", *(wanted or [same, *others]))


@sampler("CastLike")
def _cast_like(site: Site) -> None:
    draw = site.draw
    for i in range(2):
        site.data(i, lambda i=i: draw.array(site.dtype(i), draw.shape()))  # type: ignore[misc]


@sampler("Softmax", "LogSoftmax", "Hardmax")
def _softmax(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    site.attr("axis", lambda: draw.axis(x.ndim))


@sampler("Dropout")
def _dropout(site: Site) -> None:
    draw = site.draw
    site.data(0, lambda: draw.array(site.dtype(0), draw.shape()))
    site.optional(1, lambda: np.array(draw.pick((0.0, 0.5)), site.dtype(1).numpy), "param")
    site.optional(2, lambda: np.array(False), "param")
    site.outputs = max(site.least_outputs, site.draw.pick((1, 1, 2)))


# shapes


def factor(draw: Draw, shape: Sequence[int]) -> list[int]:
    """A shape with as many elements as ``shape``: equal, merged, split, with ones added or taken away, or shuffled."""
    target = list(shape)
    for _ in range(draw.pick((0, 1, 1, 2))):
        kind = draw.integer(0, 4)
        if kind == 0 and len(target) > 1:
            i = draw.integer(0, len(target) - 2)
            target[i : i + 2] = [target[i] * target[i + 1]]
        elif kind == 1 and target:
            i = draw.integer(0, len(target) - 1)
            divisors = [d for d in range(1, target[i] + 1) if target[i] % d == 0] or [1]
            d = draw.pick(divisors)
            target[i : i + 1] = [d, target[i] // d]
        elif kind == 2:
            target.insert(draw.integer(0, len(target)), 1)
        elif kind == 3 and 1 in target:
            target.remove(1)
        elif kind == 4:
            draw.random.shuffle(target)
    return target


def grouped(draw: Draw, shape: Sequence[int], rank: int) -> list[int]:
    """A shape of ``rank`` dimensions that merges adjacent ones of ``shape``, or has ones in front."""
    padded = [1] * (rank - len(shape)) + list(shape)
    cuts = [0, *sorted(draw.random.sample(range(1, len(padded)), rank - 1)), len(padded)] if rank else []
    return [math.prod(padded[a:b]) for a, b in itertools.pairwise(cuts)]


def encode_target(draw: Draw, source: Sequence[int], target: list[int], allowzero: int = 0) -> Array:
    """``target`` as an operand of Reshape: with 0 for copied dimensions and -1 for a computed one, here and there."""
    encoded = list(target)
    for i, d in enumerate(target):
        if i < len(source) and source[i] == d and not allowzero and (d == 0 or draw.chance(0.3)):
            encoded[i] = 0
    known = list(target)
    if encoded and draw.chance(0.4) and 0 not in known:
        encoded[draw.integer(0, len(encoded) - 1)] = -1
    return ints(encoded)


@sampler("Reshape")
def _reshape(site: Site) -> None:
    draw = site.draw
    allowzero = site.attr("allowzero", 0, 0, 1) or 0
    if site.is_open(0) and (given := site[1]) is not None:
        shape = [draw.dim() if d <= 0 else int(d) for d in given.ravel()]
        site.data(0, lambda: draw.array(site.dtype(0), shape if draw.chance(0.7) else factor(draw, shape)))
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape()))

    def target() -> list[int]:
        wanted = site.rank if site.rank is not None and draw.chance(0.8) else None
        return factor(draw, x.shape) if wanted is None else grouped(draw, x.shape, wanted)

    site.data(1, lambda: encode_target(draw, x.shape, target(), allowzero), "shape")


@sampler("Flatten")
def _flatten(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape()))
    axis = site.attr("axis", lambda: draw.integer(-x.ndim, x.ndim))
    if not -x.ndim <= axis <= x.ndim:
        raise Reject("no such axis")


@sampler("Squeeze")
def _squeeze(site: Site) -> None:
    draw = site.draw

    def with_ones() -> Array:
        return draw.array(site.dtype(0), [1 if draw.chance(0.4) else d for d in draw.shape()])

    x = site.data(0, with_ones)
    ones = [i - (x.ndim if draw.chance(0.3) else 0) for i, d in enumerate(x.shape) if d == 1]
    site.optional(1, lambda: ints(draw.random.sample(ones, draw.integer(min(1, len(ones)), len(ones)))), "shape", 0.8)
    axes = site[1]
    if axes is not None and any(x.shape[int(a)] != 1 for a in axes.ravel()):
        raise Reject("squeezes a dimension that is not 1")


@sampler("Unsqueeze")
def _unsqueeze(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(0, 3)))

    def axes() -> Array:
        count = draw.pick((1, 1, 1, 2))
        rank = x.ndim + count
        return ints([a - rank if draw.chance(0.3) else a for a in draw.random.sample(range(rank), count)])

    site.data(1, axes, "shape")


@sampler("Transpose")
def _transpose(site: Site) -> None:
    draw = site.draw
    perm = site.fixed.get("perm")
    rank = None if perm is None else len(perm)
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape() if rank is None else draw.shape(rank, rank)))
    site.attr("perm", lambda: draw.permutation(x.ndim))


@sampler("Concat")
def _concat(site: Site) -> None:
    draw = site.draw
    count = max(len(site), 1) if not site.more else max(len(site), draw.pick((1, 2, 2, 3, 4)))
    given = next((a for i in range(count) if (a := site[i]) is not None), None)
    shape = list(draw.shape(1) if given is None else given.shape)
    axis = site.required_attr("axis", lambda: draw.axis(len(shape)))
    for i in range(count):
        part = list(shape)
        part[axis] = draw.dim() if draw.chance(0.6) else shape[axis]
        site.operand(i, lambda p=part: draw.array(site.dtype(0), p))  # type: ignore[misc]


@sampler("Split")
def _split(site: Site) -> None:
    draw = site.draw
    stated = site.attr("num_outputs", None)
    count = site.outputs or stated or max(site.least_outputs, draw.pick((1, 2, 2, 3)))
    axis: int = site.attr("axis", 0, 1, -1, -2)
    least = max(1, axis + 1 if axis >= 0 else -axis)

    def parts() -> Array:
        shape = list(draw.shape(least))
        shape[axis] = count * draw.integer(1, 2) if draw.chance(0.7) else count + draw.integer(0, 3)
        return draw.array(site.dtype(0), shape)

    x = site.data(0, parts)
    dim = x.shape[axis]
    if -(-dim // count) * (count - 1) > dim:
        raise Reject("more parts than there are elements")

    def sizes() -> Array:
        if dim % count == 0 and draw.chance(0.5):
            return ints([dim // count] * count)
        cuts = sorted(draw.integer(0, dim) for _ in range(count - 1))
        return ints(np.diff([0, *cuts, dim]).tolist())

    given = site.optional(1, sizes, "shape", 0.6)
    if given is None and stated is None and "num_outputs" not in site.fixed:
        site.attrs["num_outputs"] = count
    elif given is not None and ("num_outputs" in site.attrs or given.size != count or int(given.sum()) != dim):
        raise Reject("sizes do not fit")
    site.outputs = count


@sampler("Slice")
def _slice(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    given = next((a for i in (1, 2, 3, 4) if (a := site[i]) is not None), None)
    with_axes = site.is_open(3) and (len(site) > 3 or draw.chance(0.8))
    with_steps = site.is_open(4) and (len(site) > 4 or draw.chance(0.5))
    if (stated := site[3]) is not None:
        axes = [int(a) for a in stated.ravel()]
    else:
        count = given.size if given is not None else draw.integer(1, x.ndim) if draw.chance(0.4) else 1
        axes = [a - x.ndim if draw.chance(0.3) else a for a in draw.random.sample(range(x.ndim), count)]
        axes = axes if with_axes else list(range(count))
    bounds = [_bounds(draw, x.shape[a], with_steps) for a in axes]
    index = draw.pick((np.int64, np.int64, np.int64, np.int32))
    if given is not None:
        index = given.dtype.type
    columns = {1: [b[0] for b in bounds], 2: [b[1] for b in bounds], 3: axes, 4: [b[2] for b in bounds]}
    for i, column in columns.items():
        if (i == 3 and not with_axes and site.is_open(3)) or (i == 4 and not with_steps and site.is_open(4)):
            continue
        if index is np.int32:
            column = [min(max(v, -(1 << 31)), (1 << 31) - 1) for v in column]
        site.operand(i, lambda c=column: np.array(c, index), "shape")  # type: ignore[misc]


def _bounds(draw: Draw, dim: int, steps: bool) -> tuple[int, int, int]:
    """Start, end and step along an axis of ``dim`` elements, in all the ways in which ONNX lets one say it."""
    step = draw.pick((1, 1, 2, -1, -1, -2, 3)) if steps else 1
    kind = draw.random.random()
    if kind < 0.25:  # all of it
        return (
            (0, draw.pick((dim, _INT64_MAX, dim + 3)), step)
            if step > 0
            else (draw.pick((dim - 1, -1)), -_INT64_MAX, step)
        )
    if kind < 0.35:
        return draw.integer(-dim - 2, dim + 2), draw.integer(-dim - 2, dim + 2), step
    low, high = sorted((draw.integer(0, dim), draw.integer(0, dim)))
    if step < 0:
        low, high = max(high - 1, 0), (low - 1 if low > 0 else -dim - 1)
        return (low - dim if draw.chance(0.3) and dim else low), high, step
    start = low - dim if draw.chance(0.3) and low < dim else low
    end = high - dim if draw.chance(0.3) and high < dim else high
    return start, end, step


@sampler("Gather")
def _gather(site: Site) -> None:
    draw = site.draw
    axis: int = site.attr("axis", 0, 0, 1, -1)
    least = max(1, axis + 1 if axis >= 0 else -axis)
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(least)))
    dim = x.shape[axis]

    def indices() -> Array:
        shape = draw.pick([(), (), (1,), draw.shape(0, 2)])
        dtype = site.dtype(1, [DType.INT64]) if draw.chance(0.8) else site.dtype(1)
        if draw.chance(0.15):
            return np.arange(dim).astype(dtype.numpy)
        if not dim:
            raise Reject("nothing to gather")
        return draw.numpy.integers(-dim if draw.chance(0.3) else 0, dim, shape).astype(dtype.numpy)

    site.data(1, indices, "shape")


@sampler("GatherElements")
def _gather_elements(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    axis = site.attr("axis", lambda: draw.axis(x.ndim))
    shape = [draw.integer(min(1, d), d) for d in x.shape]
    shape[axis] = draw.dim()
    site.data(1, lambda: draw.numpy.integers(0, x.shape[axis], shape).astype(site.dtype(1).numpy), "shape")


@sampler("GatherND")
def _gather_nd(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    depth = draw.integer(1, x.ndim)

    def indices() -> Array:
        columns = [draw.numpy.integers(0, d, draw.numpy.integers(1, 3, 0).tolist() or (2,)) for d in x.shape[:depth]]
        return np.stack(columns, axis=-1).astype(np.int64)

    site.data(1, indices, "shape")


@sampler("Expand")
def _expand(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.broadcast_part(draw.shape())))

    def target() -> Array:
        kind = draw.random.random()
        if kind < 0.25:
            return ints(list(x.shape))
        wide = list(_widened(draw, x.shape))
        return ints([1 if draw.chance(0.2) else d for d in wide])

    site.data(1, target, "shape")


@sampler("Tile")
def _tile(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1, 3)))
    site.data(
        1, lambda: ints([draw.pick((1, 1, 2, 3)) for _ in x.shape] if draw.chance(0.8) else [1] * x.ndim), "shape"
    )


@sampler("Pad")
def _pad(site: Site) -> None:
    draw = site.draw
    mode = site.attr("mode", "constant", "constant", "constant", "reflect", "edge")
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    with_axes = site.is_open(3) and draw.chance(0.3 if site.more else 1.0)
    axes = draw.random.sample(range(x.ndim), draw.integer(1, x.ndim)) if with_axes else list(range(x.ndim))
    if (stated := site[3]) is not None:
        axes = [int(a) % x.ndim for a in stated.ravel()]

    def pads() -> Array:
        most = [2 if mode == "constant" else min(2, max(0, x.shape[a] - 1)) for a in axes]
        zero = draw.chance(0.2)
        return ints([0 if zero else draw.pick(range(m + 1)) for _ in range(2) for m in most])

    site.data(1, pads, "shape")
    dtype = site.dtype(0)
    site.optional(
        2, lambda: np.asarray(draw.pick((0, 0, 1))).astype(dtype.numpy), "param", 0.4 if mode == "constant" else 0.0
    )
    if with_axes:
        site.operand(3, lambda: ints(axes), "shape")


@sampler("Shape")
def _shape(site: Site) -> None:
    draw = site.draw
    site.data(0, lambda: draw.array(site.dtype(0), draw.shape()))
    site.attr("start", 0, 0, 1, -1, -2)
    site.attr("end", None, None, 1, 2, -1)


@sampler("Size")
def _size(site: Site) -> None:
    site.data(0, lambda: site.draw.array(site.dtype(0), site.draw.shape()))


@sampler("ConstantOfShape")
def _constant_of_shape(site: Site) -> None:
    draw = site.draw
    if site.data(0, lambda: ints(list(draw.shape(1, 3))), "shape").ndim != 1:
        raise Reject("no shape")
    from planish.ir import tensor

    dtype = (
        next(iter(site._dtypes.values()), DType.FLOAT)
        if not site.is_open(0)
        else draw.dtype([DType.FLOAT, DType.INT64])
    )
    dtype = site._dtypes.get(formal_types("ConstantOfShape")[1][0].variable, dtype)
    site.attr("value", tensor(np.array([draw.pick((0, 1, 1, 3))]).astype(dtype.numpy)))


@sampler("Range")
def _range(site: Site) -> None:
    draw = site.draw
    dtype = site.dtype(0, [DType.INT64, DType.FLOAT]).numpy
    for i, value in enumerate((draw.pick((0, 0, 1)), draw.integer(2, 5), draw.pick((1, 1, 2)))):
        site.data(i, lambda v=value: np.asarray(v, dtype), "shape")  # type: ignore[misc]


@sampler("Trilu")
def _trilu(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(2)))
    if x.ndim < 2:
        raise Reject("no matrix")
    site.optional(1, lambda: ints(draw.pick((0, 0, 1, -1))), "shape")
    site.attr("upper", 0, 1)


@sampler("CumSum")
def _cum_sum(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    site.data(1, lambda: ints(draw.axis(x.ndim)), "shape")
    site.attr("exclusive", 0, 1)
    site.attr("reverse", 0, 1)


@sampler("DepthToSpace", "SpaceToDepth")
def _depth_to_space(site: Site) -> None:
    draw = site.draw
    size: int = site.required_attr("blocksize", 1, 2, 2)
    wide = site.op == "SpaceToDepth"

    def blocks() -> Array:
        n, c, h, w = (draw.integer(1, 2) for _ in range(4))
        return draw.array(site.dtype(0), (n, c, h * size, w * size) if wide else (n, c * size * size, h, w))

    site.data(0, blocks)
    if not wide:
        site.attr("mode", "DCR", "CRD")


@sampler("OneHot")
def _one_hot(site: Site) -> None:
    draw = site.draw
    x = site.data(
        0, lambda: draw.numpy.integers(0, 3, draw.shape(0, 3)).astype(site.dtype(0, [DType.INT64]).numpy), "data"
    )
    site.data(1, lambda: np.asarray(4).astype(site.dtype(1, [DType.INT64]).numpy), "shape")
    site.data(2, lambda: np.array([0, 1]).astype(site.dtype(2, [DType.FLOAT, DType.INT64]).numpy), "param")
    site.attr("axis", -1, 0, x.ndim)


@sampler("ArgMax", "ArgMin")
def _arg(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    axis = site.attr("axis", lambda: draw.axis(x.ndim))
    if not x.shape[axis]:
        raise Reject("nothing to compare")
    site.attr("keepdims", 0, 1)


@sampler("TopK")
def _top_k(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    axis = site.attr("axis", lambda: draw.axis(x.ndim))
    site.data(1, lambda: ints([draw.integer(min(1, x.shape[axis]), x.shape[axis])]), "shape")
    site.attr("largest", 0, 1)
    site.outputs = 2
