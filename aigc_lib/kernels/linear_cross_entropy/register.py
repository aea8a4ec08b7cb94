"""The loss in chunks as two operators of torch, which a compiler calls but doesn't look into."""

import torch
from torch import Tensor

from aigc_lib.kernels.linear_cross_entropy.chunks import in_chunks, room


@torch.library.custom_op("aigc::linear_cross_entropy_forward", mutates_args=())
def forward(
    features: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float,
    chunk: int | None, by_kernel: bool, needs_features: bool, needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum of the losses and its gradients, not yet scaled; an unwanted one is empty."""
    settings = ignore_index, label_smoothing, chunk, by_kernel, needs_features, needs_weight
    return in_chunks(features, weight, targets, *settings)


@forward.register_fake
def _(features, weight, targets, ignore, smoothing, chunk, kernel, needs_features, needs_weight):
    losses, dfeatures, dweight = room(features, weight, needs_features, needs_weight)
    return losses.new_empty(()), dfeatures, dweight


# No autograd formula: what comes out of a backward pass can't be differentiated again, and says so.
@torch.library.custom_op("aigc::linear_cross_entropy_backward", mutates_args=())
def backward(
    features: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float,
    chunk: int | None, by_kernel: bool, needs_features: bool, needs_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients once more, for a second pass through the same graph."""
    settings = ignore_index, label_smoothing, chunk, by_kernel, needs_features, needs_weight
    return in_chunks(features, weight, targets, *settings)[1:]


@backward.register_fake
def _(features, weight, targets, ignore, smoothing, chunk, kernel, needs_features, needs_weight):
    return room(features, weight, needs_features, needs_weight)[1:]


def _setup_context(ctx, inputs, output):
    features, weight, targets, *ctx.settings = inputs
    ctx.dtype = features.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, weight, targets)
    # Kept aside rather than saved: the first backward pass scales them in place and hands them
    # over, which spares a copy of the weight's size. Another pass computes them anew.
    ctx.gradients = [x.detach() for x in output[1:]]


def _differentiate(ctx, dtotal, *_):
    gradients, ctx.gradients = ctx.gradients, None
    is_fresh = gradients is not None and not torch.is_grad_enabled()
    if not is_fresh:
        gradients = backward(*ctx.saved_tensors, *ctx.settings)
    scaled = [
        _scaled(x, dtotal, is_fresh).to(ctx.dtype) if is_needed else None
        for x, is_needed in zip(gradients, ctx.settings[-2:], strict=True)
    ]
    return (*scaled, *[None] * 7)


def _scaled(gradient, factor, is_ours) -> Tensor:
    # In the factor's precision: that of a mean over many positions is too small for float16.
    gradient = gradient.to(factor.dtype)
    # A compiler's tracer, which hands in a subclass, gets a function without side effects.
    return gradient.mul_(factor) if is_ours and type(gradient) is Tensor else gradient * factor


forward.register_autograd(_differentiate, setup_context=_setup_context)
