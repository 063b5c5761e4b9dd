"""Pruning of networks drawn at random: always valid, and always what the masked network computes."""

import sys
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.backends import backend
from planish.ir import constant, op, sym
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import build, weights
from oracle import check

SIZE = 6  # of images, and steps of sequences
IMAGE_STEPS = (
    "conv",
    "depthwise",
    "grouped",
    "residual",
    "dense",
    "split",
    "shuffle",
    "excite",
    "norm",
    "pool",
    "gate",
)
ROW_STEPS = ("linear", "ffn", "glu", "attention", "gqa", "norm", "branch", "mean", "heads", "position")
RATES = st.sampled_from([0.2, 0.5, 0.8])


class Image:
    """Draws a network on feature maps; ``channels`` is the width of the current one."""

    def __init__(self, seed, draw):
        self.w, self.draw = weights(seed), draw

    def conv(self, x, into, out, kernel=1, groups=1):
        weight = self.w(out, into // groups, kernel, kernel, fan=into * kernel**2)
        return op.Conv(x, weight, self.w(out, fan=9), pads=[kernel // 2] * 4, group=groups)

    def width(self):
        return 4 * self.draw(st.integers(1, 4))

    def step(self, x, c, kind):
        out = self.width()
        match kind:
            case "conv":
                return op.Relu(self.conv(x, c, out, 3)), out
            case "depthwise":
                return self.conv(x, c, c, 3, c), c
            case "grouped":
                return self.conv(x, c, out, 1, self.draw(st.sampled_from([2, 4]))), out
            case "residual":
                return op.Add(self.conv(op.Tanh(self.conv(x, c, out)), out, c, 3), x), c
            case "dense":
                return op.Concat(x, op.Relu(self.conv(x, c, out)), axis=1), c + out
            case "split":
                a, b = op.Split(x, constant([c // 4, c - c // 4]), axis=1, outputs=2)
                return op.Concat(op.Relu(b), self.conv(a, c // 4, c // 4 + out), axis=1), c + out
            case "shuffle":
                y = op.Transpose(op.Reshape(x, constant([0, 2, c // 2, SIZE, SIZE])), perm=[0, 2, 1, 3, 4])
                return op.Reshape(y, constant([0, c, SIZE, SIZE])), c
            case "excite":
                y = op.Relu(self.conv(op.GlobalAveragePool(x), c, out))
                return op.Mul(x, op.Sigmoid(self.conv(y, out, c))), c
            case "norm":
                return op.GroupNormalization(x, self.w(c, fan=1), self.w(c, fan=4), num_groups=c // 2), c
            case "pool":
                return op.AveragePool(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c
            case "gate":
                y = self.conv(x, c, 2 * out)
                a, b = op.Split(y, constant([out, out]), axis=1, outputs=2)
                return op.Mul(a, op.Sigmoid(b)), out
        raise AssertionError(kind)

    def body(self, steps):
        def network(x):
            x, c = self.step(x, 4, "conv")
            for kind in steps:
                x, c = self.step(x, c, kind)
            return op.Gemm(op.Flatten(op.GlobalAveragePool(x)), self.w(c, 3), self.w(3, fan=3))

        return network


class Rows(Image):
    """Draws a network on sequences of rows."""

    def linear(self, x, into, out):
        return op.MatMul(x, self.w(into, out)) + self.w(out, fan=9)

    def step(self, x, c, kind):
        out = self.width()
        match kind:
            case "linear":
                return op.Tanh(self.linear(x, c, out)), out
            case "ffn":
                return op.Add(x, self.linear(op.Gelu(self.linear(x, c, 2 * out)), 2 * out, c)), c
            case "glu":
                a, b = op.Split(self.linear(x, c, 2 * out), constant([out, out]), axis=-1, outputs=2)
                return op.Add(self.linear(op.Mul(a, op.Sigmoid(b)), out, c), x), c
            case "attention" | "gqa":
                return op.Add(
                    x, self.attention(x, c, out, self.draw(st.sampled_from([1, 2])) if kind == "gqa" else 4)
                ), c
            case "norm":
                return op.LayerNormalization(x, self.w(c, fan=1), self.w(c, fan=4)), c
            case "branch":
                y = op.Concat(self.linear(x, c, out), op.Relu(self.linear(x, c, 4)), axis=2)
                return op.Slice(y, [2], [1 << 40], [2]), out + 2
            case "mean":
                return op.Sub(x, op.ReduceMean(x, constant([-1]))), c
            case "heads":
                y = op.Reshape(self.linear(x, c, 4 * out), constant([0, 0, 4, out]))
                return op.Reshape(op.Transpose(op.Relu(y), perm=[0, 1, 3, 2]), constant([0, 0, -1])), 4 * out
            case "position":
                return op.Add(x, self.w(1, SIZE, c, fan=4)), c
        raise AssertionError(kind)

    def attention(self, x, c, size, kv):
        q, k, v = self.linear(x, c, 4 * size), self.linear(x, c, kv * size), self.linear(x, c, kv * 2)
        return self.linear(op.Attention(q, k, v, q_num_heads=4, kv_num_heads=kv), 8, c)

    def body(self, steps):
        def network(x):
            x, c = self.step(x, 4, "linear")
            for kind in steps:
                x, c = self.step(x, c, kind)
            return self.linear(x, c, 3)

        return network


def judge(graph, sample, ratio, scope):
    copy = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"))
    try:
        Pipeline.parse(f"prune{{ratio={ratio},multiple=1,scope={scope},importance=random}}").run(copy, ctx)
    except RequestError as error:  # everything may hang together
        if "no channels can be removed" not in str(error):
            raise
        return
    assert not ctx.results[-1].problem, ctx.results[-1].problem
    verify(copy)
    assert check(graph, copy, sample).error <= 1e-5


COMMON = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@COMMON
@given(
    st.data(),
    st.lists(st.sampled_from(IMAGE_STEPS), min_size=1, max_size=6),
    RATES,
    st.sampled_from(["local", "global"]),
)
def test_networks_of_feature_maps(data, steps, ratio, scope):
    seed = data.draw(st.integers(0, 1000))
    graph = build(Image(seed, data.draw).body(steps), sym("n"), 4, SIZE, SIZE)
    judge(graph, {"x": np.random.default_rng(seed).standard_normal((2, 4, SIZE, SIZE), np.float32)}, ratio, scope)


@COMMON
@given(
    st.data(), st.lists(st.sampled_from(ROW_STEPS), min_size=1, max_size=6), RATES, st.sampled_from(["local", "global"])
)
def test_networks_of_rows(data, steps, ratio, scope):
    seed = data.draw(st.integers(0, 1000))
    graph = build(Rows(seed, data.draw).body(steps), sym("n"), SIZE, 4)
    judge(graph, {"x": np.random.default_rng(seed).standard_normal((2, SIZE, 4), np.float32)}, ratio, scope)
