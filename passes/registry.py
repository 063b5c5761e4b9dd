"""Finding passes and recipes by name.

A pass ``fuse-attention`` is the class ``FuseAttention`` in a module ``fuse_attention`` somewhere below `planish.passes`
(for a family, the class is in the package itself: ``simplify`` is ``Simplify`` in ``simplify/__init__.py``). Passes of
other distributions come through the entry points of group ``planish.passes``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Pass

__all__ = ["RECIPES", "find_pass", "find_recipe", "pass_names"]

ENTRY_POINTS = "planish.passes"
_DEFAULT = "raise-quantization,simplify,fuse,simplify"
RECIPES = {  # name -> pipeline; a recipe is nothing but an abbreviation
    "default": _DEFAULT,
    "int8": f"{_DEFAULT},equalize,smooth,quantize{{max_drop=0.002}}",
    "int8-dynamic": f"{_DEFAULT},smooth,quantize{{activations=dynamic,max_drop=0.0005}}",
    "int8-weights": f"{_DEFAULT},quantize{{activations=float}}",
    "int4-weights": f"{_DEFAULT},quantize{{activations=float,bits=4,block=32,weights=gptq,symmetric=false}}",
    "fp16": f"{_DEFAULT},convert-precision",
    "bf16": f"{_DEFAULT},convert-precision{{to=bfloat16}}",
}


def find_recipe(name: str) -> str | None:
    """The pipeline that ``name`` abbreviates, or None."""
    return RECIPES.get(name)


@cache
def _modules() -> dict[str, str]:
    """Module names below `planish.passes`, by their last part."""
    found: dict[str, str] = {}

    def visit(paths: Iterable[str], package: str) -> None:
        for info in pkgutil.iter_modules(paths):
            full = f"{package}.{info.name}"
            found.setdefault(info.name, full)
            if info.ispkg:  # looked into, not imported
                visit([f"{path}/{info.name}" for path in paths], full)

    visit(importlib.import_module(__package__).__path__, __package__)
    return found


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _builtin(name: str) -> type[Pass] | None:
    module_name = name.replace("-", "_")
    found = _pass_in(f"{__package__}.{module_name}", name)
    if found is None and (full := _modules().get(module_name)) is not None:
        found = _pass_in(full, name)
    return found


def _pass_in(full: str, name: str) -> type[Pass] | None:
    """The pass ``name`` in the module ``full``; None if there is no such module, or it has no such pass."""
    from .base import Pass

    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        return None
    cls = getattr(module, _class_name(name), None)
    is_pass = isinstance(cls, type) and issubclass(cls, Pass) and full != f"{__package__}.pipeline"
    return cls if is_pass else None


def find_pass(name: str) -> type[Pass]:
    """The class of the pass called ``name``.

    Raises:
        LookupError: there is none; the message names similar ones.
    """
    from .base import Pass

    cls = _builtin(name)
    if cls is not None:
        return cls
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        loaded = entry.load()
        if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
            raise LookupError(f"entry point {name!r} of {entry.value} is no Pass class")
        return loaded
    near = difflib.get_close_matches(name, [*pass_names(), *RECIPES], n=3)
    raise LookupError(
        f"no pass {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "; see `planish passes`")
    )


def pass_names() -> list[str]:
    """The names of all passes, built in and plugged in, sorted."""
    from importlib.metadata import entry_points

    builtin = [n.replace("_", "-") for n in _modules()]
    return sorted([n for n in builtin if _builtin(n) is not None] + [e.name for e in entry_points(group=ENTRY_POINTS)])
