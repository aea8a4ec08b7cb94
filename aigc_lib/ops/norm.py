"""LayerNorm and RMSNorm: each row is brought to a fixed size, along the last axis.

Each row of C ≥ 1 channels is normalised for itself. A weight (None means ones) and a bias (None
means zeros) give every channel its own scale and shift; `eps` ≥ 0 keeps a constant row finite.
All is computed in the widest of the inputs' dtypes, at least float32; the result has x's dtype,
each gradient that of its input. Wrong dtypes raise TypeError, all else that doesn't fit ValueError.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.ops import dispatch

Rows = Float[Tensor, "... C"]
Channels = Float[Tensor, " C"]

# The kernel holds a row in registers; its backward also holds two sums of that width.
_WIDEST, _WIDEST_BACKWARD = 16384, 4096
# With fewer numbers than these the calls cost a CPU more than its memory does.
_FEW = 2**16


def layer_norm(
    x: Rows,
    weight: Channels | None = None,
    bias: Channels | None = None,
    *,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Rows:
    """y = (x − μ) / √(σ² + eps) · w + b,   μ = mean(x),   σ² = mean((x − μ)²).

    The means run over the channels of a row (σ² divides by C, not by C − 1).

    Source: Ba, Kiros, Hinton 2016, equations 3 (μ, σ) and 4; a, g and H there are x, w and C here;
    eps is not in the paper.
    Derived: 12_transformer eq-layernorm
    """
    return _normalise("layer_norm", x, weight, bias, eps, impl)


def rms_norm(
    x: Rows, weight: Channels | None = None, *, eps: float = 1e-6, impl: str | None = None
) -> Rows:
    """y = x / √(mean(x²) + eps) · w,   the mean over the channels of a row.

    Source: Zhang, Sennrich 2019, equation 4; a, g and n there are x, w and C here; eps is not in
    the paper.
    Derived: 12_transformer eq-rms-jacobian
    """
    return _normalise("rms_norm", x, weight, None, eps, impl)


def _reference(op, x, weight, bias, eps) -> Tensor:
    wide = torch.promote_types(_widest([x, weight, bias]), torch.float32)
    y = x.to(wide)
    if op == "layer_norm":
        y = y - y.mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype)


def _normalise(op, x, weight, bias, eps, impl) -> Tensor:
    _check(x, weight, bias, eps)
    given = [t for t in (x, weight, bias) if t is not None]
    chosen = dispatch.choose(op, impl, *given, refusal=_refusal)
    if chosen == "reference" or not x.numel():
        return _reference(op, x, weight, bias, eps)
    run = _triton if chosen == "triton" else _torch
    return run(op, x, weight, bias, float(eps))


def _torch(op, x, weight, bias, eps) -> Tensor:
    # PyTorch's own take tensors of one dtype. A `to` that changes nothing is not free: a step of
    # decoding, all overhead, would have dozens.
    dtype = x.dtype
    if not (weight is None or weight.dtype == dtype) or not (bias is None or bias.dtype == dtype):
        wide = _widest([x, weight, bias])
        x, weight, bias = (None if t is None else t.to(wide) for t in (x, weight, bias))
    shape = x.shape[-1:]
    if op == "layer_norm":
        y = torch.layer_norm(x, shape, weight, bias, eps)
    elif torch.compiler.is_compiling() or x.numel() < _FEW or x.device.type != "cpu":
        y = torch.rms_norm(x, shape, weight, eps)
    else:  # where torch.rms_norm is a chain of many operations, which a compiler would fuse
        run = _RMSNorm.apply if torch.is_grad_enabled() else _RMSNorm.forward
        y, _ = run(x, weight, eps)
    return y if y.dtype == dtype else y.to(dtype)  # autocast has a mind of its own


class _RMSNorm(torch.autograd.Function):
    """RMSNorm in few passes over memory, forward and backward."""

    generate_vmap_rule = True

    # rstd is a second output so that the backward is itself differentiable: a gradient that reaches
    # rstd joins the one that y sends there.
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


def _triton(op, x, weight, bias, eps) -> Tensor:
    from aigc_lib.kernels.norm import register

    return register.forward(x, weight, bias, eps, op == "layer_norm")[0]


def _widest(tensors) -> torch.dtype:
    wide = tensors[0].dtype
    for t in tensors[1:]:
        wide = wide if t is None else torch.promote_types(wide, t.dtype)
    return wide


def _refusal(*tensors) -> str | None:
    backward = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    limit, width = _WIDEST_BACKWARD if backward else _WIDEST, tensors[0].shape[-1]
    if width <= limit:
        return None
    way = "with gradients" if backward else "without gradients"
    return f"it holds rows of at most {limit} channels {way} in registers, got {width}"


def _check(x, weight, bias, eps) -> None:
    shape, device = x.shape[-1:], x.device
    expect.that(len(shape) and shape[0] > 0, "x of shape (..., C) with C >= 1", x.shape)
    expect.floating(x=x)
    for v in (weight, bias):
        # Asked in few words, for a step of decoding comes here dozens of times.
        fits = v is None or (v.shape == shape and v.device == device and v.is_floating_point())
        if not fits:
            expect.shaped(tuple(shape), weight=weight, bias=bias)
            expect.together(x=x, weight=weight, bias=bias)
            expect.floating(weight=weight, bias=bias)
    expect.that(0 <= eps < math.inf, "a finite eps >= 0", eps)
