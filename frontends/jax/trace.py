"""Tracing: a function with example arguments to a jaxpr, and what its inputs, weights and results are called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from jax.interpreters import partial_eval

from ...ir.errors import ModelError
from ...ir.graph import Graph, GraphOutput, Value
from ...ir.schema import canonical_opset
from ..emit import Refused
from ..names import parameter_names
from . import control, convolution, elementwise, gather, linear, reductions, scatter, shapes, sorting  # noqa: F401
from .failure import describe
from .tensor import Weights
from .translate import RULES, Translator, type_of

__all__ = ["RULES", "Traced", "trace"]


class _Leaf(NamedTuple):
    """A leaf of the arguments: its name, its value, and whether it is a weight."""

    name: str
    value: Any
    is_weight: bool


def trace(
    function: Callable[..., Any],
    args: Sequence[Any],
    *,
    params: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
) -> Traced:
    """Trace ``function``; the arguments are those of `planish.frontends.jax.from_jax`.

    Raises:
        ModelError: it cannot be traced.
    """
    if not callable(function):
        raise TypeError(f"from_jax takes a function, not {type(function).__name__}")
    what = _name_of(function)
    given = (args if params is None else (params, *args), dict(kwargs or {}))
    paths, structure = jax.tree_util.tree_flatten_with_path(given)
    names = parameter_names(function, len(given[0]))
    leaves = [_leaf(path, value, names, params is not None) for path, value in paths]
    weightless = [x.name for x in leaves if x.is_weight and isinstance(x.value, jax.ShapeDtypeStruct)]
    if weightless:
        raise ModelError(f"{what}: params has a shape but no numbers for {', '.join(weightless[:5])}")
    traced = [i for i, leaf in enumerate(leaves) if _is_array(leaf.value)]
    avals = _symbolic({i: leaves[i] for i in traced}, dynamic_shapes or {}, what)

    def flat(*values: Any) -> Any:
        whole = [leaf.value for leaf in leaves]
        for i, value in zip(traced, values, strict=True):
            whole[i] = value
        positional, keywords = jax.tree_util.tree_unflatten(structure, whole)
        return function(*positional, **keywords)

    try:
        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*(avals[i] for i in traced))
    except Exception as error:
        raise ModelError(f"cannot trace {what}: {describe(error)}") from error
    results = [_joined(path) for path, _ in jax.tree_util.tree_flatten_with_path(shape)[0]]
    return Traced(what, closed, [leaves[i] for i in traced], results)


class Traced:
    """A jaxpr with the names of what goes in and comes out."""

    def __init__(self, what: str, closed: Any, leaves: Sequence[_Leaf], results: Sequence[str]):
        self.what, self.closed, self.leaves, self.results = what, closed, leaves, results

    def graph(
        self,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        assumed: Collection[str] = (),
    ) -> Graph:
        """The graph; the arguments are those of `planish.frontends.jax.from_jax`.

        Raises:
            UnsupportedPrimitives: primitives have no translation.
            ModelError: an argument or a result is no tensor of ONNX, or the names do not fit.
        """
        graph = Graph(self.what, opsets={"": canonical_opset()})
        graph.info.update(producer_name="jax", producer_version=jax.__version__)
        weights = Weights()
        translator = Translator(graph, weights, assumed)
        jaxpr, _ = partial_eval.dce_jaxpr(self.closed.jaxpr, [True] * len(self.closed.jaxpr.outvars), instantiate=True)
        operands = [self._operand(translator, leaf, var) for leaf, var in zip(self.leaves, jaxpr.invars, strict=True)]
        _rename("input", graph.inputs, input_names)
        outputs = translator.inline(_Closed(jaxpr, self.closed.consts), operands)
        translator.finish(self.what)
        taken = {v.name for v in graph.inputs}
        names = _unique(self._output_names() if output_names is None else list(output_names), taken)
        if len(names) != len(outputs) or (output_names is not None and names != list(output_names)):
            raise ModelError(f"output_names: wanted are {len(outputs)} different names that no input has")
        graph.set_outputs(outputs, [GraphOutput(n, v.type) for n, v in zip(names, outputs, strict=True)])
        translator.erase_dead()
        return graph

    def _operand(self, translator: Translator, leaf: _Leaf, var: Any) -> Value:
        try:
            type_ = type_of(var.aval)
        except Refused as refused:
            raise ModelError(f"{self.what}: argument {leaf.name!r}: {refused}") from None
        if leaf.is_weight:
            return translator.weights.value(leaf.value, leaf.name, var.aval.dtype)
        taken = {v.name for v in translator.graph.inputs}
        value = translator.graph.add_input(type_, _unique([leaf.name], taken)[0])
        translator.sizes.add_input(value)
        return value

    def _output_names(self) -> list[str]:
        if self.results == [""]:
            return ["output"]
        return [f"output_{name}" if name[:1].isdigit() else name for name in self.results]


class _Closed(NamedTuple):
    jaxpr: Any
    consts: Sequence[Any]


# names


def _name_of(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)  # functools.partial
    name = getattr(inner, "__name__", type(inner).__name__)
    return "the function" if name == "<lambda>" else str(name)


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry).strip(".[]'")


def _joined(path: Sequence[Any]) -> str:
    return ".".join(_key(entry) for entry in path)


def _leaf(path: Sequence[Any], value: Any, names: Sequence[str], has_params: bool) -> _Leaf:
    outer, first, *rest = path
    if outer.idx == 1:
        return _Leaf(_joined([first, *rest]), value, False)
    is_weight = has_params and first.idx == 0
    inner = _joined(rest)
    name = names[first.idx]
    return _Leaf(inner or name if is_weight else ".".join(filter(None, (name, inner))), value, is_weight)


def _unique(names: Sequence[str], taken: set[str]) -> list[str]:
    found = []
    for name in names:
        free, count = name, 0
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        taken.add(free)
        found.append(free)
    return found


def _rename(kind: str, values: Sequence[Value], names: Sequence[str] | None) -> None:
    if names is None:
        return
    if len(names) != len(values) or len(set(names)) != len(names):
        raise ModelError(f"{kind}_names: {', '.join(names)}; wanted are {len(values)} different names")
    for value, name in zip(values, names, strict=True):
        value.name = name


# shapes


def _is_array(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return False
    return not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) or isinstance(value, jax.ShapeDtypeStruct)


def _symbolic(leaves: Mapping[int, _Leaf], names: Mapping[str, Any], what: str) -> dict[int, jax.ShapeDtypeStruct]:
    """The abstract values of the arrays, with names for sizes where ``names`` gives some."""
    inputs = {leaf.name for leaf in leaves.values() if not leaf.is_weight}
    unknown = [name for name in names if name not in inputs]
    if unknown:
        known = ", ".join(sorted(inputs)) or "none"
        raise ModelError(f"{what}: dynamic_shapes names {', '.join(unknown)}; the inputs are {known}")
    dims = [d for leaf in leaves.values() for d in np.shape(leaf.value) if jax.export.is_symbolic_dim(d)]
    scope = dims[0].scope if dims else jax.export.SymbolicScope()
    found = {}
    for i, leaf in leaves.items():
        shape = tuple(leaf.value.shape)
        if not leaf.is_weight and leaf.name in names:
            text = _specification(shape, names[leaf.name], leaf.name)
            try:
                shape = jax.export.symbolic_shape(text, scope=scope, like=shape)
            except ValueError as error:
                raise ModelError(f"{what}: dynamic_shapes of {leaf.name}: {describe(error)}") from error
        found[i] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.value.dtype))
    return found


def _specification(shape: Sequence[Any], given: Any, name: str) -> str:
    """What ``jax.export.symbolic_shape`` reads."""
    if isinstance(given, str):
        return given
    names = dict(given) if isinstance(given, Mapping) else {i: n for i, n in enumerate(given) if n is not None}
    rank = len(shape)
    if any(not isinstance(a, int) or not -rank <= a < rank for a in names):
        raise ModelError(f"dynamic_shapes of {name}: axes {', '.join(map(str, names))} of an array of rank {rank}")
    by_axis = {a % rank: str(n) for a, n in names.items()}
    return ", ".join(by_axis.get(a, str(d)) for a, d in enumerate(shape)) + ("," if rank == 1 else "")
