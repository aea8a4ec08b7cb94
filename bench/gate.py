"""The gate before the clock: what computes the wrong thing, or nothing, is not timed."""

import functools
import time

import torch
from torch import Tensor

from bench.arms import Arm, Case, Function


def inspect(case: Case, device: torch.device) -> tuple[dict[str, str], dict[str, float]]:
    """Compare every arm with the formula in float64.

    The largest error of an output and of each gradient may be twice that of torch eager in the same
    dtype, and in any case one rounding of the largest value. Returns why an arm may not be timed,
    by name, and the seconds that each compiled arm took until its first results.
    """
    make = case.gate_inputs or case.inputs
    inputs = make(torch.Generator(device).manual_seed(0))
    refused, seconds = {}, {}

    @functools.cache
    def truth(reference):
        """What the formula yields in float64, and torch eager in the inputs' dtype."""
        # A yardstick with a function of its own has no eager twin: its formula is both.
        eager = observe(reference or case.eager, inputs, case.directions)
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        return observe(reference or case.reference, wide, case.directions), eager

    for arm in (*case.arms, *case.peers):
        start = time.perf_counter()
        try:
            if case.gate:
                reason = case.gate(arm.build(*inputs), inputs)
            else:
                got = observe(arm.build(*inputs), inputs, case.directions, arm)
                if arm.compiled:
                    seconds[arm.name] = time.perf_counter() - start
                reason = _compare(got, *truth(arm.reference))
        except Exception as error:  # whatever an arm raises, the others go on
            reason = failure(error)
        if reason:
            refused[arm.name] = reason
    return refused, seconds


def observe(
    call: Function, inputs: tuple[Tensor, ...], directions: tuple[str, ...], arm: Arm | None = None
) -> dict[str, Tensor]:
    """All that a function yields: its output without and with autograd, and the gradients.

    The directions that will be timed decide what is looked at; an arm's setting holds meanwhile.
    """
    around = arm.around if arm else torch.enable_grad
    found = {}
    if "forward" in directions:
        with torch.no_grad(), around():
            found["output"] = call(*[x.detach().clone() for x in inputs])
    if set(directions) & {"backward", "both"}:
        own = leaves(inputs)
        with around():
            out = call(*own)
            draw = torch.Generator(out.device).manual_seed(1)
            # The same weights in every dtype, up to rounding that all arms share.
            weights = torch.randn(out.shape, generator=draw, device=out.device).bfloat16()
            wanted = [x for x in own if x.requires_grad]
            grads = torch.autograd.grad(out, wanted, weights.to(out.dtype))
        found["output of the training step"] = out.detach()
        found |= {f"gradient {i}": grad for i, grad in enumerate(grads)}
    return found


def failure(error: Exception) -> str:
    """Why an arm that raised is not timed."""
    lines = str(error).strip().splitlines() or [""]
    return f"does not run: {type(error).__name__}: {lines[0][:160]}"


def leaves(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Copies of the inputs; the floating-point ones ask for gradients."""
    return [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]


def _compare(got: dict[str, Tensor], exact: dict[str, Tensor], eager: dict[str, Tensor]):
    """What is wrong with an arm's results, None if nothing."""
    for name, want in exact.items():
        if got[name].shape != want.shape or got[name].dtype != eager[name].dtype:
            have = f"{tuple(got[name].shape)}, {got[name].dtype}"
            return f"wrong {name}: {have} for {tuple(want.shape)}, {eager[name].dtype}"
        error = float((got[name].double() - want).abs().max())
        of_eager = float((eager[name].double() - want).abs().max())
        rounding = torch.finfo(eager[name].dtype).eps * float(want.abs().max())
        allowed = max(2 * of_eager, rounding)
        if not error <= allowed:  # NaN too
            return f"wrong {name}: error {error:.2g}, at most {allowed:.2g} allowed"
    return None
