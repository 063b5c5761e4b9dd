"""Attention drawn at random: layouts, masks, scales, head counts, types. Fused and unfused agree on two backends."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.backends.base import backend
from planish.ir import DType, Graph, TensorType, Value, constant, op
from planish.ir.clone import clone_graph
from planish.ir.dims import sym
from planish.ir.edit import insert_floating
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

TOLERANCE = {DType.FLOAT: 1e-5, DType.FLOAT16: 8e-3}


@dataclass(frozen=True)
class Variant:
    batch: int
    heads: int
    groups: int  # queries that share keys and values
    queries: int
    keys: int
    size: int
    value_size: int
    layout: str  # rows, heads-first, flat, windows
    dynamic: bool
    scales: tuple[str, ...]
    masks: tuple[str, ...]
    softcap: bool
    guard: bool
    half: bool
    seed: int
    past: int | None = None  # earlier positions in a cache; all of them are outputs


@st.composite
def variants(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    layout = draw(st.sampled_from(["rows", "heads-first", "flat", "windows"]))
    past = draw(st.sampled_from([None, None, 0, 1, 3])) if layout in ("rows", "heads-first") else None
    return Variant(
        batch=draw(st.integers(1, 3)),
        heads=groups * draw(st.integers(1, 3)),
        groups=groups,
        queries=draw(st.integers(1, 5)),
        keys=draw(st.integers(4, 6) if past else st.integers(1, 6)),
        size=draw(st.sampled_from([2, 4, 8])),
        value_size=draw(st.sampled_from([2, 4, 6])),
        layout=layout,
        dynamic=draw(st.booleans()),
        scales=tuple(draw(st.lists(st.sampled_from(["q", "k", "div", "mul", "after-bias"]), max_size=3))),
        masks=tuple(
            draw(st.lists(st.sampled_from(["padding", "causal", "bias", "bool", "bool-inf", "per-head"]), max_size=3))
        ),
        softcap=draw(st.booleans()),
        guard=draw(st.booleans()),
        half=draw(st.sampled_from([False, False, True])),
        seed=draw(st.integers(0, 1 << 16)),
        past=past,
    )


@dataclass
class Builder:
    variant: Variant
    graph: Graph = field(default_factory=lambda: Graph("attention", opsets={"": 18}))
    arrays: dict = field(default_factory=dict)

    def __post_init__(self):
        self.presents = []
        self.rng = np.random.default_rng(self.variant.seed)
        self.dtype = DType.FLOAT16 if self.variant.half else DType.FLOAT

    def input(self, name, array, names=()):
        dtype = DType.from_numpy(array.dtype)
        v = self.variant
        known = (
            ("B",) if v.layout in ("flat", "windows") else ("B", "S", "T", "N", "P")
        )  # there, a Reshape states the lengths
        named = [n if v.dynamic and n in known else "" for n in names or [""] * array.ndim]
        dims = [sym(n) if n else d for n, d in zip(named, array.shape, strict=True)]
        self.arrays[name] = array
        return self.graph.add_input(TensorType(dtype, tuple(dims)), name)

    def random(self, name, *shape, names=()):
        return self.input(name, self.rng.standard_normal(shape).astype(self.dtype.numpy), names)

    def number(self, value, dtype=None):
        return constant(value, dtype or self.dtype)

    def split(self, name, length, heads, size, symbol):
        """``[batch, heads, length, size]``, made of rows or as it is."""
        v = self.variant
        if v.layout == "rows":
            x = self.random(name, v.batch, length, heads * size, names=("B", symbol, ""))
            return op.Transpose(op.Reshape(x, constant([0, 0, heads, size])), perm=(0, 2, 1, 3))
        return self.random(name, v.batch, heads, length, size, names=("B", "", symbol, ""))

    def cached(self, x, name, size):
        """``x`` behind the keys or values of earlier positions."""
        v = self.variant
        if v.past is None:
            return x
        past = self.random(f"past_{name}", v.batch, v.heads // v.groups, v.past, size, names=("B", "", "P", ""))
        self.presents.append(op.Concat(past, x, axis=-2))
        return self.presents[-1]

    def repeated(self, x, length, size):
        """Each head for ``groups`` heads of queries."""
        v = self.variant
        if v.groups == 1:
            return x
        stacked = op.Unsqueeze(x, constant([2]))
        wide = op.Expand(stacked, constant([1, 1, v.groups, 1, 1]))
        return op.Reshape(wide, constant([0, v.heads, -1, size]))

    def masked(self, scores, kind, index):
        """The scores with one more mask; a row may be masked as a whole."""
        v, wide = self.variant, scores.dtype
        low = float(np.finfo(wide.numpy).min)
        match kind:
            case "padding":
                kept = (self.rng.random((v.batch, 1, 1, v.keys)) > 0.3).astype(wide.numpy)
                kept[..., 0] = 1
                mask = self.input(f"mask{index}", (1 - kept) * wide.numpy.type(-1e4), ("B", "", "", "T"))
                return op.Add(scores, mask)
            case "bias" | "per-head":
                shape = (v.queries, v.keys) if kind == "bias" else (1, v.heads, v.queries, v.keys)
                names = ("S", "T") if kind == "bias" else ("", "", "S", "T")
                return op.Add(
                    self.input(f"mask{index}", self.rng.standard_normal(shape).astype(wide.numpy), names), scores
                )
            case "causal":
                kept = np.tril(np.ones((v.queries, v.keys), bool))
                return op.Where(self.input(f"mask{index}", kept, ("S", "T")), scores, self.number(low, wide))
        kept = self.rng.random((v.batch, 1, v.queries, v.keys)) > 0.4
        # A row of infinities is NaN without a guard; half precision cannot hide scores behind masks; and beside -1e4 on
        # all keys that are left, scores are rounded in the fourth digit, in whatever order masks are added.
        if v.half or (kind == "bool-inf" and not v.guard) or "padding" in v.masks:
            kept[..., 0] = True
        keep = self.input(f"mask{index}", kept, ("B", "", "S", "T"))
        if kind == "bool-inf":
            return op.Where(op.Not(keep), self.number(-np.inf, wide), scores)
        return op.Add(op.Where(keep, self.number(0.0, wide), self.number(low, wide)), scores)

    def build(self):
        v = self.variant
        kv_heads = v.heads // v.groups
        q = self.split("q", v.queries, v.heads, v.size, "S")
        new = v.keys - (v.past or 0)
        k = self.cached(self.split("k", new, kv_heads, v.size, "N" if v.past is not None else "T"), "k", v.size)
        w = self.cached(
            self.split("v", new, kv_heads, v.value_size, "N" if v.past is not None else "T"), "v", v.value_size
        )
        k, w = self.repeated(k, v.keys, v.size), self.repeated(w, v.keys, v.value_size)
        q = q * self.number(0.7) if "q" in v.scales else q
        k = k / self.number(1.3) if "k" in v.scales else k
        k = op.Transpose(k, perm=(0, 1, 3, 2))
        if v.layout == "flat":
            q, k = op.Reshape(q, constant([-1, v.queries, v.size])), op.Reshape(k, constant([-1, v.size, v.keys]))
        if v.layout == "windows":
            q, k = op.Unsqueeze(q, constant([1])), op.Unsqueeze(k, constant([1]))
        scores = self.scored(op.MatMul(q, k))
        if v.layout in ("flat", "windows"):
            scores = op.Reshape(scores, constant([-1, v.heads, v.queries, v.keys]))
        if v.half:
            scores = op.Cast(scores, to=DType.FLOAT)
        for i, kind in enumerate(v.masks):
            scores = self.masked(scores, kind, i)
            if i == 0 and "after-bias" in v.scales and kind in ("bias", "per-head"):
                scores = scores * self.number(0.9, scores.dtype)
        weights = op.Softmax(scores, axis=-1)
        if v.guard:
            weights = op.Where(op.IsNaN(weights), self.number(0.0, weights.dtype), weights)
        weights = op.Cast(weights, to=self.dtype) if v.half else weights
        return self.finished(op.MatMul(weights, w))

    def scored(self, scores):
        v = self.variant
        scores = scores / self.number(float(np.sqrt(v.size))) if "div" in v.scales else scores
        scores = self.number(0.4) * scores if "mul" in v.scales else scores
        if v.softcap:
            scores = op.Tanh(scores / self.number(3.0)) * self.number(3.0)
        return scores

    def finished(self, y: Value):
        v = self.variant
        if v.layout == "rows":
            y = op.Reshape(op.Transpose(y, perm=(0, 2, 1, 3)), constant([0, 0, v.heads * v.value_size]))
        insert_floating([y, *self.presents], self.graph.ret)
        for name, value in zip(("y", "present_k", "present_v"), (y, *self.presents), strict=False):
            value.name = name
        self.graph.set_outputs([y, *self.presents])
        return self.graph


@settings(max_examples=300, deadline=None)
@given(variants())
def test_fused_and_unfused_agree(variant):
    builder = Builder(variant)
    graph = builder.build()
    verify(graph)
    original = clone_graph(graph)
    ctx = Context()
    Pipeline.parse("simplify,fuse,simplify").run(graph, ctx)
    verify(graph)
    assert not any(result.problem for result in ctx.results)
    nodes = list(graph.nodes)
    assert [n.op for n in nodes if n.op in ("Softmax", "Attention")] == ["Attention"], str(graph)
    (site,) = (n for n in nodes if n.op == "Attention")
    if variant.layout == "rows":
        assert site.operands[0].rank == 3, str(graph)
    if variant.past is not None and (variant.past or variant.dynamic):  # an empty cache is none
        assert len(site.results) == 3, str(graph)
    if variant.groups > 1:
        axis_heads = site.attrs.get("kv_num_heads", (site.operands[1].shape or (0, 0))[1])
        assert axis_heads == variant.heads // variant.groups, str(graph)
    expected = backend("reference").compile(original)(builder.arrays)
    for name in ("reference", "onnxruntime"):
        result = backend(name).compile(graph)(builder.arrays)
        for key, reference in expected.items():
            actual, wanted = result[key].astype(np.float64), reference.astype(np.float64)
            assert np.isfinite(actual).all(), f"{name}\n{graph}"
            wanted = np.where(np.isnan(wanted), 0, wanted)  # rows without any key: the operator makes them 0
            atol = TOLERANCE[builder.dtype] * max(1.0, float(np.abs(wanted).max()))
            np.testing.assert_allclose(actual, wanted, atol=atol, rtol=0, err_msg=f"{name}\n{graph}")


@pytest.mark.parametrize("layout", ["rows", "heads-first", "flat", "windows"])
def test_each_layout(layout):
    plain = Variant(2, 2, 1, 3, 4, 4, 4, layout, True, ("div",), ("bool",), False, True, False, 0)
    graph = Builder(plain).build()
    Pipeline.parse("simplify,fuse,simplify").run(graph, Context())
    assert [n.op for n in graph.nodes if n.op in ("Softmax", "Attention")] == ["Attention"], str(graph)
