"""Attention and its kin: what stays one kernel, what it is put as otherwise, and that it computes the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as trt

from planish.backends import backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.module import find_module
from planish.backends.tensorrt.versions import version_of
from planish.ir import Graph
from planish.ir.convert.proto import to_proto
from planish.ir.text import parse

from .trt_check import check, ops

RTX = version_of("rtx")
RANGES = {"B": (1, 2, 4), "L": (1, 3, 9), "S": (1, 4, 16), "P": (1, 2, 16), "T": (2, 6, 32)}
LOG = find_module(RTX).logger  # that of the whole process


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def same(text: str, tolerance: float = 1e-4, **inputs: Any) -> dict[str, int]:
    """What is emitted builds, and computes what the reference does; the operators in it."""
    graph = parse(text)
    arrays = {v.name: np.asarray(inputs[v.name], v.dtype.numpy) for v in graph.inputs}
    return check(text, tolerance, expected=backend("reference").run(graph, arrays), **inputs)


def lowered(text: str, target: str = "tensorrt:rtx") -> Graph:
    return backend(target).lower_and_stamp(parse(text)).graph


def builds(text: str) -> bool:
    """Whether what is emitted builds for all sizes in `RANGES`."""
    graph, stamp, _ = backend("tensorrt:rtx").lower_and_stamp(parse(text))
    assert stamp is not None
    model = to_proto(graph, opset=stamp.opset, ir_version=stamp.ir_version)
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOG)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for value in graph.inputs:
        assert value.shape is not None
        if not all(isinstance(d, int) for d in value.shape):
            shapes = [tuple(d if isinstance(d, int) else RANGES[str(d)][i] for d in value.shape) for i in range(3)]
            profile.set_shape(value.name, *shapes)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def why_not(text: str) -> str:
    """Why the only node is no kernel."""
    return refusal(next(iter(parse(text).walk())), RTX)


def attention(
    dtype: str = "float16",
    query: str = "B,4,L,16",
    key: str = "B,4,S,16",
    value: str = "",
    more: str = "",
    **attrs: Any,
) -> str:
    """An Attention with operands ``more``: ``name: type``."""
    named = [part.split(": ") for part in more.split("; ") if part]
    stated = ", ".join(f"{name} = {attr}" for name, attr in attrs.items())
    inputs = "".join(f", {type_} {name}" for name, type_ in named if type_ != "none")
    operands = "".join(f", {name}" if type_ != "none" else ", " for name, type_ in named)
    result = "?,?,?,?" if query.count(",") == 3 else "?,?,?"
    return f"""
        g ({dtype}[{query}] q, {dtype}[{key}] k, {dtype}[{value or key}] v{inputs}) => ({dtype}[{result}] y) {{
          y = Attention {f"<{stated}>" if stated else ""} (q, k, v{operands}) }}"""


# --- one kernel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_of_halves_is_one_kernel_for_all_sizes(dtype: str) -> None:
    text = attention(dtype)
    assert ops(lowered(text)) == {"Attention": 1}
    assert builds(text)


def test_heads_in_rows_and_shared_keys_stay_as_they_are() -> None:
    text = attention(query="B,L,64", key="B,S,32", q_num_heads=4, kv_num_heads=2, is_causal=1)
    assert ops(lowered(text)) == {"Attention": 1}
    assert builds(text)


def test_a_mask_of_bools_or_of_halves_stays() -> None:
    for mask in ("bool[L,S]", "float16[B,1,L,S]", "bool[B,4,L,S]", "float16[4,L,S]", "bool[S]"):
        text = attention(more=f"m: {mask}")
        assert ops(lowered(text)) == {"Attention": 1}, mask
        assert builds(text), mask


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (attention("float"), "no kernel for float"),
        (attention(query="B,4,L,8", key="B,4,S,8"), "heads of 8"),
        (attention(query="B,4,5,264", key="B,4,S,264"), "heads of 264"),
        (attention(query="B,4,L,20", key="B,4,S,20"), "heads of 20"),
        (attention(query="B,4,5,20", key="B,4,S,20", more="m: bool[5,S]"), "heads of 20"),
        (attention(query="2,6,5,20", key="2,2,S,20", more="m: float16[5,S]"), "heads of 20"),
        (attention(query="1,1,5,16", key="1,1,S,16"), "1 heads"),
        (attention(query="2,1,5,16", key="2,1,S,16", more="m: bool[5,S]"), "1 heads"),
        (attention(query="1,2,1,16", key="1,2,S,16"), "1 queries in 2 heads"),
        (attention(key="B,3,S,16"), "4 heads for 3"),
        (attention(value="B,4,S,32"), "of one size"),
        (attention(key="B,4,S,D"), "of one size"),
        (attention(query="B,4,L,D", key="B,4,S,D"), "must know the heads"),
        (attention(more="m: float[L,S]"), "a mask of bool or float16"),
        (attention(query="B,4,5,16", more="m: bool[5,1]"), "as large as the scores"),
        (attention(more="m: bool[L,S]", is_causal=1), "not both"),
        (attention(more="m: none; a: none; b: none; n: int64[B]"), "nonpad_kv_seqlen"),
        (attention(softcap="2.0"), "softcap"),
        (attention(softmax_precision=1), "softmax_precision"),
        (attention(left_window_size=2), "left_window_size"),
    ],
)
def test_what_is_no_kernel_is_known(text: str, reason: str) -> None:
    assert reason in why_not(text)


@pytest.mark.parametrize(
    "text",
    [
        attention(query="B,4,5,9", key="B,4,S,9"),
        attention(query="2,1,5,256", key="2,1,S,256"),
        attention("float", query="1,4,1,8", key="1,4,S,8"),
        attention("float", query="4,1,1,64", key="4,1,S,64", more="m: bool[1,S]"),
        attention(query="2,6,5,24", key="2,2,S,24", more="m: float16[5,S]"),
        attention(query="2,3,5,100", key="2,1,7,100", is_causal=1, scale="0.3"),
    ],
)
def test_what_is_one_kernel_is_built(text: str) -> None:
    assert not why_not(text)
    assert builds(text)


def test_queries_that_are_the_keys_are_told_apart() -> None:
    """The builder fails where both become one tensor."""
    text = "g (float16[B,4,S,16] x) => (float16[B,4,S,16] y) { y = Attention (x, x, x) }"
    assert why_not(text)
    assert ops(lowered(text)) == {"Mul": 1, "Attention": 1}
    same(text, 1e-2, x=numbers(2, 4, 5, 16))
    assert builds(text)


def test_results_that_nothing_uses_are_left_out() -> None:
    text = """
        g (float16[B,4,L,16] q, float16[B,4,S,16] k) => (float16[B,4,L,16] y) { y, nk, nv, s = Attention (q, k, k) }"""
    assert ops(lowered(text)) == {"Attention": 1}
    assert builds(text)


def test_within_a_branch_there_are_primitives_only() -> None:
    text = """
        g (float16[2,4,5,16] x, float16[2,4,5,16] m, bool c) => (float16[2,4,5,16] y) {
          y = If (c) <
            then_branch = a () => (float16[2,4,5,16] s) { s = Attention (x, m, m) },
            else_branch = b () => (float16[2,4,5,16] t) { t = Identity (x) } > }"""
    assert "Attention" not in same(text, 1e-2, x=numbers(2, 4, 5, 16), m=numbers(2, 4, 5, 16, seed=1), c=True)


def test_older_versions_get_primitives() -> None:
    assert "Attention" not in ops(lowered(attention(query="B,4,L,16"), "tensorrt:8.6"))
    assert ops(lowered(attention(query="B,4,L,16"), "tensorrt:11")) == {"Attention": 1}


# --- put as one kernel ------------------------------------------------------------------------------------------------


def test_a_cache_is_appended_in_front_of_the_kernel() -> None:
    text = """
        g (float16[B,L,64] q, float16[B,S,32] k, float16[B,S,32] v, float16[B,2,P,16] pk, float16[B,2,P,16] pv)
          => (float16[B,L,64] y, float16[B,2,?,16] nk, float16[B,2,?,16] nv) {
          y, nk, nv = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v, , pk, pv) }"""
    cache = {"pk": numbers(2, 2, 4, 16), "pv": numbers(2, 2, 4, 16, seed=1)}
    found = same(text, 1e-2, q=numbers(2, 3, 64), k=numbers(2, 3, 32), v=numbers(2, 3, 32, seed=2), **cache)
    assert found["Attention"] == 1
    assert found["Concat"] == 2
    assert "Softmax" not in found
    assert builds(text)


def test_a_mask_and_what_is_causal_become_one_mask() -> None:
    for mask in ("bool[B,1,1,S]", "float16[L,S]"):
        text = attention(query="B,4,L,16", more=f"m: {mask}", is_causal=1)
        assert ops(lowered(text))["Attention"] == 1
        assert builds(text), mask
    keep = np.array([[[[True, True, False, True]]], [[[True] * 4]]])
    text = attention(query="B,4,L,16", more="m: bool[B,1,1,S]", is_causal=1)
    wanted = attention(query="B,4,L,16", more="m: bool[B,1,L,S]")
    x = {"q": numbers(2, 4, 4, 16), "k": numbers(2, 4, 4, 16, seed=1), "v": numbers(2, 4, 4, 16, seed=2)}
    both = keep & np.tri(4, dtype=bool)
    half = {name: value.astype(np.float16) for name, value in x.items()}
    check(text, 1e-2, expected=backend("reference").run(parse(wanted), {**half, "m": both}), **x, m=keep)


def test_numbers_of_keys_are_a_mask() -> None:
    text = attention(more="m: none; a: none; b: none; n: int64[B]")
    x = {"q": numbers(2, 4, 3, 16), "k": numbers(2, 4, 5, 16, seed=1), "v": numbers(2, 4, 5, 16, seed=2)}
    assert same(text, 1e-2, **x, n=[2, 5])["Attention"] == 1
    assert builds(text)


# --- primitives -------------------------------------------------------------------------------------------------------


def test_queries_are_scaled_before_the_first_product() -> None:
    graph = lowered(attention("float"))
    scale, product = (next(n for n in graph.nodes if n.op == o) for o in ("Mul", "MatMul"))
    assert product in scale.result.users
    assert ops(graph) == {"Mul": 1, "Transpose": 1, "MatMul": 2, "Softmax": 1}
    assert builds(attention("float"))


def test_shared_keys_are_not_repeated() -> None:
    text = attention("float", query="B,6,L,8", key="B,2,S,8")
    assert not ops(lowered(text)).keys() & {"Expand", "Tile"}
    same(text, q=numbers(2, 6, 3, 8), k=numbers(2, 2, 5, 8), v=numbers(2, 2, 5, 8, seed=1))
    assert builds(text)


def test_a_query_that_sees_no_key_gives_zeros() -> None:
    x = {"q": numbers(1, 2, 3, 8), "k": numbers(1, 2, 4, 8, seed=1), "v": numbers(1, 2, 4, 8, seed=2)}
    seen = np.array([[True, False, True, True], [False] * 4, [True] * 4])
    for mask, value in (("bool", seen), ("float", np.where(seen, 0.5, -np.inf))):
        text = attention("float", query="1,2,3,8", key="1,2,4,8", more=f"m: {mask}[3,4]")
        same(text, **x, m=value)


def test_known_masks_that_hide_nothing_whole_need_no_guard() -> None:
    assert "ReduceMax" not in ops(lowered(attention("float", query="2,2,5,8", key="2,2,5,8", is_causal=1)))
    assert "ReduceMax" not in ops(lowered(attention("float", is_causal=1)))


def test_a_short_mask_hides_the_last_keys() -> None:
    text = attention("float", query="B,2,L,8", key="B,2,S,8", more="m: bool[L,T]; a: none; b: none; n: int64[B]")
    x = {"q": numbers(2, 2, 3, 8), "k": numbers(2, 2, 5, 8, seed=1), "v": numbers(2, 2, 5, 8, seed=2)}
    same(text, **x, m=np.ones((3, 4), bool), n=[2, 4])


@pytest.mark.parametrize("mode", range(4))
def test_scores_are_given_as_they_are_asked_for(mode: int) -> None:
    text = f"""
        g (float[B,4,L,8] q, float[B,2,S,8] k, float[B,2,S,8] v, bool[L,S] m)
          => (float[B,4,L,8] y, float[B,4,L,S] scores) {{
          y, nk, nv, scores = Attention <softcap = 2.0, qk_matmul_output_mode = {max(mode, 1)}> (q, k, v, m) }}"""
    if mode == 0:
        text = text.replace("softcap = 2.0, qk_matmul_output_mode = 1", "qk_matmul_output_mode = 0")
    mask = np.tri(3, 5, 1, dtype=bool)
    same(text, q=numbers(2, 4, 3, 8), k=numbers(2, 2, 5, 8), v=numbers(2, 2, 5, 8, seed=1), m=mask)


def _random(choice: random.Random) -> tuple[str, dict[str, np.ndarray]]:
    """An Attention with whatever it may have, and its inputs."""
    b, groups, length, past, count = (choice.choice(c) for c in ((1, 2), (1, 2), (1, 3), (0, 2), (1, 3)))
    heads, keys, size = groups * choice.choice((1, 3)), choice.choice((1, 4)) + past, choice.choice((8, 16))
    new, rank4, dtype = keys - past, choice.random() < 0.5, choice.choice(("float", "float16"))
    attrs: dict[str, Any] = {} if rank4 else {"q_num_heads": heads, "kv_num_heads": groups}
    for name, values in {"is_causal": (1,), "scale": ("0.3", "1.0"), "softcap": ("0.0", "2.0")}.items():
        if choice.random() < 0.35:
            attrs[name] = choice.choice(values)
    for name in ("left_window_size", "right_window_size"):
        if choice.random() < 0.2:
            attrs[name] = choice.choice((-1, 0, 2))
    array = {
        "q": numbers(b, heads, length, size) if rank4 else numbers(b, length, heads * size),
        "k": numbers(b, groups, new, size) if rank4 else numbers(b, new, groups * size),
        "v": numbers(b, groups, new, 8) if rank4 else numbers(b, new, groups * 8),
    }
    dims = {"q": "B,{},L,{}" if rank4 else "B,L,{}", "k": "B,{},S,{}" if rank4 else "B,S,{}"}
    query = dims["q"].format(*((heads, size) if rank4 else (heads * size,)))
    key, value = (dims["k"].format(*((groups, n) if rank4 else (groups * n,))) for n in (size, 8))
    more = "m: none"
    if count == 1:
        kind = choice.choice(("bool", dtype))
        more, seen = f"m: {kind}[L,{'T' if past else 'S'}]", np.random.default_rng(keys).random((length, keys)) > 0.4
        array["m"] = seen if kind == "bool" else np.where(seen, numbers(length, keys), -np.inf)
    if past:
        more += f"; pk: {dtype}[B,{groups},P,{size}]; pv: {dtype}[B,{groups},P,8]"
        array |= {"pk": numbers(b, groups, past, size, seed=1), "pv": numbers(b, groups, past, 8, seed=2)}
    elif choice.random() < 0.3:
        more += "; pk: none; pv: none; n: int64[B]"
        array["n"] = np.random.default_rng(length).integers(1, keys + 1, b)
    return attention(dtype, query, key, value, "" if more == "m: none" else more, **attrs), array


@pytest.mark.parametrize("seed", range(24))
def test_whatever_an_attention_has_it_computes_the_same(seed: int) -> None:
    text, array = _random(random.Random(seed))
    same(text, 2e-2 if "float16" in text else 1e-4, **array)
    if seed % 4 == 0:
        assert builds(text)


# --- FlexAttention ----------------------------------------------------------------------------------------------------

FLEX = """
    <opset_import: ["" : 24, "ai.onnx.preview" : 1]>
    g ({dtype}[B,4,L,16] q, {dtype}[B,2,S,16] k, {dtype}[B,2,S,16] v) => ({dtype}[B,4,L,16] y) {{
      y = ai.onnx.preview.FlexAttention {graphs} (q, k, v) }}"""


def test_flex_attention_without_graphs_is_an_attention() -> None:
    text = FLEX.format(dtype="float16", graphs="")
    assert ops(lowered(text)) == {"Attention": 1}
    assert builds(text)


def test_the_graphs_of_flex_attention_stand_between_its_products() -> None:
    graphs = """<scale = 0.5,
      score_mod = s (float[b,h,l,s] a) => (float[b,h,l,s] c) { half = Tanh (a)
        c = Mul (half, half) },
      prob_mod = p (float[b,h,l,s] d) => (float[b,h,l,s] e) { e = Neg (d) }>"""
    x = {"q": numbers(2, 4, 3, 16), "k": numbers(2, 2, 5, 16, seed=1), "v": numbers(2, 2, 5, 16, seed=2)}
    for dtype, tolerance in (("float", 1e-4), ("float16", 1e-2)):
        text = FLEX.format(dtype=dtype, graphs=graphs)
        found = same(text, tolerance, **x)
        assert found["Tanh"] == found["Neg"] == 1
        assert builds(text)


# --- RotaryEmbedding --------------------------------------------------------------------------------------------------


def rotary(x: str, cos: str, positions: str = "", **attrs: int) -> str:
    stated = ", ".join(f"{name} = {value}" for name, value in {"interleaved": 0, **attrs}.items())
    given, operand = (f", int64[{positions}] p", ", p") if positions else ("", "")
    return f"""
        g (float[{x}] x, float[{cos}] c, float[{cos}] s{given}) => (float[{x}] y) {{
          y = RotaryEmbedding <{stated}> (x, c, s{operand}) }}"""


def test_rotary_embedding_stays_where_sizes_agree() -> None:
    for text in (rotary("B,4,L,8", "9,4", "B,L"), rotary("B,L,32", "B,L,2", num_heads=4, rotary_embedding_dim=4)):
        assert ops(lowered(text)) == {"RotaryEmbedding": 1}
        assert builds(text)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("on_rows", [False, True])
def test_rotary_embedding_is_turned_in_primitives(interleaved: int, count: int, on_rows: bool) -> None:
    """The number of positions is known, and that of rows is not."""
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": count, **({"num_heads": 4} if on_rows else {})}
    half = (count or 8) // 2
    text = rotary("2,L,32" if on_rows else "2,4,L,8", f"9,{half}", "2,3", **attrs)
    assert why_not(text)
    x = numbers(2, 3, 32) if on_rows else numbers(2, 4, 3, 8)
    found = same(text, x=x, c=numbers(9, half), s=numbers(9, half, seed=1), p=[[0, 8, 2], [3, 3, 1]])
    assert "RotaryEmbedding" not in found


# --- TensorScatter ----------------------------------------------------------------------------------------------------


def scatter(cache: str, update: str, start: str = "", result: str = "y = TensorScatter", attrs: str = "") -> str:
    return f"""
        g (float[{cache}] c, float[{update}] u{f", int64[{start}] i" if start else ""}) => (float[{cache}] y) {{
          {result} {attrs} (c, u{", i" if start else ""}) }}"""


def test_a_cache_that_comes_in_and_goes_out_is_updated_in_place() -> None:
    text = scatter("B,2,8,4", "B,2,L,4", "B")
    assert ops(lowered(text)) == {"TensorScatter": 1}
    assert builds(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            scatter("2,2,8,4", "2,2,1,4", "2", result="r = Relu (c)\n y = TensorScatter").replace("(c, u", "(r, u"),
            "inputs",
        ),
        (
            scatter("2,2,8,4", "2,2,1,4", "2", result="y = TensorScatter")
            .replace("y = T", "z = T")
            .replace("i) }", "i)\n y = Relu (z) }"),
            "output",
        ),
        (scatter("2,8,4", "2,1,4", "2"), "4 dimensions"),
        (scatter("2,2,S,4", "2,2,1,4", "2"), "known size"),
        (scatter("2,2,8,4", "2,2,8,1", "2", attrs="<axis = 3>"), "4 dimensions"),
        (scatter("2,2,8,4", "2,2,1,4", "2", attrs='<mode = "circular">'), "circular"),
    ],
)
def test_any_other_cache_is_scattered_into(text: str, reason: str) -> None:
    graph = parse(text)
    node = next(n for n in graph.nodes if n.op == "TensorScatter")
    assert reason in refusal(node, RTX)
    sizes = {"S": 8}
    arrays = {
        v.name: numbers(*(sizes.get(str(d), d) for d in v.shape or ()), seed=len(v.name)) for v in graph.inputs[:2]
    }
    found = same(text, **arrays, i=[0, 3] if "axis" not in text else [0, 1])
    assert found["ScatterElements"] == 1
    assert "TensorScatter" not in found


def test_a_circular_cache_wraps_around() -> None:
    text = scatter("B,6,3", "B,L,3", "B", attrs='<mode = "circular">')
    same(text, c=numbers(2, 6, 3), u=numbers(2, 4, 3), i=[4, 1])
    same(scatter("B,6,3", "B,L,3"), c=numbers(2, 6, 3), u=numbers(2, 4, 3))


# --- LinearAttention, CausalConvWithState -----------------------------------------------------------------------------


def linear(rule: str, tokens: str, decay: int = 0, past: bool = True, dtype: str = "float") -> str:
    given = [f"{dtype}[B,2,4,8] s" if past else "", f"{dtype}[B,{tokens},{decay}] g" if decay else ""]
    given.append(f"{dtype}[B,{tokens},2] w" if "delta" in rule else "")
    operands = f"q, k, v, {'s' if past else ''}, {'g' if decay else ''}, {'w' if 'delta' in rule else ''}".rstrip(", ")
    return f"""
        g ({dtype}[B,{tokens},16] q, {dtype}[B,{tokens},8] k, {dtype}[B,{tokens},16] v
           {"".join(f", {g}" for g in given if g)}) => ({dtype}[B,{tokens},32] y, {dtype}[B,2,4,8] n) {{
          y, n = LinearAttention <q_num_heads = 4, kv_num_heads = 2, update_rule = "{rule}"> ({operands}) }}"""


def linear_inputs(tokens: int, decay: int = 0) -> dict[str, np.ndarray]:
    return {
        "q": numbers(2, tokens, 16),
        "k": numbers(2, tokens, 8) / 2,
        "v": numbers(2, tokens, 16, seed=1),
        "s": numbers(2, 2, 4, 8),
        "g": -np.abs(numbers(2, tokens, decay or 2)),
        "w": np.abs(numbers(2, tokens, 2, seed=2)) / 4,
    }


@pytest.mark.parametrize(("rule", "decay"), [("linear", 0), ("gated", 8), ("delta", 0), ("gated_delta", 2)])
@pytest.mark.parametrize("past", [False, True])
def test_one_token_of_linear_attention_is_one_step(rule: str, decay: int, past: bool) -> None:
    found = same(linear(rule, "1", decay, past), **linear_inputs(1, decay))
    assert "Scan" not in found


@pytest.mark.parametrize(("rule", "decay"), [("linear", 0), ("gated", 2)])
@pytest.mark.parametrize("tokens", ["5", "L"])
@pytest.mark.parametrize("past", [False, True])
def test_heads_that_decay_as_a_whole_are_products_of_matrices(rule: str, decay: int, tokens: str, past: bool) -> None:
    text = linear(rule, tokens, decay, past)
    found = same(text, **linear_inputs(5, decay))
    assert "Scan" not in found
    assert builds(text)


def test_other_rules_stay_a_scan() -> None:
    for rule, decay in (("gated", 8), ("gated_delta", 8)):
        assert same(linear(rule, "L", decay), **linear_inputs(3, decay))["Scan"] == 1
    same(linear("delta", "L", dtype="float16"), 2e-2, **linear_inputs(3))


@pytest.mark.parametrize("channels", ["3", "C"])
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("past", [False, True])
def test_a_causal_convolution_keeps_its_state(channels: str, taps: int, past: bool) -> None:
    text = f"""
        g (float[B,{channels},L] x, float[{channels},1,{taps}] w, float[{channels}] b
           {f", float[B,{channels},{taps - 1}] s" if past else ""})
          => (float[B,{channels},L] y, float[B,{channels},{taps - 1}] n) {{
          y, n = CausalConvWithState <activation = "silu"> (x, w, b{", s" if past else ""}) }}"""
    state = numbers(2, 3, taps - 1, seed=1)
    found = same(text, x=numbers(2, 3, 5), w=numbers(3, 1, taps), b=numbers(3), s=state)
    assert ("Conv" in found) is (channels == "3")
