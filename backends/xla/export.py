"""StableHLO: a JAX function for several platforms and, where sizes have names, for all sizes, as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from ...ir.dims import Dim, limits, substitute
from ...ir.errors import PlanishError
from ...ir.graph import Graph
from ...ir.types import DType, SequenceType, TensorType, Type
from ..base import Executable, Written
from . import archive
from .executable import for_inference
from .function import JaxFunction

__all__ = ["PLATFORMS", "Exported", "abstract_inputs", "export_function", "load", "save", "signature", "wide"]

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN = (*PLATFORMS, "rocm")
_ENTRY = "module.jax_export"
_KIND = "planish-stablehlo"


def wide(graph: Graph) -> bool:
    """Whether ``graph`` needs 64-bit types: only where numbers are; integers index, for which 32 bits are enough."""
    types = [v.type for v in graph.inputs] + [v.type for node in graph.walk() for v in node.results]
    return any(isinstance(t, TensorType) and t.dtype in (DType.DOUBLE, DType.COMPLEX128) for t in types)


def abstract_inputs(
    function: JaxFunction, sizes: Mapping[str, int] | None = None, upper: Mapping[str, int] | None = None
) -> list[jax.ShapeDtypeStruct]:
    """Shapes and types of the inputs, with a symbol of ``jax.export`` for every size that has no number.

    Args:
        function: the function.
        sizes: numbers for named sizes.
        upper: the largest numbers that others may have.

    Raises:
        PlanishError: an input has no such shape.
    """
    symbols = _Symbols(sizes or {}, upper or {})
    found = []
    for i, (name, type_) in enumerate(function.inputs):
        if i in function.static_inputs:
            raise PlanishError(
                f"input {name!r} decides a shape, so it cannot stay open: make it a constant of the model"
            )
        if not isinstance(type_, TensorType) or type_.shape is None:
            raise PlanishError(f"input {name!r} is {type_}: only tensors of known rank can be exported")
        shape = tuple(symbols.dim(d, name) for d in type_.shape)
        found.append(jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(type_.dtype.numpy)))
    return found


class _Symbols:
    """Symbols of one scope of ``jax.export``, by the names of sizes."""

    def __init__(self, sizes: Mapping[str, int], upper: Mapping[str, int]):
        self.sizes = sizes
        self.scope = export.SymbolicScope([f"{_plain(name)} <= {limit}" for name, limit in upper.items()])
        self.known: dict[str, Any] = {}

    def dim(self, dim: Dim, where: str) -> Any:
        """``dim`` as JAX has it."""
        try:
            return substitute(dim, self.symbol)
        except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
            raise PlanishError(
                f"input {where!r}: a size {dim} cannot be symbolic; give numbers for its names"
            ) from error

    def symbol(self, name: str) -> Any:
        """The number or symbol of a named or anonymous size."""
        if name in self.sizes:
            return self.sizes[name]
        if name not in self.known:
            plain, taken = _plain(name), {str(s) for s in self.known.values()}
            unique = plain if plain not in taken else f"{plain}_{len(taken)}"
            (self.known[name],) = export.symbolic_shape(unique, scope=self.scope)
        return self.known[name]


def _plain(name: str) -> str:
    """``name`` as ``jax.export`` can read it."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name.strip("?~")) or "size"
    return plain if plain[0].isalpha() else f"d{plain}"


def _limits(graph: Graph) -> dict[str, int]:
    """The sizes above which ``graph`` clips something, such as a table of positions."""
    found: dict[str, int] = {}
    for node in graph.walk():
        for value in node.results:
            for dim in value.shape or ():
                for name, limit in limits(dim):
                    found[name] = min(limit, found.get(name, limit))
    return found


def export_function(
    function: JaxFunction, platforms: Sequence[str] = PLATFORMS, sizes: Mapping[str, int] | None = None
) -> export.Exported:
    """``function`` as StableHLO.

    Where sizes stay open that the model clips (a table holds 512 positions), it may be that shapes only fit together
    below that limit; then the limit becomes a constraint, which is checked when the module is called.

    Args:
        function: the function.
        platforms: of ``cpu``, ``cuda``, ``rocm``, ``tpu``.
        sizes: numbers for named sizes; the others stay open.

    Raises:
        PlanishError: it cannot be lowered for these platforms, or not for all sizes.
    """
    unknown = [p for p in platforms if p not in _KNOWN]
    if unknown:
        raise PlanishError(f"no platform {unknown[0]!r}: XLA has {', '.join(_KNOWN)}")
    clipped = {name: limit for name, limit in _limits(function.plan.graph).items() if name not in (sizes or {})}
    try:
        return _exported(function, platforms, abstract_inputs(function, sizes))
    except PlanishError:
        if not clipped:
            raise
        return _exported(function, platforms, abstract_inputs(function, sizes, clipped))


def _exported(function: JaxFunction, platforms: Sequence[str], inputs: Sequence[Any]) -> export.Exported:
    try:
        return export.export(jax.jit(function), platforms=tuple(platforms))(function.param_shapes, *inputs)
    except (TypeError, ValueError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        raise PlanishError(f"xla cannot export the model: {' '.join(str(error).split())[:400]}") from error


def save(
    graph: Graph, path: str | os.PathLike[str], *, platforms: Sequence[str] = PLATFORMS,
    sizes: Mapping[str, int] | None = None, **options: Any,
) -> Written:  # fmt: skip
    """Write ``graph`` as ``.stablehlo`` (with its weights, see `planish.backends.xla.archive`) or ``.mlir`` text.

    Args:
        graph: the graph, which stays as it is.
        path: the file, which appears whole or not at all.
        platforms: see `export_function`.
        sizes: see `export_function`.
        options: those of `planish.backends.xla.function.to_jax`; by default, quantized products are integers.

    Returns:
        what there is to say about it.

    Raises:
        PlanishError: it cannot be lowered, or not be written.
    """
    function = for_inference(graph, **options)
    with jax.enable_x64(wide(function.plan.graph)):
        exported = export_function(function, platforms, sizes)
        text = str(exported.mlir_module()) if os.fspath(path).endswith(".mlir") else None
        module = b"" if text is not None else exported.serialize()
    if text is not None:
        archive.write_bytes(path, text.encode())
    else:
        manifest = {"platforms": list(platforms), **signature(function)}
        archive.write(path, _KIND, manifest, {_ENTRY: bytes(module)}, function.plan.tensors)
    shapes = [str(aval) for aval in exported.in_avals[len(exported.in_avals) - len(function.inputs) :]]
    facts: dict[str, Any] = {
        "platforms": list(platforms),
        "inputs": dict(zip([name for name, _ in function.inputs], shapes, strict=True)),
        "weights": len(function.plan.tensors),
    }
    inputs = ", ".join(f"{name} {shape}" for name, shape in facts["inputs"].items())
    return Written(facts, f"StableHLO for {', '.join(platforms)}: {inputs}; {facts['weights']} weights")


def signature(function: JaxFunction) -> dict[str, Any]:
    """Inputs and outputs for a manifest."""
    outputs = [v.type for v in function.plan.graph.outputs]
    return {
        "inputs": [archive.described(name, type_) for name, type_ in function.inputs],
        "outputs": [archive.described(name, t) for name, t in zip(function.outputs, outputs, strict=True)],
        "wide": wide(function.plan.graph),
    }


class Exported(Executable):
    """A ``.stablehlo`` file as an executable, on the devices that JAX finds here.

    Attributes:
        exported: the ``jax.export.Exported``: its ``call(params, *inputs)`` can be part of other JAX functions.
        params: the weights by name.
    """

    def __init__(self, exported: export.Exported, params: dict[str, np.ndarray[Any, Any]], manifest: Mapping[str, Any]):
        self.exported = exported
        self.params = params
        self.inputs = [archive.parsed(i) for i in manifest["inputs"]]
        self._results = [archive.parsed(o) for o in manifest["outputs"]]
        self.outputs = [name for name, _ in self._results]
        self._wide = bool(manifest["wide"])
        self._call = jax.jit(exported.call)
        self._placed: dict[str, Any] | None = None

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        missing = [name for name, _ in self.inputs if name not in inputs]
        if missing:
            raise PlanishError(f"no value for input {missing[0]!r}")
        with jax.enable_x64(self._wide):
            if self._placed is None:
                self._placed = jax.device_put(self.params)
            try:
                results = self._call(self._placed, *(_narrow(name, inputs[name]) for name, _ in self.inputs))
            except (TypeError, ValueError, jax.errors.JaxRuntimeError) as error:
                raise PlanishError(f"xla: {' '.join(str(error).split())[:400]}") from error
            return [_as_stated(r, t) for r, (_, t) in zip(results, self._results, strict=True)]

    def report(self) -> dict[str, Any]:
        """What it was exported for."""
        return {"backend": "xla", "platforms": list(self.exported.platforms), "platform": jax.default_backend()}


def _narrow(name: str, value: Any) -> np.ndarray[Any, Any]:
    """An input in a type that JAX has now; indices must fit."""
    array = np.asarray(value)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind in "iu" and dtype != array.dtype and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise PlanishError(f"input {name!r}: the file computes with 32-bit integers, and {array.max()} is none")
    return array.astype(dtype, copy=False)


def _as_stated(value: Any, type_: Type) -> Any:
    """A result in the type that the model states."""
    if isinstance(value, list | tuple):
        element = type_.element if isinstance(type_, SequenceType) else type_
        return [_as_stated(v, element) for v in value]
    array = np.asarray(value)
    return array.astype(type_.dtype.numpy, copy=False) if isinstance(type_, TensorType) and type_.dtype else array


def load(path: str | os.PathLike[str]) -> Exported:
    """A ``.stablehlo`` file that planish wrote.

    Raises:
        PlanishError: it is none, or damaged.
    """
    manifest, entries, weights = archive.read(path, _KIND, [_ENTRY])
    try:
        exported = export.deserialize(bytearray(entries[_ENTRY]))
        params = {name: array.astype(_jax_type(array.dtype, manifest), copy=False) for name, array in weights.items()}
        return Exported(exported, params, manifest)
    except Exception as error:  # whatever a parser of flat buffers runs into
        raise PlanishError(f"{os.fspath(path)}: damaged: {' '.join(str(error).split())[:200]}") from error


def _jax_type(dtype: np.dtype[Any], manifest: Mapping[str, Any]) -> np.dtype[Any]:
    with jax.enable_x64(bool(manifest["wide"])):
        return np.dtype(jax.dtypes.canonicalize_dtype(dtype))
