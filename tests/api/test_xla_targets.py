"""The command line and Python API for XLA and TPU targets."""

import json
import zipfile

import numpy as np
import pytest

import planish


def test_stablehlo_is_written_compared_and_measured(cli, model, tmp_path):
    out = tmp_path / "out.stablehlo"
    done = cli("optimize", model, "--target", "xla", "-o", out, "--json")
    assert done.code == 0
    report = done.json
    assert report["written"] == {
        "platforms": ["cpu", "cuda", "tpu"],
        "inputs": {"x": "float32[batch,8]"},
        "weights": 3,
    }
    assert report["verification"]["verdict"] == "passed"
    compared = cli("compare", model, out, "--target", "xla", "--json").json
    assert compared["outputs"][0]["relative"] < 1e-6
    assert cli("bench", model, out, "--target", "xla").code == 0


def test_text_names_the_platforms_and_inputs(cli, model, tmp_path):
    done = cli("optimize", model, "--target", "xla:cpu", "-o", tmp_path / "out.stablehlo", "--no-measure")
    assert "StableHLO for cpu: x float32[batch,8]; 3 weights" in done.out


def test_tpu_programs_are_compiled_with_their_report(cli, model, tmp_path):
    out = tmp_path / "out.tpu"
    done = cli("optimize", model, "--target", "tpu:v5e", "-o", out, "--sizes", "batch=2", "--json")
    assert done.code == 0
    written = done.json["written"]
    assert written["fits"] is True
    assert sum(written["float_products"].values()) == 2
    assert done.json["latency"]["before"]["runs"] == 0  # estimated, for the target is not here
    with zipfile.ZipFile(out) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert archive.getinfo("executable").file_size > 10000
    assert manifest["sizes"] == {"batch": 2}
    assert manifest["report"] == written
    assert len(manifest["weights"]) == 3


def test_onnx_files_can_be_made_for_the_same_targets(cli, model, tmp_path):
    out = tmp_path / "out.onnx"
    assert cli("optimize", model, "--target", "tpu:v5e", "-o", out, "--no-measure").code == 0
    x = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype("f")}
    before, after = (planish.backends.backend("reference").run(planish.load(p), x)["y"] for p in (model, out))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("o.tpu", (), "a TPU program has fixed sizes: give batch=N"),
        ("o.tpu", ("--sizes", "batch"), "--sizes 'batch': write name=number, with commas between"),
        ("o.tpu", ("--sizes", "batch=2", "--mesh", "model=2"), "mesh 'model=2' has 2 chips, the topology 1"),
        ("o.tpu", ("--sizes", "batch=2,length=3"), "no input has a size 'length': the named sizes are batch"),
        ("o.engine", (), "call it something.tpu or something.onnx"),
        ("o.tpu", ("--sparse",), "--sparse is for ONNX files"),
        ("o.onnx", ("--sizes", "batch=2"), "--sizes, --mesh and --set are for programs, not for ONNX files"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(cli, model, tmp_path, name, arguments, message):
    target = ("--target", "tpu:v5e", "--verify", "off", "--no-measure")
    done = cli("optimize", model, "-o", tmp_path / name, *target, *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [("tpu:v1", "no TPU 'v1'"), ("xla:abacus", "no platform 'abacus'"), ("tpu", "no TPU ''")],
)
def test_unknown_variants_are_refused(cli, model, tmp_path, target, message):
    suffix = "tpu" if target.startswith("tpu") else "stablehlo"
    done = cli("optimize", model, "--target", target, "-o", tmp_path / f"o.{suffix}", "--verify", "off", "--no-measure")
    assert done.code == 2
    assert message in done.err


def test_a_jax_function_is_a_model_on_the_command_line(cli, tmp_path):
    source = tmp_path / "net.py"
    source.write_text(
        """
import jax
import jax.numpy as jnp
import numpy as np
from planish.frontends.jax import JaxModel

PARAMS = {"w": np.eye(4, 3, dtype="f"), "b": np.ones(3, "f")}


def build():
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    apply = lambda params, x: {"y": jax.nn.relu(x @ params["w"] + params["b"])}
    return JaxModel(apply, args=(x,), params=PARAMS, dynamic_shapes={"x": "batch, 4"})
"""
    )
    out = tmp_path / "net.onnx"
    assert cli("optimize", f"{source}:build", "-o", out, "--no-measure").code == 0
    graph = planish.load(out)
    assert [(v.name, str(v.type)) for v in graph.inputs] == [("x", "float[batch,4]")]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("f")
    y = planish.backends.backend("onnxruntime").run(graph, {"x": x})["y"]
    np.testing.assert_allclose(y, np.maximum(x[:, :3] + 1, 0), rtol=1e-6)
    round_trip = planish.to_jax(graph)
    np.testing.assert_allclose(round_trip(round_trip.params, x)[0], y, rtol=1e-6)
