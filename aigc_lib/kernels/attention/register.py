"""Attention as two operators of torch: what the compiler must know of them, and the derivative."""

import torch
from torch import Tensor

from aigc_lib.kernels.attention import backward as backward_pass
from aigc_lib.kernels.attention import forward as forward_pass


@torch.library.custom_op("aigc::attention_forward", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """The output, and log₂ of the sum under each row's softmax, (B, H, T), in float32.

    A query sees the keys from `left` before its own place to `right` after it.
    """
    return forward_pass.forward(q, k, v, mask, scale, left, right)


@forward.register_fake
def _(q, k, v, mask, scale, left, right):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("aigc::attention_backward", mutates_args=())
def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad: Tensor, mask: Tensor | None,
    scale: float, left: int, right: int, to_queries: bool, to_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, and dk with dv, each where it is wanted, else without elements."""
    more = (mask, scale, left, right, to_queries, to_keys)
    return backward_pass.backward(q, k, v, out, lse, grad, *more)


@backward.register_fake
def _(q, k, v, out, lse, grad, mask, scale, left, right, to_queries, to_keys):
    keys = k.shape if to_keys else (0,)
    return q.new_empty(q.shape if to_queries else (0,)), k.new_empty(keys), v.new_empty(keys)


def _setup_context(ctx, inputs, output):
    q, k, v, mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, mask)


def _differentiate(ctx, grad, _):
    q, k, v, out, lse, mask = ctx.saved_tensors
    to_q, to_k, to_v = ctx.needs_input_grad[:3]
    dq, dk, dv = backward(q, k, v, out, lse, grad, mask, *ctx.settings, to_q, to_k or to_v)
    wanted = (dq if to_q else None, dk if to_k else None, dv if to_v else None)
    return *wanted, None, None, None, None


forward.register_autograd(_differentiate, setup_context=_setup_context)
