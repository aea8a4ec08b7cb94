"""The backward pass of attention: FlashAttention-2 (Dao 2023), algorithm 2.

With P = softmax(scale q kᵀ), O = P v and the gradient dO of O,

    dv = Pᵀ dO      dP = dO vᵀ      dS = P ∘ (dP − δ),  δ_i = Σ_j P_ij dP_ij = Σ_c dO_ic O_ic
    dq = scale dS k      dk = scale dSᵀ q

P is computed again from q, k and the logarithm L of each row's sum under the softmax,
P_ij = 2^(scale log₂e S_ij − L_i).
No program adds to what another one writes: the result is the same in every run.
"""

# `delta_kernel`
#     Grid: one program for each BLOCK_T rows of all B · H · T. Computes δ, line 4 of the algorithm.
#     Reads the output and its gradient once, writes 4 bytes a row.
# `keys_kernel`
#     Grid: one program for each block of BLOCK_M keys of one head. Keeps them and their values,
#     walks over the queries whose band meets them, and sums up dk and dv.
#     Reads q, dO, L and δ of these queries; writes its BLOCK_M rows of dk and dv.
# `queries_kernel`
#     Grid: one program for each block of BLOCK_T queries of one head. Walks over the keys as the
#     forward pass does, and sums up dq. Computing S and dP a second time costs less than letting
#     the programs of `keys_kernel` add up dq in turn.
#     Reads k and v of these keys; writes its BLOCK_T rows of dq.
#
# What the masks protect: rows beyond T and M and columns beyond K, as in the forward pass; a query
# beyond T gets L = ∞ and so P = 0.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_lib.kernels.attention.forward import (
    load_rows,
    mask_strides,
    may_attend,
    padded_width,
    pick,
    precision,
    split,
    split_band,
    with_dense_rows,
)

# (BLOCK_T, BLOCK_M, warps, stages), by padded head width, for capability 8.x and from 9.0 on.
KEYS_HALF = {
    32: ((32, 64, 4, 3), (32, 64, 4, 3)),
    64: ((32, 64, 4, 3), (64, 128, 8, 3)),
    128: ((32, 64, 8, 2), (64, 64, 8, 2)),
}
KEYS_SINGLE = {
    32: ((32, 32, 8, 2), (32, 32, 8, 2)),
    64: ((32, 32, 8, 2), (32, 32, 8, 2)),
    128: ((16, 32, 8, 2), (16, 32, 8, 2)),
}
QUERIES_HALF = {
    32: ((64, 64, 4, 3), (64, 64, 4, 3)),
    64: ((64, 32, 4, 3), (128, 64, 8, 3)),
    128: ((128, 32, 8, 2), (128, 64, 8, 2)),
}
QUERIES_SINGLE = {
    32: ((32, 32, 4, 2), (32, 32, 4, 2)),
    64: ((32, 32, 4, 2), (32, 32, 4, 2)),
    128: ((32, 16, 8, 2), (32, 16, 8, 2)),
}
DELTA_ROWS = 64


@triton.jit(do_not_specialize=["T"])
def delta_kernel(
    out, grad, delta, stride_gb, stride_gh, stride_gt, H, T,
    K: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """δ_i = Σ_c dO_ic O_ic."""
    num_blocks = tl.cdiv(T, BLOCK_T)
    head = tl.program_id(0) // num_blocks
    first = tl.program_id(0) % num_blocks * BLOCK_T
    b, h = tl.cast(head // H, tl.int64), tl.cast(head % H, tl.int64)
    rows, columns = tl.arange(0, BLOCK_T), tl.arange(0, W)
    row = tl.cast(head, tl.int64) * T
    base = grad + b * stride_gb + h * stride_gh
    do = load_rows(base, first, rows, stride_gt, columns, T, K, False).to(tl.float32)
    o = load_rows(out + row * K, first, rows, K, columns, T, K, False).to(tl.float32)
    tl.store(delta + row + first + rows, tl.sum(do * o, 1), mask=first + rows < T)


@triton.jit
def _walk_queries(
    dk, dv, k, v, q, grad, lse, delta, mask, rows, columns, keys, start, stop, inner, outer,
    stride_qt, stride_gt, stride_mt, stride_mm, T, M, left, right, slope,
    K: tl.constexpr, BLOCK_T: tl.constexpr, WHOLE: tl.constexpr, HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Lines 8 to 16 of algorithm 2, all transposed: keys down, queries across."""
    for step in range(start, stop, BLOCK_T):
        first = step
        if not WHOLE:
            first = tl.where(step < inner, step, step + outer - inner)
        queries = first + rows
        q_tile = load_rows(q, first, rows, stride_qt, columns, T, K, WHOLE)
        do = load_rows(grad, first, rows, stride_gt, columns, T, K, WHOLE)
        if WHOLE:
            log_sum = tl.load(lse + queries)
            row_delta = tl.load(delta + queries)
        else:
            log_sum = tl.load(lse + queries, mask=queries < T, other=float("inf"))
            row_delta = tl.load(delta + queries, mask=queries < T, other=0.0)
        # Pᵀ = 2^(slope k qᵀ − L)
        scores = tl.dot(k, tl.trans(q_tile), input_precision=PRECISION)
        weights = tl.exp2(scores * slope - log_sum[None, :])
        if not WHOLE:
            allowed = may_attend(
                queries[None, :], keys[:, None], T, M, left, right, mask, stride_mt, stride_mm,
                HAS_MASK,
            )  # fmt: skip
            weights = tl.where(allowed, weights, 0.0)
        # dv = Σ Pᵀ dO
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        # dPᵀ = v dOᵀ,   dSᵀ = Pᵀ ∘ (dPᵀ − δ),   dk = Σ dSᵀ q
        to_weights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        to_scores = weights * (to_weights - row_delta[None, :])
        dk = tl.dot(to_scores.to(q_tile.dtype), q_tile, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["T", "M", "left", "right", "stride_mb", "stride_mh"])
def keys_kernel(
    q, k, v, mask, grad, lse, delta, dk, dv, stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_km, stride_vb, stride_vh, stride_vm,
    stride_gb, stride_gh, stride_gt, stride_mb, stride_mh, stride_mt, stride_mm,
    H, T, M, left, right, scale, slope,
    K: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
    SPLIT: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys."""
    num_blocks = tl.cdiv(M, BLOCK_M)
    head = tl.program_id(0) // num_blocks
    first = tl.program_id(0) % num_blocks * BLOCK_M
    b, h = tl.cast(head // H, tl.int64), tl.cast(head % H, tl.int64)
    rows, query_rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_T), tl.arange(0, W)
    keys = first + rows
    base = k + b * stride_kb + h * stride_kh
    k_tile = load_rows(base, first, rows, stride_km, columns, M, K, False)
    base = v + b * stride_vb + h * stride_vh
    v_tile = load_rows(base, first, rows, stride_vm, columns, M, K, False)
    q += b * stride_qb + h * stride_qh
    grad += b * stride_gb + h * stride_gh
    mask += b * stride_mb + h * stride_mh
    lse += tl.cast(head, tl.int64) * T
    delta += tl.cast(head, tl.int64) * T

    dk_tile = tl.zeros([BLOCK_M, W], tl.float32)
    dv_tile = tl.zeros([BLOCK_M, W], tl.float32)
    # Seen from a key the band is mirrored: query i sees key j if i is within j − (M − T) − right
    # and j − (M − T) + left.
    place = first + T - M
    start, inner, outer, stop = split_band(
        place, place + BLOCK_M - 1, right, left, T, BLOCK_T, SPLIT
    )
    if SPLIT:
        dk_tile, dv_tile = _walk_queries(
            dk_tile, dv_tile, k_tile, v_tile, q, grad, lse, delta, mask, query_rows, columns, keys,
            inner, outer, inner, outer, stride_qt, stride_gt, stride_mt, stride_mm, T, M,
            left, right, slope, K, BLOCK_T, True, HAS_MASK, PRECISION,
        )  # fmt: skip
    dk_tile, dv_tile = _walk_queries(
        dk_tile, dv_tile, k_tile, v_tile, q, grad, lse, delta, mask, query_rows, columns, keys,
        start, stop - (outer - inner), inner, outer, stride_qt, stride_gt, stride_mt, stride_mm,
        T, M, left, right, slope, K, BLOCK_T, False, HAS_MASK, PRECISION,
    )  # fmt: skip

    at = (tl.cast(head, tl.int64) * M + keys)[:, None] * K + columns[None, :]
    inside = (keys < M)[:, None] & (columns < K)[None, :]
    tl.store(dk + at, (dk_tile * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + at, dv_tile.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def _walk_keys(
    dq, q, do, log_sum, row_delta, k, v, mask, rows, columns, queries, start, stop, inner, outer,
    stride_km, stride_vm, stride_mt, stride_mm, T, M, left, right, slope,
    K: tl.constexpr, BLOCK_M: tl.constexpr, WHOLE: tl.constexpr, HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Line 15 of algorithm 2, with what it needs computed again."""
    for step in range(start, stop, BLOCK_M):
        first = step
        if not WHOLE:
            first = tl.where(step < inner, step, step + outer - inner)
        k_tile = load_rows(k, first, rows, stride_km, columns, M, K, WHOLE)
        v_tile = load_rows(v, first, rows, stride_vm, columns, M, K, WHOLE)
        # P = 2^(slope q kᵀ − L)
        scores = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION)
        weights = tl.exp2(scores * slope - log_sum[:, None])
        if not WHOLE:
            allowed = may_attend(
                queries[:, None], (first + rows)[None, :], T, M, left, right, mask,
                stride_mt, stride_mm, HAS_MASK,
            )  # fmt: skip
            weights = tl.where(allowed, weights, 0.0)
        # dP = dO vᵀ,   dS = P ∘ (dP − δ),   dq = Σ dS k
        to_weights = tl.dot(do, tl.trans(v_tile), input_precision=PRECISION)
        to_scores = weights * (to_weights - row_delta[:, None])
        dq = tl.dot(to_scores.to(k_tile.dtype), k_tile, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=["T", "M", "left", "right", "stride_mb", "stride_mh"])
def queries_kernel(
    q, k, v, mask, grad, lse, delta, dq, stride_qb, stride_qh, stride_qt,
    stride_kb, stride_kh, stride_km, stride_vb, stride_vh, stride_vm,
    stride_gb, stride_gh, stride_gt, stride_mb, stride_mh, stride_mt, stride_mm,
    H, T, M, left, right, scale, slope,
    K: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
    SPLIT: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries."""
    num_blocks = tl.cdiv(T, BLOCK_T)
    head = tl.program_id(0) // num_blocks
    first = (num_blocks - 1 - tl.program_id(0) % num_blocks) * BLOCK_T
    b, h = tl.cast(head // H, tl.int64), tl.cast(head % H, tl.int64)
    rows, key_rows, columns = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_M), tl.arange(0, W)
    queries = first + rows
    inside = queries < T
    base = q + b * stride_qb + h * stride_qh
    q_tile = load_rows(base, first, rows, stride_qt, columns, T, K, False)
    base = grad + b * stride_gb + h * stride_gh
    do = load_rows(base, first, rows, stride_gt, columns, T, K, False)
    row = tl.cast(head, tl.int64) * T + queries
    log_sum = tl.load(lse + row, mask=inside, other=float("inf"))
    row_delta = tl.load(delta + row, mask=inside, other=0.0)
    k += b * stride_kb + h * stride_kh
    v += b * stride_vb + h * stride_vh
    mask += b * stride_mb + h * stride_mh

    dq_tile = tl.zeros([BLOCK_T, W], tl.float32)
    place = first + M - T
    start, inner, outer, stop = split_band(
        place, place + BLOCK_T - 1, left, right, M, BLOCK_M, SPLIT
    )
    if SPLIT:
        dq_tile = _walk_keys(
            dq_tile, q_tile, do, log_sum, row_delta, k, v, mask, key_rows, columns, queries,
            inner, outer, inner, outer, stride_km, stride_vm, stride_mt, stride_mm, T, M,
            left, right, slope, K, BLOCK_M, True, HAS_MASK, PRECISION,
        )  # fmt: skip
    dq_tile = _walk_keys(
        dq_tile, q_tile, do, log_sum, row_delta, k, v, mask, key_rows, columns, queries,
        start, stop - (outer - inner), inner, outer, stride_km, stride_vm, stride_mt, stride_mm,
        T, M, left, right, slope, K, BLOCK_M, False, HAS_MASK, PRECISION,
    )  # fmt: skip

    at = row[:, None] * K + columns[None, :]
    keep = inside[:, None] & (columns < K)[None, :]
    tl.store(dq + at, (dq_tile * scale).to(dq.dtype.element_ty), mask=keep)


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, mask: Tensor | None,
    scale: float, left: int, right: int, to_queries: bool, to_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv, contiguous; a tensor without elements for what is not wanted.

    `out` and `lse` are what the forward pass returned, `grad` is the gradient of `out`.
    """
    q, k, v, grad = map(with_dense_rows, (q, k, v, grad))
    batch, heads, num_queries, width = q.shape
    num_keys = k.shape[2]
    padded = padded_width(width)
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    dq = torch.empty(q.shape if to_queries else 0, dtype=q.dtype, device=q.device)
    dk, dv = (
        torch.empty(k.shape if to_keys else 0, dtype=q.dtype, device=q.device) for _ in range(2)
    )
    given = (q, k, v, q if mask is None else mask, grad, lse, delta)
    numbers = (
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3],
        *mask_strides(mask, q, k), heads, num_queries, num_keys, left, right, scale,
        scale * math.log2(math.e),
    )  # fmt: skip
    fixed = {
        "K": width, "W": padded, "SPLIT": split(q, mask), "HAS_MASK": mask is not None,
        "PRECISION": precision(q), "enable_fp_fusion": True,
    }  # fmt: skip
    with torch.cuda.device_of(q):
        delta_kernel[(triton.cdiv(num_queries, DELTA_ROWS) * batch * heads,)](
            out, grad, delta, *grad.stride()[:3], heads, num_queries, K=width, W=padded,
            BLOCK_T=DELTA_ROWS, num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        if to_keys:
            block_t, block_m, warps, stages = pick(q, KEYS_HALF, KEYS_SINGLE)[padded]
            keys_kernel[(triton.cdiv(num_keys, block_m) * batch * heads,)](
                *given, dk, dv, *numbers, **fixed, BLOCK_T=block_t, BLOCK_M=block_m,
                num_warps=warps, num_stages=stages,
            )  # fmt: skip
        if to_queries:
            block_t, block_m, warps, stages = pick(q, QUERIES_HALF, QUERIES_SINGLE)[padded]
            block_m = block_m if mask is None else max(16, block_m // 2)  # as in the forward pass
            queries_kernel[(triton.cdiv(num_queries, block_t) * batch * heads,)](
                *given, dq, *numbers, **fixed, BLOCK_T=block_t, BLOCK_M=block_m,
                num_warps=warps, num_stages=stages,
            )  # fmt: skip
    return dq, dk, dv
