"""Activations: Gelu, Swish, Mish, HardSwish, Softplus, in the ways that exporters spell them."""

from __future__ import annotations
