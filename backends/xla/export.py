"""StableHLO: a JAX function for several platforms and, where sizes have names, for all sizes, as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from ...ir.errors import PlanishError
from ...ir.graph import Graph
from ...ir.types import DType, SequenceType, TensorType, Type
from ..base import Executable, Written
from . import archive
from .executable import for_inference
from .function import JaxFunction
from .padded import Padded, in_parts
from .symbols import Assumptions, abstract_inputs, assumptions_of, check_sizes

__all__ = ["PLATFORMS", "Exported", "export_function", "load", "save", "signature", "wide"]

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN = (*PLATFORMS, "rocm")
_ENTRY = "module.jax_export"
_KIND = "planish-stablehlo"


def wide(graph: Graph) -> bool:
    """Whether ``graph`` needs 64-bit types: only where numbers are; integers index, for which 32 bits are enough."""
    types = [v.type for v in graph.inputs] + [v.type for node in graph.walk() for v in node.results]
    return any(isinstance(t, TensorType) and t.dtype in (DType.DOUBLE, DType.COMPLEX128) for t in types)


def export_function(
    function: JaxFunction, platforms: Sequence[str] = PLATFORMS, sizes: Mapping[str, int] | None = None
) -> tuple[export.Exported, Assumptions]:
    """``function`` as StableHLO, and what it assumes of sizes. A padded output is a pair: values, and their count.

    Where shapes only fit together under conditions (a table holds 512 positions; a mask is as long as the keys), these
    are assumed; whoever calls the module with other sizes gets an error.

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
    assumed = assumptions_of(function.plan.graph, sizes or {})
    try:
        return _exported(function, platforms, abstract_inputs(function, sizes)), Assumptions()
    except PlanishError:
        if not assumed:
            raise
        return _exported(function, platforms, abstract_inputs(function, sizes, assumed)), assumed


def _exported(function: JaxFunction, platforms: Sequence[str], inputs: Sequence[Any]) -> export.Exported:
    try:
        return export.export(jax.jit(in_parts(function)), platforms=tuple(platforms))(function.param_shapes, *inputs)
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
    check_sizes(function, sizes or {})
    with jax.enable_x64(wide(function.plan.graph)):
        exported, assumed = export_function(function, platforms, sizes)
        text = str(exported.mlir_module()) if os.fspath(path).endswith(".mlir") else None
        module = b"" if text is not None else exported.serialize()
    if text is not None:
        archive.write_bytes(path, text.encode())
    else:
        manifest = {"platforms": list(platforms), "limits": assumed.limits, **signature(function)}
        archive.write(path, _KIND, manifest, {_ENTRY: bytes(module)}, function.plan.tensors)
    shapes = [str(aval) for aval in exported.in_avals[len(exported.in_avals) - len(function.inputs) :]]
    facts: dict[str, Any] = {
        "platforms": list(platforms),
        "inputs": dict(zip([name for name, _ in function.inputs], shapes, strict=True)),
        "weights": len(function.plan.tensors),
        **({"assumes": str(assumed)} if assumed else {}),
        **({"padded": function.padded} if function.padded else {}),
    }
    inputs = ", ".join(f"{name} {shape}" for name, shape in facts["inputs"].items())
    return Written(
        facts,
        f"StableHLO for {', '.join(platforms)}: {inputs}; {facts['weights']} weights"
        + (f"; for {assumed}" if assumed else "")
        + padding_of(function),
    )


def padding_of(function: JaxFunction) -> str:
    """Which outputs of ``function``, which has been traced, come with a count."""
    found = ", ".join(f"{name} along {axis}" for name, axis in function.padded.items())
    return f"; padded, with a count: {found}" if found else ""


def signature(function: JaxFunction) -> dict[str, Any]:
    """Inputs and outputs of ``function``, which has been traced, for a manifest. Padded outputs state their axis."""
    types = [v.type for v in function.plan.graph.outputs]
    outputs = [archive.described(name, t) for name, t in zip(function.outputs, types, strict=True)]
    padded = function.padded
    return {
        "inputs": [archive.described(name, type_) for name, type_ in function.inputs],
        "outputs": [{**o, "padded": padded[o["name"]]} if o["name"] in padded else o for o in outputs],
        "wide": wide(function.plan.graph),
    }


class Exported(Executable):
    """A ``.stablehlo`` file as an executable, on the devices that JAX finds here.

    Attributes:
        exported: the ``jax.export.Exported``: its ``call(params, *inputs)`` can be part of other JAX functions.
        params: the weights by name.
        padded: the outputs whose sizes depend on data, and the axis of each. ``exported`` has a pair for them: values
            of the largest size, and the number of those that count; `run` cuts them.
    """

    def __init__(self, exported: export.Exported, params: dict[str, np.ndarray[Any, Any]], manifest: Mapping[str, Any]):
        self.exported = exported
        self.params = params
        self.inputs = [archive.parsed(i) for i in manifest["inputs"]]
        self._results = [archive.parsed(o) for o in manifest["outputs"]]
        self.outputs = [name for name, _ in self._results]
        self.padded = {str(o["name"]): int(o["padded"]) for o in manifest["outputs"] if "padded" in o}
        self._wide = bool(manifest["wide"])
        self._limits = dict(manifest["limits"])
        self._call = jax.jit(exported.call)
        self._placed: dict[str, Any] | None = None

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        missing = [name for name, _ in self.inputs if name not in inputs]
        if missing:
            raise PlanishError(f"no value for input {missing[0]!r}")
        self._check_limits(inputs)
        with jax.enable_x64(self._wide):
            if self._placed is None:
                self._placed = jax.device_put(self.params)
            try:
                results = self._call(self._placed, *(_narrow(name, inputs[name]) for name, _ in self.inputs))
            except (TypeError, ValueError, jax.errors.JaxRuntimeError) as error:
                raise PlanishError(f"xla: {' '.join(str(error).split())[:400]}") from error
            return [self._result(r, n, t) for r, (n, t) in zip(results, self._results, strict=True)]

    def _result(self, value: Any, name: str, type_: Type) -> Any:
        if name in self.padded:
            values, count = value
            value = Padded(values, count, self.padded[name]).cut()
        return _as_stated(value, type_)

    def _check_limits(self, inputs: Mapping[str, Any]) -> None:
        for name, type_ in self.inputs if self._limits else ():
            shape = type_.shape if isinstance(type_, TensorType) and type_.shape else ()
            for dim, size in zip(shape, np.shape(inputs[name]), strict=False):
                limit = self._limits.get(str(dim), size)
                if size > limit:
                    raise PlanishError(f"input {name!r}: {dim} is {size}, and the model goes up to {limit}")

    def report(self) -> dict[str, Any]:
        """What it was exported for."""
        facts = {"backend": "xla", "platforms": list(self.exported.platforms), "platform": jax.default_backend()}
        return {**facts, "padded": self.padded} if self.padded else facts


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
    array = np.array(value)
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
