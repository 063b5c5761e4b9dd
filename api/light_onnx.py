"""Loads onnx piece by piece: whoever needs its protobuf classes only need not wait for the whole package.

Anything else of the package that is asked for completes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

__all__ = ["install"]


def install() -> None:
    """Let ``import onnx`` load the protobuf classes only, and the rest when it is used. No effect on a loaded onnx."""
    spec = None if "onnx" in sys.modules else importlib.util.find_spec("onnx")
    if spec is None or spec.loader is None:
        return
    loader = spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules["onnx"] = package
    try:
        protos = importlib.import_module("onnx.onnx_ml_pb2")
    except ImportError:  # laid out differently: load it as usual
        del sys.modules["onnx"]
        return
    package.__dict__.update({n: v for n, v in vars(protos).items() if n[0] != "_" and isinstance(v, type | int)})

    def complete(name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if importlib.util.find_spec(f"onnx.{name}") is not None:
            return importlib.import_module(f"onnx.{name}")
        package.__dict__.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = complete
