"""Quantization: integers and short floating-point numbers for weights and activations, where they pay."""
