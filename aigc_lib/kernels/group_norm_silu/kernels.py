"""GroupNorm and SiLU in one: B examples of C maps of P places, in G groups of W = C/G maps.

A program works on one tile: all maps of a group, padded to a power of two, and some places. Which
of them lie side by side in memory is up to x, contiguous or channels_last; results lie alike.
All is computed in float32, nothing added atomically: the same input gives the same bits.

A group that fits into one tile is read once, grid (B·G, 1), with SUM and APPLY. Else the launch
over grid (B·G, tiles) that has SUM precedes the one that has APPLY, which reads all again.

forward    SUM: mean and Σ (x − mean)², (B·G, 2, tiles). APPLY: y; μ and 1/√(σ² + ε), (B·G, 2).
backward   SUM: Σ dz and Σ dz·x̂ over places, (B·C, 2, tiles). APPLY: dx, by their sums over the
           tiles, (B·C, 2), which torch makes; summed over B they are db and dw.

Masks: padding loads zeros. Centred they are none, and are cleared before they are squared; in the
backward dy = 0 keeps them out of every sum. Stores go nowhere outside.
"""

# With x̂ = rstd·(x − μ), z = x̂·w + b and s = sigmoid(z): dz = dy·s·(1 + z·(1 − s)) and, as in a
# LayerNorm, dx = rstd·(g − mean(g) − x̂·mean(g·x̂)) with g = dz·w, the means over the group.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# The most elements of a tile that is a whole group, and those of one of several; 16 a thread.
_WHOLE, _TILE = 8192, 4096


@triton.jit
def _tile(w_ptr, b_ptr, G, W, P, map_stride, place_stride, MAPS, PLACES):
    """The group; where the tile's elements lie, maps × places, and which exist; w and b."""
    group = tl.cast(tl.program_id(0), tl.int64)  # offsets may exceed 2³¹
    maps, places = tl.arange(0, MAPS), tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    channels, is_map = group % G * W + maps, maps < W
    rows = group // G * G * W * P + channels * map_stride
    offsets = rows[:, None] + tl.cast(places, tl.int64)[None, :] * place_stride
    inside = is_map[:, None] & (places < P)[None, :]
    w = tl.load(w_ptr + channels, mask=is_map, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + channels, mask=is_map, other=0.0).to(tl.float32)
    return group, offsets, inside, is_map, w, b


@triton.jit
def group_norm_silu_forward(
    x_ptr, w_ptr, b_ptr, statistics_ptr, moments_ptr, y_ptr, G, W, P, MS, PS, eps,
    TILES: tl.constexpr, MAPS: tl.constexpr, PLACES: tl.constexpr,
    SUM: tl.constexpr, APPLY: tl.constexpr,
):  # fmt: skip
    """Moments of a tile, or y, or both; the module's docstring has the rest."""
    group, offsets, inside, _, w, b = _tile(w_ptr, b_ptr, G, W, P, MS, PS, MAPS, PLACES)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tiles, total = tl.num_programs(1), tl.cast(W * P, tl.float32)
    moments_ptr += 2 * group * tiles
    t = tl.program_id(1) if SUM else tl.arange(0, TILES)
    # How many numbers a tile holds: the last may hold fewer, one that is padding none.
    counts = tl.cast(W * tl.maximum(tl.minimum(PLACES, P - t * PLACES), 0), tl.float32)
    if SUM:
        mean = tl.div_rn(tl.sum(tl.sum(x, 1), 0), counts)
        centred = tl.where(inside, x - mean, 0.0)
        squares = tl.sum(tl.sum(centred * centred, 1), 0)
        tl.store(moments_ptr + t, mean)
        tl.store(moments_ptr + tiles + t, squares)
    else:
        means = tl.load(moments_ptr + t, mask=t < tiles, other=0.0)
        parts = tl.load(moments_ptr + tiles + t, mask=t < tiles, other=0.0)
        mean = tl.div_rn(tl.sum(counts * means, 0), total)
        squares = tl.sum(parts + counts * (means - mean) * (means - mean), 0)
    if APPLY:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, total) + eps))
        tl.store(statistics_ptr + 2 * group, mean, mask=tl.program_id(1) == 0)
        tl.store(statistics_ptr + 2 * group + 1, rstd, mask=tl.program_id(1) == 0)
        z = (x - mean) * rstd * w[:, None] + b[:, None]
        tl.store(y_ptr + offsets, (z * tl.sigmoid(z)).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def group_norm_silu_backward(
    x_ptr, w_ptr, b_ptr, statistics_ptr, dy_ptr, dx_ptr, sums_ptr, G, W, P, MS, PS,
    MAPS: tl.constexpr, PLACES: tl.constexpr, SUM: tl.constexpr, APPLY: tl.constexpr,
):  # fmt: skip
    """Sums of a tile, or dx, or both."""
    group, offsets, inside, is_map, w, b = _tile(w_ptr, b_ptr, G, W, P, MS, PS, MAPS, PLACES)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    mean, rstd = tl.load(statistics_ptr + 2 * group), tl.load(statistics_ptr + 2 * group + 1)
    x = tl.where(inside, (x - mean) * rstd, 0.0)
    z = x * w[:, None] + b[:, None]
    s = tl.sigmoid(z)
    dz = dy * s * (1 + z * (1 - s))
    rows = 2 * (group * W + tl.arange(0, MAPS))
    if SUM:
        to_b, to_w = tl.sum(dz, 1), tl.sum(dz * x, 1)
        sums_ptr += rows * tl.num_programs(1) + tl.program_id(1)
        tl.store(sums_ptr, to_b, mask=is_map)
        tl.store(sums_ptr + tl.num_programs(1), to_w, mask=is_map)
    else:
        to_b = tl.load(sums_ptr + rows, mask=is_map, other=0.0)
        to_w = tl.load(sums_ptr + rows + 1, mask=is_map, other=0.0)
    if APPLY:
        along = tl.sum(w * to_b, 0) + x * tl.sum(w * to_w, 0)
        dx = (dz * w[:, None] - along / (W * P)) * rstd
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def forward(x, num_groups, weight, bias, eps) -> tuple[Tensor, Tensor]:
    """y, and for the backward μ and 1/√(σ² + eps) of each group, (B·G, 2) in float32."""
    x = dense(x)
    y = torch.empty_like(x)
    grid, sizes, configs = _plan(x, num_groups)
    statistics = x.new_empty((grid[0], 2), dtype=torch.float32)
    moments = x.new_empty((grid[0], 2, grid[1]), dtype=torch.float32)
    given = (x, weight.contiguous(), bias.contiguous(), statistics, moments, y, *sizes, eps)
    with torch.cuda.device_of(x):
        for config in configs:
            tiles = triton.next_power_of_2(grid[1])
            group_norm_silu_forward[grid](*given, TILES=tiles, **config)
    return y, statistics


def backward(dy, x, num_groups, weight, bias, statistics) -> tuple[Tensor, Tensor]:
    """dx, and db and dw side by side, (C, 2) in float32."""
    x = dense(x)
    dx, dy = torch.empty_like(x), dy if dy.stride() == x.stride() else torch.empty_like(x).copy_(dy)
    grid, sizes, configs = _plan(x, num_groups)
    sums = x.new_empty((*x.shape[:2], 2, grid[1]), dtype=torch.float32)
    given = (x, weight.contiguous(), bias.contiguous(), statistics, dy, dx)
    with torch.cuda.device_of(x):
        for config in configs:
            sums = sums if config["SUM"] else sums.sum(3, keepdim=True)
            group_norm_silu_backward[grid](*given, sums, *sizes, **config)
    return dx, sums[..., 0].sum(0)


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels_last, else a contiguous copy."""
    is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if is_last else x.contiguous()


def _plan(x, num_groups) -> tuple[tuple[int, int], tuple[int, ...], list[dict[str, int | bool]]]:
    """The grid, sizes and strides, and the configurations to be launched one after the other."""
    width, num_places = x.shape[1] // num_groups, math.prod(x.shape[2:])
    maps, places = triton.next_power_of_2(width), triton.next_power_of_2(num_places)
    places = places if maps * places <= _WHOLE else _TILE // maps
    strides = (num_places, 1) if x.is_contiguous() else (1, x.shape[1])
    grid = (x.shape[0] * num_groups, triton.cdiv(num_places, places))
    shared = {"MAPS": maps, "PLACES": places, "num_warps": max(1, maps * places // 512)}
    steps = [(True, True)] if grid[1] == 1 else [(True, False), (False, True)]
    configs = [shared | {"SUM": s, "APPLY": a, "enable_fp_fusion": True} for s, a in steps]
    return grid, (num_groups, width, num_places, *strides), configs
