"""LayerNorm and RMSNorm: one forward and one backward kernel for both.

N rows of width C; a program holds whole rows in registers, a tile of ROWS × BLOCK, where BLOCK is
the power of two at or above C (at least 16) and several narrow rows share a program. All arithmetic
is in float32, and every row is read once.

norm_forward, grid (⌈N / ROWS⌉): one program normalises ROWS rows. It reads them, C weights and
    C biases, and writes as many results and one or two float32 numbers a row: rstd = 1/√(σ² + ε)
    and, for LayerNorm, μ. The variance is taken of the centred row, not as E[x²] − μ².
norm_backward, grid (programs), a small multiple of the number of multiprocessors: program p takes
    the row blocks p, p + programs, … It reads dy and x once and writes dx; its share of the
    gradients of weight and bias stays in registers until it writes them as one float32 row of a
    buffer (1 or 2, programs, C). Adding up that buffer, programs rows of it, is left to torch.
    Nothing is added atomically, so that the same input always gives the same bits.

Masks: columns ≥ C are padding, rows ≥ N lie behind the end in the last block. Both load zeros; the
forward must clear the padding again after centring, which moves it off zero, and in the backward
dy = 0 keeps it out of every sum. Stores go nowhere outside.
"""

# The backward, with x̂ = rstd·(x − μ) and g = dy·w the gradient of x̂: since ∂μ/∂xⱼ = 1/C and
# ∂rstd/∂xⱼ = −rstd²·x̂ⱼ/C, we have ∂x̂ᵢ/∂xⱼ = rstd·(δᵢⱼ − 1/C − x̂ᵢ·x̂ⱼ/C), and summing over gᵢ gives
#     dx = rstd·(g − mean(g) − x̂·mean(g·x̂)),   dw = Σ dy·x̂ and db = Σ dy over the rows;
# RMSNorm has no μ and thus no mean(g).

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_lib.kernels import launch

# Widest BLOCK → (elements of a tile, warps): 16 elements a thread, 32 in the widest.
_FORWARD = {2048: (2048, 4), 8192: (8192, 16), 16384: (16384, 16)}
# Widest BLOCK → (elements of a tile, warps, programs for each multiprocessor). Two sums, x, dy and
# w at 16 elements a thread take about 128 registers, so that 16 warps fill a multiprocessor. At
# BLOCK 8192 a width that 16 does not divide would spill, on capability 8.0 and on 9.0.
_BACKWARD = {2048: (2048, 4, 4), 4096: (4096, 16, 1)}


# Without do_not_specialize each of N = 1, N divisible by 16 and other N is a binary of its own.
@triton.jit(do_not_specialize=["num_rows"])
def norm_forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, statistics_ptr, num_rows, width, x_stride, eps,
    CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise ROWS rows; the module's docstring has the rest."""
    # In int64: the row's offset may exceed 2³¹ elements.
    rows = tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    in_row = columns < width
    inside = (rows < num_rows)[:, None] & in_row[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    x = x.to(tl.float32)
    if CENTER:
        mean = tl.div_rn(tl.sum(x, 1), tl.cast(width, tl.float32))
        x = tl.where(in_row[None, :], x - mean[:, None], 0.0)
        tl.store(statistics_ptr + num_rows + rows, mean, mask=rows < num_rows)
    variance = tl.div_rn(tl.sum(x * x, 1), tl.cast(width, tl.float32))
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    tl.store(statistics_ptr + rows, rstd, mask=rows < num_rows)
    y = x * rstd[:, None]
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
        y = y * weight[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
        y = y + bias[None, :]
    y = y.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + rows[:, None] * width + columns[None, :], y, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def norm_backward(
    dy_ptr, x_ptr, weight_ptr, statistics_ptr, dx_ptr, partial_ptr,
    num_rows, width, dy_stride, x_stride,
    CENTER: tl.constexpr, HAS_WEIGHT: tl.constexpr, WEIGHT_GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of every programs-th block of ROWS rows; the docstring above has the formulas."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    in_row = columns < width
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
    # Sums over this program's rows, still apart by row of the tile: one reduction, at the end.
    if WEIGHT_GRADIENT:
        to_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    if BIAS_GRADIENT:
        to_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    for block in range(program, tl.cdiv(num_rows, ROWS), programs):
        rows = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        row_exists = rows < num_rows
        inside = row_exists[:, None] & in_row[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + columns[None, :], mask=inside, other=0.0)
        x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
        dy, x = dy.to(tl.float32), x.to(tl.float32)
        rstd = tl.load(statistics_ptr + rows, mask=row_exists, other=0.0)
        if CENTER:
            mean = tl.load(statistics_ptr + num_rows + rows, mask=row_exists, other=0.0)
            x = x - mean[:, None]
        x = x * rstd[:, None]
        if WEIGHT_GRADIENT:
            to_weight += dy * x
        if BIAS_GRADIENT:
            to_bias += dy
        if HAS_WEIGHT:
            dy = dy * weight[None, :]
        dx = dy - x * (tl.sum(dy * x, 1) / width)[:, None]
        if CENTER:
            dx = dx - (tl.sum(dy, 1) / width)[:, None]
        dx = (dx * rstd[:, None]).to(dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + rows[:, None] * width + columns[None, :], dx, mask=inside)
    if WEIGHT_GRADIENT:
        tl.store(partial_ptr + program * width + columns, tl.sum(to_weight, 0), mask=in_row)
        partial_ptr += programs * width
    if BIAS_GRADIENT:
        tl.store(partial_ptr + program * width + columns, tl.sum(to_bias, 0), mask=in_row)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor]:
    """y, contiguous, and what the backward needs, in float32: (1, N) with rstd, or (2, N) with μ.

    x isn't empty, of any strides, and at most 16384 wide; `center` makes it LayerNorm.
    """
    width = x.shape[-1]
    num_rows = x.numel() // width
    block, rows, (num_warps,) = _config(_FORWARD, width)
    x, x_stride = _rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    statistics = torch.empty((1 + center, num_rows), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        norm_forward[(triton.cdiv(num_rows, rows),)](
            x, _vector(weight, x), _vector(bias, x), y, statistics, num_rows, width, x_stride, eps,
            CENTER=center, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            ROWS=rows, BLOCK=block, num_warps=num_warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y, statistics


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor,
    weight_gradient: bool, bias_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx, contiguous, and the wanted ones of dw and db in float32, (0, 1 or 2, C); C ≤ 4096."""
    width = x.shape[-1]
    num_rows = x.numel() // width
    block, rows, (num_warps, share) = _config(_BACKWARD, width)
    programs = min(triton.cdiv(num_rows, rows), share * launch.num_processors(x))
    x, x_stride = _rows(x)
    dy, dy_stride = _rows(dy)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    wanted = weight_gradient + bias_gradient
    partial = torch.empty((wanted, programs, width), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        norm_backward[(programs,)](
            dy, x, _vector(weight, x), statistics, dx, partial,
            num_rows, width, dy_stride, x_stride,
            CENTER=statistics.shape[0] == 2, HAS_WEIGHT=weight is not None,
            WEIGHT_GRADIENT=weight_gradient, BIAS_GRADIENT=bias_gradient,
            ROWS=rows, BLOCK=block, num_warps=num_warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return dx, partial.sum(1)


def _config(table, width) -> tuple[int, int, list[int]]:
    """BLOCK, ROWS and the rest of the table's entry."""
    block = max(16, triton.next_power_of_2(width))
    tile, *rest = table[min(widest for widest in table if widest >= block)]
    return block, tile // block, rest


def _rows(x) -> tuple[Tensor, int]:
    """x, copied only if it must be, and the distance between its rows in memory."""
    *sizes, width = x.shape
    *strides, step = x.stride()
    axes = [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size > 1]
    one_stride = all(
        outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(axes)
    )
    if one_stride and (step == 1 or width == 1):
        return x, axes[-1][1] if axes else width
    return x.contiguous(), width


def _vector(v, x) -> Tensor:
    """A weight or bias ready to be read; where there is none any pointer will do."""
    return x if v is None else v.contiguous()
