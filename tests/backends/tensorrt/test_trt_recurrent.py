"""RNN, GRU and LSTM: what the parser reads, and what becomes a Scan."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.ir.text import parse

from .trt_check import check

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
STEPS, BATCH, WIDTH, HIDDEN = 4, 2, 3, 5


def text_of(op: str, attrs: str, given: str, directions: int, kind: str, sizes: str) -> tuple[str, dict[str, Any]]:
    """A graph with one operator, and arrays; ``given`` tells which of ``b l h c p`` it has, in this order."""
    rng = np.random.default_rng(0)
    gates = GATES[op]
    shapes = {
        "x": (STEPS, BATCH, WIDTH),
        "w": (directions, gates * HIDDEN, WIDTH),
        "r": (directions, gates * HIDDEN, HIDDEN),
        "b": (directions, 2 * gates * HIDDEN),
        "l": (BATCH,),
        "h": (directions, BATCH, HIDDEN),
        "c": (directions, BATCH, HIDDEN),
        "p": (directions, 3 * HIDDEN),
    }
    declared, arrays = [], {}
    for name in "xwr" + given:
        shape = ",".join(map(str, shapes[name])) if name != "x" or not sizes else sizes
        declared.append(f"{'int32' if name == 'l' else kind}[{shape}] {name}")
        arrays[name] = np.array([4, 2]) if name == "l" else rng.standard_normal(shapes[name])
    operands = ", ".join(n if n in "xwr" + given else '""' for n in "xwrblhcp"[: 6 if op != "LSTM" else 8])
    results = "y, last" + (", cell" if op == "LSTM" else "")
    direction = ', direction = "bidirectional"' if directions == 2 else ""
    called = f"{op} <hidden_size = {HIDDEN}{direction}{attrs}> ({operands})"
    return f"g ({', '.join(declared)}) => ({results}) {{ {results} = {called} }}", arrays


def run(
    op: str, attrs: str = "", given: str = "b", directions: int = 1, kind: str = "float", sizes: str = "", **more: Any
) -> Counter[str]:
    given = given if op == "LSTM" else "".join(n for n in given if n in "blh")
    text, arrays = text_of(op, attrs, given, directions, kind, sizes)
    return check(text, 1e-2 if kind == "float16" else 1e-4, **more, **arrays)


def functions(op: str, *names: str) -> str:
    """An attribute with one of ``names`` for each function, in turn."""
    listed = [names[i % len(names)] for i in range(FUNCTIONS[op])]
    return ", activations = [" + ", ".join(f'"{n}"' for n in listed) + "]"


every_operator = pytest.mark.parametrize("op", GATES)


@every_operator
def test_what_the_parser_reads_stays(op: str) -> None:
    assert run(op, given="blhcp", directions=2) == {op: 1}
    assert run(op, ', direction = "reverse"', given="blhcp", sizes="s,b,3") == {op: 1}


@every_operator
def test_the_memory_of_an_lstm_is_not_clipped(op: str) -> None:
    assert run(op, ", clip = 0.3", given="bh")["Scan"] == (op == "LSTM")


@every_operator
def test_lengths_in_half_precision_are_computed_in_float(op: str) -> None:
    found = run(op, given="bl", kind="float16")
    assert found[op] == 1 and found["Cast"] and found["Neg"] == 2  # which TensorRT needs behind a Cast


@every_operator
def test_batches_first_is_a_transpose(op: str) -> None:
    text, arrays = text_of(op, "", "b", 2, "float", "")
    expected = backend("onnxruntime").run(parse(text), {n: a.astype(np.float32) for n, a in arrays.items()})
    expected = {n: v.transpose((2, 0, 1, 3) if n == "y" else (1, 0, 2)) for n, v in expected.items()}
    turned = text.replace("hidden_size", "layout = 1, hidden_size").replace(
        f"[{STEPS},{BATCH},{WIDTH}]", f"[{BATCH},{STEPS},{WIDTH}]"
    )
    found = check(turned, 1e-4, expected=expected, **{**arrays, "x": arrays["x"].swapaxes(0, 1)})
    assert found[op] == 1 and found["Transpose"]


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_names_of_functions_in_lower_case(op: str) -> None:
    assert run(op, functions(op, "tanh")) == {op: 1}


@every_operator
def test_parameters_of_some_functions_only(op: str) -> None:
    found = run(op, functions(op, "Tanh", "LeakyRelu", "Sigmoid") + ", activation_alpha = [0.3]", given="bh")
    assert found["Scan"] == 1


@every_operator
@pytest.mark.parametrize("attrs", ["", ', direction = "reverse"'])
def test_functions_that_tensorrt_has_not(op: str, attrs: str) -> None:
    alphas = ", ".join(["0.5"] * FUNCTIONS[op])
    parameters = f", activation_alpha = [{alphas}], activation_beta = [{alphas}]"
    assert run(op, functions(op, "Affine") + parameters + attrs, given="hcp", sizes="s,b,3")["Scan"] == 1


@every_operator
def test_other_functions_in_the_other_direction(op: str) -> None:
    names = ["Tanh"] * FUNCTIONS[op] + ["Sigmoid"] * FUNCTIONS[op]
    listed = ", activations = [" + ", ".join(f'"{n}"' for n in names) + "]"
    assert run(op, listed + ", clip = 0.8", given="blhcp", directions=2)["Scan"] == 2


def test_a_gru_with_elu_and_the_reset_behind_the_product() -> None:
    assert run("GRU", functions("GRU", "Sigmoid", "Elu") + ", linear_before_reset = 1", given="blh")["Scan"] == 1


def test_an_lstm_with_coupled_gates() -> None:
    assert run("LSTM", ", input_forget = 1", given="bhcp")["Scan"] == 1
