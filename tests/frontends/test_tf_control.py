"""TensorFlow's control flow: calls, branches, loops and lists, with the numbers of TensorFlow itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from planish.backends import backend
from planish.frontends.tensorflow import from_tensorflow
from planish.ir.errors import ModelError

from .tf_check import check

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
EVERY = {0: [0, 1]}


def both(function: Any, *inputs: Any, open: Any = True) -> Counter[str]:
    """Compare with known sizes, simplified, and with open ones, as translated; the operators of the latter."""
    check(function, *inputs, simplify=True)
    return check(function, *inputs, open=open)


# calls


def test_nested_functions_are_inlined():
    @tf.function
    def inner(x, y):
        return x * y, x - y

    @tf.function
    def outer(x):
        a, b = inner(x, x + 1)
        return inner(a, b)[1]

    assert both(outer, X) == {"Add": 1, "Mul": 1, "Sub": 2}


def test_functions_capture_values_and_variables():
    scale, table = tf.Variable(X[:1]), tf.constant(X)

    @tf.function
    def inner(x):
        return x * scale + table

    @tf.function
    def outer(x):
        return inner(x) * table

    both(outer, X)


def test_gradients_that_a_user_defines_do_not_matter():
    @tf.custom_gradient
    def clipped(x):
        return tf.maximum(x, 0.0), lambda dy: dy

    both(lambda x: clipped(x) + 1, X)


def test_a_gradient_that_is_traced_is_translated():
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.where(x > 0, x * x, x))
        return tape.gradient(y, x)

    check(gradient, X)


def test_an_operation_may_have_the_name_of_a_function():
    definition = tf.function(lambda x: x * 2 + 1).get_concrete_function(tf.TensorSpec([None, 3])).graph.as_graph_def()
    function = tf.function(lambda x: tf.nn.relu(x)).get_concrete_function(tf.TensorSpec([None, 3]))
    library = definition.library.function.add()
    library.CopyFrom(function.function_def)
    node = definition.node.add()
    node.name, node.op = "called", function.function_def.signature.name
    node.input.append("x")
    wrapped = tf.compat.v1.wrap_function(
        lambda x: tf.graph_util.import_graph_def(definition, {"x": x}, ["called:0"], name=""),
        [tf.TensorSpec([None, 3], name="given")],
    )
    graph = from_tensorflow(wrapped)
    assert [n.op for n in graph.nodes] == ["Relu"]


# branches


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_is_chosen(flag):
    def choose(x, flag):
        return tf.cond(flag, lambda: (x + 1, tf.shape(x)), lambda: (x * 2, tf.shape(x) * 2))

    assert both(choose, X, flag)["If"] == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_is_chosen_by_what_is_computed_and_may_be_nested(sign):
    @tf.function
    def choose(x):
        if tf.reduce_sum(x) > 0:
            y = x * 2
            if x[0, 0] > 100:
                y = y + 1
        else:
            y = -x
        return y

    assert both(choose, np.abs(X) * sign)["If"] == 2


@pytest.mark.parametrize("number", [0, 3, 0.5])
def test_a_number_may_be_a_condition(number):
    def choose(n):
        branches = [tf.function(f).get_concrete_function() for f in (lambda: tf.constant(1), lambda: tf.constant(2))]
        return tf.raw_ops.If(
            cond=n, input=[], Tout=[tf.int32], then_branch=branches[0], else_branch=branches[1], output_shapes=[[]]
        )[0]

    both(choose, np.asarray(number))


def test_a_constant_condition_leaves_one_branch():
    assert "If" not in both(lambda x: tf.cond(tf.constant(True), lambda: x + 1, lambda: x), X)


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 7])
def test_a_branch_is_chosen_by_number(index):
    def choose(i, x):
        return tf.switch_case(i, [lambda: x, lambda: x * 2, lambda: x + 1])

    both(choose, np.int32(index), X, open={1: [0, 1]})


@pytest.mark.parametrize("flag", [True, False])
def test_branches_may_give_different_shapes(flag):
    check(lambda x, flag: tf.cond(flag, lambda: x[:2], lambda: tf.concat([x, x], 0)), X, flag, open={0: [0]})


@pytest.mark.parametrize("flag", [True, False])
def test_branches_read_variables(flag):
    weight = tf.Variable(X)

    both(lambda x, flag: tf.cond(flag, lambda: x * weight, lambda: x), X, flag)


# loops


def test_a_loop_over_a_range_is_counted():
    @tf.function
    def power(x, n):
        for _ in tf.range(n):
            x = x * 2
        return x

    found = both(power, X, np.int32(3))
    assert found["Loop"] == 1
    assert not found["Less"]


@pytest.mark.parametrize(
    ("start", "limit", "step"), [(0, 7, 3), (2, 8, 3), (5, 1, -2), (3, 3, 1), (4, 2, 1), (7, -1, -3)]
)
def test_ranges_may_begin_anywhere_and_go_any_way(start, limit, step):
    @tf.function
    def total(x, limit):
        for i in tf.range(start, limit, step):
            x = x * 2 + tf.cast(i, tf.float32)
        return x

    assert "Less" not in both(total, X, np.int32(limit))


def test_counters_are_right_after_the_loop():
    def count(x, n):
        return tf.while_loop(lambda i, j, x: i < n, lambda i, j, x: (i + 1, j - 2, x + tf.cast(j, x.dtype)), [0, 7, x])

    both(count, X, np.int32(3))
    both(count, X, np.int32(-3))


def test_a_condition_on_data_is_computed_in_the_loop():
    def double(x):
        return tf.while_loop(lambda x: tf.reduce_sum(tf.abs(x)) < 100, lambda x: [x * 2], [x])

    assert both(double, X)["Loop"] == 1
    both(double, X * 100)


def test_a_loop_that_is_left_and_steps_that_are_skipped():
    @tf.function
    def search(x, n):
        found = -1
        for i in tf.range(n):
            if i % 2 == 0:
                continue
            if x[i, 0] > 0.1:
                found = i
                break
        return found

    for n in (0, 1, 4):
        check(search, X, np.int32(n), open=EVERY)


def test_what_is_carried_may_change_its_shape():
    def grow(x, n):
        return tf.while_loop(
            lambda i, y: i < n, lambda i, y: (i + 1, tf.concat([y, x], 0)), [0, x],
            shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, 3])],
        )[1]  # fmt: skip

    both(grow, X, np.int32(3))


def test_loops_in_loops():
    @tf.function
    def table(x, n):
        total = tf.zeros_like(x)
        for i in tf.range(n):
            for j in tf.range(i, n):
                total += x * tf.cast(i * 10 + j, tf.float32)
        return total

    assert both(table, X, np.int32(3))["Loop"] == 2


def test_loops_read_variables_and_what_is_around_them():
    weight = tf.Variable(X)

    @tf.function
    def loop(x, n):
        scale = tf.reduce_sum(x)
        for _ in tf.range(n):
            x = tf.tanh(x * weight) * scale
        return x

    both(loop, X, np.int32(3))


# lists


def test_a_list_that_is_read_and_written_by_the_counter_becomes_a_scan():
    @tf.function
    def accumulate(x):
        rows = tf.TensorArray(tf.float32, size=tf.shape(x)[0]).unstack(x)
        sums, total = tf.TensorArray(tf.float32, size=tf.shape(x)[0]), tf.zeros_like(x[0])
        for i in tf.range(tf.shape(x)[0]):
            total += rows.read(i)
            sums = sums.write(i, total)
        return sums.stack(), total

    found = both(accumulate, X)
    assert found["Scan"] == 1
    assert not found["Loop"] + found["ScatterND"] + found["Range"]


def test_the_counter_may_be_used_besides():
    def scaled(x):
        return tf.map_fn(lambda pair: pair[0] * tf.cast(pair[1], tf.float32), (x, tf.range(tf.shape(x)[0])), tf.float32)

    assert both(scaled, X)["Scan"] == 1


def test_functions_of_rows():
    assert both(lambda x: tf.map_fn(lambda row: row * tf.reduce_sum(row), x), X)["Scan"] == 1
    assert both(lambda x: tf.scan(lambda a, row: a * 0.5 + row, x), X)["ScatterND"] == 0
    assert both(lambda x: tf.foldl(lambda a, row: a * 0.5 + row, x, tf.zeros([3])), X)["Scan"] == 1
    both(lambda x: tf.scan(lambda a, row: a * 0.5 + row, x, reverse=True), X)
    both(lambda x: tf.foldr(lambda a, row: a * 0.5 + row, x), X)
    both(lambda x: tf.vectorized_map(lambda row: row * tf.reduce_sum(row), x), X, open=False)


def test_a_list_that_grows_is_stacked():
    @tf.function
    def powers(x, n):
        rows = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
        for i in tf.range(n):
            x = x * 2
            rows = rows.write(i, x)
        return rows.stack()

    found = both(powers, X, np.int32(3))
    assert not found["ScatterND"]


def test_a_list_longer_than_the_loop_keeps_zeros():
    @tf.function
    def powers(x, n):
        rows = tf.TensorArray(tf.float32, size=6, element_shape=[4, 3])
        for i in tf.range(n):
            x = x * 2
            rows = rows.write(i, x)
        return rows.stack()

    both(powers, X, np.int32(3), open=False)


def test_a_list_longer_than_the_loop_keeps_what_was_there():
    @tf.function
    def change(x, n):
        rows = tf.TensorArray(tf.float32, size=tf.shape(x)[0]).unstack(x)
        for i in tf.range(n):
            rows = rows.write(i, x[0] + tf.cast(i, tf.float32))
        return rows.stack()

    both(change, X, np.int32(2))


def test_a_loop_that_ends_early_stacks_what_there_is():
    @tf.function
    def steps(x):
        rows, i = tf.TensorArray(tf.float32, size=0, dynamic_size=True), 0
        while tf.reduce_sum(tf.abs(x)) < 100:
            x = x * 2
            rows = rows.write(i, x)
            i += 1
        return rows.stack()

    assert not both(steps, X)["ScatterND"]


def test_a_list_written_in_a_branch():
    @tf.function
    def positive(x, n):
        rows = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
        for i in tf.range(n):
            if x[i, 0] > 0:
                rows = rows.write(rows.size(), x[i])
        return rows.stack()

    both(positive, X, np.int32(4))
    both(positive, X, np.int32(3), open={0: [0]})


def test_a_list_that_is_read_where_it_was_written():
    @tf.function
    def fibonacci(x, n):
        rows = tf.TensorArray(tf.float32, size=n, element_shape=[3], clear_after_read=False)
        rows = rows.write(0, x[0]).write(1, x[1])
        for i in tf.range(2, n):
            rows = rows.write(i, rows.read(i - 1) + rows.read(i - 2))
        return rows.stack()

    both(fibonacci, X, np.int32(5))


def test_a_list_in_a_list_of_loops():
    @tf.function
    def table(x, n):
        rows = tf.TensorArray(tf.float32, size=n)
        for i in tf.range(n):
            row = tf.TensorArray(tf.float32, size=n)
            for j in tf.range(n):
                row = row.write(j, x[i, 0] * x[j, 1])
            rows = rows.write(i, row.stack())
        return rows.stack()

    assert not both(table, X, np.int32(4))["ScatterND"]


def test_a_list_is_written_backwards():
    @tf.function
    def reverse(x):
        n = tf.shape(x)[0]
        rows = tf.TensorArray(tf.float32, size=n)
        for i in tf.range(n):
            rows = rows.write(n - 1 - i, x[i])
        return rows.stack()

    both(reverse, X)


def test_lists_outside_of_loops():
    @tf.function
    def lists(x):
        rows = tf.TensorArray(tf.float32, size=3, element_shape=[3]).write(2, x[0]).write(0, x[1])
        other = tf.TensorArray(tf.float32, size=4, clear_after_read=False).unstack(x)
        return rows.stack(), rows.read(1), other.gather([3, 1]), other.read(2), other.size()

    check(lists, X)
    check(lists, X, open=EVERY, simplify=True)


def test_elements_are_joined_along_their_first_dimension():
    @tf.function
    def lists(x):
        joined = tf.TensorArray(tf.float32, size=2, infer_shape=False).write(0, x[:1]).write(1, x[1:])
        split = tf.TensorArray(tf.float32, size=2, infer_shape=False, clear_after_read=False).split(x, [1, 3])
        every = tf.TensorArray(tf.float32, size=2).unstack(tf.stack([x, x + 1]))
        return joined.concat(), split.read(1), split.concat(), every.concat()

    check(lists, X)
    check(lists, X, open={0: [1]}, simplify=True)


def test_gradients_of_loops_push_and_pop():
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in tf.range(3):
                y = tf.sin(y)
        return tape.gradient(y, x)

    check(tf.function(gradient), X, open=EVERY)


def test_arrays_of_tensorflow_1():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        raw = tf.raw_ops
        handle, flow = raw.TensorArrayV3(size=2, dtype=tf.float32, dynamic_size=True)
        flow = raw.TensorArrayWriteV3(handle=handle, index=1, value=x[0], flow_in=flow)
        flow = raw.TensorArrayScatterV3(handle=handle, indices=[0, 2], value=x[1:3], flow_in=flow)
        rows = raw.TensorArrayGatherV3(handle=handle, indices=[0, 1, 2], dtype=tf.float32, flow_in=flow)
        row = raw.TensorArrayReadV3(handle=handle, index=2, dtype=tf.float32, flow_in=flow)
        size = raw.TensorArraySizeV3(handle=handle, flow_in=flow)
        handle, flow = raw.TensorArrayV3(size=2, dtype=tf.float32)
        flow = raw.TensorArraySplitV3(handle=handle, value=x, lengths=[1, 3], flow_in=flow)
        joined, lengths = raw.TensorArrayConcatV3(handle=handle, dtype=tf.float32, flow_in=flow)
        tf.identity_n([rows, row, tf.identity(size), joined, lengths], "out")
    translated = from_tensorflow(graph.as_graph_def(), output_names=[f"out:{i}" for i in range(5)])
    found = backend("onnxruntime").compile(translated)(X)
    for actual, wanted in zip(found, (X[[1, 0, 2]], X[2], 3, X, [1, 3]), strict=True):
        np.testing.assert_array_equal(actual, wanted)


# what there is no translation of


def refused(function: Any, *args: Any) -> str:
    with pytest.raises(ModelError) as error:
        from_tensorflow(function, *args)
    return str(error.value)


def test_loops_of_tensorflow_1_are_refused():
    with tf.Graph().as_default() as graph:
        tf.compat.v1.disable_control_flow_v2()
        try:
            x = tf.compat.v1.placeholder(tf.float32, [3], "x")
            tf.identity(tf.compat.v1.while_loop(lambda x: x[0] < 9.0, lambda x: x + 1, [x]), "y")
        finally:
            tf.compat.v1.enable_control_flow_v2()
    assert "save the model with TensorFlow 2" in refused(graph.as_graph_def())


def test_functions_that_call_themselves_are_refused():
    definition = tf.function(lambda x: x + 1).get_concrete_function(tf.TensorSpec([3])).graph.as_graph_def()
    inner = tf.function(lambda x: tf.nn.relu(x)).get_concrete_function(tf.TensorSpec([3]))
    function = definition.library.function.add()
    function.CopyFrom(inner.function_def)
    function.node_def[0].op = function.signature.name
    node = definition.node.add()
    node.name, node.op = "y", function.signature.name
    node.input.append("x")
    assert "calls itself" in refused(definition)


def test_the_choice_of_a_variable_is_refused():
    weights = [tf.Variable(X), tf.Variable(X)]

    @tf.function
    def choose(flag):
        handle = tf.cond(flag, lambda: weights[0].handle, lambda: weights[1].handle)
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)

    assert "a graph can only choose tensors" in refused(choose, tf.TensorSpec([], tf.bool))


def test_elements_without_a_size_are_refused():
    @tf.function
    def loop(x, n):
        rows = tf.TensorArray(tf.float32, size=n)
        for i in tf.range(n):
            kept = tf.boolean_mask(x, x > 0)
            if x[0] > 0:
                rows = rows.write(i, kept)
        return rows.stack()

    assert "element_shape" in refused(loop, tf.TensorSpec([3]), tf.TensorSpec([], tf.int32))


def test_what_is_refused_in_a_loop_is_said_once():
    @tf.function
    def loop(x):
        for _ in tf.range(3):
            x += tf.random.normal([3])
        return x

    text = refused(loop, tf.TensorSpec([3]))
    assert "randomness" in text
    assert "While" not in text


def test_variables_that_the_model_changes_are_refused_where_they_are_read():
    weight, count = tf.Variable(X), tf.Variable(0)

    @tf.function
    def loop(x):
        for _ in tf.range(3):
            x += weight
            weight.assign(x)
        return x

    assert "a graph has no state" in refused(loop, tf.TensorSpec([4, 3]))

    def counting(x):
        count.assign_add(1)
        return x + 1

    both(counting, X)
