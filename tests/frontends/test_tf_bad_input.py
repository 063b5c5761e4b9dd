"""What planish says of TensorFlow and Keras models that it cannot read: one line, and nothing of a file is executed."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import planish
from planish.frontends.tensorflow import UnsupportedOperations, from_tensorflow


def complaint(model, **options):
    """The one line that is said of a model."""
    with pytest.raises(planish.PlanishError) as caught:
        planish.load(model) if not options else from_tensorflow(model, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.fixture(scope="module")
def small():
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="dense")], name="small")


@pytest.fixture(scope="module")
def originals(tmp_path_factory, small):
    """A model in each form."""
    folder = tmp_path_factory.mktemp("originals")
    small.save(folder / "small.keras")
    small.save(folder / "small.h5")
    small.export(folder / "saved", verbose=False)
    return folder


@pytest.fixture
def files(originals, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(originals, tmp_path / "files")


# what models do not say


def test_models_that_were_never_called():
    class Net(keras.Model):
        def call(self, x):
            return x

    for model in (Net(name="net"), keras.Sequential([keras.layers.Dense(3)], name="net")):
        assert complaint(model) == (
            "net was never called, so its inputs are not known: call it once, or give example inputs: (model, inputs)"
        )


def test_models_that_take_several_arguments():
    class Net(keras.Model):
        def call(self, x, y):
            return x + y

    model = Net(name="net")
    model(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert complaint(model).startswith("net takes x, y, and does not say how: give example inputs")


def test_functions_and_modules_without_inputs():
    assert complaint(tf.function(lambda x: x)).startswith("the function does not say what its inputs are: give example")
    assert complaint(tf.Module()).endswith("module is a Module without any")


def test_errors_of_the_users_code_name_its_line():
    def function(x):
        return tf.reshape(x, [5])

    text = complaint((tf.function(function), np.ones((2, 3), np.float32)))
    assert text.startswith("cannot trace function: ValueError: ")
    assert text.endswith(f"{__file__}:{function.__code__.co_firstlineno + 1}")


def test_control_flow_by_values_in_a_layer():
    class Net(keras.Model):
        def call(self, x):
            return x if keras.ops.sum(x) > 0 else -x

    text = complaint((Net(name="net"), np.ones((2, 3), np.float32)))
    assert text.startswith("cannot trace net: control flow depends on the values of a tensor: use keras.ops.cond")
    assert text.endswith(f"at {__file__}:{Net.call.__code__.co_firstlineno + 1}")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"y": {0: "n"}}, "dynamic_shapes names y; the inputs are x"),
        ({"x": {3: "n"}}, "axes 3 of a tensor of rank 2"),
        ({"x": {0: 3}}, "sizes are called by words"),
        ({"x": "n"}, "write axes and names"),
        ([{}, {}], "one entry for each of 1 inputs"),
        ({"x": {1: "n"}}, "the model itself fixes the size of axis 1 at 4"),
    ],
)
def test_dynamic_shapes_that_do_not_fit(small, shapes, words):
    assert words in complaint((small, (), shapes))


def test_strings_and_ragged_and_sparse_tensors():
    words = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None], tf.string)])
    assert "input 'x': strings: ONNX computes with numbers" in complaint(words)
    ragged, sparse = tf.ragged.constant([[1.0], []]), tf.sparse.from_dense([[1.0]])
    identity = tf.function(lambda x: x)
    assert complaint((identity, ragged)).endswith("input 'x' is ragged: pass dense tensors and a mask")
    assert complaint((identity, sparse)).endswith("input 'x' is sparse: pass a dense tensor")
    assert complaint((identity, object())).endswith("input 'x' is a object, and no tensor")
    for takes, spec in (("ragged", tf.RaggedTensorSpec([2, None])), ("sparse", tf.SparseTensorSpec([2, 2]))):
        assert f"takes a tensor that is {takes}: pass" in complaint(tf.function(lambda x: x, input_signature=[spec]))
    returns = tf.function(lambda x: tf.RaggedTensor.from_tensor(x), input_signature=[tf.TensorSpec([2, 2])])
    assert "returns a tensor that is ragged" in complaint(returns)
    for kind in ("sparse", "ragged"):
        model = keras.Model(inputs := keras.Input((4,), name="x", **{kind: True}), keras.layers.Identity()(inputs))
        assert f"input 'x' is {kind}: pass" in complaint(model)


def test_everything_without_a_translation_is_listed():
    def function(x):
        y = tf.linalg.inv(x)
        return tf.py_function(lambda v: v, [y], tf.float32), tf.strings.length(tf.strings.as_string(x))

    with pytest.raises(UnsupportedOperations) as caught:
        from_tensorflow(function, np.eye(2, dtype=np.float32))
    assert {r.operation for r in caught.value.refusals} >= {"MatrixInverse", "EagerPyFunc", "AsString"}
    assert f"{__file__}:{function.__code__.co_firstlineno + 1}" in str(caught.value)


# paths


def test_paths_that_are_no_models(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    assert complaint(tmp_path / "none.keras") == f"no such file: {tmp_path / 'none.keras'}"
    assert complaint(tmp_path / "empty") == f"{tmp_path / 'empty'}: no SavedModel: it has no file saved_model.pb"
    notes = complaint(tmp_path / "notes.txt")
    assert "planish reads .onnx, .pt2, .keras, .h5 and .tflite files, SavedModel folders" in notes


# .keras and .h5


def rewritten(path, change=None, add=()):
    """Write a .keras file again with another description, and with more in it."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    if change is not None:
        config = json.loads(parts["config.json"])
        change(config)
        parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in [*parts.items(), *add]:
            new.writestr(name, content)
    return path


def replace_layer(entry):
    def change(config):
        config["config"]["layers"][1] = entry

    return change


def test_damaged_files_of_keras(files):
    whole = (files / "small.keras").read_bytes()
    (files / "small.keras").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in complaint(files / "small.keras")
    (files / "small.h5").write_bytes((files / "small.h5").read_bytes()[:3000])
    assert "damaged HDF5 file, or none" in complaint(files / "small.h5")
    (files / "empty.keras").write_bytes(b"")
    assert "a damaged .keras file, or none" in complaint(files / "empty.keras")
    with zipfile.ZipFile(files / "other.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    assert complaint(files / "other.keras").endswith("no .keras file: it has no config.json")
    rewritten(files / "other.keras", add=[("config.json", "[" * 100_000)])
    assert "a damaged .keras file" in complaint(files / "other.keras")


def test_weights_without_a_model(files, small):
    small.save_weights(files / "small.weights.h5")
    assert complaint(files / "small.weights.h5").endswith(
        "it holds weights without a model: load them into the model, and give that"
    )


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "assets/../../outside", "code.py", "a\\b"])
def test_members_that_no_keras_file_has(files, name):
    path = rewritten(files / "small.keras", add=[(name, "x")])
    assert "no .keras file: it holds" in complaint(path)


def test_members_that_grow(files):
    path = rewritten(files / "small.keras", add=[("assets/zeros", bytes(50_000_000))])
    assert "assets/zeros would grow from" in complaint(path)


def test_custom_objects_are_named_all_at_once(tmp_path):
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    class Other(Own):
        pass

    model = keras.Sequential([keras.Input((4,)), Own(), Other(), keras.layers.Dense(2, activation=lambda x: x)][:3])
    model.save(tmp_path / "own.keras")
    model.save(tmp_path / "own.h5")
    text = complaint(tmp_path / "own.keras")
    assert ": needs custom objects: Own, Other; import what registers it" in text.replace("Other, Own", "Own, Other")
    assert "Unknown layer: 'Own'; import what registers it" in complaint(tmp_path / "own.h5")
    with keras.saving.custom_object_scope({"Own": Own, "Other": Other}):
        assert len(planish.load(tmp_path / "own.keras")) == 1


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_lambda_layers_with_code_are_not_executed(tmp_path, form):
    path = tmp_path / f"lambda.{form}"
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)]).save(path)
    assert complaint(path).endswith(
        "a Lambda layer holds Python code, which planish does not execute: write a layer instead"
    )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "x"}}, "another SavedModel"),
        ({"class_name": "TorchModuleWrapper", "module": "keras.layers", "config": {}}, "a pickled PyTorch module"),
        ({"class_name": "Popen", "module": "subprocess", "config": {"args": "true"}}, "needs custom objects: Popen"),
        (
            {"class_name": "function", "module": "keras.utils", "config": "get_file", "registered_name": "get_file"},
            "calls keras.utils.get_file, which is no part of a model",
        ),
        (
            {"class_name": "StringLookup", "module": "keras.layers", "config": {"vocabulary": "/etc/passwd"}},
            "StringLookup reads the file '/etc/passwd'",
        ),
    ],
)
def test_what_a_description_may_not_name(files, entry, words):
    assert words in complaint(rewritten(files / "small.keras", replace_layer(entry)))


def test_weights_in_other_files(files):
    with h5py.File(files / "small.h5", "a") as file:
        file["outside"] = h5py.ExternalLink("/etc/passwd", "/")
    assert "'outside' is a link to another file" in complaint(files / "small.h5")
    inside = io.BytesIO()
    with h5py.File(inside, "w") as file:
        file.create_dataset("w", (4,), "f4", external=[(str(files / "secret.bin"), 0, h5py.h5f.UNLIMITED)])
    with zipfile.ZipFile(files / "small.keras") as old:
        parts = {n: old.read(n) for n in old.namelist()} | {"model.weights.h5": inside.getvalue()}
    with zipfile.ZipFile(files / "small.keras", "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)
    assert "'w' lies in another file, which planish does not read" in complaint(files / "small.keras")


# SavedModels


def changed(folder, change):
    """Change the SavedModel of a folder."""
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(saved.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def test_signatures_that_are_missing(files):
    assert complaint(f"{files / 'saved'}:other").endswith("has no signature 'other'; it has serve, serving_default")
    assert complaint(files / "saved", signature="other").endswith("it has serve, serving_default")
    changed(files / "saved", lambda meta: meta.signature_def.clear())
    assert complaint(files / "saved").endswith("has no signatures: save it with signatures=…")


def test_damaged_saved_models(files):
    path = files / "saved" / "saved_model.pb"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert complaint(files / "saved").endswith("saved_model.pb is damaged: no SavedModel")
    path.write_bytes(b"")
    assert complaint(files / "saved").endswith("saved_model.pb is damaged: a SavedModel without graphs")
    path.write_bytes(whole)

    def cut(meta):
        name = next(iter(meta.signature_def["serving_default"].outputs.values())).name.partition(":")[0]
        (node,) = [n for n in meta.graph_def.node if n.name == name]
        node.input[0] = "nowhere"

    assert "there is no node 'nowhere'" in complaint(changed(files / "saved", cut))


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_variables_that_are_missing_or_damaged(files, ending):
    path = files / "saved" / "variables" / f"variables.{ending}"
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    assert ("is damaged" if ending == "index" else "needs bytes") in complaint(files / "saved")
    path.unlink()
    assert f"variables/variables.{ending} is missing" in complaint(files / "saved")
    (files / "elsewhere").write_bytes(whole)
    path.symlink_to(files / "elsewhere")
    assert "is a link that leads out of the folder" in complaint(files / "saved")


def test_every_byte_of_an_index_may_be_wrong(files):
    path = files / "saved" / "variables" / "variables.index"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with contextlib.suppress(planish.PlanishError):
            planish.load(files / "saved")


def test_tables_and_unknown_operations(tmp_path, files):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), 0)
    module = tf.Module()
    module.table = table
    module.find = tf.function(lambda x: table.lookup(tf.strings.as_string(x)), input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, tmp_path / "table", signatures=module.find)
    text = complaint(tmp_path / "table")
    assert "tables: look up before the model, and give it the ids" in text

    def rename(meta):
        for function in meta.graph_def.library.function:
            for node in function.node_def:
                if node.op == "MatMul":
                    node.op = "Unheard"

    text = complaint(changed(files / "saved", rename))
    assert text.endswith("TensorFlow does not know the operation Unheard: import the library that registers it first")


def test_functions_that_call_themselves_or_each_other_without_end(files):
    def loop(meta):
        for function in meta.graph_def.library.function:
            for node in function.node_def:
                if "f" in node.attr:
                    node.attr["f"].func.name = function.signature.name

    assert "calls itself" in complaint(changed(files / "saved", loop))
    graph_def = GraphDef()
    graph_def.node.add(name="x", op="Placeholder").attr["dtype"].type = 1
    for i in range(40):
        function = graph_def.library.function.add()
        function.signature.name = f"f{i}"
        for number in range(2):
            node = function.node_def.add(name=f"n{number}", op="PartitionedCall")
            node.attr["f"].func.name = f"f{i + 1}"
    node = graph_def.node.add(name="y", op="PartitionedCall", input=["x"])
    node.attr["f"].func.name = "f0"
    assert "call each other more than" in complaint(graph_def)


# GraphDefs


def test_graph_defs_that_are_damaged_or_lack_something(tmp_path):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        tf.add(x, np.ones((40, 40), np.float32)[:1, :2], name="y")
    graph_def = graph.as_graph_def()
    assert "there is no node 'z'" in complaint(graph_def, output_names=["z"])
    assert "there is no tensor 'y:3'" in complaint(graph_def, output_names=["y:3"])
    assert "has 1 inputs (x), and 2 are given" in complaint_of(graph_def, tf.TensorSpec([1, 2]), tf.TensorSpec([1, 2]))
    path = tmp_path / "graph.pb"
    path.write_bytes(graph_def.SerializeToString()[:-9])
    assert "no GraphDef, or damaged" in complaint(path)
    path.write_bytes(b"\x0a\x00")
    assert "no GraphDef, or an empty one" in complaint(path)
    path.write_bytes(b"\x08")
    assert str(path) in complaint(path)
    del graph_def.node[1].attr["value"]
    assert "a damaged graph" in complaint(graph_def)


def complaint_of(model, *args):
    with pytest.raises(planish.PlanishError) as caught:
        from_tensorflow(model, *args)
    return str(caught.value)


# the command line


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "planish", *map(str, arguments)],
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_line_says_one_line_and_nothing_of_tensorflows(files):
    (files / "model.py").write_text(
        "import tensorflow as tf\nimport keras\n\ndef build():\n"
        "    return keras.Sequential([keras.Input((4,), name='x'), keras.layers.Dense(3)])\n"
    )
    done = command("inspect", f"{files}/model.py:build")
    assert (done.returncode, done.stderr) == (0, "")
    assert "float[batch,3]" in done.stdout
    done = command("inspect", f"{files / 'saved'}:other")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("planish: ")


def test_a_missing_extra_is_one_line(files):
    (files / "tensorflow.py").write_text("raise ModuleNotFoundError('no', name='tensorflow')")
    for model in ("saved", "small.keras"):
        done = command("inspect", files / model, PYTHONPATH=str(files), KERAS_BACKEND="tensorflow")
        assert done.returncode == 2
        assert "need tensorflow: pip install 'planish[tensorflow]'" in done.stderr
        assert done.stderr.count("\n") == 1
