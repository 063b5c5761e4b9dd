"""How long ONNX Runtime's CPU kernels take for one fused site in each form that it could be written in.

``python benchmarks/ort_forms.py [SITE…] [--lengths N…]`` prints a table per site. All forms of a site run
in turns in one process, with ONNX Runtime's own optimizations on and thread pools that do not spin. The forms compute
the same (this is checked). `backends/ort_forms.py` chooses by these numbers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tables import markdown

B, N, D = 1, 12, 64
E = N * D
OPSETS = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>'
LENGTHS = (64, 512)
Form = Callable[[int], str]  # the body of a model, by the number of positions


def _heads(name: str, source: str) -> str:
    return f"{name}_4 = Reshape({source}, split) {name} = Transpose<perm = [0, 2, 1, 3]>({name}_4)\n"


SPLIT = f"split = Constant<value_ints = [0, 0, {N}, {D}]>() merged = Constant<value_ints = [0, 0, {E}]>()\n"
SCALE = D**-0.5


def _primitives(mask: bool) -> str:
    bias = "b = Add(a, mask)" if mask else "b = Identity(a)"
    return (
        SPLIT + _heads("q4", "q") + _heads("v4", "v") + "k_4 = Reshape(k, split)\n"
        "kt = Transpose<perm = [0, 2, 3, 1]>(k_4)\n"
        f"s = Constant<value_float = {SCALE}>() m = MatMul(q4, kt) a = Mul(m, s) {bias}\n"
        "w = Softmax<axis = -1>(b) o = MatMul(w, v4) t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, merged)"
    )


def _ranked(mask: bool) -> str:
    return (
        SPLIT
        + "".join(_heads(f"{n}4", n) for n in "qkv")
        + f"o = Attention(q4, k4, v4{', mask' if mask else ''}) t = Transpose<perm = [0, 2, 1, 3]>(o)\n"
        "y = Reshape(t, merged)"
    )


def _rows(mask: bool) -> str:
    return f"y = Attention<q_num_heads = {N}, kv_num_heads = {N}>(q, k, v{', mask' if mask else ''})"


def _multi_head(mask: bool) -> str:
    operands = "q, k, v, , , bias" if mask else "q, k, v"
    bias = "axes = Constant<value_ints = [0, 1]>() bias = Unsqueeze(mask, axes)\n" if mask else ""
    return f"{bias}y = com.microsoft.MultiHeadAttention<num_heads = {N}>({operands})"


def _attention_model(body: Callable[[bool], str], mask: bool) -> Form:
    def text(length: int) -> str:
        row = f"float[{B},{length},{E}]"
        given = f", float[{length},{length}] mask" if mask else ""
        return f"{OPSETS} agraph ({row} q, {row} k, {row} v{given}) => (float[a,b,c] y) {{ {body(mask)} }}"

    return text


def _causal(body: str) -> Form:
    def text(length: int) -> str:
        row = f"float[{B},{length},{E}]"
        return (
            f"{OPSETS} agraph ({row} q, {row} k, {row} v, float[{length},{length}] causal) => (float[a,b,c] y) {{\n"
            f"last = Constant<value = int32[{B}] {{{length - 1}}}>() total = Constant<value = int32 {{{length}}}>()\n"
            f"{body} }}"
        )

    return text


def _single(operator: str) -> Form:
    def text(length: int) -> str:
        row = f"float[{B},{length},{D}]"
        return f"{OPSETS} agraph ({row} q, {row} k, {row} v) => (float[a,b,c] y) {{ y = {operator}(q, k, v) }}"

    return text


_CAPPED = (
    SPLIT + _heads("q4", "q") + _heads("v4", "v") + "k_4 = Reshape(k, split) kt = Transpose<perm = [0, 2, 3, 1]>(k_4)\n"
    f"s = Constant<value_float = {SCALE / 50}>() c = Constant<value_float = 50.0>() m = MatMul(q4, kt) a = Mul(m, s)\n"
    "h = Tanh(a) d = Mul(h, c) b = Add(d, causal) w = Softmax<axis = -1>(b) o = MatMul(w, v4)\n"
    "t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, merged)"
)


def _elementwise(body: str, width: int = 4 * E) -> Form:
    def text(length: int) -> str:
        row = f"float[{B},{length},{width}]"
        return f"{OPSETS} agraph ({row} x, {row} z) => ({row} y) {{ {body} }}"

    return text


def _rotary(body: str) -> Form:
    def text(length: int) -> str:
        row, table = f"float[{B},{length},{E}]", f"float[{length},{D // 2}]"
        return f"{OPSETS} agraph ({row} x, {table} cos, {table} sin) => (float[a,b,c] y) {{ {body} }}"

    return text


def _cached(body: str) -> Form:
    def text(length: int) -> str:
        row, past = f"float[{B},1,{E}]", f"float[{B},{N},{length - 1},{D}]"
        return (
            f"{OPSETS} agraph ({row} q, {row} k, {row} v, {past} pk, {past} pv) =>\n"
            "(float[a,b,c] y, float[e,f,g,h] nk, float[i,j,k1,l] nv) {\n"
            f"last = Constant<value = int32[{B}] {{{length - 1}}}>() total = Constant<value = int32 {{{length}}}>()\n"
            f"{SPLIT}{body} }}"
        )

    return text


_ONES = f"size = Constant<value_ints = [{E}]>() one = ConstantOfShape<value = float[1] {{1.0}}>(size)\n"
_ZEROS = "zero = ConstantOfShape<value = float[1] {0.0}>(size)\n"

SITES: dict[str, dict[str, Form]] = {
    "attention": {
        "primitives": _attention_model(_primitives, False),
        "Attention, rank 4": _attention_model(_ranked, False),
        "Attention on rows": _attention_model(_rows, False),
        "MultiHeadAttention": _attention_model(_multi_head, False),
    },
    "attention with a mask": {
        "primitives": _attention_model(_primitives, True),
        "Attention, rank 4": _attention_model(_ranked, True),
        "Attention on rows": _attention_model(_rows, True),
        "MultiHeadAttention": _attention_model(_multi_head, True),
    },
    "causal attention": {
        "Attention on rows, mask": _causal(f"y = Attention<q_num_heads = {N}, kv_num_heads = {N}>(q, k, v, causal)"),
        "Attention on rows, is_causal": _causal(
            f"y = Attention<q_num_heads = {N}, kv_num_heads = {N}, is_causal = 1>(q, k, v)"
        ),
        "MultiHeadAttention, unidirectional": _causal(
            f"y = com.microsoft.MultiHeadAttention<num_heads = {N}, unidirectional = 1>(q, k, v)"
        ),
        "GroupQueryAttention": _causal(
            f"y, pk, pv = com.microsoft.GroupQueryAttention<num_heads = {N}, kv_num_heads = {N}>"
            "(q, k, v, , , last, total)"
        ),
    },
    "attention with one head": {
        "Attention on rows": _single("Attention<q_num_heads = 1, kv_num_heads = 1>"),
        "MultiHeadAttention": _single("com.microsoft.MultiHeadAttention<num_heads = 1>"),
    },
    "causal attention with a soft cap": {
        "primitives": _causal(_CAPPED),
        "Attention on rows": _causal(
            f"y = Attention<q_num_heads = {N}, kv_num_heads = {N}, softcap = 50.0>(q, k, v, causal)"
        ),
        "GroupQueryAttention": _causal(
            f"y, pk, pv = com.microsoft.GroupQueryAttention<num_heads = {N}, kv_num_heads = {N}, softcap = 50.0>"
            "(q, k, v, , , last, total)"
        ),
    },
    "one new position behind a cache": {
        "Concat, Attention": _cached(
            "".join(_heads(f"{n}4", n) for n in "qkv") + "nk = Concat<axis = 2>(pk, k4) nv = Concat<axis = 2>(pv, v4)\n"
            "o = Attention(q4, nk, nv) t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, merged)"
        ),
        "Attention with past": _cached(
            f"y, nk, nv = Attention<q_num_heads = {N}, kv_num_heads = {N}>(q, k, v, , pk, pv)"
        ),
        "MultiHeadAttention": _cached(
            f"y, nk, nv = com.microsoft.MultiHeadAttention<num_heads = {N}>(q, k, v, , , , pk, pv)"
        ),
        "GroupQueryAttention": _cached(
            f"y, nk, nv = com.microsoft.GroupQueryAttention<num_heads = {N}, kv_num_heads = {N}>"
            "(q, k, v, pk, pv, last, total)"
        ),
    },
    "Gelu (erf)": {
        "primitives": _elementwise(
            "r = Constant<value_float = 1.4142135>() h = Constant<value_float = 0.5>() "
            "o = Constant<value_float = 1.0>() a = Div(x, r) b = Erf(a) c = Add(b, o) d = Mul(x, c) y = Mul(d, h)"
        ),
        "Gelu": _elementwise("y = Gelu(x)"),
        "com.microsoft.Gelu": _elementwise("y = com.microsoft.Gelu(x)"),
    },
    "Gelu (tanh)": {
        "Gelu": _elementwise('y = Gelu<approximate = "tanh">(x)'),
        "FastGelu": _elementwise("y = com.microsoft.FastGelu(x)"),
    },
    "Swish": {
        "Mul, Sigmoid": _elementwise("s = Sigmoid(x) y = Mul(x, s)"),
        "QuickGelu": _elementwise("y = com.microsoft.QuickGelu<alpha = 1.0>(x)"),
    },
    "Add, LayerNormalization": {
        "Add, view, LayerNormalization": _elementwise(
            _ONES + _ZEROS + f"v = Constant<value_ints = [0, 0, {E}]>() a = Add(x, z) b = Reshape(a, v)\n"
            "y = LayerNormalization(b, one, zero)",
            E,
        ),
        "Add, LayerNormalization": _elementwise(
            _ONES + _ZEROS + "a = Add(x, z) y = LayerNormalization(a, one, zero)", E
        ),
        "SkipLayerNormalization": _elementwise(
            _ONES + _ZEROS + "y = com.microsoft.SkipLayerNormalization(x, z, one, zero)", E
        ),
    },
    "Add, RMSNormalization": {
        "primitives": _elementwise(
            _ONES + "a = Add(x, z) axes = Constant<value_ints = [-1]>() e = Constant<value_float = 0.00001>()"
            "two = Constant<value_float = 2.0>() p = Pow(a, two) m = ReduceMean(p, axes) n = Add(m, e) r = Sqrt(n)"
            "i = Reciprocal(r) s = Mul(a, i) y = Mul(s, one)",
            E,
        ),
        "Add, RMSNormalization": _elementwise(_ONES + "a = Add(x, z) y = RMSNormalization(a, one)", E),
        "Add, SimplifiedLayerNormalization": _elementwise(
            _ONES + "a = Add(x, z) y = SimplifiedLayerNormalization(a, one)", E
        ),
        "SkipSimplifiedLayerNormalization": _elementwise(
            _ONES + "y = com.microsoft.SkipSimplifiedLayerNormalization(x, z, one)", E
        ),
    },
    "rotary embedding": {
        "primitives": _rotary(
            SPLIT + _heads("x4", "x") + "cs = Concat<axis = -1>(cos, cos) sn = Concat<axis = -1>(sin, sin)\n"
            f"h = Constant<value_ints = [{D // 2}, {D // 2}]>() a, b = Split<axis = -1>(x4, h) m = Neg(b)\n"
            "r = Concat<axis = -1>(m, a) p = Mul(x4, cs) s = Mul(r, sn) o = Add(p, s)\n"
            "t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, merged)"
        ),
        "RotaryEmbedding, rank 4": _rotary(
            SPLIT + _heads("x4", "x") + "axes = Constant<value_ints = [0]>() c = Unsqueeze(cos, axes)\n"
            "s = Unsqueeze(sin, axes) o = RotaryEmbedding(x4, c, s) t = Transpose<perm = [0, 2, 1, 3]>(o)\n"
            "y = Reshape(t, merged)"
        ),
        "RotaryEmbedding on rows": _rotary(
            "axes = Constant<value_ints = [0]>() c = Unsqueeze(cos, axes) s = Unsqueeze(sin, axes)\n"
            f"y = RotaryEmbedding<num_heads = {N}>(x, c, s)"
        ),
        "com.microsoft.RotaryEmbedding": _rotary(
            "at = Constant<value = int64[1] {0}>()\n"
            f"y = com.microsoft.RotaryEmbedding<num_heads = {N}>(x, at, cos, sin)"
        ),
    },
}


def session(text: str, threads: int) -> Any:
    """A session for a model in ONNX's textual syntax."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = onnx.parser.parse_model(text).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def inputs(of: Any) -> dict[str, Any]:
    """Normal numbers, and a causal mask where one is asked for."""
    random = np.random.default_rng(0)
    found = {}
    for value in of.get_inputs():
        array = random.standard_normal(value.shape).astype(np.float32)
        found[value.name] = array
        if value.name == "causal":
            found[value.name] = np.triu(np.full(value.shape, -1e9, np.float32), 1)
    return found


def measure(forms: dict[str, Form], length: int, threads: int, rounds: int) -> dict[str, float | str]:
    """Milliseconds of each form, or why it does not run, or how far it is from the first one."""
    found: dict[str, float | str] = {}
    sessions: dict[str, Any] = {}
    expected = None
    for name, form in forms.items():
        try:
            sessions[name] = session(form(length), threads)
            result = sessions[name].run(None, inputs(sessions[name]))[0]
        except Exception as error:  # noqa: BLE001 - what does not run is a finding
            found[name] = " ".join(str(error).split())[:80]
            sessions.pop(name, None)
            continue
        expected = result if expected is None else expected
        if np.abs(result - expected).max() > 1e-3:
            found[name] = f"differs by {np.abs(result - expected).max():.1e}"
    samples: dict[str, list[float]] = {n: [] for n in sessions if n not in found}
    given = {n: inputs(s) for n, s in sessions.items()}
    for index in range(-3, rounds):
        for name in sorted(samples, reverse=index % 2 == 0):
            started = time.perf_counter()
            sessions[name].run(None, given[name])
            if index >= 0:
                samples[name].append((time.perf_counter() - started) * 1e3)
    return found | {n: statistics.median(s) for n, s in samples.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time the forms of fused operators in ONNX Runtime.")
    parser.add_argument("sites", nargs="*", help=f"of {', '.join(SITES)} (default: all)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="numbers of positions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    for site in args.sites or SITES:
        by_length = [measure(SITES[site], n, args.threads, args.rounds) for n in args.lengths]
        rows = []
        for form in SITES[site]:
            cells = [found[form] for found in by_length]
            rows.append([form, *(f"{c:.3f}" if isinstance(c, float) else c for c in cells)])
        print(markdown(site, ["form, ms", *(f"{n} positions" for n in args.lengths)], rows), flush=True)


if __name__ == "__main__":
    main()
