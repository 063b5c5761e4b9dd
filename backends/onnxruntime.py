"""ONNX Runtime: the default backend. Weights go to it as they lie in memory or mapped files, never through protobuf."""

from __future__ import annotations

import ctypes
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..ir.clone import clone_graph
from ..ir.convert.proto import to_proto
from ..ir.errors import PlanishError
from ..ir.graph import Graph, Node
from ..ir.schema import canonical_opset
from ..ir.tensor import Tensor, pack, unpack
from ..ir.types import DType, SequenceType, TensorType, Type
from .base import Backend, Executable, LoweringError, Problem, import_or_explain
from .legalize import Stamp, legalize, revision_at

__all__ = ["BACKEND", "OnnxRuntime", "limits"]

_EXTERNAL = 1 << 10  # bytes: smaller tensors stay in the model, where ONNX Runtime's shape inference sees them
_LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
_QUIET = 4  # log only what is fatal: errors come as exceptions
_PLAIN = frozenset(d for d in DType if "FLOAT8" not in d.name and d.bits >= 8 and d is not DType.BFLOAT16) | {DType.STRING}


# what the installed ONNX Runtime reads and implements


class Limits(NamedTuple):
    """The newest versions that the installed ONNX Runtime reads."""

    opset: int
    ir_version: int


@cache
def limits() -> Limits:
    """The newest versions that the installed ONNX Runtime reads, found by trial: it does not say."""
    import onnx

    opset = next((v for v in range(canonical_opset(), 7, -1) if _reads(v, 8)), 7)
    return Limits(opset, next((v for v in range(onnx.IR_VERSION, 8, -1) if _reads(7, v)), 8))


def _reads(opset: int, ir_version: int) -> bool:
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - its exceptions have no common base
        return False
    return True


Kernel = tuple[int, int, dict[str, list[str]]]  # first and last version, and the types of each type variable


@cache
def _kernels() -> dict[tuple[str, str], list[Kernel]]:
    """All CPU kernels, by domain and operator."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    found: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            found[kernel.domain, kernel.op_name].append((*kernel.version_range, kernel.type_constraints))
    return found


_OPEN = (1 << 31) - 1  # as the last version of a kernel: good for the operator as it was defined when it was written


def _kernels_for(domain: str, op: str, since: int) -> list[Kernel]:
    return [k for k in _kernels().get((domain, op), ()) if k[0] == since or (k[1] != _OPEN and k[0] <= since <= k[1])]


class _Target:
    """What the installed ONNX Runtime takes on a CPU. Of operators without a kernel, it runs their function bodies."""

    name = "onnxruntime"

    @property
    def opset(self) -> int:
        return limits().opset

    @property
    def ir_version(self) -> int:
        return limits().ir_version

    def runs(self, node: Node, since: int) -> bool:
        return _is_implemented(node.domain, node.op_type, since)


@cache
def _is_implemented(domain: str, op: str, since: int) -> bool:
    if domain:
        return (domain, op) in _kernels() or (domain, op) in _functions()
    if _kernels_for("", op, since):
        return True
    revision = revision_at(op, since)
    return revision is not None and revision.has_body


@cache
def _functions() -> frozenset[tuple[str, str]]:
    """Operators of other domains that ONNX Runtime knows, with or without a kernel."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return frozenset((s.domain, s.name) for s in get_all_operator_schema() if s.domain)


# sessions


class _Weights:
    """Which tensors stay outside the model. As an `ExternalWriter`, it numbers them instead of placing them."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def place(self, tensor: Tensor) -> tuple[str, int, int] | None:
        """A number as the location of every tensor that is not small."""
        if tensor.dtype is DType.STRING or tensor.nbytes < _EXTERNAL:
            return None
        self.tensors.append(tensor)
        return f"#{len(self.tensors) - 1}", 0, tensor.nbytes

    def attach(self, model: Any, options: Any) -> list[Any]:
        """Hand the tensors to the session options; returns what must live as long as the session."""
        names, values = [], []
        for initializer in model.graph.initializer:
            if initializer.external_data:
                location = next(e.value for e in initializer.external_data if e.key == "location")
                names.append(initializer.name)
                values.append(to_ort(self.tensors[int(location[1:])].numpy(), DType(initializer.data_type)))
        if names:
            options.add_external_initializers(names, values)
        return values


def to_ort(array: np.ndarray[Any, Any], dtype: DType) -> Any:
    """``array`` as an OrtValue, without a copy where the layout allows."""
    from onnxruntime import OrtValue

    array = np.ascontiguousarray(array).reshape(array.shape)
    if dtype in _PLAIN:
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
    if dtype in _PLAIN:
        return value.numpy()
    size = value.tensor_size_in_bytes()
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint8)
    return unpack(raw, dtype, tuple(value.shape()))


def _is_plain(type_: Type) -> bool:
    """Whether ONNX Runtime itself turns values of this type into numpy arrays and back."""
    if isinstance(type_, SequenceType):
        return _is_plain(type_.element)
    return not isinstance(type_, TensorType) or type_.dtype in _PLAIN


_NUMBERED = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACES = re.compile(r"/onnxruntime_src/\S+ |\S+\(\) |\bvirtual |\bstatic ")


def one_line(error: BaseException) -> str:
    """What ONNX Runtime has to say, without its own source lines, in one line."""
    text = " ".join(_NUMBERED.sub("", str(error)).split())
    if "/onnxruntime_src/" in text:  # a C++ signature: what follows it is the message
        head, _, rest = text.partition("/onnxruntime_src/")
        tail = re.sub(r"^.*?\)(?: const)?(?: \[with .*?\])? (?=[A-Z\"'(])", "", rest, count=1)
        text = head + tail
    return text[:500] + ("…" if len(text) > 500 else "")


class _Session(Executable):
    """A session. The graph that it was made from gives names, types and error messages."""

    def __init__(self, session: Any, keep: Sequence[Any], types: Mapping[str, Type], outputs: Mapping[str, Type], options: Mapping[str, Any]):
        self.session = session
        self.inputs = list(types.items())
        self.outputs = list(outputs)
        self._keep = keep
        self._types = dict(types)
        self._options = dict(options)
        self._plain = all(map(_is_plain, (*types.values(), *outputs.values())))

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        try:
            if self._plain:
                return list(self.session.run(None, {n: _as_value(v) for n, v in inputs.items()}))
            return self._run_with_values(inputs)
        except PlanishError:
            raise
        except Exception as error:
            raise PlanishError(f"onnxruntime: {one_line(error)}") from error

    def _run_with_values(self, inputs: Mapping[str, Any]) -> list[Any]:
        feeds = {}
        for name, value in inputs.items():
            array = np.asarray(value)
            feeds[name] = to_ort(array, DType.from_numpy(array.dtype))._ortvalue
        values = self.session._sess.run_with_ort_values(feeds, list(self.outputs), None)
        from onnxruntime import OrtValue

        return [from_ort(OrtValue(v)) for v in values]

    def report(self) -> dict[str, Any]:
        """The options that are set, and the number of nodes that the session runs where it is known."""
        return {"backend": "onnxruntime", "providers": self.session.get_providers(), **self._options}


def _as_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_value(v) for v in value]
    return value if value is None or isinstance(value, np.ndarray) else np.asarray(value)


class OnnxRuntime(Backend):
    """ONNX Runtime on this machine. The variant names the processor that quantization is encoded for."""

    name = "onnxruntime"

    def missing(self) -> str | None:
        return import_or_explain("onnxruntime")

    def lower(self, graph: Graph) -> Graph:
        return self._lower(graph)[0]

    def _lower(self, graph: Graph) -> tuple[Graph, Stamp]:
        lowered = clone_graph(graph)
        return lowered, legalize(lowered, _Target())

    def stamp(self, graph: Graph) -> Stamp:
        """The versions to state when ``graph``, which has been lowered, is written as a model."""
        return legalize(graph, _Target())

    def compile(self, graph: Graph, **options: Any) -> Executable:
        """A session for ``graph``.

        Args:
            graph: the graph.
            options: ``threads`` (0: all cores), ``providers``, ``level`` of ONNX Runtime's own optimizations (off, basic,
                extended, all), ``spinning`` (whether idle threads wait busily), ``optimized_path`` (where to write the
                graph as ONNX Runtime optimizes it), ``config`` (session configuration entries).
        """
        lowered, stamp = self._lower(graph)
        weights = _Weights()
        model = to_proto(lowered, opset=stamp.opset, ir_version=stamp.ir_version, external=weights)
        settings = session_options(**options)
        keep = weights.attach(model, settings)
        try:
            session = _session(model.SerializeToString(), settings, options.get("providers"))
        except Exception as error:
            raise _explain(error, lowered, stamp) from error
        inputs = {v.name: v.type for v in lowered.inputs}
        outputs = {o.name: v.type for o, v in zip(lowered.output_info, lowered.outputs, strict=True)}
        return _Session(session, keep, inputs, outputs, options)

    def load(self, path: str | os.PathLike[str], **options: Any) -> Executable:
        """A session for an ONNX file as it is."""
        settings = session_options(**options)
        try:
            session = _session(os.fspath(path), settings, options.get("providers"))
        except Exception as error:
            raise PlanishError(f"{os.fspath(path)}: {one_line(error)}") from error
        return _Session(session, (), _arguments(session.get_inputs()), _arguments(session.get_outputs()), options)


def session_options(
    *,
    threads: int = 0,
    providers: Sequence[Any] | None = None,  # noqa: ARG001 - belongs to the session, not to its options
    level: str = "all",
    spinning: bool = True,
    optimized_path: str | os.PathLike[str] | None = None,
    config: Mapping[str, str] | None = None,
) -> Any:
    """``onnxruntime.SessionOptions`` for the options of `OnnxRuntime.compile`."""
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
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def _session(model: bytes | str, options: Any, providers: Sequence[Any] | None) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=list(providers or ["CPUExecutionProvider"]))


def _arguments(arguments: Iterable[Any]) -> dict[str, Type]:
    """Names and types of the inputs or outputs of a session."""
    return {a.name: _parse_type(a.type, a.shape) for a in arguments}


def _parse_type(text: str, shape: Sequence[Any]) -> Type:
    from ..ir.dims import fresh, sym
    from ..ir.types import UNKNOWN

    matched = re.fullmatch(r"tensor\((\w+)\)", text)
    if matched is None or matched[1].upper() not in DType.__members__:
        return SequenceType(_parse_type(text[4:-1], shape)) if text.startswith("seq(") else UNKNOWN
    dims = tuple(d if isinstance(d, int) else sym(d) if d else fresh() for d in shape)
    return TensorType(DType[matched[1].upper()], dims)


# errors


def _explain(error: BaseException, graph: Graph, stamp: Stamp) -> PlanishError:
    """The error of a session that did not come about: if kernels are missing, with all nodes that lack one."""
    if "NOT_IMPLEMENTED" in str(error):
        lacking = [p for n in graph.walk() if (p := _lacks_kernel(n, stamp.opset)) is not None]
        if lacking:
            return LoweringError("onnxruntime", lacking)
    return PlanishError(f"onnxruntime: {one_line(error)}")


def _lacks_kernel(node: Node, opset: int) -> Problem | None:
    revision = None if node.domain else revision_at(node.op, opset)
    if revision is None or revision.has_body:
        return None
    operands = [(v, f) for v, f in zip(node.operands, revision.inputs, strict=False)]
    results = [(v, f) for v, f in zip(node.results, revision.outputs, strict=False)]
    types = {f.variable: f"tensor({v.dtype.text})" for v, f in (*operands, *results) if v is not None and f.variable and v.dtype}
    for _, _, constraints in _kernels_for("", node.op, revision.since):
        if all(v not in constraints or t in constraints[v] for v, t in types.items()):
            return None
    return Problem(node, f"no kernel for {', '.join(sorted(set(types.values()))) or 'these types'}")


BACKEND = OnnxRuntime
