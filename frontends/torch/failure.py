"""What went wrong inside torch, as one line that names the place in the model's code."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from ...ir.origin import innermost_frame

__all__ = ["describe"]

_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>")
_ADVICE = {
    "GuardOnDataDependentSymNode": "control flow depends on the values of a tensor: use torch.cond or torch.where",
}
_MAX_MESSAGE = 300
_HERE, _LIBRARY = str(Path(__file__).parent), sysconfig.get_path("stdlib")


def describe(error: BaseException) -> str:
    """One line: the operator or the reason, and where."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    reason = chain[-1]
    operator = _OPERATOR.search(str(reason))
    if operator:
        text = f"torch.onnx has no ONNX form of {'.'.join(operator.groups())}"
    else:
        text = _ADVICE.get(type(reason).__name__) or _first_line(reason)
    source, module = _place(chain)
    return text + (f" (in module {module!r})" if module else "") + (f" at {source}" if source else "")


def _first_line(error: BaseException) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # a heading
        lines[:2] = [" ".join(lines[:2])]
    line = (lines or [""])[0][:_MAX_MESSAGE].rstrip(".")
    name = type(error).__name__
    return f"{name}: {line}" if line and not name.endswith("UserError") else line or name


def _place(chain: list[BaseException]) -> tuple[str, str]:
    """The source line and the module path that the innermost of the errors is about."""
    for error in reversed(chain):
        node = _translated_node(error)
        if node is not None:
            scopes = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
            return innermost_frame(node.meta.get("stack_trace") or ""), scopes[-1] if scopes else ""
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if _is_models(frame.filename):
                return f"{frame.filename}:{frame.lineno}", ""
    return "", ""


def _is_models(file: str) -> bool:
    """Whether ``file`` is neither torch's, nor Python's, nor ours."""
    if "site-packages" in file or "dist-packages" in file:
        return not re.search(r"-packages[/\\](torch|onnx)", file)
    return not file.startswith((_HERE, _LIBRARY, "<"))


def _translated_node(error: BaseException) -> Any:
    """The fx node that the exporter was translating, from its frames: the exception itself does not carry it."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "onnx" in frame.f_code.co_filename and hasattr(node := frame.f_locals.get("node"), "meta"):
            found = node
    return found
