"""The face of the frontend: `from_tensorflow`, and `TensorflowModel` for handing a model on with all that it needs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import ModelError
from ...ir.graph import Graph
from .files import Kind, kind_of, load_keras_file
from .keras_backends import from_other_backend, trace_keras
from .keras_models import backend_of, call_of, is_keras

if TYPE_CHECKING:
    from .sources import Traced

__all__ = ["DynamicShapes", "TensorflowModel", "from_tensorflow", "quiet", "require_tensorflow"]

DynamicShapes = Mapping[str, Mapping[int, str] | Sequence[str | None]] | Sequence[Any]


def from_tensorflow(
    model: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    signature: str | None = None,
    dynamic_shapes: DynamicShapes | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opaque: Collection[str] = (),
) -> Graph:
    """The graph of a TensorFlow or Keras model, whose weights are TensorFlow's own memory.

    Models are taken as they infer: Keras layers are called with ``training=False``. Convolutions compute with channels
    first; inputs and outputs stay as they are. Keras models are traced with the backend that computes them.

    Args:
        model: a Keras model or layer, a ``tf.function``, a ``ConcreteFunction``, a ``tf.Module``, what
            ``tf.saved_model.load`` returns, a ``GraphDef`` without variables, or a path: a ``.keras`` or ``.h5`` file,
            the folder of a SavedModel, the ``.pb`` file of a GraphDef, or a ``.tflite`` file.
        args: example inputs, or ``tf.TensorSpec`` whose sizes may be None: of what is traced. Not needed where the
            model knows its own: functional and sequential models, an ``input_signature``, what was saved.
        kwargs: example keyword arguments.
        signature: which signature of a saved model, or which ``tf.function`` of a module; None: the only one, or the
            one that servers take by default.
        dynamic_shapes: names for open sizes: for the name of an input, axes and names (``{"x": {0: "batch"}}``), or a
            name (or None) for each axis. Sizes of examples that are named are open, too. Else, the first open size of
            a Keras model's inputs is ``batch``; others are called after the input (``x_dim1``).
        input_names: other names for the inputs, in order. Of a GraphDef: which tensors are the inputs; None: what it
            has of placeholders.
        output_names: other names for the outputs, in order. Of a GraphDef: which tensors are the outputs; None: those
            that nothing in it reads.
        opaque: types of operations that stay as they are: operators of the domain ``tensorflow`` with the operation's
            inputs and attributes, for a runtime that has them. Not of Keras models with another backend.

    Raises:
        ImportError: the extra is missing.
        ModelError: the model cannot be read or traced.
        UnsupportedOperations: it has operations without a translation; all of them are named.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        kind = kind_of(path)
        if kind is not Kind.KERAS:
            return _from_file(path, kind, args, signature, dynamic_shapes, input_names, output_names, opaque)
        model = load_keras_file(path)
    if is_keras(model):
        call = call_of(model, args, kwargs or {}, dynamic_shapes, model.name)
        if backend_of(model) != "tensorflow":
            if opaque:
                raise ModelError(
                    f"{model.name}: opaque names operations of TensorFlow; {backend_of(model)} computes this"
                )
            return from_other_backend(call, input_names, output_names)
        require_tensorflow()
        return _graph(trace_keras(call), input_names, output_names, opaque)
    require_tensorflow()
    if type(model).__name__ == "GraphDef":
        from .graphdef import of_graph_def

        source = of_graph_def(model, "the GraphDef", args, dynamic_shapes, input_names, output_names)
        return _graph(source, opaque=opaque)
    from .sources import traced

    return _graph(traced(model, args, kwargs or {}, signature, dynamic_shapes), input_names, output_names, opaque)


def _from_file(
    path: Path,
    kind: Kind,
    args: Sequence[Any],
    signature: str | None,
    dynamic_shapes: DynamicShapes | None,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    opaque: Collection[str],
) -> Graph:
    """The graph of a file that TensorFlow wrote; the parameters are those of `from_tensorflow`."""
    require_tensorflow()
    if kind is Kind.SAVED_MODEL:
        from .saved_model import of_saved_model

        return _graph(of_saved_model(path, signature, dynamic_shapes), input_names, output_names, opaque)
    if kind is Kind.LITE:
        from .lite.model import lite_graph

        if opaque:
            raise ModelError(f"{path}: opaque names operations of TensorFlow, and a .tflite file has operators")
        return lite_graph(path, signature, dynamic_shapes, input_names, output_names)
    from .graphdef import of_graph_def, read_graph_def

    source = of_graph_def(read_graph_def(path), str(path), args, dynamic_shapes, input_names, output_names)
    return _graph(source, opaque=opaque)


def _graph(
    source: Traced,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opaque: Collection[str] = (),
) -> Graph:
    from .program import Program

    return Program(source, opaque).graph(input_names, output_names)


@dataclass(frozen=True)
class TensorflowModel:
    """A TensorFlow model with what `from_tensorflow` needs to make a graph of it: the arguments have the same names.

    This is what a function that is named on the command line (``model.py:build``) returns.
    """

    model: Any
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    signature: str | None = None
    dynamic_shapes: DynamicShapes | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opaque: Collection[str] = ()

    def graph(self) -> Graph:
        """The graph; raises what `from_tensorflow` raises."""
        return from_tensorflow(
            self.model,
            *self.args,
            kwargs=self.kwargs,
            signature=self.signature,
            dynamic_shapes=self.dynamic_shapes,
            input_names=self.input_names,
            output_names=self.output_names,
            opaque=self.opaque,
        )


def require_tensorflow() -> Any:
    """The tensorflow package.

    Raises:
        ImportError: it is missing.
    """
    try:
        with quiet():
            import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ImportError(
            f"TensorFlow models need {error.name}: pip install 'planish[tensorflow]'", name=error.name
        ) from None
    return tf


@contextmanager
def quiet() -> Iterator[None]:
    """Keep TensorFlow from talking about the machine while it is imported, which no setting of its own does.

    What it wrote is shown after all if the import fails.
    """
    if hasattr(sys.modules.get("tensorflow"), "__version__"):  # it has been imported
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for what it says later
    try:
        sys.stderr.flush()
        own = os.dup(2)
    except (OSError, ValueError):  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(own, said.read())
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)
