"""Sample inputs: read from the user's data, or synthesized from the types of a graph's inputs."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planish.functions import call_function, is_function_name
from planish.ir import DType, Graph, Sym, TensorType, Value
from planish.ir.errors import PlanishError
from planish.ir.flops import bind_dim
from planish.passes.rows import gives_rows

__all__ = [
    "Portions",
    "bind_sizes",
    "describe_inputs",
    "read_samples",
    "reader",
    "readers",
    "synthesize",
    "synthesize_more",
]

_ROWS = 32  # of a sample that are computed at a time

Sample = dict[str, Any]
Data = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]


# the user's data


def read_samples(data: Data, graph: Graph, limit: int | None = None) -> list[Sample]:
    """The first ``limit`` samples of ``data``, checked against the inputs of ``graph``.

    Args:
        data: an ``.npz`` file, a folder of them, ``module.py:function``, or mappings of arrays by input name.
        graph: the graph that they are for.
        limit: the number of samples; None for all.

    Raises:
        PlanishError: there is none, or one does not fit.
    """
    samples = list(itertools.islice(reader(data, graph)(), limit))
    if not samples:
        raise PlanishError(f"no samples in {_named(data)}")
    return samples


def reader(data: Data, graph: Graph, extra: Collection[str] = ()) -> Callable[[], Iterator[Sample]]:
    """A function that reads all samples of ``data`` from the start, one at a time where they lie in files.

    Args:
        data: as for `read_samples`. An iterator, which can be read once only, is kept in memory.
        graph: the graph that they are for; every sample is checked against its inputs when it is read.
        extra: names of arrays that samples have besides: labels, say. They are not checked.
    """
    kept = list(data) if isinstance(data, Iterator) else data

    def read() -> Iterator[Sample]:
        for where, sample in _samples(kept):
            lacking = next((name for name in extra if name not in sample), None)
            if lacking is not None:
                raise PlanishError(f"{where} has no array {lacking!r}, which is asked for besides the inputs")
            inputs = {name: value for name, value in sample.items() if name not in extra}
            yield _checked(inputs, graph, where) | {name: np.asarray(sample[name]) for name in extra}

    return read


def readers(
    data: Data, graph: Graph, extra: Collection[str] = ()
) -> tuple[Callable[[], Iterator[Sample]], Callable[[], Iterator[Sample]] | None]:
    """Two functions that read the samples of ``data``: inputs alone, and with ``extra`` (None if that is empty)."""
    names = {v.name for v in graph.inputs}
    if names.intersection(extra):
        raise PlanishError(f"{min(names.intersection(extra))!r} is an input of the model, and no array besides")
    if not extra:
        return reader(data, graph), None
    everything = reader(data, graph, extra)
    return lambda: ({n: a for n, a in s.items() if n not in extra} for s in everything()), everything


class Portions:
    """Samples of many rows, in portions, so that the memory that they are computed in does not follow from their size.

    They are divided if the graph gives a row of each output for each row of its inputs.

    Args:
        read: reads the samples from the start.
        graph: the graph that they are for.
        rows: of a portion, at most.

    Attributes:
        counts: how many portions each sample had when they were last read to the end.
    """

    def __init__(self, read: Callable[[], Iterator[Sample]], graph: Graph, rows: int = _ROWS):
        self._read = read
        self._rows = rows
        self._first = next((v.name for v in graph.inputs if v.default is None), "") if gives_rows(graph) else ""
        self._whole = {v.name for v in graph.inputs if v.default is not None}
        self.counts: list[int] = []

    def __call__(self) -> Iterator[Sample]:
        counts = []
        for sample in self._read():
            rows = len(sample[self._first]) if self._first else 0
            counts.append(max(-(-rows // self._rows), 1))
            if counts[-1] == 1:
                yield sample
                continue
            for at in range(0, rows, self._rows):
                yield {n: a[at : at + self._rows] if self._has(n, a, rows) else a for n, a in sample.items()}
        self.counts = counts

    def _has(self, name: str, array: Any, rows: int) -> bool:
        return name not in self._whole and np.shape(array)[:1] == (rows,)

    def joined(self, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The outputs for the samples as they were given, from those for all portions."""
        if len(self.counts) == len(outputs) or sum(self.counts) != len(outputs):
            return outputs
        portions = iter(outputs)
        whole = []
        for count in self.counts:
            parts = list(itertools.islice(portions, count))
            whole.append({n: np.concatenate([p[n] for p in parts]) for n in parts[0]} if count > 1 else parts[0])
        return whole


def _named(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else "the data"


def _samples(data: Data) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(data, str) and is_function_name(data):  # called anew each time, so that it need not keep its samples
        yield from ((f"{data}, sample {i}", s) for i, (_, s) in enumerate(_samples(call_function(data)), 1))
    elif isinstance(data, str | Path):
        yield from _files(Path(data))
    elif isinstance(data, Mapping):
        yield "the data", data
    elif isinstance(data, Iterable):
        for i, sample in enumerate(data, 1):
            if not isinstance(sample, Mapping):
                raise PlanishError(f"sample {i} is a {type(sample).__name__}, not a mapping of arrays by input name")
            yield f"sample {i}", sample
    else:
        raise PlanishError(f"data must be mappings of arrays by input name, not {type(data).__name__}")


def _files(path: Path) -> Iterator[tuple[str, Sample]]:
    if not path.exists():
        raise PlanishError(f"no such file or folder: {path}")
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise PlanishError(f"no .npz file in {path}")
    for file in files:
        yield str(file), _read_archive(file)


def _read_archive(path: Path) -> Sample:
    from zipfile import BadZipFile

    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise PlanishError(f"{path} is no .npz file but a single array: np.savez names its arrays")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise PlanishError(f"{path} is no readable .npz file: {' '.join(str(error).split())}") from error


def describe_inputs(graph: Graph) -> str:
    """The inputs in one line: ``ids: int64[batch,12], mask: …``."""
    return ", ".join(f"{v.name}: {v.type}" for v in graph.inputs) or "none"


def _checked(sample: Mapping[str, Any], graph: Graph, where: str) -> Sample:
    inputs = {v.name: v for v in graph.inputs}
    unknown = [name for name in sample if name not in inputs]
    missing = [name for name, v in inputs.items() if v.default is None and name not in sample]
    if unknown or missing:
        problem = f"has no input {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is no input"
        raise PlanishError(f"{where} {problem}; the model takes {describe_inputs(graph)}")
    checked: Sample = {}
    sizes: dict[str, int] = {}
    for name, value in sample.items():
        type_ = inputs[name].type
        checked[name] = (
            _checked_array(value, type_, sizes, f"{where}: input {name!r}") if isinstance(type_, TensorType) else value
        )
    return checked


def _checked_array(value: Any, type_: TensorType, sizes: dict[str, int], where: str) -> np.ndarray:
    array = np.asarray(value)
    if (
        type_.dtype
        and type_.dtype.numpy != array.dtype
        and not (type_.dtype is DType.STRING and array.dtype.kind in "OUST")
    ):
        raise PlanishError(f"{where} is {array.dtype}, not {type_.dtype.text}")
    if type_.shape is None:
        return array
    fits = array.ndim == len(type_.shape)
    for dim, size in zip(type_.shape, array.shape, strict=False):
        if isinstance(dim, int):
            fits = fits and dim == size
        elif dim.name is not None and not dim.is_anonymous:
            fits = fits and sizes.setdefault(dim.name, size) == size
    if not fits:
        known = ", ".join(f"{k}={v}" for k, v in sizes.items())
        raise PlanishError(
            f"{where} has shape {list(array.shape)}, which does not fit {type_}" + (f" with {known}" if known else "")
        )
    return array


def bind_sizes(graph: Graph, sample: Mapping[str, Any]) -> dict[str, int]:
    """What the symbolic dimensions of the inputs stand for in ``sample``."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        if value.name in sample and value.shape is not None:
            for dim, size in zip(value.shape, np.shape(sample[value.name]), strict=False):
                if isinstance(dim, Sym) and dim.name is not None:
                    sizes.setdefault(dim.name, size)
    return sizes


# synthesized data

# Sizes for the symbolic dimensions, in the order in which they appear: distinct, so that mixed-up ones are seen. What
# does not run (an image of 2x3 pixels) is tried again with the next scheme.
_SCHEMES: tuple[tuple[int, ...], ...] = (
    (2, 6, 5, 7, 9, 11, 13),
    (2, 16, 24, 40, 48),
    (1, 64, 96, 128, 160),
    (1, 224, 224),
    (1, 1, 1),
)
_MOST_SUMS = 30
_MOVES = frozenset(
    ["Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Concat"]
)


def synthesize(graph: Graph, seed: int = 0) -> Iterator[Sample]:
    """Candidate samples for ``graph``, one per scheme of sizes; none if an input has a type that has no obvious values.

    Token ids stay inside the tables that they index, masks are ones, floats are normal.
    """
    inputs = [v for v in graph.inputs if v.default is None]
    if not all(isinstance(v.type, TensorType) and v.type.dtype and v.type.shape is not None for v in inputs):
        return
    bounds = {v.name: _index_bound(v) for v in inputs if v.dtype.is_integer}
    tried = []
    for sizes in _sizes(_symbols(inputs)):
        if sizes in tried:
            continue
        tried.append(sizes)
        rng = np.random.default_rng(seed)
        yield {v.name: _values(v, sizes, bounds.get(v.name), rng) for v in inputs}


def synthesize_more(graph: Graph, like: Mapping[str, Any], count: int) -> list[Sample]:
    """``count`` samples with the sizes of the sample ``like``, each with other numbers."""
    inputs = [v for v in graph.inputs if v.name in like]
    bounds = {v.name: _index_bound(v) for v in inputs if v.dtype.is_integer}
    sizes = bind_sizes(graph, like)
    rngs = [np.random.default_rng(1 + i) for i in range(count)]
    return [{v.name: _values(v, sizes, bounds.get(v.name), rng) for v in inputs} for rng in rngs]


def _sizes(symbols: list[str]) -> Iterator[dict[str, int]]:
    """Sizes for ``symbols``: each scheme, and behind the first those in which one is the sum of two others.

    So it is where keys and values of earlier positions come in: past and new positions are those under the mask.
    """
    for number, scheme in enumerate(_SCHEMES):
        sizes = dict(zip(symbols, itertools.chain(scheme, itertools.repeat(scheme[-1])), strict=False))
        yield sizes
        if number == 0:
            triples = ((a, b, c) for a in symbols for b, c in itertools.combinations(symbols, 2) if a not in (b, c))
            for a, b, c in itertools.islice(triples, _MOST_SUMS):
                yield {**sizes, a: sizes[b] + sizes[c]}


def _symbols(inputs: list[Value]) -> list[str]:
    atoms = (a for v in inputs for d in v.shape or () if isinstance(d, Sym) for m in d.terms for a in m)
    return [a for a in dict.fromkeys(atoms) if "(" not in a]


def _index_bound(value: Value) -> int | None:
    """The smallest table that ``value`` indexes, followed through operators that only move elements."""
    bound: int | None = None
    seen, stack = {value}, [value]
    while stack and len(seen) < 200:
        current = stack.pop()
        for user, position in current.uses:
            if user.op in ("Gather", "GatherElements") and position == 1:
                table = user.operands[0]
                shape = table.shape if table is not None else None
                size = shape[user.attrs.get("axis", 0)] if shape else None
                if isinstance(size, int):
                    bound = size if bound is None else min(bound, size)
            elif user.op in _MOVES and position == 0 and user.result not in seen:
                seen.add(user.result)
                stack.append(user.result)
    return bound


def _values(value: Value, sizes: Mapping[str, int], bound: int | None, rng: np.random.Generator) -> np.ndarray:
    dtype, shape = value.dtype, tuple(max(bind_dim(d, sizes), 0) for d in value.shape or ())
    if dtype is DType.STRING:
        return np.full(shape, "a", object)
    if "mask" in value.name.lower() or dtype is DType.BOOL:
        return np.ones(shape, dtype.numpy)
    if dtype.is_floating:
        return rng.standard_normal(shape, np.float32).astype(dtype.numpy)
    if dtype.name.startswith("COMPLEX"):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy)
    if bound is not None:
        return rng.integers(0, max(bound, 1), shape).astype(dtype.numpy)
    if dtype in (DType.UINT8, DType.INT8):
        low, high = (0, 256) if dtype is DType.UINT8 else (-128, 128)
        return rng.integers(low, high, shape).astype(dtype.numpy)
    if len(shape) < 2:
        return np.ones(shape, dtype.numpy)  # a count, a length or a size: what is safe everywhere
    return rng.integers(0, 2, shape).astype(dtype.numpy)
