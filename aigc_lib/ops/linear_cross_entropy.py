"""Cross-entropy of a linear layer's output, without ever holding that output.

The logits of a language model, one row of the vocabulary's size for each position, are the largest
tensor of its training step by far, and their gradient is another one. Here a chunk of rows at a
time is multiplied out, priced, turned into its own gradient in place and multiplied back.
"""

import contextlib

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib.ops import dispatch
from aigc_lib.ops.cross_entropy import check_range, check_settings, loss_dtype, reference

# Rows per chunk. More rows read the weight and its gradient less often and take more memory. On a
# CPU of two threads, with V = 50 304 and C = 768, 256 rows take a tenth more time than 512 and four
# fifths of the memory; on a GPU the matrix products need thousands. The number of logits is bounded
# too: 1 GiB of them in float32.
_ROWS = {"cpu": 256, "cuda": 4096}
_MOST_LOGITS = 2**28
# On a CPU the elementwise passes stay in the cache: 4 MiB of float32.
_CACHED_LOGITS = 2**20


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
    """Compute the `cross_entropy` of features · weightᵀ in the memory of a chunk of its rows.

    loss = Σ_n loss_n / #{n: counted}   in nats, or without the division; loss_n as in
    `cross_entropy` with logits z_nv = Σ_c features_nc weight_vc. A position counts unless its
    target is `ignore_index`; where none counts, loss and gradients are 0.

    The gradients are computed along with the loss, chunk by chunk, each only if its input needs it,
    and merely scaled by the backward pass; that of a half-precision weight is summed in float32.
    Inside torch.autocast features and weight are cast as in F.linear. The second derivative raises.

    Source: Hsu et al. 2024, section on FusedLinearCrossEntropy (chunks of rows, gradients in the
        forward pass); Wijmans et al. 2024 go further and hold no chunk either.
    Derived: 12_transformer eq-nll

    Args:
        features: what the last layer hands to the head.
        weight: the head, one row per class, no bias.
        targets: as in `cross_entropy`; a wrong one that isn't looked at, on a GPU or in compiled
            code, gives NaN.
        ignore_index: positions with this target don't count.
        label_smoothing: ε, in [0, 1].
        reduction: "mean" over the positions that count, or "sum".
        chunk: at most so many rows of logits at once; None means 256 on a CPU, 4096 on a GPU, and
            fewer where that makes more than 2²⁸ logits.
        impl: "reference" holds all logits, "torch" takes chunks in plain PyTorch, "triton" computes
            a chunk's loss and gradient in one kernel, None chooses.

    Returns:
        One number: float64 for float64, else float32.

    Raises:
        ValueError: shapes, dtypes or devices differ, a setting or a target is out of range, or an
            implementation can't run here.
        TypeError: targets of another dtype.
    """
    features, weight = _autocast(features), _autocast(weight)
    check_settings(targets, ignore_index, label_smoothing)
    _check(features, weight, targets, reduction, chunk)
    check_range(targets, weight.shape[0], ignore_index)
    chosen = dispatch.choose("linear_cross_entropy", impl, features, weight)
    if chosen == "reference" or not (targets.numel() and weight.numel()):
        wide = loss_dtype(features)
        with _exactly(features):
            logits = F.linear(features.to(wide), weight.to(wide))
        total = reference(logits, targets, ignore_index, label_smoothing).sum()
    else:
        is_recording = torch.is_grad_enabled()
        total, _, _ = _forward(
            features.reshape(-1, features.shape[-1]),
            weight,
            targets.reshape(-1),
            ignore_index,
            float(label_smoothing),
            chunk,
            chosen == "triton",
            is_recording and features.requires_grad,
            is_recording and weight.requires_grad,
        )
    if reduction == "sum":
        return total
    return total / (targets != ignore_index).sum().clamp(min=1)


@torch.library.custom_op("aigc::linear_cross_entropy_forward", mutates_args=())
def _forward(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    chunk: int | None,
    by_kernel: bool,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the losses and its gradients, not yet scaled; an unwanted one is empty."""
    settings = ignore_index, label_smoothing, chunk, by_kernel, needs_features, needs_weight
    return _in_chunks(features, weight, targets, *settings)


@_forward.register_fake
def _(features, weight, targets, ignore, smoothing, chunk, kernel, needs_features, needs_weight):
    losses, dfeatures, dweight = _empty(features, weight, needs_features, needs_weight)
    return losses.new_empty(()), dfeatures, dweight


# No autograd formula: what comes out of a backward pass can't be differentiated again, and says so.
@torch.library.custom_op("aigc::linear_cross_entropy_backward", mutates_args=())
def _backward(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    chunk: int | None,
    by_kernel: bool,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients once more, for a second pass through the same graph."""
    settings = ignore_index, label_smoothing, chunk, by_kernel, needs_features, needs_weight
    return _in_chunks(features, weight, targets, *settings)[1:]


@_backward.register_fake
def _(features, weight, targets, ignore, smoothing, chunk, kernel, needs_features, needs_weight):
    return _empty(features, weight, needs_features, needs_weight)[1:]


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
        gradients = _backward(*ctx.saved_tensors, *ctx.settings)
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


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _in_chunks(
    features,
    weight,
    targets,
    ignore_index,
    label_smoothing,
    chunk,
    by_kernel,
    needs_features,
    needs_weight,
) -> tuple[Tensor, Tensor, Tensor]:
    losses, dfeatures, dweight = _empty(features, weight, needs_features, needs_weight)
    rows = _chunk_rows(features, weight, chunk)
    buffer = features.new_empty(rows, weight.shape[0])
    price = _price_by_kernel if by_kernel else _price
    needs_gradient = needs_features or needs_weight
    with _exactly(features):
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            y = targets[part]
            x, is_ignored = _readied(features[part], y, weight.shape[0], ignore_index)
            logits = buffer[: len(x)]
            torch.mm(x, weight.T, out=logits)
            losses[part] = price(logits, y, ignore_index, label_smoothing, needs_gradient)
            # Now the logits are their own gradient; in the rows of ignored positions it is anything
            # finite, where x is 0 and the result is discarded.
            if needs_features:
                torch.mm(logits, weight, out=dfeatures[part])
                dfeatures[part].masked_fill_(is_ignored, 0)
            if needs_weight:
                _add_product(dweight, logits, x, is_first=start == 0)
    return losses.sum(), dfeatures, dweight


def _empty(features, weight, needs_features, needs_weight) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the losses and the gradients; that of the weight sums chunks in float32."""
    wide = loss_dtype(features)
    losses = features.new_empty(features.shape[0], dtype=wide)
    dfeatures = features.new_empty(features.shape if needs_features else 0)
    dweight = weight.new_empty(weight.shape if needs_weight else 0, dtype=wide)
    return losses, dfeatures, dweight


def _chunk_rows(features, weight, chunk) -> int:
    """Rows per chunk: as many as allowed, but no chunk much smaller than the others."""
    most = chunk or min(_ROWS.get(features.device.type, 4096), _MOST_LOGITS // len(weight))
    num_chunks = -(-len(features) // max(1, most))
    return -(-len(features) // num_chunks)


def _readied(features, targets, num_classes, ignore_index) -> tuple[Tensor, Tensor]:
    """Features that are 0 where ignored, so that nothing there matters, and NaN where wrong."""
    is_ignored = (targets == ignore_index)[:, None]
    is_wrong = ((targets < 0) | (targets >= num_classes))[:, None] & ~is_ignored
    return features.masked_fill(is_ignored, 0).masked_fill_(is_wrong, torch.nan), is_ignored


def _price(logits, targets, ignore_index, label_smoothing, needs_gradient) -> Tensor:
    """The losses of a chunk; overwrites its logits by the gradient of their sum, if needed."""
    is_ignored = targets == ignore_index
    places = targets.clamp(0, logits.shape[1] - 1).long()[:, None]
    rows = max(1, _CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    losses = [
        _price_cached(z, y, label_smoothing, needs_gradient)
        for z, y in zip(logits.split(rows), places.split(rows), strict=True)
    ]
    return torch.cat(losses).masked_fill_(is_ignored, 0)


def _price_cached(logits, places, label_smoothing, needs_gradient) -> Tensor:
    z = logits.to(loss_dtype(logits))
    largest = z.amax(1, keepdim=True)
    loss = largest - z.gather(1, places)
    if label_smoothing:
        loss += label_smoothing * (z.gather(1, places) - z.mean(1, keepdim=True))
    total = z.sub_(largest).exp_().sum(1, keepdim=True)
    loss += total.log()
    if needs_gradient:
        z.div_(total)
        if label_smoothing:
            z.sub_(label_smoothing / z.shape[1])
        z.scatter_add_(1, places, torch.full_like(loss, label_smoothing - 1))
        if z is not logits:
            logits.copy_(z)
    return loss[:, 0]


def _price_by_kernel(logits, targets, ignore_index, label_smoothing, needs_gradient) -> Tensor:
    from aigc_lib.kernels.cross_entropy import kernels

    if needs_gradient:
        return kernels.loss_and_gradient_(logits, targets, ignore_index, label_smoothing)
    return kernels.loss(logits[None], targets, ignore_index, label_smoothing)[0]


def _add_product(dweight, dlogits, features, is_first) -> None:
    """dweight += dlogitsᵀ · features, summed in dweight's precision."""
    if dlogits.dtype != dweight.dtype and dweight.is_cuda:
        old = 0 if is_first else 1
        wide = dweight.dtype
        torch.addmm(dweight, dlogits.T, features, beta=old, out_dtype=wide, out=dweight)
    else:
        dlogits, features = dlogits.to(dweight.dtype), features.to(dweight.dtype)
        # beta = 0 doesn't read what was there.
        dweight.addmm_(dlogits.T, features, beta=0 if is_first else 1)


def _autocast(x) -> Tensor:
    """What F.linear makes of its input inside torch.autocast."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x
    is_cast = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(kind)) if is_cast else x


def _exactly(x):
    """A context in which autocast changes nothing."""
    kind = x.device.type
    return contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def _check(features, weight, targets, reduction, chunk) -> None:
    if features.ndim < 1 or weight.ndim != 2 or features.shape[-1] != weight.shape[1]:
        raise ValueError(
            "expected features (…, C) and weight (V, C), got "
            f"{tuple(features.shape)} and {tuple(weight.shape)}"
        )
    if not features.is_floating_point() or weight.shape[0] < 1:
        raise ValueError(
            f"expected floating-point features and V >= 1 classes, got {features.dtype} and "
            f"{weight.shape[0]}"
        )
    if weight.dtype != features.dtype or weight.device != features.device:
        raise ValueError(
            f"expected weight of {features.dtype} on {features.device}, like features, got "
            f"{weight.dtype} on {weight.device}"
        )
    if targets.shape != features.shape[:-1]:
        raise ValueError(
            f"expected one target per row of features, {tuple(features.shape[:-1])}, got "
            f"{tuple(targets.shape)}"
        )
    if targets.device != features.device:
        raise ValueError(f"expected targets on {features.device}, got {targets.device}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f'expected reduction "mean" or "sum", got {reduction!r}')
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ValueError(f"expected a whole chunk >= 1 or None, got {chunk!r}")
