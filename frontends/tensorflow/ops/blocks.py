"""Blocks: spatial dimensions that become channels or a batch, and back; and dilated convolutions written so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ....ir.dims import Dim
from ....ir.graph import Node, Value
from ....ir.infer.engine import content_of, scalar_content
from ...exact import is_number
from ..translate import Operation, Translator, rule
from ..vectors import (
    Number,
    Range,
    cut,
    joined,
    known,
    minus,
    over,
    rank_of,
    reshaped,
    size,
    times,
)
from ..windows import first, last
from .shapes import padded, pairs_of

__all__: list[str] = []

Pairs = Sequence[tuple[Number, Number]]


@rule("SpaceToDepth")
def _space_to_depth(t: Translator, o: Operation, x: Value) -> Any:
    return last(t, o, t.op.SpaceToDepth(first(t, o, x), blocksize=int(o.attr("block_size"))))


@rule("DepthToSpace")
def _depth_to_space(t: Translator, o: Operation, x: Value) -> Any:
    return last(t, o, t.op.DepthToSpace(first(t, o, x), blocksize=int(o.attr("block_size")), mode="DCR"))


@rule("SpaceToBatchND", "SpaceToBatch")
def _space_to_batch(t: Translator, o: Operation, x: Value, *operands: Value) -> Any:
    block, pairs = _blocks(t, o, operands)
    return _with_channels_first(t, x, block, lambda value, start: _divided(t, value, start, block, pairs))


@rule("BatchToSpaceND", "BatchToSpace")
def _batch_to_space(t: Translator, o: Operation, x: Value, *operands: Value) -> Any:
    block, pairs = _blocks(t, o, operands)
    dilated = _dilated(t, x, block, pairs)
    if dilated is not None:
        return t.layouts.last(dilated)
    return _with_channels_first(t, x, block, lambda value, start: _united(t, value, start, block, pairs))


def _blocks(t: Translator, o: Operation, operands: Sequence[Value]) -> tuple[Sequence[int], Pairs]:
    """The sizes of a block, and what is padded or cropped around each dimension that has one."""
    if len(operands) == 2:
        return known(t, operands[0], "the shape of a block"), pairs_of(t, operands[1])
    return [int(o.attr("block_size"))] * 2, pairs_of(t, operands[0])


def _with_channels_first(
    t: Translator, x: Value, block: Sequence[int], compute: Callable[[Value, int], Value]
) -> Value:
    """What ``compute`` makes of ``x`` and of the first dimension with blocks.

    That is with channels first if these are all spatial dimensions: a convolution is what is mostly between.
    """
    if len(block) == rank_of(x) - 2:
        return t.layouts.last(compute(t.layouts.first(x), 2))
    return compute(x, 1)


def _divided(t: Translator, x: Value, start: int, block: Sequence[int], pairs: Pairs) -> Value:
    """The batch of every block's first elements, that of its second ones, and so on."""
    rank, n = rank_of(x), len(block)
    x = padded(t, x, [(0, 0)] * start + list(pairs) + [(0, 0)] * (rank - start - n))
    batch, *rest = (size(t, x, a) for a in range(rank))
    rest[start - 1 : start - 1 + n] = [over(t, s, b) for s, b in zip(rest[start - 1 :], block, strict=False)]
    split: list[Number] = [batch, *rest]
    for i, b in reversed(list(enumerate(block))):
        split.insert(start + i + 1, b)
    wide = reshaped(t, x, joined(t, split))
    inner = [start + 2 * i + 1 for i in range(n)]
    moved = t.transpose(wide, [*inner, *(a for a in range(rank + n) if a not in inner)])
    for b in block:
        batch = times(t, batch, b)
    return reshaped(t, moved, joined(t, [batch, *rest]))


def _united(t: Translator, x: Value, start: int, block: Sequence[int], pairs: Pairs) -> Value:
    """The opposite of `_divided`."""
    rank, n = rank_of(x), len(block)
    batch, *rest = (size(t, x, a) for a in range(rank))
    for b in block:
        batch = over(t, batch, b)
    wide = reshaped(t, x, joined(t, [*block, batch, *rest]))
    order = [n]
    for axis in range(1, rank):
        order += [n + axis, axis - start] if start <= axis < start + n else [n + axis]
    rest[start - 1 : start - 1 + n] = [times(t, s, b) for s, b in zip(rest[start - 1 :], block, strict=False)]
    whole = reshaped(t, t.transpose(wide, order), joined(t, [batch, *rest]))
    return cut(
        t, whole, {start + i: Range(low, minus(t, rest[start - 1 + i], high)) for i, (low, high) in enumerate(pairs)}
    )


# dilated convolutions: TensorFlow divides the image, convolves, and unites the parts


def _dilated(t: Translator, x: Value, block: Sequence[int], crops: Pairs) -> Value | None:
    """One convolution, where ``x`` is a convolution of an image that was divided into blocks."""
    found = t.layouts.kept(x)
    conv = found.producer if found is not None else None
    if conv is None or conv.op != "Conv" or len(block) != rank_of(x) - 2 or not _is_plain(conv):
        return None
    divided = _source(t, conv.given(0), block)
    if divided is None:
        return None
    source, pads = divided
    crop = [scalar_content(c) if isinstance(c, Value) else c for pair in crops for c in pair]
    around = [None if c is None else p - c for p, c in zip(pads, crop, strict=True)]
    if not all(isinstance(w, int) and w >= 0 for w in around):
        return None
    attrs = {**conv.attrs, "dilations": list(block), "pads": [*around[::2], *around[1::2]], "strides": [1] * len(block)}
    attrs.pop("auto_pad", None)
    result: Value = t.op.Conv(source, *conv.operands[1:], **attrs)
    return result


def _is_plain(conv: Node) -> bool:
    """Whether a convolution visits all places, has no dilations and pads nothing."""
    numbers = [*conv.attrs.get("strides", ()), *conv.attrs.get("dilations", ())]
    is_valid = conv.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return all(n == 1 for n in numbers) and is_valid and not any(conv.attrs.get("pads", ()))


def _source(t: Translator, x: Value, block: Sequence[int]) -> tuple[Value, Sequence[Dim]] | None:
    """What `_divided` divided, with channels first, and what it padded before and after each spatial dimension."""
    n = len(block)
    flat = x.producer
    moved = flat.given(0).producer if flat is not None and flat.op == "Reshape" else None
    wide = moved.given(0).producer if moved is not None and moved.op == "Transpose" else None
    inner = [3 + 2 * i for i in range(n)]
    order = (*inner, *(a for a in range(2 + 2 * n) if a not in inner))
    if moved is None or wide is None or wide.op != "Reshape" or tuple(moved.attrs["perm"]) != order:
        return None
    shape, source = wide.result.shape or (), wide.given(0)
    if [shape[a] for a in inner] != list(block):
        return None
    pad = source.producer
    if pad is None or pad.op != "Pad" or not _pads_zeros(pad):
        return source, [0] * (2 * n)
    widths = content_of(pad.given(1))
    if widths is None or any(w != 0 for w in (*widths[:2], *widths[n + 2 : n + 4])):
        return None
    return pad.given(0), [widths[2 + i + half] for i in range(n) for half in (0, n + 2)]


def _pads_zeros(pad: Node) -> bool:
    number = pad.operand(2)
    return pad.attrs.get("mode", "constant") == "constant" and (number is None or is_number(number, 0))
