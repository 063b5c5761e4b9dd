"""Fisher information of weights: how much the model's outputs depend on them, from gradients, without labels.

Of an output ``y`` with Gaussian noise, the information of a weight is the sum of the squared derivatives of all its
elements by the weight. That is the mean of ``(d<v, y> / dW)^2`` over random ``v``: one gradient per batch is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ...ir import Graph
from ..base import Context, RequestError
from .algebra import Array
from .sites import Site

__all__ = ["Information", "information_of"]

_DRAWS, _MOST = 16, 32  # gradients, at least, and of so many samples
_LEAST = 1e-4  # of the mean: nothing is worth less


@dataclass
class Information:
    """The Fisher information of a weight [out, in], summed over rows or columns.

    Attributes:
        outputs: [out], of all weights of an output.
        inputs: [in], of all weights that an input meets.
    """

    outputs: Array = field(default_factory=lambda: np.zeros(()))
    inputs: Array = field(default_factory=lambda: np.zeros(()))

    def add(self, squares: Array) -> None:
        """Add squared derivatives [out, in]."""
        self.outputs = self.outputs + squares.sum(axis=1, dtype=np.float64)
        self.inputs = self.inputs + squares.sum(axis=0, dtype=np.float64)

    @property
    def total(self) -> float:
        """That of the whole weight."""
        return float(self.inputs.sum())

    @property
    def of_inputs(self) -> Array:
        """``inputs``, none of which is worth nothing."""
        return np.maximum(self.inputs, _LEAST * self.inputs.mean() or 1.0)


def information_of(graph: Graph, sites: Sequence[Site], ctx: Context) -> dict[Site, Information]:
    """The information of the weights of all sites, up to one factor.

    Raises:
        RequestError: there are no samples, or there is no way to have gradients.
        PlanishError: an operator has no lowering.
    """
    import jax

    if ctx.samples is None:
        raise RequestError("low-rank{method=fisher} needs samples: give data")
    function = ctx.differentiable(graph)
    names = {value: name for name, values in function.constants(graph).items() for value in values}
    wanted = {names[site.first.weight]: site for site in sites}
    others = {name: array for name, array in function.params.items() if name not in wanted}
    own = {name: function.params[name] for name in wanted}
    step, key = jax.jit(_squares(function, others)), jax.random.key(0)
    found = {site: Information() for site in sites}
    draws = 0
    while draws < _DRAWS:
        before = draws
        for sample in islice(ctx.samples(), _MOST):
            ctx.progress(f"Fisher information: gradient {draws + 1}")
            squares = step(own, [sample[name] for name, _ in function.inputs], jax.random.fold_in(key, draws))
            for name, site in wanted.items():
                array = np.moveaxis(np.asarray(squares[name]), site.first.out_axis, 0)
                found[site].add(array.reshape(len(array), -1))
            draws += 1
        if draws == before:
            raise RequestError("Fisher information needs samples: there are none")
    return found


def _squares(function: Any, others: Mapping[str, Any]) -> Any:
    """A function of some weights, inputs and a key: the squared gradients of a random projection of all outputs."""
    import jax
    import jax.numpy as jnp

    def squares(own: Mapping[str, Any], inputs: Sequence[Any], key: Any) -> dict[str, Any]:
        def projected(own: Mapping[str, Any]) -> Any:
            outputs = [y for y in function({**others, **own}, *inputs) if jnp.issubdtype(y.dtype, jnp.floating)]
            keys = jax.random.split(key, len(outputs))
            return sum((y * jax.random.normal(k, y.shape, y.dtype)).sum() for y, k in zip(outputs, keys, strict=True))

        return {name: gradient.astype(jnp.float32) ** 2 for name, gradient in jax.grad(projected)(own).items()}

    return squares
