"""``trim-vocabulary``: keeps the rows of an embedding table that a use of the model needs.

The vocabulary of a language model covers every language and domain that it was made for; the table of its embeddings
may be most of a small model. Ids that stay are looked up in a table of fewer rows, through a map from ids to rows, so
that the tokenizer stays as it is. All ids that go share one row (compare Abdaoui et al. 2020, "Load What You Need",
arXiv:2010.05609, who change the tokenizer instead).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ...ir import DType, Graph, LazyTensor, Node, Tensor, Value, constant, edit, op
from ...ir.clone import clone_graph
from ..base import Context, Pass, RequestError
from ..numerics import Lossy
from .token_files import read_tokens, write_tokens

__all__ = ["TrimVocabulary"]

Array = np.ndarray[Any, Any]
_CELLS = 1 << 22  # cosines at a time
_NEVER = -1e4  # the logit of a token that cannot be predicted any more; finite in float16
_SHAPES = frozenset({"Shape", "Size"})
_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE)


@dataclass(frozen=True)
class TrimVocabulary(Pass):
    """Keep the embeddings of some tokens only: those of a list, or those that occur in samples.

    The table is the one with the most rows that ids from an input of the graph pick rows of. Ids stay what they are;
    those that go are treated as `unknown`.

    Attributes:
        tokens: a file with the ids to keep: text, one number per line, or an ``.npy`` array of integers. Without it,
            the ids that occur in the samples.
        size: how many of the ids in the samples to keep at most, the most frequent first.
        input: the name of the input that holds the ids, where the model has several.
        unknown: what those that go are treated as: the ``nearest`` token that stays, by the cosine between their
            embeddings; the ``mean`` of all that go, one row more; or the id of a token, which stays.
        outputs: whether products with a weight of one column per token, which compute logits, keep the columns of these
            tokens only, too: the others get a logit of -10,000 and are never predicted. Where the table itself is that
            weight, both or none must be trimmed.
        remap: whether the graph maps ids to rows. Else whoever calls it must do so: the number of a token is its
            position in `kept`, and no other ids may be given.
        kept: a file for the ids that stay, in the order of the rows; text or ``.npy``.

    Raises:
        RequestError: there is no such table, a file or an id is at fault, or nothing would be saved.
    """

    numerics = Lossy()

    tokens: str = ""
    size: int | None = None
    input: str = ""
    unknown: int | Literal["nearest", "mean"] = "nearest"
    outputs: bool = False
    remap: bool = True
    kept: str = ""

    def __post_init__(self) -> None:
        if self.size is not None and self.tokens:
            raise ValueError("size picks from the tokens of the samples, and tokens names the ids: give one of them")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}: one token stays at least")
        if isinstance(self.unknown, int) and self.unknown < 0:
            raise ValueError(f"unknown is {self.unknown}: ids are numbers from 0 on")
        if not self.remap and not self.kept:
            raise ValueError("without remap, kept must name a file for the ids in the order of the rows")
        if not self.remap and self.outputs:
            raise ValueError("without remap, outputs would change the shape of the logits, which planish does not do")

    def run(self, graph: Graph, ctx: Context) -> None:
        site = self._site(graph)
        if self.tokens:
            ids, lost = read_tokens(self.tokens, site.rows), None
        else:
            ids, lost = self._frequent(graph, site, ctx)
        if isinstance(self.unknown, int):
            if self.unknown >= site.rows:
                raise RequestError(f"trim-vocabulary: unknown is {self.unknown}, and the table has {site.rows} rows")
            ids = np.union1d(ids, [self.unknown])
        before = _nbytes(graph)
        rows = _Rows(ids, site.rows, self.unknown, self.remap)
        if rows.nbytes(site, ctx.target) >= site.nbytes:
            raise RequestError(f"trim-vocabulary: {len(ids):,} of {site.rows:,} tokens stay, so nothing would be saved")
        _trim(site, rows, ctx)
        if self.kept:
            write_tokens(self.kept, ids)
        ctx.note("tables trimmed")
        if ctx.results:
            saved = before - _nbytes(graph)
            result = ctx.results[-1]
            result.notes.append(f"{len(ids):,} of {site.rows:,} tokens kept: {saved:,} bytes saved")
            if lost is not None:
                result.notes.append(f"{lost:.2%} of the tokens in the samples are unknown now")
            if not self.remap:
                result.notes.append(f"ids are positions in {self.kept} now: data with the old ids do not fit any more")

    def _frequent(self, graph: Graph, site: _Site, ctx: Context) -> tuple[Array, float]:
        """The ids that occur in the samples, and the share of their tokens that is none of these.

        Raises:
            RequestError: there are no samples.
        """
        if ctx.samples is None:
            raise RequestError("trim-vocabulary: which tokens? Give a file (tokens=…), or data in which they occur")
        counts = _count(graph, site, ctx)
        order = np.lexsort((np.arange(len(counts)), -counts))
        ids = order[: np.count_nonzero(counts)][: self.size]
        return np.sort(ids), 1 - float(counts[ids].sum() / max(counts.sum(), 1))

    def _site(self, graph: Graph) -> _Site:
        """The table to trim, and what reads it.

        Raises:
            RequestError: there is none, or it is read in another way, too.
        """
        if self.input and self.input not in [value.name for value in graph.inputs]:
            raise RequestError(f"trim-vocabulary: the graph has no input {self.input!r}")
        sites = [s for s in _sites(graph) if not self.input or self.input in s.inputs]
        if not sites:
            behind = f" by the input {self.input!r}" if self.input else ""
            raise RequestError(f"trim-vocabulary: no table of constant embeddings is indexed{behind}")
        site = max(sites, key=lambda s: s.rows)
        heads = [user for user in graph.walk() if _head_axis(user, site) is not None]
        tied = [n for n in heads if _is_tied(n, site)]
        known = {*site.gathers, *tied, *(n.given(1).producer for n in tied)}
        others = [user for view in _views(site) for user in view.users if user not in known]
        if others:
            raise RequestError(
                f"trim-vocabulary: the table {site.name} is also read by {others[0].op} {others[0].name}"
            )
        if tied and not self.outputs:
            raise RequestError(
                f"trim-vocabulary: the table {site.name} computes logits, too: say outputs=true if the tokens that go "
                "need not be predicted"
            )
        if self.outputs and not heads:
            raise RequestError(f"trim-vocabulary: outputs=true, but no weight has a column per token ({site.rows:,})")
        site.heads = heads if self.outputs else []
        return site


# what is there


@dataclass
class _Site:
    """A table of embeddings.

    Attributes:
        table: the constant, [rows, features].
        gathers: the nodes that pick rows of it.
        inputs: the names of the integer inputs of the graph that the ids come from.
        heads: products that compute logits, to be trimmed likewise.
    """

    table: Value
    gathers: list[Node]
    inputs: set[str]
    heads: list[Node] = field(default_factory=list)

    @property
    def tensor(self) -> Tensor:
        assert self.table.const is not None
        return self.table.const

    @property
    def rows(self) -> int:
        return self.tensor.shape[0]

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def name(self) -> str:
        return self.table.name or self.tensor.name


def _sites(graph: Graph) -> list[_Site]:
    """The tables that ids from inputs pick rows of."""
    found: dict[Value, _Site] = {}
    for node in graph.nodes:
        if node.op != "Gather" or node.attrs.get("axis", 0) != 0:
            continue
        table, ids = node.given(0), node.given(1)
        if table.const is None or table.rank != 2 or table.dtype not in _FLOATS:
            continue
        names = _inputs_of(ids)
        if names:
            site = found.setdefault(table, _Site(table, [], set()))
            site.gathers.append(node)
            site.inputs |= names
    return list(found.values())


def _inputs_of(ids: Value) -> set[str]:
    """The names of the integer inputs whose elements ``ids`` is computed of; their shapes do not count."""
    stack, seen, names = [ids], {ids}, set()
    while stack:
        value = stack.pop()
        if value.graph is not None and value.graph.parent is None and value.dtype.is_integer:
            names.add(value.name)
        node = value.producer
        if node is None or node.op in _SHAPES:
            continue
        for operand in node.operands:
            if operand is not None and operand not in seen:
                seen.add(operand)
                stack.append(operand)
    return names


def _views(site: _Site) -> list[Value]:
    """The table, and it transposed, where the graph does that."""
    return [site.table, *(user.result for user in site.table.users if user.op == "Transpose")]


def _is_tied(node: Node, site: _Site) -> bool:
    """Whether the weight of ``node`` is the table."""
    return node.given(1) in _views(site)


def _head_axis(node: Node, site: _Site) -> int | None:
    """The axis of operand 1 of ``node`` that counts tokens, if it is a product that gives one number for each."""
    if node.op not in ("MatMul", "Gemm") or node.graph is not site.gathers[0].graph or node.attrs.get("transA"):
        return None
    weight, bias = node.given(1), node.operand(2)
    if weight.rank != 2 or node.given(0).const is not None or (weight.const is None and not _is_tied(node, site)):
        return None
    axis = 0 if node.attrs.get("transB") else 1
    plain = bias is None or (bias.const is not None and bias.const.shape in ((), (1,), (site.rows,), (1, site.rows)))
    return axis if weight.shape is not None and weight.shape[axis] == site.rows and plain else None


def _nbytes(graph: Graph) -> int:
    return sum(tensor.nbytes for tensor in {value.const for value in graph.constants()} if tensor is not None)


def _count(graph: Graph, site: _Site, ctx: Context) -> Array:
    """How often each row is picked for all samples."""
    from ..calibration import collect

    mapping: dict[Value, Value] = {}
    probe = clone_graph(graph, mapping)
    counter = _Counter(site.rows)
    values = dict.fromkeys(mapping.get(node.given(1), node.given(1)) for node in site.gathers)
    ctx.progress("counting tokens")
    assert ctx.samples is not None
    collect(probe, {value: [counter] for value in values}, ctx.samples, ctx.runner)
    return counter.counts


class _Counter:
    """How often each id occurs; those that no table of ``rows`` rows has are not counted."""

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros(rows, np.int64)

    def update(self, array: Array) -> None:
        ids = array.reshape(-1)
        rows = len(self.counts)
        ids = np.where(ids < 0, ids + rows, ids)
        self.counts += np.bincount(ids[(ids >= 0) & (ids < rows)], minlength=rows)


# what comes instead


@dataclass(frozen=True)
class _Rows:
    """Which rows stay.

    Attributes:
        ids: their old numbers, sorted.
        total: how many there were.
        unknown: the id that stands for those that go; or ``mean``, a new last row, or the ``nearest`` one that stays.
        remap: whether the graph maps ids to rows.
    """

    ids: Array
    total: int
    unknown: int | Literal["nearest", "mean"]
    remap: bool

    @property
    def has_mean(self) -> bool:
        """Whether there is a last row for all that go."""
        return self.remap and self.unknown == "mean" and len(self.ids) < self.total

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.ids) + self.has_mean

    def map(self, table: Tensor) -> Array:
        """The new row of each one of ``table``."""
        found = np.full(self.total, len(self.ids), np.int64)
        if isinstance(self.unknown, int):
            found[:] = np.searchsorted(self.ids, self.unknown)
        elif self.unknown == "nearest":
            gone = np.setdiff1d(np.arange(self.total), self.ids)
            found[gone] = _nearest(table.numpy(), gone, self.ids)
        found[self.ids] = np.arange(len(self.ids))
        return found

    def map_type(self, target: str) -> DType:
        """ONNX Runtime reads maps of 16 bits, too; indices of other runtimes have 32."""
        return DType.UINT16 if target.startswith("onnxruntime") and self.count <= 1 << 16 else DType.INT32

    def nbytes(self, site: _Site, target: str) -> int:
        """Of the new table and the map."""
        mapped = self.total * self.map_type(target).bits // 8 if self.remap else 0
        return site.nbytes // max(self.total, 1) * self.count + mapped

    def pick(self, tensor: Tensor, axis: int, last: bool) -> Value:
        """``tensor`` with the slices that stay along ``axis``; ``last``: and the mean of those that go, if wanted."""
        ids, with_mean, dtype = self.ids, last and self.has_mean, tensor.dtype

        def compute(array: Array) -> Array:
            picked = np.take(array, ids, axis)
            if with_mean:
                rest = np.delete(array, ids, axis).mean(axis, dtype=np.float32, keepdims=True)
                picked = np.concatenate([picked, rest.astype(dtype.numpy)], axis)
            return np.ascontiguousarray(picked)

        shape = list(tensor.shape)
        shape[axis] = len(ids) + with_mean
        result = LazyTensor(compute, (tensor,), dtype, tuple(shape), tensor.name)
        return Value(result.type, tensor.name, const=result)


def _nearest(table: Array, gone: Array, ids: Array) -> Array:
    """For each row of ``gone``, the one of ``ids`` with the largest cosine, by its position in ``ids``."""

    def unit(rows: Array) -> Array:
        rows = rows.astype(np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    kept = unit(table[ids]).T
    step = max(_CELLS // max(len(ids), 1), 1)
    parts = (gone[at : at + step] for at in range(0, len(gone), step))
    return np.concatenate([(unit(table[part]) @ kept).argmax(1) for part in parts] or [gone])


def _trim(site: _Site, rows: _Rows, ctx: Context) -> None:
    """Let all that reads the table read the new one."""
    table = rows.pick(site.tensor, 0, last=True)
    for head in site.heads:
        _trim_head(head, site, rows, table)
        ctx.note("products that compute logits trimmed")
    if rows.remap:
        _map_ids(site, rows, rows.map_type(ctx.target))
    for node in site.gathers:
        edit.set_operand(node, 0, table)


def _map_ids(site: _Site, rows: _Rows, kind: DType) -> None:
    """Let all that picks rows of the table do so by the number of the new row."""
    row_of = constant(rows.map(site.tensor).astype(kind.numpy), kind, "row_of_token")
    mapped: dict[Value, Value] = {}
    for node in site.gathers:
        ids = node.given(1)
        if ids not in mapped:
            row = op.Gather(row_of, ids, axis=0)
            mapped[ids] = row if kind is DType.INT32 else op.Cast(row, to=DType.INT32)
            edit.insert_floating([mapped[ids]], node)
        edit.set_operand(node, 1, mapped[ids])


def _trim_head(node: Node, site: _Site, rows: _Rows, table: Value) -> None:
    """Compute the logits of the tokens that stay, and put them where they belong among those of all tokens."""
    axis, old = _head_axis(node, site), node.given(1)
    assert axis is not None and node.next is not None
    tied = _is_tied(node, site)
    if not tied and old.const is not None:
        weight = rows.pick(old.const, axis, last=False)
    else:
        weight = table if old is site.table else op.Transpose(table, perm=[1, 0])
    columns = rows.count if tied else len(rows.ids)
    operands = [node.given(0), weight]
    bias = node.operand(2)
    if bias is not None and bias.const is not None:
        whole = bias.const.size == site.rows
        operands.append(rows.pick(bias.const, len(bias.const.shape) - 1, last=tied) if whole else bias)
    logits = getattr(op, node.op)(*operands, **node.attrs)
    pads = constant([0] * (logits.rank * 2 - 1) + [1], DType.INT64)
    padded = op.Pad(logits, pads, constant(np.array(_NEVER, logits.dtype.numpy), logits.dtype))
    column_of = np.full(rows.total, columns, np.int32)
    column_of[rows.ids] = np.arange(len(rows.ids))
    full = op.Gather(padded, constant(column_of, name="column_of_token"), axis=-1)
    edit.insert_floating([full], node.next)
    edit.replace(node.result, full)
    edit.erase_dead([node])
