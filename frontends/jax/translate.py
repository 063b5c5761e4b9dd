"""Jaxprs to nodes: walks the equations, calls the rule of each primitive, and keeps account of what has none.

A rule is called with the translator, the equation and the operands' values, and returns the result (or results). It
raises `Refused` where the primitive has no translation; the walk goes on, so that one error lists everything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ...ir.errors import ModelError
from ...ir.graph import Graph, Value, constant
from ...ir.infer import IllTyped
from ...ir.origin import MODULE_KEY, SOURCE_KEY
from ...ir.types import UNKNOWN, DType, TensorType, compatible, merge
from ..emit import Emitter, Refused
from ..sizes import dim_of
from .origin import is_of_jax, module_of, source_of
from .reasons import REASONS, Refusal, UnsupportedPrimitives
from .softmax import find_softmaxes
from .tensor import Weights

__all__ = ["RULES", "Equation", "Translator", "rule", "type_of"]

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}  # by the primitive's name
_CALLS: set[str] = set()


def rule(*primitives: str, calls: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of one or more primitives; ``calls`` says that they have jaxprs which the rule translates."""

    def register(function: Rule) -> Rule:
        for name in primitives:
            RULES[name] = function
        if calls:
            _CALLS.update(primitives)
        return function

    return register


class Equation(NamedTuple):
    """One equation of a jaxpr, as rules see it."""

    name: str  # of the primitive
    params: dict[str, Any]
    outs: list[TensorType]
    restores_nan: bool = False  # whether NaN among its operands comes to what it is used for in another way too
    softmax: tuple[str, int] | None = None  # the operator and the axis, where it is the last step of a softmax

    @property
    def out(self) -> TensorType:
        """The type of the only result."""
        return self.outs[0]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape of the only result."""
        return self.outs[0].shape or ()


def type_of(aval: Any) -> TensorType:
    """The type of an abstract value.

    Raises:
        Refused: ONNX has no tensor of this kind.
    """
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not hasattr(aval, "shape"):
        raise Refused(f"{type(aval).__name__} is no tensor")
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        raise Refused(REASONS["random_bits"])
    if np.issubdtype(dtype, np.complexfloating):
        raise Refused("complex numbers: ONNX operators do not compute with them")
    try:
        found = DType.from_numpy(dtype)
    except TypeError:
        raise Refused(f"ONNX has no element type {dtype}") from None
    return TensorType(found, tuple(dim_of(d) for d in aval.shape))


class Translator(Emitter):
    """Translates one jaxpr with everything in it."""

    def __init__(self, graph: Graph, weights: Weights, assumed: Collection[str] = ()):
        super().__init__(graph)
        self.weights = weights
        self.assumed = assumed  # what the caller promises of the numbers
        self.refusals: list[Refusal] = []
        self.ignored: set[str] = set()  # primitives that only talk
        self._modules: tuple[str, ...] = ()
        self._caller = ""  # the line that calls a function of jax itself, whose equations may know another caller's

    def finish(self, what: str) -> None:
        """Say what could not be translated.

        Raises:
            UnsupportedPrimitives: there was something.
        """
        if self.refusals:
            raise UnsupportedPrimitives(what, self.refusals)
        if self.ignored:
            warnings.warn(f"{what} has {', '.join(sorted(self.ignored))}; the graph does not", stacklevel=3)

    def inline(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """Translate a jaxpr (closed or without constants) applied to ``args``; returns its results."""
        inner = getattr(jaxpr, "jaxpr", jaxpr)
        consts = [self._constant(c) for c in getattr(jaxpr, "consts", ())]
        env: dict[Any, Value] = dict(zip(inner.constvars, consts, strict=True))
        env.update(zip(inner.invars, args, strict=True))

        def read(atom: Any) -> Value:
            return self._literal(atom) if hasattr(atom, "val") else env[atom]

        softmaxes = find_softmaxes(inner)
        for eqn in inner.eqns:
            operands = [read(a) for a in eqn.invars]
            softmax = softmaxes.results.get(id(eqn))
            known: dict[str, Any] = {"restores_nan": id(eqn) in softmaxes.maxima}
            if softmax is not None:
                known["softmax"] = (softmax.op, softmax.axis)
                operands = [read(softmax.operand)]
            results = self._equation(eqn, operands, known)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(a) for a in inner.outvars]

    def call(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """Translate the jaxpr of a function that is called, as `inline` does."""
        caller = self._caller
        if is_of_jax(getattr(jaxpr, "jaxpr", jaxpr)):
            self._caller = caller or self.metadata.get(SOURCE_KEY, "")
        try:
            return self.inline(jaxpr, args)
        finally:
            self._caller = caller

    def _constant(self, array: Any) -> Value:
        return Value() if _type_or_unknown(jax.typeof(array)) is UNKNOWN else self.weights.value(array)

    def _literal(self, literal: Any) -> Value:
        if np.ndim(literal.val):
            return self.weights.value(literal.val)
        dtype = type_of(literal.aval).dtype
        return constant(np.asarray(literal.val).astype(dtype.numpy), dtype)

    def _equation(self, eqn: Any, operands: list[Value], known: dict[str, Any]) -> list[Value]:
        name = eqn.primitive.name
        before = self.label, self.metadata, self._modules
        source = self._caller or source_of(eqn.source_info) or self.metadata.get(SOURCE_KEY, "")
        modules = self._modules + module_of(eqn.source_info)
        outs = [_type_or_unknown(v.aval) for v in eqn.outvars]
        if name in RULES and name not in _CALLS and any(o.type == UNKNOWN for o in operands):
            return [Value(t) for t in outs]  # it follows from a refusal
        try:
            self._modules = modules
            self.label = ".".join((*modules, name))
            self.metadata = {k: v for k, v in ((SOURCE_KEY, source), (MODULE_KEY, ".".join(modules))) if v}
            if name not in _CALLS:  # else what is called will say it
                for atom in (*eqn.outvars, *eqn.invars):
                    type_of(atom.aval)
            if outs and all(_is_empty(o) for o in outs):
                return [self.empty(o) for o in outs]
            return self._apply(name, Equation(name, eqn.params, outs, **known), operands)
        except Refused as refused:
            self.refusals.append(Refusal(name, source, str(refused)))
            return [Value(t) for t in outs]  # what depends on them is checked all the same
        finally:
            self.label, self.metadata, self._modules = before

    def _apply(self, name: str, eqn: Equation, operands: list[Value]) -> list[Value]:
        found = RULES.get(name if eqn.softmax is None else "softmax")
        if found is None:
            raise Refused(REASONS.get(name, "planish has no translation of it"))
        unknown = any(o.type == UNKNOWN for o in operands)
        try:
            results = found(self, eqn, *operands)
        except (IllTyped, ModelError) as error:
            raise Refused(str(error)) from error
        except (AttributeError, LookupError, TypeError, ValueError):
            if not unknown:
                raise
            return [Value(t) for t in eqn.outs]
        results = list(results) if isinstance(results, tuple | list) else [results]
        for result, type_ in zip(results, eqn.outs, strict=True):
            if not compatible(result.type, type_):
                raise Refused(f"the translation gives {result.type} for {type_}")
            if result.producer is not None:
                result.type = merge(type_, result.type)
        return results


def _is_empty(type_: TensorType) -> bool:
    return type_.is_static and type_.size == 0


def _type_or_unknown(aval: Any) -> TensorType:
    try:
        return type_of(aval)
    except Refused:
        return UNKNOWN
