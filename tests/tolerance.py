"""How far two computations may differ."""

import torch


def gradients(function, inputs, seed=1):
    """The output and the gradient of a random weighted sum of it in every input."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def assert_same(ours, theirs, inputs, tol=1e-12):
    """Outputs and gradients agree, in float64."""
    for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) < tol


def assert_as_exact_as_torch(ours, theirs, inputs, dtype, factor=2):
    """In low precision our error against float64 is at most `factor` times torch's own."""
    low = [x.to(dtype) for x in inputs]
    exact = gradients(theirs, [x.double() for x in low])
    for want, a, b in zip(exact, gradients(ours, low), gradients(theirs, low), strict=True):
        assert a.dtype == dtype
        error, allowed = ((x.double() - want).abs().max() for x in (a, b))
        assert float(error) <= factor * float(allowed)
