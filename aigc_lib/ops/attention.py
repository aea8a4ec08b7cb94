"""Scaled dot-product attention: a look-up whose answer is a weighted average.

One contract for every caller. A mask says True where a query may attend, and broadcasts to
(B, H, T, M). Query i of T stands at key i + M − T, so that the last query meets the last key (the
bottom-right diagonal, which a cache of earlier keys needs): with `is_causal` it sees no key behind
that place, with `window` only keys less than that far from it; both need T ≤ M. A query that may
attend to nothing gets zeros. What is masked is multiplied by 0: NaN or ∞ there spoils its row.
`scale` None: 1/√K. Wrong dtypes raise TypeError, all else ValueError.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.ops import dispatch

Queries = Float[Tensor, "B H T K"]
Keys = Float[Tensor, "B H M K"]
Mask = Bool[Tensor, "..."]

# The kernel's widest head: beyond it PyTorch's own fused kernels win.
_WIDEST = 128
# How far a query sees without a band: more than any length, and sums with it stay below 2³¹.
_EVERYTHING = 2**30


def attention(
    q: Queries,
    k: Keys,
    v: Keys,
    *,
    mask: Mask | None = None,
    is_causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> Queries:
    """o_i = Σ_j a_ij v_j,   a_ij = exp(scale · q_i·k_j) / Σ_l exp(scale · q_i·k_l).

    Both sums run over the keys that query i may attend to. "triton" never visits keys outside a
    causal or windowed band. Under autocast all implementations but "reference" compute in its dtype
    and return it, as PyTorch's fused kernels do.

    Source: Vaswani et al. 2017, equation 1, for each head; d_k there is K here.
    Derived: 11_attention eq-attention
    """
    _check(q, k, v, mask, is_causal, window, scale)
    if impl != "reference":
        q, k, v = dispatch.autocast(q, k, v)
    chosen = dispatch.choose("attention", impl, q, k, v, refusal=_refusal)
    # Fused kernels of older PyTorch crash on an empty axis.
    is_plain = chosen == "reference" or not (q.numel() and k.numel())
    run = _reference if is_plain else _triton if chosen == "triton" else _torch
    return run(q, k, v, mask, is_causal, window, scale)


def _reference(q, k, v, mask, is_causal, window, scale) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = attention_weights(
        q.to(wide), k.to(wide), mask=mask, is_causal=is_causal, window=window, scale=scale
    )
    return (weights @ v.to(wide)).to(q.dtype)


def attention_weights(
    q: Queries,
    k: Keys,
    *,
    mask: Mask | None = None,
    is_causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T M"]:
    """a_ij = exp(scale · q_i·k_j) / Σ_l exp(scale · q_i·k_l), the weights of `attention`.

    The sum runs over the allowed keys l. Each row sums to one, or to zero where nothing is allowed.

    Source: Vaswani et al. 2017, the softmax of equation 1.
    Derived: 11_attention eq-scaled
    """
    _check(q, k, k, mask, is_causal, window, scale)
    scale, dtype = 1 / math.sqrt(q.shape[3]) if scale is None else scale, q.dtype
    # Half precision is computed in float32 and rounded once, as the fused kernels do.
    q, k = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k))
    scores = scale * q @ k.transpose(2, 3)  #                              B H T M
    allowed = _allowed(q, k, mask, is_causal, window)
    if allowed is None:
        return scores.softmax(3).to(dtype)
    # A finite floor instead of −∞: a row without allowed keys makes no NaN on the way, not even one
    # that the zeros below would hide from all but autograd's anomaly detection.
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(3)
    return weights.masked_fill(~allowed, 0).to(dtype)


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
    from aigc_lib.kernels.attention import register

    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    left = _EVERYTHING if window is None else window - 1
    right = 0 if is_causal else left
    return register.forward(q, k, v, mask, scale, left, right)[0]


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


def _refusal(q, *_) -> str | None:
    if q.shape[3] <= _WIDEST:
        return None
    return (
        f"it holds heads of width {_WIDEST} at most, got {q.shape[3]}; beyond that the fused "
        "kernels that torch calls win"
    )


def _check(q, k, v, mask, is_causal, window, scale) -> None:
    # Asked in few words, for a step of decoding comes here dozens of times.
    shape, keys = q.shape, k.shape
    fits = len(shape) == 4 == len(keys) and shape[:2] == keys[:2] and shape[3] == keys[3] > 0
    fits = fits and v.shape == keys
    expect.that(fits, "q (B, H, T, K) and k, v (B, H, M, K), K >= 1", (shape, keys, v.shape))
    expect.floating(q=q)
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        expect.of_dtype((q.dtype,), k=k, v=v)
        expect.together(q=q, k=k, v=v)
    if mask is not None:
        expect.of_dtype((torch.bool,), mask=mask)
        expect.that(mask.device == q.device, "mask on q's device", mask.device)
        axes = zip(mask.shape[::-1], (keys[2], *shape[2::-1]), strict=False)
        fits = mask.ndim <= 4 and all(have in (1, want) for have, want in axes)
        expect.that(fits, "mask to broadcast to (B, H, T, M)", mask.shape)
    expect.count(window=window)
    fits = shape[2] <= keys[2] or not (is_causal or window)
    expect.that(fits, "T <= M in q and k with is_causal or window", (shape, keys))
    expect.finite(scale=scale)
