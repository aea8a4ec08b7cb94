"""Drawing the next token: logits become a distribution, and one number in [0, 1) becomes a token.

Temperature sharpens or flattens the distribution, top-k and top-p cut off its tail. What is left is
drawn from by inversion: the cumulative mass, in the order of the vocabulary, is compared with one
uniform number per row. Whoever supplies that number gets the same token from every implementation,
and nothing here waits for the device, so that a decoding step can be captured in a CUDA graph.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib.ops import dispatch

# Beyond these temperatures a float32 can't divide by them. Nothing is lost: at the lower one even
# neighbouring logits are infinitely far apart, at the upper one all logits are equal.
COLDEST, HOTTEST = 1e-37, 1e37


def sample_token(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    uniform: Float[Tensor, " B"] | None = None,
    impl: str | None = None,
) -> Int[Tensor, " B"]:
    """Draw one token per row, from what temperature, top-k and top-p leave of the distribution.

    w_v = exp(z_v / τ) for the kept tokens v, 0 for all others;
    the token is the first v with Σ_{j ≤ v} w_j > u · Σ_j w_j,   u uniform in [0, 1).

    Kept are the `top_k` largest logits and, among them, the smallest set of most probable tokens
    that holds the share `top_p` of their mass. Tokens with the logit of the last one kept are kept
    too. So the vocabulary may be permuted without changing the distribution; a sort that cuts
    exactly at k leaves it to chance which of those tokens stay. A logit of −∞ forbids a token: it
    is never drawn, whatever u is. A row without a finite logit, or with NaN or +∞, has no
    distribution: what comes back is then just some token of the vocabulary.

    The result has no gradient. Since u has 24 bits, probabilities are met to within 2⁻²⁴.

    Source: Holtzman et al. 2020, section 3.1 (top-p, the nucleus), 3.2 (top-k) and 3.3
        (temperature); top-k goes back to Fan, Lewis and Dauphin 2018, section 5.
    Derived: 13_gpt eq-truncation

    Args:
        logits: unnormalised log-probabilities z.
        temperature: τ ≥ 0; 0 takes the largest logit, the first of several, without randomness.
        top_k: how many tokens to keep, ≥ 1; None, or as many as there are, keeps all.
        top_p: share of the mass to keep, in (0, 1]; None or 1 keeps all.
        generator: on the logits' device, where u is drawn; None means torch's default one.
        uniform: u itself, in [0, 1), for a test or a CUDA graph; float32, or also float64 beside
            float64 logits. One that was rounded up to 1 counts as the number below 1.
        impl: "reference" spells the definition out with a sort in float64, "torch" takes PyTorch's
            own fast operations, "triton" one kernel that searches the thresholds by bisection;
            None chooses. They differ only where u or `top_p` meets a boundary within rounding.

    Returns:
        (B,) indices into the vocabulary, int64.

    Raises:
        ValueError: a shape, dtype, device or setting is out of range, or `uniform` and `generator`
            are both given.
    """
    _check(logits, temperature, top_k, top_p)
    _check_randomness(logits, generator, uniform)
    chosen = dispatch.choose("sample_token", impl, logits)
    logits = logits.detach()
    num_rows, vocabulary = logits.shape
    top_k = None if top_k is None or top_k >= vocabulary else top_k
    top_p = None if top_p is None or top_p == 1 else float(top_p)
    temperature = float(temperature)
    if temperature == 0:
        top_k = top_p = uniform = None
    else:
        temperature = min(max(temperature, COLDEST), HOTTEST)
        if uniform is None:
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            uniform = torch.rand(num_rows, generator=generator, device=logits.device, dtype=dtype)
    if chosen == "triton" and num_rows:
        return torch.ops.aigc.sample_token(logits, uniform, temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(1)
    draw = _torch if chosen == "torch" else _reference
    return draw(logits, uniform, temperature, top_k, top_p)


def _reference(logits, uniform, temperature, top_k, top_p) -> Tensor:
    z = logits.double()
    mass = ((z - z.amax(1, keepdim=True)) / temperature).exp()  #          B V
    in_order, places = z.sort(1, descending=True)
    if top_k is not None:
        mass = mass.masked_fill(z < in_order[:, top_k - 1 : top_k], 0)
    if top_p is not None:
        held = mass.gather(1, places).cumsum(1)
        # The token that reaches the share is the last one kept.
        num_before = (held < top_p * held[:, -1:]).sum(1, keepdim=True)
        mass = mass.masked_fill(z < in_order.gather(1, num_before), 0)
    # A parallel sum may rise by a rounding error where no mass is added: only kept tokens count.
    cumulative = mass.cumsum(1) * (mass > 0)
    total = cumulative.amax(1, keepdim=True)
    u = uniform.clamp(max=_below_one(uniform.dtype)).double()[:, None]
    return (cumulative > u * total).int().argmax(1)


def _torch(logits, uniform, temperature, top_k, top_p) -> Tensor:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = z.amax(1, keepdim=True)
    mass = ((z - largest) / temperature).exp()  #                          B V
    if top_k is not None or top_p is not None:
        # A sort is by far the most expensive step: after top-k, only k values need one.
        first = z.sort(1, descending=True)[0] if top_k is None else z.topk(top_k, 1)[0]
        smallest = first[:, -1:]
        if top_k is not None:
            mass = mass.masked_fill(z < smallest, 0)
        if top_p is not None:
            held = ((first - largest) / temperature).exp().cumsum(1)
            num_before = (held < top_p * mass.sum(1, keepdim=True)).sum(1, keepdim=True)
            # If all of `first` is too little, the rest of the mass lies in ties of its last one.
            smallest = first.gather(1, num_before.clamp(max=first.shape[1] - 1))
            mass = mass.masked_fill(z < smallest, 0)
    # Sums of whole numbers don't depend on their order. In floating point, a parallel sum may rise
    # by a rounding error at a token without mass, and that token could be drawn. 2⁴⁰ is the unit
    # because a mass is at most 1, and millions of them must fit into 63 bits.
    cumulative = (mass * 2.0**40).long().cumsum(1)
    total = cumulative[:, -1]
    target = torch.minimum((uniform.double() * total).long(), total - 1)
    token = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return token.clamp(max=z.shape[1] - 1)


@torch.library.custom_op("aigc::sample_token", mutates_args=())
def _triton(
    logits: Tensor,
    uniform: Tensor | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    from aigc_lib.kernels.sample_token import kernels

    return kernels.sample_token(logits, uniform, temperature, top_k, top_p)


@_triton.register_fake
def _(logits, uniform, temperature, top_k, top_p) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _below_one(dtype) -> float:
    return 1 - torch.finfo(dtype).eps / 2


def _check(logits, temperature, top_k, top_p) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            "expected floating-point logits of shape (batch, vocabulary), got "
            f"{logits.dtype}, {tuple(logits.shape)}"
        )
    if logits.shape[1] < 1:
        raise ValueError("expected a vocabulary of at least one token, got none")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"expected a finite temperature >= 0, got {temperature}")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"expected a whole top_k >= 1 or None, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"expected top_p in (0, 1] or None, got {top_p}")


def _check_randomness(logits, generator, uniform) -> None:
    if uniform is None:
        return
    if generator is not None:
        raise ValueError("expected uniform or a generator, got both")
    if uniform.shape != logits.shape[:1]:
        raise ValueError(
            f"expected one uniform number per row, shape {tuple(logits.shape[:1])}, got "
            f"{tuple(uniform.shape)}"
        )
    wide = logits.dtype == torch.float64
    if uniform.dtype != torch.float32 and not (wide and uniform.dtype == torch.float64):
        expected = "torch.float32 or torch.float64" if wide else "torch.float32"
        raise ValueError(f"expected uniform numbers of {expected}, got {uniform.dtype}")
    if uniform.device != logits.device:
        raise ValueError(f"expected uniform numbers on {logits.device}, got {uniform.device}")
