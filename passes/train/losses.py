"""Losses between what a teacher and a student compute: all are means over the rows of a batch, as traced numbers.

Arrays are those of JAX, floating-point ones in float32; ``t`` is the teacher's and ``s`` the student's.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "angle",
    "attention_relations",
    "cross_entropy",
    "divergence",
    "relative_error",
    "similarity_error",
    "value_relations",
]

_TINY = 1e-6
_FEW = 4  # rows
_NEVER = -1e9  # a score that leaves nothing after softmax


def divergence(t: Any, s: Any, temperature: float) -> Any:
    """T^2 KL(softmax(t / T) || softmax(s / T)) over the last dimension (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        t: scores of classes before softmax, [..., classes]; logarithms of probabilities do as well.
        s: likewise, of the same shape.
        temperature: T, above 0. T^2 keeps the size of the gradient.
    """
    import jax

    log_t, log_s = jax.nn.log_softmax(t / temperature), jax.nn.log_softmax(s / temperature)
    return temperature**2 * (jax.numpy.exp(log_t) * (log_t - log_s)).sum(-1).mean()


def relative_error(t: Any, s: Any) -> Any:
    """The mean square of ``s - t`` over the variance of ``t``: 1 says that a constant would be as good."""
    import jax.numpy as jnp

    return jnp.square(s - t).mean() / (jnp.var(t) + _TINY)


def angle(t: Any, s: Any) -> Any:
    """1 - cosine of the angle between ``t`` and ``s`` along the last dimension."""
    import jax.numpy as jnp

    lengths = jnp.square(t).sum(-1) * jnp.square(s).sum(-1)
    return (1 - (t * s).sum(-1) / jnp.sqrt(lengths + _TINY**2)).mean()


def similarity_error(t: Any, s: Any) -> Any:
    """How far the cosines between rows differ from the teacher's: the mean square over the variance of the teacher's.

    Args:
        t: one vector per row, [rows, width]; more dimensions count as width. The loss of fewer than four rows is 0: the
            variance of so few cosines may be next to nothing.
        s: likewise; the width may be another one.
    """
    import jax.numpy as jnp

    def cosines(x: Any) -> Any:
        flat = x.reshape(x.shape[0], -1)
        unit = flat / jnp.sqrt(jnp.square(flat).sum(-1, keepdims=True) + _TINY)
        return unit @ unit.T

    if t.shape[0] < _FEW:
        return jnp.zeros(())
    others = 1 - jnp.eye(t.shape[0])  # a row is as similar to itself as can be, which says nothing
    of_t = cosines(t)
    count = others.sum()
    spread = (jnp.square(of_t - (of_t * others).sum() / count) * others).sum() / count
    return (jnp.square(of_t - cosines(s)) * others).sum() / count / (spread + _TINY)


def attention_relations(t: Any, s: Any, mask: Any, heads: int) -> Any:
    """KL of the teacher's attention from the student's (MiniLM, Wang et al. 2020, arXiv 2002.10957).

    Args:
        t: queries and keys, a pair of [rows, positions, width].
        s: likewise; the width may be another one.
        mask: what is added to scores, broadcast to [rows, heads, positions, positions]; None: nothing.
        heads: parts that widths are divided into, each with a distribution of its own (as in MiniLMv2, arXiv
            2012.15828, so that the numbers of attention heads may differ).
    """
    return _divergence_of_relations(_relations(t[0], t[1], heads), _relations(s[0], s[1], heads), mask)


def value_relations(t: Any, s: Any, mask: Any, heads: int) -> Any:
    """The same of softmax(V V^T / sqrt d), where ``t`` and ``s`` are values, [rows, positions, width]."""
    return _divergence_of_relations(_relations(t, t, heads), _relations(s, s, heads), mask)


def _relations(a: Any, b: Any, heads: int) -> Any:
    """Scaled products of the vectors of all pairs of positions, [rows, heads, positions, positions]."""
    import jax.numpy as jnp

    def split(x: Any) -> Any:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    width = a.shape[-1] // heads
    return jnp.einsum("bhid,bhjd->bhij", split(a), split(b)) / width**0.5


def _divergence_of_relations(t: Any, s: Any, mask: Any) -> Any:
    import jax.numpy as jnp

    if mask is not None:
        mask = jnp.maximum(mask, _NEVER)  # infinity minus infinity would be NaN
        t, s = t + mask, s + mask
    return divergence(t, s, 1.0)


def cross_entropy(scores: Any, labels: Any, weight: Any) -> Any:
    """-log softmax(scores)[label], the mean over rows, weighted.

    Args:
        scores: [rows, ..., classes].
        labels: the numbers of the right classes, [rows, ...]; negative ones count for nothing.
        weight: of each row, [rows].
    """
    import jax
    import jax.numpy as jnp

    logs = jax.nn.log_softmax(scores)
    found = -jnp.take_along_axis(logs, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    weights = weight.reshape(-1, *(1,) * (labels.ndim - 1)) * (labels >= 0)
    return (found * weights).sum() / jnp.maximum(weights.sum(), 1)
