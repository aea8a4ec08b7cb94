"""Cross-entropy as two operators of torch: what the compiler must know, and the derivative."""

import torch
from torch import Tensor

from aigc_lib.kernels.cross_entropy import kernels


@torch.library.custom_op("aigc::cross_entropy_forward", mutates_args=())
def forward(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss and the log-sum-exp of each row."""
    return kernels.loss(logits, targets, ignore_index, label_smoothing)


@forward.register_fake
def _(logits, targets, ignore_index, label_smoothing):
    losses = logits.new_empty(targets.shape[0], dtype=torch.float32)
    return losses, torch.empty_like(losses)


@torch.library.custom_op("aigc::cross_entropy_backward", mutates_args=())
def backward(
    dlosses: Tensor, logits: Tensor, targets: Tensor, lses: Tensor,
    ignore_index: int, label_smoothing: float,
) -> Tensor:  # fmt: skip
    """The gradient in the logits."""
    return kernels.gradient(dlosses, logits, targets, lses, ignore_index, label_smoothing)


@backward.register_fake
def _(dlosses, logits, targets, lses, ignore_index, label_smoothing):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, targets, *ctx.settings = inputs
    ctx.save_for_backward(logits, targets, output[1])


def _differentiate(ctx, dlosses, _):
    return backward(dlosses, *ctx.saved_tensors, *ctx.settings), None, None, None


forward.register_autograd(_differentiate, setup_context=_setup_context)
