"""Windows that slide over the spatial dimensions of an operand: where convolutions and pooling look.

Definitions: the ONNX operators Conv, AveragePool and MaxPool, opset 22.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from .lowering import Call

__all__ = ["Window", "pad_spatial", "steps_of", "window_of"]

Dim = Any  # an integer or a symbolic dimension of jax.export


@dataclass(frozen=True)
class Window:
    """A window and the positions that it takes; every field has an element for each spatial dimension.

    Attributes:
        sizes: the number of elements that it covers.
        strides: the steps between positions.
        dilations: the steps between the elements that it covers.
        pads: how many elements are put before and after the operand; a negative number cuts elements off.
        excess: how many of the elements that are put after it are no padding, but only fill the last window up.
        counts: the number of positions.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[Dim, Dim], ...]
    excess: tuple[Dim, ...]
    counts: tuple[Dim, ...]

    @property
    def is_padded(self) -> bool:
        """Whether it covers anything but elements of the operand."""
        return any(not isinstance(p, int) or p > 0 for pair in self.pads for p in pair)


def window_of(call: Call, spatial: Sequence[Dim], sizes: Sequence[int], *, ceil: bool = False) -> Window:
    """The window that the attributes ``auto_pad``, ``dilations``, ``pads`` and ``strides`` of a node state.

    Args:
        call: the node.
        spatial: the spatial dimensions of its operand.
        sizes: of the window.
        ceil: whether a last window may stick out where no padding is; only explicit padding knows that.
    """
    rank = len(spatial)
    strides, dilations, given = steps_of(call, sizes, rank)
    extents = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    auto_pad = call["auto_pad"] or "NOTSET"
    pads: list[tuple[Dim, Dim]] = []
    excess, counts = [], []
    for i, (n, extent, stride) in enumerate(zip(spatial, extents, strides, strict=True)):
        surplus: Dim = 0
        before, after = (0, 0) if auto_pad != "NOTSET" else (given[i], given[rank + i])
        if auto_pad.startswith("SAME"):
            before, after = same_pads(n, extent, stride, upper=auto_pad == "SAME_UPPER")
        elif ceil and auto_pad == "NOTSET":
            surplus = _surplus(n, extent, stride, before, after)
        pads.append((before, after + surplus))
        excess.append(surplus)
        counts.append((n + before + after + surplus - extent) // stride + 1)
    return Window(tuple(sizes), strides, dilations, tuple(pads), tuple(excess), tuple(counts))


def steps_of(call: Call, sizes: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The strides, dilations and pads that a node states for a window of ``sizes`` over ``rank`` dimensions.

    Raises:
        LoweringError: these are not as many as there are dimensions, or not positive.
    """
    strides, dilations = (tuple(call[name] or (1,) * rank) for name in ("strides", "dilations"))
    kernel, pads = tuple(call["kernel_shape"] or sizes), tuple(call["pads"] or (0,) * (2 * rank))
    for name, numbers, count in (
        *(("kernel_shape", kernel, rank), ("strides", strides, rank)),
        *(("dilations", dilations, rank), ("pads", pads, 2 * rank)),
    ):
        if len(numbers) != count:
            raise call.error(f"{name} has {len(numbers)} numbers for {rank} spatial dimensions")
    if kernel != tuple(sizes):
        raise call.error(f"kernel_shape is {list(kernel)}, the filters are {list(sizes)}")
    if min((*strides, *dilations), default=1) < 1:
        raise call.error("strides and dilations must be positive")
    return strides, dilations, pads


def same_pads(n: Dim, extent: int, stride: int, *, upper: bool) -> tuple[Dim, Dim]:
    """The padding with which a window takes ``ceil(n / stride)`` positions; the larger half is after if ``upper``."""
    total = (n - 1) // stride * stride + extent - n
    total = jax.core.max_dim(total, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _surplus(n: Dim, extent: int, stride: int, before: int, after: int) -> Dim:
    """What must follow the padding so that its last elements are covered, by a window that starts before it."""
    steps = (n + before - 1 + min(after + stride - extent, 0)) // stride  # spelled as JAX does in sizes of slices
    return steps * stride + extent - n - before - after


def pad_spatial(x: Any, value: Any, pads: Sequence[tuple[Dim, Dim]], steps: Sequence[int] | None = None) -> Any:
    """``x`` in (N, C, …) with ``value`` around it, and ``steps - 1`` times between its elements."""
    steps = steps or (1,) * len(pads)
    inner = [(before, after, step - 1) for (before, after), step in zip(pads, steps, strict=True)]
    return lax.pad(x, lax.convert_element_type(value, x.dtype), [(0, 0, 0), (0, 0, 0), *inner])
