"""Random instances of the left side of a rule, as graphs with known inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.ir import DType, Graph, Node, TensorType, Value, constant
from planish.passes.pattern import COMMUTATIVE, Capture, Either, Literal, Operation, Variadic
from planish.passes.rules import NodeRule, PatternRule, Rule

from .control import build_if, build_loop, in_branch
from .draw import Array, Draw, Reject
from .neighbours import Hints, hints_of, operand_value
from .samplers import SAMPLERS, sample
from .site import Site, Slot, formal_types
from .sketch import Sketch

__all__ = ["Instance", "draw_instance", "hints_for", "random_graph"]

_RANKS = {"Gemm": 2, "Conv": 4, "MaxPool": 4, "AveragePool": 4, "BatchNormalization": 3}  # of what is reshaped for them
_MAX_DEPTH = 2  # nodes in front of the root of a rule that looks at nodes


@dataclass
class Instance:
    """A graph that holds the left side, the arrays for its inputs, and what its values are for these."""

    graph: Graph
    inputs: dict[str, Array]

    @property
    def size(self) -> tuple[int, int]:
        """How large it is: nodes, then elements of inputs."""
        return len(list(self.graph.walk())), sum(a.size for a in self.inputs.values())


def draw_instance(rule: Rule, draw: Draw, hints: Hints) -> Instance:
    """A random graph with the left side of ``rule`` in it.

    Raises:
        Reject: the choices led nowhere.
        NoSampler: there is no sampler for one of its operators.
    """
    sketch = Sketch(draw)
    draw.integers = isinstance(rule, NodeRule) and hints.sizes and draw.chance(0.4)

    def build() -> list[Value]:
        if isinstance(rule, PatternRule):
            return _outputs(sketch, *_PatternBuilder(rule, sketch, hints).build(), hints)
        ops = sorted(rule.ops) if rule.ops else sorted(SAMPLERS)
        return _outputs(sketch, [_NodeBuilder(sketch, hints).root(draw.pick(ops))], [], hints)

    sketch.finish(in_branch(sketch, build) if draw.chance(0.06) else build())
    return Instance(sketch.graph, sketch.inputs)


def random_graph(seed: int, nodes: int = 8) -> Instance:
    """A random graph with about ``nodes`` nodes, to run whole passes on; its floating-point data is finite."""
    draw = Draw(f"{seed}/graph")
    draw.special = False
    sketch = Sketch(draw)
    builder = _NodeBuilder(sketch, Hints({}, ()))
    ops = sorted(SAMPLERS)
    values: list[Value] = []
    for _ in range(nodes):
        try:
            given = {0: draw.pick(values[-4:])} if values and draw.chance(0.8) else {}
            op = builder.hints.pick_op(draw) if draw.chance(0.6) else draw.pick(ops)
            values += builder.build(op, given, depth=1).results
        except Reject:
            continue
    unused = [v for v in values if not v.is_used]
    sketch.finish(list(dict.fromkeys(unused)) or [sketch.leaf(draw.array(DType.FLOAT, draw.shape()))])
    return Instance(sketch.graph, sketch.inputs)


def hints_for(rule: Rule) -> Hints:
    """What the code of ``rule`` mentions."""
    return hints_of([rule.function, *_conditions(rule)])


def _conditions(rule: Rule) -> list[Any]:
    """The predicates of a rule's captures."""
    found: list[Any] = []

    def visit(pattern: Any) -> None:
        if isinstance(pattern, Capture):
            found.extend(pattern.conditions)
        elif isinstance(pattern, Either):
            for case in pattern.cases.values():
                visit(case)
        elif isinstance(pattern, Operation):
            for operand in pattern.operands:
                visit(operand)

    for root in rule.roots if isinstance(rule, PatternRule) else ():
        visit(root)
    return found


def _outputs(sketch: Sketch, roots: list[Node], interior: list[Node], hints: Hints) -> list[Value]:
    """What the graph returns: the results of the roots, some by way of another node, and now and then more."""
    draw = sketch.draw
    outputs: list[Value] = []
    for root in roots:
        used = [r for r in root.results if len(root.results) == 1 or draw.chance(0.7)] or [draw.pick(root.results)]
        for result in used:
            if draw.chance(0.2):
                outputs.append(_consumer(sketch, result, hints))
            if not outputs or outputs[-1].producer is root or draw.chance(0.8):
                outputs.append(result)
    outputs += [node.results[0] for node in interior if draw.chance(0.04)]
    return list(dict.fromkeys(outputs))


def _consumer(sketch: Sketch, value: Value, hints: Hints) -> Value:
    try:
        node = _NodeBuilder(sketch, hints).build(hints.pick_op(sketch.draw), {0: value}, depth=_MAX_DEPTH)
    except Reject:
        return sketch.node("Identity", [value]).result
    return node.results[0]


class _NodeBuilder:
    """Random nodes, with random nodes in front of them."""

    def __init__(self, sketch: Sketch, hints: Hints):
        self.sketch = sketch
        self.draw = sketch.draw
        self.hints = hints

    def root(self, op: str) -> Node:
        """A node of operator ``op`` with neighbours."""
        return self.build(op, {}, depth=0)

    def build(self, op: str, given: dict[int, Value], depth: int, want: DType | None = None) -> Node:
        """A node whose operands are ``given`` or made: leaves, or results of further nodes."""
        draw, sketch = self.draw, self.sketch
        if op in ("If", "Loop"):
            return (build_if if op == "If" else build_loop)(sketch, self._unary)
        given = dict(given)
        if 0 not in given and depth < _MAX_DEPTH and draw.chance(0.45 if depth == 0 else 0.25):
            inner = self._inner(op, depth, want)
            if inner is not None:
                given[0] = inner
        slots = [Slot(array=sketch.array(given[i]) if i in given else None) for i in range(max(given, default=-1) + 1)]
        site = Site(op, draw, slots, more=True, free=lambda name: True, want=want)
        sample(site)
        operands: list[Value | None] = []
        for i, slot in enumerate(site.slots):
            operands.append(given[i] if i in given else None if slot.absent else self._operand(slot, depth))
        return sketch.node(op, operands, site.attrs, site.outputs or 1)

    def _unary(self, value: Value) -> Value:
        """A value of the same dtype, computed from ``value``."""
        dtype = DType.from_numpy(self.sketch.array(value).dtype)
        ops = ["Neg", "Identity", "Abs", "Transpose", self.hints.pick_op(self.draw)]
        try:
            found = self.build(self.draw.pick(ops), {0: value}, _MAX_DEPTH, dtype).results[0]
        except Reject:
            found = value
        return found if self.sketch.array(found).dtype == self.sketch.array(value).dtype else value

    def _inner(self, op: str, depth: int, want: DType | None) -> Value | None:
        """A value for operand 0 that some other node computes."""
        draw = self.draw
        inputs, results = formal_types(op)
        inner = op if draw.chance(0.2) else self.hints.pick_op(draw)
        given = formal_types(inner)[1]
        dtype = None
        if want is not None and inputs and results and inputs[0].variable == results[0].variable:
            dtype = want
        elif inputs and given:
            dtype = draw.dtype(inputs[0].dtypes & given[0].dtypes)
        try:
            node = self.build(inner, {}, depth + 1, dtype)
        except Reject:
            return None
        return draw.pick(node.results) if draw.chance(0.5) else node.results[0]

    def _operand(self, slot: Slot, depth: int) -> Value:
        assert slot.array is not None
        return operand_value(self.sketch, slot, self.hints, (0.6, 0.4, 0.0)[min(depth, 2)])


class _PatternBuilder:
    """Builds the left side of a pattern rule, operands first; captures are made where they are first met."""

    def __init__(self, rule: PatternRule, sketch: Sketch, hints: Hints):
        self.rule = rule
        self.sketch = sketch
        self.draw = sketch.draw
        self.hints = hints
        self.captures: dict[str, Any] = {}
        self.nodes: dict[Operation, Node] = {}
        self.interior: list[Node] = []
        self.results_needed = _results_needed(rule)

    def build(self) -> tuple[list[Node], list[Node]]:
        """The root nodes, and the others."""
        self._typed_captures()
        roots: list[Node] = []
        for root in self.rule.roots:
            pattern = self._chosen(root)
            if not isinstance(pattern, Operation):
                raise Reject("an alternative that is no operation")
            roots.append(self._operation(pattern))
        return roots, [n for n in self.interior if n not in roots]

    def _chosen(self, pattern: Any) -> Any:
        """``pattern``, or the alternative that is taken."""
        while isinstance(pattern, Either):
            tag = self.captures.setdefault(pattern.name, self.draw.pick(list(pattern.cases)))
            pattern = pattern.cases[tag]
        return pattern

    def _typed_captures(self) -> None:
        """Captures with stated shapes come first, so that equal letters are equal sizes."""
        sizes: dict[str, int] = {}
        for capture in _captures(self.rule):
            if capture.dims is None or capture.name in self.captures:
                continue
            shape = [
                int(d) if d.isdigit() else self.draw.dim() if d == "_" else sizes.setdefault(d, self.draw.dim())
                for d in capture.dims
            ]
            dtype = self.draw.dtype([DType.FLOAT, DType.FLOAT, DType.FLOAT16, DType.DOUBLE])
            self.captures[capture.name] = self._capture(
                capture, Slot(array=self.draw.array(DType.FLOAT if self.draw.chance(0.8) else dtype, shape))
            )

    def _operation(self, pattern: Operation, user: tuple[str, int] | None = None) -> Node:
        """The node of ``pattern``; ``user`` says of which operand of which operator it is."""
        owner = pattern.owner
        if owner in self.nodes:
            return self.nodes[owner]
        site, operands, plan = self._site(pattern, user)
        sample(site)
        values: list[Value | None] = []
        for i, slot in enumerate(site.slots):
            if i in operands:
                values.append(operands[i])
            elif slot.absent:
                values.append(None)
            else:
                values.append(self._open(plan.get(i), slot))
        self._bind_attributes(pattern, site)
        variadic = next((p for p in pattern.operands if isinstance(p, Variadic)), None)
        if variadic is not None:
            self.captures[variadic.name] = tuple(values[len(pattern.operands) - 1 :])
        if len(values) == 2 and pattern.op in COMMUTATIVE and self.draw.chance(0.4):
            values.reverse()
        outputs = pattern.outputs or site.outputs or self.results_needed.get(owner, 1)
        node = self.sketch.node(pattern.op, values, site.attrs, outputs)
        self.nodes[owner] = node
        self.interior.append(node)
        if pattern.shared and self.draw.chance(0.25):
            extra = self.sketch.node("Identity", [node.results[pattern.index]])
            self.interior.append(extra)
        return node

    def _site(self, pattern: Operation, user: tuple[str, int] | None) -> tuple[Site, dict[int, Value], dict[int, Any]]:
        """The site of an operation: operations among its operands are built, captures and literals are open."""
        slots: list[Slot] = []
        operands: dict[int, Value] = {}
        plan: dict[int, Any] = {}
        more = False
        for i, stated in enumerate(pattern.operands):
            if isinstance(stated, Variadic):
                more = stated.name not in self.captures
                for value in self.captures.get(stated.name, ()):
                    operands[len(slots)] = value
                    slots.append(Slot(array=self.sketch.array(value)))
                break
            inner = self._chosen(stated)
            slots.append(self._slot(inner, i, operands, pattern.op))
            plan[i] = inner
        for i, inner in plan.items():  # captures that an operation among the operands has bound
            if isinstance(inner, Capture) and i not in operands and isinstance(self.captures.get(inner.name), Value):
                operands[i] = self.captures[inner.name]
                slots[i] = Slot(array=self.sketch.array(operands[i]))
        fixed = {k: self._fixed(v) for k, v in pattern.attrs.items() if not self._is_free(v)}
        names = {k for k, v in pattern.attrs.items() if self._is_free(v)}
        rest = pattern.rest is not None
        site = Site(
            pattern.op,
            self.draw,
            slots,
            more=more,
            attrs=fixed,
            free=lambda name: rest or name in names,
            outputs=pattern.outputs,
            want=self._wanted_dtype(*user) if user is not None and not pattern.index else None,
            rank=_RANKS.get(user[0]) if user is not None else None,
        )
        site.least_outputs = self.results_needed.get(pattern.owner, 1)
        return site, operands, plan

    def _slot(self, pattern: Any, i: int, operands: dict[int, Value], op: str) -> Slot:
        if pattern is None:
            return Slot(absent=True)
        if isinstance(pattern, Operation):
            operands[i] = self._operation(pattern, (op, i)).results[pattern.index]
            return Slot(array=self.sketch.array(operands[i]))
        if isinstance(pattern, Literal):
            return Slot(fill=pattern.value)
        assert isinstance(pattern, Capture)
        if pattern.name in self.captures:
            value = self.captures[pattern.name]
            if value is None:
                return Slot(absent=True)
            operands[i] = value
            return Slot(array=self.sketch.array(value))
        if pattern.missing_ok and self.draw.chance(0.4):
            self.captures[pattern.name] = None
            return Slot(absent=True)
        if not pattern.conditions:
            return Slot()
        return Slot(accept=self._acceptance(pattern), menu=self.hints.numbers)

    def _acceptance(self, capture: Capture) -> Callable[[Array], bool]:
        def accept(array: Array) -> bool:
            return self._passes(capture, constant(np.array(array))) or self._passes(capture, _unknown(array))

        return accept

    def _passes(self, capture: Capture, value: Value) -> bool:
        try:
            return all(condition(value) for condition in capture.conditions)
        except (AttributeError, TypeError):  # the predicate takes for granted that it sees a constant, or none
            return False

    def _open(self, pattern: Any, slot: Slot) -> Value:
        """A value for an operand that the sampler has chosen."""
        if isinstance(pattern, Literal):
            assert slot.array is not None
            return self.sketch.leaf(slot.array, fixed=True)
        if isinstance(pattern, Capture):
            bound = self.captures.get(pattern.name)
            if isinstance(bound, Value):  # the same capture twice among the operands of one node
                return bound
            value = self.captures[pattern.name] = self._capture(pattern, slot)
            return value
        return operand_value(self.sketch, slot, self.hints, 0.15)

    def _capture(self, capture: Capture, slot: Slot) -> Value:
        fixed = None
        if capture.conditions:
            assert slot.array is not None
            if not self._passes(capture, _unknown(slot.array)):
                fixed = True
            elif not self._passes(capture, constant(np.array(slot.array))):
                fixed = False
        return operand_value(self.sketch, slot, self.hints, 0.15, fixed)

    def _wanted_dtype(self, op: str, i: int) -> DType | None:
        """A dtype for operand ``i`` of ``op`` where it must be an unusual one."""
        inputs, _ = formal_types(op)
        dtypes = inputs[min(i, len(inputs) - 1)].dtypes if inputs else frozenset()
        return self.draw.dtype(dtypes) if dtypes and DType.FLOAT not in dtypes else None

    # attributes

    def _is_free(self, expected: Any) -> bool:
        return isinstance(expected, Capture) and expected.name not in self.captures

    def _fixed(self, expected: Any) -> Any:
        if isinstance(expected, Capture):
            return self.captures[expected.name]
        return tuple(expected) if isinstance(expected, list) else expected

    def _bind_attributes(self, pattern: Operation, site: Site) -> None:
        for name, expected in pattern.attrs.items():
            if self._is_free(expected):
                self.captures[expected.name] = site.attrs.get(name)
        if pattern.rest is not None:
            others = {k: v for k, v in site.attrs.items() if k not in pattern.attrs}
            if self.captures.setdefault(pattern.rest, others) != others:
                raise Reject("the attributes of two nodes must be equal")


def _unknown(array: Array) -> Value:
    """A value of the array's type about which nothing else is known."""
    return Value(TensorType(DType.from_numpy(array.dtype), array.shape))


def _captures(rule: PatternRule) -> list[Capture]:
    found: dict[str, Capture] = {}

    def visit(pattern: Any) -> None:
        if isinstance(pattern, Capture):
            found.setdefault(pattern.name, pattern)
        elif isinstance(pattern, Either):
            for case in pattern.cases.values():
                visit(case)
        elif isinstance(pattern, Operation):
            for operand in pattern.operands:
                visit(operand)

    for root in rule.roots:
        visit(root)
    return list(found.values())


def _results_needed(rule: PatternRule) -> dict[Operation, int]:
    """How many results each operation of the pattern has at least."""
    found: dict[Operation, int] = {}

    def visit(pattern: Any) -> None:
        if isinstance(pattern, Either):
            for case in pattern.cases.values():
                visit(case)
        elif isinstance(pattern, Operation):
            found[pattern.owner] = max(found.get(pattern.owner, 1), pattern.index + 1)
            for operand in pattern.operands:
                visit(operand)

    for root in rule.roots:
        visit(root)
    return found
