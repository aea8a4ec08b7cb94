"""Normalising each row to a fixed size: LayerNorm and RMSNorm.

Both work along the last axis, each row for itself, so that neither the batch nor the position
matters. LayerNorm takes the row's mean away and divides by its standard deviation; RMSNorm only
divides by the root of the mean square. A weight and a bias then give every channel its own scale
and shift.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib.ops import dispatch

# The kernel holds a row in registers; its backward also holds two sums of that width.
_WIDEST, _WIDEST_BACKWARD = 16384, 4096


def layer_norm(
    x: Float[Tensor, "... C"],
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    *,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Float[Tensor, "... C"]:
    """Bring each row to mean 0 and variance 1, then scale and shift its channels.

    y = (x − μ) / √(σ² + eps) · w + b,   μ = mean(x),   σ² = mean((x − μ)²),

    where the means run over the C channels of a row (σ² divides by C, not by C − 1).

    Source: Ba, Kiros, Hinton 2016, equations 3 (μ, σ) and 4; a, g and H there are x, w and C here;
    eps is not in the paper.
    Derived: 12_transformer eq-layernorm

    Args:
        x: rows of C ≥ 1 channels, with any leading axes.
        weight: w, of x's or another floating dtype; None means ones.
        bias: b, likewise; None means zeros.
        eps: ≥ 0, keeps a constant row finite.
        impl: "reference" spells the formula out, "torch" takes PyTorch's own, "triton" one fused
            kernel each way, None chooses.

    Returns:
        y, of x's shape and dtype. Everything is computed in float32 at least, and in the widest of
        the inputs' dtypes; each gradient has the dtype of what it belongs to.

    Raises:
        ValueError: shapes, dtypes or devices don't fit, eps is out of range, or impl can't run.
    """
    return _normalise("layer_norm", x, weight, bias, eps, impl)


def rms_norm(
    x: Float[Tensor, "... C"],
    weight: Float[Tensor, " C"] | None = None,
    *,
    eps: float = 1e-6,
    impl: str | None = None,
) -> Float[Tensor, "... C"]:
    """Bring each row to mean square 1, then scale its channels.

    y = x / √(mean(x²) + eps) · w,   the mean over the C channels of a row.

    Source: Zhang, Sennrich 2019, equation 4; a, g and n there are x, w and C here; eps is not in
    the paper.
    Derived: 12_transformer eq-rms-jacobian

    Args:
        x: rows of C ≥ 1 channels, with any leading axes.
        weight: w, of x's or another floating dtype; None means ones.
        eps: ≥ 0, keeps a row of zeros finite.
        impl: as in `layer_norm`.

    Returns:
        y, of x's shape and dtype; precision as in `layer_norm`.

    Raises:
        ValueError: shapes, dtypes or devices don't fit, eps is out of range, or impl can't run.
    """
    return _normalise("rms_norm", x, weight, None, eps, impl)


def _normalise(op, x, weight, bias, eps, impl) -> Tensor:
    given = _check(x, weight, bias, eps)
    chosen = dispatch.choose(op, impl, *given, refusal=_refusal(given))
    if chosen == "reference" or not x.numel():
        return _reference(x, weight, bias, eps, op == "layer_norm")
    if chosen == "triton":
        return norm_forward(x, weight, bias, float(eps), op == "layer_norm")[0]
    # PyTorch's own take tensors of one dtype. A `to` that changes nothing is not free: a step of
    # decoding, all overhead, would have dozens.
    dtype = x.dtype
    if len({t.dtype for t in given}) > 1:
        wide = _widest(given)
        x, weight, bias = (None if t is None else t.to(wide) for t in (x, weight, bias))
    y = _torch(op, x, weight, bias, float(eps))
    return y if y.dtype == dtype else y.to(dtype)  # autocast has a mind of its own


def _reference(x, weight, bias, eps, center) -> Tensor:
    wide = _widest([t for t in (x, weight, bias) if t is not None])
    wide = torch.promote_types(wide, torch.float32)
    y = x.to(wide)
    if center:
        y = y - y.mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype)


def _torch(op, x, weight, bias, eps) -> Tensor:
    if op == "layer_norm":
        return torch.layer_norm(x, x.shape[-1:], weight, bias, eps)
    # On the CPU F.rms_norm is a chain of small operations, which a compiler would fuse.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return _RMSNorm.apply(x, weight, eps)[0]


class _RMSNorm(torch.autograd.Function):
    """RMSNorm in few passes over memory, forward and backward.

    rstd is a second output so that the backward is itself differentiable: a gradient that reaches
    rstd joins the one that y sends there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, eps):
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        rstd = (norm.square() / x.shape[-1] + eps).rsqrt()
        y = x * rstd
        return (y if weight is None else y * weight).to(x.dtype), rstd

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], inputs[1], output[1])

    @staticmethod
    def backward(ctx, dy, to_rstd):
        x, weight, rstd = ctx.saved_tensors
        dtype, width = x.dtype, x.shape[-1]
        x, dy = x.to(rstd.dtype), dy.to(rstd.dtype)
        product, g, to_weight = dy * x, dy, None
        if weight is None:
            along = product.sum(-1, keepdim=True)
        else:
            along = (product @ weight.to(rstd.dtype))[..., None]
            g = dy * weight
            if ctx.needs_input_grad[1]:
                to_weight = (product * rstd).reshape(-1, width).sum(0).to(dtype)
        # ∂rstd/∂x = −rstd³·x/C
        to_x = torch.addcmul(g * rstd, x, rstd**3 * ((along + to_rstd) / -width))
        return to_x.to(dtype), to_weight, None


@torch.library.custom_op("aigc::norm_forward", mutates_args=())
def norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor]:
    """y, and for the backward 1/√(σ² + eps) and, if centred, μ of each row, in float32."""
    from aigc_lib.kernels.norm import kernels as norm

    return norm.forward(x, weight, bias, eps, center)


@norm_forward.register_fake
def _(x, weight, bias, eps, center):
    num_rows = x.numel() // x.shape[-1]
    return x.new_empty(x.shape), x.new_empty((1 + center, num_rows), dtype=torch.float32)


@torch.library.custom_op("aigc::norm_backward", mutates_args=())
def norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    weight_gradient: bool,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """dx, and the wanted ones of dw and db, in float32, as rows."""
    from aigc_lib.kernels.norm import kernels as norm

    return norm.backward(dy, x, weight, statistics, weight_gradient, bias_gradient)


@norm_backward.register_fake
def _(dy, x, weight, statistics, weight_gradient, bias_gradient):
    wanted = weight_gradient + bias_gradient
    return x.new_empty(x.shape), x.new_empty((wanted, x.shape[-1]), dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    x, weight, bias, _, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]


def _backward(ctx, dy, _):
    x, weight, statistics = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1:3]
    dx, sums = norm_backward(dy, x, weight, statistics, *wanted)
    sums = iter(sums.unbind(0))
    to_weight, to_bias = (
        next(sums).to(dtype) if want else None
        for want, dtype in zip(wanted, ctx.dtypes, strict=True)
    )
    return dx, to_weight, to_bias, None, None


norm_forward.register_autograd(_backward, setup_context=_setup_context)


def _widest(tensors) -> torch.dtype:
    wide = tensors[0].dtype
    for t in tensors[1:]:
        wide = torch.promote_types(wide, t.dtype)
    return wide


def _refusal(tensors) -> str | None:
    """Why the kernel can't take this call, None if it can."""
    width = tensors[0].shape[-1]
    if width <= _WIDEST_BACKWARD:
        return None
    backward = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    limit = _WIDEST_BACKWARD if backward else _WIDEST
    if width <= limit:
        return None
    way = "with gradients" if backward else "without gradients"
    return f"it holds rows of at most {limit} channels {way} in registers, got {width}"


def _check(x, weight, bias, eps) -> list[Tensor]:
    """The tensors that were given, once they fit."""
    if not x.is_floating_point():
        raise ValueError(f"expected x of a floating dtype, got {x.dtype}")
    shape, device, given = x.shape[-1:], x.device, [x]
    if not shape or shape[0] < 1:
        raise ValueError(f"expected x of shape (..., C) with C >= 1, got {tuple(x.shape)}")
    for name, v in (("weight", weight), ("bias", bias)):
        if v is None:
            continue
        if v.shape != shape:
            raise ValueError(
                f"expected {name} of shape ({x.shape[-1]},), one for each channel, "
                f"got {tuple(v.shape)}"
            )
        if not v.is_floating_point():
            raise ValueError(f"expected {name} of a floating dtype, got {v.dtype}")
        if v.device != device:
            raise ValueError(f"expected {name} on x's device {device}, got {v.device}")
        given.append(v)
    if not 0 <= eps < math.inf:  # False for NaN too
        raise ValueError(f"expected a finite eps >= 0, got {eps}")
    return given
