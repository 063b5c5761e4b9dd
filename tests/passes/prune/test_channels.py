"""What hangs together: groups of channels for each kind of operator, and what is left when half of them are gone."""

import sys
from pathlib import Path

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import DType, Graph, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.prune.channels.axes import Channels, Coupling, Fixed
from planish.passes.prune.channels.groups import find_groups

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import build, weights
from oracle import check

w = weights(0)


def conv(x, out, into, kernel=3, **attrs):
    pads = [kernel // 2] * 4
    size = into // attrs.get("group", 1)
    return op.Conv(x, w(out, size, kernel, kernel, fan=size * kernel**2), w(out, fan=4), pads=pads, **attrs)


def head(x, channels):
    return op.Gemm(op.Flatten(op.GlobalAveragePool(x)), w(channels, 4), w(4, fan=4))


def norm(x, channels):
    return op.LayerNormalization(x, constant(1 + w(channels, fan=9).const.numpy()), w(channels, fan=9))


def image(body):
    return build(body, sym("n"), 3, 8, 8)


def rows(body, width=16):
    return build(body, sym("n"), sym("s"), width)


def linear(x, into, out):
    return op.MatMul(x, w(into, out))


# image networks


def chain(x):
    return head(op.Relu(conv(op.Relu(conv(x, 16, 3)), 24, 16)), 24)


def residual(x):
    h = op.Relu(conv(x, 16, 3))
    h = h + conv(op.Relu(conv(h, 8, 16)), 16, 8)
    return head(h * op.Sigmoid(conv(op.GlobalAveragePool(h), 16, 16, 1)), 16)


def depthwise(x):
    return head(op.Clip(conv(conv(x, 16, 3), 16, 16, group=16), np.float32(0), np.float32(6)), 16)


def depth_multiplier(x):
    return head(conv(conv(x, 8, 3), 16, 8, group=8), 16)


def grouped(x):
    return head(conv(op.Relu(conv(x, 16, 3)), 32, 16, group=4), 32)


def joined(x):
    a, b = op.Relu(conv(x, 8, 3)), op.Relu(conv(x, 12, 3))
    return head(conv(op.Concat(a, b, op.Concat(b, a, axis=1), axis=1), 16, 40), 16)


def split_and_shuffled(x):
    h = conv(x, 16, 3)
    left, right = op.Split(h, constant([8, 8]), axis=1, outputs=2)
    h = op.Concat(left, op.Relu(conv(right, 8, 8)), axis=1)
    h = op.Reshape(
        op.Transpose(op.Reshape(h, constant([0, 2, 8, 8, 8])), perm=[0, 2, 1, 3, 4]), constant([0, 16, 8, 8])
    )
    return head(h, 16)


def sliced(x):
    h = conv(x, 16, 3)
    first, second = op.Slice(h, [0], [6], [1]), op.Slice(h, [6], [1 << 40], [1])
    return head(op.Concat(op.Relu(second), op.Gather(first, constant([5, 3, 1, 0, 2, 4]), axis=1), axis=1), 16)


def flattened(x):
    h = op.MaxPool(op.Relu(conv(x, 16, 3)), kernel_shape=[2, 2], strides=[2, 2])
    return op.Gemm(op.Reshape(h, constant([-1, 256])), w(256, 4), w(4, fan=4))


def upsampled(x):
    h = op.Resize(conv(x, 16, 3), None, constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    h = op.ConvTranspose(op.Pad(h, constant([0, 0, 1, 1, 0, 0, 1, 1])), w(16, 12, 2, 2, fan=64), strides=[2, 2])
    return head(op.ConvTranspose(h, w(12, 2, 2, 2, fan=8), w(8, fan=4), group=4), 8)


def resized_to_sizes(x):
    h = op.Resize(conv(x, 16, 3), None, None, constant([2, 16, 4, 4]))
    return head(h, 16)


def group_norm(x):
    h = op.GroupNormalization(conv(x, 16, 3), w(16, fan=4), w(16, fan=4), num_groups=4)
    return head(op.InstanceNormalization(op.Relu(h), w(16, fan=4), w(16, fan=4)), 16)


def batch_norm(x):
    return head(
        op.BatchNormalization(conv(x, 16, 3), *(constant(np.abs(w(16, fan=1).const.numpy())) for _ in "gbmv")), 16
    )


def pixels(x):
    h = op.DepthToSpace(conv(x, 32, 3), blocksize=2, mode="CRD")
    return head(op.SpaceToDepth(op.Relu(h), blocksize=2), 32)


# sequence networks


def perceptron(x):
    return linear(op.Gelu(linear(x, 16, 64)), 64, 8)


def swiglu(x):
    a, b = op.Split(linear(x, 16, 64), axis=-1, num_outputs=2, outputs=2)
    return linear(op.Mul(a, op.Mul(b, op.Sigmoid(b))), 32, 8)


def attention(x, heads=4, kv=4, d=8, cache=False):
    h = norm(linear(x, 16, 24), 24)
    q, k, v = linear(h, 24, heads * d), linear(h, 24, kv * d), linear(h, 24, kv * d)
    a = op.Attention(q, k, v, q_num_heads=heads, kv_num_heads=kv)
    return linear(norm(h + linear(a, heads * d, 24), 24), 24, 8)


def attention_by_hand(x):
    def heads(y):
        return op.Transpose(op.Reshape(y, constant([0, 0, 4, 8])), perm=[0, 2, 1, 3])

    q, k, v = (heads(linear(x, 16, 32)) for _ in "qkv")
    scores = op.Softmax(op.MatMul(q * np.float32(0.3), op.Transpose(k, perm=[0, 1, 3, 2])), axis=-1)
    return linear(op.Reshape(op.Transpose(op.MatMul(scores, v), perm=[0, 2, 1, 3]), constant([0, 0, 32])), 32, 8)


def merged_projection(x):
    y = op.Transpose(op.Reshape(linear(x, 16, 96), constant([0, 0, 3, 4, 8])), perm=[2, 0, 3, 1, 4])
    q, k, v = (op.Gather(y, constant(np.int64(i)), axis=0) for i in range(3))
    y = op.Transpose(op.Attention(q, k, v), perm=[0, 2, 1, 3])
    return linear(op.Reshape(y, constant([0, 0, -1])), 32, 8)


def rotary(x):
    cos, sin = (constant(np.cos(np.arange(20 * 4).reshape(20, 4) / 7 + p).astype(np.float32)) for p in (0, 1))
    q, k = (op.RotaryEmbedding(linear(x, 16, 32), cos, sin, positions(x), num_heads=4) for _ in "qk")
    return linear(op.Attention(q, k, linear(x, 16, 32), q_num_heads=4, kv_num_heads=4), 32, 8)


def positions(x):
    length = op.Shape(x, start=1, end=2)
    return op.Expand(op.Range(np.int64(0), op.Squeeze(length), np.int64(1)), op.Shape(x, start=0, end=2))


def einsum(x):
    return op.Einsum(
        op.Relu(op.Einsum(x, w(16, 4, 8), equation="bsi,ihd->bshd")), w(4, 8, 5, fan=32), equation="bshd,hdo->bso"
    )


def filled(x):
    h = linear(x, 16, 24)
    rest = op.Expand(constant(np.float32(0.5)), op.Concat(op.Shape(x, start=0, end=2), constant([24]), axis=0))
    return linear(op.Sum(h, rest, op.ConstantOfShape(op.Shape(h))), 24, 8)


def lstm(x):
    def layer(y, into, size, state):
        gates = w(1, 4 * size, into, fan=into), w(1, 4 * size, size, fan=size), w(1, 8 * size)
        y, _, _ = op.LSTM(y, *gates, None, state, state, hidden_size=size, outputs=3)
        return op.Squeeze(y, constant([1]))

    x = op.Transpose(x, perm=[1, 0, 2])
    shape = op.Concat(constant([1]), op.Shape(x, start=1, end=2), constant([12]), axis=0)
    zeros = op.Expand(constant(np.float32(0)), shape)
    return linear(layer(layer(x, 16, 12, zeros), 12, 12, zeros), 12, 8)


def gru(x):
    gates = w(2, 36, 16, fan=16), w(2, 36, 12, fan=12)
    x = op.Transpose(x, perm=[1, 0, 2])
    y, last = op.GRU(x, *gates, hidden_size=12, direction="bidirectional", linear_before_reset=1, outputs=2)
    y = op.Transpose(op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), constant([0, 0, 24])), perm=[1, 0, 2])
    last = op.Reshape(op.ReduceSum(last, constant([0])), constant([-1, 1, 12]))
    return linear(y + linear(last, 12, 24), 24, 8)


# the network, and sizes of its groups: channels, and neighbouring outputs that one of them is
NETWORKS = {
    chain: {(16, 1), (24, 1)},
    residual: {(16, 1), (8, 1)},
    depthwise: {(16, 1)},
    depth_multiplier: {(8, 1)},
    grouped: {(8, 4), (4, 4)},
    joined: {(8, 1), (12, 1), (16, 1)},
    split_and_shuffled: {(16, 1)},
    sliced: {(16, 1)},
    flattened: {(16, 1)},
    upsampled: {(16, 1), (3, 4), (2, 1)},
    resized_to_sizes: {(16, 1)},
    group_norm: {(4, 4)},
    batch_norm: {(16, 1)},
    pixels: {(8, 4)},
    perceptron: {(64, 1)},
    swiglu: {(32, 2)},
    attention: {(24, 1), (4, 8)},
    attention_by_hand: {(4, 8)},
    merged_projection: {(4, 24)},
    rotary: {(4, 8)},
    einsum: {(8, 1)},
    filled: {(24, 1)},
    lstm: {(12, 4)},
    gru: {(12, 2)},
}
SEQUENCES = (perceptron, swiglu, attention, attention_by_hand, merged_projection, rotary, einsum, filled, lstm, gru)


def network(body):
    return rows(body) if body in SEQUENCES else image(body)


def sample(body):
    shape = (2, 5, 16) if body in SEQUENCES else (2, 3, 8, 8)
    return {"x": np.random.default_rng(1).standard_normal(shape, np.float32)}


def pruned(graph, options):
    copy = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"))
    Pipeline.parse(f"prune{{{options}}}").run(copy, ctx)
    assert not ctx.results[-1].problem, ctx.results[-1].problem
    verify(copy)
    return copy


@pytest.mark.parametrize("body", NETWORKS, ids=lambda body: body.__name__)
def test_groups_are_what_hangs_together(body):
    _, groups, _ = find_groups(network(body))
    assert {(group.size, group.width) for group in groups} == NETWORKS[body]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("body", [b for b in NETWORKS if b is not filled], ids=lambda body: body.__name__)
def test_a_pruned_network_is_the_masked_one(body, ratio):
    graph = network(body)
    result = check(graph, pruned(graph, f"ratio={ratio},multiple=1"), sample(body))
    assert result.error <= 1e-5
    assert result.removed > 0


def test_repeated_numbers_take_the_size_that_is_left():
    graph = network(filled)
    first, second = (c for c in graph.constants() if c.rank == 2)
    result = pruned(graph, "ratio=0.5,multiple=1")
    columns = {c.tobytes(): i for i, c in enumerate(first.const.numpy().T)}
    kept = [columns[c.tobytes()] for c in next(c for c in result.constants() if c.rank == 2).const.numpy().T]
    assert len(kept) == 12
    (x,) = sample(filled).values()
    expected = (x @ first.const.numpy()[:, kept] + np.float32(0.5)) @ second.const.numpy()[kept]
    (actual,) = backend("onnxruntime").run(result, {"x": x}).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_channels_that_are_combined_with_themselves_stay():
    def gram(x):
        h = linear(x, 16, 8)
        products = op.MatMul(op.Transpose(h, perm=[0, 2, 1]), h)
        return linear(op.Reshape(products, constant([0, 64])), 64, 3)

    graph = build(gram, sym("n"), 5, 16)
    with pytest.raises(RequestError, match="repeated for other channels"):
        pruned(graph, "ratio=0.5")


def test_what_lies_along_a_window_stays():
    def mixer(x):  # channels of the first layer are the positions of the second
        h = op.Relu(op.MatMul(x, w(16, 12)))
        return op.GlobalMaxPool(op.Conv(h, w(6, 5, 3, fan=15), pads=[1, 1]))

    with pytest.raises(RequestError, match="Conv works along them"):
        pruned(build(mixer, sym("n"), 5, 16), "ratio=0.5")


def test_single_element_windows_let_positions_pass():
    def mixer(x):
        h = op.Conv(op.Relu(op.MatMul(x, w(16, 12))), w(5, 5, 1, fan=5))
        return op.MatMul(h, w(12, 3))

    graph = build(mixer, sym("n"), 5, 16)
    result = pruned(graph, "ratio=0.5,multiple=1")
    x = np.random.default_rng(1).standard_normal((2, 5, 16), np.float32)
    assert check(graph, result, {"x": x}).removed == 6 * 16 + 6 * 3


def test_constants_that_are_returned_stay():
    graph = Graph("g")
    x, weight = graph.add_input(tensor_type(DType.FLOAT, sym("n"), 6), "x"), w(6, 8)
    y = op.MatMul(op.Relu(op.MatMul(x, weight)), w(8, 3))
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y, weight])
    _, groups, kept = find_groups(graph)
    assert groups == []
    assert {k.reason for k in kept} == {f"it is the output {info.name!r} of the model" for info in graph.output_info}


def test_quantized_weights_are_named():
    graph = rows(perceptron)
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: [sample(perceptron)])
    Pipeline.parse("quantize").run(graph, ctx)
    with pytest.raises(RequestError, match="its weight is quantized: prune before quantizing"):
        Pipeline.parse("prune").run(graph, Context(lambda: backend("onnxruntime")))


def test_products_leave_one_factor_free():
    coupling = Coupling()
    merged, heads, size = coupling.new(12), coupling.new(3), coupling.new(4)
    coupling.product(merged, (heads, size))
    coupling.freeze((size,), "elements of a head are turned in pairs")
    coupling.settle()
    classes = coupling.find(merged.ids).reshape(3, 4)
    assert (classes == coupling.find(heads.ids)[:, None]).all()
    assert not coupling.frozen(merged.ids).any()


def test_products_of_what_is_fixed_are_fixed():
    coupling = Coupling()
    merged, inner = coupling.new(12), coupling.new(4)
    coupling.freeze((inner,), "why")
    coupling.product(merged, (Fixed(3), inner))
    coupling.settle()
    assert coupling.frozen(merged.ids).all()
    assert coupling.why(merged.ids) == "why"


def test_chains_of_equations_are_one_class_and_keep_what_is_known():
    coupling = Coupling()
    atoms = coupling.new(1000)
    coupling.freeze((Channels(atoms.ids[-1:]),), "the last one stays")
    order = np.random.default_rng(0).permutation(999)
    coupling.equate(atoms.ids[order], atoms.ids[order + 1])
    assert len(set(coupling.find(atoms.ids).tolist())) == 1
    assert coupling.frozen(atoms.ids).all()
