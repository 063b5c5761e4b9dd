"""`inspect` and `bench`: facts about one model, and how fast it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planish.ir.flops import Size, size_of
from planish.models import load

if TYPE_CHECKING:
    from planish.data import Data
    from planish.measure import Comparison, Latency
    from planish.models import Model

__all__ = ["Summary", "bench", "inspect"]


@dataclass(frozen=True)
class Summary:
    """Facts about a model.

    Attributes:
        inputs: names and types.
        outputs: names and types.
        opsets: versions of the operator sets, as in the model.
        ops: how often each operator occurs, most frequent first.
        size: nodes, parameters, bytes and FLOPs.
        sizes: what the symbolic dimensions are for that count of FLOPs; 1 where missing.
        is_symbolic: whether an input has a symbolic dimension.
        producer: what wrote the model, or "".
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    opsets: dict[str, int]
    ops: dict[str, int]
    size: Size
    sizes: dict[str, int]
    is_symbolic: bool
    producer: str


def inspect(model: Model, data: Data | None = None) -> Summary:
    """Describe a model; ``data`` binds the symbolic dimensions for the count of FLOPs (1 without)."""
    graph = load(model)
    sizes: dict[str, int] = {}
    if data is not None:
        from planish.data import bind_sizes, read_samples

        sizes = bind_sizes(graph, read_samples(data, graph, 1)[0])
    opsets = dict(graph.opsets)
    if "imported_opset" in graph.info:
        opsets[""] = graph.info["imported_opset"]
    producer = f"{graph.info.get('producer_name', '')} {graph.info.get('producer_version', '')}".strip()
    return Summary(
        {v.name: str(v.type) for v in graph.inputs},
        {o.name: str(v.type) for o, v in zip(graph.output_info, graph.outputs, strict=True)},
        {domain or "ai.onnx": version for domain, version in opsets.items()},
        dict(Counter(node.op for node in graph.walk()).most_common()),
        size_of(graph, sizes),
        sizes,
        any(not isinstance(d, int) for v in graph.inputs for d in v.shape or ()),
        producer,
    )


def bench(
    model: Model, other: Model | None = None, data: Data | None = None, *, target: str = "onnxruntime"
) -> Latency | Comparison:
    """The latency of a model, or of two in interleaved pairs.

    Args:
        model: the (first) model.
        other: the second, or a file of the backend's own kind.
        data: sample inputs, of which the first is used; None synthesizes one.
        target: the backend.

    Raises:
        PlanishError: a model cannot be run.
    """
    from planish.backends.base import backend
    from planish.comparison import compile_any, compile_model, samples_for
    from planish.measure import estimate_pair, measure, measure_pair

    engine = backend(target)
    graph = load(model)
    first = compile_model(model, graph, engine)
    samples, _, _ = samples_for(graph, first, data, 1)
    sample: dict[str, Any] = samples[0]
    if other is None:
        if engine.is_remote:
            return estimate_pair(first.estimate(sample), first.estimate(sample)).before
        return measure(lambda: first(sample))
    second, _ = compile_any(other, engine)
    if engine.is_remote:
        return estimate_pair(first.estimate(sample), second.estimate(sample))
    return measure_pair(lambda: first(sample), lambda: second(sample))
