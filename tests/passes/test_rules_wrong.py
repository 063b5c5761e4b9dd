"""Deliberately wrong rules, each a mistake that somebody has made somewhere: the generated test must catch each."""

import numpy as np
import pytest

from planish.ir import DType, constant, op
from planish.passes import Rule, const, require, rule, scalar, shared, within
from planish.testing import RuleError, VacuousRule, check_rule


@rule(lambda a, b, c: a @ b + c, numerics=within(rtol=1e-5))
def gemm_without_looking_at_the_addend(a, b, c):
    require(a.rank == 2 and b.rank == 2, "Gemm takes matrices")
    from planish.ir import Node

    return Node("Gemm", [a, b, c], {}, [a.type]).result


@rule(lambda a, b, c: a @ b + c, numerics=within(rtol=1e-5))
def gemm_that_drops_the_addend(a, b, c):
    require(a.rank == 2 and b.rank == 2, "Gemm takes matrices")
    return op.Gemm(a, b)


@rule(lambda x: x * 0)
def times_zero(x):
    require(x.type.is_static and x.dtype.is_floating, "unknown size")
    return constant(np.zeros(x.shape, x.dtype.numpy))


@rule(lambda x, y: op.Add(op.Sub(x, y), y))
def subtract_and_add(x, y):
    return op.Identity(x)


@rule(lambda x, c=scalar: op.Mul(op.Relu(x), c))
def scale_through_relu(x, c):
    return op.Relu(op.Mul(x, c))


@rule("Softmax")
def softmax_without_its_axis(node):
    return op.Softmax(node.operands[0]) if "axis" in node.attrs else None


@rule("Transpose")
def transposes_composed_the_wrong_way(node):
    inner = node.operands[0].producer
    require(inner is not None and inner.op == "Transpose", "no transpose inside")
    first, second = inner.attrs.get("perm"), node.attrs.get("perm")
    require(first and second, "default permutations")
    return op.Transpose(inner.operands[0], perm=tuple(second[i] for i in first))


@rule(lambda x, s, t: op.Reshape(op.Reshape(x, s), t))
def reshapes_merged_despite_zeros(x, s, t):
    """A 0 in the outer target copies a dimension of the middle shape."""
    return op.Reshape(x, t)


@rule(lambda x, a, b: op.Cast(shared(op.Cast(x, to=a)), to=b))
def casts_merged_despite_lost_precision(x, a, b):
    return op.Cast(x, to=b)


@rule(
    lambda x, s=scalar, e=scalar, a=scalar, t=scalar, s2=scalar, e2=scalar, t2=scalar: op.Slice(
        op.Slice(x, s, e, a, t), s2, e2, a, t2
    )
)
def slices_merged_by_adding(x, s, e, a, t, s2, e2, t2):
    """The starts add up only if the steps are 1."""
    first, outer = ([int(v.const.numpy()[0]) for v in values] for values in ((s, e, t), (s2, e2, t2)))
    require(min(*first[:2], *outer[:2]) >= 0, "counted from the end")
    bounds = [first[0] + outer[0], min(first[1], first[0] + outer[1])]
    start, end, step = (constant([b], DType.INT64) for b in (*bounds, first[2] * outer[2]))
    return op.Slice(x, start, end, constant(a.const.numpy().astype(np.int64)), step)


@rule(lambda x, a, attrs: op.Concat(x, x, axis=a))
def concat_of_the_same_as_expand(x, a, attrs):
    return op.Concat(x, axis=a)


@rule(lambda x, y: op.Div(op.Mul(x, y), y))
def multiply_and_divide(x, y):
    require(x.shape == y.shape, "broadcasts")
    return x


@rule("ReduceSum", "ReduceMean")
def reduction_that_forgets_keepdims(node):
    require(node.attrs.get("keepdims") == 0, "keeps dimensions")
    from planish.ir import Node

    return Node(
        node.op, node.operands, {k: v for k, v in node.attrs.items() if k != "keepdims"}, [node.results[0].type]
    ).result


@rule(lambda x, a=const, b=const: op.Clip(op.Clip(x, a, None), None, b))
def clips_swapped(x, a, b):
    """Clips to b first: wrong where the bounds cross."""
    return op.Clip(op.Clip(x, None, b), a, None)


@rule(lambda x, low, high: op.Min(op.Max(x, low), high))
def clip_of_tensors(x, low, high):
    from planish.ir import Node

    require(low.rank == 0 or low.rank == 1, "no number")
    return Node("Clip", [x, low, high], {}, [x.type]).result


@rule(lambda x, w, b, attrs: op.Conv(op.Pad(x, b), w, **attrs))
def pad_ignored_by_conv(x, w, b, attrs):
    return op.Conv(x, w, **attrs)


@rule(lambda x, w, c, attrs: op.Gemm(x, w, c, **attrs), numerics=within(rtol=1e-5))
def gemm_without_its_attributes(x, w, c, attrs):
    require(attrs.get("alpha", 1.0) != 1.0, "nothing to forget")
    return op.Gemm(x, w, c, **{k: v for k, v in attrs.items() if k != "alpha"})


@rule(lambda x, c=scalar: op.Div(x, c))
def division_by_reciprocal(x, c):
    """True of real numbers; integers round."""
    return op.Mul(x, constant(np.asarray(1 / float(c.const.numpy().ravel()[0])).astype(x.dtype.numpy)))


@rule(lambda x, a, b: op.Unsqueeze(shared(op.Unsqueeze(x, a)), b))
def unsqueezes_by_joining_axes(x, a, b):
    require(a.const is not None and b.const is not None, "unknown axes")
    axes = sorted({int(v) for c in (a, b) for v in c.const.numpy()})
    return op.Unsqueeze(x, constant(axes, DType.INT64))


@rule(lambda x, s, b, m, v, attrs: op.BatchNormalization(x, s, b, m, v, **attrs), numerics=within(rtol=1e-4))
def batch_normalization_without_epsilon(x, s, b, m, v, attrs):
    require(x.rank == 2, "channels are not last")
    return op.Add(op.Mul(op.Div(op.Sub(x, m), op.Sqrt(v)), s), b)


@rule("Gather")
def gather_with_nonnegative_indices(node):
    """A slice for a gather of one index, whatever its sign."""
    x, index = node.operands
    require(index.const is not None and index.rank == 1 and index.const.size == 1, "not one index")
    start = abs(int(index.const.numpy()[0]))
    axis = constant([node.attrs.get("axis", 0)], DType.INT64)
    return op.Slice(x, constant([start], DType.INT64), constant([start + 1], DType.INT64), axis)


@rule("Split")
def split_in_reverse(node):
    require(len(node.results) == 2, "not two parts")
    a, b = op.Split(*node.operands, outputs=2, **node.attrs)
    return b, a


@rule("Identity", "Relu", "Neg")
def first_dimension_is_large(node):
    """A size that the type does not state is no reason to think that it is not 1."""
    x = node.operands[0]
    require(x.rank == 2 and not isinstance(x.shape[0], int) and node.op == "Relu", "static")
    ones = op.ConstantOfShape(op.Shape(x, start=0, end=1), value=constant(np.array([1.0], np.float32)).const)
    require(x.dtype is DType.FLOAT, "other dtypes")
    return op.Where(op.Greater(op.ReduceSum(ones, keepdims=0), 1.0), op.Relu(x), x)


@rule(lambda x: op.Sigmoid(op.Neg(x)))
def raises(x):
    return x.no_such_attribute


@rule(lambda x: op.Neg(x))
def keeps_firing(x):
    return op.Neg(op.Identity(x))


# everything above is wrong
WRONG = [value for value in list(globals().values()) if isinstance(value, Rule)]


@pytest.mark.parametrize("rule", WRONG, ids=lambda r: r.name)
def test_wrong_rule_is_caught(rule):
    with pytest.raises(RuleError) as caught:
        check_rule(rule)
    assert not isinstance(caught.value, VacuousRule), caught.value
    assert "left side:" in str(caught.value)


def test_message_shows_a_minimal_left_side():
    with pytest.raises(RuleError, match="softmax-without-its-axis is wrong: output y0: it is off by") as caught:
        check_rule(softmax_without_its_axis)
    left = str(caught.value).partition("left side:")[2].partition("right side:")[0]
    assert left.count("Softmax") == 1
    assert len(left.strip().splitlines()) == 3, left


def test_rule_that_never_fires_is_vacuous():
    @rule(lambda x: op.Relu(x))
    def never(x):
        require(x.rank == 99, "not of rank 99")
        return x

    with pytest.raises(VacuousRule, match=r"rule never fired in 0 of \d+ random graphs") as caught:
        check_rule(never)
    assert "times: not of rank 99" in str(caught.value)


def test_rule_with_an_impossible_capture_is_vacuous():
    @rule(lambda x, c=const(lambda t: t.size == 1000): x + c)
    def impossible(x, c):
        return x

    with pytest.raises(VacuousRule, match="rule impossible fired in 0 of 0"):
        check_rule(impossible)


def test_unknown_operator_asks_for_a_sampler_or_an_example():
    acme = op.domain("com.acme")

    @rule(lambda x: acme.Frobnicate(x))
    def frobnicate(x):
        return x

    with pytest.raises(VacuousRule, match=r"no sampler for com\.acme\.Frobnicate: give the rule examples"):
        check_rule(frobnicate)


def test_examples_are_checked():
    text = "main (float[2] x) => (float[2] y) { a = Relu (x)  y = Neg (a) }"

    @rule("Relu", examples=[text])
    def drop_relu(node):
        require(any(user.op == "Neg" for user in node.results[0].users), "no Neg behind it")
        return node.operands[0]

    with pytest.raises(RuleError, match="off by"):
        check_rule(drop_relu)


def test_example_that_does_not_fire_is_vacuous():
    @rule(lambda x: op.Neg(op.Neg(x)), examples=["main (float[2] x) => (float[2] y) { y = Neg (x) }"])
    def double_negation(x):
        return x

    with pytest.raises(VacuousRule, match="does not fire on its example 1"):
        check_rule(double_negation)


def test_same_seed_same_test():
    first, second = check_rule(right), check_rule(right)
    assert (first.fired, first.drawn, first.rejected) == (second.fired, second.drawn, second.rejected)
    assert first.fired == 50


@rule(lambda x, perm: op.Relu(op.Transpose(x, perm=perm)))
def right(x, perm):
    return op.Transpose(op.Relu(x), perm=perm)


def test_numerics_are_enforced():
    def rounding(tolerance):
        @rule(lambda x: op.Tanh(x), numerics=within(rtol=tolerance))
        def rounded(x):
            require(x.dtype is DType.FLOAT, "other dtypes")
            return op.Cast(op.Tanh(op.Cast(x, to=int(DType.DOUBLE))) * 1.001, to=int(DType.FLOAT))

        return rounded

    check_rule(rounding(1e-2))
    with pytest.raises(RuleError, match="off by"):
        check_rule(rounding(1e-5))
