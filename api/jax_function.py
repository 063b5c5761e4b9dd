"""`to_jax`: any model as an ordinary JAX function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planish.models import load

if TYPE_CHECKING:
    from planish.backends.xla.function import JaxFunction
    from planish.models import Model

__all__ = ["to_jax"]


def to_jax(model: Model, **options: Any) -> JaxFunction:
    """``model`` as a JAX function ``f(params, *inputs)``, which returns a tuple of its outputs.

    ``f.params`` are its weights by name. The function can be given to ``jax.jit``, ``jax.grad``, ``jax.vmap`` and
    ``jax.export``. Needs the extra ``planish[xla]``.

    Args:
        model: whatever `planish.load` takes.
        options: ``precision`` ("default" or "highest"), ``quantization`` ("fake" has a gradient, "integers" is fast),
            ``attention`` ("auto" or "plain"); see `planish.backends.xla.interpreter.Options`.

    Raises:
        PlanishError: the model cannot be read, jax is missing, or there is no such option.
        LoweringError: with every node that has no lowering.
    """
    from planish.backends.base import backend

    backend("xla")
    from planish.backends.xla.function import to_jax as lower

    return lower(load(model), **options)
