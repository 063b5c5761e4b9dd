"""What stands for a TensorFlow or Keras model: names, sizes, weights and origins of what `planish.load` makes of it."""

import inspect
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import execute
from tensorflow.python.eager.polymorphic_function import concrete_function as function
from tensorflow.python.saved_model import load

import planish
from planish.backends import backend
from planish.frontends.tensorflow import TensorflowModel, from_tensorflow
from planish.ir.errors import ModelError

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


def inputs_of(graph):
    return {v.name: str(v.type) for v in graph.inputs}


def outputs_of(graph):
    return {o.name: str(o.type) for o in graph.output_info}


def weights_of(graph):
    return {v.const.name for node in graph.walk() for v in node.operands if v is not None and v.const is not None} - {
        ""
    }


def assert_computes(graph, arrays, wanted):
    found = backend("onnxruntime").compile(graph)(*arrays)
    wanted = [np.asarray(w) for w in tf.nest.flatten(wanted)]
    assert len(found) == len(wanted)
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5)


class Block(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.proj = keras.layers.Dense(4, name="proj")
        self.norm = keras.layers.LayerNormalization(name="norm")

    def call(self, x):
        return self.norm(self.proj(x)) * 2 + x  # the line of the multiplication


LINE = f"{__file__}:{inspect.getsourcelines(Block.call)[1] + 1}"


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.blocks = [Block(name=f"block{i}") for i in range(2)]
        self.head = keras.layers.Dense(3, name="head")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x), "hidden": x}


class Scaled(keras.Model):
    """Ids and a flag; its ``call`` knows nothing of training."""

    def __init__(self):
        super().__init__(name="scaled")
        self.embed = keras.layers.Embedding(9, 4, name="embed")

    def call(self, ids, mask=None, double=False):
        x = self.embed(ids) * (2.0 if double else 1.0)
        return x if mask is None else x * keras.ops.cast(mask, "float32")[..., None]


def image_model():
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    inner = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(2, 3, name="conv")], name="inner")
    return keras.Model({"image": image}, [inner(x), x], name="images")


def text_model():
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype="bool", name="mask")
    x = keras.layers.Embedding(9, 4, name="embed")(ids)
    attention = keras.layers.MultiHeadAttention(2, 2, name="attention", dropout=0.5)
    x = attention(x, x, attention_mask=keras.ops.expand_dims(mask, 1))
    return keras.Model([ids, mask], {"encoded": keras.layers.Dropout(0.5)(x)}, name="texts")


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable([1.0, 2.0], name="scale")

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def encode(self, x):
        return x * self.scale

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="code"),
            {"b": tf.TensorSpec([2]), "a": tf.TensorSpec([2])},
        ]
    )
    def decode(self, x, shift):
        return {"whole": x / self.scale, "shifted": x + shift["b"] - shift["a"]}


@pytest.fixture(scope="module")
def net():
    model = Net()
    model(floats(2, 5, 4))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel with two signatures."""
    folder = tmp_path_factory.mktemp("saved") / "module"
    module = Module()

    @tf.function(
        input_signature=[tf.TensorSpec([None, 2], tf.float32, name="z"), tf.TensorSpec([None, 2], tf.float32, name="a")]
    )
    def two(z, a):
        return {"difference": z - a * module.scale, "all": z}

    tf.saved_model.save(module, folder, signatures={"encode": module.encode, "two": two})
    return folder


# Keras models


def test_functional_models_keep_the_names_of_inputs_and_outputs():
    model, x = image_model(), floats(2, 8, 8, 3)
    graph = planish.load(model)
    assert graph.name == "images"
    assert inputs_of(graph) == {"image": "float[batch,8,8,3]"}
    assert list(outputs_of(graph).items()) == [("inner", "float[batch,4,4,2]"), ("conv", "float[batch,6,6,4]")]
    assert_computes(graph, [x], model({"image": x}))


def test_weights_and_nodes_are_called_after_the_place_of_their_layer():
    graph = planish.load(image_model())
    assert weights_of(graph) == {"conv.kernel", "conv.bias", "inner.conv.kernel", "inner.conv.bias"}
    assert {node.origin.module for node in graph if node.op == "Conv"} == {"conv", "inner.conv"}


def test_dictionaries_of_outputs_and_several_inputs_with_open_sizes():
    model = text_model()
    ids, mask = RNG.integers(0, 9, (2, 6), np.int32), np.tri(2, 6, 3, bool)
    shapes = {"ids": [None, "length"], "mask": {1: "length"}}
    for given in ((model, (), shapes), (model, (ids, mask), shapes), (model, ([ids, mask],), shapes)):
        graph = planish.load(given)
        assert inputs_of(graph) == {"ids": "int32[batch,length]", "mask": "bool[batch,length]"}
        assert outputs_of(graph) == {"encoded": "float[batch,length,4]"}
        assert_computes(graph, [ids, mask], model([ids, mask]))
    assert inputs_of(planish.load(model)) == {"ids": "int32[batch,ids_dim1]", "mask": "bool[batch,mask_dim1]"}


def test_sequential_models():
    model, x = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)]), floats(2, 4)
    graph = planish.load(model)
    assert (inputs_of(graph), outputs_of(graph)) == ({"x": "float[batch,4]"}, {"output": "float[batch,3]"})
    assert_computes(graph, [x], model(x))


def test_subclassed_models_once_called(net):
    x = floats(3, 5, 4)
    graph = planish.load(net)
    assert inputs_of(graph) == {"x": "float[batch,5,4]"}
    assert outputs_of(graph) == {"hidden": "float[batch,5,4]", "logits": "float[batch,5,3]"}
    assert_computes(graph, [x], net(x))


def test_subclassed_models_with_examples():
    model, x = Net(), floats(2, 5, 4)
    assert inputs_of(planish.load((model, x))) == {"x": "float[2,5,4]"}
    graph = planish.load((model, (x,), {"x": {0: "b", 1: "length"}}))
    assert inputs_of(graph) == {"x": "float[b,length,4]"}
    y = floats(1, 7, 4)
    assert_computes(graph, [y], model(y))


def test_the_line_of_a_layers_own_code_is_the_source(net):
    graph = planish.load(net)
    sources = {node.origin.module: node.origin.source for node in graph if node.op == "Mul"}
    assert sources["block0"] == sources["block1"] == LINE
    assert {"block0.proj", "block0.norm", "block1.norm", "head"} <= {node.origin.module for node in graph}


def test_integers_that_a_called_model_took_are_found_out():
    model = Scaled()
    ids = RNG.integers(0, 9, (2, 3), np.int32)
    model(ids)
    graph = planish.load(model)
    assert inputs_of(graph) == {"ids": "int32[batch,3]"}
    assert_computes(graph, [ids], model(ids))


def test_keyword_arguments_and_flags_of_a_call():
    model = Scaled()
    ids, mask = RNG.integers(0, 9, (2, 3), np.int64), np.array([[True, False, True]] * 2)
    graph = from_tensorflow(
        model, ids, kwargs={"mask": mask, "double": True}, dynamic_shapes={"mask": {1: "n"}, "ids": {1: "n"}}
    )
    assert inputs_of(graph) == {"ids": "int64[2,n]", "mask": "bool[2,n]"}
    assert_computes(graph, [ids, mask], model(ids, mask=mask, double=True))


def test_layers_with_examples():
    layer, x = keras.layers.Dense(3, name="dense"), floats(2, 4)
    graph = planish.load((layer, x))
    assert weights_of(graph) == {"kernel", "bias"}
    assert_computes(graph, [x], layer(x))


def test_weights_are_the_memory_of_tensorflow():
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300, name="wide")])
    graph = planish.load(model)
    constants = [v.const for node in graph for v in node.operands if v.const is not None]
    (kernel,) = [c for c in constants if c.name == "wide.kernel"]
    handle = model.layers[0].kernel.value.handle
    own = np.asarray(tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32))
    assert np.shares_memory(kernel.numpy(), own)


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_files_of_keras(tmp_path, form):
    model, x = image_model(), floats(2, 8, 8, 3)
    path = tmp_path / f"model.{form}"
    model.save(path)
    graph = planish.load(path)
    assert inputs_of(graph) == {"image": "float[batch,8,8,3]"}
    assert_computes(graph, [x], model({"image": x}))


# functions and modules


def test_functions_are_taken_with_their_signature_or_with_their_only_trace():
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def stated(first):
        return first + 1

    @tf.function
    def called(x, times=3):
        return {"result": x * times}

    assert inputs_of(planish.load(stated)) == {"first": "float[first_dim0,3]"}
    called(tf.ones((2,)))
    graph = planish.load(called)
    assert (graph.name, inputs_of(graph), outputs_of(graph)) == ("called", {"x": "float[2]"}, {"result": "float[2]"})
    called(tf.ones((2, 2), tf.float64))
    with pytest.raises(planish.PlanishError, match=r"called was traced 2 times \(float32\[2\], 3; float64\[2,2\], 3\)"):
        planish.load(called)
    assert inputs_of(planish.load((called, np.ones((4, 2), np.int32), {"x": ["n"]}))) == {"x": "int32[n,2]"}
    assert inputs_of(planish.load(called.get_concrete_function(tf.TensorSpec([None])))) == {"x": "float[x_dim0]"}


def test_nested_arguments_are_called_after_their_place():
    def function(x, rest, *, scale):
        return x * rest["b"] - rest["a"][0] * scale

    arrays = {"x": floats(2), "b": floats(2), "a": floats(2), "scale": floats(2)}
    graph = from_tensorflow(
        function, arrays["x"], {"b": arrays["b"], "a": [arrays["a"]]}, kwargs={"scale": arrays["scale"]}
    )
    assert list(inputs_of(graph)) == ["x", "rest.a_0", "rest.b", "scale"]
    wanted = function(arrays["x"], {"b": arrays["b"], "a": [arrays["a"]]}, scale=arrays["scale"])
    assert_computes(graph, [arrays["x"], arrays["a"], arrays["b"], arrays["scale"]], wanted)


def test_modules_with_several_functions():
    module, x = Module(), floats(3, 2)
    graph = from_tensorflow(module, signature="encode")
    assert weights_of(graph) == {"scale"}
    assert_computes(graph, [x], module.encode(x))
    graph = TensorflowModel(module, signature="decode").graph()
    assert list(inputs_of(graph)) == ["code", "shift.a", "shift.b"]
    assert list(outputs_of(graph)) == ["shifted", "whole"]
    a, b = floats(2), floats(2)
    assert_computes(graph, [x, a, b], module.decode(x, {"a": a, "b": b}))
    with pytest.raises(planish.PlanishError, match=r"decode, encode: say which \(signature=…\)"):
        planish.load(module)


def test_names_that_are_given():
    graph = from_tensorflow(lambda x: (x, x + 1), floats(2), input_names=["in"], output_names=["same", "more"])
    assert (list(inputs_of(graph)), list(outputs_of(graph))) == (["in"], ["same", "more"])
    for names in ({"input_names": ["a", "b"]}, {"output_names": ["a", "a"]}, {"output_names": ["x", "y"]}):
        with pytest.raises(planish.PlanishError, match="as many different names"):
            from_tensorflow(lambda x: (x, x + 1), floats(2), **names)


def test_sources_are_lines_of_the_users_functions():
    def function(x):
        y = tf.exp(x)
        return y + 1

    line = inspect.getsourcelines(function)[1] + 1
    (node,) = [n for n in from_tensorflow(function, floats(2)) if n.op == "Exp"]
    assert node.origin.source == f"{__file__}:{line}"


# saved models and GraphDefs


def test_saved_models_keep_names_and_order_of_a_signature(saved):
    graph = planish.load(f"{saved}:two")
    assert set(inputs_of(graph)) == {"a", "z"}
    assert list(outputs_of(graph)) == ["all", "difference"]
    loaded = tf.saved_model.load(saved)
    arrays = {"a": floats(3, 2), "z": floats(3, 2)}
    wanted = loaded.signatures["two"](**arrays)
    assert_computes(graph, [arrays[n] for n in inputs_of(graph)], [wanted[n] for n in outputs_of(graph)])
    assert inputs_of(graph)["a"] == "float[batch,2]"
    again = from_tensorflow(loaded, signature="two", dynamic_shapes={"a": {0: "n"}})
    assert inputs_of(again) == {"a": "float[n,2]", "z": "float[z_dim0,2]"}


def test_variables_of_saved_models_are_mapped_and_not_read(tmp_path):
    class Wide(tf.Module):
        def __init__(self):
            super().__init__()
            self.tables = [tf.Variable(floats(100, 100), name="same") for _ in range(2)]

        @tf.function(input_signature=[tf.TensorSpec([None, 100], tf.float32)])
        def __call__(self, x):
            return x @ self.tables[0] @ self.tables[1]

    model, x = Wide(), floats(2, 100)
    tf.saved_model.save(model, tmp_path / "wide", signatures=model.__call__)
    graph = planish.load(tmp_path / "wide")
    tensors = [v.const for node in graph for v in node.operands if v.const is not None]
    assert [type(t).__name__ for t in tensors] == ["FileTensor"] * 2
    assert_computes(graph, [x], model(x))


def test_nothing_of_a_saved_model_is_run(saved, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("it was loaded")

    monkeypatch.setattr(tf.saved_model, "load", forbidden)
    for module, name in ((load, "load_partial"), (execute, "execute"), (function, "ConcreteFunction")):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr(tf.compat.v1.Session, "run", forbidden)
    assert len(planish.load(f"{saved}:encode")) == 1


def test_models_that_keras_exports(tmp_path, net):
    x = floats(2, 5, 4)
    net.export(tmp_path / "net", verbose=False)
    graph = planish.load(tmp_path / "net")
    assert set(outputs_of(graph)) == {"hidden", "logits"}
    assert_computes(graph, [x], net(x))


def test_frozen_graphs(tmp_path):
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model, x = image_model(), floats(2, 8, 8, 3)
    function = tf.function(lambda image: model({"image": image}))
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(tf.TensorSpec([None, 8, 8, 3])))
    graph_def = frozen.graph.as_graph_def()
    (tmp_path / "frozen.pb").write_bytes(graph_def.SerializeToString())
    for source in (graph_def, tmp_path / "frozen.pb"):
        graph = planish.load(source)
        assert inputs_of(graph) == {"image": "float[image_dim0,8,8,3]"}
        assert list(outputs_of(graph)) == ["Identity", "Identity_1"]
        assert_computes(graph, [x], model({"image": x}))
    named = next(n.name for n in graph_def.node if n.op == "Relu" or n.name.endswith("BiasAdd"))
    part = from_tensorflow(graph_def, tf.TensorSpec([1, 8, 8, 3]), output_names=[named])
    assert inputs_of(part) == {"image": "float[1,8,8,3]"}
    assert outputs_of(part) == {named: "float[1,6,6,4]"}
    cut = from_tensorflow(graph_def, input_names=[named], output_names=["Identity"])
    assert inputs_of(cut) == {named: f"float[{named.replace('/', '_')}_dim0,6,6,4]"}


def test_graphs_of_tensorflow_1_with_variables(tmp_path):
    v1 = tf.compat.v1
    x = floats(3, 4)
    with tf.Graph().as_default(), v1.Session() as session:
        given = v1.placeholder(tf.float32, [None, 4], "given")
        kernel = v1.get_variable("kernel", [4, 4], use_resource=False)
        bias = v1.get_variable("bias", [4], use_resource=True)
        result = tf.add(tf.matmul(given, kernel), bias, name="result")
        session.run(v1.global_variables_initializer())
        wanted = session.run(result, {given: x})
        v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": given}, {"y": result})
    graph = planish.load(tmp_path / "old")
    assert (inputs_of(graph), outputs_of(graph)) == ({"x": "float[batch,4]"}, {"y": "float[batch,4]"})
    assert_computes(graph, [x], wanted)


# one process, several frameworks

BACKENDS = """
import json, os, sys
sys.modules["tensorflow"] = None  # it is not there
import keras, numpy as np, planish
from planish.backends import backend

image = keras.Input((None, None, 3), name="image")
x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
x = keras.layers.BatchNormalization(name="norm")(x)
model = keras.Model(image, {"pooled": keras.layers.GlobalAveragePooling2D()(x), "features": x}, name="images")
for variable in model.variables:
    variable.assign(np.random.default_rng(0).random(variable.shape))
array = np.random.default_rng(0).random((3, 10, 12, 3)).astype("float32")
wanted = model(array, training=False)
model.save(sys.argv[1])
graph = planish.load(sys.argv[1])
results = dict(zip([o.name for o in graph.output_info], backend("onnxruntime").compile(graph)(array)))
found = {
    "backend": keras.backend.backend(),
    "inputs": {v.name: str(v.type) for v in graph.inputs},
    "outputs": {o.name: str(o.type) for o in graph.output_info},
    "error": max(float(np.abs(results[n] - keras.ops.convert_to_numpy(wanted[n])).max()) for n in wanted),
}

print(json.dumps(found))
"""


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_keras_computes_with_something_else(tmp_path, name):
    environment = os.environ | {"KERAS_BACKEND": name, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", BACKENDS, str(tmp_path / "model.keras")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout.splitlines()[-1])
    assert model["backend"] == name
    assert model["inputs"] == {"image": "float[batch,image_dim1,image_dim2,3]"}
    assert model["outputs"] == {"features": "float[batch,image_dim1,image_dim2,4]", "pooled": "float[batch,4]"}
    assert model["error"] < 1e-5


def test_tensorflow_torch_and_jax_are_read_in_one_process():
    import jax.numpy as jnp
    import torch

    from planish.frontends.jax import from_jax

    x = floats(2, 4)
    graphs = [
        planish.load((keras.layers.ReLU(), x)),
        planish.load((torch.nn.ReLU().eval(), (torch.from_numpy(x),))),
        from_jax(lambda x: jnp.maximum(x, 0), x),
    ]
    for graph in graphs:
        assert_computes(graph, [x], np.maximum(x, 0))


def test_operations_stay_as_they_are_on_request() -> None:
    spec = tf.TensorSpec([None, 3], name="x")
    graph = from_tensorflow(lambda x: tf.exp(tf.math.lgamma(x)), spec, opaque=["Lgamma"])
    node = next(n for n in graph if n.op == "tensorflow.Lgamma")
    assert (str(node.result.type), dict(node.attrs)) == ("float[?,3]", {"T": "float32"})
    assert graph.opsets["tensorflow"] == 1
    planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    assert [n.op for n in graph] == ["tensorflow.Lgamma", "Exp"]


@pytest.mark.parametrize("opaque", [["Digamma"], "Exp"])
def test_operations_that_are_to_stay_must_be_there(opaque: object) -> None:
    with pytest.raises(ModelError, match=r"opaque names .* the model has no such operation"):
        from_tensorflow(tf.exp, tf.TensorSpec([None, 3]), opaque=opaque)
