"""SavedModel folders, read without running any of it: the graph from ``saved_model.pb``, variables from the checkpoint.

TensorFlow's own loader runs functions of the file to restore variables. Here the function that would do so is read
instead: it says which entry of the checkpoint each variable gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from ...ir.errors import ModelError
from .bundle import Bundle
from .graphdef import imported
from .inputs import Input, open_axes
from .sources import Traced, choose, identifier
from .tensor import StoredVariable

__all__ = ["of_saved_model"]

_FILE = "saved_model.pb"
_LARGEST = (1 << 31) - 1  # what protobuf allows
_VARIABLES = "variables/variables"
_HANDLES = frozenset(["VarHandleOp", "VariableV2", "Variable"])
_ASSIGN = frozenset(["AssignVariableOp", "Assign"])


def of_saved_model(folder: Path, signature: str | None, dynamic_shapes: Any) -> Traced:
    """A signature of a SavedModel.

    Args:
        folder: the folder, or the file in it that has the graph.
        signature: its name; None: the only one, or the one that servers take by default.
        dynamic_shapes: names of open sizes.

    Raises:
        ModelError: it is missing, damaged or not understood.
    """
    what = str(folder)
    folder = folder.parent if folder.name == _FILE else folder
    meta = _meta_graph(folder, what)
    chosen = choose({n: s for n, s in sorted(meta.signature_def.items()) if not n.startswith("__")}, signature, what)
    inputs = {name: _tensor_name(info, f"{what}: input {name!r}") for name, info in chosen.inputs.items()}
    outputs = {name: _tensor_name(info, f"{what}: output {name!r}") for name, info in chosen.outputs.items()}
    roots = {name.partition(":")[0] for name in (*inputs.values(), *outputs.values())}
    graph, constants = imported(meta.graph_def, roots, what, operations=meta.meta_info_def.stripped_op_list)
    order = {o.name: i for i, o in enumerate(graph.get_operations())}

    def place(item: tuple[str, str]) -> tuple[int, int]:
        name, _, number = item[1].partition(":")
        return order[name], int(number or 0)

    try:
        found = [(n, graph.get_tensor_by_name(t)) for n, t in sorted(inputs.items(), key=place)]
        results = [(n, graph.get_tensor_by_name(t)) for n, t in sorted(outputs.items(), key=place)]
    except (KeyError, ValueError):
        raise ModelError(f"{what}: a damaged signature") from None
    known = [Input(n, None if t.shape.rank is None else tuple(t.shape.as_list()), t.dtype) for n, t in found]
    axes = open_axes(known, dynamic_shapes, what, is_fixed=True)
    captures = [(array, graph.get_tensor_by_name(f"{name}:0")) for name, array in constants.items()]
    captures += _variables(folder, graph, meta, what)
    is_batched = all(t.shape.rank and t.shape[0] is None for _, t in (*found, *results))
    name = identifier(folder.resolve().name)
    return Traced(what, name, graph, found, results, axes, captures, is_batched=is_batched)


def _meta_graph(folder: Path, what: str) -> Any:
    """The graph that is for serving.

    Raises:
        ModelError: there is none.
    """
    path = folder / _FILE
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{what}: {_FILE} is a link that leads out of the folder")
    if not path.is_file():
        raise ModelError(f"{what}: no SavedModel: it has no file {_FILE}")
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"{path}: {path.stat().st_size / 1e9:.1f} GB, but protobuf allows 2 GB")
    saved = SavedModel()
    try:
        saved.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ModelError(f"{path} is damaged: no SavedModel") from None
    graphs = list(saved.meta_graphs)
    serving = [m for m in graphs if "serve" in m.meta_info_def.tags] or graphs
    if not serving:
        raise ModelError(f"{path} is damaged: a SavedModel without graphs")
    return serving[0]


def _tensor_name(info: Any, what: str) -> str:
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        raise ModelError(f"{what} is sparse: pass a dense tensor")
    if kind == "composite_tensor":
        kind = info.composite_tensor.type_spec.type_spec_class
        if kind == info.composite_tensor.type_spec.RAGGED_TENSOR_SPEC:
            raise ModelError(f"{what} is ragged: pass dense tensors and a mask")
        raise ModelError(f"{what} is no single tensor: pass a dense one")
    return str(info.name)


def _variables(folder: Path, graph: Any, meta: Any, what: str) -> list[tuple[Any, Any]]:
    """What stands for variables, and where they lie in the checkpoint."""
    handles = [o for o in graph.get_operations() if o.type in _HANDLES]
    if not handles:
        return []
    keys = _keys(meta)
    try:
        bundle = Bundle(folder, _VARIABLES)
        found = []
        for handle in handles:
            if handle.name not in keys:
                raise ModelError(f"nothing says which values the variable {handle.name!r} has")
            stored = StoredVariable(bundle.tensor(keys[handle.name], handle.name))
            found.append((stored, handle.outputs[0]))
    except ModelError as error:
        raise ModelError(f"{what}: {error}") from error.__cause__
    return found


def _keys(meta: Any) -> dict[str, str]:
    """The checkpoint's keys of variables, by the names of their nodes: what the function that restores them says."""
    nodes = {n.name: n for n in meta.graph_def.node}
    restore = nodes.get(meta.saver_def.restore_op_name.partition(":")[0])
    function = restore.attr["f"].func.name if restore is not None else ""
    bodies = [f for f in meta.graph_def.library.function if f.signature.name == function]
    if restore is None or not bodies:  # TensorFlow 1: in the graph itself
        return _assigned(nodes, {})
    operands = [i.partition(":")[0] for i in restore.input]
    names = {arg.name: name for arg, name in zip(bodies[0].signature.input_arg, operands, strict=False)}
    return _assigned({n.name: n for n in bodies[0].node_def}, names)


def _assigned(nodes: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """The keys of what is restored and assigned in ``nodes``, by the variables' names."""
    found = {}
    for node in nodes.values():
        if node.op not in _ASSIGN or len(node.input) < 2:
            continue
        variable = node.input[0].partition(":")[0]
        source, number = _origin(nodes, node.input[1])
        if source is None or len(source.input) < 2:
            continue
        listed = nodes.get(source.input[1].partition(":")[0])
        strings = listed.attr["value"].tensor.string_val if listed is not None else ()
        if number < len(strings):
            found[names.get(variable, variable)] = strings[number].decode("utf-8", "replace")
    return found


def _origin(nodes: Mapping[str, Any], tensor: str) -> tuple[Any, int]:
    """The RestoreV2 that a tensor comes from, and which of its results it is."""
    for _ in range(len(nodes)):
        name, *rest = tensor.split(":")
        node = nodes.get(name)
        if node is None:
            break
        if node.op == "RestoreV2":
            number = rest[-1] if rest else "0"
            return node, int(number) if number.isdecimal() else 0
        if node.op != "Identity" or not node.input:
            break
        tensor = node.input[0]
    return None, 0
