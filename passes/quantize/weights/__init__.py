"""Quantizing weights: how to choose scales, and how to round. Arrays in, arrays out; no graphs."""
