"""Samplers of products, convolutions, poolings, normalizations, reductions and quantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from planish.ir import DType

from .draw import Array, Draw, Reject
from .samplers import ints, sampler
from .site import Site

__all__: list[str] = []


# products


@sampler("MatMul", "MatMulInteger")
def _mat_mul(site: Site) -> None:
    draw = site.draw
    a, b = site[0], site[1]
    if a is None and b is None:
        a = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1 if draw.chance(0.15) else 2)))
    if a is not None:
        site.data(1, lambda: draw.array(site.dtype(1), _right_of(draw, a.shape)), "weight")
    else:
        assert b is not None
        site.data(0, lambda: draw.array(site.dtype(0), _left_of(draw, b.shape)), "data")
    left, right = site.data(0, lambda: ints(0)), site.data(1, lambda: ints(0))
    if left.ndim == 0 or right.ndim == 0 or left.shape[-1] != right.shape[-2 if right.ndim > 1 else 0]:
        raise Reject("shapes do not match")
    if site.op == "MatMulInteger" and site.more:
        site.optional(2, lambda: np.asarray(draw.integer(0, 3)).astype(left.dtype), "param")
        site.optional(3, lambda: np.asarray(draw.integer(0, 3)).astype(right.dtype), "param")


def _right_of(draw: Draw, left: Sequence[int]) -> tuple[int, ...]:
    if not left:
        raise Reject("a scalar has no product")
    inner = left[-1]
    if draw.chance(0.1):
        return (inner,)
    batch = () if draw.chance(0.5) else draw.broadcast_part(left[:-2])
    return (*batch, inner, draw.dim())


def _left_of(draw: Draw, right: Sequence[int]) -> tuple[int, ...]:
    if not right:
        raise Reject("a scalar has no product")
    inner = right[-2 if len(right) > 1 else 0]
    if draw.chance(0.1):
        return (inner,)
    return (*(draw.shape(0, 1) if len(right) <= 2 else draw.broadcast_part(right[:-2])), draw.dim(), inner)


@sampler("Gemm")
def _gemm(site: Site) -> None:
    draw = site.draw
    flip_a, flip_b = site.attr("transA", 0, 1) or 0, site.attr("transB", 0, 1) or 0
    m, k, n = draw.dim(), draw.dim(), draw.dim()
    if (a := site[0]) is not None:
        m, k = (a.shape[1], a.shape[0]) if flip_a else (a.shape[0], a.shape[1])
    if (b := site[1]) is not None:
        k, n = (b.shape[1], b.shape[0]) if flip_b else (b.shape[0], b.shape[1])
    a = site.data(0, lambda: draw.array(site.dtype(0), (k, m) if flip_a else (m, k)))
    b = site.data(1, lambda: draw.array(site.dtype(1), (n, k) if flip_b else (k, n)), "weight")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0 if flip_a else 1] != b.shape[1 if flip_b else 0]:
        raise Reject("shapes do not match")
    c = site.optional(2, lambda: draw.array(site.dtype(2), draw.broadcast_part((m, n))), "weight", 0.7)
    if c is not None and np.broadcast_shapes(c.shape, (m, n)) != (m, n):
        raise Reject("the bias does not broadcast")
    floating = site.dtype(0).is_floating
    site.attr("alpha", *((1.0, 0.5, 2.0) if floating else (1.0,)))
    site.attr("beta", *((1.0, 0.5, 2.0) if floating else (1.0,)))


@sampler("Einsum")
def _einsum(site: Site) -> None:
    draw = site.draw
    equation = site.required_attr(
        "equation", "ij,jk->ik", "bij,bjk->bik", "bhid,bhjd->bhij", "i,j->ij", "ij->ji", "ij,ij->i"
    )
    sizes = {letter: draw.dim() for letter in "bhijkd"}
    for i, term in enumerate(equation.split("->")[0].split(",")):
        site.data(i, lambda t=term: draw.array(site.dtype(0, [DType.FLOAT]), [sizes[c] for c in t]))  # type: ignore[misc]


# convolutions and poolings


def _windows(site: Site, rank: int, kernel: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Draw strides, dilations and pads; returns dilations and the total padding per axis."""
    draw = site.draw
    site.attr("strides", lambda: tuple(draw.pick((1, 1, 2)) for _ in range(rank)))
    dilations = site.attr("dilations", lambda: tuple(draw.pick((1, 1, 1, 2)) for _ in range(rank))) or [1] * rank
    auto_pad = site.attr("auto_pad", "NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID") or "NOTSET"
    if auto_pad != "NOTSET":
        return list(dilations), [0] * rank
    most = [min(1, k - 1) for k in kernel] if kernel is not None else [2] * rank
    pads = site.attr("pads", lambda: tuple(draw.integer(0, m) for _ in range(2) for m in most)) or [0] * (2 * rank)
    return list(dilations), [pads[i] + pads[i + rank] for i in range(rank)]


@sampler("Conv")
def _conv(site: Site) -> None:
    draw = site.draw
    x, w = site[0], site[1]
    rank = (x if x is not None else w).ndim - 2 if x is not None or w is not None else draw.pick((1, 2, 2, 2))  # type: ignore[union-attr]
    if rank < 1:
        raise Reject("no spatial dimension")
    group = site.attr("group", 1, 1, 2) or 1
    channels = x.shape[1] if x is not None else w.shape[1] * group if w is not None else group * draw.integer(1, 2)
    if channels % group or channels == 0:
        raise Reject("channels and groups do not fit")
    stated = site.attr("kernel_shape", None)
    kernel = tuple(stated) if stated else tuple(draw.pick((1, 2, 3)) for _ in range(rank))
    kernel = w.shape[2:] if w is not None else kernel
    outs = group * draw.integer(1, 3)
    w = site.data(1, lambda: draw.array(site.dtype(1), (outs, channels // group, *kernel)), "weight")
    dilations, padding = _windows(site, rank, kernel)
    least = [max(1, d * (k - 1) + 1 - p) for d, k, p in zip(dilations, w.shape[2:], padding, strict=True)]
    x = site.data(
        0, lambda: draw.array(site.dtype(0), (draw.integer(1, 2), channels, *(n + draw.integer(0, 2) for n in least)))
    )
    if x.ndim != w.ndim or any(n < m for n, m in zip(x.shape[2:], least, strict=True)):
        raise Reject("the window is larger than its operand")
    site.optional(2, lambda: draw.array(site.dtype(2), w.shape[:1]), "weight", 0.6)
    if "kernel_shape" not in site.fixed and site.free("kernel_shape") and draw.chance(0.5):
        site.attrs["kernel_shape"] = tuple(w.shape[2:])


@sampler("ConvTranspose")
def _conv_transpose(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), (1, draw.integer(1, 2), draw.integer(1, 3), draw.integer(1, 3))))
    rank = x.ndim - 2
    w = site.data(
        1, lambda: draw.array(site.dtype(1), (x.shape[1], draw.integer(1, 2), *([draw.integer(1, 3)] * rank))), "weight"
    )
    if w.shape[0] != x.shape[1] or w.ndim != x.ndim:
        raise Reject("channels do not fit")
    site.optional(2, lambda: draw.array(site.dtype(2), w.shape[1:2]), "weight", 0.6)
    site.attr("strides", lambda: tuple(draw.pick((1, 1, 2)) for _ in range(rank)))


@sampler("MaxPool", "AveragePool", "LpPool")
def _pool(site: Site) -> None:
    draw = site.draw
    x = site[0]
    rank = x.ndim - 2 if x is not None else draw.pick((1, 2, 2))
    if rank < 1:
        raise Reject("no spatial dimension")
    kernel = site.required_attr("kernel_shape", lambda: tuple(draw.pick((1, 2, 2, 3)) for _ in range(rank)))
    dilations, padding = _windows(site, rank, kernel)
    least = [max(1, d * (k - 1) + 1 - p) for d, k, p in zip(dilations, kernel, padding, strict=True)]
    x = site.data(
        0, lambda: draw.array(site.dtype(0), (1, draw.integer(1, 2), *(n + draw.integer(0, 2) for n in least)))
    )
    if len(kernel) != x.ndim - 2 or any(n < m for n, m in zip(x.shape[2:], least, strict=True)):
        raise Reject("the window is larger than its operand")
    if site.op == "AveragePool":
        site.attr("count_include_pad", 0, 1)
    site.attr("ceil_mode", 0, 0, 0, 1)


@sampler("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "GroupNormalization", "LRN")
def _images(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), (draw.integer(1, 2), 2 * draw.integer(1, 2), *draw.shape(1, 2))))
    if x.ndim < 3:
        raise Reject("no spatial dimension")
    if site.op in ("InstanceNormalization", "GroupNormalization"):
        for i in (1, 2):
            site.data(i, lambda i=i: draw.array(site.dtype(i), x.shape[1:2]), "weight")  # type: ignore[misc]
        site.attr("epsilon", 1e-5, 1e-3)
    if site.op == "GroupNormalization":
        site.required_attr("num_groups", 1, 2)
    if site.op == "LRN":
        site.required_attr("size", 1, 3)


@sampler("BatchNormalization")
def _batch_normalization(site: Site) -> None:
    draw = site.draw
    channels = next((a.shape[0] for i in range(1, 5) if (a := site[i]) is not None), None)

    def data() -> Array:
        n, c, *rest = (draw.dim(), channels or draw.dim(), *draw.shape(0, 2))
        return draw.array(site.dtype(0), (n, c, *rest))

    x = site.data(0, data)
    if x.ndim < 2:
        raise Reject("no channels")
    for i in range(1, 5):
        site.data(i, lambda i=i: draw.array(site.dtype(i), x.shape[1:2], positive=i == 4), "weight")  # type: ignore[misc]
    site.attr("epsilon", 1e-5, 1e-3, 0.1)


@sampler("LayerNormalization", "RMSNormalization")
def _layer_normalization(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0, [DType.FLOAT, DType.FLOAT16, DType.DOUBLE]), draw.shape(1)))
    if not x.ndim:
        raise Reject("no axis")
    axis = site.attr("axis", lambda: draw.axis(x.ndim))
    shape = x.shape[axis:]
    site.data(1, lambda: draw.array(site.dtype(1, [site.dtype(0)]), shape), "weight")
    if site.dtype(1) != site.dtype(0):
        raise Reject("the reference computes in the dtype of the first operand")
    if site.op == "LayerNormalization":
        site.optional(2, lambda: draw.array(site.dtype(2, [site.dtype(0)]), shape), "weight", 0.7)
    site.attr("epsilon", 1e-5, 1e-3, 0.1)


@sampler("LpNormalization")
def _lp_normalization(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(1)))
    if not x.ndim:
        raise Reject("no axis")
    site.attr("axis", lambda: draw.axis(x.ndim))
    site.attr("p", 1, 2)


# reductions


@sampler(
    *(f"Reduce{kind}" for kind in ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"])
)
def _reduce(site: Site) -> None:
    draw = site.draw
    x = site.data(0, lambda: draw.array(site.dtype(0), draw.shape(), positive=site.op == "ReduceLogSum"))

    def axes() -> Array:
        return ints(draw.axes(x.ndim, 0 if draw.chance(0.1) else 1))

    given = site.optional(1, axes, "shape", 0.8)
    site.attr("keepdims", 0, 1)
    noop = site.attr("noop_with_empty_axes", 0, 0, 1)
    if not x.size and (given is None or site.op in ("ReduceMax", "ReduceMin", "ReduceMean")):
        raise Reject("a reduction of nothing")
    if (
        given is not None
        and not given.size
        and noop
        and site.op not in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
    ):
        raise Reject("the reference is not sure what this means")


# quantization


@sampler("QuantizeLinear", "DequantizeLinear")
def _quantize(site: Site) -> None:
    draw = site.draw
    quantize = site.op == "QuantizeLinear"
    narrow = draw.pick((DType.INT8, DType.UINT8))
    x = site.data(0, lambda: draw.array(DType.FLOAT if quantize else narrow, draw.shape(0, 3)))
    per_axis = x.ndim > 0 and draw.chance(0.4)
    axis: int = site.attr("axis", lambda: draw.axis(x.ndim) if x.ndim else 0)
    shape = (x.shape[axis],) if per_axis and -x.ndim <= axis < x.ndim else ()
    site.data(1, lambda: draw.array(DType.FLOAT, shape, positive=True), "weight")
    zero: Any = narrow if quantize else DType.from_numpy(x.dtype)
    site.optional(2, lambda: draw.array(zero, shape), "weight", 0.7)


@sampler("DynamicQuantizeLinear")
def _dynamic_quantize(site: Site) -> None:
    site.data(0, lambda: site.draw.array(DType.FLOAT, site.draw.shape(1)))
    site.outputs = 3
