"""GraphDefs as graphs that are read and never run: what outputs need of one, and the functions that are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

from ...ir.errors import ModelError
from .failure import describe
from .inputs import Input, open_axes
from .sources import Traced, identifier

__all__ = ["Library", "imported", "of_graph_def", "plain", "read_graph_def"]

_LARGE = 1 << 12  # bytes of a constant that TensorFlow gets no copy of
_LARGEST = (1 << 31) - 1  # what protobuf allows
_MOST_OPERATIONS = 20_000_000  # after calls are inlined
_NO_RESULT = frozenset(["Assert", "Const", "NoOp", "Placeholder", "PlaceholderV2", "Print", "VarHandleOp"])
_UNREGISTERED = re.compile(r"Op type not registered '([^']*)'")


class Library(tf.Graph):  # type: ignore[misc]
    """A graph that knows the functions of a GraphDef, and makes graphs of those that are asked for."""

    def __init__(self, functions: Mapping[str, Any]):
        super().__init__()
        self._definitions = functions
        self._made: dict[str, Any] = {}

    def _get_function(self, name: Any) -> Any:
        name = name.decode() if isinstance(name, bytes) else name
        if name not in self._definitions:
            return super()._get_function(name)
        if name not in self._made:
            with self.as_default():
                self._made[name] = SimpleNamespace(graph=function_def_to_graph(self._definitions[name]))
        return self._made[name]


def of_graph_def(
    graph_def: Any,
    what: str,
    args: Sequence[Any] = (),
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Traced:
    """A GraphDef; the arguments are those of `planish.frontends.tensorflow.from_tensorflow`.

    Raises:
        ModelError: it is damaged, or lacks what is asked for.
    """
    wanted = [_tensor_name(name) for name in output_names or ()]
    roots = {name.partition(":")[0] for name in wanted} or set(_unread(graph_def))
    if not roots:
        raise ModelError(f"{what}: a graph without outputs")
    placeholders = [n.name for n in graph_def.node if n.op in ("Placeholder", "PlaceholderV2")]
    cuts = [_tensor_name(name) for name in input_names or ()]
    shapes = _given_shapes(cuts or [f"{name}:0" for name in placeholders], args, what)
    graph, constants = imported(graph_def, {*roots, *(c.partition(":")[0] for c in cuts)}, what, shapes)
    own = [f"{n}:0" for n in placeholders if n in _reached(graph, roots) and n not in constants]
    inputs = [(plain(name), _tensor(graph, name, what)) for name in cuts or own]
    outputs = [_tensor(graph, name, what) for name in wanted] or list(_results(graph, roots))
    known = [Input(n, None if t.shape.rank is None else tuple(t.shape.as_list()), t.dtype) for n, t in inputs]
    axes = open_axes(known, dynamic_shapes, what, is_fixed=True)
    captures = [(array, graph.get_tensor_by_name(f"{name}:0")) for name, array in constants.items()]
    return Traced(what, identifier(what), graph, inputs, [(plain(t.name), t) for t in outputs], axes, captures)


def read_graph_def(path: Path) -> Any:
    """The GraphDef in a file.

    Raises:
        ModelError: there is none.
    """
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"{path}: {path.stat().st_size / 1e9:.1f} GB, but protobuf allows 2 GB")
    graph_def = GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ModelError(f"{path}: no GraphDef, or damaged") from None
    if not graph_def.node or not all(node.op for node in graph_def.node):
        raise ModelError(f"{path}: no GraphDef, or an empty one")
    return graph_def


def imported(
    graph_def: Any,
    roots: Iterable[str],
    what: str,
    shapes: Mapping[str, Any] | None = None,
    operations: Any = None,
) -> tuple[Library, dict[str, Any]]:
    """What ``roots`` need of a GraphDef, and nothing else of it: TensorFlow checks it, and runs nothing.

    Args:
        graph_def: the GraphDef.
        roots: names of nodes.
        what: how messages call it.
        shapes: of placeholders, by name.
        operations: the definitions of the operations that its maker knew.

    Returns:
        the graph, in which placeholders stand for large constants, and these constants by name.

    Raises:
        ModelError: it is damaged, or not understood.
    """
    functions = {f.signature.name: f for f in graph_def.library.function}
    pruned, constants = GraphDef(), {}
    pruned.versions.CopyFrom(graph_def.versions)
    for node in _needed({n.name: n for n in graph_def.node}, roots, what):
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is not None and len(tensor.tensor_content) > _LARGE:
            constants[node.name] = _array(tensor, node.name, what)
            copy = pruned.node.add(name=node.name, op="Placeholder")
            copy.attr["dtype"].type = tensor.dtype
            copy.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
            continue
        copy = pruned.node.add()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(i for i in node.input if not i.startswith("^"))
        copy.attr.pop("_class", None)
        if shapes and node.name in shapes:
            copy.attr["shape"].shape.CopyFrom(tf.TensorShape(shapes[node.name]).as_proto())
    called = _called(pruned.node, functions, what)
    pruned.library.function.extend(functions[name] for name in called)
    graph = Library({name: functions[name] for name in called})
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(pruned, name="", producer_op_list=operations)
    except Exception as error:
        unknown = _UNREGISTERED.search(str(error))
        if unknown:
            reason = f"TensorFlow does not know the operation {unknown[1]}: import the library that registers it first"
        else:
            reason = f"a damaged graph ({describe(error)})"
        raise ModelError(f"{what}: {reason}") from error
    return graph, constants


def plain(tensor: str) -> str:
    """What an input or output is called that stands for a tensor of a graph."""
    name, _, number = tensor.partition(":")
    return name if number in ("", "0") else f"{name}_{number}"


def _needed(nodes: Mapping[str, Any], roots: Iterable[str], what: str) -> list[Any]:
    """The nodes that ``roots`` depend on by data, in the order of the GraphDef.

    Raises:
        ModelError: one is missing.
    """
    wanted: set[str] = set()
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name in wanted:
            continue
        if name not in nodes:
            raise ModelError(f"{what}: there is no node {name!r}")
        wanted.add(name)
        stack += [i.partition(":")[0] for i in nodes[name].input if not i.startswith("^")]
    return [node for name, node in nodes.items() if name in wanted]


def _called(nodes: Iterable[Any], functions: Mapping[str, Any], what: str) -> list[str]:
    """The functions that nodes call, and those that these call.

    Raises:
        ModelError: one calls itself, or there is too much of them once they are inlined.
    """
    sizes: dict[str, int] = {}
    open_: list[tuple[str, Iterator[str]]] = [("", iter(list(_calls(nodes, functions))))]
    path = {""}
    totals = [0]
    while open_:
        name, rest = open_[-1]
        inner = next(rest, None)
        if inner is None:
            open_.pop()
            path.discard(name)
            total = totals.pop()
            sizes[name] = total
            if totals:
                totals[-1] += total
        elif inner in path:
            raise ModelError(f"{what}: function {inner!r} calls itself")
        elif inner in sizes:
            totals[-1] += sizes[inner]
        else:
            body = functions[inner].node_def
            open_.append((inner, iter(list(_calls(body, functions)))))
            path.add(inner)
            totals.append(len(body))
        if totals and totals[-1] > _MOST_OPERATIONS:
            raise ModelError(f"{what}: its functions call each other more than {_MOST_OPERATIONS} times")
    return [name for name in sizes if name]


def _calls(nodes: Iterable[Any], functions: Mapping[str, Any]) -> Iterator[str]:
    """The functions that nodes name, as often as they do."""
    for node in nodes:
        if node.op in functions:
            yield node.op
        for attr in node.attr.values():
            kind = attr.WhichOneof("value")
            named = [attr.func] if kind == "func" else attr.list.func if kind == "list" else ()
            yield from (f.name for f in named if f.name in functions)


def _unread(graph_def: Any) -> Iterator[str]:
    """The nodes whose results nothing reads."""
    read = {i.partition(":")[0] for node in graph_def.node for i in node.input if not i.startswith("^")}
    return (n.name for n in graph_def.node if n.name not in read and n.op not in _NO_RESULT)


def _results(graph: Any, names: Iterable[str]) -> Iterator[Any]:
    wanted = set(names)
    for operation in graph.get_operations():
        if operation.name in wanted:
            yield from (t for t in operation.outputs if t.dtype not in (tf.resource, tf.variant, tf.string))


def _reached(graph: Any, roots: Iterable[str]) -> set[str]:
    """The operations that ``roots`` depend on."""
    found: set[str] = set()
    stack = [graph.get_operation_by_name(name) for name in roots]
    while stack:
        operation = stack.pop()
        if operation.name not in found:
            found.add(operation.name)
            stack += [t.op for t in operation.inputs]
    return found


def _given_shapes(names: Sequence[str], args: Sequence[Any], what: str) -> dict[str, Any]:
    """The shapes that examples or specifications give to inputs, by the names of their nodes.

    Raises:
        ModelError: they are not as many.
    """
    if args and len(args) != len(names):
        listed = ", ".join(map(plain, names))
        raise ModelError(f"{what} has {len(names)} inputs ({listed}), and {len(args)} are given")
    return {name.partition(":")[0]: arg.shape for name, arg in zip(names, args, strict=False)}


def _tensor_name(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _tensor(graph: Any, name: str, what: str) -> Any:
    try:
        return graph.get_tensor_by_name(name)
    except (KeyError, ValueError):
        raise ModelError(f"{what}: there is no tensor {name!r}") from None


def _array(tensor: Any, name: str, what: str) -> Any:
    try:
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what}: constant {name!r} is damaged ({describe(error)})") from error
