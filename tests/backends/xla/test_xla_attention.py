"""Attention and its relatives on XLA, against torch, the standard's reference, and step-by-step recurrences."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx.parser
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

import planish
from planish.backends import backend
from planish.backends.xla.function import JaxFunction, to_jax
from planish.backends.xla.pallas_attention import Form, kernel, long_attention, plain, takes

Array = Any
rng = np.random.default_rng(7)


def numbers(*shape: int, dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def model(inputs: str, node: str, outputs: str = "y", opset: int = 28) -> Any:
    """A graph of one node; ``inputs`` are typed, ``outputs`` are names of float tensors."""
    typed = ", ".join(f"float[{','.join('?' * 4)}] {o}" for o in outputs.split(","))
    text = f'<ir_version: 12, opset_import: ["" : {opset}]> g ({inputs}) => ({typed}) {{ {outputs} = {node} }}'
    parsed = onnx.parser.parse_model(text)
    for output in parsed.graph.output:
        output.type.tensor_type.ClearField("shape")
    return planish.load(parsed)


def function(*args: Any, **options: Any) -> JaxFunction:
    return to_jax(model(*args), **options)


FOUR = "float[b,h,s,d] q, float[b,n,t,d] k, float[b,n,t,e] v"


def by_torch(q: Array, k: Array, v: Array, mask: Array | None = None, *, causal: bool = False) -> torch.Tensor:
    allowed = None if mask is None else torch.as_tensor(np.array(mask))
    return torch.nn.functional.scaled_dot_product_attention(
        *(x if isinstance(x, torch.Tensor) else torch.as_tensor(x) for x in (q, k, v)),
        attn_mask=allowed,
        is_causal=causal,
        enable_gqa=True,
    )


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("kind", ["none", "causal", "keys", "pairs", "bias"])
def test_attention_and_its_gradients_are_those_of_torch(kind: str, heads: int) -> None:
    q, k, v, cotangent = numbers(2, heads, 5, 8), numbers(2, 2, 5, 8), numbers(2, 2, 5, 8), numbers(2, heads, 5, 8)
    mask = {
        "keys": np.array([1, 1, 0, 1, 0], bool).reshape(1, 1, 1, 5),
        "pairs": np.tril(np.ones((5, 5), bool)),
        "bias": numbers(2, heads, 1, 5),
    }.get(kind)
    typed = {"keys": ", bool[1,1,1,t] m", "pairs": ", bool[s,t] m", "bias": ", float[b,h,1,t] m"}.get(kind, "")
    node = f"Attention<is_causal={int(kind == 'causal')}>(q, k, v{', m' if typed else ''})"
    f = function(FOUR + typed, node)
    rest = () if mask is None else (mask,)

    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    wanted = by_torch(*leaves, mask, causal=kind == "causal")
    wanted.backward(torch.as_tensor(cotangent))

    (y,) = f({}, q, k, v, *rest)
    np.testing.assert_allclose(y, wanted.detach(), rtol=1e-5, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *qkv: jnp.sum(f({}, *qkv, *rest)[0] * cotangent), (0, 1, 2)))(q, k, v)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-4, atol=1e-5)


def test_a_query_without_keys_has_a_result_and_gradients_of_zero() -> None:
    f = function(FOUR + ", bool[b,1,s,t] m", "Attention(q, k, v, m)")
    q, k, v = numbers(2, 4, 3, 8), numbers(2, 2, 6, 8), numbers(2, 2, 6, 8)
    mask = np.ones((2, 1, 3, 6), bool)
    mask[0, 0, 1] = False
    (y,) = f({}, q, k, v, mask)
    assert not np.any(y[0, :, 1])
    np.testing.assert_allclose(y[1], by_torch(q, k, v)[1], rtol=1e-5, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *qkv: jnp.sum(f({}, *qkv, mask)[0] ** 2), (0, 1, 2)))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][0, :, 1])


def test_a_bias_of_minus_infinity_throughout_is_a_mask_without_keys() -> None:
    f = function(FOUR + ", float[b,1,s,t] m", "Attention(q, k, v, m)")
    q, k, v = numbers(1, 2, 3, 8), numbers(1, 2, 4, 8), numbers(1, 2, 4, 8)
    bias = numbers(1, 1, 3, 4)
    bias[0, 0, 2] = -np.inf
    bias[0, 0, 0, 1] = -np.inf
    (y,) = f({}, q, k, v, bias)
    wanted = by_torch(q, k, v, bias).numpy()
    np.testing.assert_allclose(y[:, :, :2], wanted[:, :, :2], rtol=1e-5, atol=1e-6)
    assert not np.any(y[:, :, 2])
    gradients = jax.jit(jax.grad(lambda q, m: jnp.sum(f({}, q, k, v, m)[0] ** 2), (0, 1)))(q, bias)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("mask", ["bool[b,1,1,m] m", "bool[h,s,m] m", "float[b,h,1,m] m", "float[b,1,s,m] m"])
def test_masks_that_are_short_are_padded_for_all_heads_that_share_keys(mode: int, mask: str) -> None:
    inputs = f"{FOUR}, {mask}"
    softcap = "softcap=3.0, " if mode else ""  # of which onnx.reference takes the products after it
    node = f"Attention<{softcap}qk_matmul_output_mode={mode}, left_window_size=4>(q, k, v, m)"
    graph = model(inputs, node, "y,pk,pv,qk")
    names = {"b": 2, "h": 4, "s": 3, "m": 5}
    shape = [names.get(d, 1) for d in mask[mask.index("[") + 1 : mask.index("]")].split(",")]
    q, k, v = numbers(2, 4, 3, 8), numbers(2, 2, 6, 8), numbers(2, 2, 6, 5)
    m = rng.random(shape) > 0.4 if mask.startswith("bool") else numbers(*shape)
    feeds = {"q": q, "k": k, "v": v, "m": m}
    wanted = backend("reference").compile(graph).run(feeds)
    for got, want in zip(backend("xla").compile(graph).run(feeds), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_cache_grows_step_by_step_to_what_one_pass_computes() -> None:
    inputs = f"{FOUR}, float[b,n,p,d] pk, float[b,n,p,e] pv"
    f = function(inputs, 'Attention<is_causal=1>(q, k, v, "", pk, pv)', "y,nk,nv")
    q, k, v = numbers(1, 4, 6, 8), numbers(1, 2, 6, 8), numbers(1, 2, 6, 8)
    keys, values, results = k[:, :, :0], v[:, :, :0], []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        step = (x[:, :, start:stop] for x in (q, k, v))
        y, keys, values = f({}, *step, keys, values)
        results.append(y)
    np.testing.assert_allclose(np.concatenate(results, 2), by_torch(q, k, v, causal=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(keys, k)
    np.testing.assert_array_equal(values, v)


def test_flat_heads_are_those_of_four_dimensions() -> None:
    flat = function(
        "float[b,s,x] q, float[b,t,y] k, float[b,t,z] v", "Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)"
    )
    q, k, v = numbers(2, 4, 3, 8), numbers(2, 2, 5, 8), numbers(2, 2, 5, 6)
    (y,) = flat({}, *(x.swapaxes(1, 2).reshape(2, x.shape[2], -1) for x in (q, k, v)))
    wanted = by_torch(q, k, v).numpy().swapaxes(1, 2).reshape(2, 3, -1)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_narrow_types_are_summed_in_float32_and_rounded_once() -> None:
    q, k, v = (jnp.asarray(numbers(1, 2, 40, 64), jnp.bfloat16) for _ in range(3))
    inputs = FOUR.replace("float[", "bfloat16[")
    parsed = onnx.parser.parse_model(
        f'<ir_version: 12, opset_import: ["" : 28]> g ({inputs}) => (bfloat16[b,h,s,e] y) '
        "{ y = Attention<is_causal=1>(q, k, v) }"
    )
    (y,) = to_jax(planish.load(parsed))({}, q, k, v)
    wanted = by_torch(*(np.array(x.astype(jnp.float32)) for x in (q, k, v)), causal=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wanted, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("node", ["Attention<is_causal=1>(q, k, v)", "Attention(q, k, v, m)"])
def test_batch_and_sequences_are_exported_as_symbols(node: str) -> None:
    mask = ", bool[b,1,1,t] m" if ", m" in node else ""
    f = function(FOUR + mask, node)
    b, s, t = jax.export.symbolic_shape("b, s, t")
    specs = [jax.ShapeDtypeStruct((b, n, r, 8), np.float32) for n, r in ((4, s), (2, t), (2, t))]
    m = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool).reshape(3, 1, 1, 5)
    if mask:
        specs.append(jax.ShapeDtypeStruct((b, 1, 1, t), bool))
    exported = jax.export.export(jax.jit(lambda *a: f({}, *a)[0]), platforms=["cpu", "tpu", "cuda"])(*specs)
    q, k, v = numbers(3, 4, 4, 8), numbers(3, 2, 5, 8), numbers(3, 2, 5, 8)
    y = exported.call(q, k, v, *((m,) if mask else ()))
    wanted = by_torch(q, k, v, m if mask else None, causal=not mask)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_impossible_attention_is_refused_before_anything_runs() -> None:
    with pytest.raises(planish.PlanishError, match="past_key and past_value go together"):
        function(FOUR + ", float[b,n,p,d] pk", 'Attention(q, k, v, "", pk)')
    with pytest.raises(planish.PlanishError, match="a window is of 0 or more keys"):
        function(FOUR, "Attention<left_window_size=-2>(q, k, v)")


# long sequences


@pytest.mark.parametrize(
    ("heads", "shared", "queries", "keys", "depth", "form", "masked"),
    [
        (4, 2, 200, 300, 40, Form(offset=100, right=0, softcap=5.0), slice(0, 150)),
        (2, 1, 256, 256, 64, Form(left=50, right=20), slice(100, 256)),
    ],
)
def test_the_kernel_and_its_gradients_are_those_of_plain_attention(
    heads: int, shared: int, queries: int, keys: int, depth: int, form: Form, masked: slice | None
) -> None:
    q, k, v = numbers(1, heads, queries, depth) / 8, numbers(1, shared, keys, depth), numbers(1, shared, keys, 64)
    mask = ()
    if masked is not None:
        mask = (jnp.ones((1, keys), bool).at[:, masked].set(False),)
    cotangent = numbers(1, heads, queries, 64)

    def value_and_gradients(attention: Any) -> tuple[Array, ...]:
        y, pull = jax.vjp(lambda *qkv: attention(*qkv, *mask, form=form), q, k, v)
        return y, *pull(jnp.asarray(cotangent))

    with pltpu.force_tpu_interpret_mode():
        computed = value_and_gradients(kernel)
    for got, want in zip(computed, value_and_gradients(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_long_sequences_are_one_operation_with_gradient_and_batches() -> None:
    f = function(FOUR, "Attention<is_causal=1>(q, k, v)")
    q, k, v = numbers(1, 2, 1024, 8), numbers(1, 1, 1024, 8), numbers(1, 1, 1024, 8)
    jaxpr = str(jax.make_jaxpr(lambda *a: f({}, *a))(q, k, v))
    assert "long_attention" in jaxpr
    assert "long_attention" not in str(
        jax.make_jaxpr(lambda *a: function(FOUR, "Attention(q, k, v)", attention="plain")({}, *a))(q, k, v)
    )
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    wanted = by_torch(*leaves, causal=True)
    wanted.square().sum().backward()
    np.testing.assert_allclose(f({}, q, k, v)[0], wanted.detach(), rtol=1e-4, atol=1e-5)
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(f({}, *a)[0] ** 2), (0, 1, 2)))(q, k, v)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-3, atol=1e-4)
    mapped = jax.vmap(lambda x: long_attention(x, k, v, None, Form()), 1, 1)
    rows = np.stack([q, 2 * q], 1)
    np.testing.assert_allclose(mapped(rows)[:, 1], plain(2 * q, k, v, form=Form()), rtol=1e-4, atol=1e-5)


def test_the_kernel_takes_what_it_gains_from() -> None:
    def spec(*shape: Any, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    long, short = spec(1, 4, 1024, 64), spec(1, 4, 512, 64)
    assert takes(long, long, long, Form(right=0)) is None
    assert takes(short, short, short, Form()) == "the scores are few"
    double = spec(1, 4, 1024, 64, dtype=np.float64)
    assert takes(double, double, double, Form()) == "the kernel computes float32 and bfloat16"
    (b,) = jax.export.symbolic_shape("b")
    symbolic = spec(b, 4, 1024, 64)
    assert takes(symbolic, symbolic, symbolic, Form()) == "sizes are symbolic"
    odd = spec(1, 4, 1024, 63)
    assert "multiples of 8" in str(takes(odd, odd, odd, Form()))
    assert takes(spec(1, 4, 2048, 64), long, long, Form(left=8)) == "some queries have no key"


# relatives


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embeddings_rotate_pairs_and_turn_back_in_the_gradient(interleaved: int) -> None:
    node = f"RotaryEmbedding<interleaved={interleaved}, rotary_embedding_dim=6>(x, c, s, p)"
    f = function("float[b,h,t,d] x, float[m,r] c, float[m,r] s, int64[b,t] p", node)
    angles = numbers(9, 3)
    x, places = numbers(2, 2, 4, 8), rng.integers(0, 9, (2, 4))
    (y,) = f({}, x, np.cos(angles), np.sin(angles), places)
    pairs = [(0, 1), (2, 3), (4, 5)] if interleaved else [(0, 3), (1, 4), (2, 5)]
    wanted = x.copy()
    for i, (a, b) in enumerate(pairs):
        turn = np.exp(1j * angles[places][..., i])[:, None] * (x[..., a] + 1j * x[..., b])
        wanted[..., a], wanted[..., b] = turn.real, turn.imag
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(f({}, x, np.cos(angles), np.sin(angles), places)[0] ** 2))(x)
    np.testing.assert_allclose(gradient, 2 * x, rtol=1e-5, atol=1e-5)


def recurrent(rule: str, q: Array, k: Array, v: Array, g: Array, b: Array) -> tuple[Array, Array]:
    """Linear attention position by position, (B, T, H, D), one head of queries per head of keys."""
    state, results = np.zeros((*q.shape[:1], q.shape[2], q.shape[3], v.shape[3])), []
    for t in range(q.shape[1]):
        if "gated" in rule:
            state = state * np.exp(g[:, t])[..., None]
        new = v[:, t]
        if "delta" in rule:
            new = b[:, t] * (new - np.einsum("bhde,bhd->bhe", state, k[:, t]))
        state = state + k[:, t][..., None] * new[:, :, None]
        results.append(np.einsum("bhde,bhd->bhe", state, q[:, t]) / np.sqrt(q.shape[3]))
    return np.stack(results, 1), state


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention_in_chunks_is_the_recurrence(rule: str, per_key: bool) -> None:
    length, heads, depth = 43, 2, 8
    q, v = numbers(2, length, heads, depth), numbers(2, length, heads, 5)
    k = numbers(2, length, heads, depth)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g = -np.abs(numbers(2, length, heads, depth if per_key else 1))
    b = rng.random((2, length, heads, 1)).astype(np.float32)
    wanted, state = recurrent(rule, q, k, v, g, b)
    gates = "g" if "gated" in rule else '""'
    rates = "b" if "delta" in rule else '""'
    extra = ", float[n,t,z] g" * ("gated" in rule) + ", float[n,t,h] b" * ("delta" in rule)
    attributes = f'q_num_heads=2, kv_num_heads=2, chunk_size=16, update_rule="{rule}"'
    node = f'LinearAttention<{attributes}>(q, k, v, "", {gates}, {rates})'
    f = function("float[n,t,x] q, float[n,t,x] k, float[n,t,y] v" + extra, node, "y,last")
    given = [x for x, is_given in ((q, 1), (k, 1), (v, 1), (g, "gated" in rule), (b, "delta" in rule)) if is_given]
    flat = [x.reshape(2, length, -1) for x in given]
    y, last = jax.jit(lambda *a: f({}, *a))(*flat)
    np.testing.assert_allclose(y, wanted.reshape(2, length, -1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, state, rtol=1e-4, atol=1e-5)
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(f({}, *a)[0] ** 2), tuple(range(len(flat)))))(*flat)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
def test_linear_attention_is_exported_with_symbolic_sizes(rule: str) -> None:
    gates = ("float[n,t,h] b" if "delta" in rule else "", ", b" if "delta" in rule else "")
    f = function(
        "float[n,t,x] q, float[n,t,y] k, float[n,t,y] v, float[n,t,h] g" + (gates[0] and ", ") + gates[0],
        f'LinearAttention<q_num_heads=4, kv_num_heads=2, update_rule="{rule}", chunk_size=8>(q, k, v, "", g{gates[1]})',
        "y,last",
    )
    n, t = jax.export.symbolic_shape("n, t")
    widths = (16, 8, 8, 2, 2)[: 4 + ("delta" in rule)]
    specs = [jax.ShapeDtypeStruct((n, t, w), np.float32) for w in widths]
    exported = jax.export.export(jax.jit(lambda *a: f({}, *a)))(*specs)
    given = [numbers(3, 21, w) / 4 for w in widths]
    for got, want in zip(exported.call(*given), f({}, *given), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_causal_convolution_carries_its_state() -> None:
    f = function(
        "float[b,c,t] x, float[c,1,k] w, float[c] bias, float[b,c,p] past",
        'CausalConvWithState<activation="silu">(x, w, bias, past)',
        "y,last",
    )
    for size in (4, 11):
        x, w, bias = numbers(2, 3, 20), numbers(3, 1, size), numbers(3)
        padded = torch.as_tensor(np.pad(x, ((0, 0), (0, 0), (size - 1, 0))))
        wanted = torch.nn.functional.silu(
            torch.nn.functional.conv1d(padded, torch.as_tensor(w), torch.as_tensor(bias), groups=3)
        )
        first, state = f({}, x[:, :, :2], w, bias, np.zeros((2, 3, size - 1), np.float32))
        second, state = f({}, x[:, :, 2:], w, bias, state)
        np.testing.assert_allclose(np.concatenate([first, second], 2), wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(state, x[:, :, 20 - (size - 1) :])
