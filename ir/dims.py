"""Dimensions: an ``int`` or a symbolic expression over named sizes.

A `Dim` is an ``int`` (known), or a `Sym`: a polynomial with integer coefficients over atoms. An atom is a named size
(``batch``), an anonymous one (printed ``?``; every unknown dimension is its own anonymous symbol, so that ``Relu(x)``
still has provably the shape of ``x``), or an operation that the polynomial cannot express (``floordiv``, ``min``,
``max``, ``mod``). Sizes are non-negative integers; two expressions are equal when their normal forms are.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "Dim",
    "Sym",
    "dim_floordiv",
    "dim_max",
    "dim_min",
    "dim_mod",
    "fresh",
    "fresh_integer",
    "is_clipped",
    "is_known",
    "is_non_negative",
    "limits",
    "parse_dim",
    "product",
    "substitute",
    "sym",
    "unclipped",
]

Monomial = tuple[str, ...]  # sorted atoms, repeated for powers; () is the constant term

# What grows beyond these limits becomes an unknown integer, so that no graph makes expressions explode.
_MAX_TERMS = 64
_MAX_DEGREE = 16
_MAX_COEFFICIENT = 1 << 64
_MAX_TEXT = 200  # characters of an operation's text


class Sym:
    """A symbolic size: an immutable polynomial in normal form. Build it with `sym`, `fresh` and arithmetic."""

    __slots__ = ("_hash", "_non_negative", "terms")

    def __init__(self, terms: dict[Monomial, int]):
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))
        self._non_negative: bool | None = None  # not asked yet

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Sym) and self._hash == other._hash and self.terms == other.terms)

    def __add__(self, other: Dim) -> Dim:
        return _combine(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _combine(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return _combine(self * -1, other, 1)

    def __neg__(self) -> Dim:
        return self * -1

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other == 1:
                return self
            return _normal({monomial: c * other for monomial, c in self.terms.items()})
        terms: dict[Monomial, int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in other.terms.items():
                monomial = tuple(sorted(m1 + m2))
                if len(monomial) > _MAX_DEGREE or len(terms) > _MAX_TERMS:
                    return fresh_integer()
                terms[monomial] = terms.get(monomial, 0) + c1 * c2
        return _normal(terms)

    __rmul__ = __mul__

    @property
    def name(self) -> str | None:
        """The atom, when the expression is one single atom; else None."""
        if len(self.terms) == 1:
            ((monomial, c),) = self.terms.items()
            if c == 1 and len(monomial) == 1:
                return monomial[0]
        return None

    @property
    def is_anonymous(self) -> bool:
        """Whether it is a bare unknown size, with no name that a reader could use."""
        return (self.name or "").startswith("?")

    @property
    def mentions_anonymous(self) -> bool:
        """Whether any atom in it is anonymous."""
        return any("?" in atom for monomial in self.terms for atom in monomial)

    def __str__(self) -> str:
        parts = []
        for monomial, c in sorted(self.terms.items(), key=lambda t: (-len(t[0]), t[0])):
            text = "*".join(([str(abs(c))] if abs(c) != 1 or not monomial else []) + list(monomial))
            parts.append((" - " if c < 0 else " + ") + text)
        head, rest = parts[0], "".join(parts[1:])
        return ("-" + head[3:] if head.startswith(" - ") else head[3:]) + rest

    __repr__ = __str__


Dim = int | Sym

_counter = itertools.count()
_SYMBOLS: dict[str, Sym] = {}
_OPERATIONS: dict[str, tuple[str, Dim, Dim]] = {}  # by atom: the function and what it is applied to
_SIGNED: set[str] = set()  # operations that may be negative; every other atom is a size


def sym(name: str) -> Sym:
    """The size called ``name``; the same object for the same name."""
    found = _SYMBOLS.get(name)
    if found is None:
        found = _SYMBOLS[name] = Sym({(name,): 1})
    return found


def fresh() -> Sym:
    """A new unknown size, equal only to itself."""
    return Sym({(f"?{next(_counter)}",): 1})


def fresh_integer() -> Sym:
    """A new unknown integer of any sign, equal only to itself: no size, but an element of some integer tensor."""
    return Sym({(f"?~{next(_counter)}",): 1})


def is_known(dim: Dim) -> bool:
    """Whether ``dim`` is a plain integer."""
    return isinstance(dim, int)


def _normal(terms: dict[Monomial, int]) -> Dim:
    if 0 in terms.values():
        terms = {monomial: c for monomial, c in terms.items() if c}
        if not terms:
            return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    coefficients = terms.values()
    if len(terms) > _MAX_TERMS or max(coefficients) > _MAX_COEFFICIENT or min(coefficients) < -_MAX_COEFFICIENT:
        return fresh_integer()
    return Sym(terms)


def _combine(a: Sym | int, b: Dim, sign: int) -> Dim:
    terms: dict[Monomial, int] = {(): a} if isinstance(a, int) else dict(a.terms)
    for monomial, c in (((), b),) if isinstance(b, int) else b.terms.items():
        terms[monomial] = terms.get(monomial, 0) + sign * c
    return _normal(terms)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of ``dims`` (1 if there are none): an element count."""
    known = 1
    symbolic: Dim | None = None
    for dim in dims:
        if type(dim) is int:
            known *= dim
        else:
            symbolic = dim if symbolic is None else symbolic * dim
    return known if symbolic is None else symbolic * known


def _exact_quotient(a: Sym, b: Dim) -> Dim | None:
    """``a / b`` where the polynomial division leaves no remainder and ``b`` is a single term; else None."""
    ((monomial, c),) = (
        ({(): b} if isinstance(b, int) else b.terms).items()
        if isinstance(b, int) or len(b.terms) == 1
        else ((None, 0),)
    )
    if monomial is None or c == 0:
        return 1 if a == b else None
    quotient: dict[Monomial, int] = {}
    for term, coefficient in a.terms.items():
        rest = list(term)
        for atom in monomial:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % c:
            return None
        quotient[tuple(rest)] = coefficient // c
    return _normal(quotient)


def _opaque(function: str, a: Dim, b: Dim, *, non_negative: bool) -> Dim:
    text = f"{function}({a},{b})"
    if text not in _OPERATIONS:
        if len(text) > _MAX_TEXT:
            return fresh() if non_negative else fresh_integer()
        _OPERATIONS[text] = (function, a, b)
        if not non_negative:
            _SIGNED.add(text)
    return sym(text)


def is_clipped(dim: Dim, size: Dim) -> bool:
    """Whether ``dim`` is ``min(size, n)`` for an integer ``n`` of at least 1."""
    function, a, b = _OPERATIONS.get(dim.name or "", ("", 0, 0)) if isinstance(dim, Sym) else ("", 0, 0)
    return function == "min" and (
        (a == size and isinstance(b, int) and b > 0) or (b == size and isinstance(a, int) and a > 0)
    )


def unclipped(dim: Dim) -> Dim:
    """``x`` where ``dim`` is ``max(x, 0)``, and ``dim`` itself otherwise."""
    function, a, b = _OPERATIONS.get(dim.name or "", ("", 0, 0)) if isinstance(dim, Sym) else ("", 0, 0)
    if function != "max" or 0 not in (a, b):
        return dim
    return b if a == 0 else a


def limits(dim: Dim) -> Iterator[tuple[str, int]]:
    """The sizes that ``dim`` clips, and at which number: ``min(length, 512)`` gives ``("length", 512)``."""
    for monomial in dim.terms if isinstance(dim, Sym) else ():
        for atom in monomial:
            function, *operands = _OPERATIONS.get(atom, ("",))
            for operand in operands:
                yield from limits(operand)
            names = [n for o in operands if isinstance(o, Sym) and (n := o.name) and n not in _OPERATIONS]
            numbers = [o for o in operands if isinstance(o, int)]
            if function == "min" and names and numbers:
                yield names[0], numbers[0]


def dim_floordiv(a: Dim, b: Dim) -> Dim:
    """``a // b``, rounding down; exact where the division is. ``b`` must not be zero."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    whole: Dim = 0
    if isinstance(a, Sym):
        quotient = _exact_quotient(a, b)
        if quotient is not None:
            return quotient
        if isinstance(b, int):
            whole, a = _whole_part(a, b)
            if isinstance(a, int):
                return whole + a // b
    return whole + _opaque("floordiv", a, b, non_negative=is_non_negative(a) and is_non_negative(b))


def _whole_part(a: Sym, b: int) -> tuple[Dim, Dim]:
    """``q, r`` with ``a == q * b + r``, where no coefficient of ``r`` reaches ``b``: one form for equal quotients."""
    whole = _normal({monomial: c // b for monomial, c in a.terms.items()})
    return whole, a - whole * b


def dim_mod(a: Dim, b: Dim) -> Dim:
    """``a mod b`` with the sign of ``b``, as Python has it."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 1 or a == b or (isinstance(a, Sym) and _exact_quotient(a, b) is not None):
        return 0
    if isinstance(a, Sym) and isinstance(b, int) and b:
        a = _whole_part(a, b)[1]
        if isinstance(a, int):
            return a % b
    return _opaque("mod", a, b, non_negative=is_non_negative(b))


def is_non_negative(dim: Dim) -> bool:
    """Whether ``dim`` is provably at least 0 for all sizes: no term is negative, and no atom can be."""
    if isinstance(dim, int):
        return dim >= 0
    if dim._non_negative is None:
        dim._non_negative = all(
            c > 0 and not any(atom in _SIGNED or atom.startswith("?~") for atom in monomial)
            for monomial, c in dim.terms.items()
        )
    return dim._non_negative


def dim_max(a: Dim, b: Dim) -> Dim:
    """The larger of the two."""
    return _extreme("max", a, b, is_non_negative(a) or is_non_negative(b), is_non_negative)


def dim_min(a: Dim, b: Dim) -> Dim:
    """The smaller of the two."""
    return _extreme("min", a, b, is_non_negative(a) and is_non_negative(b), lambda gap: is_non_negative(-gap))


def _extreme(function: str, a: Dim, b: Dim, non_negative: bool, picks_first: Callable[[Dim], bool]) -> Dim:
    if picks_first(a - b):
        return a
    if picks_first(b - a):
        return b
    first, second = sorted((a, b), key=str)
    return _opaque(function, first, second, non_negative=non_negative)


_OPERATORS: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: dim_floordiv,
    ast.Mod: dim_mod,
}
_FUNCTIONS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "max": dim_max,
    "min": dim_min,
    "floordiv": dim_floordiv,
    "mod": dim_mod,
}


def substitute(dim: Dim, size_of: Callable[[str], Any], known: Mapping[str, Any] | None = None) -> Any:
    """``dim`` with ``size_of(name)`` for each of its sizes: an integer, or whatever has arithmetic.

    Args:
        dim: the dimension.
        size_of: the size called so; anonymous ones have names that start with a question mark.
        known: operations that need not be computed, by their text.

    Raises:
        ZeroDivisionError: it divides by a size that is 0.
    """
    if isinstance(dim, int):
        return dim
    total: Any = 0
    for monomial, coefficient in dim.terms.items():
        term: Any = coefficient
        for atom in monomial:
            found = (known or {}).get(atom)
            term = term * (_substituted(atom, size_of, known) if found is None else found)
        total = total + term
    return total


def _substituted(atom: str, size_of: Callable[[str], Any], known: Mapping[str, Any] | None) -> Any:
    operation = _OPERATIONS.get(atom)
    if operation is None:
        return size_of(atom)
    function, *operands = operation
    a, b = (substitute(o, size_of, known) for o in operands)
    if function in ("min", "max"):
        return min(a, b) if function == "min" else max(a, b)
    return a // b if function == "floordiv" else a % b


def parse_dim(text: str) -> Dim:
    """The dimension that ``text`` (an ONNX ``dim_param``) stands for; anything not arithmetic is one atom."""
    if text.isidentifier():
        return sym(text)
    if not text or "?" in text:
        return fresh()
    if len(text) > 1000:
        return sym(text)
    try:
        return _from_ast(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return sym(text)


def _from_ast(node: ast.expr) -> Dim:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sym(name)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_from_ast(left), _from_ast(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_from_ast(operand)
        case ast.Call(func=ast.Name(id=name), args=[a, b], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_from_ast(a), _from_ast(b))
    raise ValueError(f"not arithmetic: {ast.dump(node)}")
