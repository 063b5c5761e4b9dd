"""Shape inference: typing rules per operator, and propagation of the contents of small integer tensors.

`infer` types one node from the types and contents of its operands. Operators that matter for speed or for symbolic
shapes have a rule in Python (the modules beside this one, one per family, registered by `typing`, `content` and
`contents`); all others go through onnx's own per-node inference. Inference degrades per value: what it cannot say is
`UNKNOWN`.
"""

from .engine import (
    IllTyped,
    content,
    content_of,
    contents,
    infer,
    infer_content,
    infer_contents,
    infer_graph,
    infer_types,
    scalar_content,
    typing,
)

__all__ = [
    "IllTyped",
    "content",
    "content_of",
    "contents",
    "infer",
    "infer_content",
    "infer_contents",
    "infer_graph",
    "infer_types",
    "scalar_content",
    "typing",
]
