"""Loading whatever stands for a model, and saving the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.functions import call_function, is_function_name
from planish.ir import Graph
from planish.ir.errors import PlanishError

if TYPE_CHECKING:
    import onnx

    from planish.backends.base import Backend, Written

    Model = str | Path | Graph | onnx.ModelProto | Any

__all__ = ["is_own_kind", "load", "save", "save_for"]

_ONNX = (".onnx", ".onnxtxt", ".onnxtext", ".ort", ".pb")
_TENSORFLOW = (".keras", ".h5", ".hdf5", ".tflite")
_READERS = ".onnx, .pt2, .keras, .h5 and .tflite files, SavedModel folders, GraphDefs (.pb), and module.py:function"


def load(model: Model) -> Graph:
    """The graph of a model.

    Args:
        model: a path (``.onnx``, ``.pt2``, ``.keras``, ``.h5``, ``.pb``, ``.tflite``, the folder of a SavedModel or
            ``folder:signature``, ``module.py:function``), a `Graph` (returned as it is), an ``onnx.ModelProto``, an
            ``onnx_ir.Model``, an ``onnx_graphsurgeon.Graph``, a ``torch.export.ExportedProgram``, a
            ``torch.nn.Module`` with example inputs as a tuple ``(module, args)``, ``(module, args, kwargs)`` or
            ``(module, args, kwargs, dynamic_shapes)``; a Keras model, a ``tf.function``, a ``ConcreteFunction``, a
            ``tf.Module`` or a ``GraphDef``, with example inputs if they are needed as a tuple ``(model, inputs)`` or
            ``(model, inputs, dynamic_shapes)``; or a `planish.frontends.jax.JaxModel` or
            `planish.frontends.tensorflow.TensorflowModel`.

    Raises:
        PlanishError: it cannot be read, or it is nothing of this kind.
    """
    try:
        return _load(model)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        raise PlanishError(str(error)) from error  # an extra is missing; the message says which


def _load(model: Model) -> Graph:
    if isinstance(model, Graph):
        return model
    if isinstance(model, str | Path):
        return _load_path(str(model))
    if type(model).__name__ == "ModelProto":
        from planish.frontends.onnx.upgrade import upgrade
        from planish.ir.convert.proto import from_proto

        return from_proto(model, upgrade=upgrade)
    if type(model).__name__ in ("JaxModel", "TensorflowModel") and type(model).__module__.startswith("planish."):
        return model.graph()
    first = model[0] if isinstance(model, tuple) and model else model
    if _is_of_tensorflow(first):  # before torch: Keras models may be torch modules
        return _load_tensorflow(*model) if isinstance(model, tuple) else _load_tensorflow(model)
    package = type(model).__module__.partition(".")[0]
    if package == "onnx_ir" and type(model).__name__ == "Model":
        from planish.ir.convert.onnx_ir import from_onnx_ir

        return from_onnx_ir(model)
    if package == "onnx_graphsurgeon" and type(model).__name__ == "Graph":
        from planish.ir.convert.graphsurgeon import from_graphsurgeon

        return from_graphsurgeon(model)
    torch = sys.modules.get("torch")  # whoever made a torch object has imported torch
    if torch is not None:
        if isinstance(model, torch.nn.Module):
            raise PlanishError("a torch module needs example inputs: give (module, args)")
        if isinstance(model, tuple) and model and isinstance(model[0], torch.nn.Module):
            return _load_module(*model)
        if isinstance(model, torch.export.ExportedProgram):
            from planish.frontends.torch import from_exported

            return from_exported(model)
    raise PlanishError(f"no model: {type(model).__name__}; give a path, a Graph, a ModelProto or (module, args)")


def _load_path(path: str) -> Graph:
    if is_function_name(path):
        model = call_function(path)
        try:
            return load(model)
        except PlanishError as error:
            raise PlanishError(f"{path}: {error}") from error
    folder, _, signature = path.rpartition(":")
    if not Path(path).exists() and Path(folder).is_dir() and folder:
        return _load_tensorflow(folder, signature=signature)
    if not Path(path).exists():
        raise PlanishError(f"no such file: {path}")
    suffix = Path(path).suffix.lower()
    if Path(path).is_dir() or suffix in _TENSORFLOW or (suffix == ".pb" and _is_of_tensorflow_file(Path(path))):
        return _load_tensorflow(path)
    if suffix in _ONNX:
        from planish.frontends.onnx import load as load_onnx

        return load_onnx(path)
    if suffix == ".pt2":
        from planish.frontends.torch import load_pt2

        return load_pt2(path)
    raise PlanishError(f"{path}: unknown kind of model; planish reads {_READERS}")


def _is_of_tensorflow(model: Any) -> bool:
    """Whether ``model`` is a function, module, graph or layer of TensorFlow or Keras; imports nothing."""
    packages = {c.__module__.partition(".")[0] for c in type(model).__mro__}
    return not packages.isdisjoint(("tensorflow", "keras", "tf_keras"))


def _is_of_tensorflow_file(path: Path) -> bool:
    """Whether a protobuf file is TensorFlow's: the first field of a GraphDef is a message, that of ONNX a number."""
    if path.name == "saved_model.pb":
        return True
    with path.open("rb") as file:
        return file.read(1) in (b"\x0a", b"\x12")


def _load_tensorflow(
    model: Any, inputs: Any = (), dynamic_shapes: Any = None, *, signature: str | None = None
) -> Graph:
    from planish.frontends.tensorflow import from_tensorflow

    args = inputs if isinstance(inputs, tuple) else (inputs,)
    return from_tensorflow(model, *args, signature=signature, dynamic_shapes=dynamic_shapes)


def _load_module(module: Any, args: Any = (), kwargs: Any = None, dynamic_shapes: Any = None) -> Graph:
    from planish.frontends.torch import from_torch

    return from_torch(module, args, kwargs, dynamic_shapes=dynamic_shapes)


def save(graph: Graph, path: str | Path, **options: Any) -> None:
    """Write ``graph`` as an ONNX file, completely or not at all.

    ``options`` are those of `planish.backends.onnx_file.save`. The file states the oldest operator set that says the
    same, unless they name one.

    Raises:
        PlanishError: it cannot be written.
    """
    from planish.backends.onnx_file import save as save_onnx

    graph = _standard(graph)
    if "opset" not in options:
        from planish.backends.legalize import CanonicalTarget, legalize
        from planish.ir.clone import clone_graph

        graph = clone_graph(graph)
        oldest = legalize(graph, CanonicalTarget("onnx", lambda node: True))
        options = {"opset": oldest.opset, "ir_version": oldest.ir_version, **options}
    save_onnx(graph, path, **options)


def save_for(graph: Graph, path: str | Path, engine: Backend | None, **options: Any) -> Written | None:
    """Write ``graph`` for ``engine``, in the format that the suffix of ``path`` asks for.

    Args:
        graph: the graph.
        path: the file: ``.onnx``, or one of the engine's own kinds.
        engine: what is to run it; None: whatever reads the operator set of the original.
        options: those of `save`, or of the engine's `planish.backends.base.Backend.write`.

    Returns:
        what there is to say about the file, if there is anything.

    Raises:
        PlanishError: it cannot be written, or the engine cannot run it.
    """
    if engine is not None and is_own_kind(path, engine):
        return engine.write(graph, path, **options)
    if engine is not None:
        from planish.backends.base import Written

        graph, stamp, notes = engine.lower_and_stamp(graph)
        options = {"opset": stamp.opset, "ir_version": stamp.ir_version, **options} if stamp is not None else options
        save(graph, path, **options)
        lines = [*notes, *filter(None, [engine.next_step(path)])]
        return Written({"notes": lines}, "\n".join(lines)) if lines else None
    save(graph, path, **options)
    return None


def is_own_kind(path: Any, engine: Backend) -> bool:
    """Whether ``path`` is a file of the engine's own kind, and no ONNX file."""
    suffix = Path(path).suffix.lower() if isinstance(path, str | Path) else ""
    return suffix != ".onnx" and suffix in engine.suffixes


def _standard(graph: Graph) -> Graph:
    """``graph`` in the standard's own operators: a copy where it has others that planish defines."""
    from planish.ir.quantization import FAKE_QUANTIZE

    if all(node.op != FAKE_QUANTIZE for node in graph.walk()):
        return graph
    from planish.backends.quantization import encode
    from planish.ir.clone import clone_graph

    lowered = clone_graph(graph)
    encode(lowered)
    return lowered
