"""What went wrong while TensorFlow traced a model, as one line that names the place in the user's code."""

from __future__ import annotations

import re
import traceback

from .origin import is_users

__all__ = ["describe"]

_MAX_MESSAGE = 300
_ADVICE = {
    "OperatorNotAllowedInGraphError": "control flow depends on the values of a tensor: use keras.ops.cond or tf.cond",
}
_COLORS = re.compile(r"\x1b\[[\d;]*m")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_REASON = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\w*: ", re.MULTILINE)


def describe(error: BaseException) -> str:
    """One line: the reason, and where."""
    text = _COLORS.sub("", str(error))
    name, place = type(error).__name__, ""
    if text.startswith("in user code"):  # autograph tells of the frames, and then of the error
        frames = [frame for frame in _FRAME.findall(text) if is_users(frame[0])]
        place = ":".join(frames[-1]) if frames else ""
        plain = "\n".join(line.strip() for line in text.splitlines())
        reasons = list(_REASON.finditer(plain))
        name, text = ("", plain[reasons[-1].start() :]) if reasons else (name, "")
    line = _ADVICE.get(type(error).__name__) or ": ".join(part for part in (name, _first_line(text)) if part)
    source = place or _place(error)
    return line + (f" at {source}" if source else "")


def _first_line(text: str) -> str:
    """The first line that says something: Keras begins with the layer that it called."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and "Exception encountered when calling" in lines[0]:
        lines = lines[1:]
    return lines[0][:_MAX_MESSAGE].rstrip(".") if lines else ""


def _place(error: BaseException) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return ""
