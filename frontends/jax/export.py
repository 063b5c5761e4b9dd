"""The face of the frontend: `from_jax`, and `JaxModel` for handing a function on with all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir.graph import Graph

__all__ = ["JaxModel", "from_jax", "require_jax"]

ASSUMPTIONS = ("finite", "in_bounds")
DynamicShapes = Mapping[str, str | Mapping[int, str] | Sequence[str | None]]


def from_jax(
    function: Callable[..., Any],
    *args: Any,
    params: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    assume: Collection[str] = (),
) -> Graph:
    """The graph of a JAX function, whose weights are jax's own memory.

    The function is traced as ``function(params, *args, **kwargs)``, or without ``params`` where none are given. Arrays
    that it closes over become constants, as those in ``params`` do. Inputs are called like the function's parameters
    (``x``, ``batch.ids`` for an entry of a dictionary), constants after their place in ``params``
    (``encoder.layer_0.kernel``), outputs like the entries of the dictionary, named tuple or dataclass that the function
    returns; else ``output``, ``output_0`` …

    Args:
        function: the function; ``jax.jit`` around it makes no difference.
        args: example arguments: pytrees of arrays or ``jax.ShapeDtypeStruct``, whose sizes may be symbolic
            (``jax.export.symbolic_shape``). What is no array (a flag, a size, a random key) becomes part of the graph.
        params: a pytree of arrays that become constants: the first argument of the function.
        kwargs: example keyword arguments.
        dynamic_shapes: names for sizes that may differ from the example's: for the name of an input, either axes and
            names (``{"x": {0: "batch"}}``), or a name (or None) for each axis, or text as for
            ``jax.export.symbolic_shape`` (``{"x": "batch, 2*half, 64"}``).
        input_names: other names for the inputs, in order.
        output_names: other names for the outputs, in order.
        assume: what is promised of the numbers, and need not be guarded against: ``"finite"`` (there is no NaN where
            a maximum is looked for), ``"in_bounds"`` (indices are inside of what they index).

    Raises:
        ImportError: the extra is missing.
        ModelError: the function cannot be traced.
        UnsupportedPrimitives: it uses primitives that have no translation; all of them are named.
    """
    require_jax()
    from .trace import trace

    unknown = [a for a in assume if a not in ASSUMPTIONS]
    if unknown or isinstance(assume, str):
        raise TypeError(f"assume: {assume!r}; it is a list of {', '.join(ASSUMPTIONS)}")
    traced = trace(function, args, params=params, kwargs=dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    return traced.graph(input_names, output_names, assume)


@dataclass(frozen=True)
class JaxModel:
    """A JAX function with what `from_jax` needs to make a graph of it: the arguments have the same names there.

    This is what a function that is named on the command line (``model.py:build``) returns.
    """

    function: Callable[..., Any]
    args: Sequence[Any] = ()
    params: Any = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: DynamicShapes | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    assume: Collection[str] = ()

    def graph(self) -> Graph:
        """The graph; raises what `from_jax` raises."""
        return from_jax(
            self.function,
            *self.args,
            params=self.params,
            kwargs=self.kwargs,
            dynamic_shapes=self.dynamic_shapes,
            input_names=self.input_names,
            output_names=self.output_names,
            assume=self.assume,
        )


def require_jax() -> Any:
    """The jax package.

    Raises:
        ImportError: it is missing.
    """
    try:
        import jax
        import jax.export
    except ModuleNotFoundError as error:
        raise ImportError(f"JAX models need {error.name}: pip install 'planish[xla]'", name=error.name) from None
    return jax
