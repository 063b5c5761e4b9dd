"""Why primitives have no translation, and the error that lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.errors import ModelError

__all__ = ["REASONS", "Refusal", "UnsupportedPrimitives"]

_RANDOM = "randomness: give random numbers as inputs, or switch it off (dropout: deterministic=True)"
_LINEAR = "decompositions and solvers of matrices have no ONNX operator"
_SPECIAL = "this special function has no ONNX operator"
_DEVICES = "it moves data between devices: give a function for one device"
_KERNEL = "code of its own for one kind of device: use the plain implementation"
_STATE = "mutable state: make it an argument and a result"
_CALLBACK = "it calls back into Python"
_SPARSE = "sparse arrays have no ONNX form: give dense ones"
_TRAINING = "only gradients need it"

_BY_REASON = {
    _RANDOM: "random_bits random_seed random_wrap random_unwrap random_split random_fold_in random_clone random_gamma "
    "rng_bit_generator rng_uniform threefry2x32 threefry4x32 philox2x32 philox4x32 iota_2x32_shape",
    _LINEAR: "cholesky cholesky_update eig eigh geqrf geqp3 hessenberg householder_product lu lu_pivots_to_permutation "
    "ormqr qr schur svd symmetric_product triangular_solve tridiagonal tridiagonal_solve custom_linear_solve",
    _SPECIAL: "bessel_i0e bessel_i1e digamma igamma igamma_grad_a igammac lgamma nextafter polygamma "
    "regularized_incomplete_beta zeta",
    _DEVICES: "all_gather all_gather_invariant all_to_all axis_index pmax pmin ppermute psum psum_invariant "
    "ragged_all_to_all reduce_scatter shard_map pbroadcast pvary",
    _KERNEL: "pallas_call ffi_call cudnn_fusion tpu_custom_call triton_kernel_call scaled_matmul_wrapper "
    "dot_product_attention_fwd_wrapper dot_product_attention_fp8_fwd_wrapper custom_partitioning",
    _STATE: "get swap addupdate new_ref empty_ref freeze free_ref run_state",
    _CALLBACK: "io_callback pure_callback",
    _SPARSE: "bcoo_dot_general bcoo_extract bcoo_fromdense bcoo_sort_indices bcoo_spdot_general bcoo_sum_duplicates "
    "bcoo_todense bcoo_transpose bcsr_dot_general bcsr_extract bcsr_fromdense bcsr_todense coo_todense csr_todense",
    _TRAINING: "select_and_gather_add select_and_scatter select_and_scatter_add",
    "complex numbers: ONNX operators do not compute with them": "complex conj real imag fft",
    "bit counts have no ONNX operator": "clz population_count",
    "a program in another form: give the function that it was made of": "call_exported",
}
REASONS = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}


class Refusal(NamedTuple):
    """A primitive that was not translated: where it is, and why."""

    primitive: str
    source: str
    reason: str


class UnsupportedPrimitives(ModelError):
    """A function uses primitives that have no translation: all of them are named.

    Attributes:
        refusals: one for every equation.
    """

    def __init__(self, what: str, refusals: Sequence[Refusal]):
        self.refusals = tuple(refusals)
        places: dict[tuple[str, str], dict[str, None]] = {}
        for refusal in refusals:
            places.setdefault((refusal.primitive, refusal.reason), {})[refusal.source] = None
        parts = []
        for (primitive, reason), sources in places.items():
            known = ", ".join(s for s in sources if s)
            parts.append(f"{primitive}{f' at {known}' if known else ''} ({reason})")
        super().__init__(f"cannot translate {what}: {'; '.join(parts)}")
