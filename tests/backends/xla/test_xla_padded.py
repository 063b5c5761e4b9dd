"""Results whose sizes depend on data, padded with a count: traced, compiled, exported, compared with the exact ones."""

import jax
import ml_dtypes
import numpy as np
import onnx.parser
import pytest

import planish
from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.backends.xla.padded import Padded
from planish.ir.errors import PlanishError

RNG = np.random.default_rng(3)


def parse(text, opset=23):
    return planish.load(onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": {opset}]> {text}'))


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if np.issubdtype(b.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


def eagerly(graph, inputs):
    """What the graph gives operator by operator."""
    return backend("xla").compile(graph, data_dependent="exact")(*inputs)


def exact(graph, inputs):
    """What the reference gives; operator by operator where it fails, as it does on some empty arrays."""
    try:
        return backend("reference").compile(graph)(*inputs)
    except PlanishError:
        return eagerly(graph, inputs)


def check(text, *cases, wanted=exact):
    """The compiled program gives what the graph states, for each list of inputs; it is traced once per shape."""
    graph = parse(text)
    compiled = backend("xla").compile(graph)
    for inputs in cases:
        assert_same(compiled(*inputs), wanted(graph, inputs))
    report = compiled.report()
    assert report["compiled"], report["not_compiled_because"]
    assert report["data_dependent"]
    assert report["traces"] == len({tuple(np.shape(i) for i in inputs) for inputs in cases})


# where such values come from

MATRICES = [np.float32([[0, 1, np.nan], [2, 0, -0.0]]), np.zeros((2, 3), "f"), np.ones((2, 3), "f")]
KEEP = [np.array(k, bool) for k in ([1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1])]


def test_nonzero_gives_places_in_order():
    check("g (float[a, b] x) => (int64[2, n] y) { y = NonZero (x) }", *([m] for m in MATRICES))
    check("g (float[a, b, c] x) => (int64[3, n] y) { y = NonZero (x) }", [RNG.integers(0, 2, (3, 4, 5)).astype("f")])
    check("g (bool x) => (int64[1, n] y) { y = NonZero (x) }", [np.array(True)], [np.array(False)], wanted=eagerly)
    check("g (float[a, b] x) => (int64[2, n] y) { y = NonZero (x) }", [np.zeros((0, 3), "f")], [np.zeros((2, 0), "f")])


@pytest.mark.parametrize("axis", ["", "<axis = 1>", "<axis = -2>"])
def test_compress_keeps_what_a_condition_says(axis):
    x = RNG.normal(size=(5, 5)).astype("f")
    text = "g (float[5, 5] x, bool[n] keep) => (float[] y) { y = Compress AXIS (x, keep) }".replace("AXIS", axis)
    check(text, *([x, k] for k in KEEP), [x, KEEP[0][:3]], [x, KEEP[1][:0]])


@pytest.mark.parametrize("is_sorted", [0, 1])
@pytest.mark.parametrize("dtype", ["f", "int32", ml_dtypes.bfloat16])
def test_unique_groups_equal_elements(is_sorted, dtype):
    name = {"f": "float", "int32": "int32"}.get(dtype, "bfloat16")
    text = f"""g ({name}[n] x) => ({name}[m] y, int64[m] first, int64[n] inverse, int64[m] counts) {{
        y, first, inverse, counts = Unique <sorted = {is_sorted}> (x)
    }}"""
    check(text, *([np.array(v).astype(dtype)] for v in ([2, 1, 1, 3, 4, 3], [5, 5, 5, 5, 5, 5], [])))
    if dtype == "f":
        check(text, [np.float32([np.nan, 0, -0.0, np.inf, np.nan, -np.inf])], wanted=eagerly)


def test_unique_rows_and_columns():
    text = """g (float[3, n] x) => (float[3, m] y, int64[m] first, int64[n] inverse, int64[m] counts) {
        y, first, inverse, counts = Unique <axis = 1, sorted = 0> (x)
    }"""
    check(text, [RNG.integers(0, 2, (3, 9)).astype("f")])
    text = "g (float[a, b] x) => (float[n] y) { y = Unique (x) }"
    check(text, [RNG.integers(0, 5, (3, 4)).astype("f")])
    check("g (float[a, b] x) => (float[n, b] y) { y = Unique <axis = 0> (x) }", [np.float32([[1, 2], [0, 3], [1, 2]])])


def test_rows_of_very_many_columns_are_grouped_operator_by_operator():
    program = backend("xla").compile(parse("g (float[2, 99] x) => (float[n, 99] y) { y = Unique <axis = 0> (x) }"))
    np.testing.assert_array_equal(program(np.ones((2, 99), "f"))[0], np.ones((1, 99)))
    assert "Unique: the shape of its result depends on data" in program.report()["not_compiled_because"]


def test_what_depends_on_data_that_depends_on_data():
    """Boxes that are large enough and whose scores are high enough, those of them that do not overlap."""
    text = """g (float[n, 4] boxes, float[n] scores) => (int64[m, 3] rows, float[m, 4] y, int64[1, k] u, float[j] v) {
        low = Constant <value = float {0.2}> ()
        first = Constant <value = int64[1] {0}> ()
        two = Constant <value_ints = [0, 1]> ()
        high = Greater (scores, low)
        kept = Compress <axis = 0> (boxes, high)
        left = Compress <axis = 0> (scores, high)
        width = Gather <axis = 1> (kept, first)
        wide = Greater (width, low)
        u = NonZero (left)
        one = Constant <value_ints = [1]> ()
        enough = Squeeze (wide, one)
        large = Compress <axis = 0> (kept, enough)
        good = Compress <axis = 0> (left, enough)
        v = Unique (good)
        a = Unsqueeze (large, first)
        b = Unsqueeze (good, two)
        limit = Constant <value_ints = [4]> ()
        iou = Constant <value = float {0.3}> ()
        rows = NonMaxSuppression (a, b, limit, iou)
        last = Constant <value = int64 {2}> ()
        at = Gather <axis = 1> (rows, last)
        y = Gather (large, at)
    }"""
    cases = [[RNG.random((12, 4)).astype("f"), RNG.random(12).astype("f").round(1)] for _ in range(4)]
    check(text, *cases, [np.ones((12, 4), "f"), np.zeros(12, "f")])


# operators that carry them on: rows (k, 4) of x (n, 4), more of other values

HEAD = """g (float[n, 4] x, bool[n] keep, float[n, 3, 6, 6] image) => (float[] y) {
    turned = Transpose (x)
    rows = Compress <axis = 0> (x, keep)
    column = Compress <axis = 1> (turned, keep)
    images = Compress <axis = 0> (image, keep)
    a0 = Constant <value_ints = [0]> ()
    a1 = Constant <value_ints = [1]> ()
    a2 = Constant <value_ints = [2]> ()
    a3 = Constant <value_ints = [3]> ()
    one = Constant <value = float {1}> ()
    four = Constant <value = float[4] {1, 2, -3, 4}> ()
    w = Constant <value = float[4, 2] {1, 2, -3, 4, 5, 6, 7, 8}> ()
    kernel = Constant <value = float[1, 3, 1, 1] {1, 2, -3}> ()
    m1 = Constant <value_ints = [-1]> ()
    i0 = Constant <value = int64 {0}> ()
    i1 = Constant <value = int64 {1}> ()
    i4 = Constant <value = int64 {4}> ()
"""
CARRIED = {
    "arithmetic with numbers": "t = Mul (rows, four) y = Add (t, one)",
    "arithmetic with one another": "t = Exp (rows) y = Div (rows, t)",
    "chosen twice by one mask": "r = Compress <axis = 0> (x, keep) t = Exp (r) y = Sub (rows, t)",
    "compared and chosen": "c = Greater (rows, one) y = Where (c, rows, four)",
    "clipped": "y = Clip (rows, one)",
    "more dimensions": "t = Unsqueeze (rows, a2) y = Add (t, four)",
    "cast": "t = Cast <to = 7> (rows) y = Cast <to = 1> (t)",
    "cast like": "t = CastLike (rows, keep) y = CastLike (t, rows)",
    "transposed": "y = Transpose (rows)",
    "columns": "y = Mul (column, one)",
    "squeezed": "t = Unsqueeze (rows, a1) s = Squeeze (t, a1) y = Relu (s)",
    "split": "a, b = Split <axis = 1, num_outputs = 2> (rows) y = Concat <axis = 1> (b, a)",
    "joined": "t = Neg (rows) y = Concat <axis = 0> (rows, t, x, rows)",
    "columns joined": "y = Concat <axis = -1> (column, turned, column)",
    "sliced": "s = Slice (rows, a1, a3, a1) y = Relu (s)",
    "first ones": "s = Slice (rows, a1, a3, a0) t = Slice (rows, a1, a3, a0) y = Add (s, t)",
    "all from the second on": "m = Constant <value_ints = [9223372036854775807]> () y = Slice (rows, a1, m, a0)",
    "reversed columns": "l = Constant <value_ints = [-9]> () y = Slice (rows, m1, l, a1, m1)",
    "gathered columns": "i = Constant <value_ints = [3, 0]> () y = Gather <axis = 1> (rows, i)",
    "one column": "i = Squeeze (m1, a0) y = Gather <axis = 1> (rows, i)",
    "softmax": "y = Softmax (rows)",
    "softmax of the entries": "s = Softmax <axis = 0> (rows) y = Softmax <axis = 1> (column)",
    "largest": "i = ArgMax <axis = 1> (rows) y = Cast <to = 1> (i)",
    "largest, without dimension": "i = ArgMin <axis = 0, keepdims = 0> (column) y = Cast <to = 1> (i)",
    "largest ones": "y, i = TopK (rows, a2)",
    "running sums": "y = CumSum (rows, a0)",
    "layer norm": "y = LayerNormalization <axis = -1> (rows, four)",
    "one-hot": "i = ArgMax <axis = 1> (rows) v = Slice (four, a1, a3) y = OneHot <axis = 0> (i, i4, v)",
    "padded elsewhere": "p = Constant <value_ints = [0, 1, 0, 2]> () y = Pad (rows, p)",
    "repeated elsewhere": "r = Constant <value_ints = [1, 3]> () y = Tile (rows, r)",
    "expanded": "s = Constant <value_ints = [2, 1, 4]> () y = Expand (rows, s)",
    "product by rows": "y = MatMul (rows, w)",
    "product with a vector": "y = MatMul (rows, four)",
    "product of columns": "t = Transpose (w) y = MatMul (t, column)",
    "product over the entries": "y = MatMul (column, rows)",
    "products in batches": "t = Unsqueeze (rows, a1) y = MatMul (t, w)",
    "gemm": "y = Gemm (rows, w, one)",
    "gemm of columns": "y = Gemm <transA = 1> (column, w)",
    "sum": "y = ReduceSum (rows, a0)",
    "sum of all": "y = ReduceSum <keepdims = 0> (rows)",
    "sum elsewhere": "y = ReduceSum <keepdims = 0> (column, a0)",
    "mean": "y = ReduceMean (rows, a0)",
    "largest number": "y = ReduceMax (rows, a0)",
    "smallest number": "i = Cast <to = 7> (rows) m = ReduceMin (i, a0) y = Cast <to = 1> (m)",
    "product": "y = ReduceProd (rows, a0)",
    "norms": "a = ReduceL1 (rows, a0) b = ReduceL2 (rows, a0) y = Add (a, b)",
    "log of sums": "y = ReduceLogSumExp (rows, a0)",
    "convolved": "y = Conv (images, kernel)",
    "pooled": "y = MaxPool <kernel_shape = [2, 2]> (images)",
    "pooled to one": "p = GlobalAveragePool (images) y = Flatten (p)",
    "resized": "s = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () y = Resize (images, , s)",
    "flattened": "y = Flatten <axis = 1> (images)",
    "flattened to a vector": "y = Reshape (rows, m1)",
    "in halves": "s = Constant <value_ints = [-1, 2]> () y = Reshape (rows, s)",
    "halves of columns": "s = Constant <value_ints = [2, 2, -1]> () y = Reshape (column, s)",
    "in groups": "s = Constant <value_ints = [0, 2, -1]> () y = Reshape (rows, s)",
    "of the size they have": "s = Shape (rows) z = Mul (rows, one) y = Reshape (z, s)",
    "reshaped by their number": "n = Shape <start = 0, end = 1> (rows) s = Concat <axis = 0> (n, a2, a2) "
    "y = Reshape (rows, s)",
    "as many ones": "s = Shape (rows) o = ConstantOfShape <value = float[1] {1.0}> (s) y = Add (rows, o)",
    "expanded to their number": "n = Shape <start = 0, end = 1> (rows) s = Concat <axis = 0> (n, a3) "
    "y = Expand (one, s)",
    "expanded to their shape": "s = Shape (rows) y = Expand (rows, s)",
    "counted up": "n = Shape <start = 0, end = 1> (rows) m = Squeeze (n, a0) "
    "z = Constant <value = int64 {0}> () o = Constant <value = int64 {1}> () r = Range (z, m, o) "
    "i = Gather (rows, r) c = Cast <to = 1> (r) u = Unsqueeze (c, a1) y = Add (i, u)",
    "sliced to their number": "n = Shape <start = 0, end = 1> (rows) y = Slice (rows, a0, n, a0)",
    "their number": "n = Shape (rows) y = Cast <to = 1> (n)",
    "their size": "n = Size (rows) y = Cast <to = 1> (n)",
    "computed from their number": "n = Shape <end = 1> (rows) m = Add (n, a1) l = Less (m, a3) y = Cast <to = 1> (l)",
    "gathered by their places": "p = NonZero (keep) i = Squeeze (p, a0) y = Gather (x, i)",
    "gathered from columns": "p = NonZero (keep) i = Squeeze (p, a0) y = Gather <axis = 1> (turned, i)",
    "gathered from one another": "p = NonZero (rows) f, s = Split <num_outputs = 2> (p) i = Squeeze (f, a0) "
    "y = Gather (rows, i)",
    "gathered from the end": "i = ArgMax <axis = 1, keepdims = 0> (turned) m = Sub (i, i) n = Sub (m, a1) "
    "s = Slice (n, a0, a1, a0) k = Concat <axis = 0> (rows, x) y = Gather (k, s)",
    "gathered element by element": "i = ArgMax <axis = 1> (rows) y = GatherElements <axis = 1> (rows, i)",
    "gathered elements": "i = ArgMax <axis = 1> (rows) e = Concat <axis = 1> (i, i, i, i) "
    "y = GatherElements <axis = 0> (x, e)",
    "gathered by tuples": "p = NonZero (rows) t = Transpose (p) y = GatherND (rows, t)",
    "gathered in batches": "i = ArgMax <axis = 1> (rows) y = GatherND <batch_dims = 1> (rows, i)",
    "put in places": "p = NonZero (keep) t = Transpose (p) n = Neg (rows) y = ScatterND (x, t, n)",
    "added in places": "i = ArgMax <axis = 1, keepdims = 0> (rows) t = Unsqueeze (i, a1) y = ScatterND <reduction = "
    '"add"> (x, t, rows)',
    "put by elements": "i = ArgMax <axis = 1> (rows) e = Concat <axis = 1> (i, i, i, i) "
    'y = ScatterElements <axis = 0, reduction = "max"> (x, e, rows)',
    "quantized": "s = Constant <value = float {0.5}> () z = Constant <value = int8 {3}> () "
    "q = QuantizeLinear (rows, s, z) y = DequantizeLinear (q, s, z)",
}


NOT_EMPTY = ("in groups", "gathered from the end")  # for which there is no result without entries


@pytest.mark.parametrize("name", CARRIED)
def test_operators_carry_entries_on(name):
    x, image = RNG.normal(size=(5, 4)).astype("f"), RNG.normal(size=(5, 3, 6, 6)).astype("f")
    cases = [[x, keep, image] for keep in KEEP if keep.any() or name not in NOT_EMPTY]
    check(HEAD + CARRIED[name] + "}", *cases)


def test_integers_are_computed_within_their_range():
    text = """g (int32[n] x, bool[n] keep) => (int32[] most, int32[] least, int32[] mean, bool[1] any) {
        some = Compress (x, keep)
        most = ReduceMax <keepdims = 0> (some)
        least = ReduceMin <keepdims = 0> (some)
        mean = ReduceMean <keepdims = 0> (some)
        truth = Cast <to = 9> (some)
        any = ReduceMax (truth)
    }"""
    x = np.array([-3, 0, -8, 7, 0], np.int32)
    check(text, *([x, k] for k in KEEP if k.any()), wanted=eagerly)


def test_padding_is_never_seen_even_where_it_is_not_finite():
    text = """g (float[n] x) => (float[] total, float[1, 1] product) {
        zero = Constant <value = float {0}> ()
        places = Greater (x, zero)
        some = Compress (x, places)
        logs = Log (some)
        total = ReduceSum <keepdims = 0> (logs)
        axes = Constant <value_ints = [0]> ()
        row = Unsqueeze (logs, axes)
        column = Transpose (row)
        product = MatMul (row, column)
    }"""
    check(text, [np.float32([-1, 2, 0, 3, np.nan])])


# nested graphs


def test_branches_and_iterations_compute_with_entries():
    text = """g (float[n] x, bool b) => (float y, float[3] sums, float z) {
        zero = Constant <value = float {0}> ()
        positive = Greater (x, zero)
        some = Compress (x, positive)
        y = If (b) <then_branch = t () => (float p) { p = ReduceSum <keepdims = 0> (some) },
            else_branch = e () => (float q) { again = Compress (x, positive) s = Mul (some, again)
            q = ReduceMax <keepdims = 0> (s) }>
        count = Constant <value = int64 {3}> ()
        last, sums = Loop (count, , zero) <body = l (int64 i, bool c, float v) => (bool go, float w, float row) {
            go = Identity (c)
            limit = Cast <to = 1> (i)
            more = Greater (some, limit)
            large = Compress (some, more)
            row = ReduceSum <keepdims = 0> (large)
            w = Add (v, row)
        }>
        once_more = Compress (x, positive)
        product = Mul (once_more, some)
        total = ReduceSum <keepdims = 0> (product)
        z = Add (total, last)
    }"""
    x = np.float32([-1, 0.5, 1.5, 2.5, -3, 3.5])
    check(text, *([v, np.array(b)] for v in (x, 1 - x) for b in (True, False)), wanted=eagerly)


def test_a_loop_that_collects_entries_is_unrolled():
    text = """g (float[n] x) => (float[] y) {
        zero = Constant <value = float {0}> ()
        positive = Greater (x, zero)
        count = Constant <value = int64 {3}> ()
        start = Constant <value_floats = [9.0]> ()
        y = Loop (count, , start) <body = l (int64 i, bool c, float[k] v) => (bool go, float[m] w) {
            go = Identity (c)
            limit = Cast <to = 1> (i)
            more = Greater (x, limit)
            large = Compress (x, more)
            w = Concat <axis = 0> (v, large)
        }>
    }"""
    x = np.float32([-1, 0.5, 1.5, 2.5, -3, 3.5])
    check(text, [x], [-x], wanted=eagerly)


def test_a_branch_with_a_size_of_its_own_is_refused():
    text = """g (float[n] x, bool b) => (float[m] y) {
        zero = Constant <value = float {0}> ()
        positive = Greater (x, zero)
        some = Compress (x, positive)
        y = If (b) <then_branch = t () => (float[p] u) { u = Exp (some) },
            else_branch = e () => (float[n] v) { v = Exp (x) }>
    }"""
    program = backend("xla").compile(parse(text))
    np.testing.assert_allclose(program(np.float32([-1, 1]), np.array(True))[0], np.exp(np.float32([1])))
    np.testing.assert_allclose(program(np.float32([-1, 1]), np.array(False))[0], np.exp(np.float32([-1, 1])))
    assert "If: " in program.report()["not_compiled_because"]


# detection

DETECTION = """detect (float[batch, n, 4] boxes, float[batch, classes, n] scores) => (
    int64[m, 3] rows, float[m, 7] detections, int64[1] count, float[classes] best) {
    limit = Constant <value_ints = [3]> ()
    iou = Constant <value = float {0.1}> ()
    least = Constant <value = float {0.6}> ()
    rows = NonMaxSuppression (boxes, scores, limit, iou, least)
    first = Constant <value_ints = [0, 2]> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    places = Gather <axis = 1> (rows, first)
    found = GatherND (boxes, places)
    flat = GatherND (scores, rows)
    score = Unsqueeze (flat, one)
    heads = Slice (rows, zero, two, one)
    numbers = Cast <to = 1> (heads)
    detections = Concat <axis = 1> (numbers, score, found)
    count = Shape <start = 0, end = 1> (detections)
    shape = Shape (scores)
    classes = Slice (shape, one, two)
    nothing = ConstantOfShape (classes)
    kind = Slice (rows, one, two, one)
    best = ScatterND <reduction = "max"> (nothing, kind, flat)
}"""


def scene(seed, batch=2, classes=3, n=9):
    rng = np.random.default_rng(seed)
    corners = rng.random((batch, n, 2)).astype("f")
    boxes = np.concatenate([corners, corners + rng.random((batch, n, 2)).astype("f") * 0.5], -1)
    return [boxes, rng.random((batch, classes, n)).astype("f")]


def test_detections_are_those_of_the_reference():
    nothing = [np.zeros((2, 9, 4), "f"), np.zeros((2, 3, 9), "f")]
    check(DETECTION, *map(scene, range(5)), nothing)


def test_a_jitted_function_returns_padded_detections_with_a_count():
    graph = parse(DETECTION)
    function = to_jax(graph, data_dependent="padded")
    inputs = scene(0)
    rows, detections, count, _ = jax.jit(function)(function.params, *inputs)
    wanted = exact(graph, inputs)
    assert isinstance(rows, Padded)
    assert isinstance(detections, Padded)
    assert detections.values.shape == (2 * 3 * 3, 7)
    assert int(detections.count) == int(count[0]) == wanted[0].shape[0] < 18
    np.testing.assert_array_equal(rows.cut(), wanted[0])
    np.testing.assert_allclose(detections.values[: int(count[0])], wanted[1], rtol=1e-6)
    assert np.isfinite(detections.values).all()
    assert function.padded == {"rows": 0, "detections": 0}
    eager = function(function.params, *inputs)
    jax.tree.map(np.testing.assert_array_equal, eager, (rows, detections, count, eager[3]))


def test_scores_of_detections_have_gradients():
    function = to_jax(parse(DETECTION), data_dependent="padded")
    boxes, scores = scene(1)
    found = jax.jit(jax.grad(lambda s: function(function.params, boxes, s)[1].filled(0)[:, 2].sum()))(scores)
    (rows, *_) = exact(parse(DETECTION), [boxes, scores])
    wanted = np.zeros_like(scores)
    wanted[tuple(rows.T)] = 1
    np.testing.assert_array_equal(found, wanted)


def test_many_images_are_mapped_over():
    function = to_jax(parse("g (float[n] x) => (int64[1, m] y) { y = NonZero (x) }"), data_dependent="padded")
    x = np.float32([[0, 1, 2], [0, 0, 3]])
    (y,) = jax.vmap(lambda row: function({}, row))(x)
    np.testing.assert_array_equal(y.count, [2, 1])
    np.testing.assert_array_equal(y.values[:, 0, 0], [1, 2])


@pytest.mark.parametrize("sizes", [{}, {"batch": 2, "n": 9, "classes": 3}])
def test_a_file_holds_values_and_count_and_its_program_cuts(tmp_path, sizes):
    graph = parse(DETECTION)
    written = backend("xla").write(graph, tmp_path / "m.stablehlo", sizes=sizes)
    assert written.facts["padded"] == {"rows": 0, "detections": 0}
    assert "padded, with a count: rows along 0, detections along 0" in written.text
    program = backend("xla").load(tmp_path / "m.stablehlo")
    assert program.padded == program.report()["padded"] == {"rows": 0, "detections": 0}
    for inputs in [scene(2), scene(3), *([] if sizes else [scene(4, 1, 2, 12), scene(5, 3, 1, 2)])]:
        assert_same(program(*inputs), exact(graph, inputs))
    with jax.enable_x64(False):
        (values, count), *_ = program.exported.call(program.params, *scene(2))
    np.testing.assert_array_equal(values[: int(count)], exact(graph, scene(2))[0])
    backend("xla").write(graph, tmp_path / "m.mlir", sizes=sizes)
    assert "stablehlo" in (tmp_path / "m.mlir").read_text()


def test_a_tpu_program_has_padded_outputs():
    pytest.importorskip("libtpu")
    from planish.backends.xla.tpu import compile_tpu

    function = to_jax(parse(DETECTION), data_dependent="padded")
    _, report = compile_tpu(function, "v5e", sizes={"batch": 1, "n": 16, "classes": 2})
    assert report.padded == report.to_dict()["padded"] == {"rows": 0, "detections": 0}
    assert "padded, with a count: rows along 0, detections along 0" in str(report)


def test_regions_have_features():
    """The second stage of a detector: what lies in the boxes that were found goes through a small network."""
    text = """g (float[1, 3, 16, 16] image, float[n, 4] boxes, float[n] scores) => (float[m, 5] y) {
        least = Constant <value = float {0.5}> ()
        is_good = Greater (scores, least)
        some = Compress <axis = 0> (boxes, is_good)
        size = Constant <value = float {12}> ()
        regions = Mul (some, size)
        count = Shape <start = 0, end = 1> (regions)
        image_of = ConstantOfShape <value = int64[1] {0}> (count)
        crops = RoiAlign <output_height = 4, output_width = 4, sampling_ratio = 2> (image, regions, image_of)
        shape = Constant <value_ints = [6, 3, 3, 3]> ()
        kernel = ConstantOfShape <value = float[1] {0.1}> (shape)
        features = Conv <pads = [1, 1, 1, 1]> (crops, kernel)
        positive = Relu (features)
        pooled = GlobalAveragePool (positive)
        vectors = Flatten (pooled)
        form = Constant <value_ints = [6, 5]> ()
        weights = ConstantOfShape <value = float[1] {0.3}> (form)
        logits = Gemm (vectors, weights)
        y = Softmax (logits)
    }"""
    boxes, scores = scene(0, 1, 1)
    check(text, [RNG.normal(size=(1, 3, 16, 16)).astype("f"), boxes[0], scores[0, 0]])


# what is refused

REFUSED = {
    "y, i = TopK <axis = 0> (rows, a1)": "TopK: mixes entries whose number depends on data",
    "y, b = Split <axis = 0, num_outputs = 2> (rows)": "Split: mixes entries",
    "k = And (keep, keep) r = Compress <axis = 0> (x, k) y = Concat <axis = 1> (rows, r)": "Concat: mixes entries",
    "s = Slice (x, a0, m1, a0) y = Add (rows, s)": "Add: mixes entries",
    "t = Unsqueeze (rows, a1) y = Sub (t, rows)": "Sub: mixes entries",
    "y = Slice (rows, m1, a3, a0)": "Slice: mixes entries",
    "y = Gather (rows, i1)": "Gather: mixes entries",
    "y = CumSum <reverse = 1> (rows, a0)": "CumSum: mixes entries",
    "s = Constant <value_ints = [4, 3, 2, 2]> () y = Resize (images, , , s)": "Resize: mixes entries",
    "s = Constant <value_ints = [4, 4]> () y = Reshape (rows, s)": "Reshape: mixes entries",
    "t = Unsqueeze (rows, a0) s = Concat <axis = 0> (t, t) y = Reshape (s, m1)": "Reshape: mixes entries",
    "n = Shape <end = 1> (rows) y = Slice (rows, a0, n, a1)": "Slice: mixes entries",
    "s = Constant <value_ints = [0, 4]> () n = Slice (rows, a3, a0) y = Reshape <allowzero = 1> (n, s)": "Reshape: ",
    "y = Det (rows)": "Det: mixes entries",
    "n = Shape (rows) l = Gather (n, a0) m = Add (l, a1) y = ConstantOfShape (m)": "operand 0 .* decides a shape",
    "n = Shape (rows) f = Concat <axis = 0> (four, four, four, four) y = Reshape (f, n)": "has a shape of sizes that",
    "s = SequenceConstruct (rows) y = SequenceAt (s, i0)": "SequenceConstruct: mixes entries",
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_mixes_entries_is_refused_and_runs_operator_by_operator(body):
    graph = parse(HEAD + body + "}")
    inputs = [RNG.normal(size=s).astype("f") for s in ((5, 4), (5, 3, 6, 6))]
    inputs.insert(1, np.array([1, 0, 1, 1, 1], bool))
    function = to_jax(graph, data_dependent="padded")
    with pytest.raises(LoweringError, match=REFUSED[body]) as caught:
        jax.jit(function)(function.params, *inputs)
    program = backend("xla").compile(graph)
    assert_same(program(*inputs), exact(graph, inputs))
    report = program.report()
    assert not report["compiled"]
    assert report["not_compiled_because"] in str(caught.value)


def test_inputs_that_do_not_fit_leave_a_program_compiled():
    graph = parse(
        "g (float[n] x, bool[n] keep, float[m] z) => (float[] y) { r = Compress (x, keep) s = Add (x, z) "
        "t = ReduceSum (s) y = Mul (r, t) }"
    )
    program = backend("xla").compile(graph)
    x, keep = np.float32([1, 2, 3]), np.array([1, 0, 1], bool)
    with pytest.raises(PlanishError, match="Add"):
        program(x, keep, np.zeros(2, "f"))
    np.testing.assert_allclose(program(x, keep, np.zeros(3, "f"))[0], [6, 18])
    assert program.report()["compiled"]


def test_what_is_to_be_exact_is_not_traced():
    graph = parse("g (float[n] x) => (int64[1, m] y) { y = NonZero (x) }")
    program = backend("xla").compile(graph, data_dependent="exact")
    np.testing.assert_array_equal(program(np.float32([0, 2]))[0], [[1]])
    assert program.report()["not_compiled_because"] == "results that depend on data are to be exact"
    function = to_jax(graph)
    with pytest.raises(LoweringError, match="NonZero: the shape of its result depends on data"):
        jax.jit(function)({}, np.float32([0, 2]))
