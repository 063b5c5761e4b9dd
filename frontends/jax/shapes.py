"""Primitives that move elements: shapes, slices, concatenation, padding, counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.dims import Dim
from ...ir.graph import Value
from ...ir.types import DType
from ..emit import SMALLEST, Emitter, Refused
from ..sizes import dim_of, integer
from . import idioms
from .translate import Equation, Translator, rule

__all__ = ["clamped_starts", "dilate", "dynamic_slice", "dynamic_update", "reverse"]

_SAME = ("copy", "device_put", "name", "optimization_barrier", "reshard", "sharding_constraint", "stop_gradient")


@rule(*_SAME)
def _same(t: Translator, eqn: Equation, *operands: Value) -> Any:
    return operands[: len(eqn.outs)]


@rule("debug_print", "debug_callback")
def _talk(t: Translator, eqn: Equation, *operands: Value) -> Any:
    t.ignored.add(eqn.name)
    return ()


@rule("dim_as_value")
def _dim_as_value(t: Translator, eqn: Equation) -> Any:
    return t.size_scalar(dim_of(eqn.params["dim"]), eqn.out.dtype)


@rule("broadcast_in_dim")
def _broadcast_in_dim(t: Translator, eqn: Equation, x: Value, *sizes: Value) -> Any:
    rank, own = len(eqn.shape), x.rank or 0
    placed = [int(d) for d in eqn.params["broadcast_dimensions"]]
    if x.producer is not None and x.producer.op == "Expand":  # one Expand is enough
        x = x.producer.given(0)
        placed = placed[own - (x.rank or 0) :]
        own = x.rank or 0
    added = [a for a in range(rank) if a not in placed]
    shape = list(x.shape or ())
    for a in added:
        shape.insert(a, 1)
    kept = idioms.keep_dims(t, x, added)
    if kept is not None:
        return t.expand(kept, eqn.shape)
    if tuple(shape) == eqn.shape or added != list(range(len(added))):
        x = t.reshape(x, shape) if not own else t.unsqueeze(x, added)
    return t.expand(x, eqn.shape)


@rule("reshape")
def _reshape(t: Translator, eqn: Equation, x: Value, *sizes: Value) -> Any:
    if eqn.params.get("dimensions") is not None:
        x = t.transpose(x, eqn.params["dimensions"])
    return t.reshape(x, eqn.shape)


@rule("squeeze")
def _squeeze(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.squeeze(x, eqn.params["dimensions"])


@rule("transpose")
def _transpose(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.transpose(x, eqn.params["permutation"])


def reverse(t: Emitter, x: Value, axes: Sequence[int]) -> Value:
    """``x`` backwards along ``axes``."""
    if not axes:
        return x
    n = len(axes)
    ends = [SMALLEST + 1] * n
    return t.op.Slice(x, t.integers([-1] * n), t.integers(ends), t.integers(axes), t.integers([-1] * n))


@rule("rev")
def _rev(t: Translator, eqn: Equation, x: Value) -> Any:
    return reverse(t, x, [int(d) for d in eqn.params["dimensions"]])


@rule("concatenate")
def _concatenate(t: Translator, eqn: Equation, *parts: Value) -> Any:
    return parts[0] if len(parts) == 1 else t.op.Concat(*parts, axis=int(eqn.params["dimension"]))


@rule("stack")
def _stack(t: Translator, eqn: Equation, *parts: Value) -> Any:
    axis = int(eqn.params.get("axis", eqn.params.get("dimension", 0)))
    parts = tuple(t.unsqueeze(p, [axis]) for p in parts)
    return parts[0] if len(parts) == 1 else t.op.Concat(*parts, axis=axis)


@rule("unstack")
def _unstack(t: Translator, eqn: Equation, x: Value) -> Any:
    axis = int(eqn.params.get("axis", eqn.params.get("dimension", 0)))
    return [t.squeeze(part, [axis]) for part in _split(t, x, axis, [1] * len(eqn.outs))]


@rule("split")
def _split_rule(t: Translator, eqn: Equation, x: Value) -> Any:
    axis = int(eqn.params["axis"])
    return _split(t, x, axis, [(o.shape or ())[axis] for o in eqn.outs])


def _split(t: Translator, x: Value, axis: int, sizes: Sequence[Dim]) -> Sequence[Value]:
    if len(sizes) == 1:
        return [x]
    return t.op.Split(x, t.vector(sizes), axis=axis, outputs=len(sizes))


@rule("tile")
def _tile(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Tile(x, t.vector([dim_of(r) for r in eqn.params["reps"]]))


@rule("iota")
def _iota(t: Translator, eqn: Equation, *sizes: Value) -> Any:
    axis = int(eqn.params["dimension"])
    line: list[Dim] = [1] * len(eqn.shape)
    line[axis] = eqn.shape[axis]
    return t.expand(t.reshape(t.arange(eqn.shape[axis], eqn.out.dtype), line), eqn.shape)


# slices


@rule("slice")
def _slice(t: Translator, eqn: Equation, x: Value) -> Any:
    starts, ends = ([dim_of(d) for d in eqn.params[k]] for k in ("start_indices", "limit_indices"))
    steps = [int(s) for s in eqn.params["strides"] or (1,) * len(starts)]
    return t.slice(x, range(len(starts)), starts, ends, steps)


def clamped_starts(
    t: Translator, x: Value, starts: Sequence[Value], axes: Sequence[int], sizes: Sequence[Dim]
) -> list[Value]:
    """The starts of a window along ``axes``, as int64 of shape ``[1]``, moved so that the window is inside."""
    found = []
    for start, axis, size in zip(starts, axes, sizes, strict=True):
        room = (x.shape or ())[axis] - size
        known = t.known(start)
        if known is not None and isinstance(room, int):
            found.append(t.integers([min(max(known[0], 0), room)]))
            continue
        start = t.reshape(t.cast(start, DType.INT64), (1,))
        limited = t.op.Min(t.op.Max(start, t.integers([0])), t.sizes.value(room))
        found.append(limited)
    return found


def _joined(t: Translator, parts: Sequence[Value]) -> Value:
    return parts[0] if len(parts) == 1 else t.op.Concat(*parts, axis=0)


def dynamic_slice(t: Translator, x: Value, axes: Sequence[int], starts: Sequence[Value], sizes: Sequence[Dim]) -> Value:
    """A window of ``x`` from ``starts`` (int64 of shape ``[1]``, inside)."""
    if not axes:
        return x
    known = [t.known(s) for s in starts]
    if all(known) and all(isinstance(s, int) for s in sizes):
        first = [k[0] for k in known if k]
        return t.slice(x, axes, first, [f + s for f, s in zip(first, sizes, strict=True)])
    ends = [t.op.Add(s, t.sizes.value(size)) for s, size in zip(starts, sizes, strict=True)]
    value: Value = t.op.Slice(x, _joined(t, starts), _joined(t, ends), t.integers(axes))
    shape = list(x.shape or ())
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return t.typed(value, shape)


def dynamic_update(t: Translator, x: Value, update: Value, axes: Sequence[int], starts: Sequence[Value]) -> Value:
    """``x`` with ``update`` in the window that begins at ``starts`` of ``axes``, the only ones it does not fill."""
    if not axes:
        return update
    axis, start, size = axes[0], starts[0], (update.shape or ())[axes[0]]
    end = t.op.Add(start, t.sizes.value(size))
    where = t.integers([axis])
    if len(axes) > 1:
        inner = t.op.Slice(x, start, end, where)
        shape = list(x.shape or ())
        shape[axis] = size
        update = dynamic_update(t, t.typed(inner, shape), update, axes[1:], starts[1:])
    first, last = t.known(start), t.known(end)
    parts = [update]
    if first is None or first[0] > 0:
        parts.insert(0, t.op.Slice(x, t.integers([0]), start, where))
    if last is None or (last[0],) != (x.shape or ())[axis : axis + 1]:
        parts.append(t.op.Slice(x, end, t.vector([(x.shape or ())[axis]]), where))
    return t.typed(t.op.Concat(*parts, axis=axis), x.shape or ()) if len(parts) > 1 else update


def _window(x: Value, sizes: Sequence[Dim]) -> list[int]:
    """The axes that a window of ``sizes`` does not fill."""
    return [a for a, (d, s) in enumerate(zip(x.shape or (), sizes, strict=True)) if d != s]


@rule("dynamic_slice")
def _dynamic_slice(t: Translator, eqn: Equation, x: Value, *starts: Value) -> Any:
    axes = _window(x, eqn.shape)
    sizes = [eqn.shape[a] for a in axes]
    return dynamic_slice(t, x, axes, clamped_starts(t, x, [starts[a] for a in axes], axes, sizes), sizes)


@rule("dynamic_update_slice")
def _dynamic_update_slice(t: Translator, eqn: Equation, x: Value, update: Value, *starts: Value) -> Any:
    axes = _window(x, update.shape or ())
    sizes = [(update.shape or ())[a] for a in axes]
    return dynamic_update(t, x, update, axes, clamped_starts(t, x, [starts[a] for a in axes], axes, sizes))


# padding


def dilate(t: Emitter, x: Value, gaps: Sequence[int], number: Value | None = None) -> Value:
    """``x`` with ``gaps[a]`` times ``number`` (or 0) between neighbours along each axis ``a``."""
    for axis, gap in enumerate(gaps):
        shape = list(x.shape or ())
        size = shape[axis]
        if not gap or size in (0, 1):
            continue
        wide = t.unsqueeze(x, [axis + 1])
        high = [0] * (len(shape) + 1)
        high[axis + 1] = gap
        wide = t.pad(wide, [0] * len(high), high, number)
        flat = t.reshape(wide, [*shape[:axis], size * (gap + 1), *shape[axis + 1 :]])
        x = t.slice(flat, [axis], [0], [size * (gap + 1) - gap])
    return x


@rule("pad")
def _pad(t: Translator, eqn: Equation, x: Value, number: Value) -> Any:
    low, high, inside = ([dim_of(c[i]) for c in eqn.params["padding_config"]] for i in range(3))
    if not all(isinstance(n, int) for n in (*low, *high, *inside)):
        if any(isinstance(n, int) and n < 0 for n in (*low, *high)) or any(n != 0 for n in inside):
            raise Refused("padding by a symbolic size, and by a negative one or between elements")
        return t.op.Pad(x, t.vector([*low, *high]), number)
    x = dilate(t, x, [integer(n) for n in inside], number)
    return t.pad(x, [integer(n) for n in low], [integer(n) for n in high], number)
