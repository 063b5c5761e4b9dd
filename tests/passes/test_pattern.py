"""The pattern language: what matches, what is captured, and what a failed match says."""

import pytest

from planish.ir import op
from planish.ir.text import parse
from planish.passes import const, either, optional, scalar, shared, typed
from planish.passes.pattern import Match, match, trace_pattern


def find(pattern, text, root=None, explain=False):
    """The match of ``pattern`` in the graph of ``text`` at its last node (or at the one that computes ``root``)."""
    graph = parse(text)
    roots, _ = trace_pattern(pattern)
    nodes = [n for n in graph.nodes if root is None or any(r.name == root for r in n.results)]
    m = Match(explain=explain)
    found = match(roots, nodes[-1], m)
    return m if found or explain else None


def matches(pattern, text, root=None):
    return find(pattern, text, root) is not None


def names(m):
    """The captures by the names of their values."""
    found = {k: v for k, v in m.captures.items() if isinstance(k, str)}
    return {k: getattr(v, "name", v) for k, v in found.items()}


def graph(body, inputs="float[2,3] x, float[2,3] y, float[2,3] z", constants=""):
    """A text whose result is ``out``."""
    return f"main ({inputs}) => (out) {f'<{constants}>' if constants else ''} {{ {body} }}"


# captures and operators


def test_captures_are_named_like_parameters():
    m = find(lambda a, b: op.Sub(a, b), graph("out = Sub (x, y)"))
    assert names(m) == {"a": "x", "b": "y"}
    assert m.root.op == "Sub"


def test_operators_and_functions_build_the_same_pattern():
    text = graph("p = MatMul (x, y)  s = Add (p, z)  out = Neg (s)")
    assert matches(lambda a, b, c: -(a @ b + c), text)
    assert matches(lambda a, b, c: op.Neg(op.Add(op.MatMul(a, b), c)), text)


@pytest.mark.parametrize(
    ("pattern", "body"),
    [
        (lambda a: a * 2, "out = Mul (x, c)"),
        (lambda a: 2 * a, "out = Mul (x, c)"),
        (lambda a: 2 - a, "out = Sub (c, x)"),
        (lambda a: a - 2, "out = Sub (x, c)"),
        (lambda a: a / 2, "out = Div (x, c)"),
        (lambda a: 2 / a, "out = Div (c, x)"),
        (lambda a: a**2, "out = Pow (x, c)"),
    ],
)
def test_numbers_on_either_side(pattern, body):
    assert matches(pattern, graph(body, constants="float c = {2}"))


def test_sides_of_what_does_not_commute_matter():
    assert not matches(lambda a: 2 - a, graph("out = Sub (x, c)", constants="float c = {2}"))


def test_another_operator_does_not_match():
    assert not matches(lambda a: op.Relu(a), graph("out = Neg (x)"))
    assert not matches(lambda a: op.Relu(op.Relu(a)), graph("r = Neg (x)  out = Relu (r)"))


def test_other_domains():
    acme = op.domain("com.acme")
    text = (
        '<opset_import: ["com.acme" : 1, "" : 21]> main (float[2] x) => (out) '
        "{ a = com.acme.Soften (x)  out = Relu (a) }"
    )
    assert matches(lambda a: op.Relu(acme.Soften(a)), text)
    assert not matches(lambda a: op.Relu(op.Soften(a)), text)


def test_repeated_capture_is_the_same_value():
    pattern = lambda a: a * op.Sigmoid(a)  # noqa: E731
    assert matches(pattern, graph("s = Sigmoid (x)  out = Mul (x, s)"))
    assert not matches(pattern, graph("s = Sigmoid (y)  out = Mul (x, s)"))


def test_repeated_capture_of_one_tensor():
    text = graph("s = Add (x, c)  out = Mul (s, c)", constants="float c = {2}")
    assert matches(lambda a, c: (a + c) * c, text)


# commutativity


@pytest.mark.parametrize("body", ["out = Mul (s, x)", "out = Mul (x, s)"])
def test_commutative_operands_match_in_either_order(body):
    assert matches(lambda a: op.Mul(a, op.Sigmoid(a)), graph("s = Sigmoid (x)  " + body))


def test_commutativity_backtracks_into_operands():
    """Which addend is the product shows only when the inner captures are compared."""
    pattern = lambda a, b: (a * b) + op.Neg(a)  # noqa: E731
    assert matches(pattern, graph("p = Mul (y, x)  n = Neg (x)  out = Add (n, p)"))
    assert not matches(pattern, graph("p = Mul (y, z)  n = Neg (x)  out = Add (n, p)"))


def test_commutativity_backtracks_at_two_levels():
    pattern = lambda a, b: ((a + b) * (a + op.Relu(b))) + a  # noqa: E731
    for inner in ("s = Add (x, y)", "s = Add (y, x)"):
        for other in ("t = Add (r, x)", "t = Add (x, r)"):
            for product in ("p = Mul (s, t)", "p = Mul (t, s)"):
                for last in ("out = Add (p, x)", "out = Add (x, p)"):
                    text = graph(f"r = Relu (y)  {inner}  {other}  {product}  {last}")
                    assert matches(pattern, text), text


def test_backtracking_looks_for_a_private_interior():
    """The first order would need a Relu that is used elsewhere; the other order does not."""
    text = "main (float[2] x, float[2] y) => (out, a) { a = Relu (x)  b = Relu (y)  out = Add (a, b) }"
    m = find(lambda p, q: op.Relu(p) + q, text)
    assert names(m) == {"p": "y", "q": "a"}


def test_failed_alternatives_leave_no_captures():
    m = find(lambda a, b: op.Add(op.Relu(a), op.Neg(b)), graph("r = Relu (x)  n = Neg (y)  out = Add (n, r)"))
    assert names(m) == {"a": "x", "b": "y"}
    assert sorted(node.op for node in m.nodes) == ["Add", "Neg", "Relu"]


# constants


@pytest.mark.parametrize("constant", ["float c = {1}", "float[1] c = {1}", "float[3] c = {1, 1, 1}", "float[2,3] c"])
def test_number_is_a_constant_of_equal_elements(constant):
    constant = constant if "=" in constant else constant + " = {1, 1, 1, 1, 1, 1}"
    assert matches(lambda a: a * 1, graph("out = Mul (x, c)", constants=constant))


@pytest.mark.parametrize("constant", ["float c = {2}", "float[3] c = {1, 1, 2}", "float[0] c = {}"])
def test_other_constants_are_not_the_number(constant):
    assert not matches(lambda a: a * 1, graph("out = Mul (x, c)", constants=constant))


def test_number_is_no_input():
    assert not matches(lambda a: op.Mul(a, 1), graph("out = Mul (x, y)"))


def test_number_is_rounded_to_the_constant_s_dtype():
    assert matches(lambda a: a * 0.1, graph("out = Mul (x, c)", constants="float c = {0.1}"))
    assert matches(lambda a: a * 0.1, graph("out = Mul (x, c)", "double[2] x", "double c = {0.1}"))
    assert not matches(lambda a: a * 0.1, graph("out = Mul (x, c)", "int64[2] x", "int64 c = {0}"))


def test_constant_captures():
    text = graph("out = Add (x, c)", constants="float[3] c = {1, 2, 3}")
    assert names(find(lambda a, k=const: a + k, text)) == {"a": "x", "k": "c"}
    assert not matches(lambda a, k=scalar: a + k, text)
    assert matches(lambda a, k=const(lambda t: t.size == 3): a + k, text)
    assert not matches(lambda a, k=const(lambda t: t.size == 4): a + k, text)
    assert not matches(lambda a, k=const: a + k, graph("out = Add (x, y)"))


def test_constant_capture_decides_the_order():
    m = find(lambda k=const, a=None: k + a, graph("out = Add (x, c)", constants="float[3] c = {1, 2, 3}"))
    assert names(m) == {"k": "c", "a": "x"}


def test_scalar_has_one_element_of_any_rank():
    assert matches(lambda a, k=scalar: a + k, graph("out = Add (x, c)", constants="float[1,1] c = {3}"))


# attributes


def test_attribute_capture():
    pattern = lambda a, p: op.Transpose(a, perm=p)  # noqa: E731
    assert find(pattern, graph("out = Transpose <perm = [1, 0]> (x)")).captures["p"] == (1, 0)
    assert find(pattern, graph("out = Transpose (x)")).captures["p"] is None


def test_repeated_attribute_capture():
    pattern = lambda a, p: op.Transpose(op.Transpose(a, perm=p), perm=p)  # noqa: E731
    both = "t = Transpose <perm = [1, 0]> (x)  out = Transpose <perm = [{}]> (t)"
    assert matches(pattern, graph(both.format("1, 0")))
    assert not matches(pattern, graph(both.format("0, 1")))


def test_stated_attribute():
    pattern = lambda a: op.Transpose(a, perm=[1, 0])  # noqa: E731
    assert matches(pattern, graph("out = Transpose <perm = [1, 0]> (x)"))
    assert not matches(pattern, graph("out = Transpose <perm = [0, 1]> (x)"))
    assert not matches(pattern, graph("out = Transpose (x)"))


def test_stated_default_may_be_absent():
    pattern = lambda a: op.Softmax(a, axis=-1)  # noqa: E731
    assert matches(pattern, graph("out = Softmax <axis = -1> (x)"))
    assert matches(pattern, graph("out = Softmax (x)"))
    assert not matches(pattern, graph("out = Softmax <axis = 0> (x)"))


def test_attribute_that_is_not_mentioned_has_its_default():
    pattern = lambda a, b, c: op.Gemm(a, b, c)  # noqa: E731
    head = "float[2,2] x, float[2,2] y, float[2] z"
    assert matches(pattern, graph("out = Gemm (x, y, z)", head))
    assert matches(pattern, graph("out = Gemm <alpha = 1.0, transA = 0> (x, y, z)", head))
    assert not matches(pattern, graph("out = Gemm <alpha = 2.0> (x, y, z)", head))


def test_attribute_without_a_default_must_be_absent():
    pattern = lambda a, w: op.Conv(a, w)  # noqa: E731
    head = "float[1,1,4,4] x, float[1,1,3,3] y"
    assert matches(pattern, graph("out = Conv (x, y)", head))
    assert not matches(pattern, graph("out = Conv <pads = [1, 1, 1, 1]> (x, y)", head))


def test_all_other_attributes():
    pattern = lambda a, w, group, attrs: op.Conv(a, w, group=group, **attrs)  # noqa: E731
    head = "float[1,2,4,4] x, float[2,1,3,3] y"
    m = find(pattern, graph("out = Conv <group = 2, pads = [1, 1, 1, 1]> (x, y)", head))
    assert m.captures["attrs"] == {"pads": (1, 1, 1, 1)}
    assert m.captures["group"] == 2


def test_repeated_attribute_dictionary():
    pattern = lambda a, attrs: op.Gelu(op.Gelu(a, **attrs), **attrs)  # noqa: E731
    assert matches(pattern, graph('g = Gelu <approximate = "tanh"> (x)  out = Gelu <approximate = "tanh"> (g)'))
    assert not matches(pattern, graph('g = Gelu <approximate = "tanh"> (x)  out = Gelu (g)'))


# operands


def test_all_operands():
    m = find(lambda xs, a: op.Concat(*xs, axis=a), graph("out = Concat <axis = 0> (x, y, x)"))
    assert [v.name for v in m.captures["xs"]] == ["x", "y", "x"]
    assert m.captures["a"] == 0


def test_remaining_operands():
    m = find(lambda first, rest: op.Concat(first, *rest, axis=0), graph("out = Concat <axis = 0> (x, y, z)"))
    assert m.captures["first"].name == "x"
    assert [v.name for v in m.captures["rest"]] == ["y", "z"]
    assert (
        find(lambda first, rest: op.Concat(first, *rest, axis=0), graph("out = Concat <axis = 0> (x)")).captures["rest"]
        == ()
    )


def test_repeated_operands():
    pattern = lambda xs: op.Add(op.Max(*xs), op.Min(*xs))  # noqa: E731
    assert matches(pattern, graph("a = Max (x, y)  b = Min (x, y)  out = Add (a, b)"))
    assert not matches(pattern, graph("a = Max (x, y)  b = Min (x, z)  out = Add (a, b)"))


def test_variadic_operand_that_is_an_expression():
    m = find(
        lambda a, rest: op.Concat(op.Relu(a), *rest, axis=0), graph("r = Relu (y)  out = Concat <axis = 0> (r, x)")
    )
    assert m.captures["a"].name == "y"


def test_number_of_operands():
    assert not matches(lambda a: op.Concat(a, axis=0), graph("out = Concat <axis = 0> (x, y)"))
    assert not matches(lambda a, b, c: op.Concat(a, b, c, axis=0), graph("out = Concat <axis = 0> (x, y)"))


CONV = "float[1,1,4,4] x, float[1,1,3,3] w, float[1] b"


def test_optional_operand():
    pattern = lambda a, w, b: op.Conv(a, w, optional(b))  # noqa: E731
    assert find(pattern, graph("out = Conv (x, w, b)", CONV)).captures["b"].name == "b"
    assert find(pattern, graph("out = Conv (x, w)", CONV)).captures["b"] is None
    assert not matches(lambda a, w, b: op.Conv(a, w, b), graph("out = Conv (x, w)", CONV))


def test_operand_that_must_be_left_out():
    assert matches(lambda a, high: op.Clip(a, None, high), graph("out = Clip (x, , c)", constants="float c = {6}"))
    assert not matches(lambda a, high: op.Clip(a, None, high), graph("out = Clip (x, c, c)", constants="float c = {6}"))
    assert not matches(lambda a, w: op.Conv(a, w), graph("out = Conv (x, w, b)", CONV))


def test_optional_expression():
    pattern = lambda a, w, b: op.Conv(a, w, optional(op.Relu(b)))  # noqa: E731
    m = find(pattern, graph("r = Relu (b)  out = Conv (x, w, r)", CONV))
    assert m.captures["b"].name == "b"
    m = find(pattern, graph("out = Conv (x, w)", CONV))
    assert m is not None
    assert "b" not in m.captures
    assert not matches(pattern, graph("out = Conv (x, w, b)", CONV))


# alternatives


def test_either_binds_its_tag():
    pattern = lambda a: op.Neg(either("kind", relu=op.Relu(a), clip=op.Clip(a, 0)))  # noqa: E731
    m = find(pattern, graph("r = Relu (x)  out = Neg (r)"))
    assert m.captures["kind"] == "relu"
    m = find(pattern, graph("r = Clip (x, c)  out = Neg (r)", constants="float c = {0}"))
    assert m.captures["kind"] == "clip"
    assert not matches(pattern, graph("r = Abs (x)  out = Neg (r)"))


def test_either_at_the_root():
    pattern = lambda a: either("kind", relu=op.Relu(a), neg=op.Neg(a))  # noqa: E731
    assert find(pattern, graph("out = Neg (x)")).captures["kind"] == "neg"
    assert not matches(pattern, graph("out = Abs (x)"))


def test_either_with_one_name_agrees():
    def pattern(a, b):
        return op.Add(
            either("kind", relu=op.Relu(a), neg=op.Neg(a)),
            either("kind", relu=op.Abs(b), neg=op.Sqrt(b)),
        )

    assert matches(pattern, graph("p = Relu (x)  q = Abs (y)  out = Add (p, q)"))
    assert matches(pattern, graph("p = Neg (x)  q = Sqrt (y)  out = Add (p, q)"))
    assert not matches(pattern, graph("p = Relu (x)  q = Sqrt (y)  out = Add (p, q)"))


def test_either_backtracks_into_what_follows():
    """The first alternative matches by itself, but not together with the rest."""
    pattern = lambda a: op.Sub(either("kind", any=op.Relu(op.Relu(a)), one=op.Relu(a)), a)  # noqa: E731
    text = graph("p = Relu (x)  q = Relu (p)  out = Sub (q, p)")
    assert not matches(lambda a: op.Sub(op.Relu(op.Relu(a)), a), text)
    assert find(pattern, text).captures["kind"] == "one"


def test_either_with_a_capture():
    pattern = lambda a, c: op.Add(either("scaled", yes=op.Mul(a, c), no=a), 1)  # noqa: E731
    assert (
        find(pattern, graph("p = Mul (x, y)  out = Add (p, c)", constants="float c = {1}")).captures["scaled"] == "yes"
    )
    m = find(pattern, graph("out = Add (x, c)", constants="float c = {1}"))
    assert m.captures["scaled"] == "no"
    assert "c" not in m.captures


# privacy


def test_interior_is_private():
    pattern = lambda a: op.Relu(op.Neg(a))  # noqa: E731
    assert matches(pattern, graph("n = Neg (x)  out = Relu (n)"))
    text = "main (float[2] x) => (out, n) { n = Neg (x)  out = Relu (n) }"
    assert not matches(pattern, text)
    assert matches(lambda a: op.Relu(shared(op.Neg(a))), text)


def test_interior_may_be_used_twice_inside():
    text = graph("n = Neg (x)  r = Relu (n)  out = Add (n, r)")
    assert matches(lambda a: op.Add(op.Neg(a), op.Relu(op.Neg(a))), text)


def test_use_in_a_nested_graph_is_a_use():
    text = """main (float[2] x, bool b) => (out, other) {
      n = Neg (x)
      other = If (b) <then_branch = t () => (p) { p = Relu (n) }, else_branch = e () => (q) { q = Neg (x) }>
      out = Relu (n)
    }"""
    assert not matches(lambda a: op.Relu(op.Neg(a)), text)


def test_capture_may_be_used_elsewhere():
    text = "main (float[2] x) => (out, n) { n = Neg (x)  out = Relu (n) }"
    assert matches(lambda a: op.Relu(a), text)


def test_expression_outside_of_the_nested_graph_is_reached_only_if_shared():
    text = """main (float[2] x, bool b) => (out) {
      n = Neg (x)
      out = If (b) <then_branch = t () => (p) { p = Relu (n) }, else_branch = e () => (q) { q = Abs (x) }>
    }"""
    graph = parse(text)
    relu = next(n for n in graph.walk() if n.op == "Relu")
    for pattern, expected in ((lambda a: op.Relu(op.Neg(a)), False), (lambda a: op.Relu(shared(op.Neg(a))), True)):
        assert match(trace_pattern(pattern)[0], relu, Match()) is expected


# several results and several roots


def test_result_by_index():
    text = "main (float[4] x) => (out, a) { a, b = Split <num_outputs = 2> (x)  out = Relu (b) }"
    parts = {"num_outputs": 2}
    assert matches(lambda v: op.Relu(shared(op.Split(v, num_outputs=2)[1])), text)
    assert not matches(lambda v: op.Relu(shared(op.Split(v, **parts)[0])), text)


def test_results_of_one_expression_are_of_one_node():
    def pattern(v):
        parts = op.Split(v, num_outputs=2)
        return op.Add(parts[0], parts[1])

    one = "main (float[4] x) => (out) { a, b = Split <num_outputs = 2> (x)  out = Add (a, b) }"
    two = """main (float[4] x) => (out) {
      a, unused = Split <num_outputs = 2> (x)  unused_1, b = Split <num_outputs = 2> (x)  out = Add (a, b) }"""
    assert matches(pattern, one)
    assert not matches(pattern, two)


def test_unpacked_results():
    def pattern(v):
        a, b = op.Split(v, num_outputs=2, outputs=2)
        return op.Sub(b, a)

    assert matches(pattern, "main (float[4] x) => (out) { a, b = Split <num_outputs = 2> (x)  out = Sub (b, a) }")
    assert not matches(pattern, "main (float[4] x) => (out) { a, b = Split <num_outputs = 2> (x)  out = Sub (a, b) }")


def test_several_roots_share_captures():
    pattern = lambda x, v, w: (op.MatMul(x, v), op.MatMul(x, w))  # noqa: E731
    text = "main (float[2,2] x, float[2,2] v, float[2,2] w) => (p, q) { p = MatMul (x, v)  q = MatMul (x, w) }"
    m = find(pattern, text, root="p")
    assert [r.results[0].name for r in m.roots] == ["p", "q"]
    assert names(m) == {"x": "x", "v": "v", "w": "w"}
    apart = text.replace("MatMul (x, w)", "MatMul (w, x)")
    assert not matches(pattern, apart, root="p")


def test_several_roots_are_different_nodes():
    pattern = lambda x: (op.Relu(x), op.Relu(x))  # noqa: E731
    assert not matches(pattern, "main (float[2] x) => (p) { p = Relu (x) }")
    assert matches(pattern, "main (float[2] x) => (p, q) { p = Relu (x)  q = Relu (x) }", root="p")


def test_three_roots_backtrack():
    pattern = lambda x, w: (op.Neg(x), op.MatMul(x, w), op.Relu(op.Sub(x, w)))  # noqa: E731
    text = """main (float[2,2] x, float[2,2] v, float[2,2] w) => (a, b, c, d) {
      a = Neg (x)  b = MatMul (x, v)  c = MatMul (x, w)  s = Sub (x, w)  d = Relu (s) }"""
    assert matches(lambda x, w: (op.Neg(x), op.MatMul(x, w), op.Sub(x, w)), text, root="a")
    assert not matches(pattern, text, root="b")


# shapes


def test_typed_captures_unify():
    pattern = lambda q=typed("B S D"), k=typed("B T D"): op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))  # noqa: E731

    def text(q, k):
        return graph("t = Transpose <perm = [0, 2, 1]> (k)  out = MatMul (q, t)", f"float[{q}] q, float[{k}] k")

    m = find(pattern, text("2,5,8", "2,7,8"))
    assert m.dims == {"B": 2, "S": 5, "D": 8, "T": 7}
    assert matches(pattern, text("batch,s,8", "batch,t,8"))
    assert not matches(pattern, text("1,5,8", "2,7,8"))
    assert not matches(pattern, text("batch,s,8", "other,t,8"))
    assert not matches(pattern, text("?,5,8", "?,7,8")), "two unknown sizes are not the same size"
    assert not matches(pattern, text("2,1,5,8", "2,1,7,8"))


def test_typed_numbers_and_wildcards():
    assert matches(lambda a=typed("_ 3"): op.Relu(a), graph("out = Relu (x)"))
    assert not matches(lambda a=typed("_ 4"): op.Relu(a), graph("out = Relu (x)"))
    assert matches(lambda a=typed("N N"): op.Relu(a), graph("out = Relu (x)", "float[3,3] x"))
    assert not matches(lambda a=typed("N N"): op.Relu(a), graph("out = Relu (x)", "float[3,2] x"))


def test_typed_dims_are_taken_back():
    """Trying the operands in the wrong order first leaves no sizes behind."""
    pattern = lambda a=typed("N 3"), b=typed("1 N"): op.Add(a, op.Transpose(b, perm=[1, 0]))  # noqa: E731
    text = graph("t = Transpose <perm = [1, 0]> (y)  out = Add (t, x)", "float[2,3] x, float[1,2] y")
    assert find(pattern, text).dims == {"N": 2}


# near misses


def test_near_miss_tells_how_far_it_got():
    m = find(
        lambda a, b, c: op.Relu(op.Add(op.MatMul(a, b), c)),
        graph("p = Mul (x, y)  s = Add (p, z)  out = Relu (s)"),
        explain=True,
    )
    reached, reason, node = m.reached
    assert reached == 2
    assert "MatMul is expected" in reason
    assert node is None or node.op in ("Mul", "Add")


def test_near_miss_of_a_private_interior():
    text = "main (float[2] x) => (out, n) { n = Neg (x)  out = Relu (n) }"
    reached, reason, node = find(lambda a: op.Relu(op.Neg(a)), text, root="out", explain=True).reached
    assert (reached, reason, node.op) == (2, "the result of Neg is also used by return", "Neg")


@pytest.mark.parametrize(
    ("pattern", "body", "reason"),
    [
        (lambda a: op.Softmax(a), "out = Softmax <axis = 0> (x)", "attributes of Softmax differ"),
        (lambda a: op.Concat(a, axis=0), "out = Concat <axis = 0> (x, y)", "Concat has 2 operands"),
        (lambda a: op.Sub(a, a), "out = Sub (x, y)", "a stands for two different values"),
        (lambda a, c=const: op.Sub(a, c), "out = Sub (x, y)", "c is not constant"),
        (lambda a: op.Sub(a, 1), "out = Sub (x, y)", "not the constant 1"),
        (lambda a=typed("B 4"): op.Relu(a), "out = Relu (x)", "a is float[2,3], not [B 4]"),
        (lambda a: op.Relu(op.Split(a)[1]), "a = Split (x)  out = Relu (a)", "result 0 of Split, not 1"),
    ],
)
def test_reasons(pattern, body, reason):
    assert find(pattern, graph(body), explain=True).reached[1] == reason


# what is no pattern


def test_capture_alone_is_no_pattern():
    with pytest.raises(TypeError, match="must be an operator expression"):
        trace_pattern(lambda x: x)


def test_shared_takes_an_operator():
    with pytest.raises(TypeError, match="takes an operator expression"):
        trace_pattern(lambda x: op.Relu(shared(x)))


def test_only_captures_stand_for_several_operands():
    with pytest.raises(TypeError, match="only a capture"):
        trace_pattern(lambda x: op.Concat(*either("k", a=x), axis=0))
