"""What a backend is, and how backends are found.

A backend is a module (or package) beside this one that defines ``BACKEND``, a subclass of `Backend`; other packages add
theirs through the entry-point group ``planish.backends``, whose entries load such a class. Importing the module of a
backend loads nothing heavy.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, overload

import numpy as np

from ..ir.errors import PlanishError
from ..ir.graph import Graph, Node
from ..ir.types import UNKNOWN, DType, SequenceType, TensorType, Type

if TYPE_CHECKING:
    from .legalize import Stamp

__all__ = [
    "Backend",
    "Executable",
    "Lowered",
    "LoweringError",
    "Problem",
    "Written",
    "backend",
    "backends",
    "import_or_explain",
    "type_of",
]

GROUP = "planish.backends"


class Problem:
    """One node that a backend cannot lower, and why."""

    __slots__ = ("node", "reason")

    def __init__(self, node: Node, reason: str):
        self.node = node
        self.reason = reason

    def __str__(self) -> str:
        origin = str(self.node.origin)
        name = f" {self.node.name!r}" if self.node.name and self.node.name not in origin else ""
        return f"{self.node.op}{name}: {self.reason}" + (f" [{origin}]" if origin else "")


class LoweringError(PlanishError):
    """A graph holds nodes that a backend cannot lower. ``problems`` lists all of them; so does the message."""

    def __init__(self, target: str, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        nodes = "1 node" if len(problems) == 1 else f"{len(problems)} nodes"
        super().__init__("\n  ".join([f"{target} cannot run {nodes}:", *map(str, problems)]))


class Executable(ABC):
    """A compiled graph.

    Attributes:
        inputs: name and type of every input, in order.
        outputs: the names of the outputs, in order.
    """

    inputs: Sequence[tuple[str, Type]]
    outputs: Sequence[str]

    @overload
    def __call__(self, inputs: Mapping[str, Any], /) -> dict[str, Any]: ...
    @overload
    def __call__(self, /, *inputs: Any) -> list[Any]: ...
    def __call__(self, /, *inputs: Any) -> Any:
        """Run it. Arrays in order give a list of outputs, a mapping from names a dictionary.

        Values are numpy arrays; a sequence is a list of them, an empty optional None.

        Raises:
            PlanishError: the inputs do not fit, or the run failed.
        """
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return dict(zip(self.outputs, self.run(inputs[0]), strict=True))
        if len(inputs) > len(self.inputs):
            raise PlanishError(f"{len(inputs)} inputs given, the model has {len(self.inputs)}")
        return self.run({name: value for (name, _), value in zip(self.inputs, inputs, strict=False)})

    @abstractmethod
    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order, for inputs by name."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a file, whole or not at all."""
        raise PlanishError(f"cannot write {os.fspath(path)}: what this backend compiles cannot be saved")

    def report(self) -> dict[str, Any]:
        """Facts about the result, ready for JSON."""
        return {}

    def estimate(self, inputs: Mapping[str, Any]) -> float | None:
        """Seconds per run for ``inputs``, as the target's compiler sees it, where the target is not here to measure."""
        return None


class Lowered(NamedTuple):
    """A graph that a backend can run.

    Attributes:
        graph: it.
        stamp: the versions to state where it is written as a model; None: whatever suits it.
        notes: what its user must know, one line each: inputs that have another type now, say.
    """

    graph: Graph
    stamp: Stamp | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What has been written: ``facts``, ready for JSON, and ``text`` for people."""

    facts: dict[str, Any]
    text: str


class Backend(ABC):
    """One way to run a graph. Every backend is also a runner for passes (`planish.passes.Runner`).

    Args:
        variant: what stands behind the colon of a target (``onnxruntime:arm64``), or "".

    Attributes:
        name: the name of its module.
        extra: the extra of planish that installs what it needs, or "".
        pipeline: the passes that lower a graph for it, as text, or "".
        suffixes: of the files that it writes.
        takes_ranges: whether its programs are for ranges of sizes.
        is_remote: whether what it compiles here runs elsewhere, so that times of runs here mean nothing.
    """

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    pipeline: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    takes_ranges: ClassVar[bool] = False
    is_remote: ClassVar[bool] = False

    def __init__(self, variant: str = ""):
        self.variant = variant

    def missing(self) -> str | None:
        """One line that says what to install, or None if the backend can run here."""
        return None

    def runner(self) -> Backend:
        """What runs parts of models for passes, and originals to compare with; another one if this one cannot here."""
        return self

    @abstractmethod
    def lower(self, graph: Graph) -> Graph:
        """A copy of ``graph`` that uses only what is legal here.

        Raises:
            LoweringError: with every node for which there is no way.
        """

    def lower_and_stamp(self, graph: Graph) -> Lowered:
        """What `lower` gives, and how to write it as a model."""
        return Lowered(self.lower(graph))

    def next_step(self, path: str | os.PathLike[str]) -> str:
        """What to do with an ONNX file that was written for it, or ""."""
        return ""

    @abstractmethod
    def compile(self, graph: Graph, **options: Any) -> Executable:
        """Lower ``graph``, which stays as it is, and make it executable.

        Raises:
            PlanishError: it cannot be done; `LoweringError` lists the nodes at fault.
        """

    def write(self, graph: Graph, path: str | os.PathLike[str], **options: Any) -> Written:
        """Write what runs on the target, in a format of its own (one of `suffixes`), whole or not at all.

        Raises:
            PlanishError: it cannot be lowered or written.
        """
        raise PlanishError(f"{os.fspath(path)}: {self.name} writes {', '.join(self.suffixes)}")

    def check(self, options: Mapping[str, Any]) -> None:
        """Complain of options for `write` before there is anything to write; whatever is not known is checked there.

        Raises:
            PlanishError: there is no such option, or it has no such value.
        """
        return

    def load(self, path: str | os.PathLike[str], **options: Any) -> Executable:
        """What `write` or `Executable.save` wrote."""
        raise PlanishError(f"cannot load {os.fspath(path)}: what {self.name} compiles cannot be saved")

    def run(self, graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of ``graph`` by name."""
        outputs: dict[str, Any] = self.compile(graph)(inputs)
        return outputs

    def evaluate(self, node: Node, operands: Sequence[Any]) -> list[Any]:
        """The results of one node for concrete operands."""
        from .functions import isolate

        graph = isolate(node, [None if o is None else type_of(o) for o in operands])
        results: list[Any] = self.compile(graph)(*[o for o in operands if o is not None])
        return results


def type_of(value: Any) -> Type:
    """The type of a run-time value: an array, or a list of them."""
    if isinstance(value, list | tuple):
        return SequenceType(type_of(value[0]) if value else UNKNOWN)
    array = np.asarray(value)
    return TensorType(DType.from_numpy(array.dtype), array.shape)


def backend(target: str) -> Backend:
    """The backend for ``target``: its name, and perhaps a variant behind a colon.

    Raises:
        PlanishError: there is none, or what it needs is not installed.
    """
    name, _, variant = target.partition(":")
    found = _find(name)
    if found is None:
        raise PlanishError(f"no backend {name!r}: there are {', '.join(backends())}")
    instance = found(variant)
    missing = instance.missing()
    if missing:
        raise PlanishError(missing)
    return instance


def backends() -> list[str]:
    """The names of all backends, whether or not what they need is installed."""
    names = {module.name for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__)}
    return sorted({n for n in names if _built_in(n) is not None} | set(_entry_points()))


def _find(name: str) -> type[Backend] | None:
    found = _built_in(name)
    if found is None:
        entry = _entry_points().get(name)
        found = None if entry is None else entry.load()
    return found


def _built_in(name: str) -> type[Backend] | None:
    if not name.isidentifier():
        return None
    try:
        module = importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{name}":
            raise
        return None
    return getattr(module, "BACKEND", None)


def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def import_or_explain(module: str, extra: str = "") -> str | None:
    """One line that says how to install ``module``, or None if it is there."""
    from importlib.util import find_spec

    if find_spec(module) is not None:
        return None
    return f"{module} is not installed: pip install " + (f"'planish[{extra}]'" if extra else module)
