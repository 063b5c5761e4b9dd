"""Which values of a student stand for which of its teacher: outputs, hidden states, attention."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...ir import Graph, Node, Value
from ..base import RequestError
from .trainable import computed_by_layers

__all__ = ["Heads", "Kind", "Pair", "attention_pair", "hidden_pairs", "kind_of_output", "named_pairs", "output_pairs"]

Kind = Literal["classes", "probabilities", "log-probabilities", "embedding", "values", "directions"]
_MOST_HIDDEN = 8  # pairs that are matched by themselves
_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")


@dataclass(frozen=True)
class Pair:
    """A value of the teacher and the one of the student that is to be like it.

    Attributes:
        name: what it is called.
        teacher: the teacher's.
        student: the student's.
        axis: the dimension in which their sizes differ; None if they do not.
    """

    name: str
    teacher: Value
    student: Value
    axis: int | None = None


# outputs


def output_pairs(teacher: Graph, student: Graph) -> list[Pair]:
    """The outputs of both that hold floating-point numbers, in order.

    Raises:
        RequestError: the inputs or outputs of the two are not the same, or there is nothing to learn.
    """
    _require_same_interface(teacher, student)
    found = []
    theirs = {o.name: v for o, v in zip(teacher.output_info, teacher.outputs, strict=True)}
    for info, s in zip(student.output_info, student.outputs, strict=True):
        t = theirs[info.name]
        if not t.dtype.is_floating and not s.dtype.is_floating:
            continue
        axis = _differing_axis(t, s)
        if t.rank != s.rank or isinstance(axis, str) or (axis is not None and axis != (s.rank or 0) - 1):
            raise RequestError(f"output {info.name!r} is {t.type} for the teacher and {s.type} for the student")
        found.append(Pair(info.name, t, s, axis))
    if not found:
        raise RequestError("nothing to distill: no output holds floating-point numbers")
    return found


def _require_same_interface(teacher: Graph, student: Graph) -> None:
    theirs, own = [o.name for o in teacher.output_info], [o.name for o in student.output_info]
    if set(theirs) != set(own):
        raise RequestError(f"teacher and student have different outputs: {', '.join(theirs)} and {', '.join(own)}")
    read = {v.name for v in student.inputs}
    lacking = [v.name for v in teacher.inputs if v.default is None and v.name not in read]
    if lacking:
        raise RequestError(f"the teacher has the input {lacking[0]!r}, which the student has not")


def _differing_axis(t: Value, s: Value) -> int | str | None:
    """The only dimension in which the fixed sizes of both differ; None if there is none; else why there is no such."""
    if t.shape is None or s.shape is None:
        return None
    if len(t.shape) != len(s.shape):
        return "other ranks"
    differing = [
        i
        for i, (a, b) in enumerate(zip(t.shape, s.shape, strict=True))
        if a != b and (isinstance(a, int) and isinstance(b, int))
    ]
    if not differing:
        return None
    return differing[0] if len(differing) == 1 and differing[0] else "several sizes differ"


def kind_of_output(value: Value, name: str) -> Kind:
    """What an output of floating-point numbers is: scores of classes before or after softmax, a vector, or numbers.

    Scores come straight from a linear layer along the last dimension that has a bias, or makes many more numbers than
    it reads (a vocabulary), unless the output's name says that it is something else; vectors are [rows, width].
    """
    node, shape = value.producer, value.shape
    while node is not None and node.op in ("Identity", "Cast", "Reshape", "Squeeze"):
        previous = node.operand(0)
        node = previous.producer if previous is not None else None
    classes = shape[-1] if shape and len(shape) >= 2 else None
    if node is not None and classes is not None and classes != 1:
        last = len(shape or ()) - 1
        if node.op in ("Softmax", "LogSoftmax") and node.attrs.get("axis", -1) in (-1, last):
            return "probabilities" if node.op == "Softmax" else "log-probabilities"
        if _ends_linear(node, name):
            return "classes"
    return "embedding" if shape is not None and len(shape) == 2 and classes != 1 else "values"


def _ends_linear(node: Node, name: str) -> bool:
    """Whether ``node`` is (the bias of) a linear layer that looks like the last one of a classifier."""
    words = name.lower()
    if any(word in words for word in ("logit", "class", "score")):
        return True
    if any(word in words for word in ("embed", "hidden", "feature", "pool", "vector")):
        return False
    biased = node.op == "Gemm" and node.operand(2) is not None
    if node.op == "Add":
        product = next((o.producer for o in node.operands if o is not None and o.producer is not None), None)
        biased = product is not None and product.op in ("MatMul", "Gemm")
        node = product if product is not None else node
    if node.op not in ("MatMul", "Gemm"):
        return False
    read, made = node.given(0).shape, node.result.shape
    widens = bool(read and made and isinstance(read[-1], int) and isinstance(made[-1], int) and made[-1] > 2 * read[-1])
    return biased or widens


# hidden states


def named_pairs(teacher: Graph, student: Graph, names: Sequence[str]) -> list[Pair]:
    """The pairs of values that ``teacher:student`` name; one name stands for both.

    Raises:
        RequestError: there is no such value, or the two cannot be compared.
    """
    found = []
    for text in names:
        first, _, second = text.partition(":")
        pair = Pair(text, _named(teacher, first, "teacher"), _named(student, second or first, "student"))
        axis = _differing_axis(pair.teacher, pair.student)
        if isinstance(axis, str) or not (pair.teacher.dtype.is_floating and pair.student.dtype.is_floating):
            types = f"{pair.teacher.type} and {pair.student.type}"
            raise RequestError(f"hidden {text!r}: {types} cannot be compared: at most one fixed size may differ")
        found.append(Pair(text, pair.teacher, pair.student, axis))
    return found


def _named(graph: Graph, name: str, whose: str) -> Value:
    values = {r.name: r for node in graph.nodes for r in node.results if r.name}
    if name not in values:
        near = ", ".join(difflib.get_close_matches(name, values, n=3)) or ", ".join(list(values)[-3:])
        raise RequestError(f"the {whose} has no value {name!r}; there are {near}")
    return values[name]


def hidden_pairs(teacher: Graph, student: Graph) -> list[Pair]:
    """Values that layers read and that both graphs have by the same name, with at most one other fixed size.

    Of many, eight, evenly spread.
    """
    theirs = {v.name: v for v in _read_by_layers(teacher)}
    found = []
    for s in _read_by_layers(student):
        t = theirs.get(s.name)
        if t is None or t.dtype is not s.dtype or t.rank != s.rank:
            continue
        axis = _differing_axis(t, s)
        if not isinstance(axis, str):
            found.append(Pair(s.name, t, s, axis))
    step = max(len(found) / _MOST_HIDDEN, 1)
    return [found[len(found) - 1 - int(i * step)] for i in range(min(len(found), _MOST_HIDDEN))][::-1]


def _read_by_layers(graph: Graph) -> Iterator[Value]:
    """What layers have computed and others read, of names that occur once."""
    computed = computed_by_layers(graph)
    counts = Counter(r.name for node in graph.nodes for r in node.results)
    for node in graph.nodes:
        for value in node.results:
            read = any(user.op in _READERS for user in value.users)
            if read and value in computed and value.dtype.is_floating and counts[value.name] == 1 and value.name:
                yield value


# attention


@dataclass(frozen=True)
class Heads:
    """What attention computes with, as it is in one graph.

    Attributes:
        queries: [rows, heads, positions, size] or [rows, positions, heads * size].
        keys: likewise.
        values: likewise.
        mask: what is added to the scores, or says with true which of them count; None if there is none.
        numbers: the heads of queries, and of keys and values.
        is_causal: whether no position sees later ones.
    """

    queries: Value
    keys: Value
    values: Value
    mask: Value | None
    numbers: tuple[int, int]
    is_causal: bool

    @property
    def width(self) -> int:
        """All heads of the queries side by side."""
        shape = self.queries.shape
        assert shape is not None
        size = shape[-1] if len(shape) == 3 else shape[-1] * self.numbers[0]
        assert isinstance(size, int)
        return size


def attention_pair(teacher: Graph, student: Graph) -> tuple[Heads, Heads, int]:
    """The last attention of both, and the number of parts into which their widths are divided for comparison.

    Raises:
        RequestError: one of them has none.
    """
    found = []
    for whose, graph in (("teacher", teacher), ("student", student)):
        heads = [h for node in graph.nodes if node.op == "Attention" and (h := _heads(node)) is not None]
        if not heads:
            raise RequestError(f"the {whose} has no Attention to learn from: leave attention out, or run fuse before")
        found.append(heads[-1])
    t, s = found
    return t, s, math.gcd(t.numbers[0], t.width, s.numbers[0], s.width)


def _heads(node: Node) -> Heads | None:
    """The heads of an Attention without a cache, if their number and size are known."""
    queries, keys, values = (node.given(i) for i in range(3))
    if node.operand(4) is not None or not queries.shape or not keys.shape:
        return None
    is_split = len(queries.shape) == 4
    of_queries = queries.shape[1] if is_split else node.attrs.get("q_num_heads")
    of_keys = keys.shape[1] if is_split else node.attrs.get("kv_num_heads")
    if not isinstance(of_queries, int) or not isinstance(of_keys, int) or not isinstance(queries.shape[-1], int):
        return None
    return Heads(queries, keys, values, node.operand(3), (of_queries, of_keys), bool(node.attrs.get("is_causal")))
