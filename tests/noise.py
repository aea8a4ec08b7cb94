"""Seeded noise: inputs, and weights that no model starts with."""

import torch


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@torch.no_grad()
def filled(model, *, std=0.3):
    """The model in float64, every parameter normal noise of that spread."""
    draw = torch.Generator().manual_seed(1)
    for parameter in model.double().parameters():
        parameter.copy_(std * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model
