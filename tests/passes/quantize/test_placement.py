"""Placement: which values become integers, who reads them as such, whose range they take, and what stays as it is."""

from __future__ import annotations

import math
import re

import pytest

from planish.ir import Graph, Node
from planish.ir.text import parse
from planish.passes.layers import layers_of, select
from planish.passes.quantize.placement import Placement, place, unfold
from planish.passes.quantize.targets import target_for

X64 = "onnxruntime:x64"
IMAGE = "float[1,4,8,8] x"


def graph(body: str, inputs: str = IMAGE, outputs: str = "y", **weights: tuple[int, ...]) -> Graph:
    """A graph; ``w``, ``w1`` … in its body are kernels [4,4,1,1] unless given."""
    shapes = dict.fromkeys(sorted(set(re.findall(r"\bw\d?\b", body))), (4, 4, 1, 1)) | weights
    dims = {n: f"[{','.join(map(str, s))}]" if s else "" for n, s in shapes.items()}
    constants = [f"float{dims[n]} {n} = {{{', '.join(['0.5'] * math.prod(s))}}}" for n, s in shapes.items()]
    return parse(f"g ({inputs}) => ({outputs}) <{', '.join(constants)}> {{ {body} }}")


class Placed:
    """What a placement says, by the names of values. A node is called after its first result, the return "return"."""

    def __init__(self, g: Graph, target: str = X64, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()):
        facts = target_for(target)
        layers = [x for x in select(layers_of(g), only, skip) if x.node.graph is g and x.node.op in facts.layers]
        before = str(g)
        self.placement: Placement = place(g, layers, facts)
        assert str(g) == before
        self.readers = {v.name: {self.label(n, i) for n, i in uses} for v, uses in self.placement.readers.items()}
        self.uses = {v.name: {self.label(n, i) for n, i in v.uses} for v in self.placement.readers}
        self.integers = [n.result.name for n in self.placement.integers]
        self.ranges = {v.name: self.placement.range_of(v).name for v in self.placement.readers}

    @staticmethod
    def label(node: Node, position: int) -> str:
        return f"{node.result.name if node.results else 'return'}:{position}"

    def own_ranges(self) -> bool:
        """Whether every value has a range of its own."""
        return all(v == source for v, source in self.ranges.items())


# convolutions


@pytest.mark.parametrize("behind", ["r = Relu (a)", "r = Clip (a)", "t = Relu (a) r = Clip (t)"])
def test_an_activation_goes_with_its_convolution(behind: str) -> None:
    """There is no value to quantize in between."""
    found = Placed(graph(f"a = Conv (x, w) {behind} y = Conv (r, w1)"))
    assert found.readers == {"x": {"a:0"}, "r": {"y:0"}, "y": {"return:0"}}
    assert found.integers == ["a", "y"]
    assert found.own_ranges()


def test_bounds_that_are_known_are_saturation() -> None:
    body = "a = Conv (x, w) r = Clip (a, low, high) y = Conv (r, w1)"
    known = graph(body, low=(), high=())
    assert set(Placed(known).readers) == {"x", "r", "y"}
    computed = graph(body, f"{IMAGE}, float low, float high")
    assert set(Placed(computed).readers) == {"x", "a", "r", "y"}


def test_an_activation_among_several_users_is_not_saturation() -> None:
    found = Placed(graph("a = Conv (x, w) r = Relu (a) y = Conv (r, w1) z = Neg (a)", outputs="y, z"))
    assert found.readers == {"x": {"a:0"}, "a": {"r:0", "z:0"}, "r": {"y:0"}, "y": {"return:0"}}


def test_whoever_reads_a_convolution_reads_it_quantized() -> None:
    found = Placed(graph("a = Conv (x, w) r = Relu (a) b = Neg (r) y = Conv (r, w1)", outputs="y, b, r"))
    assert found.readers["r"] == found.uses["r"] == {"b:0", "y:0", "return:2"}


def test_an_input_stays_itself_for_others() -> None:
    found = Placed(graph("a = Conv (x, w) y = Add (a, x)"))
    assert found.readers == {"x": {"a:0"}, "a": {"y:0"}}


def test_only_chosen_layers() -> None:
    g = graph("[one] a = Conv (x, w) [two] b = Conv (a, w1) [three] y = Conv (b, w2)")
    found = Placed(g, skip=("two",))
    assert found.integers == ["a", "y"]
    assert found.readers == {"x": {"a:0"}, "a": {"b:0"}, "b": {"y:0"}, "y": {"return:0"}}
    assert Placed(g, only=("three",)).readers == {"b": {"y:0"}, "y": {"return:0"}}


# operators without weights


@pytest.mark.parametrize(("after", "sum_"), [("", "s"), ("r = Relu (s)", "r")])
def test_a_residual_block(after: str, sum_: str) -> None:
    found = Placed(
        graph(f"""a = Conv (x, w) p = Relu (a) b = Conv (p, w1) q = Relu (b) c = Conv (q, w2)
        s = Add (c, p) {after} y = Conv ({sum_}, w3)""")
    )
    assert found.integers == ["a", "b", "c", "y", "s"]
    assert found.readers == {
        "x": {"a:0"}, "p": {"b:0", "s:1"}, "q": {"c:0"}, "c": {"s:0"}, sum_: {"y:0"}, "y": {"return:0"},
    }  # fmt: skip
    assert found.own_ranges()


def test_a_sum_that_is_read_as_a_number_too() -> None:
    """Then all read the same: the sum as integers."""
    found = Placed(
        graph("a = Conv (x, w) b = Conv (x, w1) s = Add (a, b) y = Conv (s, w2) z = Softmax (s)", outputs="y, z")
    )
    assert found.readers["s"] == {"y:0", "z:0"}


def test_a_value_with_itself() -> None:
    found = Placed(graph("a = Conv (x, w) s = Mul (a, a) y = Conv (s, w1)"))
    assert found.readers["a"] == {"s:0", "s:1"}


def test_concatenation() -> None:
    g = graph("a = Conv (x, w) b = Conv (x, w1) c = Concat <axis = 1> (a, b) y = Conv (c, w2)", w2=(4, 8, 1, 1))
    found = Placed(g)
    assert found.integers == ["a", "b", "y", "c"]
    assert found.readers == {"x": {"a:0", "b:0"}, "a": {"c:0"}, "b": {"c:1"}, "c": {"y:0"}, "y": {"return:0"}}
    assert found.own_ranges()


@pytest.mark.parametrize("other", ["x", "k"])
def test_what_is_not_quantized_draws_nothing_in(other: str) -> None:
    """The other operand is an input, or a constant."""
    found = Placed(graph(f"a = Conv (x, w) s = Add (a, {other}) y = Conv (s, w1)", k=(1, 4, 1, 1)))
    assert found.integers == ["a", "y"]
    assert found.readers == {"x": {"a:0"}, "a": {"s:0"}, "s": {"y:0"}, "y": {"return:0"}}


def test_the_end_of_a_classifier() -> None:
    found = Placed(
        graph(
            """a = Conv (x, w) r = Relu (a) m = MaxPool <kernel_shape = [2, 2]> (r) b = Conv (m, w1)
            p = GlobalAveragePool (b) f = Flatten (p) y = Gemm (f, v)""",
            v=(4, 3),
        )
    )
    assert found.integers == ["a", "b", "y", "m", "p", "f"]
    assert found.readers == {
        "x": {"a:0"}, "r": {"m:0"}, "m": {"b:0"}, "b": {"p:0"}, "p": {"f:0"}, "f": {"y:0"},
    }  # fmt: skip
    assert found.ranges == {"x": "x", "r": "r", "m": "r", "b": "b", "p": "p", "f": "p"}


def test_moved_elements_keep_their_range() -> None:
    """Through all moves back to what computed them; and a Relu behind a pool is of its range, too."""
    found = Placed(
        graph(
            """a = Conv (x, w) m = MaxPool <kernel_shape = [2, 2]> (a) r = Relu (m)
            t = Transpose <perm = [0, 1, 3, 2]> (r) s = Reshape (t, k) u = Unsqueeze (s, i) v = Squeeze (u, i)
            y = Conv (v, w1)""",
            f"{IMAGE}, int64[4] k, int64[1] i",
        )
    )
    assert found.integers == ["a", "y", "m", "t", "s", "u", "v"]
    assert set(found.readers) == {"x", "a", "r", "t", "s", "u", "v", "y"}
    assert {v: found.ranges[v] for v in "rtsuv"} == dict.fromkeys("rtsuv", "a")


def test_parts_of_a_split() -> None:
    found = Placed(
        graph(
            "a = Conv (x, w) p, q = Split <axis = 1, num_outputs = 2> (a) y = Conv (p, w1) z = Relu (q)",
            outputs="y, z",
            w1=(4, 2, 1, 1),
        )
    )
    assert found.integers == ["a", "y", "p"]
    assert found.readers == {"x": {"a:0"}, "a": {"p:0"}, "p": {"y:0"}, "q": {"z:0"}, "y": {"return:0"}}
    assert (found.ranges["p"], found.ranges["q"]) == ("a", "a")


def test_places_of_maxima_are_no_numbers_to_quantize() -> None:
    g = graph("a = Conv (x, w) m, i = MaxPool <kernel_shape = [2, 2]> (a) y = Conv (m, w1)", outputs="y, i")
    assert set(Placed(g).readers) == {"x", "a", "m", "y"}


@pytest.mark.parametrize(
    ("attrs", "operands", "drawn"),
    [
        ('mode = "nearest"', "a, , k", True),
        ('mode = "linear"', "a, , k", True),
        ('mode = "linear"', "a, , , n", True),
        ('mode = "cubic"', "a, , k", False),  # goes beyond the range
    ],
)
def test_resizing(attrs: str, operands: str, drawn: bool) -> None:
    found = Placed(
        graph(
            f"a = Conv (x, w) r = Resize <{attrs}> ({operands}) b = Conv (x, w1) s = Add (r, b) y = Conv (s, w2)",
            f"{IMAGE}, int64[4] n",
            k=(4,),
        )
    )
    assert ("r" in found.integers) is ("s" in found.integers) is drawn
    if drawn:
        assert found.readers["r"] == {"s:0"}
        assert found.ranges["r"] == "a"


def test_squeeze_and_excite() -> None:
    found = Placed(
        graph("""a = Conv (x, w) r = Relu (a) p = GlobalAveragePool (r) b = Conv (p, w1) q = Relu (b)
        c = Conv (q, w2) s = Sigmoid (c) m = Mul (r, s) y = Conv (m, w3)""")
    )
    assert found.integers == ["a", "b", "c", "y", "p", "s", "m"]
    assert found.readers == {
        "x": {"a:0"}, "r": {"p:0", "m:0"}, "p": {"b:0"}, "q": {"c:0"}, "c": {"s:0"}, "s": {"m:1"}, "m": {"y:0"},
        "y": {"return:0"},
    }  # fmt: skip
    assert found.own_ranges()


@pytest.mark.parametrize(
    "op", ["Gelu", "HardSwish", "Softmax", "Swish", "Tanh", "Mish", "Exp", "Abs", "InstanceNormalization"]
)
def test_what_computes_with_numbers_is_never_wrapped(op: str) -> None:
    """It reads what a convolution gives, and a convolution reads what it gives; it does not run in integers itself."""
    more = ", k, k" if op == "InstanceNormalization" else ""
    found = Placed(
        graph(f"a = Conv (x, w) g = {op} (a{more}) t = Transpose <perm = [0, 1, 3, 2]> (g) y = Conv (t, w1)", k=(4,))
    )
    assert found.integers == ["a", "y"]
    assert found.readers == {"x": {"a:0"}, "a": {"g:0"}, "t": {"y:0"}, "y": {"return:0"}}


@pytest.mark.parametrize(
    ("body", "target", "unfolds"),
    [
        ("a = Conv (x, w) g = Swish (a) y = Conv (g, w1)", X64, True),
        ("a = Conv (x, w) g = Swish (a) p = MaxPool <kernel_shape = [1, 1]> (g) y = Conv (p, w1)", X64, True),
        ("a = Conv (x, w) g = Swish <alpha = 1.5> (a) y = Conv (g, w1)", X64, False),
        ("a = Conv (x, w) y = Swish (a)", X64, False),
        ("g = Swish (x) y = Conv (g, w1)", X64, False),
        ("a = Conv (x, w) g = Swish (a) y = Conv (g, w1)", "xla", False),
        ("a = Conv (x, w) g = Swish (a) y = Conv (g, w1)", "tensorrt", False),
    ],
)
def test_swish_is_two_operators_where_these_run_in_integers(body: str, target: str, unfolds: bool) -> None:
    g = graph(body)
    before, facts = str(g), target_for(target)
    assert unfold(g, layers_of(g), facts) is unfolds
    assert (str(g) != before) is unfolds
    if unfolds:
        conv, sigmoid, mul, *_ = g.nodes
        assert [n.op for n in (conv, sigmoid, mul)] == ["Conv", "Sigmoid", "Mul"]
        found = Placed(g).placement
        assert {sigmoid, mul} <= set(found.integers)
        assert set(found.readers[conv.result]) == {(sigmoid, 0), (mul, 0)}
        assert found.readers[sigmoid.result] == [(mul, 1)]


@pytest.mark.parametrize(
    "tail",
    [
        "m = MaxPool <kernel_shape = [2, 2]> (r) y = Softmax (m)",
        "y = GlobalAveragePool (r)",
        "m = Add (r, r) n = Mul (m, m) y = Softmax (n)",
        "m = Sigmoid (r) y = Flatten (m)",
        "m = Transpose (r) n = Reshape (m, k) y = MatMul (n, n)",
    ],
)
def test_what_only_numbers_are_made_of_is_left_alone(tail: str) -> None:
    found = Placed(graph(f"a = Conv (x, w) r = Relu (a) {tail}", f"{IMAGE}, int64[2] k"))
    assert found.integers == ["a"]
    assert set(found.readers) == {"x", "r"}
    assert found.readers["r"] == found.uses["r"]


def test_one_branch_into_integers_is_enough() -> None:
    found = Placed(
        graph("""a = Conv (x, w) p = AveragePool <kernel_shape = [1, 1]> (a) l = LeakyRelu (p)
        y = Conv (l, w1) z = Softmax (l)""", outputs="y, z")
    )  # fmt: skip
    assert found.integers == ["a", "y", "p", "l"]
    assert found.readers["l"] == {"y:0", "z:0"}


# products


@pytest.mark.parametrize("target", [X64, "onnxruntime:arm64", "xla"])
def test_products_read_integers_and_give_numbers(target: str) -> None:
    g = graph(
        """n = LayerNormalization (x, s) q = MatMul (n, w) k = MatMul (n, w1) t = Transpose <perm = [0, 2, 1]> (k)
        c = MatMul (q, t) p = Softmax (c) v = MatMul (n, w2) o = MatMul (p, v) r = Reshape (o, i)
        l = Gemm (r, w3, s) e = Add (l, r) y = Relu (e)""",
        "float[2,5,4] x, int64[2] i",
        s=(4,), w=(4, 4), w1=(4, 4), w2=(4, 4), w3=(4, 4),
    )  # fmt: skip
    found = Placed(g, target)
    assert found.integers == ["q", "k", "v", "l"]
    assert found.readers == {"n": {"q:0", "k:0", "v:0"}, "r": {"l:0"}}
    assert found.own_ranges()


def test_a_product_behind_a_convolution_draws_in_what_is_between() -> None:
    found = Placed(graph("a = Conv (x, w) f = Flatten (a) m = MatMul (f, v) y = Softmax (m)", v=(256, 4)))
    assert found.integers == ["a", "m", "f"]
    assert found.readers == {"x": {"a:0"}, "a": {"f:0"}, "f": {"m:0"}}
    assert found.ranges["f"] == "a"


# nested graphs


def test_nested_graphs_are_not_entered() -> None:
    """What they capture of a convolution they read quantized, like everybody else; nothing in them is."""
    g = graph(
        """a = Conv (x, w)
        b = If (c) <
          then_branch = t () => (float[1,4,8,8] p) { i = Conv (a, w1) j = Add (a, i) p = Conv (j, w2) },
          else_branch = e () => (float[1,4,8,8] q) { q = Add (a, a) }>
        y = Conv (b, w3)""",
        f"{IMAGE}, bool c",
    )
    found = Placed(g)
    assert found.integers == ["a", "y"]
    assert found.readers == {
        "x": {"a:0"}, "a": {"i:0", "j:0", "q:0", "q:1"}, "b": {"y:0"}, "y": {"return:0"},
    }  # fmt: skip


def test_an_activation_in_a_branch_is_not_saturation() -> None:
    g = graph(
        """a = Conv (x, w) y = If (c) <
          then_branch = t () => (float[1,4,8,8] p) { p = Relu (a) },
          else_branch = e () => (float[1,4,8,8] q) { q = Neg (x) }>""",
        f"{IMAGE}, bool c",
    )
    assert Placed(g).readers == {"x": {"a:0"}, "a": {"p:0"}}


# other targets


def test_where_convolutions_give_numbers_nothing_is_drawn_in() -> None:
    g = graph("a = Conv (x, w) r = Relu (a) m = MaxPool <kernel_shape = [2, 2]> (r) s = Add (m, m) y = Conv (s, w1)")
    found = Placed(g, "xla")
    assert found.integers == ["a", "y"]
    assert found.readers == {"x": {"a:0"}, "s": {"y:0"}}


@pytest.mark.parametrize(
    ("body", "residual"),
    [
        ("p = Neg (x) a = Conv (x, w) r = Relu (a) b = Conv (r, w1) s = Add (b, p)", {"p": "s:1"}),
        ("p = Conv (x, w3) a = Conv (x, w) r = Relu (a) b = Conv (r, w1) s = Add (b, p)", {"p": "s:1"}),
        ("a = Conv (x, w) r = Relu (a) b = Conv (r, w1) p = Conv (x, w3) s = Add (p, b)", {"p": "s:0"}),
        ("a = Conv (x, w) b = Conv (x, w1) s = Add (a, b)", {"b": "s:1"}),  # as good as the other
        ("a = Conv (x, w) r = Conv (a, w1) b = Relu (r) s = Add (b, a)", {"a": "s:1"}),  # which r reads quantized, too
        ("a = Conv (x, w) s = Add (a, a)", {}),
        ("a = Conv (x, w) p = Neg (x) n = Neg (a) s = Add (p, n)", {}),  # not behind the convolution
        ("a = Conv (x, w) p = GlobalAveragePool (x) s = Add (a, p)", {}),  # nothing that a convolution adds
    ],
)
def test_tensorrt_quantizes_the_residual_branch_of_an_addition(body: str, residual: dict[str, str]) -> None:
    """And nothing else of it: the convolution adds it in its epilogue."""
    found = Placed(graph(f"{body} y = Conv (s, w2)"), "tensorrt")
    assert {v: use for v, uses in found.readers.items() for use in uses if use.startswith("s:")} == residual
    assert found.readers["s"] == {"y:0"}


def test_tensorrt_adds_to_products_in_floating_point() -> None:
    shapes: dict[str, tuple[int, ...]] = {"w": (4, 4), "w1": (4, 4), "s": (4,)}
    found = Placed(
        graph("a = Gemm (x, w, s) r = Relu (a) b = Gemm (r, w1) y = Add (b, x)", "float[2,4] x", **shapes), "tensorrt"
    )
    assert found.readers == {"x": {"a:0"}, "r": {"b:0"}}


def test_no_layers() -> None:
    found = Placed(graph("y = Relu (x)"))
    assert (found.readers, found.integers) == ({}, [])
