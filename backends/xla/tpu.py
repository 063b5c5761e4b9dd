"""Ahead-of-time compilation for TPUs, with libtpu's compiler, on a host that has none."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ...ir.dims import Sym
from ...ir.errors import PlanishError
from ...ir.graph import Graph
from ...ir.types import TensorType
from ..base import Written
from . import archive, quiet_libtpu
from .executable import XlaExecutable, for_inference
from .export import signature, wide
from .function import JaxFunction
from .padded import in_parts
from .sharding import parse_mesh, shard
from .symbols import abstract_inputs, check_sizes

__all__ = ["GENERATIONS", "TpuReport", "compile_tpu", "save"]

_GIB = 1 << 30


@dataclass(frozen=True)
class Generation:
    """A generation of TPUs, as JAX divides it into devices.

    Attributes:
        memory: bytes of HBM per device that a program can have.
        speed: operations per second on bfloat16, at peak.
        bandwidth: bytes per second of HBM.
    """

    memory: float
    speed: float
    bandwidth: float


GENERATIONS = {
    "v4": Generation(15.25 * _GIB, 137e12, 600e9),  # two devices per chip
    "v5e": Generation(15.75 * _GIB, 197e12, 819e9),
    "v5p": Generation(95.73 * _GIB, 459e12, 2765e9),
    "v6e": Generation(31.24 * _GIB, 918e12, 1640e9),
    "tpu7x": Generation(94.74 * _GIB, 1153e12, 3690e9),  # two devices per chip
}


@dataclass
class TpuReport:
    """What the compiler says of a program, per chip.

    Attributes:
        topology: the chips that it is for.
        chips: how many of them it runs on.
        mesh: how they are arranged.
        flops: floating-point and integer operations, as XLA counts them.
        bytes: read from and written to memory.
        peak: bytes of memory: arguments, results, temporaries and code.
        memory: bytes of memory that a chip has.
        integer_products: the nodes of which products and convolutions multiply int8, and how often.
        float_products: those that multiply floating-point numbers.
        collectives: operations that communicate, and how often.
        seconds: how long the operations take at peak speed, or the bytes, whichever is longer: a lower bound.
        regions: regions of the graph that several chips compute together.
        padded: the outputs whose sizes depend on data, and the axis of each: the program has a pair for them, values of
            the largest size and the number of those that count.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    flops: float
    bytes: float
    peak: int
    memory: float
    seconds: float = 0.0
    integer_products: dict[str, int] = field(default_factory=dict)
    float_products: dict[str, int] = field(default_factory=dict)
    collectives: dict[str, int] = field(default_factory=dict)
    regions: int = 0
    padded: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory of a chip."""
        return self.peak <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "fits": self.fits}

    def __str__(self) -> str:
        counts = f"{sum(self.integer_products.values())} in int8, {sum(self.float_products.values())} in floating point"
        lines = [
            f"{self.topology}, {self.chips} chip{'s' * (self.chips > 1)}"
            + (f" as {', '.join(f'{k}={v}' for k, v in self.mesh.items())}" if self.chips > 1 else ""),
            f"per chip: {self.flops / 1e9:.4g} GFLOP, {self.bytes / 1e6:.4g} MB read and written",
            f"memory: {self.peak / 1e6:.4g} MB of {self.memory / 1e9:.3g} GB" + ("" if self.fits else ": does not fit"),
            f"products: {counts}",
        ]
        if self.collectives:
            kinds = ", ".join(f"{n} {op}" for op, n in self.collectives.items())
            lines.append(f"communication: {kinds}; {self.regions} regions computed together")
        if self.padded:
            lines.append(f"padded, with a count: {', '.join(f'{n} along {a}' for n, a in self.padded.items())}")
        return "\n".join(lines)


_SHAPE = re.compile(r"[1-9]\d?(x[1-9]\d?){1,2}")


def topology(variant: str) -> tuple[Any, Generation, int]:
    """The topology that ``variant`` names (``v5e``: one chip of it; ``v5e:2x2``: all), and the number of chips to use.

    Raises:
        PlanishError: there is none, or libtpu is not installed.
    """
    from jax.experimental import topologies

    name, _, shape = variant.partition(":")
    if name not in GENERATIONS or not _SHAPE.fullmatch(shape or "1x1"):  # libtpu crashes on some others
        raise PlanishError(
            f"no TPU {variant!r}: there are {', '.join(GENERATIONS)}, or with a topology, such as v5e:2x2"
        )
    quiet_libtpu()
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape or '1x1x1'}")
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise PlanishError(f"tpu:{variant}: {' '.join(str(error).split())[:200]}") from error
    return found, GENERATIONS[name], len(found.devices) if shape else 1


def compile_tpu(
    function: JaxFunction, variant: str, *, sizes: Mapping[str, int] | None = None, mesh: str = ""
) -> tuple[jax.stages.Compiled, TpuReport]:
    """Compile ``function`` for TPUs that need not be there. Weights are not touched.

    Args:
        function: the function.
        variant: the TPUs: ``v5e``, ``v5e:2x2`` ….
        sizes: a number for every named size of the inputs.
        mesh: for several chips, their arrangement: see `planish.backends.xla.sharding`.

    Raises:
        PlanishError: sizes are missing, or the compiler refuses the program.
    """
    found, generation, chips = topology(variant)
    axes = parse_mesh(mesh, chips)
    devices = np.array(found.devices[:chips]).reshape(tuple(axes.values()))
    grid = Mesh(devices, tuple(axes))
    plan = function.plan
    inputs = abstract_inputs(function, sizes)
    open_sizes = {str(d) for i in inputs for d in i.shape if not isinstance(d, int)}
    if open_sizes:
        raise PlanishError(f"a TPU program has fixed sizes: give {', '.join(f'{s}=N' for s in sorted(open_sizes))}")
    sharding = shard(plan, axes)

    def placed(like: jax.ShapeDtypeStruct, spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=NamedSharding(grid, spec))

    params = {name: placed(shape, sharding.params[name]) for name, shape in function.param_shapes.items()}
    arguments = [placed(shape, spec) for shape, spec in zip(inputs, sharding.inputs, strict=True)]
    try:
        compiled = jax.jit(in_parts(function)).lower(params, *arguments).compile()
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # such as a batch that does not divide by the chips
        raise PlanishError(f"tpu:{variant}: {_refusal(str(error))}") from error
    report = TpuReport(variant, chips, axes, 0, 0, 0, generation.memory, regions=sharding.regions)
    report.padded = dict(function.padded)
    _fill_in(report, compiled)
    report.seconds = max(report.flops / generation.speed, report.bytes / generation.bandwidth)
    return compiled, report


def _refusal(message: str) -> str:
    """What the compiler complains of, in a line."""
    text = " ".join(message.split())
    used = re.search(
        r"RESOURCE_EXHAUSTED.*?required for .*? \(([\d.]+\w?)\) exceeds available HBM \(([\d.]+\w?)\)", text
    )
    return f"does not fit: it needs {used[1]} of memory, and a chip has {used[2]}" if used else text[:300]


def _fill_in(report: TpuReport, compiled: jax.stages.Compiled) -> None:
    cost: Any = compiled.cost_analysis() or {}
    report.flops, report.bytes = float(cost.get("flops", 0)), float(cost.get("bytes accessed", 0))
    memory: Any = compiled.memory_analysis()
    report.peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    _count(compiled.as_text() or "", report)


_DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = \(?(\w+)\[")
_PRODUCT = re.compile(r" (?:convolution|dot)\(%?([\w.\-]+), %?([\w.\-]+)\)")
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_NAME = re.compile(r'op_name="([^"]*)"')
_NARROW = frozenset({"s8", "u8", "s4", "u4"})


def _count(hlo: str, report: TpuReport) -> None:
    """Sort the products of a program by what they multiply, and count what communicates."""
    types: dict[str, str] = {}
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    collectives: Counter[str] = Counter()
    for line in hlo.splitlines():
        defined = _DEFINED.match(line)
        if defined is None:
            continue
        types[defined[1]] = defined[2]
        product = _PRODUCT.search(line)
        if product is not None:
            is_narrow = all(types.get(operand) in _NARROW for operand in product.groups())
            (integer if is_narrow else floating)[_node_name(line)] += 1
        collective = _COLLECTIVE.search(line)
        if collective is not None:
            collectives[collective[1]] += 1
    report.integer_products, report.float_products = dict(integer), dict(floating)
    report.collectives = dict(collectives)


def _node_name(line: str) -> str:
    """The name of the node that a line of HLO was made for."""
    found = _NAME.search(line)
    path = found[1].split("/") if found else []
    return "/".join(p for p in path[:-1] if not p.startswith("jit(")) or "unnamed"


def save(
    graph: Graph, path: str | os.PathLike[str], variant: str, *, sizes: Mapping[str, int] | None = None, mesh: str = "",
    **options: Any,
) -> Written:  # fmt: skip
    """Compile ``graph`` and write program, weights and report as one file, which appears whole or not at all.

    Args:
        graph: the graph, which stays as it is.
        path: the file, ``.tpu``.
        variant: see `compile_tpu`.
        sizes: see `compile_tpu`.
        mesh: see `compile_tpu`.
        options: those of `planish.backends.xla.function.to_jax`; by default, quantized products are integers.

    Returns:
        the report.

    Raises:
        PlanishError: it cannot be compiled, does not fit, or cannot be written.
    """
    from jax.experimental import serialize_executable

    function = for_inference(graph, **options)
    check_sizes(function, sizes or {})
    with jax.enable_x64(wide(function.plan.graph)):
        compiled, report = compile_tpu(function, variant, sizes=sizes, mesh=mesh)
        program, _, _ = serialize_executable.serialize(compiled)
    manifest = {"report": report.to_dict(), "sizes": dict(sizes or {}), **signature(function)}
    archive.write(path, "planish-tpu", manifest, {"executable": program}, function.plan.tensors)
    return Written(report.to_dict(), str(report))


class TpuExecutable(XlaExecutable):
    """A graph that runs here, as the same JAX function, and what the TPU's compiler says of it."""

    variant: str
    mesh: str

    @classmethod
    def of(cls, graph: Graph, variant: str, mesh: str = "", **options: Any) -> TpuExecutable:
        """One for ``graph``; see `compile_tpu` and `planish.backends.xla.function.to_jax`."""
        self = cls(for_inference(graph, **options))
        self.variant, self.mesh = variant, mesh
        return self

    def estimate(self, inputs: Mapping[str, Any]) -> float | None:
        """Seconds per run: as long as the operations take at peak speed, or the bytes, whichever is longer."""
        sizes: dict[str, int] = {}
        for name, type_ in self.inputs:
            shape = type_.shape if isinstance(type_, TensorType) and type_.shape else ()
            for dim, size in zip(shape, np.shape(inputs[name]), strict=False):
                if isinstance(dim, Sym) and dim.name:
                    sizes[dim.name] = size
        with jax.enable_x64(wide(self.function.plan.graph)):
            return compile_tpu(self.function, self.variant, sizes=sizes, mesh=self.mesh)[1].seconds
