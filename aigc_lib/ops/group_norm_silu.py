"""GroupNorm and SiLU in one: what stands before nearly every convolution of a diffusion model."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.ops import dispatch

Maps, Channels = Float[Tensor, "B C *places"], Float[Tensor, " C"]


def group_norm_silu(
    x: Maps,
    num_groups: int,
    weight: Channels,
    bias: Channels,
    *,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Maps:
    """y = z · sigmoid(z),   z = (x − μ) / √(σ² + eps) · w + b,   μ and σ² of the group's numbers.

    A group is C/G neighbouring maps of one example, all places. Computed in at least float32, but
    "torch" rounds z to the widest dtype given; the result has x's dtype.

    Source: Wu and He 2018, equations 1, 2, 6, 7; SiLU: Hendrycks and Gimpel 2016, section 2.
    Derived: —
    """
    fits = x.ndim >= 2 and num_groups >= 1 <= x.shape[1] and x.shape[1] % num_groups == 0
    expect.that(fits, "x (B, C, …) with C in multiples of num_groups", (x.shape, num_groups))
    shapes = weight.shape, bias.shape
    expect.that(shapes == (x.shape[1:2],) * 2, "weight and bias with a number for each map", shapes)
    expect.together(x=x, weight=weight, bias=bias)
    expect.floating(x=x, weight=weight, bias=bias)
    expect.that(0 <= eps < math.inf, "a finite eps >= 0", eps)
    is_large = x.shape[1] > 256 * num_groups or x.numel() > 2**21 * num_groups * len(x)
    refusal = "a group has over 256 maps or 2²¹ numbers" if is_large else None
    chosen = dispatch.choose("group_norm_silu", impl, x, weight, bias, refusal=lambda *_: refusal)
    run = {"reference": _reference, "torch": _torch, "triton": _triton}[chosen]
    return (run if x.numel() else _reference)(x, num_groups, weight, bias, float(eps))


def _reference(x, num_groups, weight, bias, eps) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = wide.unflatten(1, (num_groups, -1)).flatten(2)  #             B G C/G·places
    centred = groups - groups.mean(2, keepdim=True)
    z = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    weight, bias = (t.reshape(-1, *[1] * (x.ndim - 2)) for t in (weight, bias))
    z = z.reshape(x.shape) * weight + bias  #                              B C *places
    return (z * z.sigmoid()).to(x.dtype)


def _torch(x, num_groups, weight, bias, eps) -> Tensor:
    wide = torch.promote_types(x.dtype, weight.dtype)
    z = torch.group_norm(x.to(wide), num_groups, weight.to(wide), bias.to(wide), eps)
    return F.silu(z, inplace=not z.requires_grad).to(x.dtype)


def _triton(x, num_groups, weight, bias, eps) -> Tensor:
    from aigc_lib.kernels.group_norm_silu import register

    return register.forward(x, num_groups, weight, bias, eps)[0]
