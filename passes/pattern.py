"""Patterns: expressions over pattern variables, matched against the graph.

A pattern is written with the same operators and ``op`` functions as the graph itself, in a function whose parameters
are the captures::

    lambda x, c: op.Mul(x, c)                       # two captures
    lambda x: op.Relu(op.Relu(x))                   # the inner result must have no other use
    lambda x: op.Relu(shared(op.Relu(x)))           # … may have
    lambda x, c=const: x + c                        # c is a constant
    lambda x, c=const(lambda t: t.size == 1): x / c # … that satisfies a predicate on its tensor
    lambda x: x * 1                                 # a constant whose elements all equal 1
    lambda x, p: op.Transpose(x, perm=p)            # an attribute (None where it is absent)
    lambda x, w, attrs: op.Conv(x, w, **attrs)      # all attributes that are not named, as a dict
    lambda xs, a: op.Concat(*xs, axis=a)            # all (remaining) operands, as a tuple
    lambda x, b: op.Conv(x, optional(b))            # b is None where the operand is left out
    lambda x: either("kind", a=op.Relu(x), b=op.Clip(x, 0))   # alternatives; the capture "kind" is "a" or "b"
    lambda x: op.Split(x)[1]                        # result 1
    lambda x, v, w: (op.MatMul(x, v), op.MatMul(x, w))        # several roots that share captures
    lambda q=typed("B H S D"), k=typed("B H T D"): …          # shapes; equal letters are equal dimensions

Commutative operators match in either order, completely (with backtracking). A capture that stands twice must be the
same value. Attributes that a pattern does not mention must be absent or have their default value; one that it states as
its default may be absent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import Node, Value
from ..ir.builder import PYTHON_OPERATORS, op
from ..ir.dims import Dim

__all__ = ["Capture", "Match", "Pattern", "const", "either", "optional", "scalar", "shared", "trace_pattern", "typed"]

COMMUTATIVE = frozenset(
    {"Add", "Mul", "Min", "Max", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)
Goals = tuple[Any, Any, Any] | None  # linked list of (pattern, value, rest)


class Match:
    """The state of a match, and its result.

    Attributes:
        captures: what each capture stands for: a value, an attribute, a tuple, a dict or a tag.
        nodes: the matched nodes, roots first.
        interior: those of them whose results must not be used elsewhere.
        dims: what the letters of `typed` captures stand for.
        roots: the nodes whose results are replaced.
        reached: with ``explain``, the largest number of nodes that any attempt matched, and why it ended.
    """

    __slots__ = ("captures", "dims", "explain", "interior", "nodes", "reached", "roots", "trail")

    def __init__(self, explain: bool = False):
        self.captures: dict[Any, Any] = {}  # by name; matched operations by themselves
        self.nodes: dict[Node, None] = {}
        self.interior: dict[Node, None] = {}
        self.dims: dict[str, Dim] = {}
        self.roots: list[Node] = []
        self.explain = explain
        self.reached: tuple[int, str, Node | None] = (0, "", None)
        self.trail: list[tuple[dict[Any, Any], Any]] = []

    @property
    def root(self) -> Node:
        """The (first) root."""
        return self.roots[0]

    def bind(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Enter ``key`` in one of the tables, so that backtracking takes it out again."""
        table[key] = value
        self.trail.append((table, key))

    def undo_to(self, mark: int) -> None:
        """Take back all bindings after ``mark``."""
        while len(self.trail) > mark:
            table, key = self.trail.pop()
            del table[key]

    def fail(self, reason: str, node: Node | None = None) -> bool:
        """Note why an attempt ended, if anybody wants to know."""
        if self.explain and len(self.nodes) >= self.reached[0]:
            self.reached = (len(self.nodes), reason, node)
        return False


def _solve(goals: Goals, m: Match) -> bool:
    while goals is not None:
        pattern, value, goals = goals
        outcome = pattern.step(value, m, goals)
        if outcome is True or outcome is False:
            return outcome  # a choice point has solved the rest
        goals = outcome if outcome is not _NEXT else goals
    return True


_NEXT: Any = object()  # "this goal holds, go on with the rest"


class Pattern:
    """Base class: `step` advances a match by one goal."""

    __slots__ = ()

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        """`_NEXT`, a new goal list, or True/False when the rest has been solved (or cannot be)."""
        raise NotImplementedError

    def __pattern__(self, name: str, operands: tuple[Any, ...], attrs: dict[str, Any], outputs: int | None) -> Any:
        return _operation(name, operands, attrs, outputs)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("only a capture can stand for several operands (*xs)")


def _operation(name: str, operands: tuple[Any, ...], attrs: dict[str, Any], outputs: int | None) -> Operation:
    named = {k: v for k, v in attrs.items() if not k.startswith("**")}
    rest = next((v for k, v in attrs.items() if k.startswith("**")), None)
    return Operation(
        name, tuple(as_pattern(o) for o in operands), named, rest.name if rest is not None else None, outputs
    )


def as_pattern(operand: Any) -> Pattern | Variadic | None:
    """A number becomes a `Literal`; None stays: the operand must be left out."""
    if operand is None or isinstance(operand, Pattern | Variadic):
        return operand
    return Literal(operand)


class Variadic:
    """All remaining operands, bound to a capture as a tuple."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __pattern__(self, name: str, operands: tuple[Any, ...], attrs: dict[str, Any], outputs: int | None) -> Any:
        return _operation(name, operands, attrs, outputs)


class Capture(Pattern):
    """A parameter of the pattern: any value that fulfils ``conditions``."""

    __slots__ = ("conditions", "dims", "missing_ok", "name")

    def __init__(
        self, name: str, conditions: tuple[Callable[[Value], bool], ...] = (), dims: tuple[str, ...] | None = None
    ):
        self.name = name
        self.conditions = conditions
        self.dims = dims
        self.missing_ok = False

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        bound = m.captures.get(self.name, m)
        if bound is not m:
            if bound is value or _same_constant(bound, value):
                return _NEXT
            return m.fail(f"{self.name} stands for two different values", _producer(value))
        if value is None and not self.missing_ok:
            return m.fail(f"operand {self.name} is left out")
        if value is not None:
            for condition in self.conditions:
                if not condition(value):
                    return m.fail(f"{self.name} is not {condition.__name__}", _producer(value))
            if self.dims is not None and not self._unify(value, m):
                return m.fail(f"{self.name} is {value.type}, not [{' '.join(self.dims)}]", _producer(value))
        m.bind(m.captures, self.name, value)
        return _NEXT

    def _unify(self, value: Value, m: Match) -> bool:
        assert self.dims is not None
        shape = value.shape
        if shape is None or len(shape) != len(self.dims):
            return False
        for letter, dim in zip(self.dims, shape, strict=True):
            if letter == "_":
                continue
            if letter.isdigit():
                if dim != int(letter):
                    return False
            elif letter not in m.dims:
                m.bind(m.dims, letter, dim)
            elif m.dims[letter] != dim:
                return False
        return True

    def keys(self) -> list[str]:
        """For ``**attrs``."""
        return [f"**{self.name}"]

    def __getitem__(self, key: str) -> Capture:
        return self

    def __iter__(self) -> Iterator[Any]:
        yield Variadic(self.name)


def _producer(value: Value | None) -> Node | None:
    return value.producer if value is not None else None


def _same_constant(a: Any, b: Value | None) -> bool:
    return isinstance(a, Value) and b is not None and a.const is not None and a.const is b.const


class Literal(Pattern):
    """A constant all of whose elements equal ``value``."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        if value is None or value.const is None or not _all_equal(value, self.value):
            return m.fail(f"not the constant {self.value}", _producer(value))
        return _NEXT


def _all_equal(value: Value, literal: Any) -> bool:
    t = value.const
    assert t is not None
    if not t.is_cheap or not t.size or not (t.dtype.is_floating or t.dtype.is_integer or t.dtype.name == "BOOL"):
        return False
    array = t.numpy()
    first = array.flat[0]
    if t.size > 1 and not (array == first).all():
        return False
    if isinstance(literal, float) and t.dtype.is_floating:
        return bool(np.asarray(literal, array.dtype) == first)
    return bool(first == literal)


class Operation(Pattern):
    """An operator applied to operand patterns; ``index`` is the result that is meant, None for the whole node."""

    __slots__ = ("attrs", "heads", "index", "op", "operands", "outputs", "owner", "rest", "shared")

    def __init__(
        self, op_name: str, operands: tuple[Any, ...], attrs: dict[str, Any], rest: str | None, outputs: int | None
    ):
        self.op = op_name
        self.operands = operands
        self.attrs = attrs
        self.rest = rest
        self.outputs = outputs
        self.index = 0
        self.shared = False
        self.owner = self
        self.heads = tuple((i, p.op) for i, p in enumerate(operands) if isinstance(p, Operation))

    def __getitem__(self, index: int) -> Operation:
        if index > 32:
            raise IndexError(index)
        clone = Operation(self.op, self.operands, self.attrs, self.rest, self.outputs)
        clone.index, clone.owner = index, self.owner
        return clone

    def __iter__(self) -> Iterator[Operation]:
        return iter([self[i] for i in range(self.outputs or 1)])

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        node = value.producer if value is not None else None
        if node is None or node.op != self.op:
            return m.fail(f"{node.op if node else 'an input or a constant'} where {self.op} is expected", node)
        assert value is not None
        if value.index != self.index:
            return m.fail(f"result {value.index} of {self.op}, not {self.index}", node)
        if self.owner in m.captures:  # the same expression, met again by way of another result
            return _NEXT if m.captures[self.owner] is node else m.fail("two different nodes", node)
        if not self.shared and m.roots and node.graph is not m.roots[0].graph:
            return m.fail(f"{self.op} is outside of the nested graph", node)
        return self.step_node(node, m, rest)

    def step_node(self, node: Node, m: Match, rest: Goals) -> Any:
        """Match the node itself: attributes now, operands as new goals."""
        if not m.explain and self.heads and not self.heads_fit(node):
            return False
        if not self._bind_attributes(node, m):
            return m.fail(f"attributes of {self.op} differ", node)
        operands = self._align(node, m)
        if operands is None:
            return m.fail(f"{self.op} has {len(node.operands)} operands", node)
        m.bind(m.captures, self.owner, node)
        if node not in m.nodes:
            m.bind(m.nodes, node, None)
            if not self.shared and m.roots and node not in m.roots:
                m.bind(m.interior, node, None)
        if len(operands) == 2 and self.op in COMMUTATIVE:
            (p, v), (q, w) = operands
            mark = len(m.trail)
            if _solve((p, v, (q, w, rest)), m):
                return True
            m.undo_to(mark)
            return _solve((p, w, (q, v, rest)), m)
        for pattern, operand in reversed(operands):
            rest = (pattern, operand, rest)
        return rest if operands else _NEXT

    def heads_fit(self, node: Node) -> bool:
        """A quick look at what the operands are computed by, which rules out most nodes."""
        producers = [o.producer.op if o is not None and o.producer is not None else "" for o in node.operands]
        if self.op in COMMUTATIVE:
            return all(name in producers for _, name in self.heads)
        return all(i < len(producers) and producers[i] == name for i, name in self.heads)

    def _bind_attributes(self, node: Node, m: Match) -> bool:
        for name, expected in self.attrs.items():
            actual = node.attrs.get(name)
            if isinstance(expected, Capture):
                if expected.name in m.captures:
                    if m.captures[expected.name] != actual:
                        return False
                else:
                    m.bind(m.captures, expected.name, actual)
            elif actual != (wanted := tuple(expected) if isinstance(expected, list) else expected) and not (
                actual is None and _is_default(node, name, wanted)
            ):
                return False
        others = {k: v for k, v in node.attrs.items() if k not in self.attrs}
        if self.rest is not None:
            if self.rest in m.captures:
                return bool(m.captures[self.rest] == others)
            m.bind(m.captures, self.rest, others)
            return True
        return not others or all(_is_default(node, k, v) for k, v in others.items())

    def _align(self, node: Node, m: Match) -> list[tuple[Pattern, Value | None]] | None:
        """Pairs of operand pattern and operand; None if the counts do not fit."""
        pairs: list[tuple[Pattern, Value | None]] = []
        actual = node.operands
        for i, pattern in enumerate(self.operands):
            if isinstance(pattern, Variadic):
                if m.captures.get(pattern.name, actual[i:]) != actual[i:]:
                    return None
                if pattern.name not in m.captures:
                    m.bind(m.captures, pattern.name, actual[i:])
                return pairs
            operand = actual[i] if i < len(actual) else None
            if pattern is None:
                if operand is not None:
                    return None
                continue
            pairs.append((pattern, operand))
        if any(operand is not None for operand in actual[len(self.operands) :]):
            return None
        return pairs


def _is_default(node: Node, name: str, value: Any) -> bool:
    from ..ir.schema import default_attribute

    return bool(default_attribute(node.op, name) == value)


class Either(Pattern):
    """Alternatives, tried in order; ``name`` captures the tag of the one that holds."""

    __slots__ = ("cases", "name")

    def __init__(self, name: str, cases: dict[str, Any]):
        self.name = name
        self.cases = {tag: as_pattern(p) for tag, p in cases.items()}

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        for tag, pattern in self.cases.items():
            if m.captures.get(self.name, tag) != tag:
                continue
            mark = len(m.trail)
            if self.name not in m.captures:
                m.bind(m.captures, self.name, tag)
            if pattern is None:
                if value is None and _solve(rest, m):
                    return True
            elif _solve((pattern, value, rest), m):
                return True
            m.undo_to(mark)
        return False


def either(name: str, **cases: Any) -> Any:
    """One of several patterns; the capture ``name`` says which."""
    return Either(name, cases)


def optional(pattern: Any) -> Any:
    """An operand that may be left out: its captures are None then."""
    if isinstance(pattern, Capture):
        pattern.missing_ok = True
        return pattern
    return Either(f"_optional{id(pattern)}", {"present": pattern, "absent": None})


def shared(pattern: Any) -> Any:
    """An interior expression whose result other nodes may use too; it stays for them."""
    if not isinstance(pattern, Operation):
        raise TypeError("shared() takes an operator expression")
    pattern.shared = pattern.owner.shared = True
    return pattern


@dataclass(frozen=True)
class Spec:
    """What the default of a pattern parameter demands of the capture; calling it adds a predicate."""

    conditions: tuple[Callable[[Value], bool], ...] = ()
    dims: tuple[str, ...] | None = None
    samples: dict[str, Any] = field(default_factory=dict)

    def __call__(self, predicate: Callable[[Any], bool]) -> Spec:
        def condition(value: Value) -> bool:
            return bool(predicate(value.const if self.conditions else value))

        condition.__name__ = getattr(predicate, "__name__", "as demanded")
        return Spec((*self.conditions, condition), self.dims)


def _constant(value: Value) -> bool:
    return value.const is not None


def _scalar(value: Value) -> bool:
    return value.const is not None and value.const.size == 1


_constant.__name__ = "constant"
_scalar.__name__ = "a one-element constant"
const = Spec((_constant,))
scalar = Spec((_scalar,))


def typed(dims: str) -> Spec:
    """A capture of the given shape: letters unify, numbers are literal, ``_`` is anything (``"B S 12 _"``)."""
    return Spec((), tuple(dims.split()))


def trace_pattern(function: Callable[..., Any]) -> tuple[tuple[Pattern, ...], tuple[str, ...]]:
    """The root patterns that ``function`` builds from captures named like its parameters, and these names."""
    captures = []
    for name, parameter in inspect.signature(function).parameters.items():
        spec = parameter.default
        capture = Capture(name, spec.conditions, spec.dims) if isinstance(spec, Spec) else Capture(name)
        captures.append(capture)
    built = function(*captures)
    roots = built if isinstance(built, tuple) else (built,)
    for root in roots:
        if not isinstance(root, Operation | Either):
            raise TypeError("a pattern must be an operator expression")
    return roots, tuple(c.name for c in captures)


def _install_operators() -> None:
    def binary(name: str, swap: bool) -> Callable[[Any, Any], Any]:
        return lambda a, b: getattr(op, name)(b, a) if swap else getattr(op, name)(a, b)

    for python, name in PYTHON_OPERATORS.items():
        setattr(Pattern, f"__{python}__", binary(name, False))
        setattr(Pattern, f"__r{python}__", binary(name, True))
    setattr(Pattern, "__neg__", lambda a: op.Neg(a))  # noqa: B010 - mypy knows no such method


_install_operators()


def match(roots: tuple[Pattern, ...], node: Node, m: Match) -> bool:
    """Match ``roots`` with ``node`` as the first root; other roots are found among the users of what is captured."""
    m.roots.append(node)
    if _match_root(roots[0], node, m, roots[1:]):
        return True
    m.roots.clear()
    return False


def _match_root(goal: Pattern, node: Node, m: Match, others: tuple[Pattern, ...]) -> bool:
    rest: Goals = (_PRIVATE, None, None)
    if others:
        rest = (_Others(others), None, rest)
    if isinstance(goal, Operation):
        if goal.op != node.op:
            return False
        outcome = goal.step_node(node, m, rest)
        return outcome if isinstance(outcome, bool) else _solve(rest if outcome is _NEXT else outcome, m)
    return _solve((goal, node.results[0], rest), m)


class _Others(Pattern):
    """The goal that further roots match: candidates are users of the captured values."""

    __slots__ = ("roots",)

    def __init__(self, roots: tuple[Pattern, ...]):
        self.roots = roots

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        root, others = self.roots[0], self.roots[1:]
        assert isinstance(root, Operation), "only the first root may be an alternative"
        following: Goals = (_Others(others), None, rest) if others else rest
        captured = [v for v in m.captures.values() if isinstance(v, Value) and v.const is None]
        for node in dict.fromkeys(user for v in captured for user in v.users if user.op == root.op):
            if node in m.roots or node.graph is not m.roots[0].graph:
                continue
            mark = len(m.trail)
            m.roots.append(node)
            outcome = root.step_node(node, m, following)
            if outcome is True or (outcome is not False and _solve(following if outcome is _NEXT else outcome, m)):
                return True
            m.roots.pop()
            m.undo_to(mark)
        return m.fail(f"no further {root.op}")


class _Private(Pattern):
    """The last goal: that nothing outside of the match uses what is inside of it."""

    __slots__ = ()

    def step(self, value: Value | None, m: Match, rest: Goals) -> Any:
        for node in m.interior:
            for result in node.results:
                for user in result.users:
                    if user not in m.nodes:
                        return m.fail(f"the result of {node.op} is also used by {user.op}", node)
        return _NEXT


_PRIVATE = _Private()
