"""Lists of tensors: TensorArray, whichever operations spell it.

TensorFlow's lists are values: writing to one gives another. So a list is a Python object here, which knows as much of
what is in it as can be known: one tensor of all elements, the elements one by one, or nothing yet. Nodes are made when
an element is read. In the body of a loop, see `planish.frontends.tensorflow.ops.loops`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....ir.dims import Dim
from ....ir.graph import Value
from ....ir.infer import scalar_content
from ....ir.infer.engine import content_of
from ....ir.types import DType
from ...emit import SMALLEST, Refused
from ..translate import Operation, Translator, dtype_of, rule

__all__ = [
    "Begun",
    "Blank",
    "Element",
    "Items",
    "Stacked",
    "TensorList",
    "can_compute",
    "length_of",
    "reverse",
    "with_more",
]

Element = tuple[Dim | None, ...] | None  # the sizes of elements as far as they are known; None: not even how many
_ONE_BY_ONE = 256  # elements of a list that may be kept one by one


class TensorList:
    """A list: what is done to it gives another one.

    Attributes:
        dtype: the element type.
        element: the sizes of its elements, as far as TensorFlow knows them.
    """

    dtype: DType
    element: Element

    def length(self, t: Translator) -> Value:
        """The number of elements, as an int64 number."""
        raise NotImplementedError

    def stacked(self, t: Translator) -> Value:
        """All elements in one tensor, along a new first dimension."""
        raise NotImplementedError

    def head(self, t: Translator, count: int) -> Value:
        """Its first elements in one tensor."""
        return t.op.Slice(self.stacked(t), t.integers([0]), t.integers([count]), t.integers([0]))

    def get(self, t: Translator, index: Value) -> Value:
        """One element."""
        return t.op.Gather(self.stacked(t), index, axis=0)

    def put(self, t: Translator, index: Value, item: Value, grows: bool) -> TensorList:
        """With another element at ``index``; one that ``grows`` is made longer, if it is too short for that."""
        return Stacked(self.dtype, self.element, self.stacked(t)).put(t, index, item, grows)

    def push(self, t: Translator, item: Value) -> TensorList:
        """With another element at the end."""
        return Stacked(self.dtype, self.element, t.op.Concat(self.stacked(t), t.unsqueeze(item, [0]), axis=0))

    def pop(self, t: Translator) -> tuple[TensorList, Value]:
        """Without its last element, and that."""
        every = self.stacked(t)
        rest = t.op.Slice(every, t.integers([0]), t.integers([-1]), t.integers([0]))
        return Stacked(self.dtype, self.element, rest), t.op.Gather(every, t.scalar(-1, DType.INT64), axis=0)


@dataclass(eq=False)
class Blank(TensorList):
    """A list in which nothing has been written yet: all elements are zeros.

    Attributes:
        count: the number of elements.
    """

    dtype: DType
    element: Element
    count: Value

    def length(self, t: Translator) -> Value:
        return self.count

    def stacked(self, t: Translator) -> Value:
        return self.filled(t, self.element)

    def filled(self, t: Translator, element: Element) -> Value:
        """Zeros for elements of the sizes ``element``, as far as TensorFlow does not know them."""
        sizes = _merged(self.element, element)
        known = [d for d in sizes or () if d is not None]
        if sizes is None or len(known) != len(sizes) or not all(can_compute(d) for d in known):
            raise Refused(
                "the sizes of the elements of this TensorArray are not known when it is made: "
                "give it an element_shape, or write all elements before one is read"
            )
        shape = t.op.Concat(t.reshape(self.count, (1,)), t.vector(known), axis=0) if known else self.count
        shape = t.reshape(shape, (1 + len(known),))
        length = scalar_content(self.count)
        zeros = t.op.Expand(t.scalar(0, self.dtype), shape)
        return zeros if length is None else t.typed(zeros, (length, *known))

    def put(self, t: Translator, index: Value, item: Value, grows: bool) -> TensorList:
        where, length = scalar_content(index), scalar_content(self.count)
        if isinstance(where, int) and isinstance(length, int) and max(where, length) <= _ONE_BY_ONE:
            return Items(self.dtype, self.element, (None,) * length).put(t, index, item, grows)
        if where == 0 and not grows:
            return Begun(self.dtype, self.element, (item,), self.count)
        return Stacked(self.dtype, self.element, self.filled(t, item.shape)).put(t, index, item, grows)

    def push(self, t: Translator, item: Value) -> TensorList:
        length = scalar_content(self.count)
        if isinstance(length, int) and length < _ONE_BY_ONE:
            return Items(self.dtype, self.element, (None,) * length).push(t, item)
        return Stacked(self.dtype, self.element, self.filled(t, item.shape)).push(t, item)


@dataclass(eq=False)
class Items(TensorList):
    """A list whose elements are known one by one, and may differ in their sizes.

    Attributes:
        items: the elements; None where nothing was written.
    """

    dtype: DType
    element: Element
    items: tuple[Value | None, ...]

    def length(self, t: Translator) -> Value:
        return t.scalar(len(self.items), DType.INT64)

    def stacked(self, t: Translator) -> Value:
        if not self.items:
            return Blank(self.dtype, self.element, self.length(t)).stacked(t)
        rows = [t.unsqueeze(self._written(t, item), [0]) for item in self.items]
        if len({row.rank for row in rows}) > 1:
            raise Refused("the elements of this TensorArray differ in their number of dimensions")
        return rows[0] if len(rows) == 1 else t.op.Concat(*rows, axis=0)

    def _written(self, t: Translator, item: Value | None) -> Value:
        if item is not None:
            return item
        like = next((other.shape for other in self.items if other is not None), None)
        return t.squeeze(Blank(self.dtype, self.element, t.scalar(1, DType.INT64)).filled(t, like), [0])

    def get(self, t: Translator, index: Value) -> Value:
        where = scalar_content(index)
        if isinstance(where, int) and 0 <= where < len(self.items):
            return self._written(t, self.items[where])
        return super().get(t, index)

    def put(self, t: Translator, index: Value, item: Value, grows: bool) -> TensorList:
        where = scalar_content(index)
        if not isinstance(where, int) or not 0 <= where < _ONE_BY_ONE:
            return super().put(t, index, item, grows)
        items = list(self.items)
        if where >= len(items):
            if not grows:
                raise Refused(f"index {where} is out of the range of a TensorArray of {len(items)}")
            items += [None] * (where + 1 - len(items))
        items[where] = item
        return Items(self.dtype, self.element, tuple(items))

    def push(self, t: Translator, item: Value) -> TensorList:
        return Items(self.dtype, self.element, (*self.items, item))

    def pop(self, t: Translator) -> tuple[TensorList, Value]:
        if not self.items:
            raise Refused("it takes an element from an empty list")
        return Items(self.dtype, self.element, self.items[:-1]), self._written(t, self.items[-1])


@dataclass(eq=False)
class Begun(TensorList):
    """A list of any length, whose first elements are known one by one; behind them are zeros.

    Attributes:
        items: the first elements.
        count: the number of all.
    """

    dtype: DType
    element: Element
    items: tuple[Value, ...]
    count: Value

    def length(self, t: Translator) -> Value:
        return self.count

    def head(self, t: Translator, count: int) -> Value:
        if count > len(self.items):
            return super().head(t, count)
        return Items(self.dtype, self.element, self.items[:count]).stacked(t)

    def stacked(self, t: Translator) -> Value:
        known = Items(self.dtype, self.element, self.items).stacked(t)
        return with_more(t, known, t.op.Sub(self.count, t.scalar(len(self.items), DType.INT64)))

    def get(self, t: Translator, index: Value) -> Value:
        where = scalar_content(index)
        is_known = isinstance(where, int) and 0 <= where < len(self.items)
        return self.items[where] if is_known else super().get(t, index)  # type: ignore[index]

    def put(self, t: Translator, index: Value, item: Value, grows: bool) -> TensorList:
        where = scalar_content(index)
        if not isinstance(where, int) or not 0 <= where <= len(self.items) or grows:
            return super().put(t, index, item, grows)
        return Begun(self.dtype, self.element, (*self.items[:where], item, *self.items[where + 1 :]), self.count)


@dataclass(eq=False)
class Stacked(TensorList):
    """A list whose elements are the rows of a tensor.

    Attributes:
        value: the tensor.
    """

    dtype: DType
    element: Element
    value: Value

    def length(self, t: Translator) -> Value:
        if self.value.shape and isinstance(self.value.shape[0], int):
            return t.scalar(self.value.shape[0], DType.INT64)
        return t.squeeze(t.op.Shape(self.value, start=0, end=1), [0])

    def stacked(self, t: Translator) -> Value:
        return self.value

    def put(self, t: Translator, index: Value, item: Value, grows: bool) -> TensorList:
        value, row = self.value, t.unsqueeze(item, [0])
        if length_of(self.value) == 1 and not grows:
            return Stacked(self.dtype, self.element, row)
        where = t.cast(index, DType.INT64)
        if grows:
            missing = t.op.Sub(t.op.Add(where, t.scalar(1, DType.INT64)), self.length(t))
            value = with_more(t, value, missing)
        value = t.op.ScatterND(value, t.reshape(where, (1, 1)), row)
        return Stacked(self.dtype, self.element, value)


def length_of(value: Value) -> Dim | None:
    """The first size of a tensor, if its rank is known."""
    return value.shape[0] if value.shape else None


def with_more(t: Translator, value: Value, missing: Value) -> Value:
    """``value`` with ``missing`` rows of zeros behind it: none, if that is no positive number."""
    known = scalar_content(missing)
    if isinstance(known, int) and known <= 0:
        return value
    amount = t.op.Max(missing, t.scalar(0, DType.INT64))
    pads = t.op.Concat(t.integers([0]), t.reshape(amount, (1,)), axis=0)
    return t.op.Pad(value, pads, t.scalar(0, value.dtype), t.integers([0]))


def reverse(t: Translator, value: Value) -> Value:
    """``value`` with its rows in reverse order."""
    return t.op.Slice(value, t.integers([-1]), t.integers([SMALLEST]), t.integers([0]), t.integers([-1]))


def can_compute(dim: Dim) -> bool:
    """Whether a size follows from those of the inputs."""
    return "?" not in str(dim)


def _merged(a: Element, b: Element) -> Element:
    """What two descriptions of elements say together."""
    if a is None or b is None or len(a) != len(b):
        return b if a is None else a
    return tuple(y if x is None else x for x, y in zip(a, b, strict=True))


def _element(t: Translator, shape: Value) -> Element:
    """The sizes that an operand ``element_shape`` states: -1 is an open one."""
    elements = content_of(shape)
    if not shape.rank:
        return None
    if elements is None:
        length = length_of(shape)
        return (None,) * length if isinstance(length, int) else None
    return tuple(None if (isinstance(e, int) and e < 0) or not can_compute(e) else e for e in elements)


# operations


@rule("TensorListReserve")
def _reserve(t: Translator, o: Operation, shape: Value, count: Value) -> Any:
    return Blank(dtype_of(o.attr("element_dtype")), _element(t, shape), t.cast(count, DType.INT64))


@rule("EmptyTensorList")
def _empty(t: Translator, o: Operation, shape: Value, most: Value) -> Any:
    return Items(dtype_of(o.attr("element_dtype")), _element(t, shape), ())


@rule("TensorListFromTensor")
def _from_tensor(t: Translator, o: Operation, x: Value, shape: Value) -> Any:
    return Stacked(x.dtype, _merged(_element(t, shape), x.shape and x.shape[1:]), x)


@rule("TensorListStack")
def _stack(t: Translator, o: Operation, x: TensorList, shape: Value) -> Any:
    return _with(t, x, shape).stacked(t)


def _with(t: Translator, x: TensorList, shape: Value) -> TensorList:
    """A list of which an operation says more."""
    element = _merged(x.element, _element(t, shape))
    if isinstance(x, Blank):
        return Blank(x.dtype, element, x.count)
    return Items(x.dtype, element, x.items) if isinstance(x, Items) else x


@rule("TensorListGetItem")
def _get(t: Translator, o: Operation, x: TensorList, index: Value, shape: Value) -> Any:
    return _with(t, x, shape).get(t, index)


@rule("TensorListSetItem")
def _put(t: Translator, o: Operation, x: TensorList, index: Value, item: Value) -> Any:
    return x.put(t, index, item, bool(o.attr("resize_if_index_out_of_bounds", False)))


@rule("TensorListPushBack")
def _push(t: Translator, o: Operation, x: TensorList, item: Value) -> Any:
    return x.push(t, item)


@rule("TensorListPopBack")
def _pop(t: Translator, o: Operation, x: TensorList, shape: Value) -> Any:
    return _with(t, x, shape).pop(t)


@rule("TensorListLength")
def _length(t: Translator, o: Operation, x: TensorList) -> Any:
    return t.cast(x.length(t), o.out.dtype)


@rule("TensorListElementShape")
def _element_shape(t: Translator, o: Operation, x: TensorList) -> Any:
    if x.element is None:
        return t.scalar(-1, o.out.dtype)
    return t.cast(t.vector([-1 if d is None else d for d in x.element]), o.out.dtype)


@rule("TensorListResize")
def _resize(t: Translator, o: Operation, x: TensorList, size: Value) -> Any:
    size = t.cast(size, DType.INT64)
    if isinstance(x, Blank):
        return Blank(x.dtype, x.element, size)
    known = scalar_content(size)
    if isinstance(x, Items) and isinstance(known, int) and known <= _ONE_BY_ONE:
        return Items(x.dtype, x.element, x.items[:known] + (None,) * (known - len(x.items)))
    value = with_more(t, x.stacked(t), t.op.Sub(size, x.length(t)))
    return Stacked(x.dtype, x.element, t.op.Slice(value, t.integers([0]), t.reshape(size, (1,)), t.integers([0])))


@rule("TensorListGather")
def _gather(t: Translator, o: Operation, x: TensorList, indices: Value, shape: Value) -> Any:
    return t.op.Gather(_with(t, x, shape).stacked(t), indices, axis=0)


@rule("TensorListScatter", "TensorListScatterV2")
def _scatter(t: Translator, o: Operation, x: Value, indices: Value, shape: Value, count: Value | None = None) -> Any:
    """Rows of a tensor to places of a new list, which is as long as the last one wants it."""
    element = _merged(_element(t, shape), x.shape and x.shape[1:])
    most = _behind(t, indices)
    if count is not None:
        count = t.cast(count, DType.INT64)
        known = scalar_content(count)
        most = count if isinstance(known, int) and known >= 0 else t.op.Max(count, most)
    return _scattered(t, Blank(x.dtype, element, most), x, indices)


def _behind(t: Translator, indices: Value) -> Value:
    """The number of elements that a list with ``indices`` has."""
    return t.op.Add(t.cast(t.op.ReduceMax(indices, keepdims=0), DType.INT64), t.scalar(1, DType.INT64))


@rule("TensorListScatterIntoExistingList")
def _scatter_into(t: Translator, o: Operation, x: TensorList, rows: Value, indices: Value) -> Any:
    return _scattered(t, x, rows, indices)


def _scattered(t: Translator, x: TensorList, rows: Value, indices: Value) -> TensorList:
    known, length = t.known(indices), scalar_content(x.length(t))
    element = _merged(x.element, rows.shape and rows.shape[1:])
    if isinstance(length, int) and known == tuple(range(length)):
        return Stacked(x.dtype, element, rows)
    value = x.filled(t, element) if isinstance(x, Blank) else x.stacked(t)
    return Stacked(x.dtype, element, t.op.ScatterND(value, t.unsqueeze(t.cast(indices, DType.INT64), [1]), rows))


@rule("TensorListConcat", "TensorListConcatV2")
def _concat(t: Translator, o: Operation, x: TensorList, *rest: Value) -> Any:
    """Its elements along their first dimension, and their first sizes."""
    if isinstance(x, Items) and x.items and None not in x.items:
        items = [item for item in x.items if item is not None]
        lengths = [t.op.Shape(item, start=0, end=1) for item in items]
        return tuple(v[0] if len(v) == 1 else t.op.Concat(*v, axis=0) for v in (items, lengths))
    value = x.stacked(t)
    if not value.shape or len(value.shape) < 2:
        raise Refused("its elements have no dimension along which they can be joined")
    size = t.op.Shape(value, start=1, end=2)
    joined = t.op.Reshape(value, t.op.Concat(t.integers([-1]), t.op.Shape(value, start=2), axis=0))
    return joined, t.op.Expand(size, t.reshape(x.length(t), (1,)))


@rule("TensorListSplit")
def _split(t: Translator, o: Operation, x: Value, shape: Value, lengths: Value) -> Any:
    return _split_into(t, x, lengths, _element(t, shape))


def _split_into(t: Translator, x: Value, lengths: Value, element: Element) -> TensorList:
    known = t.known(lengths)
    if known is None:
        raise Refused("the lengths of its pieces are known only when it runs")
    if not known:
        return Items(x.dtype, element, ())
    parts = (x,) if len(known) == 1 else t.op.Split(x, t.integers(known), axis=0, outputs=len(known))
    return Items(x.dtype, element, tuple(parts))


# operations of TensorArray before there were lists: the flow of control is what carries the contents


@rule("TensorArrayV3")
def _array(t: Translator, o: Operation, size: Value) -> Any:
    shape = o.attr("element_shape")
    element = None if shape is None or shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)
    made = Blank(dtype_of(o.attr("dtype")), element, t.cast(size, DType.INT64))
    return _Handle(bool(o.attr("dynamic_size"))), made


@dataclass(frozen=True)
class _Handle:
    """What stands for the array itself: only whether it grows."""

    grows: bool


@rule("TensorArrayWriteV3")
def _array_write(t: Translator, o: Operation, handle: _Handle, index: Value, item: Value, flow: TensorList) -> Any:
    return flow.put(t, index, item, handle.grows)


@rule("TensorArrayReadV3")
def _array_read(t: Translator, o: Operation, handle: _Handle, index: Value, flow: TensorList) -> Any:
    return flow.get(t, index)


@rule("TensorArrayGatherV3")
def _array_gather(t: Translator, o: Operation, handle: _Handle, indices: Value, flow: TensorList) -> Any:
    known, length = t.known(indices), scalar_content(flow.length(t))
    if isinstance(length, int) and known == tuple(range(length)):
        return flow.stacked(t)
    return t.op.Gather(flow.stacked(t), indices, axis=0)


@rule("TensorArrayScatterV3")
def _array_scatter(t: Translator, o: Operation, handle: _Handle, indices: Value, rows: Value, flow: TensorList) -> Any:
    if handle.grows:
        last = _behind(t, indices)
        longer = t.op.Max(last, flow.length(t))
        if isinstance(flow, Blank):
            flow = Blank(flow.dtype, flow.element, longer)
        else:
            value = with_more(t, flow.stacked(t), t.op.Sub(longer, flow.length(t)))
            flow = Stacked(flow.dtype, flow.element, value)
    return _scattered(t, flow, rows, indices)


@rule("TensorArraySizeV3")
def _array_size(t: Translator, o: Operation, handle: _Handle, flow: TensorList) -> Any:
    return t.cast(flow.length(t), o.out.dtype)


@rule("TensorArrayConcatV3")
def _array_concat(t: Translator, o: Operation, handle: _Handle, flow: TensorList) -> Any:
    return _concat(t, o, flow)


@rule("TensorArraySplitV3")
def _array_split(t: Translator, o: Operation, handle: _Handle, x: Value, lengths: Value, flow: TensorList) -> Any:
    return _split_into(t, x, lengths, flow.element)
