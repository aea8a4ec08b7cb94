"""LayerNorm and RMSNorm as operators of torch: what the compiler must know, and the derivative."""

import torch
from torch import Tensor

from aigc_lib.kernels.norm import kernels


@torch.library.custom_op("aigc::norm_forward", mutates_args=())
def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor]:
    """y, and for the backward 1/√(σ² + eps) and, if centred, μ of each row, in float32."""
    return kernels.forward(x, weight, bias, eps, center)


@forward.register_fake
def _(x, weight, bias, eps, center):
    num_rows = x.numel() // x.shape[-1]
    return x.new_empty(x.shape), x.new_empty((1 + center, num_rows), dtype=torch.float32)


@torch.library.custom_op("aigc::norm_backward", mutates_args=())
def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor,
    weight_gradient: bool, bias_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dx, and the wanted ones of dw and db, in float32, as rows."""
    return kernels.backward(dy, x, weight, statistics, weight_gradient, bias_gradient)


@backward.register_fake
def _(dy, x, weight, statistics, weight_gradient, bias_gradient):
    wanted = weight_gradient + bias_gradient
    return x.new_empty(x.shape), x.new_empty((wanted, x.shape[-1]), dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    x, weight, bias, _, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]


def _differentiate(ctx, dy, _):
    x, weight, statistics = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1:3]
    dx, sums = backward(dy, x, weight, statistics, *wanted)
    sums = iter(sums.unbind(0))
    to_weight, to_bias = (
        next(sums).to(dtype) if want else None
        for want, dtype in zip(wanted, ctx.dtypes, strict=True)
    )
    return dx, to_weight, to_bias, None, None


forward.register_autograd(_differentiate, setup_context=_setup_context)
