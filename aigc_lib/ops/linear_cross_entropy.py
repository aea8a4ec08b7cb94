"""Cross-entropy of a linear layer's output, without ever holding that output.

A language model's logits, one row of the vocabulary's size for each position, are by far the
largest tensor of its training step, and their gradient is another one. Here a chunk of rows at a
time is multiplied out, priced, turned into its own gradient and multiplied back: how, is in
aigc_lib/kernels/linear_cross_entropy/chunks.py. Errors as in `cross_entropy`.
"""

import contextlib

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.ops import dispatch
from aigc_lib.ops.cross_entropy import cross_entropy


def linear_cross_entropy(
    features: Float[Tensor, "*batch C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "*batch"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    chunk: int | None = None,
    impl: str | None = None,
) -> Float[Tensor, ""]:
    """loss = Σ_n loss_n / #{n: counted}, of `cross_entropy` with z_nv = Σ_c features_nc weight_vc.

    In nats; with `reduction` "sum" without the division. A position counts unless its target is
    `ignore_index`; where none counts, loss and gradients are 0. At most `chunk` rows of logits are
    held at once; None means 256 on a CPU, 4096 on a GPU, fewer beyond 2²⁸ logits. Gradients are
    computed along with the loss; the second derivative raises. Under autocast features and weight
    are cast as in F.linear. A wrong target that isn't looked at gives NaN.

    Source: Hsu et al. 2024, section on FusedLinearCrossEntropy (chunks of rows, gradients in the
        forward pass); Wijmans et al. 2024 go further and hold no chunk either.
    Derived: 12_transformer eq-nll
    """
    features, weight = dispatch.autocast(features, weight)
    _check(features, weight, targets, ignore_index, label_smoothing, reduction, chunk)
    chosen = dispatch.choose("linear_cross_entropy", impl, features, weight)
    settings = targets, ignore_index, float(label_smoothing)
    if chosen == "reference" or not (targets.numel() and weight.numel()):
        total = _reference(features, weight, *settings)
    else:
        total = _in_chunks(features, weight, *settings, chunk, chosen == "triton")
    if reduction == "sum":
        return total
    return total / (targets != ignore_index).sum().clamp(min=1)


def _reference(features, weight, targets, ignore_index, label_smoothing) -> Tensor:
    wide, kind = loss_dtype(features), features.device.type
    # The formula is exact under autocast, too; there are devices without it, meta for one.
    off = torch.autocast(kind, enabled=False) if kind != "meta" else contextlib.nullcontext()
    with off:
        logits = F.linear(features.to(wide), weight.to(wide))
    settings = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    return cross_entropy(logits, targets, **settings, impl="reference").sum()


def _in_chunks(features, weight, targets, ignore_index, label_smoothing, chunk, by_kernel):
    from aigc_lib.kernels.linear_cross_entropy import register

    rows, targets = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
    needs = [torch.is_grad_enabled() and x.requires_grad for x in (features, weight)]
    settings = ignore_index, label_smoothing, chunk, by_kernel, *needs
    return register.forward(rows, weight, targets, *settings)[0]


def _check(features, weight, targets, ignore_index, label_smoothing, reduction, chunk) -> None:
    shape, head = features.shape, weight.shape
    fits = len(shape) and len(head) == 2 and shape[-1] == head[1] and head[0] > 0
    expect.that(fits, "features (…, C) and weight (V, C) with V >= 1", (shape, head))
    expect.that(targets.shape == shape[:-1], "targets, one per row of features", targets.shape)
    expect.floating(features=features)
    expect.of_dtype((features.dtype,), weight=weight)
    expect.whole(targets=targets)
    expect.together(features=features, weight=weight, targets=targets)
    expect.that(type(ignore_index) is int, "a whole ignore_index", ignore_index)
    expect.between(0, 1, label_smoothing=label_smoothing)
    expect.values_in(0, head[0] - 1, except_for=ignore_index, targets=targets)
    expect.one_of(("mean", "sum"), reduction=reduction)
    expect.count(chunk=chunk)
