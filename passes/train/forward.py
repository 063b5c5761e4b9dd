"""The forward pass: a graph as a function of those of its weights that are trained, and of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ...ir import Graph, GraphOutput, Tensor, Value, edit
from ...ir.clone import clone_graph
from ...ir.types import DType, TensorType
from ..base import Context
from .ties import computed, trained_part

__all__ = ["Forward"]

Array = np.ndarray[Any, Any]


class Forward:
    """A graph as a function ``f(weights, batch, constants)`` of outputs by name, which JAX can trace.

    The trained weights are inputs of a copy of the graph: so they may be of any type and rank, all others stay
    constants, and in ``bfloat16`` the copy casts what is a float32 master weight here.

    Args:
        graph: a root graph, which stays as it is.
        weights: the constants that are trained, by name.
        taps: further values that become outputs, by name.
        precision: of products and activations.
        ctx: gives gradients.

    Attributes:
        defaults: what inputs are for which a batch may have no array.
        constants: the weights that are not trained, where JAX computes. They are passed, or they would become part of
            the program.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Value],
        taps: Mapping[str, Value],
        precision: Literal["float32", "bfloat16"],
        ctx: Context,
    ):
        import jax

        self._initial = weights
        mapping: dict[Value, Value] = {}
        copy = clone_graph(graph, mapping)
        self.inputs = [v.name for v in graph.inputs]
        self.defaults = {v.name: v.default.numpy() for v in graph.inputs if v.default is not None}
        _make_inputs(copy, weights)
        info = [*copy.output_info, *(GraphOutput(name, v.type) for name, v in taps.items())]
        copy.set_outputs([*copy.outputs, *(mapping[v] for v in taps.values())], info)
        self._types = {name: v.dtype for name, v in weights.items()}
        if precision == "bfloat16":
            from ..quantize.convert_precision import ConvertPrecision

            ConvertPrecision(to="bfloat16").run(copy, Context())
        self.function = ctx.differentiable(copy)
        self.constants = jax.device_put(self.function.params)
        self.outputs = [o.name for o in copy.output_info]

    def weights(self) -> dict[str, Array]:
        """The trained weights as they are in the graph, in float32."""
        found = {}
        for name, value in self._initial.items():
            assert value.const is not None
            found[name] = value.const.numpy().astype(np.float32)
        return found

    def __call__(
        self, weights: Mapping[str, Any], batch: Mapping[str, Any], constants: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The outputs and the taps, by name; floating-point ones in float32."""
        import jax.numpy as jnp

        inputs = [batch[name] for name in self.inputs]
        trained = [jnp.asarray(weights[name], _jax_type(dtype)) for name, dtype in self._types.items()]
        found = self.function(constants, *inputs, *trained)
        outputs = dict(zip(self.outputs, found, strict=True))
        return {n: v.astype(jnp.float32) if jnp.issubdtype(v.dtype, jnp.floating) else v for n, v in outputs.items()}


def _jax_type(dtype: DType) -> Any:
    return np.float32 if dtype is DType.DOUBLE else dtype.numpy


def _make_inputs(copy: Graph, weights: Mapping[str, Value]) -> None:
    """Let the trained weights be inputs of ``copy``, behind its own; all constants with one tensor are one input."""
    inputs: dict[Tensor, Value] = {}
    for name, value in weights.items():
        assert value.const is not None
        inputs[value.const] = copy.add_input(TensorType(value.dtype, value.const.shape), f"weight {name}")
    first = next(copy.nodes, copy.ret)
    for value in copy.constants():
        if value.const is None or (base := trained_part(value.const, inputs)) is None:
            continue
        trained = computed(value.const, base, inputs[base])
        edit.insert_floating([trained], first)
        edit.replace(value, trained)
