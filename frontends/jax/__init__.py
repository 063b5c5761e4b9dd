"""JAX functions -> `Graph`, sharing the weights with jax.

Needs the extra ``planish[xla]``; jax is imported when one of the functions is called.
"""

from .export import JaxModel, from_jax
from .reasons import Refusal, UnsupportedPrimitives

__all__ = ["JaxModel", "Refusal", "UnsupportedPrimitives", "from_jax"]
