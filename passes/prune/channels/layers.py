"""Channels of operators that compute with weights: products, convolutions, norms, and what goes element by element."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir import Node
from ....ir.infer.elementwise import ELEMENTWISE
from ....ir.quantization import FAKE_QUANTIZE
from .axes import Axes, Axis, Fixed, static_size
from .coupling import Analysis, Opaque, couples, ints_of
from .shrink import Shrink

Result = Sequence[Axes]


@couples(
    *sorted(ELEMENTWISE - {"CastLike"}), "Dropout", "BitCast", "RandomUniformLike", "RandomNormalLike", "Bernoulli"
)
def _elementwise(a: Analysis, node: Node) -> Result:
    return [broadcast(a, node, a.given(node))] * len(node.results)


@couples("CastLike")
def _cast_like(a: Analysis, node: Node) -> Result:
    return [a.operand(node, 0)]


def broadcast(a: Analysis, node: Node, operands: Sequence[Axes]) -> Axes:
    """The axes of values that are broadcast together, the last ones paired."""
    rank = max(map(len, operands), default=0)
    padded = [((),) * (rank - len(axes)) + tuple(axes) for axes in operands]
    return tuple([a.unify(node, *column) for column in zip(*padded, strict=True)])


# products


@couples("MatMul")
def _matmul(a: Analysis, node: Node) -> Result:
    x, y = a.operand(node, 0), a.operand(node, 1)
    inner = x[-1], y[-2] if len(y) > 1 else y[-1]
    a.unify(node, *inner)
    batch = broadcast(a, node, [x[:-2], y[:-2]])
    for axis in batch:  # matrices side by side, such as attention heads
        a.coupling.like(axis)
    if len(y) > 1:
        a.weight(node, 1, [len(y) - 1], [len(y) - 2])
    if len(x) > 1:
        a.weight(node, 0, [len(x) - 2], [len(x) - 1])
    return [(*batch, *x[-2:-1], *(y[-1:] if len(y) > 1 else ()))]


@couples("Gemm")
def _gemm(a: Analysis, node: Node) -> Result:
    x, y = a.operand(node, 0), a.operand(node, 1)
    left, right = node.attrs.get("transA", 0), node.attrs.get("transB", 0)
    (rows, inner), (other, columns) = (x[::-1] if left else x), (y[::-1] if right else y)
    a.unify(node, inner, other)
    a.weight(node, 1, [0 if right else 1], [1 if right else 0])
    a.weight(node, 0, [1 if left else 0], [0 if left else 1])
    if node.operand(2) is not None:
        return [broadcast(a, node, [(rows, columns), a.operand(node, 2)])]
    return [(rows, columns)]


@couples("Einsum")
def _einsum(a: Analysis, node: Node) -> Result:
    equation = str(node.attrs["equation"]).replace(" ", "")
    if "." in equation or "->" not in equation:
        raise Opaque("its equation has open dimensions")
    terms, result = equation.split("->")
    letters: dict[str, list[Axis]] = {}
    for i, term in enumerate(terms.split(",")):
        axes = a.operand(node, i)
        if len(set(term)) != len(axes):
            raise Opaque("its equation takes a diagonal")
        for letter, axis in zip(term, axes, strict=True):
            letters.setdefault(letter, []).append(axis)
        out = [k for k, c in enumerate(term) if c in result]
        a.weight(node, i, out, [k for k in range(len(term)) if k not in out])
    found = {letter: a.unify(node, *same) for letter, same in letters.items()}
    for letter, same in letters.items():
        if len(same) > 1 and letter in result:  # matrices side by side
            a.coupling.like(found[letter])
    return [tuple([found[letter] for letter in result])]


@couples("Conv")
def _conv(a: Analysis, node: Node) -> Result:
    x, w = a.operand(node, 0), a.operand(node, 1)
    a.weight(node, 1, [0], [1])
    out = _grouped(a, node, x[1], w[1], w[0], w[0])
    if node.operand(2) is not None:
        a.unify(node, out, a.operand(node, 2)[0])
    return [(x[0], out, *spatial(a, node, x))]


@couples("ConvTranspose")
def _conv_transpose(a: Analysis, node: Node) -> Result:
    x, w = a.operand(node, 0), a.operand(node, 1)
    a.weight(node, 1, [1], [0])
    group = int(node.attrs.get("group", 1))
    wide = w[1] if group == 1 else (a.coupling.new((static_size(w[1]) or 1) * group),)
    a.unify(node, x[1], w[0])
    out = _grouped(a, node, w[0], None, wide, w[1])
    if node.operand(2) is not None:
        a.unify(node, out, a.operand(node, 2)[0])
    return [(x[0], out, *spatial(a, node, x))]


def spatial(a: Analysis, node: Node, x: Axes, index: int = 0) -> Axes:
    """The axes of result ``index`` behind the channels; those of ``x`` stay, unless the window is a single element."""
    weight = node.operand(1) if node.op.startswith("Conv") else None
    kernel = node.attrs.get("kernel_shape") or (None if weight is None else (weight.shape or ())[2:])
    moves = [*(node.attrs.get("strides") or ()), *(n + 1 for n in node.attrs.get("pads") or ())]
    shape = node.results[index].shape
    if shape is None:
        raise Opaque("the rank of its result is unknown")
    if kernel and all(k == 1 for k in (*kernel, *moves)) and "auto_pad" not in node.attrs:
        return x[2:]
    a.freeze(x[2:], f"{node.op} works along them")
    return tuple([() if d == 1 else (Fixed(d),) for d in shape[2:]])


def _grouped(a: Analysis, node: Node, x: Axis, into: Axis | None, out: Axis, out_weight: Axis) -> Axis:
    """Relate what a convolution reads, channels ``x``, with its weight; returns the channels that it makes.

    In groups, channels are pairs of a group and a number in it: those read, ``into``, and those made. A transposed
    convolution has all that it reads in its weight (``into`` is None), and what one group makes in ``out_weight``.
    """
    groups = int(node.attrs.get("group", 1))
    if groups == 1:
        if into is not None:
            a.unify(node, x, into)
        return out
    counter = a.coupling.new(groups)
    read, made = a.coupling.single(x, f"{node.op} reads open sizes"), a.coupling.single(out, "")
    if made is None:
        raise Opaque("its weight is not known")
    if into is None:
        inner: Axis = () if read is None or read.size == groups else (a.coupling.new(read.size // groups),)
        own = out_weight
    else:
        inner, own = into, () if made.size == groups else (a.coupling.new(made.size // groups),)
    if read is None:
        a.freeze([(counter,), inner], f"{node.op} reads what is not made of channels")
    else:
        a.coupling.product(read, (counter, *inner))
    a.coupling.product(made, (counter, *own))

    def fix(shrink: Shrink) -> None:
        shrink.set_count(node, "group", (counter,))

    a.fix(fix)
    return (made,)


# norms: of what is left, where channels go


@couples("BatchNormalization", "InstanceNormalization")
def _by_channel(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    parameters = [a.operand(node, i)[0] for i in range(1, len(node.operands))]
    a.norm(node)
    channel = a.unify(node, x[1], *parameters)
    return [(x[0], channel, *x[2:])]


@couples("GroupNormalization")
def _group_normalization(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    a.norm(node)
    channel = a.unify(node, x[1], a.operand(node, 1)[0], a.operand(node, 2)[0])
    single = a.coupling.single(channel, "its channels are a product with open sizes")
    groups = int(node.attrs["num_groups"])
    if single is not None and single.size % groups == 0 and groups > 1:
        counter, inner = a.coupling.new(groups), a.coupling.new(single.size // groups)
        a.coupling.product(single, (counter, inner))
        a.fix(lambda shrink: shrink.set_count(node, "num_groups", (counter,)))
    return [(x[0], channel, *x[2:])]


@couples("LayerNormalization", "RMSNormalization")
def _layer_normalization(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    axis = int(node.attrs.get("axis", -1)) % len(x)
    parameters = [a.operand(node, i) for i in range(1, len(node.operands)) if node.operands[i] is not None]
    if len(parameters[0]) == 1:
        a.norm(node)
    normed = broadcast(a, node, [x[axis:], *parameters])
    statistics = (*x[:axis], *((),) * (len(x) - axis))
    return [(*x[:axis], *normed), statistics, statistics][: len(node.results)]


@couples("LpNormalization", "MeanVarianceNormalization")
def _normalization(a: Analysis, node: Node) -> Result:
    return [a.operand(node, 0)]


@couples("Softmax", "LogSoftmax", "Hardmax", "CumSum", "CumProd")
def _along_axis(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    axis = node.attrs.get("axis", -1)
    if node.op.startswith("Cum"):
        along = ints_of(node, 1)
        axis = along[0] if along else 0
    a.freeze([x[axis]], f"{node.op} computes along them")
    return [x]


@couples(FAKE_QUANTIZE)
def _fake_quantize(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    axis = int(node.attrs.get("axis", 1)) % max(len(x), 1)
    for i in range(1, len(node.operands)):
        if node.operands[i] is None:
            continue
        parameter = a.operand(node, i)
        if node.attrs.get("block_size"):
            a.freeze([*parameter, x[axis]], "neighbours share a scale")
        elif len(parameter) == 1:
            a.unify(node, x[axis], parameter[0])
        else:
            a.freeze(parameter, "its scale has several dimensions")
    return [x]
