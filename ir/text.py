"""Text: graphs in the ONNX textual syntax, which ``onnx.parser`` reads.

    <opset_import: ["" : 21]>
    main (float[batch,4] x) => (float[batch,2] y) <float[4,2] w = {1, 0, 0, 1, 1, 0, 0, 1}, float b = {0.5}> {
      matmul = MatMul (x, w)
      y = Add (matmul, b)
    }

What goes beyond the syntax's own documentation, or is lost:

- The header with the operator sets is left out where it would state the newest standard one and version 1 of others.
- Constants stand in the root graph's ``<…>`` list. Those of more than ``limit`` elements, or that are costly to read,
  are elided: ``float[1000,1000] w = ["elided": "4000000 bytes"]``. `parse` makes of it a tensor that has its type but
  raises `TensorError` when it is read.
- float16, bfloat16 and float8 elements are their bit patterns; types of less than a byte are the packed bytes, so
  ``int4[3] {33, 3}`` holds 1, 2, 3. NaNs lose their payload.
- An output that no result can be named after (a returned input, a value returned twice) is written as an ``Identity``
  called ``return``, which `parse` takes out again.
- Types of values inside the graph are not stated (inference finds them again) but for results of operators that onnx
  does not define. ``?`` stands for any unknown size, also where two are known to be the same.
- Node names, doc strings and metadata are left out. Lists of graphs, tensors or types, sparse tensors, and attributes
  that are not UTF-8 print but do not parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from .dims import Dim
from .errors import ModelError, PlanishError
from .graph import Graph, GraphOutput, Node, Value
from .schema import canonical_opset, is_current
from .tensor import LazyTensor, Tensor, TensorError, pack
from .types import DType, OptionalType, OtherType, SequenceType, TensorType, Type, merge

if TYPE_CHECKING:
    import onnx

__all__ = ["Names", "TextError", "graph_text", "node_text", "operator_sets", "parse", "type_text"]

LIMIT = 16  # elements of the largest constant that is printed in full unless the caller says otherwise
_CHEAP = 1 << 16  # elements that a lazy tensor may read for the sake of being printed
_WIDTH = 100  # columns that a list may fill before it takes a line per entry
_MAX_DEPTH = 200  # of brackets: the parser recurses
_RETURN = "return"  # name of the Identity nodes that only name an output
_ELIDED = "elided"
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NOT_WORD = re.compile(r"[^A-Za-z0-9_]+")
_KEYWORDS = {"seq", "map", "optional", "sparse_tensor", "opaque", "inf", "infinity", "nan"} | {d.text for d in DType}
# dtypes whose elements are written as unsigned bit patterns (the others, but for sub-byte ones, as numbers)
_AS_BITS = {d: np.dtype(np.uint16 if d.bits == 16 else np.uint8) for d in DType if d.is_floating and d.bits in (8, 16)}
# elements of lists that the parser does not take, or drops, with the name that says what they are
_UNREADABLE: dict[str, type | tuple[type, ...]] = {
    "graphs": Graph, "tensors": Tensor, "type_protos": (TensorType, SequenceType, OtherType), "bytes": bytes,
}  # fmt: skip
_LISTS = {6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs", 12: "sparse_tensors", 14: "type_protos"}


class TextError(PlanishError, ValueError):
    """A text is no graph. The message is one line and states the place.

    Attributes:
        line: the line, from 1; 0 where unknown.
        column: the column, from 1; 0 where unknown.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0):
        super().__init__(f"line {line}, column {column}: {message}" if line else message)
        self.line = line
        self.column = column


# names


def quoted(text: str) -> str:
    """``text`` as a string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _written(name: str) -> str:
    """``name`` as it can stand for an identifier."""
    return name if _IDENTIFIER.match(name) and name not in _KEYWORDS else quoted(name)


def _hint(value: Value) -> str:
    """A name for ``value`` before it is made unique, always an identifier."""
    if value.name:
        return _identifier(value.name)
    if value.producer is not None:
        return _identifier(value.producer.op_type.lower())
    return "c" if value.const is not None else "v"


def _identifier(name: str) -> str:
    name = _NOT_WORD.sub("_", name).strip("_") if not _IDENTIFIER.match(name) else name
    return f"v{name}" if not name or name[0].isdigit() else name


class Names:
    """Printed names, unique within a graph and all graphs around it, the same for the same graph.

    Inputs and outputs of the root keep their names; other values get theirs from their hints.
    """

    def __init__(self) -> None:
        self._names: dict[Value, str] = {}
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def __getitem__(self, value: Value) -> str:
        """The name of ``value`` as written; a value from elsewhere (in a broken graph) gets one too."""
        return _written(self.plain(value))

    def plain(self, value: Value) -> str:
        """The name of ``value`` without quotes."""
        name = self._names.get(value)
        return self._assign(value, _hint(value)) if name is None else name

    def _assign(self, value: Value, hint: str) -> str:
        name = self._names[value] = self.reserve(hint)
        return name

    def reserve(self, hint: str) -> str:
        """A name that is free from now on."""
        name = hint
        if name in self._taken:
            i = self._next.get(hint, 1)
            while f"{hint}_{i}" in self._taken:
                i += 1
            self._next[hint] = i + 1
            name = f"{hint}_{i}"
        self._taken.add(name)
        return name

    def enter(self, graph: Graph, *, nested: bool) -> tuple[list[str], list[Value]]:
        """Name the values of ``graph``.

        Returns:
            the name of each output, unlike its value's where another node must name it; and the values, for `leave`.
        """
        before = len(self._names)
        for value in graph.inputs:
            self._assign(value, _hint(value) if nested or not value.name else value.name)
        outputs = self._name_outputs(graph, nested)
        for value in graph.constants() if not nested else ():
            if value not in self._names:
                self._assign(value, _hint(value))
        for node in graph.nodes:
            for result in node.results:
                if result not in self._names:
                    self._assign(result, _hint(result))
        return outputs, list(islice(reversed(self._names), len(self._names) - before))

    def _name_outputs(self, graph: Graph, nested: bool) -> list[str]:
        """Name returned values after their outputs where that can be."""
        outputs: list[str] = []
        for value, info in _interface(graph):
            ours = value.producer is not None and value.producer.graph is graph
            hint = _identifier(info.name) if nested or not info.name else info.name
            if value not in self._names and (ours or (value.const is not None and not nested)):
                outputs.append(self._assign(value, hint if info.name else _hint(value)))
                continue
            name = self._names.get(value)
            if name is not None and name not in outputs and (name == info.name or (nested and value.graph is graph)):
                outputs.append(name)
            else:
                outputs.append(self.reserve(hint))
        return outputs

    def leave(self, outputs: list[str], values: list[Value]) -> None:
        """Free the names of a nested graph, as `enter` returned them, for its siblings."""
        for value in values:
            self._taken.discard(self._names.pop(value))
        self._taken.difference_update(outputs)
        self._next.clear()


def _interface(graph: Graph) -> Iterator[tuple[Value, GraphOutput]]:
    """Returned values with the outputs they are for; an output that nothing describes is nameless."""
    for i, value in enumerate(graph.outputs):
        yield value, graph.output_info[i] if i < len(graph.output_info) else GraphOutput("")


# types


def _dim_text(dim: Dim) -> str:
    if isinstance(dim, int):
        return str(dim)
    if dim.mentions_anonymous:
        return "?"
    text = str(dim)
    return text if _IDENTIFIER.match(text) else quoted(text)


def type_text(type: Type) -> str | None:
    """``type`` as written, or None where the syntax cannot say it (an unknown element type)."""
    match type:
        case TensorType(dtype=dtype, shape=shape):
            if not dtype:
                return None
            return dtype.text if shape == () else f"{dtype.text}[{','.join(map(_dim_text, shape or ()))}]"
        case OptionalType() | SequenceType():
            element = type_text(type.element)
            return element and f"{'optional' if isinstance(type, OptionalType) else 'seq'}({element})"
        case OtherType():
            return _other_type_text(type)
    raise TypeError(f"no type: {type!r}")


def _other_type_text(type: OtherType) -> str | None:
    import onnx

    proto = onnx.TypeProto.FromString(type.proto)
    if proto.HasField("map_type"):
        value = _other_type_text(OtherType(proto.map_type.value_type.SerializeToString()))
        return value and f"map({DType(proto.map_type.key_type).text}, {value})"
    if proto.HasField("opaque_type"):
        return f"opaque({','.join(filter(None, (proto.opaque_type.domain, proto.opaque_type.name)))})"
    if proto.HasField("sequence_type"):
        value = _other_type_text(OtherType(proto.sequence_type.elem_type.SerializeToString()))
        return value and f"seq({value})"
    if proto.HasField("optional_type"):
        value = _other_type_text(OtherType(proto.optional_type.elem_type.SerializeToString()))
        return value and f"optional({value})"
    sparse = proto.HasField("sparse_tensor_type")
    tensor = proto.sparse_tensor_type if sparse else proto.tensor_type
    if not tensor.elem_type:
        return None
    dims = ",".join(_proto_dim_text(d) for d in tensor.shape.dim)
    text = DType(tensor.elem_type).text + ("" if tensor.HasField("shape") and not dims else f"[{dims}]")
    return f"sparse_tensor({text})" if sparse else text


def _proto_dim_text(dim: onnx.TensorShapeProto.Dimension) -> str:
    if dim.HasField("dim_value"):
        return str(dim.dim_value)
    return quoted(dim.dim_param) if dim.dim_param else "?"


def _typed(type: Type, name: str) -> str:
    text = type_text(type)
    return f"{text} {name}" if text else name


# values of constants and attributes


def _float_text(value: float, *, double: bool = False) -> str:
    """The shortest literal that reads back as the same number, always with a point or an exponent."""
    if double:
        return repr(float(value))
    with np.errstate(over="ignore"):
        return str(np.float32(value))


def _number_text(value: float, *, double: bool = False) -> str:
    return _float_text(value, double=double).removesuffix(".0")


def _elements(tensor: Tensor) -> Iterable[str]:
    """The literals of the elements of ``tensor``."""
    array, dtype = tensor.numpy(), tensor.dtype
    if dtype is DType.STRING:
        return [quoted(s.decode("utf-8", "backslashreplace") if isinstance(s, bytes) else str(s)) for s in array.flat]
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype in (DType.COMPLEX64, DType.COMPLEX128):
        flat = flat.view(np.float32 if dtype is DType.COMPLEX64 else np.float64)
    if flat.dtype in (np.float32, np.float64):
        return [_number_text(x, double=flat.dtype == np.float64) for x in flat]
    if dtype.bits < 8:
        flat = pack(array, dtype)
    elif dtype in _AS_BITS:
        flat = flat.view(_AS_BITS[dtype])
    return [str(int(x)) for x in flat]


def _is_shown(tensor: Tensor, limit: int | None) -> bool:
    if limit is None:
        return True
    return tensor.size <= limit and _is_cheap(tensor)


def _is_cheap(tensor: Tensor) -> bool:
    if isinstance(tensor, LazyTensor):
        return all(t.size <= _CHEAP and _is_cheap(t) for t in tensor.inputs)
    return tensor.is_cheap


def _contents(tensor: Tensor, limit: int | None) -> str:
    """What follows the type and name of ``tensor``."""
    if _is_shown(tensor, limit):
        try:
            return f"{{{', '.join(_elements(tensor))}}}"
        except TensorError:  # its bytes cannot be had: such as those of a tensor that was elided itself
            pass
    if tensor.dtype is DType.STRING:
        return f'["{_ELIDED}": "{tensor.size} strings"]'
    return f'["{_ELIDED}": "{tensor.nbytes} bytes"]'


def _tensor_text(tensor: Tensor, name: str, limit: int | None) -> str:
    return f"{type_text(tensor.type)} {name} = {_contents(tensor, limit)}"


class _Printer:
    """Prints one graph with all that is nested in it."""

    def __init__(self, names: Names, *, limit: int | None, types: bool, node_names: bool):
        self.names = names
        self.limit = limit
        self.types = types
        self.node_names = node_names

    def graph(self, graph: Graph, indent: str, *, nested: bool) -> str:
        """The text of ``graph``, whose first line is not indented."""
        names = self.names
        outputs, named = names.enter(graph, nested=nested)
        inputs = [
            _typed(v.type, names[v]) + ("" if v.default is None else f" = {_contents(v.default, self.limit)}")
            for v in graph.inputs
        ]
        returned = [
            _typed(merge(info.type, value.type), _written(name))
            for name, (value, info) in zip(outputs, _interface(graph), strict=True)
        ]
        lines = [self.node(node, indent + "  ") for node in graph.nodes]
        for name, value in zip(outputs, graph.outputs, strict=True):
            if names[value] != _written(name):
                lines.append(f"{indent}  [{_RETURN}] {_written(name)} = Identity ({names[value]})")
        title = _identifier(graph.name or "graph") if nested else _written(graph.name or "graph")
        if nested and title in _KEYWORDS:
            title += "_"
        head = f"{title} ({', '.join(inputs)}) => ({', '.join(returned)})"
        header = self._header(graph, nested, indent)
        if nested:
            names.leave(outputs, named)
        body = "\n".join(lines)
        return f"{head}{header} {{\n{body}\n{indent}}}" if lines else f"{head}{header} {{\n{indent}}}"

    def _header(self, graph: Graph, nested: bool, indent: str) -> str:
        """Constants, and the types that inference cannot find."""
        constants = [] if nested else graph.constants()
        entries = [_tensor_text(c.const, self.names[c], self.limit) for c in constants if c.const is not None]
        for node in graph.nodes:
            if "." in node.op:
                inner = [r for r in node.results if graph.ret not in r._users]
                entries += [f"{text} {self.names[r]}" for r in inner if (text := type_text(r.type))]
        if not entries:
            return ""
        joined = ", ".join(entries)
        if len(joined) <= _WIDTH:
            return f" <{joined}>"
        return " <\n" + ",\n".join(f"{indent}  {entry}" for entry in entries) + f"\n{indent}>"

    def node(self, node: Node, indent: str) -> str:
        """The line, or lines, of ``node``."""
        names = self.names
        results = ", ".join([names[r] for r in node.results])
        operands = ", ".join(['""' if o is None else names[o] for o in node.operands])
        label = f"[{_written(node.name)}] " if self.node_names and node.name else ""
        head = f"{indent}{label}{results} = {_op_text(node)}" if results else f"{indent}{label}= {_op_text(node)}"
        comment = self._comment(node) if self.types else ""
        if not node.attrs:
            return f"{head} ({operands}){comment}"
        if not node.graphs:
            attrs = ", ".join([self._attribute(name, value, "") for name, value in node.attrs.items()])
            return f"{head} <{attrs}> ({operands}){comment}"
        inner = indent + "  "
        attrs = f",\n{inner}".join([self._attribute(name, value, inner) for name, value in node.attrs.items()])
        return f"{head} ({operands}) <{comment}\n{inner}{attrs}\n{indent}>"

    def _comment(self, node: Node) -> str:
        return "  # " + ", ".join(str(r.type) for r in node.results)

    def _attribute(self, name: str, value: Any, indent: str) -> str:
        if isinstance(value, tuple):
            if not value:
                kind = _LISTS.get(getattr(value, "kind", 7), "ints")
                return f"{name}: {kind} = []"
            if any(isinstance(e, float) for e in value):
                value = tuple(float(e) for e in value)
            listed = ", ".join([self._single(e, indent) for e in value])
            kind = next((kind for kind, types in _UNREADABLE.items() if any(isinstance(e, types) for e in value)), "")
            return f"{name}: {kind} = [{listed}]" if kind else f"{name} = [{listed}]"
        if isinstance(value, bytes):  # no such kind, so that the parser refuses it rather than reads something else
            return f"{name}: bytes = {quoted(value.decode('utf-8', 'backslashreplace'))}"
        return f"{name} = {self._single(value, indent)}"

    def _single(self, value: Any, indent: str) -> str:
        if isinstance(value, float):
            return _float_text(value)
        if isinstance(value, str):
            return quoted(value)
        if isinstance(value, Graph):
            return self.graph(value, indent, nested=True)
        if isinstance(value, Tensor):
            contents = _contents(value, self.limit)
            return f"{type_text(value.type)} {contents if contents[0] == '{' else '= ' + contents}"
        if isinstance(value, TensorType | SequenceType | OtherType):
            return type_text(value) or str(value)
        if isinstance(value, bytes):
            return quoted(value.decode("utf-8", "backslashreplace"))
        return str(int(value)) if isinstance(value, int | np.integer) else str(value)


def _op_text(node: Node) -> str:
    return f"{node.op}:{node.overload}" if node.overload else node.op


def _default_version(domain: str) -> int:
    """The version of an operator set where none is stated."""
    return 1 if domain else canonical_opset()


def operator_sets(graph: Graph) -> dict[str, int]:
    """The versions of the operator sets that the root ``graph`` uses, the standard one included, by domain."""
    domains = {""} | {node.domain for node in graph.walk()}
    return {domain: graph.opsets.get(domain) or _default_version(domain) for domain in sorted(domains)}


def graph_text(graph: Graph, *, limit: int | None = LIMIT, types: bool = False, node_names: bool = False) -> str:
    """``graph`` in the ONNX textual syntax.

    Args:
        graph: a root, or a nested graph (whose captured values are then names without a definition).
        limit: the number of elements beyond which a constant is elided; None prints everything in full.
        types: state the types of results in comments.
        node_names: print the names of nodes.
    """
    header = ""
    opsets = operator_sets(graph) if graph.parent is None else {}
    if any(version != _default_version(domain) for domain, version in opsets.items()):
        listed = ", ".join(f"{quoted(domain)} : {version}" for domain, version in opsets.items())
        header = f"<opset_import: [{listed}]>\n"
    return header + _Printer(Names(), limit=limit, types=types, node_names=node_names).graph(graph, "", nested=False)


def node_text(node: Node, names: Names | None = None) -> str:
    """One line for ``node``: its hints for names, nested graphs by their number of nodes, large tensors elided."""
    names = names or Names()
    operands = ", ".join(['""' if o is None else names[o] for o in node.operands])
    results = ", ".join([names[r] for r in node.results])
    printer = _Printer(names, limit=LIMIT, types=False, node_names=False)
    parts = []
    for key, value in node.attrs.items():
        first = value[0] if isinstance(value, tuple) and value else value
        parts.append(f"{key} = {{…}}" if isinstance(first, Graph) else printer._attribute(key, value, ""))
    attrs = f" <{', '.join(parts)}>" if parts else ""
    if node.graph is not None and node is node.graph.ret:
        return f"return ({operands})"
    return f"{results} = {_op_text(node)}{attrs} ({operands})".lstrip()


# parsing


def parse(text: str) -> Graph:
    """The graph that ``text`` describes: a model with its header, or a graph alone, in the newest standard operators.

    Its types are inferred, unless it uses an operator in a version whose definition is not the newest one.

    Raises:
        TextError: it is no graph.
    """
    from .convert.proto import from_proto

    model, is_newest = _parse_proto(text)
    try:
        graph = from_proto(model, resolve=_elided, infer=is_newest)
    except ModelError as error:
        raise TextError(" ".join(str(error).split())) from error
    for each in list(graph.walk_graphs()):
        _take_out_returns(each)
    return graph


def _parse_proto(text: str) -> tuple[onnx.ModelProto, bool]:
    """The model, and whether all operators in it are defined as in the newest version."""
    import onnx
    import onnx.parser

    _check_depth(text)
    try:
        model: onnx.ModelProto = onnx.parser.parse_model(text)
    except Exception as error:  # noqa: BLE001 - the parser raises whatever C++ throws, such as for a number out of range
        raise _text_error(error) from None
    operators = _check(model.graph)
    if not model.opset_import:
        for domain in sorted({""} | {domain for domain, _ in operators}):
            model.opset_import.add(domain=domain, version=_default_version(domain))
    model.ir_version = model.ir_version or onnx.IR_VERSION
    versions = {entry.domain: entry.version for entry in model.opset_import}
    standard = (f"{domain}.{op}" if domain else op for domain, op in operators)
    newest = all(is_current(op, versions.get(op.rpartition(".")[0], 1)) for op in standard)
    return model, newest


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|#[^\n]*|[({\[]|[)}\]]', re.DOTALL)


def _check_depth(text: str) -> None:
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in "({[") - (token in ")}]")
        if depth > _MAX_DEPTH:
            at = match.start()
            column = at - text.rfind("\n", 0, at)
            raise TextError(f"brackets nested deeper than {_MAX_DEPTH}", text.count("\n", 0, at) + 1, column)


def _text_error(error: Exception) -> TextError:
    """The parser's three-line message on one line."""
    raw = error.args[0] if error.args else ""
    message = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    found = re.search(r"\(line: (\d+) column: (\d+)\)\]\s*(?:Error context: (.*?)\n)?(.*)\Z", message, re.DOTALL)
    if found is None:  # the C++ functions that read numbers give no more than their names
        return TextError("a number is out of range" if "sto" in message else " ".join(message.split()))
    line, column, context, problem = found.groups()
    near = " ".join((context or "").split())
    near = f" in {near if len(near) <= 80 else near[:79] + '…'!r}" if near else ""
    return TextError(" ".join(problem.split()).rstrip(".") + near, int(line), int(column))


def _check(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    """The operators in use. The parser drops the elements of lists of tensors, graphs and types: refuse such lists."""
    operators = set()
    for node in graph.node:
        operators.add((node.domain, node.op_type))
        for attribute in node.attribute:
            if attribute.type in (9, 10, 12, 14):
                kind = _LISTS[attribute.type]
                raise TextError(f"{node.op_type}: no list of {kind} can be read (attribute {attribute.name!r})")
            if attribute.HasField("g"):
                operators |= _check(attribute.g)
    return operators


def _elided(proto: onnx.TensorProto) -> Tensor:
    """The stand-in for a tensor that the text elides."""
    name = proto.name
    if not any(entry.key == _ELIDED for entry in proto.external_data):
        raise TextError(f"tensor {name!r}: a text cannot refer to files")

    def unavailable() -> np.ndarray:
        raise TensorError(f"tensor {name!r} was elided when the graph was printed (print it with limit=None)")

    return LazyTensor(unavailable, (), DType(proto.data_type), tuple(proto.dims), name)


def _take_out_returns(graph: Graph) -> None:
    from .edit import erase, set_operands

    def is_return(node: Node | None) -> TypeGuard[Node]:
        return node is not None and node.graph is graph and node.op == "Identity" and node.name == _RETURN

    producers = [v.producer for v in graph.outputs]
    if any(map(is_return, producers)):
        returned = [p.operands[0] if is_return(p) else v for p, v in zip(producers, graph.outputs, strict=True)]
        set_operands(graph.ret, returned)
        for node in producers:
            if is_return(node) and not node.result.is_used:
                erase(node)
