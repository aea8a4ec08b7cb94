"""Drawing the next token: our top-k and top-p against sorting, then torch.multinomial."""

import torch
from torch import Tensor

from aigc_lib.ops.sample_token import sample_token
from bench.arms import Case, Function, Goal, compiled, ours, plain

DRAWS = 8192  # for the gate: tokens drawn from one distribution


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """Top-k, top-p and both, over GPT-2's vocabulary."""
    rows, words = (64, 1003) if quick else (64, 50304)
    settings = [(50, None), (None, 0.95), (50, 0.95)]
    return [_case(device, rows, words, *setting, compiled) for setting in settings]


def _case(device, rows, words, top_k, top_p, with_compile) -> Case:
    def inputs(draw, rows=rows, words=words):
        # float32: in bfloat16 many logits tie with the last one kept, and peers cut ties by chance.
        return (3 * torch.randn(rows, words, generator=draw, device=draw.device),)

    def op(logits, impl=None):
        return sample_token(logits, top_k=top_k, top_p=top_p, impl=impl)

    def builtin(logits):
        return by_sorting(logits, top_k, top_p)

    name = "topk" if top_k else "sort"
    peers = [plain(name, builtin)]
    if with_compile:
        peers += [compiled(builtin)]
    settings = [f"top_k {top_k}"] * bool(top_k) + [f"top_p {top_p}"] * bool(top_p)
    goal = Goal("triton", "forward", name, {"ratio": 1.5}, {"milliseconds": 0.015})
    return Case(
        op="sample_token",
        name=f"B {rows}, V {words}, {', '.join(settings)}, float32",
        inputs=inputs,
        reference=op,
        eager=builtin,
        arms=ours(op, device),
        peers=tuple(peers),
        directions=("forward",),
        goals=(goal,) if device.type == "cuda" else (),
        # Many rows for few calls, and on the CPU few words for fast ones.
        gate_inputs=lambda draw: inputs(draw, 256, words if draw.device.type == "cuda" else 1003),
        gate=lambda call, inputs: wrong_draws(call, inputs[0], top_k, top_p),
        num_bytes={"forward": 4 * rows * words},
    )


def by_sorting(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Sample as is usual: sort, or take the k largest, cut, renormalise, draw."""
    best, tokens = logits.float().topk(top_k) if top_k else logits.float().sort(descending=True)
    probabilities = best.softmax(-1)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    place = torch.multinomial(probabilities, 1)
    return tokens.gather(-1, place).squeeze(-1)


def wrong_draws(
    call: Function, logits: Tensor, top_k: int | None, top_p: float | None
) -> str | None:
    """What is wrong with a sampler's draws from the first row, beside float64; None if nothing.

    A token that was cut away, or a frequency more than five standard errors off.
    """
    rows = logits.shape[0]
    same = logits[:1].expand(rows, -1).contiguous()
    drawn = torch.cat([call(same) for _ in range(-(-DRAWS // rows))])
    exact = logits[0].double().softmax(-1)
    best, tokens = exact.sort(descending=True)
    keep = torch.ones_like(best, dtype=torch.bool)
    if top_k:
        # A tie with the last one kept may fall either way.
        keep &= best >= best[top_k - 1]
    if top_p is not None:
        within = torch.where(keep, best, 0) / best[keep].sum()
        # So may what reaches the bound only by rounding.
        keep &= within.cumsum(-1) - within < top_p + 1e-4
    allowed = torch.zeros_like(keep).scatter(0, tokens, keep)
    if not bool(allowed[drawn].all()):
        return f"wrong output: {int((~allowed[drawn]).sum())} of {drawn.numel()} draws were cut"
    exact = exact * allowed / exact[allowed].sum()
    frequency = drawn.bincount(minlength=exact.numel()) / drawn.numel()
    error = (exact * (1 - exact) / drawn.numel()).sqrt() + 1 / drawn.numel()
    worst = float(((frequency - exact).abs() / error).max())
    return f"wrong output: a frequency is {worst:.1f} standard errors off" if worst > 5 else None
