"""The inference engine: the tables of rules, the fallback to onnx, and the drivers for a node and for a graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from ..dims import Dim, Sym, is_known
from ..graph import Graph, Node, Value
from ..types import UNKNOWN, DType, TensorType, Type, compatible, merge

__all__ = [
    "MAX_CONTENT",
    "Content",
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

Content = tuple[Dim, ...]
TypingRule = Callable[[Node], Type | tuple[Type, ...]]
ContentRule = Callable[[Node], Content | None]
ContentsRule = Callable[[Node], tuple[Content | None, ...]]

_TYPING: dict[str, TypingRule] = {}
_CONTENT: dict[str, ContentRule] = {}
_CONTENTS: dict[str, ContentsRule] = {}
_FAMILIES = (  # modules with rules
    "elementwise",
    "normalization",
    "shapes",
    "creation",
    "linear",
    "convolution",
    "reduction",
    "indexing",
    "attention",
    "control",
    "sequences",
    "quantization",
    "content_rules",
)
MAX_CONTENT = 64  # elements: larger integer tensors are data, not shapes

# By element type, the range of the integers that `Value.content` describes; None for all others.
_RANGES = tuple(
    (0, 1)
    if d is DType.BOOL
    else None
    if not d.is_integer
    else (-(1 << (d.bits - 1)), (1 << (d.bits - 1)) - 1)
    if d.is_signed
    else (0, (1 << d.bits) - 1)
    for d in DType
)

# What a rule raises on operands or attributes that have no sense: absent, of the wrong kind, out of all range.
_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

R = TypeVar("R")


class IllTyped(ValueError):
    """The operands or attributes of a node contradict its operator's definition."""


def typing(*ops: str) -> Callable[[TypingRule], TypingRule]:
    """Register a typing rule: from a node to the type of its result, or a tuple of one type per result.

    The rule sees operands with `UNKNOWN` parts and answers with as much as follows; it raises `IllTyped` for
    contradictions only. Results beyond those it states are `UNKNOWN`.
    """

    def register(rule: TypingRule) -> TypingRule:
        for op in ops:
            _TYPING[op] = rule
        return rule

    return register


def content(*ops: str) -> Callable[[ContentRule], ContentRule]:
    """Register a content rule: from a node to the elements of its first result, row-major, or None if unknown.

    The rule runs after typing, and only where that result is an integer or boolean tensor of static shape and at most
    `MAX_CONTENT` elements. A single unknown element among known ones is a `fresh_integer`.
    """

    def register(rule: ContentRule) -> ContentRule:
        for op in ops:
            _CONTENT[op] = rule
        return rule

    return register


def contents(*ops: str) -> Callable[[ContentsRule], ContentsRule]:
    """Register a content rule for operators with several results: one tuple of elements, or None, for each."""

    def register(rule: ContentsRule) -> ContentsRule:
        for op in ops:
            _CONTENTS[op] = rule
        return rule

    return register


def content_of(value: Value | None) -> Content | None:
    """The elements of a small integer or boolean tensor, row-major, as far as inference knows them; else None."""
    if value is None:
        return None
    if value.content is None and value.const is not None:
        t = value.const
        if _RANGES[t.dtype] is not None and t.size <= MAX_CONTENT:
            try:
                value.content = tuple([int(e) for e in t.numpy().ravel().tolist()])
            except (ValueError, OSError):  # the bytes cannot be had: whoever needs them will say so
                return None
    return value.content


def scalar_content(value: Value | None) -> Dim | None:
    """The single element of a one-element integer tensor, if it is known."""
    elements = content_of(value)
    return elements[0] if elements is not None and len(elements) == 1 else None


@cache
def _load_rules() -> None:
    for family in _FAMILIES:
        importlib.import_module(f".{family}", __package__)


def _guarded(rule: Callable[[Node], R], node: Node) -> R:
    """``rule(node)``, where every exception means that the node is ill-typed."""
    try:
        return rule(node)
    except IllTyped:
        raise
    except _MALFORMED as error:
        raise IllTyped(f"{node.op}: malformed operands or attributes: {error!r}") from error


def infer(node: Node, *, strict: bool = True) -> bool:
    """Type the results of ``node`` in place, keeping what is already known and more precise.

    Writes types directly, without an event: for nodes that float or are being imported. Use `planish.ir.edit.set_type`
    with `infer_types` on nodes in a graph that something observes.

    Args:
        node: the node.
        strict: raise on contradictions; otherwise they leave the results as they were.

    Returns:
        Whether any type or content changed.

    Raises:
        IllTyped: only if ``strict``.
    """
    try:
        types = infer_types(node)
    except IllTyped:
        if strict:
            raise
        return False
    changed = False
    for result, new in zip(node.results, types, strict=False):
        old = result.type
        if old is new:
            continue
        if old is UNKNOWN:
            result.type = new
            changed = True
        elif old != new:
            if not compatible(old, new):
                if strict:
                    raise IllTyped(f"{node.op}: result is {new}, stated as {old}")
                continue
            merged = merge(old, new)
            changed = changed or merged is not old
            result.type = merged
    if node.op in _CONTENT or node.op in _CONTENTS:
        for result, elements in zip(node.results, infer_contents(node), strict=False):
            if elements is not None and (merged_content := merge_content(result.content, elements)) is not None:
                result.content = merged_content
                changed = True
    return changed


def merge_content(old: Content | None, new: Content) -> Content | None:
    """``old`` with every element that ``new`` knows better; None if there is no such element."""
    if old is None:
        return new
    if old == new or len(old) != len(new):
        return None
    better = tuple([n if isinstance(o, Sym) and _is_better(n, o) else o for o, n in zip(old, new, strict=True)])
    return better if better != old else None


def _is_better(new: Dim, old: Sym) -> bool:
    return is_known(new) or (old.mentions_anonymous and not new.mentions_anonymous)  # type: ignore[union-attr]


def infer_types(node: Node) -> tuple[Type, ...]:
    """The types of the results of ``node``, one each.

    Raises:
        IllTyped: the operands or attributes contradict the operator.
    """
    _load_rules()
    rule = _TYPING.get(node.op)
    if rule is None:
        from .fallback import infer_with_onnx

        rule = infer_with_onnx
    found = _guarded(rule, node)
    types = found if type(found) is tuple else (found,)
    missing = len(node.results) - len(types)
    return types if missing <= 0 else types + (UNKNOWN,) * missing  # type: ignore[return-value]


def infer_content(node: Node) -> Content | None:
    """The elements of the first result of ``node`` where it is a small integer or boolean tensor and they are known."""
    return next(iter(infer_contents(node)), None)


def infer_contents(node: Node) -> tuple[Content | None, ...]:
    """For each result of ``node``, its elements where it is a small integer or boolean tensor and they are known.

    Reads the types of the results; results beyond those that the operator's rule speaks of are left out.
    """
    rule = _CONTENT.get(node.op)
    if rule is not None:
        if not node.results or not _holds_content(node.results[0].type):
            return (None,)
        found: tuple[Content | None, ...] = (_or_none(rule, node),)
    else:
        several = _CONTENTS.get(node.op)
        if several is None or not any(_holds_content(r.type) for r in node.results):
            return ()
        found = _or_none(several, node) or ()
    return tuple([_plausible(e, r.type) for e, r in zip(found, node.results, strict=False)])


def _or_none(rule: Callable[[Node], R | None], node: Node) -> R | None:
    try:
        return _guarded(rule, node)
    except IllTyped:
        return None


def _holds_content(type_: Type) -> bool:
    if not isinstance(type_, TensorType) or _RANGES[type_.dtype] is None or type_.shape is None:
        return False
    size = 1
    for d in type_.shape:
        if type(d) is not int:
            return False
        size *= d
    return size <= MAX_CONTENT


def _plausible(elements: Content | None, type_: Type) -> Content | None:
    """``elements`` if they are as many as ``type_`` says and in the range of its element type; else None."""
    if elements is None or not _holds_content(type_):
        return None
    low, high = _RANGES[type_.dtype]  # type: ignore[union-attr,misc]
    for e in elements:
        if type(e) is int and not low <= e <= high:
            return None
    return elements if len(elements) == type_.size else None  # type: ignore[union-attr]


def infer_graph(graph: Graph) -> None:
    """Type every node of ``graph``, nested ones by way of their parent, in order. Never raises for ill-typed nodes."""
    for node in graph.nodes:
        infer(node, strict=False)
