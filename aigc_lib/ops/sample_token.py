"""Drawing the next token: logits become a distribution, and one number in [0, 1) becomes a token.

Temperature sharpens or flattens the distribution, top-k and top-p cut off its tail, and the
cumulative mass of what is left, in the order of the vocabulary, is compared with the number. From
the same numbers every implementation draws the same tokens, and none waits for the device: a step
of decoding can be captured in a CUDA graph. On Apple's MPS, without float64, a boundary between
tokens moves by up to 2⁻²² of the mass, in "reference" by the rounding of its sums in float32. Wrong
dtypes raise TypeError, all else ValueError.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import widest_float
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
    """The first token v with Σ_{j ≤ v} w_j > u · Σ_j w_j,   w_v = exp(z_v / τ) if kept, else 0.

    Kept are the `top_k` largest logits z and, of them, the fewest that hold the share `top_p` of
    their mass, up to ε of z's dtype; ties with the last one kept, too, so that a permuted
    vocabulary has the same distribution. −∞ forbids a token. A row without a finite logit, or with
    NaN or +∞, gives some token. Temperature τ = 0 takes the first largest logit, without chance. u
    in [0, 1) is drawn by `generator`, or is `uniform`, in float32, for float64 logits in float64
    (`uniform` in either); 1 is the number below. `impl` differs by rounding alone. No gradient.

    Source: Holtzman et al. 2020, section 3.1 (top-p), 3.2 (top-k) and 3.3 (temperature); top-k goes
        back to Fan, Lewis and Dauphin 2018, section 5.
    Derived: 13_gpt eq-truncation
    """
    _check(logits, temperature, top_k, top_p, generator, uniform)
    chosen = dispatch.choose("sample_token", impl, logits)
    logits = logits.detach() if logits.requires_grad else logits
    num_rows, vocabulary = logits.shape
    top_k = None if top_k is None or top_k >= vocabulary else top_k
    rounding = torch.finfo(logits.dtype).eps
    top_p = None if top_p is None or top_p == 1 else max(top_p - rounding, 0.0)
    temperature = float(temperature)
    if temperature == 0:
        top_k = top_p = uniform = None
    else:
        temperature = min(max(temperature, COLDEST), HOTTEST)
        if uniform is None:
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            uniform = torch.rand(num_rows, generator=generator, device=logits.device, dtype=dtype)
    if chosen == "triton" and num_rows:
        return _triton(logits, uniform, temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(1)
    draw = _torch if chosen == "torch" else _reference
    return draw(logits, uniform, temperature, top_k, top_p)


def _reference(logits, uniform, temperature, top_k, top_p) -> Tensor:
    z = logits.to(widest_float(logits.device))
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
    below_one = 1 - torch.finfo(uniform.dtype).eps / 2
    u = uniform.clamp(max=below_one).to(z.dtype)[:, None]
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
    target = (uniform.to(widest_float(uniform.device)) * total).long().minimum(total - 1)
    token = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return token.clamp(max=z.shape[1] - 1)


def _triton(logits, uniform, temperature, top_k, top_p) -> Tensor:
    from aigc_lib.kernels.sample_token import register

    return register.sample_token(logits, uniform, temperature, top_k, top_p)


def _check(logits, temperature, top_k, top_p, generator, uniform) -> None:
    shape, dtype = logits.shape, logits.dtype
    expect.that(len(shape) == 2 and shape[1] > 0, "logits (B, V) with V >= 1", shape)
    expect.floating(logits=logits)
    expect.that(0 <= temperature < math.inf, "a finite temperature >= 0", temperature)
    expect.count(top_k=top_k)
    expect.that(top_p is None or 0 < top_p <= 1, "top_p in (0, 1]", top_p)
    if uniform is not None:
        expect.that(generator is None, "uniform or a generator", "both")
        expect.that(uniform.shape == shape[:1], "uniform, one number per row", uniform.shape)
        expect.that(uniform.device == logits.device, "uniform on logits' device", uniform.device)
        wide = dtype if dtype == torch.float64 else torch.float32
        expect.of_dtype((torch.float32, wide), uniform=uniform)
