"""``as_strided`` as torch exports it: a Gather by computed indices, which becomes a view where they are in order."""

import numpy as np
import pytest

from planish.backends import backend
from planish.ir.text import parse
from planish.passes import Context, Pipeline

IN_ORDER = np.arange(6).reshape(2, 3)


def simplified(text):
    graph = parse(text)
    Pipeline.parse("simplify").run(graph, Context())
    return graph, [node.op for node in graph.nodes]


@pytest.mark.parametrize(
    ("indices", "size", "fires"),
    [
        (IN_ORDER, 6, True),
        (IN_ORDER.reshape(1, 2, 1, 3), 6, True),
        (IN_ORDER, 7, False),
        (IN_ORDER + 1, 7, False),
        (IN_ORDER.T, 6, False),
        (np.array([[0, 1, 2], [3, 4, 4]]), 6, False),
        (np.array([[0, 1], [1, 2], [2, 3]]), 4, False),
    ],
)
def test_known_indices(indices, size, fires):
    dims, numbers = ",".join(map(str, indices.shape)), ", ".join(map(str, indices.ravel()))
    text = f"g (float[{size}] x) => (float[{dims}] y) <int64[{dims}] i = {{{numbers}}}> {{ y = Gather (x, i) }}"
    graph, operators = simplified(text)
    assert operators == (["Reshape"] if fires else ["Gather"])
    x = np.arange(size, dtype=np.float32)
    np.testing.assert_array_equal(backend("reference").run(graph, {"x": x})["y"], x[indices])


@pytest.mark.parametrize(
    ("stride", "channels", "fires"),
    [(6, "0, 1, 2, 3, 4, 5", True), (6, "0, 2, 4, 1, 3, 5", False), (3, "0, 1, 2, 3, 4, 5", False)],
)
def test_indices_that_depend_on_the_batch(stride, channels, fires):
    graph, operators = simplified(f"""
        g (float[n,6] x) => (float[n,6,1,1] y) <
          int64 zero = {{0}}, int64 one = {{1}}, int64 stride = {{{stride}}}, int64[3] behind = {{1, 2, 3}},
          int64[1] flat = {{-1}}, int64[1,6,1,1] channels = {{{channels}}}
        > {{
          size = Shape <end = 1> (x) n = Squeeze (size) rows = Range (zero, n, one)
          starts = Mul (rows, stride) wide = Unsqueeze (starts, behind) i = Add (channels, wide)
          e = Reshape (x, flat) y = Gather (e, i)
        }}""")
    assert ("Gather" not in operators) == fires
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    order = np.arange(4)[:, None] * stride + np.array([int(c) for c in channels.split(",")])
    np.testing.assert_array_equal(backend("reference").run(graph, {"x": x})["y"][..., 0, 0], x.ravel()[order])
