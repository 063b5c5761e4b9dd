"""Finding every rule of a package."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from planish.passes.rules import Rule

from .check import rules_of

__all__ = ["all_rules", "modules_below"]


def modules_below(package: ModuleType) -> list[ModuleType]:
    """``package`` and all modules in it, imported, sorted by name."""
    names = [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    return [package, *(importlib.import_module(name) for name in sorted(names))]


def all_rules(package: ModuleType | None = None) -> list[Rule]:
    """Every rule that a module of ``package`` (default `planish.passes`) defines, each once, in order."""
    if package is None:
        package = importlib.import_module("planish.passes")
    return rules_of(*modules_below(package))
