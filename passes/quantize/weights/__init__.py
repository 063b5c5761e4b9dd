"""Quantizing weights: how to choose scales, and how to round. Arrays in, arrays out; no graphs."""

from typing import Literal

__all__ = ["WeightMethod"]

WeightMethod = Literal["round", "mse", "hqq", "gptq", "adaround"]
