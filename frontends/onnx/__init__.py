"""ONNX files -> `Graph`: reading what may be malformed or hostile, and bringing it to the canonical opset."""

from .reader import load

__all__ = ["load"]
