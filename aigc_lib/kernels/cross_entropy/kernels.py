"""Cross-entropy over a row of V logits: the loss, its gradient, and both at once in place.

In all three kernels the grid is the number of rows; one program runs over the blocks of its row.
With s bytes per logit a row costs

    _loss_kernel               reads V·s + 8 bytes, writes 8: the loss and the log-sum-exp
    _gradient_kernel           reads V·s + 16 bytes, writes V·s: the gradient of the row's logits
    _loss_and_gradient_kernel  reads V·s twice (the second time mostly from the L2 cache) and writes
                               V·s: the gradient of the loss, over the logits

The log-sum-exp takes one pass with two running numbers, the largest logit so far and the sum of the
exponentials relative to it (Milakov and Gimelshein 2018, algorithm 3). Everything is computed in
float32. An ignored row is not read: its loss and gradient are zeros. A target out of range reads
nothing either: its loss and its row of the gradient are NaN.

Masks: `place < V` keeps the last block inside its row; past the end a load gives −inf, whose
exponential is 0. `is_valid` keeps the load of the target's logit inside its row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_lib.kernels import launch

# (widest vocabulary of the class, capability ≥ 9) → (block, warps). A char model's row fits into
# one block of one warp; long rows take 16 numbers per thread.
_CONFIGS = {
    (128, False): (128, 1),
    (128, True): (128, 1),
    (1024, False): (1024, 4),
    (1024, True): (1024, 4),
    (None, False): (4096, 8),
    (None, True): (8192, 16),
}


@triton.jit
def _log_sum_exp(row, target_logit, V, SMOOTH: tl.constexpr, BLOCK: tl.constexpr):
    """The log-sum-exp of a row, and with smoothing the sum of its logits less the target's."""
    largest = float("-inf")
    total = 0.0
    excess = 0.0
    for start in range(0, V, BLOCK):
        place = start + tl.arange(0, BLOCK)
        z = tl.load(row + place, mask=place < V, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(z, 0))
        # While nothing but forbidden tokens came by, −inf − (−inf) would be NaN.
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(z - shift), 0)
        largest = new
        if SMOOTH:
            # Relative to the target's logit, so that a large common offset costs no digits.
            excess += tl.sum(tl.where(place < V, z - target_logit, 0.0), 0)
    return largest + tl.log(total), excess


@triton.jit
def _write_gradient(
    source, out, lse, scale, target, smoothing, V, SMOOTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Write (softmax − target distribution) · scale."""
    for start in range(0, V, BLOCK):
        place = start + tl.arange(0, BLOCK)
        z = tl.load(source + place, mask=place < V, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(z - lse)
        if SMOOTH:
            gradient -= smoothing / V + tl.where(place == target, 1.0 - smoothing, 0.0)
        else:
            gradient -= tl.where(place == target, 1.0, 0.0)
        tl.store(out + place, (gradient * scale).to(out.dtype.element_ty), mask=place < V)


@triton.jit
def _write_zeros(out, V, BLOCK: tl.constexpr):
    for start in range(0, V, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out + place, tl.zeros([BLOCK], out.dtype.element_ty), mask=place < V)


@triton.jit
def _loss_kernel(
    logits, targets, losses, lses, num_inner, V, outer_stride, inner_stride, ignore_index,
    smoothing, SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets + index)
    if target == ignore_index:
        tl.store(losses + index, 0.0)
        tl.store(lses + index, 0.0)
    else:
        row = logits + index // num_inner * outer_stride + index % num_inner * inner_stride
        is_valid = (target >= 0) & (target < V)
        target_logit = tl.load(row + target, mask=is_valid, other=float("nan")).to(tl.float32)
        lse, excess = _log_sum_exp(row, target_logit, V, SMOOTH, BLOCK)
        loss = lse - target_logit
        if SMOOTH:
            loss -= smoothing * (excess / V)
        tl.store(losses + index, loss)
        tl.store(lses + index, lse)


@triton.jit
def _gradient_kernel(
    dlosses, logits, targets, lses, dlogits, num_inner, V, outer_stride, inner_stride, ignore_index,
    smoothing, SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets + index)
    out = dlogits + index * V
    if target == ignore_index:
        _write_zeros(out, V, BLOCK)
    else:
        row = logits + index // num_inner * outer_stride + index % num_inner * inner_stride
        is_valid = (target >= 0) & (target < V)
        scale = tl.where(is_valid, tl.load(dlosses + index), float("nan"))
        lse = tl.load(lses + index)
        _write_gradient(row, out, lse, scale, target, smoothing, V, SMOOTH, BLOCK)


@triton.jit
def _loss_and_gradient_kernel(
    logits, targets, losses, V, row_stride, ignore_index, smoothing,
    SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets + index)
    row = logits + index * row_stride
    if target == ignore_index:
        tl.store(losses + index, 0.0)
        _write_zeros(row, V, BLOCK)
    else:
        is_valid = (target >= 0) & (target < V)
        target_logit = tl.load(row + target, mask=is_valid, other=float("nan")).to(tl.float32)
        lse, excess = _log_sum_exp(row, target_logit, V, SMOOTH, BLOCK)
        loss = lse - target_logit
        if SMOOTH:
            loss -= smoothing * (excess / V)
        tl.store(losses + index, loss)
        # All threads have read the target's logit before one of them overwrites it.
        tl.debug_barrier()
        scale = tl.where(is_valid, 1.0, float("nan"))
        _write_gradient(row, row, lse, scale, target, smoothing, V, SMOOTH, BLOCK)


def loss(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """A·B losses and log-sum-exps, float32, of logits (A, B, V) of any strides."""
    logits, targets = _rows(logits), targets.contiguous()
    losses = torch.empty(targets.numel(), dtype=torch.float32, device=logits.device)
    lses = torch.empty_like(losses)
    with torch.cuda.device_of(logits):
        _loss_kernel[(targets.numel(),)](
            logits, targets, losses, lses, *logits.shape[1:], *logits.stride()[:2],
            ignore_index, label_smoothing, **_options(logits, label_smoothing),
        )  # fmt: skip
    return losses, lses


def gradient(
    dlosses: Tensor, logits: Tensor, targets: Tensor, lses: Tensor,
    ignore_index: int, label_smoothing: float,
) -> Tensor:  # fmt: skip
    """The gradient in the logits of `loss`, contiguous and of their dtype."""
    logits, targets = _rows(logits), targets.contiguous()
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    with torch.cuda.device_of(logits):
        _gradient_kernel[(targets.numel(),)](
            dlosses.contiguous(), logits, targets, lses, dlogits,
            *logits.shape[1:], *logits.stride()[:2],
            ignore_index, label_smoothing, **_options(logits, label_smoothing),
        )  # fmt: skip
    return dlogits


def loss_and_gradient_(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float
) -> Tensor:
    """N losses, float32; overwrites the logits (N, V), dense rows, by the gradient of their sum."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _loss_and_gradient_kernel[(logits.shape[0],)](
            logits, targets.contiguous(), losses, logits.shape[1], logits.stride(0),
            ignore_index, label_smoothing, **_options(logits, label_smoothing),
        )  # fmt: skip
    return losses


def _rows(logits) -> Tensor:
    return logits if logits.stride(-1) == 1 else logits.contiguous()


def _options(logits, label_smoothing) -> dict:
    is_hopper = launch.capability(logits) >= (9, 0)
    fitting = (width for width in (128, 1024) if logits.shape[-1] <= width)
    block, warps = _CONFIGS[next(fitting, None), is_hopper]
    return {
        "SMOOTH": label_smoothing != 0,
        "BLOCK": block,
        "num_warps": warps,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }
