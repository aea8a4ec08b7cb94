"""GroupNorm and SiLU as one operator of torch: its outputs' shapes, and the derivative."""

import torch
from torch import Tensor

from aigc_lib.kernels.group_norm_silu import kernels


@torch.library.custom_op("aigc::group_norm_silu_forward", mutates_args=())
def forward(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """y, and for the backward μ and 1/√(σ² + eps) of each group."""
    return kernels.forward(x, num_groups, weight, bias, eps)


@forward.register_fake
def _(x, num_groups, weight, bias, eps):
    statistics = x.new_empty((x.shape[0] * num_groups, 2), dtype=torch.float32)
    return torch.empty_like(kernels.dense(x)), statistics


@torch.library.custom_op("aigc::group_norm_silu_backward", mutates_args=())
def backward(
    dy: Tensor, x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """dx, and db and dw side by side in float32."""
    return kernels.backward(dy, x, num_groups, weight, bias, statistics)


@backward.register_fake
def _(dy, x, num_groups, weight, bias, statistics):
    sums = x.new_empty((x.shape[1], 2), dtype=torch.float32)
    return torch.empty_like(kernels.dense(x)), sums


def _setup_context(ctx, inputs, output):
    x, ctx.num_groups, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])


def _differentiate(ctx, dy, _):
    x, weight, bias, statistics = ctx.saved_tensors
    dx, sums = backward(dy, x, ctx.num_groups, weight, bias, statistics)
    return dx, None, sums[:, 1].to(weight.dtype), sums[:, 0].to(bias.dtype), None


forward.register_autograd(_differentiate, setup_context=_setup_context)
