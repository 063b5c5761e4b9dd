"""``torch.compile(model, backend="planish")``: the pipeline behind PyTorch's own entry point.

TorchDynamo hands over one graph per unbroken part of a model. It is exported, optimized and compiled when it is first
called, and its result is compared with PyTorch's. Whatever cannot be done that way runs in PyTorch as before, with one
warning that says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from planish.ir.errors import PlanishError

if TYPE_CHECKING:
    from planish.backends.base import Executable

__all__ = ["Options", "compile_graph"]

_TOLERANCE = 1e-3  # of the range of an output
_REBUILDS = 3  # after so many changes of weights a part stays with PyTorch
_SHAPES = 8  # compiled variants of one part, where its sizes cannot be left open


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(..., options={...})`` takes.

    Attributes:
        pipeline: the passes.
        target: the backend.
        threads: for ONNX Runtime, the threads within an operator; 0 for as many as PyTorch has.
        verify: compare the first result with PyTorch's.
    """

    pipeline: str = "default"
    target: str = "onnxruntime"
    threads: int = 0
    verify: bool = True


class _Unsupported(Exception):
    """Why a part must stay with PyTorch."""


def compile_graph(
    module: Any, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """Compile one part of a model for TorchDynamo.

    Args:
        module: the ``torch.fx.GraphModule``.
        example_inputs: not used; the first call shows real ones.
        options: see `Options`.
        mode: of ``torch.compile``; there are none here.

    Returns:
        a function with the same parameters and results as ``module``.

    Raises:
        PlanishError: there is no such option or mode.
    """
    known = {f.name for f in fields(Options)}
    unknown = set(options or {}) - known
    if unknown:
        raise PlanishError(f"backend planish has no option {min(unknown)!r}; there are {', '.join(sorted(known))}")
    if mode not in (None, "default"):
        raise PlanishError(f"backend planish has no mode {mode!r}: pass options={{...}} instead")
    return _Part(module, Options(**(options or {})))


class _Part:
    """One unbroken part of a model: calls go to an executable if there is one for them, else to PyTorch."""

    def __init__(self, module: Any, options: Options):
        self.module = module
        self.options = options
        self.placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.compiled: dict[Any, Executable] = {}
        self.constants: list[int] = []  # positions of parameters and buffers
        self.versions: list[Any] = []
        self.rebuilds = 0
        self.given_up = ""

    def __call__(self, *args: Any) -> Any:
        """Run it."""
        if self.given_up:
            return self.module(*args)
        try:
            return self._run(args)
        except _Unsupported as reason:
            self._give_up(str(reason))
        except PlanishError as error:
            self._give_up(str(error).splitlines()[0])
        return self.module(*args)

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        warnings.warn(f"planish: a part of the model runs in PyTorch: {reason}", stacklevel=3)

    def _run(self, args: tuple[Any, ...]) -> Any:
        import torch

        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise _Unsupported("gradients are wanted; use torch.no_grad() or inference_mode() for inference")
        if not self.compiled:
            self.constants = [i for i, n in enumerate(self.placeholders) if _is_constant(n, args[i])]
        self._check_versions(args)
        inputs = [a for i, a in enumerate(args) if i not in self.constants and isinstance(a, torch.Tensor)]
        key = self._key(inputs)
        program = self.compiled.get(key)
        if program is None:
            program = self.compiled.get(None)
        if program is not None:
            return _outputs(program, inputs)
        return self._first_run(args, inputs, key)

    def _key(self, inputs: Sequence[Any]) -> Any:
        return tuple((tuple(t.shape), t.dtype) for t in inputs)

    def _check_versions(self, args: tuple[Any, ...]) -> None:
        """Weights are part of the executable: it is made anew when they have changed."""
        versions = [_version(args[i]) for i in self.constants]
        if self.compiled and versions != self.versions:
            self.rebuilds += 1
            self.compiled.clear()
            if self.rebuilds > _REBUILDS:
                raise _Unsupported("its weights keep changing")
        self.versions = versions

    def _first_run(self, args: tuple[Any, ...], inputs: list[Any], key: Any) -> Any:
        if len(self.compiled) >= _SHAPES:
            raise _Unsupported(f"it was called with more than {_SHAPES} combinations of shapes")
        _check_supported(self.module, args)
        program, is_open = self._compile(args, inputs)
        result = _outputs(program, inputs)
        if self.options.verify:
            expected = self.module(*args)
            difference = _difference(result, expected)
            if difference is None or difference > _TOLERANCE:
                off = "has another form" if difference is None else f"differs by {difference:.1e} of its range"
                raise _Unsupported(f"the result {off}")
        self.compiled[None if is_open else key] = program
        return result

    def _compile(self, args: tuple[Any, ...], inputs: list[Any]) -> tuple[Executable, bool]:
        """An executable, and whether it takes all sizes."""
        dynamic = self._dynamic_dims()
        if any(dynamic):
            try:
                return self._compile_for(args, inputs, dynamic), True
            except (_Unsupported, PlanishError):
                pass  # a size that the export fixes
        return self._compile_for(args, inputs, None), False

    def _dynamic_dims(self) -> list[dict[int, Any]]:
        """For each input tensor, the dimensions that TorchDynamo leaves open."""
        import torch

        found: list[dict[int, Any]] = []
        for i, node in enumerate(self.placeholders):
            example = node.meta.get("example_value")
            if i in self.constants or not isinstance(example, torch.Tensor):
                continue
            sizes = enumerate(example.shape)
            found.append({d: torch.export.Dim.AUTO for d, size in sizes if isinstance(size, torch.SymInt)})
        return found

    def _compile_for(
        self, args: tuple[Any, ...], inputs: list[Any], dynamic: list[dict[int, Any]] | None
    ) -> Executable:
        import torch

        from planish.backends.base import backend
        from planish.frontends.torch import from_exported
        from planish.optimizer import optimize

        bound = _bind(self.module, self.placeholders, args, self.constants)
        try:
            with torch.no_grad():
                shapes = None if dynamic is None else (tuple(dynamic),)
                program = torch.export.export(bound, tuple(inputs), dynamic_shapes=shapes, strict=False)
                program = program.run_decompositions({})  # makes changes in place visible
        except Exception as error:  # whatever the export runs into
            raise _Unsupported(f"torch.export: {_first_line(error)}") from error
        _check_exported(program)
        graph = from_exported(program)
        result = optimize(graph, self.options.pipeline, target=self.options.target, verify="off", measure=False)
        settings: dict[str, Any] = {}
        if self.options.target.partition(":")[0] == "onnxruntime":
            threads = self.options.threads or torch.get_num_threads()
            settings = {"threads": threads, "spinning": False}  # idle threads would take the cores from PyTorch's
        return backend(self.options.target).compile(result.graph, **settings)


def _is_constant(placeholder: Any, value: Any) -> bool:
    """Whether an argument is a parameter or buffer of the module."""
    import torch

    facts = placeholder.meta.get("tensor_dict") or {}
    return isinstance(value, torch.nn.Parameter) or "_dynamo_static_input_type" in facts


def _version(tensor: Any) -> Any:
    return (tensor.data_ptr(), None if tensor.is_inference() else tensor._version)


def _bind(module: Any, placeholders: Sequence[Any], args: tuple[Any, ...], constants: Sequence[int]) -> Any:
    """``module`` as a function of its tensors alone: weights are its own, sizes are read from the tensors."""
    import torch

    sizes = _sizes(placeholders, args, constants)

    class Bound(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            for i in constants:
                self.register_buffer(f"constant_{i}", args[i].detach())

        def forward(self, *tensors: Any) -> Any:
            remaining = iter(tensors)
            complete = []
            for i, value in enumerate(args):
                if i in constants:
                    complete.append(getattr(self, f"constant_{i}"))
                elif isinstance(value, torch.Tensor):
                    complete.append(next(remaining))
                elif i in sizes:
                    position, axis = sizes[i]
                    complete.append(tensors[position].shape[axis])
                else:
                    complete.append(value)
            return self.inner(*complete)

    return Bound().eval()


def _sizes(placeholders: Sequence[Any], args: tuple[Any, ...], constants: Sequence[int]) -> dict[int, tuple[int, int]]:
    """For each argument that is a size: which input tensor has it, along which axis."""
    import torch

    where: dict[str, tuple[int, int]] = {}
    position = 0
    for i, node in enumerate(placeholders):
        example = node.meta.get("example_value")
        if i in constants or not isinstance(args[i], torch.Tensor):
            continue
        for axis, size in enumerate(example.shape if isinstance(example, torch.Tensor) else ()):
            where.setdefault(str(size), (position, axis))
        position += 1
    found = {}
    for i, node in enumerate(placeholders):
        if isinstance(args[i], int) and str(node.meta.get("example_value")) in where:
            found[i] = where[str(node.meta["example_value"])]
    return found


def _check_supported(module: Any, args: tuple[Any, ...]) -> None:
    import torch

    for value in args:
        if not isinstance(value, torch.Tensor):
            continue
        if value.device.type != "cpu":
            raise _Unsupported(f"it runs on {value.device}")
        if value.dtype is torch.bfloat16 or value.dtype.is_complex or value.is_sparse or value.is_quantized:
            raise _Unsupported(f"it takes a tensor of {value.dtype}")
    if any(getattr(n.target, "__name__", "") == "dropout" and _is_training(n) for n in module.graph.nodes):
        raise _Unsupported("it is in training mode")


def _is_training(node: Any) -> bool:
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _check_exported(program: Any) -> None:
    """Only pure functions of tensors can leave PyTorch."""
    import torch

    signature = program.graph_signature
    if signature.buffers_to_mutate or getattr(signature, "user_inputs_to_mutate", None):
        raise _Unsupported("it changes its inputs or buffers in place")
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_random(node):
            raise _Unsupported(f"it draws random numbers ({node.target})")
        if node.op == "output" and not all(isinstance(v, torch.fx.Node) for v in node.args[0]):
            raise _Unsupported("it returns something that is no tensor")


def _is_random(node: Any) -> bool:
    """Whether an operator draws random numbers; those that drop elements out do not where they drop none."""
    import torch

    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    for i, argument in enumerate(node.target._schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        if (argument.name == "dropout_p" and value == 0) or (argument.name == "train" and value is False):
            return False
    return True


def _outputs(program: Executable, inputs: Sequence[Any]) -> tuple[Any, ...]:
    import torch

    arrays = program(*[t.detach().numpy() for t in inputs])
    return tuple(torch.from_numpy(a) for a in arrays)


def _difference(result: Sequence[Any], expected: Any) -> float | None:
    """The largest difference, relative to the range of each output; None where the outputs do not correspond."""
    import torch

    wanted = expected if isinstance(expected, tuple | list) else (expected,)
    if len(result) != len(wanted):
        return None
    worst = 0.0
    for ours, theirs in zip(result, wanted, strict=True):
        if not isinstance(theirs, torch.Tensor) or ours.shape != theirs.shape or ours.dtype is not theirs.dtype:
            return None
        if not theirs.numel():
            continue
        a, b = ours.double(), theirs.double()
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        spread = float((b.nan_to_num().max() - b.nan_to_num().min()).abs()) or float(b.nan_to_num().abs().max()) or 1.0
        worst = max(worst, float((a - b).nan_to_num().abs().max()) / spread)
    return worst


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
