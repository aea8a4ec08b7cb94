"""Cross-entropy of a categorical distribution given by its logits, one loss per position.

In nats, nothing averaged; float64 for float64 logits, else float32, because losses are there to be
averaged. Wrong dtypes raise TypeError, all else that doesn't fit ValueError.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.ops import dispatch


def cross_entropy(
    logits: Float[Tensor, "*batch V"],
    targets: Int[Tensor, "*batch"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    impl: str | None = None,
) -> Float[Tensor, "*batch"]:
    """loss = log Σ_v exp(z_v) − (1 − ε) z_y − (ε/V) Σ_v z_v   for logits z, target y, smoothing ε.

    That is the cross-entropy of (1 − ε) · onehot(y) + ε/V against softmax(z). A position with the
    target `ignore_index` costs nothing and moves nothing. With ε = 0 a logit may be −∞: a forbidden
    class, whose gradient is 0. Targets out of range are refused on the CPU; on a GPU, where looking
    would wait, one makes its row NaN with "triton" and stops the program with "torch". The second
    derivative of "triton" raises.

    Source: Szegedy et al. 2016, section 7, whose uniform distribution u(k) = 1/K is 1/V here.
    Derived: 12_transformer eq-smooth-target
    """
    _check(logits, targets, ignore_index, label_smoothing)
    chosen = dispatch.choose("cross_entropy", impl, logits)
    is_plain = chosen == "reference" or not targets.numel()
    run = _reference if is_plain else _triton if chosen == "triton" else _torch
    return run(logits, targets, ignore_index, float(label_smoothing))


def _reference(logits, targets, ignore_index, label_smoothing) -> Tensor:
    z = logits.to(loss_dtype(logits))
    is_counted = targets != ignore_index
    places = torch.where(is_counted, targets, 0).long()
    loss = z.logsumexp(-1) - (1 - label_smoothing) * z.gather(-1, places[..., None])[..., 0]
    if label_smoothing:  # 0 · (−inf) would be NaN
        loss = loss - label_smoothing * z.mean(-1)
    return torch.where(is_counted, loss, 0)


def _torch(logits, targets, ignore_index, label_smoothing) -> Tensor:
    losses = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).to(loss_dtype(logits)),
        targets.reshape(-1).long(),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.reshape(targets.shape)


def _triton(logits, targets, ignore_index, label_smoothing) -> Tensor:
    from aigc_lib.kernels.cross_entropy import register

    # Two batch axes reach the kernel as they are: logits[:, :-1] is not copied.
    if logits.ndim < 3:
        rows = logits.reshape(1, -1, logits.shape[-1])
    else:
        rows = logits.reshape(-1, *logits.shape[-2:])
    losses, _ = register.forward(rows, targets.reshape(-1), ignore_index, label_smoothing)
    return losses.reshape(targets.shape)


def _check(logits, targets, ignore_index, label_smoothing) -> None:
    shape = logits.shape
    expect.that(len(shape) and shape[-1] > 0, "logits of shape (…, V) with V >= 1", shape)
    expect.that(targets.shape == shape[:-1], "targets, one per row of logits", targets.shape)
    expect.floating(logits=logits)
    expect.whole(targets=targets)
    expect.together(logits=logits, targets=targets)
    expect.that(type(ignore_index) is int, "a whole ignore_index", ignore_index)
    expect.between(0, 1, label_smoothing=label_smoothing)
    expect.values_in(0, shape[-1] - 1, except_for=ignore_index, targets=targets)
