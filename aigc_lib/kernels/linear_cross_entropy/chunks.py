"""The chunks of linear_cross_entropy: logits that turn into their own gradient, in plain PyTorch.

For each chunk X of rows of the features, with weight W and targets y:
    Z = X Wᵀ,   losses = −log softmax(Z)_y,   Z ← softmax(Z) − onehot(y),   dX = Z W,   dW += Zᵀ X.
The middle two are PyTorch's operations, or the kernel of cross_entropy in one launch.
"""

import torch
from torch import Tensor

# Rows per chunk. More rows read the weight and its gradient less often and take more memory. On a
# CPU of two threads, with V = 50 304 and C = 768, 256 rows take a tenth more time than 512 and four
# fifths of the memory; on a GPU the matrix products need thousands. The number of logits is bounded
# too: 1 GiB of them in float32.
ROWS = {"cpu": 256, "cuda": 4096}
MOST_LOGITS = 2**28
# On a CPU the elementwise passes stay in the cache: 4 MiB of float32.
CACHED_LOGITS = 2**20


def in_chunks(
    features: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float,
    chunk: int | None, by_kernel: bool, needs_features: bool, needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum of the losses, and its gradients in features (N, C) and weight, where needed."""
    losses, dfeatures, dweight = room(features, weight, needs_features, needs_weight)
    rows = chunk_rows(features, weight, chunk)
    buffer = features.new_empty(rows, weight.shape[0])
    price = _price_by_kernel if by_kernel else _price
    needs_gradient = needs_features or needs_weight
    with torch.autocast(features.device.type, enabled=False):
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


def room(
    features: Tensor, weight: Tensor, needs_features: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the losses and the gradients; that of the weight sums chunks in float32."""
    wide = torch.promote_types(features.dtype, torch.float32)
    losses = features.new_empty(features.shape[0], dtype=wide)
    dfeatures = features.new_empty(features.shape if needs_features else 0)
    dweight = weight.new_empty(weight.shape if needs_weight else 0, dtype=wide)
    return losses, dfeatures, dweight


def chunk_rows(features: Tensor, weight: Tensor, chunk: int | None) -> int:
    """Rows per chunk: as many as allowed, but no chunk much smaller than the others."""
    most = chunk or min(ROWS.get(features.device.type, 4096), MOST_LOGITS // len(weight))
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
    rows = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    losses = [
        _price_cached(z, y, label_smoothing, needs_gradient)
        for z, y in zip(logits.split(rows), places.split(rows), strict=True)
    ]
    return torch.cat(losses).masked_fill_(is_ignored, 0)


def _price_cached(logits, places, label_smoothing, needs_gradient) -> Tensor:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
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
