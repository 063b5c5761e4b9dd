"""``module.py:function``: how users name Python functions on the command line."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planish.ir.errors import PlanishError

__all__ = ["call_function", "is_function_name", "load_function", "one_line"]


def is_function_name(text: str) -> bool:
    """Whether ``text`` has the form ``module.py:function``."""
    path, _, name = text.rpartition(":")
    return path.endswith(".py") and name.isidentifier()


def load_function(text: str) -> Callable[..., Any]:
    """The function that ``module.py:function`` names; the module is executed, with its folder importable.

    Raises:
        PlanishError: there is no such file or function, or the module raises.
    """
    path, _, name = text.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise PlanishError(f"no such file: {path}")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name = f"_planish_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if not any(isinstance(finder, _QuietTensorflow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietTensorflow())
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PlanishError(f"{path}: {one_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise PlanishError(f"{path} has no function {name!r}")
    return function


class _QuietTensorflow(importlib.abc.MetaPathFinder):
    """Lets a user's module import TensorFlow without its remarks on the machine."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "tensorflow":
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            from planish.frontends.tensorflow import quiet

            spec.loader.exec_module = quiet()(spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def call_function(text: str) -> Any:
    """What the function that ``text`` names returns.

    Raises:
        PlanishError: there is no such function, or it raises.
    """
    function = load_function(text)
    try:
        return function()
    except Exception as error:
        raise PlanishError(f"{text}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The kind of ``error`` and what it says, in one line of bounded length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 500 else text[:499] + "…"
