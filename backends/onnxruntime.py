"""ONNX Runtime: the default backend. Weights go to it as they lie in memory or mapped files, never through protobuf."""

from __future__ import annotations

import ctypes
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.clone import clone_graph
from ..ir.dims import fresh, sym
from ..ir.errors import PlanishError
from ..ir.graph import Graph
from ..ir.tensor import FileTensor, Tensor, TensorError, pack, unpack
from ..ir.types import UNKNOWN, DType, SequenceType, TensorType, Type
from ..passes.quantize.targets import target_for
from .base import Backend, Executable, Lowered, LoweringError, import_or_explain
from .legalize import Stamp, legalize
from .ort_forms import adapt
from .ort_quantized import adapt_quantized, move_codes
from .ort_target import OrtTarget, lacks_kernel
from .quantization import encode

__all__ = ["BACKEND", "OnnxRuntime", "from_ort", "session_options", "to_ort"]

_EXTERNAL = 1 << 10  # bytes: smaller tensors stay in the model, where ONNX Runtime's shape inference sees them
_LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_QUIET = 4  # log only what is fatal: errors come as exceptions
_NUMPY = frozenset(  # the types that ONNX Runtime's Python binding knows
    DType[name]
    for name in (
        *("BOOL", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"),
        *("FLOAT16", "FLOAT", "DOUBLE", "COMPLEX64", "COMPLEX128", "STRING"),
    )
)


# values


def to_ort(array: np.ndarray[Any, Any], dtype: DType) -> Any:
    """``array`` as an OrtValue, without a copy where the layout allows."""
    from onnxruntime import OrtValue

    array = np.ascontiguousarray(array).reshape(array.shape)
    if dtype in _NUMPY:
        return OrtValue.ortvalue_from_numpy(array)
    if dtype.bits >= 8:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(dtype))
    value = OrtValue.ortvalue_from_shape_and_type(list(array.shape), int(dtype))
    packed = pack(array, dtype)
    ctypes.memmove(value.data_ptr(), packed.ctypes.data, packed.nbytes)
    return value


def from_ort(value: Any) -> Any:
    """What an OrtValue holds: an array, a list of arrays, or None."""
    if not value.has_value():
        return None
    if not value.is_tensor():
        return value.numpy()
    dtype = DType(value.element_type())
    if dtype in _NUMPY:
        return value.numpy()
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), np.uint8)
    return unpack(raw, dtype, tuple(value.shape()))


def _as_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_value(v) for v in value]
    return value if value is None or isinstance(value, np.ndarray) else np.asarray(value)


def _is_numpy(type_: Type) -> bool:
    """Whether ONNX Runtime itself turns values of this type into numpy arrays and back."""
    if isinstance(type_, SequenceType):
        return _is_numpy(type_.element)
    return not isinstance(type_, TensorType) or not type_.dtype or type_.dtype in _NUMPY


class _Weights:
    """Where ONNX Runtime finds the tensors that are not in the model. It maps files; arrays it copies.

    As an `ExternalWriter`, it places tensors in the files that hold them already, and numbers the others.
    """

    def __init__(self, graph: Graph):
        self.arrays: list[Tensor] = []
        files = {t.file for v in graph.constants() if isinstance(t := v.const, FileTensor)}
        self.files = {f: os.path.realpath(f.path) for f in files if f.is_current}
        self.folder = _common_folder(self.files.values())

    def place(self, tensor: Tensor) -> tuple[str, int, int] | None:
        """File, offset and length of a tensor; None for small ones."""
        if tensor.dtype is DType.STRING or tensor.nbytes < _EXTERNAL:
            return None
        file = self.files.get(tensor.file) if isinstance(tensor, FileTensor) and self.folder else None
        if file is not None and isinstance(tensor, FileTensor) and tensor.offset * 8 % tensor.dtype.bits == 0:
            return os.path.relpath(file, self.folder).replace(os.sep, "/"), tensor.offset, tensor.length
        if self.folder and tensor.dtype.bits < 8:  # packed ones it takes from memory only where nothing is in files
            return None
        self.arrays.append(tensor)
        return f"#{len(self.arrays) - 1}", 0, tensor.nbytes

    def attach(self, model: Any, options: Any) -> list[Any]:
        """Tell the session options; returns what must live until there is a session."""
        if self.folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", self.folder)
        values: dict[str, Any] = {}
        packed: dict[str, np.ndarray[Any, Any]] = {}
        for initializer in model.graph.initializer:
            location = next((e.value for e in initializer.external_data if e.key == "location"), "")
            if location.startswith("#"):
                tensor = self.arrays[int(location[1:])]
                if tensor.dtype.bits < 8:
                    packed[location] = pack(tensor.numpy(), tensor.dtype)
                else:
                    values[initializer.name] = to_ort(tensor.numpy(), tensor.dtype)
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        if packed:
            sizes = [array.nbytes for array in packed.values()]
            options.add_external_initializers_from_files_in_memory(list(packed), list(packed.values()), sizes)
        return [values, packed]


def _common_folder(files: Iterable[str]) -> str:
    """The folder below which all ``files`` are, or ""."""
    try:
        return os.path.commonpath([Path(f).parent for f in files])
    except ValueError:  # no files, or on several drives
        return ""


# sessions


_Named = tuple[str, Type]


class _Session(Executable):
    """A session.

    Args:
        session: it.
        inputs: names and types.
        outputs: names and types.
        facts: for the report.
    """

    def __init__(self, session: Any, inputs: Sequence[_Named], outputs: Sequence[_Named], facts: Mapping[str, Any]):
        self.session = session
        self.inputs = list(inputs)
        self.outputs = [name for name, _ in outputs]
        self._facts = dict(facts)
        self._numpy = all(_is_numpy(type_) for _, type_ in (*inputs, *outputs))

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        try:
            if self._numpy:
                return list(self.session.run(None, {n: _as_value(v) for n, v in inputs.items()}))
            arrays = {n: np.asarray(v) for n, v in inputs.items()}
            feeds = {n: to_ort(a, DType.from_numpy(a.dtype)) for n, a in arrays.items()}
            return [from_ort(v) for v in self.session.run_with_ort_values(None, feeds)]
        except Exception as error:
            raise PlanishError(f"onnxruntime: {_one_line(error)}") from error

    def report(self) -> dict[str, Any]:
        """The providers, and what it was compiled with."""
        return {"backend": "onnxruntime", "providers": self.session.get_providers(), **self._facts}


class _CompiledSession(_Session):
    """A session for a graph that has been lowered.

    Args:
        session: it.
        graph: the lowered graph.
        stamp: the versions in its model.
        facts: for the report.
    """

    def __init__(self, session: Any, graph: Graph, stamp: Stamp, facts: Mapping[str, Any]):
        outputs = [(o.name, v.type) for o, v in zip(graph.output_info, graph.outputs, strict=True)]
        super().__init__(session, [(v.name, v.type) for v in graph.inputs], outputs, {"opset": stamp.opset, **facts})
        self._graph = graph
        self._stamp = stamp

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the lowered graph as an ONNX file, before ONNX Runtime's own optimizations."""
        from .onnx_file import save

        save(self._graph, path, opset=self._stamp.opset, ir_version=self._stamp.ir_version)


class OnnxRuntime(Backend):
    """ONNX Runtime on this machine. The variant names the processor that quantization is encoded for."""

    name = "onnxruntime"

    def missing(self) -> str | None:
        """What to install, if it is not there."""
        return import_or_explain("onnxruntime")

    def lower(self, graph: Graph) -> Graph:
        """A copy of ``graph`` in what the installed ONNX Runtime implements."""
        return self.lower_and_stamp(graph).graph

    def lower_and_stamp(self, graph: Graph, *, custom_ops: bool = False) -> Lowered:
        """The copy, and the versions to state when it is written as a model.

        Args:
            graph: the graph.
            custom_ops: whether a library adds operators of other domains.
        """
        lowered = clone_graph(graph)
        adapt(lowered)
        activation = target_for(f"{self.name}:{self.variant}").activation
        adapt_quantized(lowered, activation)
        encode(lowered, activation)
        move_codes(lowered)
        return Lowered(lowered, legalize(lowered, OrtTarget(custom_ops)))

    def compile(self, graph: Graph, **options: Any) -> Executable:
        """A session for ``graph``; for the options see `session_options`."""
        from ..ir.convert.proto import to_proto

        settings = _checked(options)
        lowered, stamp, _ = self.lower_and_stamp(graph, custom_ops=bool(options.get("custom_ops")))
        assert stamp is not None
        weights = _Weights(lowered)
        model = to_proto(lowered, opset=stamp.opset, ir_version=stamp.ir_version, external=weights)
        try:
            keep = weights.attach(model, settings)
            session = _session(model.SerializeToString(), settings, options.get("providers"))
            del keep
        except TensorError:
            raise
        except Exception as error:
            raise _explain(error, lowered, stamp) from error
        return _CompiledSession(session, lowered, stamp, options)

    def load(self, path: str | os.PathLike[str], **options: Any) -> Executable:
        """A session for an ONNX file as it is."""
        settings = _checked(options)
        try:
            session = _session(os.fspath(path), settings, options.get("providers"))
        except Exception as error:
            raise PlanishError(f"{os.fspath(path)}: {_one_line(error)}") from error
        return _Session(session, _arguments(session.get_inputs()), _arguments(session.get_outputs()), options)


def session_options(
    *,
    threads: int = 0,
    providers: Sequence[Any] | None = None,
    level: str = "all",
    spinning: bool = True,
    optimized_path: str | os.PathLike[str] | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    config: Mapping[str, str] | None = None,
) -> Any:
    """``onnxruntime.SessionOptions``.

    Args:
        threads: the number of threads within an operator; 0 for all cores.
        providers: the execution providers, as ONNX Runtime takes them.
        level: of ONNX Runtime's own optimizations: off, basic, extended, all.
        spinning: whether idle threads wait busily.
        optimized_path: where to write the graph as ONNX Runtime has optimized it.
        custom_ops: libraries with further operators.
        config: session configuration entries.

    Raises:
        PlanishError: there is no such level.
    """
    import onnxruntime

    if level not in _LEVELS:
        raise PlanishError(f"onnxruntime has no optimization level {level!r}: there are {', '.join(_LEVELS)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized_path is not None:
        options.optimized_model_filepath = os.fspath(optimized_path)
    for library in custom_ops:
        options.register_custom_ops_library(os.fspath(library))
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def _checked(options: Mapping[str, Any]) -> Any:
    unknown = set(options) - set(inspect.signature(session_options).parameters)
    if unknown:
        raise PlanishError(f"onnxruntime has no option {min(unknown)!r}")
    return session_options(**options)


def _session(model: bytes | str, options: Any, providers: Sequence[Any] | None) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=list(providers or ["CPUExecutionProvider"]))


def _arguments(arguments: Iterable[Any]) -> list[_Named]:
    """Names and types of the inputs or outputs of a session."""
    return [(a.name, _parse_type(a.type, a.shape)) for a in arguments]


def _parse_type(text: str, shape: Sequence[Any]) -> Type:
    if text.startswith("seq("):
        return SequenceType(_parse_type(text[4:-1], shape))
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    if name not in DType.__members__:
        return UNKNOWN
    return TensorType(DType[name], tuple(d if isinstance(d, int) else sym(d) if d else fresh() for d in shape))


# errors

_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ ")
_SIGNATURE_END = re.compile(r"(?:::<lambda\(.*?\)>)?(?: const)?(?: \[with [^\]]*\])? *")


def _one_line(error: BaseException) -> str:
    """What ONNX Runtime has to say, in one line, without the place in its own sources."""
    text = " ".join(_STATUS.sub("", str(error)).split())
    place = _PLACE.search(text)
    if place is not None:  # followed by the signature of a C++ function
        depth, end = 0, place.end()
        for end in range(place.end(), len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if text[end] == ")" and depth == 0:
                break
        text = text[: place.start()] + _SIGNATURE_END.sub("", text[end + 1 :], count=1)
    return text[:500] + ("…" if len(text) > 500 else "")


def _explain(error: BaseException, graph: Graph, stamp: Stamp) -> PlanishError:
    """The error of a session that did not come about: if kernels are missing, with all nodes that lack one."""
    if "NOT_IMPLEMENTED" in str(error):
        lacking = [p for n in graph.walk() if (p := lacks_kernel(n, stamp.opset)) is not None]
        if lacking:
            return LoweringError("onnxruntime", lacking)
    return PlanishError(f"onnxruntime: {_one_line(error)}")


BACKEND = OnnxRuntime
