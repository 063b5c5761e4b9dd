"""Zeros in weights: which, what the others become, and what is reported."""
