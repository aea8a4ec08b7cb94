"""The forward pass of attention: FlashAttention-2 (Dao 2023), algorithm 1.

`forward_kernel`
    Grid: one program for each block of BLOCK_T queries of one head; the last queries come first,
    because under a causal band they have the most keys and nothing should wait for them at the end.
    One program walks over the keys in blocks of BLOCK_M and keeps, for each of its queries, the
    largest score so far, the sum of the weights and the weighted sum of the values. It never
    writes a score to memory.
    Reads: its queries once, every key and value that its band meets, and the mask if there is one.
    Writes: BLOCK_T rows of the output, and for each row the logarithm of its sum, which is all
    that the backward pass needs to compute the weights again.

Which keys a query may see is one band around the diagonal: query i stands at key i + M − T and sees
the keys from `left` before its place to `right` after it. Causal attention is right = 0, a window w
is left = right = w − 1, and no band at all is 2³⁰ on both sides, more than any length.
Blocks of keys outside the band are never visited, blocks inside it pay for no test (in 16 bits;
see `split`), and those on its edge do.
"""

# What the masks protect: rows ≥ T of the queries and ≥ M of the keys (the last block may reach
# beyond them) and columns ≥ K (a head width that is not a power of two is padded with zeros, which
# change no product); keys beyond M, outside the band or forbidden by the mask get the score −∞.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_lib.kernels import launch

# (BLOCK_T, BLOCK_M, warps, stages), by padded head width, for capability 8.x and from 9.0 on.
HALF = {
    32: ((64, 64, 4, 3), (64, 64, 4, 3)),
    64: ((128, 64, 8, 3), (128, 128, 8, 3)),
    128: ((128, 32, 8, 3), (128, 64, 8, 3)),
}
SINGLE = {
    32: ((64, 32, 8, 2), (64, 32, 8, 2)),
    64: ((64, 32, 8, 2), (64, 32, 8, 2)),
    128: ((32, 16, 8, 2), (32, 16, 8, 2)),
}


@triton.jit
def load_rows(base, first, rows, stride, columns, count, K: tl.constexpr, WHOLE: tl.constexpr):
    """Rows `first + rows` of a (count, K) matrix, zeros beyond them; WHOLE if none are beyond."""
    at = base + tl.cast(first, tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    if WHOLE and columns.shape[0] == K:
        tile = tl.load(at)
    else:
        inside = (first + rows < count)[:, None] & (columns < K)[None, :]
        tile = tl.load(at, mask=inside, other=0.0)
    return tile


@triton.jit
def split_band(first, last, left, right, count, STEP: tl.constexpr, SPLIT: tl.constexpr):
    """Where a walk in steps of STEP over 0 … count − 1 meets a band, and where it is inside it.

    The band of place p is p − left … p + right. From `start` to `stop` some place of first … last
    sees something; from `inner` to `outer` every place sees everything. All but `stop` are
    multiples of STEP. Without SPLIT the inside is left empty.
    """
    start = tl.maximum(first - left, 0) // STEP * STEP
    stop = tl.minimum(last + right + 1, count)
    if SPLIT:
        inner = (tl.maximum(last - left, 0) + STEP - 1) // STEP * STEP
        outer = tl.maximum(tl.minimum(first + right + 1, count) // STEP * STEP, inner)
    else:
        inner, outer = start, start
    return start, inner, outer, stop


@triton.jit
def may_attend(queries, keys, T, M, left, right, mask, stride_t, stride_m, HAS_MASK: tl.constexpr):
    """The allowed pairs, for queries and keys that are shaped to broadcast against each other."""
    place = queries + M - T
    allowed = (keys >= place - left) & (keys <= tl.minimum(place + right, M - 1))
    if HAS_MASK:
        allowed &= queries < T
        at = mask + tl.cast(queries, tl.int64) * stride_t + tl.cast(keys, tl.int64) * stride_m
        allowed &= tl.load(at, mask=allowed, other=0) != 0
    return allowed


@triton.jit
def _walk(
    peak, total, result, q, k, v, mask, rows, columns, queries, start, stop, inner, outer,
    stride_km, stride_vm, stride_mt, stride_mm, T, M, left, right, steepness,
    K: tl.constexpr, BLOCK_M: tl.constexpr, WHOLE: tl.constexpr, HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Lines 6 to 11 of algorithm 1 for the keys from start to stop.

    The blocks are WHOLE, or a walk along the edges of the band that jumps from `inner` to `outer`.
    """
    for step in range(start, stop, BLOCK_M):
        first = step
        if not WHOLE:
            first = tl.where(step < inner, step, step + outer - inner)
        # S = q kᵀ, without the factor log₂e · |scale|, which the lines below multiply in.
        k_tile = load_rows(k, first, rows, stride_km, columns, M, K, WHOLE)
        scores = tl.dot(q, tl.trans(k_tile), input_precision=PRECISION)
        if not WHOLE:
            allowed = may_attend(
                queries[:, None], (first + rows)[None, :], T, M, left, right, mask,
                stride_mt, stride_mm, HAS_MASK,
            )  # fmt: skip
            scores = tl.where(allowed, scores, -float("inf"))
        # m = max(m_old, max_j S_j)
        higher = tl.maximum(peak, tl.max(scores, 1) * steepness)
        level = higher
        if not WHOLE:
            # A row that has met no key yet: −∞ − (−∞) would be NaN.
            level = tl.where(higher == -float("inf"), 0.0, higher)
        # P = 2^(S − m): the binary exponential is a single instruction.
        weights = tl.exp2(scores * steepness - level[:, None])
        # What was summed up so far belongs to m_old:
        # l = 2^(m_old − m) l_old + Σ_j P_j,   O = 2^(m_old − m) O_old + P v
        shrink = tl.exp2(peak - level)
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None]
        v_tile = load_rows(v, first, rows, stride_vm, columns, M, K, WHOLE)
        result = tl.dot(weights.to(v_tile.dtype), v_tile, result, input_precision=PRECISION)
        peak = higher
    return peak, total, result


@triton.jit(do_not_specialize=["T", "M", "left", "right", "stride_mb", "stride_mh"])
def forward_kernel(
    q, k, v, mask, out, lse, stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_km,
    stride_vb, stride_vh, stride_vm, stride_mb, stride_mh, stride_mt, stride_mm,
    H, T, M, left, right, sign, steepness,
    K: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
    SPLIT: tl.constexpr, HAS_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries: O = softmax(scale q kᵀ) v, and L, the logarithm of each row's sum."""
    num_blocks = tl.cdiv(T, BLOCK_T)
    head = tl.program_id(0) // num_blocks  # of all B · H
    first = (num_blocks - 1 - tl.program_id(0) % num_blocks) * BLOCK_T
    b, h = tl.cast(head // H, tl.int64), tl.cast(head % H, tl.int64)
    rows, key_rows, columns = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_M), tl.arange(0, W)
    queries = first + rows
    q += b * stride_qb + h * stride_qh
    k += b * stride_kb + h * stride_kh
    v += b * stride_vb + h * stride_vh
    mask += b * stride_mb + h * stride_mh
    # The sign of the scale goes to the queries, exactly; what is left is positive, so that the
    # largest score is the largest product times it.
    q_tile = load_rows(q, first, rows, stride_qt, columns, T, K, False)
    q_tile = (q_tile * sign).to(q_tile.dtype)

    # m, l and O of the algorithm.
    peak = tl.full([BLOCK_T], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    result = tl.zeros([BLOCK_T, W], tl.float32)
    place = first + M - T
    start, inner, outer, stop = split_band(
        place, place + BLOCK_T - 1, left, right, M, BLOCK_M, SPLIT
    )
    if SPLIT:
        peak, total, result = _walk(
            peak, total, result, q_tile, k, v, mask, key_rows, columns, queries, inner, outer,
            inner, outer, stride_km, stride_vm, stride_mt, stride_mm, T, M, left, right,
            steepness, K, BLOCK_M, True, HAS_MASK, PRECISION,
        )  # fmt: skip
    peak, total, result = _walk(
        peak, total, result, q_tile, k, v, mask, key_rows, columns, queries,
        start, stop - (outer - inner), inner, outer, stride_km, stride_vm, stride_mt, stride_mm,
        T, M, left, right, steepness, K, BLOCK_M, False, HAS_MASK, PRECISION,
    )  # fmt: skip

    # O / l and L = m + log₂ l. A query that may attend to nothing has l = 0: its output is 0, and
    # L = ∞ makes its weights 0 in the backward pass too.
    barren = total == 0
    total = tl.where(barren, 1.0, total)
    result = result / total[:, None]
    row = tl.cast(head, tl.int64) * T + queries
    inside = queries < T
    tl.store(lse + row, tl.where(barren, float("inf"), peak + tl.log2(total)), mask=inside)
    tl.store(
        out + row[:, None] * K + columns[None, :],
        result.to(out.dtype.element_ty),
        mask=inside[:, None] & (columns < K)[None, :],
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """The output, contiguous, and log₂ of the sums, (B, H, T) in float32.

    A query sees the keys from `left` before its own place to `right` after it. K ≤ 128.
    """
    q, k, v = map(with_dense_rows, (q, k, v))
    batch, heads, num_queries, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    padded = padded_width(width)
    block_t, block_m, warps, stages = pick(q, HALF, SINGLE)[padded]
    if mask is not None:
        block_m = max(16, block_m // 2)  # a mask takes registers, which would spill
    with torch.cuda.device_of(q):
        forward_kernel[(triton.cdiv(num_queries, block_t) * batch * heads,)](
            q, k, v, q if mask is None else mask, out, lse,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *mask_strides(mask, q, k),
            heads, num_queries, k.shape[2], left, right, float((scale > 0) - (scale < 0)),
            abs(scale) * math.log2(math.e) or 1.0,
            K=width, W=padded, BLOCK_T=block_t, BLOCK_M=block_m, SPLIT=split(q, mask),
            HAS_MASK=mask is not None, PRECISION=precision(q), num_warps=warps,
            num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out, lse


def with_dense_rows(x: Tensor) -> Tensor:
    """x, copied if its last axis is strided; the kernels take any other strides."""
    return x if x.stride(3) == 1 else x.contiguous()


def padded_width(width: int) -> int:
    """The power of two, at least 32, that holds a head: what matrix units multiply."""
    return max(32, triton.next_power_of_2(width))


def pick(x: Tensor, half: dict, single: dict) -> dict:
    """The configurations by padded width for a tensor's dtype and device."""
    column = launch.capability(x)[0] >= 9
    table = single if x.dtype == torch.float32 else half
    return {width: row[column] for width, row in table.items()}


def split(x: Tensor, mask: Tensor | None) -> bool:
    """Whether blocks inside the band get a loop of their own, without the tests of the edge.

    Not with a mask, for any block may hold a forbidden pair, and not in float32, where the products
    take so long that the tests don't show and a second loop only costs registers.
    """
    return mask is None and x.dtype != torch.float32


def precision(x: Tensor) -> str:
    """How float32 products are rounded, as the user told torch's own: "tf32" or "ieee"."""
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if x.dtype == torch.float32 and tf32 else "ieee"


def mask_strides(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[int, ...]:
    """The four strides of a mask, 0 along the axes over which it repeats itself, or without one."""
    return (0, 0, 0, 0) if mask is None else mask.expand(*q.shape[:3], k.shape[2]).stride()
