"""Scaled dot-product attention: a look-up whose answer is a weighted average.

One contract for every caller. A mask says True where a query may attend. Query i of T stands at key
i + M − T, so that the last query meets the last key (the bottom-right diagonal, which a cache of
earlier keys needs); `is_causal` and `window` are measured from there. A query that may attend to
nothing gets zeros.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from aigc_lib.ops import dispatch

# The kernel's widest head: beyond it PyTorch's own fused kernels win.
_WIDEST = 128
# How far a query sees without a band: more than any length, and sums with it stay below 2³¹.
_EVERYTHING = 2**30


def attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H M K"],
    v: Float[Tensor, "B H M K"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    is_causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> Float[Tensor, "B H T K"]:
    """Average the values with weights that say how well each key answers the query.

    o_i = Σ_j a_ij v_j,   a_ij = exp(scale · q_i·k_j) / Σ_l exp(scale · q_i·k_l),

    where both sums run over the keys that query i may attend to; without any, o_i = 0.

    Source: Vaswani et al. 2017, equation 1, for each head; d_k there is K here.
    Derived: 11_attention eq-attention

    Args:
        q: queries.
        k: keys; M may differ from T.
        v: values, one for each key.
        mask: True where a query may attend; any shape that broadcasts to (B, H, T, M).
        is_causal: query i sees keys j ≤ i + M − T only; needs T ≤ M.
        window: query i sees keys with |i + M − T − j| < window only: with `is_causal` the last
            `window` keys up to its own place, without it as many to either side; needs T ≤ M.
        scale: factor on the dot products; None means 1/√K.
        impl: "reference" spells the formula out, "torch" takes the fused kernels of PyTorch,
            "triton" ours, which never visits keys outside a causal or windowed band, None chooses.

    Returns:
        (B, H, T, K), of the inputs' dtype; empty where an input axis is empty. Under autocast all
        but "reference" compute and return autocast's dtype, as PyTorch's fused kernels do.

    Raises:
        ValueError: shapes, dtypes or devices differ, a setting is out of range, or impl can't run.
        TypeError: the mask is not a tensor of booleans.
    """
    _check(q, k, mask, is_causal, window, scale)
    _check_alike(k, v, "v")
    if v.shape != k.shape:
        raise ValueError(f"expected v of k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    if impl != "reference":
        q, k, v = _autocast(q, k, v)
    chosen = dispatch.choose("attention", impl, q, k, v, refusal=_refusal(q))
    # Fused kernels of older PyTorch crash on an empty axis.
    if chosen == "reference" or not (q.numel() and k.numel()):
        return _reference(q, k, v, mask, is_causal, window, scale)
    if chosen == "triton":
        return _triton(q, k, v, mask, is_causal, window, scale)
    return _torch(q, k, v, mask, is_causal, window, scale)


def attention_weights(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H M K"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    is_causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T M"]:
    """The weights a_ij of `attention`, for looking at them; each row sums to one, or to zero.

    a_ij = exp(scale · q_i·k_j) / Σ_l exp(scale · q_i·k_l),  summed over the allowed keys l.

    Source: Vaswani et al. 2017, the softmax of equation 1.
    Derived: 11_attention eq-scaled

    Args:
        q: queries.
        k: keys.
        mask: as in `attention`, like the next three.
        is_causal: no key after the query's own place.
        window: no key that far from the query's own place.
        scale: factor on the dot products; None means 1/√K.

    Returns:
        (B, H, T, M) weights; all zero in a row that may attend to nothing.

    Raises:
        ValueError: shapes, dtypes or devices differ, or a setting is out of range.
        TypeError: the mask is not a tensor of booleans.
    """
    _check(q, k, mask, is_causal, window, scale)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    scores = scale * q @ k.transpose(2, 3)  #                              B H T M
    allowed = _allowed(q, k, mask, is_causal, window)
    if allowed is None:
        return scores.softmax(3)
    # A finite floor instead of −∞: a row without allowed keys makes no NaN on the way, not even one
    # that the zeros below would hide from all but autograd's anomaly detection.
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(3)
    return weights.masked_fill(~allowed, 0)


def _reference(q, k, v, mask, is_causal, window, scale) -> Tensor:
    # Half precision is computed in float32 and rounded once, as the fused kernels do.
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = attention_weights(
        q.to(wide), k.to(wide), mask=mask, is_causal=is_causal, window=window, scale=scale
    )
    return (weights @ v.to(wide)).to(q.dtype)


def _torch(q, k, v, mask, is_causal, window, scale) -> Tensor:
    scale = None if scale is None else float(scale)
    if is_causal and mask is None and window is None and q.shape[2] == k.shape[2]:
        # With T = M torch's top-left diagonal is ours, and its flag skips the forbidden half.
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    allowed = _allowed(q, k, mask, is_causal, window)
    if allowed is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    # What a kernel returns for a row without allowed keys is its own affair: let it see all keys
    # there, then write the zeros.
    alive = allowed.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | ~alive, scale=scale)
    return out.masked_fill(~alive, 0)


def _triton(q, k, v, mask, is_causal, window, scale) -> Tensor:
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    left = _EVERYTHING if window is None else window - 1
    right = 0 if is_causal else left
    return attention_forward(q, k, v, mask, scale, left, right)[0]


@torch.library.custom_op("aigc::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """The output, and log₂ of the sum under each row's softmax, (B, H, T), in float32.

    A query sees the keys from `left` before its own place to `right` after it.
    """
    from aigc_lib.kernels.attention import forward as kernels

    return kernels.forward(q, k, v, mask, scale, left, right)


@attention_forward.register_fake
def _(q, k, v, mask, scale, left, right):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("aigc::attention_backward", mutates_args=())
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    mask: Tensor | None,
    scale: float,
    left: int,
    right: int,
    to_queries: bool,
    to_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, and dk with dv, each where it is wanted, else without elements."""
    from aigc_lib.kernels.attention import backward as kernels

    return kernels.backward(q, k, v, out, lse, grad, mask, scale, left, right, to_queries, to_keys)


@attention_backward.register_fake
def _(q, k, v, out, lse, grad, mask, scale, left, right, to_queries, to_keys):
    keys = k.shape if to_keys else (0,)
    return q.new_empty(q.shape if to_queries else (0,)), k.new_empty(keys), v.new_empty(keys)


def _setup_context(ctx, inputs, output):
    q, k, v, mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, mask)


def _backward(ctx, grad, _):
    q, k, v, out, lse, mask = ctx.saved_tensors
    to_q, to_k, to_v = ctx.needs_input_grad[:3]
    dq, dk, dv = attention_backward(
        q, k, v, out, lse, grad, mask, *ctx.settings, to_q, to_k or to_v
    )
    wanted = (dq if to_q else None, dk if to_k else None, dv if to_v else None)
    return *wanted, None, None, None, None


attention_forward.register_autograd(_backward, setup_context=_setup_context)


def _allowed(q, k, mask, is_causal, window) -> Tensor | None:
    """True where a query may attend, (T, M) or wider; None where nothing is forbidden."""
    num_queries, num_keys = q.shape[2], k.shape[2]
    # A single query stands at the last key and sees them all.
    is_causal = is_causal and num_queries > 1
    if mask is None and not is_causal and window is None:
        return None
    place = torch.arange(num_keys - num_queries, num_keys, device=q.device)
    behind = place[:, None] - torch.arange(num_keys, device=q.device)
    allowed = torch.ones_like(behind, dtype=torch.bool)
    if is_causal:
        allowed &= behind >= 0
    if window is not None:
        allowed &= behind.abs() < window
    return allowed if mask is None else allowed & mask


def _autocast(q, k, v):
    """The inputs in autocast's dtype, where it is on and they are not float64."""
    device = q.device.type
    # There are devices without autocast, meta for one.
    known = torch.amp.is_autocast_available(device)
    if not known or not torch.is_autocast_enabled(device) or q.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _refusal(q) -> str | None:
    """Why the kernel can't take this call, None if it can."""
    if q.shape[3] <= _WIDEST:
        return None
    return (
        f"it holds heads of width {_WIDEST} at most, got {q.shape[3]}; beyond that the fused "
        "kernels that torch calls win"
    )


def _check(q, k, mask, is_causal, window, scale) -> None:
    for name, x in (("q", q), ("k", k)):
        if x.ndim != 4:
            raise ValueError(
                f"expected {name} of shape (batch, heads, tokens, head width), got {tuple(x.shape)}"
            )
    _check_alike(q, k, "k")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"expected k with q's batch, heads and head width, got k {tuple(k.shape)} for "
            f"q {tuple(q.shape)}"
        )
    if not q.is_floating_point() or q.shape[3] < 1:
        raise ValueError(
            f"expected floating-point queries of head width >= 1, got {q.dtype}, {q.shape[3]}"
        )
    shape = (*q.shape[:3], k.shape[2])
    if mask is not None:
        _check_mask(mask, shape, q.device)
    if window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"expected a whole window >= 1 or None, got {window!r}")
    if (is_causal or window is not None) and shape[2] > shape[3]:
        raise ValueError(
            "expected at most as many queries as keys with is_causal or window, got "
            f"{shape[2]} queries and {shape[3]} keys"
        )
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"expected a finite scale or None, got {scale}")


def _check_alike(x, y, name) -> None:
    if y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"expected q, k and v of one dtype on one device, got {name} {y.dtype} on {y.device} "
            f"beside {x.dtype} on {x.device}"
        )


def _check_mask(mask, shape, device) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"expected a mask of torch.bool, True = may attend, got {kind}")
    if mask.device != device:
        raise ValueError(f"expected a mask on {device}, got {mask.device}")
    fits = mask.ndim <= 4 and all(
        have in (1, want) for have, want in zip(mask.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"expected a mask that broadcasts to {shape}, got {tuple(mask.shape)}")
