"""Brings an imported graph to the canonical opset, so that all behind the frontend see one version of each operator.

A node meets, in ascending order, every revision of its operator since the version that the model was written in: those
that only added to the operator (`planish.ir.opsets`) need nothing, for each of the others there is an adapter.
"""

from __future__ import annotations

from functools import cache

from ...ir.errors import ModelError
from ...ir.graph import Graph, Node
from ...ir.infer import infer
from ...ir.schema import canonical_opset
from .adapters import ADAPTERS, Adapter

__all__ = ["upgrade"]

_FIRST = 6  # the oldest version with adapters
Steps = tuple[tuple[Adapter, bool], ...]  # what to call, and whether it reads types


def upgrade(graph: Graph) -> None:
    """Rewrite the nodes of ``graph``, nested ones too, to their meaning in the canonical opset, in place.

    The version that the model was written in stays on record as ``graph.info["imported_opset"]``.

    Raises:
        ModelError: the model is newer than the installed onnx, or uses what today's operators cannot express.
    """
    version = graph.opsets.get("")
    if version is None:
        return
    newest = canonical_opset()
    if version > newest:
        raise ModelError(f"opset {version}: the newest that planish reads with the installed onnx is {newest}")
    graph.info.setdefault("imported_opset", version)
    if version < newest:
        steps = _steps(version)
        if version < _FIRST:
            _reject_ancient(graph, version)
        _upgrade(graph, steps, typed=any(reads for n in graph.walk() for _, reads in steps.get(n.op, ())))
        graph.opsets[""] = newest


@cache
def _steps(version: int) -> dict[str, Steps]:
    """For every operator with adapters for revisions after ``version``: these, oldest first."""
    later = {op: [a for since, a in sorted(history.items()) if since > version] for op, history in ADAPTERS.items()}
    return {op: tuple(adapters) for op, adapters in later.items() if adapters}


def _upgrade(graph: Graph, steps: dict[str, Steps], *, typed: bool) -> None:
    """Upgrade the nodes of ``graph``, nested ones first; if ``typed``, infer types on the way for adapters to read."""
    for node in list(graph.nodes):
        for nested in node.graphs:
            _upgrade(nested, steps, typed=typed)
        previous, following = node.prev, node.next
        try:
            _adapt(node, steps.get(node.op, ()))
        except ModelError as error:
            raise ModelError(f"{_label(node)}: {error}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{_label(node)}: not what its definition asks for ({error})") from error
        if typed:
            new = graph._first if previous is None else previous.next
            while new is not None and new is not following:
                infer(new, strict=False)
                new = new.next


def _label(node: Node) -> str:
    return f"node {node.name!r} ({node.op})" if node.name else f"a {node.op} node"


def _adapt(node: Node, steps: Steps) -> None:
    for adapter, _ in steps:
        if adapter(node):
            return


def _reject_ancient(graph: Graph, version: int) -> None:
    import onnx.defs

    schemas = onnx.defs.get_all_schemas_with_history()
    revised = {s.name for s in schemas if s.domain == "" and version < s.since_version <= _FIRST}
    for node in graph.walk():
        if node.op in revised:
            raise ModelError(f"opset {version} is too old for {node.op}: convert it with onnx.version_converter first")
