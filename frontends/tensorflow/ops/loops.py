"""While, which becomes Scan where it goes over the rows of tensors, and else Loop.

What an iteration leaves as it was is not carried. A counter follows from the number of the iteration, and where the
condition only compares counters, the number of iterations is known before. A list that is read at the number of the
iteration is scanned; one that is written there, and only there, is stacked. Everything else is carried: lists as one
tensor.

How a list is used, and which sizes change from an iteration to the next, shows only when the body has been translated.
So it is translated with the best that there may be, and again with less when that does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ....ir.dims import Dim, fresh
from ....ir.graph import Value
from ....ir.infer import scalar_content
from ....ir.types import UNKNOWN, DType, TensorType, Type
from ...emit import Refused
from ..functions import function_graph
from ..translate import Operation, Translator, rule
from .control import appending, building, call, finish, follows_refusal, truth
from .lists import Begun, Blank, Items, Stacked, TensorList, can_compute, length_of, reverse, with_more

__all__: list[str] = []

_LAST = (1 << 63) - 1  # as an end of Slice: all the way
_NUMBER = TensorType(DType.INT64, ())
_TRUTH = TensorType(DType.BOOL, ())
_COMPARISONS = {
    "Less": (1, 0),
    "LessEqual": (1, 1),
    "Greater": (-1, 0),
    "GreaterEqual": (-1, 1),
}  # direction, and 1 more
_MIRRORED = {"Less": "Greater", "LessEqual": "GreaterEqual", "Greater": "Less", "GreaterEqual": "LessEqual"}


@rule("While", "StatelessWhile")
def _while(t: Translator, o: Operation, *operands: Any) -> Any:
    if follows_refusal(operands):
        return [Value() for _ in operands]
    condition, body = (function_graph(o.graph, o.attr(name).name) for name in ("cond", "body"))
    return _Loop(t, condition, body, operands).results()


# lists in the body of a loop


class _Needed(Exception):
    """A list that is carried is used in a way that needs its elements in one tensor."""

    def __init__(self, of: _Before):
        super().__init__("this TensorArray is used outside of its loop")
        self.of = of


class _Before(TensorList):
    """A list as it is before an iteration: nothing is known of it but what may be written to it.

    Attributes:
        written: the type of an element that was written.
        is_counted: whether its length is used: what `length` gives is then no more than a number.
    """

    def __init__(self, like: TensorList):
        self.dtype, self.element = like.dtype, like.element
        self.written: Type = UNKNOWN
        self.is_counted = False

    def length(self, t: Translator) -> Value:
        self.is_counted = True  # so it will be needed, but what is written to it may still be seen
        return t.op.Identity(t.scalar(0, DType.INT64))

    def stacked(self, t: Translator) -> Value:
        raise _Needed(self)

    def put(self, t: Translator, index: Value, item: Value, grows: bool) -> TensorList:
        self.written = item.type
        return _Written(self, index, item)

    def push(self, t: Translator, item: Value) -> TensorList:
        self.written = item.type
        return _Written(self, None, item)


class _Written(TensorList):
    """A list to which one element was written in this iteration: at ``index``, or at its end."""

    def __init__(self, of: _Before, index: Value | None, item: Value):
        self.dtype, self.element = of.dtype, of.element
        self.of, self.index, self.item = of, index, item

    def length(self, t: Translator) -> Value:
        raise _Needed(self.of)

    def stacked(self, t: Translator) -> Value:
        raise _Needed(self.of)

    def get(self, t: Translator, index: Value) -> Value:
        return self.item if index is self.index else super().get(t, index)

    def push(self, t: Translator, item: Value) -> TensorList:
        raise _Needed(self.of)


class _Outside(TensorList):
    """A list that no iteration changes."""

    def __init__(self, attempt: _Attempt, of: TensorList):
        self.dtype, self.element = of.dtype, of.element
        self.attempt, self.of = attempt, of

    def length(self, t: Translator) -> Value:
        return self.of.length(t)

    def stacked(self, t: Translator) -> Value:
        return self.of.stacked(t)

    def get(self, t: Translator, index: Value) -> Value:
        place, of = self.attempt.place(index), self.of
        while isinstance(of, _Outside):
            of = of.of
        row = self.attempt.row(of.value, *place) if place is not None and isinstance(of, Stacked) else None
        return self.of.get(t, index) if row is None else row


# what is known before the body is translated


class _Counter(NamedTuple):
    """A number that every iteration adds ``step`` to."""

    start: Value
    step: int
    dtype: DType

    @property
    def place(self) -> tuple[Dim, int] | None:
        """``start, step``, if the start is known, and the step is 1 or -1."""
        start = scalar_content(self.start)
        return None if start is None or abs(self.step) != 1 else (start, self.step)


def _source(tensor: Any) -> Any:
    """What a tensor is the same as."""
    while tensor.op.type in ("Identity", "StopGradient"):
        tensor = tensor.op.inputs[0]
    return tensor


class _Loop:
    """A While that is being translated.

    Attributes:
        kept: the variables that no iteration changes.
        counters: by variable.
        trips: the number of iterations, if the condition depends on counters only.
        types: what is assumed of the carried tensors.
        in_tensors: the lists that are carried as a tensor, and that tensor before the loop.
        free: sizes that are known to change.
    """

    def __init__(self, t: Translator, condition: Any, body: Any, operands: Sequence[Any]):
        self.t, self.condition, self.body = t, condition, body
        self.kept = {j for j, (a, b) in enumerate(zip(body.inputs, body.outputs, strict=True)) if _source(b) is a}
        self.operands = [self._operand(j, o) for j, o in enumerate(operands)]
        self.counters = {j: c for j in range(len(operands)) if (c := self._counter(j)) is not None}
        self.trips = self._trips()
        self.types: dict[int, Type] = {j: o.type for j, o in enumerate(operands) if isinstance(o, Value)}
        self.in_tensors: dict[int, Value] = {}
        self.free: set[Dim] = set()

    def _operand(self, j: int, operand: Any) -> Any:
        """A list that is only read is made one tensor outside, once."""
        if j in self.kept and isinstance(operand, Items) and len({i and i.shape for i in operand.items}) == 1:
            return Stacked(operand.dtype, operand.element, operand.stacked(self.t))
        return operand

    # the condition

    def _outside(self, graph: Any, tensor: Any) -> Value | None:
        """A tensor of the condition or the body that is the same in all iterations, computed before the loop."""
        given = {p.name: self.operands[j] for j, p in enumerate(graph.inputs) if j in self.kept}
        stack, seen = [tensor], set()
        while stack:
            found = stack.pop()
            if found.name in given or found.name in seen:
                continue
            seen.add(found.name)
            if found.op.type == "Placeholder":
                return None
            stack += found.op.inputs
        result = self.t.inline(graph, given, [tensor])[0]
        return result if isinstance(result, Value) and result.type != UNKNOWN else None

    def _counter(self, j: int) -> _Counter | None:
        start, end = self.operands[j], _source(self.body.outputs[j])
        is_number = isinstance(start, Value) and start.dtype in (DType.INT32, DType.INT64) and not start.rank
        if not is_number or start.rank is None or end.op.type not in ("AddV2", "Add", "Sub"):
            return None
        sides = [_source(side) for side in end.op.inputs]
        sign = -1 if end.op.type == "Sub" else 1
        for i in (0, 1) if sign == 1 else (0,):
            if sides[i] is self.body.inputs[j] and (step := self._outside(self.body, sides[1 - i])) is not None:
                known = scalar_content(step)
                return _Counter(start, sign * known, start.dtype) if isinstance(known, int) and known else None
        return None

    def _trips(self) -> Value | None:
        """The number of iterations: the smallest of those that the parts of the condition allow."""
        limits: dict[tuple[Any, ...], Value] = {}
        stack = [self.condition.outputs[0]]
        while stack:
            part = _source(stack.pop())
            if part.op.type == "LogicalAnd":
                stack += part.op.inputs
                continue
            found = self._limit(part.op)
            if found is None:
                return None
            limits.setdefault(*found)
        values = list(limits.values())
        return values[0] if len(values) == 1 else self.t.op.Min(*values)

    def _limit(self, comparison: Any) -> tuple[tuple[Any, ...], Value] | None:
        """For how many iterations a comparison of a counter with a limit is true, and what that depends on."""
        if comparison.type not in _COMPARISONS:
            return None
        places = {p.name: j for j, p in enumerate(self.condition.inputs)}
        sides = [_source(side) for side in comparison.inputs]
        for i, kind in ((0, comparison.type), (1, _MIRRORED[comparison.type])):
            counter = self.counters.get(places.get(sides[i].name, -1))
            limit = None if counter is None else self._outside(self.condition, sides[1 - i])
            direction, more = _COMPARISONS[kind]
            if counter is not None and limit is not None and counter.step * direction > 0:
                start = scalar_content(counter.start)
                key = (limit, counter.start if start is None else start, counter.step, more)
                return key, self._count(counter, limit, direction, more)
        return None

    def _count(self, counter: _Counter, limit: Value, direction: int, more: int) -> Value:
        t = self.t
        distance, step = t.cast(limit, DType.INT64), abs(counter.step)
        if scalar_content(counter.start) != 0:
            distance = t.op.Sub(distance, t.cast(counter.start, DType.INT64))
        if direction < 0:
            distance = t.op.Neg(distance)
        if more + step - 1:
            distance = t.op.Add(distance, t.scalar(more + step - 1, DType.INT64))
        return t.op.Div(distance, t.scalar(step, DType.INT64)) if step > 1 else distance

    def start(self) -> Value:
        """Whether it begins."""
        return truth(self.t, call(self.t, self.condition, self.operands)[0])

    @cached_property
    def count(self) -> Dim | None:
        """The number of iterations as a size, if it is known."""
        count = scalar_content(self.trips)
        return count if isinstance(count, int) or (count is not None and can_compute(count)) else None

    # the results

    def results(self) -> list[Any]:
        """The variables after the loop."""
        while True:
            attempt = _Attempt(self)
            try:
                return attempt.results()
            except _Needed as needed:
                j = attempt.variable(needed.of)
                if j is None:
                    raise  # it belongs to a loop around this one
                self._carry_in_tensor(j, needed.of)
            except _Changed:
                pass

    def _carry_in_tensor(self, j: int, before: _Before) -> None:
        operand = self.operands[j]
        if isinstance(operand, Blank):
            written = before.written.shape if isinstance(before.written, TensorType) else None
            initial = operand.filled(self.t, written)
        else:
            initial = operand.stacked(self.t)
        self.in_tensors[j], self.types[j] = initial, initial.type

    def agree(self, j: int, found: Type) -> None:
        """Take back what is assumed of a carried tensor, where it is not so after an iteration.

        Raises:
            _Changed: there was something to take back.
            Refused: it has another element type.
        """
        assumed = self.types[j]
        if not isinstance(assumed, TensorType) or not isinstance(found, TensorType) or assumed.dtype is not found.dtype:
            raise Refused(f"a variable of the loop is {assumed} before an iteration, and {found} after it")
        if assumed.shape is None:
            return
        if found.shape is None or len(found.shape) != len(assumed.shape):
            self.types[j] = TensorType(assumed.dtype, None)
            raise _Changed
        stated = self.body.inputs[j].shape
        sizes = stated.as_list() if stated.rank == len(assumed.shape) else [None] * len(assumed.shape)
        dims = list(assumed.shape)
        for axis, (before, after) in enumerate(zip(assumed.shape, found.shape, strict=True)):
            if sizes[axis] is None and before != after and before not in self.free:
                dims[axis] = fresh()
                self.free.add(dims[axis])
        if tuple(dims) != assumed.shape:
            self.types[j] = TensorType(assumed.dtype, tuple(dims))
            raise _Changed


class _Changed(Exception):
    """Something that was assumed of a carried tensor is not so."""


class _Found(NamedTuple):
    """What the node of the loop computes: the carried tensors, and what was stacked."""

    carried: Sequence[Value]
    stacked: Sequence[Value]


class _Attempt:
    """A translation of the body, with what is assumed of the variables now.

    Attributes:
        graph: the body; ``outer`` is the graph around it.
        places: numbers that are ``start + step * number of the iteration``.
        rows: what is scanned, from where and in which direction, and the inputs for its rows.
        initial: the carried tensors before the loop; ``inputs`` and ``ends`` are those before and after an iteration.
        stacks: what every iteration adds to a stack: at its end (1) or in front (-1).
        makes: for each variable that is not kept, what makes its value of the results of the node.
    """

    def __init__(self, loop: _Loop):
        self.loop, self.t = loop, loop.t
        self.outer = loop.t.graph
        self.rows: dict[tuple[Value, int, int], Value] = {}
        self.initial: list[Value] = []
        self.inputs: list[Value] = []
        self.ends: list[Value] = []
        self.stacks: list[tuple[Value, int]] = []
        self.makes: dict[int, Callable[[_Found], Any]] = {}
        self.before: dict[int, Any] = {}

    def variable(self, before: _Before) -> int | None:
        """The variable that is this list before an iteration."""
        return next((j for j, b in self.before.items() if b is before), None)

    def place(self, index: Value) -> tuple[Dim, int] | None:
        """``start, step`` of an index that is ``start + step * number``, with a step of 1 or -1."""
        node = index.producer
        if index in self.places:
            return self.places[index]
        if node is None or node.graph is not self.graph:
            return None
        if node.op in ("Cast", "Identity"):
            return self.place(node.given(0))
        if node.op in ("Add", "Sub"):
            a, b = node.given(0), node.given(1)
            left, right = self.place(a), self.place(b)
            x, y = scalar_content(a), scalar_content(b)
            sign = 1 if node.op == "Add" else -1
            if left is not None and y is not None:
                return left[0] + sign * y, left[1]
            if right is not None and x is not None:
                return x + sign * right[0], sign * right[1]
        return None

    def row(self, stacked: Value, start: Dim, step: int) -> Value | None:
        """The row of a tensor that belongs to an iteration, if they are gone over one after the other, to the last."""
        count, length = self.loop.count, length_of(stacked)
        if count is None or length is None or stacked.shape is None or self.loop.free:
            return None  # a Scan may not change the sizes of what it carries
        first, last = (start, start + count) if step > 0 else (start - count + 1, start + 1)
        if not isinstance(first, int) or first < 0 or last != length:
            return None
        key = (stacked, first, step)
        if key not in self.rows:
            self.rows[key] = self.graph.add_input(TensorType(stacked.dtype, stacked.shape[1:]), "row")
        return self.rows[key]

    def results(self) -> list[Any]:
        """The variables after the loop."""
        t, loop = self.t, self.loop
        refusals = len(t.refusals)
        with building(t, "body") as self.graph:
            self.number = self.graph.add_input(_NUMBER, "number")
            self.going = self.graph.add_input(_TRUTH, "condition")
            self._begin()
            after = self._body()
            goes_on = self.going if loop.trips is not None else truth(t, call(t, loop.condition, after)[0])
            is_refused = len(t.refusals) > refusals
            if not is_refused:
                for j in sorted(self.before, key=lambda j: isinstance(self.before[j], _Before)):
                    self._settle(j, after[j])
            outputs = [] if is_refused else [*self.ends, *(value for value, _ in self.stacks)]
            finish(t, self.graph, outputs if self.rows or is_refused else [goes_on, *outputs])
        if is_refused:
            return [Value() for _ in after]
        found = self._node(len(outputs))
        return [self._result(j, found) for j in range(len(after))]

    # the body

    def _begin(self) -> None:
        """What stands for the variables at the beginning of an iteration."""
        loop = self.loop
        self.places: dict[Value, tuple[Dim, int]] = {self.number: (0, 1)}
        self.kept: dict[int, Any] = {
            j: _Outside(self, o) if isinstance(o := loop.operands[j], TensorList) else o for j in loop.kept
        }
        for j, operand in enumerate(loop.operands):
            if j in loop.kept:
                continue
            counter = loop.counters.get(j)
            if counter is not None and loop.trips is not None:
                self._follow(j, counter)
            elif isinstance(operand, Value) or j in loop.in_tensors:
                value = self._carry(loop.in_tensors.get(j, operand), loop.types[j])
                if counter is not None and (place := counter.place) is not None:
                    self.places[value] = place
                is_list = isinstance(operand, TensorList)
                self.before[j] = Stacked(operand.dtype, operand.element, value) if is_list else value
            elif isinstance(operand, TensorList):
                self.before[j] = _Before(operand)
            else:
                raise Refused(
                    "it goes on with another variable, table or optional value: a graph can carry tensors only"
                )

    def _follow(self, j: int, counter: _Counter) -> None:
        """A counter is not carried: it follows from the number of the iteration, or of all of them."""
        value = self.kept[j] = self._at(counter, self.number)
        if counter.place is not None:
            self.places[value] = counter.place
        self.makes[j] = lambda found: self._at(counter, self._trips())

    def _carry(self, initial: Value, type_: Type) -> Value:
        value = self.graph.add_input(type_, f"carried_{len(self.initial)}")
        self.initial.append(initial)
        self.inputs.append(value)
        return value

    def _at(self, counter: _Counter, number: Value) -> Value:
        """What a counter is in an iteration."""
        t = self.t
        value = number if counter.step == 1 else t.op.Mul(number, t.scalar(counter.step, DType.INT64))
        if scalar_content(counter.start) != 0:
            value = t.op.Add(value, t.cast(counter.start, DType.INT64))
        return t.cast(value, counter.dtype)

    def _trips(self) -> Value:
        assert self.loop.trips is not None
        return self.t.op.Max(self.loop.trips, self.t.scalar(0, DType.INT64))

    def _body(self) -> list[Any]:
        """The variables after an iteration."""
        body = self.loop.body
        every = {**self.kept, **self.before}
        given = {p.name: every[j] for j, p in enumerate(body.inputs)}
        changed = self.t.inline(body, given, [body.outputs[j] for j in self.before])
        return [{**self.kept, **dict(zip(self.before, changed, strict=True))}[j] for j in range(len(body.inputs))]

    # what becomes of the variables

    def _settle(self, j: int, after: Any) -> None:
        """Carry or stack what an iteration leaves of a variable."""
        before, t = self.before[j], self.t
        if isinstance(before, _Before):
            self._settle_list(j, before, after)
            return
        if isinstance(before, TensorList) and isinstance(after, TensorList):
            of, after = before, after.stacked(t)
            self._end(j, after, lambda value: Stacked(of.dtype, of.element, value))
        elif isinstance(after, Value):
            self._end(j, after, lambda value: value)
        else:
            raise Refused("a variable of the loop is a tensor before an iteration, and none after it")

    def _end(self, j: int, value: Value, make: Callable[[Value], Any]) -> None:
        self.loop.agree(j, value.type)
        i = len(self.ends)
        self.ends.append(value)
        self.makes[j] = lambda found: make(found.carried[i])

    def _settle_list(self, j: int, before: _Before, after: Any) -> None:
        operand = self.loop.operands[j]
        if before.is_counted:
            raise _Needed(before)
        if after is before:
            self.makes[j] = lambda found: operand
        elif not isinstance(after, _Written) or after.of is not before:
            raise _Needed(before)
        elif (first := self._first(operand, after.index)) is not None:
            i, (start, step) = len(self.stacks), first
            self.stacks.append((after.item, step))
            self.makes[j] = lambda found: self._joined(operand, start, found.stacked[i])
        elif scalar_content(after.index) == 0 and isinstance(operand, Blank) and scalar_content(operand.count) == 1:
            self._settle_last(j, operand, after.item)
        else:
            raise _Needed(before)

    def _first(self, operand: TensorList, index: Value | None) -> tuple[int | None, int] | None:
        """Where writing begins, and in which direction it goes, if one element is written after the other.

        It begins at None where elements are put at the end.
        """
        if index is None:
            return None, 1
        start, step = self.place(index) or (None, 1)
        if step < 0 and start is not None and self.loop.count is not None:
            is_whole = start == self.loop.count - 1 and scalar_content(operand.length(self.t)) == self.loop.count
            return (0, -1) if is_whole else None
        return (start, 1) if isinstance(start, int) and start >= 0 and step > 0 else None

    def _joined(self, operand: TensorList, start: int | None, stack: Value) -> TensorList:
        """What a list is when the rows of ``stack`` have been written to it from ``start`` on, or at its end."""
        t, count, element = self.t, operand.length(self.t), stack.shape and stack.shape[1:]
        length = scalar_content(count)
        if isinstance(operand, Blank) and (start or (start is None and length != 0)):
            operand = Stacked(operand.dtype, operand.element, operand.filled(t, element))
        if start is None and length != 0:
            stack = t.op.Concat(operand.stacked(t), stack, axis=0)
        elif start:
            stack = t.op.Concat(operand.head(t, start), stack, axis=0)
        written = None if self.loop.count is None or start is None else self.loop.count + start
        if start is not None and length != 0 and (length is None or length != written):
            if isinstance(operand, (Blank, Begun)):
                stack = with_more(t, stack, t.op.Sub(count, t.squeeze(t.op.Shape(stack, start=0, end=1), [0])))
            else:
                ends = t.op.Shape(stack, start=0, end=1), t.integers([_LAST])
                stack = t.op.Concat(stack, t.op.Slice(operand.stacked(t), *ends, t.integers([0])), axis=0)
        return Stacked(operand.dtype, operand.element, stack)

    def _settle_last(self, j: int, operand: Blank, item: Value) -> None:
        """A list of one element, to which every iteration writes: the last of them is what counts."""
        t, count = self.t, self.loop.count
        always = (isinstance(count, int) and count > 0) or operand.element is None or None in operand.element
        same = (i for i, end in enumerate(self.ends) if end is item and (always or _is_zero(self.initial[i])))
        i = next(same, None)  # without an iteration, zeros would be read
        if i is not None:
            self.makes[j] = lambda found: Items(operand.dtype, operand.element, (found.carried[i],))
            return
        with appending(t, self.outer):
            initial = t.squeeze(operand.filled(t, item.shape), [0])
        self.loop.types[j] = initial.type
        self._carry(initial, initial.type)
        self._end(j, item, lambda value: Items(operand.dtype, operand.element, (value,)))

    # the node

    def _node(self, outputs: int) -> _Found:
        t, loop = self.t, self.loop
        if not outputs:
            return _Found((), ())
        ways = [-1 if step < 0 else 1 for _, step in self.stacks]
        if self.rows:
            found, ways = self._scan(outputs, ways), [1] * len(ways)
        else:
            self._set_inputs([self.number, self.going, *self.inputs])
            start = t.scalar(True, DType.BOOL) if loop.trips is not None else loop.start()
            found = t.op.Loop(loop.trips, start, *self.initial, body=self.graph, outputs=outputs)
        results = found if outputs > 1 else [found]
        stacked = [v if way > 0 else reverse(t, v) for v, way in zip(results[len(self.ends) :], ways, strict=True)]
        return _Found(results[: len(self.ends)], stacked)

    def _scan(self, outputs: int, ways: Sequence[int]) -> Any:
        """The node that goes over the rows."""
        t, count = self.t, self.loop.count
        assert count is not None
        scanned = [
            (t.slice(v, [0], [first], [first + count]), step, row) for (v, first, step), row in self.rows.items()
        ]
        if self.number.is_used:
            scanned.append((t.arange(count), 1, self.number))
        self._set_inputs([*self.inputs, *(row for _, _, row in scanned)])
        backwards = [int(step < 0) for _, step, _ in scanned], [int(way < 0) for way in ways]
        inward, outward = (b if any(b) else None for b in backwards)
        return t.op.Scan(
            *self.initial, *(v for v, _, _ in scanned), body=self.graph, num_scan_inputs=len(scanned), outputs=outputs,
            scan_input_directions=inward, scan_output_directions=outward,
        )  # fmt: skip

    def _set_inputs(self, inputs: Sequence[Value]) -> None:
        self.graph.inputs[:] = inputs
        for i, value in enumerate(inputs):
            value.index = i

    def _result(self, j: int, found: _Found) -> Any:
        return self.loop.operands[j] if j in self.loop.kept else self.makes[j](found)


def _is_zero(value: Value) -> bool:
    """Whether a tensor is zero everywhere, and can be seen to be."""
    while value.producer is not None and value.producer.op in ("Expand", "Reshape", "Cast"):
        value = value.producer.given(0)
    return value.const is not None and value.const.size == 1 and not value.const.numpy().any()
