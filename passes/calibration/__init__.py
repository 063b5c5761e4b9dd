"""Calibration: run a graph on samples, and keep statistics of chosen values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...ir import DType, Graph, GraphOutput, TensorType, Value, edit, op
from ...ir.clone import clone_graph
from ...ir.text import Names, graph_text
from ..base import RequestError, Runner
from ..files import replacing
from .histogram import Histogram
from .summaries import ChannelStatistics, Shape

__all__ = ["Calibration", "Samples", "Statistic", "collect", "computed", "fingerprint", "in_groups"]

Array = np.ndarray[Any, Any]
Sample = Mapping[str, Any]
Samples = Iterable[Sample] | Callable[[], Iterable[Sample]]
Reader = Callable[[], Iterator[Sample]]

_FORMAT = "planish calibration 1"
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Histogram, ChannelStatistics, Shape)}


class Statistic(Protocol):
    """What is kept of a value: a `Histogram`, `ChannelStatistics`, a `GramMatrix`, or the like."""

    def update(self, array: Array) -> None:
        """Add what the value is for one sample. The array is not to be kept or changed."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Statistics of the values of one graph.

    Values are known by the names that the graph prints with, which are unique and the same for the same graph, whatever
    the values are called in it.

    Attributes:
        fingerprint: a hash of the graph's interface, operators and their attributes and operands, and of the types and
            a few elements of its constants.
        samples: the number of samples.
        statistics: what was kept, by the name of the value.
    """

    fingerprint: str
    samples: int
    statistics: Mapping[str, Sequence[Statistic]]

    def of(self, graph: Graph) -> dict[Value, Sequence[Statistic]]:
        """The statistics by the values of ``graph``, which must be (or equal) the graph that was calibrated.

        Raises:
            RequestError: it is another graph, or has been changed since.
        """
        if fingerprint(graph) != self.fingerprint:
            raise RequestError(f"the calibration is of another graph than {graph.name!r}, or of another state of it")
        return {v: self.statistics[name] for v, name in _names(graph).items() if name in self.statistics}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            RequestError: it cannot be written, or holds a statistic that has no JSON form, such as a `GramMatrix`.
        """
        data = {"format": _FORMAT, "fingerprint": self.fingerprint, "samples": self.samples}
        values = {name: [_to_dict(s, name) for s in kept] for name, kept in self.statistics.items()}
        with replacing(path) as file:
            file.write(json.dumps(data | {"values": values}, allow_nan=False).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """What `save` wrote.

        Raises:
            RequestError: it cannot be read, or is something else.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("format") != _FORMAT:
                raise ValueError(f"it does not say that it is a {_FORMAT!r}")
            values = {name: [_from_dict(s) for s in kept] for name, kept in data["values"].items()}
            return cls(str(data["fingerprint"]), int(data["samples"]), values)
        except OSError as error:
            raise RequestError(f"{path}: {error.strerror or error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RequestError(f"{path} is no calibration: {' '.join(str(error).split())}") from error


def collect(
    graph: Graph,
    wanted: Mapping[Value, Sequence[Statistic]],
    samples: Samples,
    runner: Runner,
    *,
    progress: Callable[[int, int | None], None] | None = None,
    budget_bytes: int = 64 << 20,
) -> Calibration:
    """Run ``graph`` on every sample and update the statistics of the wanted values.

    The graph is compiled once if the wanted values fit into ``budget_bytes`` together. Otherwise they are divided into
    groups that do, and each group is compiled and run over all samples, one after the other. What a group does not need
    is not run. Where shapes are symbolic, the sizes are those for the sample with the most input elements, which takes
    one more compilation and run.

    Args:
        graph: a root graph; stays as it is.
        wanted: the statistics to update, by inputs of ``graph`` and results of its nodes.
        samples: input arrays by name; a collection, or a function that returns an iterator, since they may be read
            several times. Inputs with a default may be left out.
        runner: what compiles and runs.
        progress: called after each run with the number of runs so far and in all, None where unknown.
        budget_bytes: the most that the wanted values of one run may take, 64 MiB by default. A value that takes more by
            itself is run alone.

    Returns:
        The same statistics, by names.

    Raises:
        RequestError: a value is a constant, belongs to another or a nested graph, or holds no numbers; there are no
            samples; one lacks an input or is an empty batch; a value has no element that is a finite number.
    """
    names = _names(graph)
    _check(wanted, names)
    read = _reader(samples)
    computed = [v for v in names if v in wanted and v.producer is not None]
    groups = in_groups(_sizes(graph, computed, read, runner), budget_bytes)
    groups[0] += [v for v in wanted if v.producer is None]
    total = len(groups) * len(samples) if isinstance(samples, Sequence) else None
    tallies = {v: _Tally() for v in wanted}
    runs = 0
    for group in groups:
        for arrays in _run(graph, group, read, runner):
            for value in group:
                array = np.asarray(arrays.pop(value))
                for statistic in (tallies[value], *wanted[value]):
                    statistic.update(array)
            runs += 1
            if progress is not None:
                progress(runs, total)
    if not runs:
        raise RequestError("there are no samples to calibrate with")
    for value, tally in tallies.items():
        if not tally.finite:
            what = f"all {tally.elements} elements are NaN or infinite" if tally.elements else "it has no elements"
            raise RequestError(f"%{names[value]} cannot be calibrated: {what} for the given samples")
    return Calibration(fingerprint(graph), runs // len(groups), {names[v]: tuple(kept) for v, kept in wanted.items()})


@dataclass
class _Tally:
    """The number of elements of a value, and whether any was finite."""

    elements: int = 0
    finite: bool = False

    def update(self, array: Array) -> None:
        self.elements += array.size
        self.finite = self.finite or bool(np.isfinite(array.astype(np.float64)).any())


def _names(graph: Graph) -> dict[Value, str]:
    """The printed names of the inputs of ``graph`` and of the results of its nodes, without those nested."""
    names = Names()
    names.enter(graph, nested=False)
    return {v: names.plain(v) for v in (*graph.inputs, *(r for node in graph.nodes for r in node.results))}


def fingerprint(graph: Graph) -> str:
    """A hash of ``graph``: see `Calibration`."""
    found = hashlib.sha256(graph_text(graph, limit=0).encode())
    for value in graph.constants():
        if value.const is not None and value.dtype is not DType.STRING:
            found.update(value.const.sample())
    return found.hexdigest()


def _to_dict(statistic: Statistic, name: str) -> dict[str, Any]:
    kind = type(statistic).__name__
    if kind not in _KINDS:
        raise RequestError(f"the {kind} of %{name} cannot be saved: only {' and '.join(_KINDS)} can")
    return {"kind": kind, **statistic.to_dict()}  # type: ignore[attr-defined]


def _from_dict(data: dict[str, Any]) -> Statistic:
    found: Statistic = _KINDS[data["kind"]].from_dict({k: v for k, v in data.items() if k != "kind"})
    return found


def _check(wanted: Iterable[Value], names: Mapping[Value, str]) -> None:
    """Raise `RequestError` for values that cannot be calibrated."""
    for value in wanted:
        if value.is_constant:
            raise RequestError(f"%{value.name or '_'} cannot be calibrated: it is a constant")
        if value not in names:
            raise RequestError(
                f"%{value.name or '_'} cannot be calibrated: it is nested in a node, or of another graph"
            )
        dtype = value.dtype
        numeric = dtype.is_floating or dtype.is_integer or dtype in (DType.BOOL, DType.UNDEFINED)
        if not isinstance(value.type, TensorType) or not numeric:
            raise RequestError(f"%{names[value]} cannot be calibrated: {value.type} holds no real numbers")


def computed(graph: Graph, values: Sequence[Value], samples: Samples, runner: Runner) -> Iterator[dict[Value, Array]]:
    """What ``values`` of a root graph, which stays as it is, are for one sample after the other.

    Nothing that they do not need is run.

    Raises:
        RequestError: a sample lacks an input, or is an empty batch.
    """
    return _run(graph, values, _reader(samples), runner)


# samples


def _reader(samples: Samples) -> Reader:
    """A function that reads the samples from the start."""
    if callable(samples):
        return lambda: iter(samples())
    if isinstance(samples, Iterator):
        raise RequestError("samples may be read several times: give a list or a function that returns an iterator")
    return lambda: iter(samples)


def _feed(graph: Graph, sample: Sample, number: int) -> dict[str, Any]:
    """What the inputs of ``graph`` are for ``sample``, defaults included."""
    feed = {}
    for value in graph.inputs:
        if value.name in sample:
            feed[value.name] = sample[value.name]
        elif value.default is not None:
            feed[value.name] = value.default.numpy()
        else:
            raise RequestError(f"sample {number} has no input {value.name!r}")
        shape = np.shape(feed[value.name]) if isinstance(value.type, TensorType) else ()
        if shape[:1] == (0,):
            raise RequestError(f"sample {number} is an empty batch: input {value.name!r} has shape {list(shape)}")
    return feed


# groups of values, and the part of a graph that computes one


def in_groups(sizes: Mapping[Value, int], budget: int) -> list[list[Value]]:
    """The values in order, divided into groups of at most ``budget`` bytes; one group if there is none."""
    groups: list[list[Value]] = [[]]
    room = budget
    for value, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = budget
        groups[-1].append(value)
        room -= size
    return groups


def _sizes(graph: Graph, values: Sequence[Value], read: Reader, runner: Runner) -> dict[Value, int]:
    """The bytes of each value. Where shapes are symbolic, a run that returns only shapes tells them."""
    shapes: dict[Value, Any] = {v: v.shape for v in values}
    unknown = [v for v in values if not (isinstance(v.type, TensorType) and v.type.is_static)]
    if unknown:
        feeds = (_feed(graph, sample, i) for i, sample in enumerate(read(), 1))
        largest = max(feeds, key=lambda feed: sum(map(np.size, feed.values())), default=None)
        if largest is None:
            return {}
        shapes |= next(_run(graph, unknown, lambda: iter([largest]), runner, shapes=True))
    return {v: int(np.prod(shapes[v], dtype=np.int64)) * (v.dtype.bits or 32) // 8 for v in values}


def _run(
    graph: Graph, values: Sequence[Value], read: Reader, runner: Runner, *, shapes: bool = False
) -> Iterator[dict[Value, Any]]:
    """What ``values``, or their shapes, are for each sample. What they do not need is not run."""
    mapping: dict[Value, Value] = {}
    part = clone_graph(graph, mapping)
    unlike = "_" * max((len(v.name) for v in graph.inputs), default=0)  # no input has a name that begins with it
    computed = {f"{unlike}_{i}": v for i, v in enumerate(values) if v.producer is not None}
    outputs = [op.Shape(mapping[v]) if shapes else mapping[v] for v in computed.values()]
    edit.insert_floating(outputs, part.ret)
    part.set_outputs(outputs, [GraphOutput(name, v.type) for name, v in zip(computed, outputs, strict=True)])
    edit.erase_dead(list(part.nodes))
    run = runner.compile(part) if computed else None
    for i, sample in enumerate(read(), 1):
        feed = _feed(graph, sample, i)
        found = run(feed) if run is not None else {}
        yield {v: feed[v.name] for v in values if v.producer is None} | {v: found.pop(n) for n, v in computed.items()}
