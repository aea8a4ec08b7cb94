"""Drawing the next token in one launch.

`_sample`: grid (B,). One program draws one row's token. It walks over its row of V logits in blocks
    several times; the row, at most a few hundred kB, stays in the L2 cache after the first time.
    Passes: 1 for the largest logit; for top-k and for top-p up to 32 each, mostly about half as
    many, and top-p one more for the mass that its share is a share of; 1 for the kept mass; then
    up to the drawn token. Reads V elements per pass and one uniform number, writes one int64.
    Masks: lanes beyond the end of the row read −∞, which is the smallest of logits and has no mass.
`_greedy`: grid (B,). One program finds the first largest logit of one row in one pass. Reads V
    elements, writes one int64. Masks: as above.

The threshold search. Float32 numbers keep their order if their bits are read as whole numbers, with
the negative ones turned round (`_ordered`). So bisection on those is exact: no tolerance, and at
most 32 steps. Each step measures what lies at or above the middle and then moves one end of the
bracket to the nearest logit that is really there; it is over when both ends are the same logit.

What rounding can't do. Adding is monotone, and every measure adds in the same order: what lies
above a lower threshold is never measured as less. The token is looked for where the running sum of
the blocks, added up as its total was, first exceeds u · total, and only tokens with mass count.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from aigc_lib.kernels import launch

# (is the row short, capability ≥ 9) → logits per block, warps
CONFIGS = {
    (True, False): (1024, 4),
    (True, True): (1024, 4),
    (False, False): (4096, 8),
    (False, True): (4096, 8),
}
SHORT = 4096
# The largest float32 below 1, for numbers that were rounded up to 1.
BELOW_ONE = tl.constexpr(1 - 2.0**-24)
SMALLEST_INT = tl.constexpr(-(2**31))
LARGEST_INT = tl.constexpr(2**31 - 1)


@triton.jit
def _ordered(x):
    # Whole numbers in the order of the float32 x; both zeros become the same one.
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _load(row, start, vocabulary, BLOCK: tl.constexpr):
    token = start + tl.arange(0, BLOCK)
    z = tl.load(row + token, mask=token < vocabulary, other=float("-inf"))
    return z.to(tl.float32)


@triton.jit
def _mass(z, smallest, largest, scale):
    # exp((z − largest) / temperature), 0 below the threshold; the largest logit has mass 1.
    return tl.where(_ordered(z) >= smallest, tl.exp2((z - largest) * scale), 0.0)


@triton.jit
def _measure(row, middle, vocabulary, largest, scale, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    # How much lies at or above `middle`, and the nearest logits on either side of it.
    amount = tl.zeros([BLOCK], tl.float32)
    above = tl.full([BLOCK], LARGEST_INT, tl.int32)
    below = tl.full([BLOCK], SMALLEST_INT, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        z = _load(row, start, vocabulary, BLOCK)
        order = _ordered(z)
        is_above = order >= middle
        if BY_MASS:
            amount += tl.where(is_above, tl.exp2((z - largest) * scale), 0.0)
        else:
            amount += is_above.to(tl.float32)
        above = tl.minimum(above, tl.where(is_above, order, LARGEST_INT))
        below = tl.maximum(below, tl.where(is_above, SMALLEST_INT, order))
    return tl.sum(amount), tl.min(above), tl.max(below)


@triton.jit
def _search(
    row, low, high, wanted, vocabulary, largest, scale, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    # The largest threshold in [low, high] with at least `wanted` at or above it.
    while low < high:
        # Rounded up, so that low < middle; their sum does not fit into 32 bits.
        middle = ((low.to(tl.int64) + high + 1) >> 1).to(tl.int32)
        amount, above, below = _measure(row, middle, vocabulary, largest, scale, BY_MASS, BLOCK)
        enough = amount >= wanted
        low = tl.where(enough, above, low)
        # Lanes beyond the row read −∞, which `low` is never below.
        high = tl.where(enough, high, tl.maximum(below, low))
    return low


@triton.jit(do_not_specialize=["top_k"])
def _sample(
    logits, uniform, out, row_stride, vocabulary, scale, top_k, top_p,
    HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.cast(tl.program_id(0), tl.int64)
    row = logits + program * row_stride
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        largest = tl.maximum(largest, _load(row, start, vocabulary, BLOCK))
    largest = tl.max(largest)

    smallest = _ordered(tl.full([], float("-inf"), tl.float32))
    highest = _ordered(largest)
    if HAS_TOP_K:
        # Counted in float32, which is exact up to 2²⁴ tokens.
        wanted = tl.cast(top_k, tl.float32)
        smallest = _search(row, smallest, highest, wanted, vocabulary, largest, scale, False, BLOCK)
    if HAS_TOP_P:
        total, _, _ = _measure(row, smallest, vocabulary, largest, scale, True, BLOCK)
        smallest = _search(
            row, smallest, highest, top_p * total, vocabulary, largest, scale, True, BLOCK
        )

    total = 0.0
    last = tl.full([BLOCK], -1, tl.int32)
    for start in range(0, vocabulary, BLOCK):
        mass = _mass(_load(row, start, vocabulary, BLOCK), smallest, largest, scale)
        total += tl.sum(mass)
        last = tl.maximum(last, tl.where(mass > 0, start + tl.arange(0, BLOCK), -1))
    last = tl.max(last)

    # u · total < total holds in float32 too, so that some block takes the sum beyond it.
    target = tl.minimum(tl.load(uniform + program), BELOW_ONE) * total
    start = 0
    before = 0.0
    mass = _mass(_load(row, start, vocabulary, BLOCK), smallest, largest, scale)
    after = before + tl.sum(mass)
    while (after <= target) & (start + BLOCK < vocabulary):
        start += BLOCK
        before = after
        mass = _mass(_load(row, start, vocabulary, BLOCK), smallest, largest, scale)
        after = before + tl.sum(mass)
    token = start + tl.arange(0, BLOCK)
    # tl.cumsum may add in another order than tl.sum and stay a rounding error short of the target:
    # then the last kept token of the block it is.
    here = tl.max(tl.where(mass > 0, token, -1))
    last = tl.where(here >= 0, here, last)
    exceeds = (before + tl.cumsum(mass, 0) > target) & (mass > 0)
    drawn = tl.min(tl.where(exceeds, token, last))
    # A row without a distribution has no kept token.
    tl.store(out + program, tl.maximum(drawn, 0).to(tl.int64))


@triton.jit
def _greedy(logits, out, row_stride, vocabulary, BLOCK: tl.constexpr):
    program = tl.cast(tl.program_id(0), tl.int64)
    row = logits + program * row_stride
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    # Every lane keeps the first of its largest logits; a row of −∞ has the first token.
    where = tl.arange(0, BLOCK)
    for start in range(0, vocabulary, BLOCK):
        z = _load(row, start, vocabulary, BLOCK)
        where = tl.where(z > largest, start + tl.arange(0, BLOCK), where)
        largest = tl.maximum(largest, z)
    first = tl.min(tl.where(largest == tl.max(largest), where, LARGEST_INT))
    # Lanes beyond the row may come first where a row holds nothing but NaN.
    tl.store(out + program, tl.minimum(first, vocabulary - 1).to(tl.int64))


def sample_token(
    logits: Tensor, uniform: Tensor | None, temperature: float,
    top_k: int | None, top_p: float | None,
) -> Tensor:  # fmt: skip
    """One token of each row of logits (B, V), by `_sample`, or by `_greedy` at temperature 0.

    The reciprocal of any other temperature is a float32, top_k is in [1, V], top_p in (0, 1).
    """
    # Any stride between the rows will do.
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    num_rows, vocabulary = logits.shape
    block, num_warps = CONFIGS[vocabulary <= SHORT, launch.capability(logits)[0] >= 9]
    options = {"BLOCK": block, "num_warps": num_warps, "num_stages": 2, "enable_fp_fusion": True}
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    with torch.cuda.device_of(logits):
        if temperature == 0:
            _greedy[(num_rows,)](logits, out, logits.stride(0), vocabulary, **options)
            return out
        _sample[(num_rows,)](
            logits, uniform.contiguous(), out, logits.stride(0), vocabulary,
            1 / (math.log(2) * temperature), top_k or 0, top_p or 0.0,
            HAS_TOP_K=top_k is not None, HAS_TOP_P=top_p is not None, **options,
        )  # fmt: skip
    return out
