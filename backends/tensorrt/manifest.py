"""Engines as files: ``m.engine``, and ``m.engine.json`` that tells what is in it, which appear together or not at all.

The manifest says what built the engine and what can run it, its inputs and outputs with the sizes it is for, the types
of its layers, and which node of the model each layer comes from. An engine without a manifest runs, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ...ir import Graph
from ...ir.dims import parse_dim
from ...ir.errors import PlanishError
from ...ir.types import UNKNOWN, DType, TensorType, Type
from ..base import Written
from ..files import Files
from .build import Plan
from .cuda import find_driver
from .module import RTX_GPUS

__all__ = ["Manifest", "Port", "manifest_of", "manifest_path", "read", "save", "write"]

_KIND = "planish-tensorrt"
_VERSION = 1
_MOST = 1 << 28  # bytes of a manifest
_PIECE = 1 << 26  # bytes per system call


@dataclass(frozen=True)
class Port:
    """An input or output of an engine.

    Attributes:
        name: its name.
        type: what the model states.
        taken: the element type that the engine has in its place, where that is another one.
    """

    name: str
    type: Type
    taken: DType

    def to_dict(self) -> dict[str, Any]:
        """It, ready for JSON."""
        found: dict[str, Any] = {"name": self.name, "engine_dtype": self.taken.text}
        if isinstance(self.type, TensorType):
            found["dtype"] = self.type.dtype.text
            if self.type.shape is not None:
                found["shape"] = [d if isinstance(d, int) else str(d) for d in self.type.shape]
        return found

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Port:
        """What `to_dict` gave."""
        type_: Type = UNKNOWN
        if "dtype" in entry:
            shape = entry.get("shape")
            dims = None if shape is None else tuple(d if isinstance(d, int) else parse_dim(str(d)) for d in shape)
            type_ = TensorType(DType[str(entry["dtype"]).upper()], dims)
        return cls(str(entry["name"]), type_, DType[str(entry["engine_dtype"]).upper()])


@dataclass
class Manifest:
    """What is known of an engine.

    Attributes:
        inputs: its inputs.
        outputs: its outputs.
        facts: everything else, ready for JSON.
        nodes: the operator and the origin of each node of the model, by name.
    """

    inputs: Sequence[Port]
    outputs: Sequence[Port]
    facts: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """It, ready for JSON."""
        return {
            "kind": _KIND,
            "version": _VERSION,
            **self.facts,
            "inputs": [p.to_dict() for p in self.inputs],
            "outputs": [p.to_dict() for p in self.outputs],
            "nodes": {name: dict(found) for name, found in self.nodes.items()},
        }

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Manifest:
        """What `to_dict` gave.

        Raises:
            ValueError: it is nothing of that kind.
        """
        if found.get("kind") != _KIND:
            raise ValueError("it is of no engine")
        if found["version"] != _VERSION:
            raise ValueError(f"it has version {found['version']}; this planish reads {_VERSION}")
        own = ("kind", "version", "inputs", "outputs", "nodes")
        nodes = {str(n): {str(k): str(v) for k, v in entry.items()} for n, entry in found["nodes"].items()}
        inputs, outputs = ([Port.parse(p) for p in found[key]] for key in ("inputs", "outputs"))
        return cls(inputs, outputs, {k: v for k, v in found.items() if k not in own}, nodes)


def manifest_of(plan: Plan, original: Graph | None = None) -> Manifest:
    """The manifest of ``plan``; ``original``: the graph before it was lowered, whose types its users go by."""
    graph = plan.lowered.graph
    stated = original or graph
    inputs = [
        Port(v.name, o.type, plan.taken[v.name])
        for v, o in zip(graph.inputs, stated.inputs, strict=True)
        if v.name in plan.taken
    ]
    outputs = [
        Port(info.name, o.type, plan.taken[info.name])
        for info, o in zip(graph.output_info, stated.outputs, strict=True)
    ]
    driver = find_driver()
    gpu = driver.gpu if driver is not None else None
    products = [layer for layer in plan.layers if layer.is_product]
    facts = {
        "planish": _own_version(),
        "tensorrt": plan.module.package(),
        "gpu": None if gpu is None else {"name": gpu.name, "capability": gpu.capability, "cuda": gpu.cuda},
        "runs_on": runs_on(plan, gpu.capability if gpu is not None else ""),
        "opset": plan.lowered.stamp.opset if plan.lowered.stamp is not None else None,
        "bytes": plan.data.nbytes,
        "sha256": hashlib.sha256(plan.data).hexdigest(),
        "source_sha256": plan.digest,
        "profiles": [p.to_dict() for p in plan.profiles if p.shapes or p.elements],
        "options": plan.options.to_dict(),
        "types": dict(Counter(layer.types[0] for layer in plan.layers if layer.nodes and layer.types)),
        "products": len(products),
        "quantized": [name for layer in products if layer.quantized for name in layer.nodes or (layer.name,)],
        "notes": plan.notes,
        "warnings": plan.warnings,
        "seconds": round(plan.seconds, 3),
    }
    nodes = {n.name: {"op": n.op, **({"origin": o} if (o := str(n.origin)) else {})} for n in graph.walk()}
    return Manifest(inputs, outputs, facts, nodes)


def _own_version() -> str:
    try:
        return metadata.version("planish")
    except metadata.PackageNotFoundError:  # run from a source tree
        return ""


def runs_on(plan: Plan, capability: str) -> str:
    """The GPUs that can run ``plan``, in words; ``capability``: of the GPU that it was built on."""
    if plan.module.rtx:
        named = plan.options.capabilities
        return f"compute capability {' or '.join(named)}" if named else RTX_GPUS
    hardware = {"ampere+": "compute capability 8.0 and later", "same-capability": f"compute capability {capability}"}
    return hardware.get(plan.options.hardware, f"GPUs of this kind (compute capability {capability})")


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Where the manifest of the engine at ``path`` is."""
    return Path(f"{os.fspath(path)}.json")


def save(plan: Plan, path: str | os.PathLike[str], original: Graph | None = None) -> Written:
    """Write an engine and its manifest.

    Args:
        plan: the engine.
        path: its file.
        original: the graph before it was lowered.

    Returns:
        what there is to say about it.

    Raises:
        PlanishError: they cannot be written.
    """
    manifest = manifest_of(plan, original)
    write(path, plan.data, manifest)
    return Written(_facts(manifest), _text(plan, manifest))


def write(path: str | os.PathLike[str], data: memoryview, manifest: Manifest) -> None:
    """Write an engine and its manifest.

    Raises:
        PlanishError: they cannot be written.
    """
    target = Path(path)
    text = json.dumps(manifest.to_dict(), indent=1).encode()
    try:
        with Files(target) as files:
            _put(files.create(manifest_path(target).name), memoryview(text))
            _put(files.create(target.name), data)
            files.commit()
    except OSError as error:
        raise PlanishError(f"{target}: {error.strerror or error}") from error


def _put(descriptor: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done : done + _PIECE])


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {k: v for k, v in manifest.to_dict().items() if k not in ("nodes", "kind", "version")}


def _text(plan: Plan, manifest: Manifest) -> str:
    facts = manifest.facts
    megabytes = facts["bytes"] / 1e6
    what = f"engine of {plan.module} for {facts['runs_on']}: {megabytes:.1f} MB, built in {plan.seconds:.1f} s"
    sizes = ["; ".join(f"{n} {r}" for n, r in p.sizes.items() if n not in p.chosen) for p in plan.profiles]
    types = ", ".join(f"{n} in {t}" for t, n in sorted(facts["types"].items()))
    quantized = f"{len(facts['quantized'])} of {facts['products']} convolutions and products are quantized"
    lines = [
        what,
        *(f"for {s}" for s in sizes if s),
        f"layers as parsed: {types}" if types else "",
        quantized if facts["quantized"] else "",
        *plan.notes,
        *(f"TensorRT warns: {w}" for w in plan.warnings),
    ]
    return "\n".join(filter(None, lines))


def read(path: str | os.PathLike[str]) -> Manifest | None:
    """The manifest of the engine at ``path``; None if it has none.

    Raises:
        PlanishError: it cannot be read, or is another engine's.
    """
    where = manifest_path(path)
    try:
        if not where.exists():
            return None
        if where.stat().st_size > _MOST:
            raise ValueError("it is too large")
        manifest = Manifest.parse(json.loads(where.read_bytes()))
        size = Path(path).stat().st_size
    except OSError as error:
        raise PlanishError(f"{where}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PlanishError(f"{where}: no manifest, or damaged: {' '.join(str(error).split())[:200]}") from error
    if manifest.facts.get("bytes") != size:
        raise PlanishError(f"{where} is of another engine than {os.fspath(path)}: delete it, or build the engine again")
    return manifest
