"""Cross-entropy of a categorical distribution given by its logits, one loss per position."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib.ops import dispatch


def cross_entropy(
    logits: Float[Tensor, "*batch V"],
    targets: Int[Tensor, "*batch"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    impl: str | None = None,
) -> Float[Tensor, "*batch"]:
    """Price the right class at each position: −log of the probability that it was given.

    loss = log Σ_v exp(z_v) − (1 − ε) z_y − (ε/V) Σ_v z_v   in nats, for the logits z, the target y
    and the smoothing ε: the cross-entropy of (1 − ε) · onehot(y) + ε/V against softmax(z). Nothing
    is averaged over positions. Without smoothing a logit may be −inf: a forbidden class, whose
    gradient is 0.

    Source: Szegedy et al. 2016, section 7, whose uniform distribution u(k) = 1/K is 1/V here.
    Derived: 12_transformer eq-smooth-target

    Args:
        logits: any finite numbers, or −inf for a class that can't occur.
        targets: int64 or int32, each in 0 … V − 1 or `ignore_index`. On a GPU, where looking would
            wait for the device, a wrong one gives NaN with "triton", in the loss and the gradient
            of its row, and stops the program with "torch".
        ignore_index: positions with this target have loss 0 and no gradient.
        label_smoothing: ε, in [0, 1]: the share of the target that is spread over all classes.
        impl: "reference" spells the formula out, "torch" takes PyTorch's own, "triton" our kernel
            (its second derivative raises), None chooses.

    Returns:
        One loss per position: of the logits' dtype for float64 and float32, and float32 for half
        precision, because losses are there to be averaged.

    Raises:
        ValueError: shapes or devices differ, a setting or a target is out of range, or an
            implementation can't run here.
        TypeError: targets of another dtype.
    """
    check_settings(targets, ignore_index, label_smoothing)
    _check(logits, targets)
    check_range(targets, logits.shape[-1], ignore_index)
    chosen = dispatch.choose("cross_entropy", impl, logits)
    if chosen == "reference" or not targets.numel():
        return reference(logits, targets, ignore_index, label_smoothing)
    run = _triton if chosen == "triton" else _torch
    return run(logits, targets, ignore_index, float(label_smoothing))


def reference(logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float) -> Tensor:
    """The formula of `cross_entropy`, without its checks."""
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
    # Two batch axes reach the kernel as they are: logits[:, :-1] is not copied.
    if logits.ndim < 3:
        rows = logits.reshape(1, -1, logits.shape[-1])
    else:
        rows = logits.reshape(-1, *logits.shape[-2:])
    losses, _ = _forward(rows, targets.reshape(-1), ignore_index, label_smoothing)
    return losses.reshape(targets.shape)


@torch.library.custom_op("aigc::cross_entropy_forward", mutates_args=())
def _forward(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    from aigc_lib.kernels.cross_entropy import kernels

    return kernels.loss(logits, targets, ignore_index, label_smoothing)


@_forward.register_fake
def _(logits, targets, ignore_index, label_smoothing):
    losses = logits.new_empty(targets.shape[0], dtype=torch.float32)
    return losses, torch.empty_like(losses)


@torch.library.custom_op("aigc::cross_entropy_backward", mutates_args=())
def _backward(
    dlosses: Tensor,
    logits: Tensor,
    targets: Tensor,
    lses: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    from aigc_lib.kernels.cross_entropy import kernels

    return kernels.gradient(dlosses, logits, targets, lses, ignore_index, label_smoothing)


@_backward.register_fake
def _(dlosses, logits, targets, lses, ignore_index, label_smoothing):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, targets, ctx.ignore_index, ctx.label_smoothing = inputs
    ctx.save_for_backward(logits, targets, output[1])


def _differentiate(ctx, dlosses, _):
    logits, targets, lses = ctx.saved_tensors
    settings = ctx.ignore_index, ctx.label_smoothing
    return _backward(dlosses, logits, targets, lses, *settings), None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """What a loss is computed and returned in: at least float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def check_settings(targets: Tensor, ignore_index: int, label_smoothing: float) -> None:
    """Refuse what is wrong with the targets' dtype, `ignore_index` and `label_smoothing`."""
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"expected targets of torch.int64 or torch.int32, got {targets.dtype}")
    if type(ignore_index) is not int:
        raise TypeError(f"expected a whole ignore_index, got {ignore_index!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"expected label_smoothing in [0, 1], got {label_smoothing}")


def check_range(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse a target out of range, where looking at it costs no wait and no graph break."""
    if torch.compiler.is_compiling() or targets.device.type != "cpu":
        return
    is_wrong = ((targets < 0) | (targets >= num_classes)) & (targets != ignore_index)
    if is_wrong.any():
        raise ValueError(
            f"expected targets in 0 … {num_classes - 1} or ignore_index {ignore_index}, got "
            f"{int(targets[is_wrong][0])}"
        )


def _check(logits, targets) -> None:
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"expected logits of shape (…, V) with V >= 1, got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"expected floating-point logits, got {logits.dtype}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"expected one target per row of logits, {tuple(logits.shape[:-1])}, got "
            f"{tuple(targets.shape)}"
        )
    if targets.device != logits.device:
        raise ValueError(f"expected targets on {logits.device}, got {targets.device}")
