"""The command line: exit codes, one-line errors, JSON, and what is left behind."""

import json
import subprocess
import sys

import numpy as np
import pytest

import planish

COMMANDS = ("optimize", "inspect", "compare", "bench", "passes", "explain", "bisect", "reduce", "doctor", "demo")

WRONG = """
from planish.ir import op
from planish.passes import RewritePass, rule

@rule(lambda x: op.Relu(x))
def wrong_relu(x):
    return op.Abs(x)

class WrongRelus(RewritePass):
    "Wrong on purpose."
    rules = (wrong_relu,)
"""


@pytest.fixture
def wrong(monkeypatch):
    """Makes a pass ``wrong-relus`` known, as an installed package would."""
    from planish.passes import pipeline, registry

    namespace: dict[str, type] = {}
    exec(WRONG, namespace)
    find = registry.find_pass
    monkeypatch.setattr(
        pipeline, "find_pass", lambda name: namespace["WrongRelus"] if name == "wrong-relus" else find(name)
    )
    return "wrong-relus"


def one_line(outcome):
    return (
        outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1 and outcome.err.startswith("planish: ")
    )


def test_help_names_every_command(cli):
    text = cli("--help").out
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        outcome = cli(command, "--help")
        assert outcome.code == 0
        assert "..." not in outcome.out.splitlines()[0]
    assert cli("--version").out.startswith("planish ")


def test_the_package_is_the_command():
    found = subprocess.run([sys.executable, "-m", "planish", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("planish ")


def test_optimize_writes_sparse_tensors(cli, tmp_path):
    cli("demo", "-o", tmp_path / "digits.onnx")
    sizes = {}
    for flags in ([], ["--sparse"]):
        out = tmp_path / f"{len(flags)}.onnx"
        pipeline = ("-p", "default,sparsify{ratio=0.9}", "--no-measure")
        assert cli("optimize", tmp_path / "digits.onnx", "-o", out, *pipeline, *flags).code == 0
        sizes[len(flags)] = out.stat().st_size
    assert sizes[1] < 0.6 * sizes[0]
    assert cli("compare", tmp_path / "0.onnx", tmp_path / "1.onnx").code == 0


def test_optimize_writes_a_model_that_runs_the_same(cli, model, tmp_path):
    out = tmp_path / "out.onnx"
    outcome = cli("optimize", model, "-o", out, "--json")
    assert outcome.code == 0, outcome.err
    facts = outcome.json
    assert facts["ok"] is True
    assert facts["after"]["nodes"] < facts["before"]["nodes"]
    assert facts["verification"]["verdict"] == "passed"
    assert facts["latency"]["speedup"] > 0
    assert planish.compare(model, str(out)).largest < 1e-6


def test_optimize_prints_a_summary(cli, model, tmp_path):
    outcome = cli("optimize", model, "-o", tmp_path / "out.onnx", "--report", tmp_path / "report.html", "--no-measure")
    assert outcome.code == 0, outcome.err
    for word in ("nodes", "FLOPs", "verified", "relu-of-relu", "simplify"):
        assert word in outcome.out
    assert "latency" in cli("optimize", model, "-o", tmp_path / "out.onnx").out
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert "relu-of-relu" in page
    assert "Everything checked holds." in page


def test_the_fast_path_neither_verifies_nor_measures(cli, model, tmp_path):
    outcome = cli("optimize", model, "-o", tmp_path / "out.onnx", "--verify", "off", "--no-measure", "--json")
    assert outcome.code == 0
    assert outcome.json["verification"]["verdict"] == "off"
    assert outcome.json["latency"] is None
    assert planish.compare(model, str(tmp_path / "out.onnx")).largest < 1e-6


def test_the_result_may_replace_its_input(cli, model):
    before = planish.inspect(model).size.nodes
    assert cli("optimize", model, "-o", model, "--verify", "off", "--no-measure").code == 0
    assert planish.inspect(model).size.nodes < before


def test_a_failed_expectation_is_exit_code_1_and_writes_nothing(cli, model, tmp_path):
    outcome = cli("optimize", model, "-o", tmp_path / "out.onnx", "--expect", "Attention>=12", "--no-measure")
    assert outcome.code == 1
    assert "Attention>=12: NO, there are 0" in outcome.err
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert cli("optimize", model, "-o", tmp_path / "out.onnx", "--expect", "Relu==1", "--no-measure").code == 0


def test_a_wrong_rule_is_rolled_back_and_named(cli, model, tmp_path, wrong):
    outcome = cli("optimize", model, "-o", tmp_path / "out.onnx", "-p", f"simplify,{wrong}", "--no-measure", "--json")
    assert outcome.code == 0
    (rolled_back,) = outcome.json["rolled_back"]
    assert rolled_back["what"] == "rule wrong-relu of wrong-relus"
    assert planish.compare(model, str(tmp_path / "out.onnx")).largest < 1e-6


def test_bad_input_is_exit_code_2_and_one_line(cli, model, tmp_path):
    out = tmp_path / "out.onnx"
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    (tmp_path / "model.h5").write_bytes(b"")
    (tmp_path / "mod.py").write_text(
        "def broken():\n    raise ValueError('on\\npurpose')\ndef number():\n    return 3\n"
    )
    np.savez(tmp_path / "other.npz", y=np.ones(3))
    before = sorted(p.name for p in tmp_path.iterdir())
    for arguments in (
        ("optimize", tmp_path / "none.onnx", "-o", out),
        ("optimize", tmp_path / "bad.onnx", "-o", out),
        ("optimize", tmp_path / "model.h5", "-o", out),
        ("optimize", f"{tmp_path}/mod.py:broken", "-o", out),
        ("optimize", f"{tmp_path}/mod.py:number", "-o", out),
        ("optimize", f"{tmp_path}/mod.py:lacking", "-o", out),
        ("optimize", model),
        ("optimize", model, "-o", tmp_path / "out.engine"),
        ("optimize", model, "-o", tmp_path / "nowhere" / "out.onnx"),
        ("optimize", model, "-o", out, "-p", "simplifi"),
        ("optimize", model, "-o", out, "--verify", "perhaps"),
        ("optimize", model, "-o", out, "--target", "abacus"),
        ("optimize", model, "-o", out, "--data", tmp_path / "other.npz"),
        ("optimize", model, "-o", out, "--data", tmp_path / "none.npz"),
        ("optimize", model, "-o", out, "--expect", "Relu"),
        ("optimize", model, "-o", out, "--expect", "Nonsense>3", "--verify", "off", "--no-measure"),
        ("inspect", tmp_path / "none.onnx"),
        ("explain", model, "--rule", "nonsense"),
        ("passes", "nonsense"),
        ("compare", model, tmp_path / "none.onnx"),
        ("optimise", model),
    ):
        outcome = cli(*arguments)
        assert one_line(outcome), (arguments, outcome)
        assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_debug_shows_the_traceback(cli, tmp_path):
    with pytest.raises(planish.PlanishError):
        cli("inspect", tmp_path / "none.onnx", "--debug")


def test_inspect(cli, model):
    facts = cli("inspect", model, "--json").json
    assert facts["inputs"] == {"x": "float[batch,8]"}
    assert facts["ops"]["Relu"] == 2
    assert facts["size"]["parameters"] == 8 * 16 + 16 * 4 + 4 + 1
    assert "Relu" in cli("inspect", model).out
    assert cli("inspect", model, "--text").out.count("= Relu (") == 2


def test_compare_and_bench(cli, model, tmp_path):
    other = tmp_path / "other.onnx"
    cli("optimize", model, "-o", other, "--verify", "off", "--no-measure")
    facts = cli("compare", model, other, "--json").json
    assert facts["largest"] < 1e-6
    assert facts["outputs"][0]["cosine"] == pytest.approx(1)
    assert cli("compare", model, other, "--tolerance", "1e-3").code == 0
    assert cli("bench", model, other, "--json").json["speedup"] > 0
    assert "ms" in cli("bench", model).out


def test_compare_fails_beyond_the_tolerance(cli, model, tmp_path, wrong):
    other = tmp_path / "other.onnx"
    cli("optimize", model, "-o", other, "-p", wrong, "--verify", "off", "--no-measure")
    outcome = cli("compare", model, other, "--tolerance", "1e-3", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["ok"] is False


def test_passes(cli):
    assert "simplify" in cli("passes").out
    facts = cli("passes", "--json").json
    assert "default" in facts["recipes"]
    assert "pipeline" not in [p["name"] for p in facts["passes"]]
    assert "relu-of-relu" in cli("passes", "simplify").out
    assert "simplify" in cli("passes", "default").out


def test_explain(cli, model):
    text = cli("explain", model, "-p", "simplify").out
    assert "relu-of-relu: 1 time" in text
    facts = cli("explain", model, "--json", "--rule", "gemm").json
    assert all(m["rule"] == "gemm" for m in facts["near_misses"])


def test_bisect_and_reduce(cli, model, tmp_path, wrong):
    assert "do not differ" in cli("bisect", model).out
    outcome = cli("bisect", model, "-p", f"simplify,{wrong}", "--json", "--reduce", tmp_path / "small")
    assert outcome.code == 1
    facts = outcome.json
    assert (facts["pass"], facts["rule"], facts["number"]) == ("wrong-relus", "wrong-relu", 1)
    assert facts["nodes"][0]["op"] == "Relu"
    assert planish.inspect(str(tmp_path / "small" / "model.onnx")).ops == {"Relu": 1}
    assert (tmp_path / "small" / "inputs.npz").exists()
    assert "wrong-relu" in cli("bisect", model, "-p", wrong).out


def test_reduce_by_pipeline_and_by_check(cli, model, tmp_path, wrong):
    outcome = cli("reduce", model, "-p", wrong, "-o", tmp_path / "small")
    assert outcome.code == 0
    assert planish.inspect(str(tmp_path / "small" / "model.onnx")).ops == {"Relu": 1}
    check = tmp_path / "check.py"
    check.write_text("import planish\ndef fails(path):\n    return 'Add' in planish.inspect(path).ops\n")
    outcome = cli("reduce", model, "--check", f"{check}:fails", "-o", tmp_path / "checked", "--json")
    assert outcome.json["nodes"] == 1
    assert planish.inspect(str(tmp_path / "checked" / "model.onnx")).ops == {"Add": 1}
    assert cli("reduce", model).code == 1


def test_doctor_and_demo(cli, tmp_path):
    facts = cli("doctor", "--json").json
    assert facts["backends"]["reference"] is None
    outcome = cli("demo", "--json", "-o", tmp_path / "digits.onnx")
    assert outcome.code == 0
    before, after = outcome.json["correct"]
    assert after >= before > 500
    assert outcome.json["after"]["nodes"] < outcome.json["before"]["nodes"]


def modules_after(*arguments):
    """What a fresh interpreter has loaded after running the command line (or, without arguments, after the import)."""
    run = (
        "from planish.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
        if arguments
        else "import planish\nprint(*sys.modules)"
    )
    code = f"import sys\nsys.argv = {['planish', *arguments]}\n{run}"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.splitlines()[-1].split())


def test_the_import_loads_nothing_heavy():
    assert modules_after() & {"numpy", "onnx", "onnxruntime", "torch", "rich", "click"} == set()


def test_the_help_loads_nothing_heavy():
    loaded = modules_after("--help")
    assert "click" in loaded
    assert loaded & {"numpy", "onnx", "onnxruntime", "torch", "rich", "importlib.metadata"} == set()


def test_the_fast_path_loads_little(model, tmp_path):
    loaded = modules_after("optimize", model, "-o", str(tmp_path / "out.onnx"), "--verify", "off", "--no-measure")
    assert "numpy" in loaded
    assert "onnxruntime" in loaded  # it says what it can run
    heavy = {
        "torch",
        "rich",
        "onnx.reference",
        "planish.data",
        "planish.measure",
        "planish.passes.observers.verify",
    }
    assert loaded & heavy == set()


def test_the_light_onnx_becomes_whole_when_asked():
    code = """
import sys
from planish.light_onnx import install
install()
import onnx
from onnx import ModelProto
assert "onnx.checker" not in sys.modules
assert onnx.defs.get_schema("Relu").name == "Relu"
assert onnx.load is not None and onnx.__version__
text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu (x) }'
onnx.checker.check_model(onnx.parser.parse_model(text))
assert onnx.ModelProto is ModelProto
assert not hasattr(onnx, "nonsense")
install()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
