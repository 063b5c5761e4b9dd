"""What TensorRT builds: rows of a table as data, and why a node is refused by it.

Facts were found with the parser and the builder of TensorRT for RTX 1.7 (the API of TensorRT 11), by
``benchmarks/tensorrt_nodes.py``, and for other versions read in their documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ...ir import DType, Node, Value
from ...ir.schema import canonical_opset
from ...ir.types import TensorType
from ..revisions import oldest_opset, revision_at
from .versions import Version

__all__ = ["FLOATS", "INDICES", "NUMBERS", "QUANTIZED", "READ", "Row", "is_quantized_constant", "refusal"]

Types = frozenset[DType]
FLOATS: Types = frozenset({DType.FLOAT, DType.FLOAT16, DType.BFLOAT16})
INDICES: Types = frozenset({DType.INT32, DType.INT64})
NUMBERS: Types = FLOATS | INDICES
QUANTIZED: Types = frozenset({DType.INT8, DType.INT4, DType.FLOAT8E4M3FN, DType.FLOAT4E2M1})
READ: Types = NUMBERS | QUANTIZED | {DType.BOOL}
_OLDEST_OF_TEN = 20  # the operator set that TensorRT 10.0 reads
_SINCE = {  # versions that first read a type
    DType.BFLOAT16: (9, 0),
    DType.FLOAT8E4M3FN: (8, 6),
    DType.INT4: (10, 0),
    DType.FLOAT4E2M1: (10, 8),
}
_AT_THE_BORDER = (DType.UINT8, DType.DOUBLE)  # read as inputs and outputs that are cast


@dataclass(frozen=True)
class Row:
    """What is built of one operator. Everything that is not stated is built.

    Attributes:
        types: by type variable of the operator's schema (``T``), the types that are built.
        constants: the positions of operands that must be constants, where they are given.
        ranks: the least and the greatest rank of operand 0.
        results: how many results may be used, counted from the first.
        attrs: by attribute, the values that are built, if it is given.
        check: why a node is refused, or "": whatever the other columns cannot say.
        since: the oldest version of TensorRT that has the operator at all; None: no version has it.
        rtx: whether TensorRT for RTX has it.
    """

    types: Mapping[str, Types] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    ranks: tuple[int, int] = (0, 8)
    results: int = 1 << 10
    attrs: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    check: Callable[[Node, Version], str] = lambda node, version: ""
    since: tuple[int, int] | None = (8, 5)
    rtx: bool = True


def refusal(node: Node, version: Version) -> str:
    """Why ``version`` does not build ``node``, in words that stand behind the name of the node; "" if it does."""
    from .ops import rows

    row = rows().get(node.op)
    if row is None:
        return f"{version} has no such operator"
    return next(_reasons(node, row, version), "")


def _reasons(node: Node, row: Row, version: Version) -> Iterator[str]:
    if row.since is None or row.since > version.number or (version.rtx and not row.rtx):
        yield f"{version} has no such operator"
        return
    for value in (*node.operands, *node.results):
        if value is not None and not isinstance(value.type, TensorType):
            yield f"{version} has no {value.type}"
        elif value is not None and value.dtype and not _is_read(value, node, version):
            yield f"{version} has no {value.dtype.text}"
    yield from _wrong_types(node, row.types, version)
    if node.op not in ("QuantizeLinear", "DequantizeLinear") and any(is_quantized_constant(o) for o in node.operands):
        yield f"{version} has no quantized constants but those that it dequantizes"
    for position in row.constants:
        operand = node.operand(position)
        if operand is not None and operand.const is None:
            yield f"operand {position} must be a constant"
    rank = node.operands[0].rank if node.operands and node.operands[0] is not None else None
    if rank is not None and not row.ranks[0] <= rank <= row.ranks[1]:
        yield f"{rank} dimensions: {version} takes {row.ranks[0]} to {row.ranks[1]}"
    used = [i for i, r in enumerate(node.results) if r.users]
    if used and used[-1] >= row.results:
        yield f"{version} gives its first {row.results} results only" if row.results > 1 else "only its first result"
    for name, values in row.attrs.items():
        if name in node.attrs and node.attrs[name] not in values:
            yield f"{name}={node.attrs[name]!r}: {version} takes {', '.join(map(repr, values))}"
    if reason := row.check(node, version):
        yield reason
    if version.opset < _OLDEST_OF_TEN and "." not in node.op and oldest_opset(node) > version.opset:
        yield f"needs opset {oldest_opset(node)}; the newest that {version} reads is {version.opset}"


def is_quantized_constant(value: Value | None) -> bool:
    """Whether ``value`` is a constant of a type that TensorRT takes for quantized numbers."""
    return value is not None and value.const is not None and value.dtype in QUANTIZED


def _is_read(value: Value, node: Node, version: Version) -> bool:
    """Whether the parser reads the type of ``value``: two types only as inputs and outputs that are cast."""
    if value.dtype not in _AT_THE_BORDER:
        return value.dtype in READ and version.number >= _SINCE.get(value.dtype, (0, 0))
    is_border = value.producer is None or all(user is node.graph.root.ret for user in value.users if node.graph)
    return node.op == "Cast" and is_border and value.const is None


def _wrong_types(node: Node, types: Mapping[str, Types], version: Version) -> Iterator[str]:
    revision = revision_at(node.op, canonical_opset()) if types and "." not in node.op else None
    if revision is None:
        return
    for values, formals in ((node.operands, revision.inputs), (node.results, revision.outputs)):
        for i, value in enumerate(values):
            variable = formals[min(i, len(formals) - 1)].variable if formals else ""
            if value is not None and value.dtype and value.dtype not in types.get(variable, READ):
                yield f"{_what(value)}is {value.dtype.text}: {version} computes in {_list(types[variable])}"


def _what(value: Value) -> str:
    return f"%{value.name} " if value.name else "a value "


def _list(types: Types) -> str:
    return ", ".join(t.text for t in sorted(types))
