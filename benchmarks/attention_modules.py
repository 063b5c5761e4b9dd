"""Attention as people write it by hand: small modules, one spelling each, for `attention_zoo`.

`MODULES` maps a name to a function that returns the module, its inputs, and what is dynamic in them (None: nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

B, S, H, D = 2, 12, 4, 16
E = H * D
Case = tuple[nn.Module, dict[str, Tensor], dict[str, Any] | None]
DYNAMIC = {0: "batch", 1: "sequence"}


class Written(nn.Module):
    """Projections around ``core(q, k, v, extra)``, which sees ``[batch, heads, positions, features]``."""

    def __init__(self, core: Callable[..., Tensor], kv_heads: int = H):
        super().__init__()
        self.core = core
        self.kv_heads = kv_heads
        self.q, self.k, self.v, self.o = (nn.Linear(E, n) for n in (E, kv_heads * D, kv_heads * D, E))

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """``x``: batch, positions, features."""
        b, s, _ = x.shape
        q = self.q(x).view(b, s, H, D).transpose(1, 2)
        k, v = (p(x).view(b, s, self.kv_heads, D).transpose(1, 2) for p in (self.k, self.v))
        return self.o(self.core(q, k, v, extra).transpose(1, 2).reshape(b, s, E))


class Packed(nn.Module):
    """One projection for queries, keys and values, taken apart in one of several ways."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.qkv, self.o = nn.Linear(E, 3 * E), nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, positions, features."""
        b, s, _ = x.shape
        packed = self.qkv(x)
        if self.how == "chunk":
            q, k, v = (t.view(b, s, H, D).transpose(1, 2) for t in packed.chunk(3, dim=-1))
        elif self.how == "unbind":
            q, k, v = packed.view(b, s, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.how == "index":
            whole = packed.view(b, s, 3, H, D)
            q, k, v = (whole[:, :, i].transpose(1, 2) for i in range(3))
        else:
            q, k, v = packed.view(b, s, H, 3 * D).transpose(1, 2).split(D, dim=-1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(D), dim=-1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, s, E))


class Windowed(nn.Module):
    """Attention within windows, in tensors of rank 5, with a bias per head and a mask per window."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(E, 3 * E)
        self.bias = nn.Parameter(torch.randn(H, 4, 4))
        self.register_buffer("mask", torch.where(torch.rand(3, 1, 4, 4) > 0.2, 0.0, -100.0))

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, three windows of four, features."""
        b = x.shape[0]
        q, k, v = self.qkv(x).view(b, 3, 4, 3, H, D).permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = q @ k.transpose(-1, -2) * D**-0.5 + self.bias + self.mask
        return (scores.softmax(-1) @ v).permute(0, 1, 3, 2, 4).reshape(b, 12, E)


class Cached(nn.Module):
    """Keys and values of earlier positions come in, and all of them go out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(E, E) for _ in range(4))

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x``: the new positions."""
        b, s, _ = x.shape
        q, k, v = (p(x).view(b, s, H, D).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(D), dim=-1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, s, E)), k, v


class ReturnsWeights(Written):
    """The weights are an output, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``x``: batch, positions, features."""
        b, s, _ = x.shape
        q, k, v = (p(x).view(b, s, H, D).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(D), dim=-1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, s, E)), weights


class Wrapped(nn.Module):
    """`nn.MultiheadAttention` and its kin, with the arguments that a test needs."""

    def __init__(self, inner: nn.Module, call: Callable[..., Any]):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, *args: Tensor) -> Any:
        """The arguments of ``call`` behind the module."""
        return self.call(self.inner, *args)


class UNetBlock(nn.Module):
    """A residual block with group norms, attention over the pixels, attention to a text, a gated feed-forward layer."""

    def __init__(self, channels: int = 32, heads: int = 4, text: int = 24):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels) for _ in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)])
        self.layer_norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])
        self.q, self.q2 = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        self.kv, self.kv2 = (nn.Linear(n, 2 * channels, bias=False) for n in (channels, text))
        self.o, self.o2 = (nn.Linear(channels, channels) for _ in range(2))
        self.up, self.down = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def attend(self, x: Tensor, context: Tensor, q: nn.Module, kv: nn.Module) -> Tensor:
        """Attention of ``x`` to ``context`` with batch and heads in one dimension."""
        b, s, c = x.shape

        def split(t: Tensor) -> Tensor:
            t = t.reshape(b, t.shape[1], self.heads, c // self.heads).permute(0, 2, 1, 3)
            return t.reshape(b * self.heads, t.shape[2], c // self.heads)

        queries = split(q(x))
        keys, values = (split(t) for t in kv(context).chunk(2, dim=-1))
        empty = torch.empty(b * self.heads, s, keys.shape[1], dtype=x.dtype)
        scores = torch.baddbmm(empty, queries, keys.transpose(1, 2), beta=0, alpha=(c // self.heads) ** -0.5)
        mixed = torch.bmm(scores.softmax(dim=-1), values).reshape(b, self.heads, s, c // self.heads)
        return mixed.permute(0, 2, 1, 3).reshape(b, s, c)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """``x``: batch, channels, height, width; ``text``: batch, tokens, features."""
        h = self.convs[0](functional.silu(self.norms[0](x)))
        x = x + self.convs[1](functional.silu(self.norms[1](h)))
        b, c, height, width = x.shape
        t = self.norms[2](x).permute(0, 2, 3, 1).reshape(b, height * width, c)
        n = self.layer_norms[0](t)
        t = t + self.o(self.attend(n, n, self.q, self.kv))
        t = t + self.o2(self.attend(self.layer_norms[1](t), text, self.q2, self.kv2))
        a, gate = self.up(self.layer_norms[2](t)).chunk(2, dim=-1)
        t = t + self.down(a * functional.gelu(gate))
        return x + t.reshape(b, height, width, c).permute(0, 3, 1, 2)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2)


def _causal(s: int) -> Tensor:
    return torch.ones(s, s, dtype=torch.bool).tril()


def _alibi(s: int) -> Tensor:
    slopes = 2.0 ** -torch.arange(1, H + 1)
    return slopes.view(H, 1, 1) * (torch.arange(s).view(1, 1, s) - torch.arange(s).view(1, s, 1))


def _half_softmax(q: Tensor, k: Tensor, v: Tensor, _extra: Any) -> Tensor:
    return (_scores(q, k) * D**-0.5).float().softmax(-1).to(q.dtype) @ v


def _capped(q: Tensor, k: Tensor, v: Tensor, _extra: Any) -> Tensor:
    scores = 20.0 * torch.tanh(_scores(q, k) * D**-0.5 / 20.0)
    return scores.masked_fill(~_causal(q.shape[2]), -1e9).softmax(-1) @ v


def _repeat(t: Tensor) -> Tensor:
    b, h, s, d = t.shape
    return t[:, :, None].expand(b, h, H // h, s, d).reshape(b, H, s, d)


def _einsum(q: Tensor, k: Tensor, v: Tensor, _extra: Any) -> Tensor:
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(D**-0.5).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def _positions(q: Tensor, k: Tensor, v: Tensor, _extra: Any) -> Tensor:
    at = torch.arange(q.shape[2])
    return torch.where(at[None] <= at[:, None], _scores(q, k) / 4.0, torch.finfo(q.dtype).min).softmax(-1) @ v


CORES: dict[str, tuple[Callable[..., Tensor], int, Tensor | None]] = {
    "scale-before": (lambda q, k, v, _: (_scores(q * D**-0.5, k)).softmax(-1) @ v, H, None),
    "scale-both": (lambda q, k, v, _: (_scores(q * D**-0.25, k * D**-0.25)).softmax(-1) @ v, H, None),
    "scale-by-tensor": (
        lambda q, k, v, _: (_scores(q, k) / torch.sqrt(torch.tensor(q.shape[-1]))).softmax(-1) @ v,
        H,
        None,
    ),
    "einsum": (_einsum, H, None),
    "masked-fill": (
        lambda q, k, v, m: (_scores(q, k) / 4).masked_fill(~m[:, None, None], float("-inf")).softmax(-1) @ v,
        H,
        torch.rand(B, S) > 0.3,
    ),
    "additive-mask": (
        lambda q, k, v, m: (_scores(q, k) / 4 + (1.0 - m.float())[:, None, None] * -1e4).softmax(-1) @ v,
        H,
        torch.rand(B, S) > 0.3,
    ),
    "padding-and-causal": (
        lambda q, k, v, m: (
            torch.where(m[:, None, None] & _causal(q.shape[2]), _scores(q, k) / 4, -1e30).softmax(-1) @ v
        ),
        H,
        torch.rand(B, S) > 0.3,
    ),
    "causal-by-positions": (_positions, H, None),
    "causal-by-triu": (
        lambda q, k, v, _: (_scores(q, k) / 4 + torch.full((q.shape[2],) * 2, -1e9).triu(1)).softmax(-1) @ v,
        H,
        None,
    ),
    "relative-bias": (lambda q, k, v, m: (_scores(q, k) / 4 + m).softmax(-1) @ v, H, torch.randn(1, H, S, S)),
    "alibi": (lambda q, k, v, _: (_scores(q, k) / 4 + _alibi(q.shape[2])).softmax(-1) @ v, H, None),
    "softcap": (_capped, H, None),
    "repeat-interleave": (
        lambda q, k, v, _: (_scores(q, k.repeat_interleave(2, 1)) / 4).softmax(-1) @ v.repeat_interleave(2, 1),
        2,
        None,
    ),
    "expanded-heads": (lambda q, k, v, _: (_scores(q, _repeat(k)) / 4).softmax(-1) @ _repeat(v), 2, None),
    "multi-query": (lambda q, k, v, _: (_scores(q, k) / 4).softmax(-1) @ v, 1, None),
    "sdpa-causal": (lambda q, k, v, _: functional.scaled_dot_product_attention(q, k, v, is_causal=True), H, None),
    "sdpa-bool": (
        lambda q, k, v, m: functional.scaled_dot_product_attention(q, k, v, attn_mask=m[:, None, None]),
        H,
        torch.rand(B, S) > 0.3,
    ),
    "sdpa-float-scale": (
        lambda q, k, v, m: functional.scaled_dot_product_attention(q, k, v, attn_mask=m, scale=0.3),
        H,
        torch.randn(1, H, S, S),
    ),
    "sdpa-gqa": (lambda q, k, v, _: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True), 2, None),
    "linear-attention": (lambda q, k, v, _: q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v), H, None),
}


def _self(inner: nn.Module, x: Tensor) -> Any:
    return inner(x, x, x, need_weights=False)[0]


def _averaged(inner: nn.Module, x: Tensor) -> Any:
    return inner(x, x, x, need_weights=True)


def _cross(inner: nn.Module, x: Tensor, y: Tensor) -> Any:
    return inner(x, y, y, need_weights=False)[0]


def cases() -> dict[str, Callable[[], Case]]:
    """Every module by name; sites that cannot be fused are in `UNFUSABLE`."""
    x = {"x": torch.randn(B, S, E)}

    def core(name: str) -> Callable[[], Case]:
        function, kv_heads, extra = CORES[name]
        dynamic = {"x": DYNAMIC}
        if extra is not None:
            fixed = extra.dim() == 4
            inputs = {**x, "extra": extra}
            return lambda: (Written(function, kv_heads), inputs, None if fixed else {**dynamic, "extra": DYNAMIC})
        return lambda: (Written(function, kv_heads), dict(x), dynamic)

    found: dict[str, Callable[[], Case]] = {name: core(name) for name in CORES}
    for how in ("chunk", "unbind", "index", "split"):
        found[f"packed-{how}"] = lambda how=how: (Packed(how), dict(x), {"x": DYNAMIC})
    past = torch.randn(B, H, 5, D)
    cached = {"x": x["x"][:, :3].contiguous(), "past_k": past, "past_v": past.flip(0)}
    axes = {"x": {0: "batch"}, "past_k": {0: "batch", 2: "past"}, "past_v": {0: "batch", 2: "past"}}
    mha = lambda: nn.MultiheadAttention(E, H, batch_first=True)  # noqa: E731
    layer = lambda cls: cls(E, H, 2 * E, batch_first=True, dropout=0.0)  # noqa: E731
    encoder, decoder = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer
    text = {"x": torch.randn(B, 32, 8, 8), "text": torch.randn(B, 7, 24)}
    two = {**x, "y": torch.randn(B, 7, E)}
    return found | {
        "windowed": lambda: (Windowed(), dict(x), {"x": {0: "batch"}}),
        "cached": lambda: (Cached(), cached, axes),
        "returned-weights": lambda: (ReturnsWeights(lambda q, *_: q), dict(x), {"x": DYNAMIC}),
        "half": lambda: (Written(_half_softmax).half(), {"x": x["x"].half()}, {"x": DYNAMIC}),
        "mha": lambda: (Wrapped(mha(), _self), dict(x), None),
        "mha-weights": lambda: (Wrapped(mha(), _averaged), dict(x), None),
        "mha-cross": lambda: (Wrapped(mha(), _cross), dict(two), None),
        "encoder": lambda: (
            nn.TransformerEncoder(layer(encoder), 2, enable_nested_tensor=False),
            {"src": x["x"]},
            None,
        ),
        "decoder": lambda: (
            Wrapped(nn.TransformerDecoder(layer(decoder), 2), lambda m, a, b: m(a, b)),
            dict(two),
            None,
        ),
        "unet-block": lambda: (UNetBlock(), text, {"x": {0: "batch"}, "text": {0: "batch"}}),
    }


UNFUSABLE = {
    "linear-attention": "keys and values are multiplied first: there are no scores",
    "returned-weights": "the weights are an output",
    "mha-weights": "the weights are an output",
}
