"""Normalisations with learned scales: what keeps a deep residual stream at one size."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib.ops.norm import layer_norm, rms_norm


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 along the channels of each token, then a scale and a shift.

    y = (x − μ) / √(σ² + eps) · weight + bias,  μ and σ² over the C channels of a token.

    Source: Ba, Kiros, Hinton 2016, equations 3 and 4.
    Derived: 12_transformer eq-layernorm

    Args:
        width: C, of the last axis.
        bias: learn a shift too.
        eps: keeps a constant token finite.

    Raises:
        ValueError: the width is below 1.
    """

    def __init__(self, width: int, *, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        _check(width)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Normalise each token for itself.

        Args:
            x: tokens of C channels, with any leading axes.

        Returns:
            As many tokens, of x's dtype.
        """
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(nn.Module):
    """Mean square 1 along the channels of each token, then a scale.

    y = x / √(mean(x²) + eps) · weight,  the mean over the C channels of a token.

    Source: Zhang, Sennrich 2019, equation 4.
    Derived: 12_transformer eq-rms-jacobian

    Args:
        width: C, of the last axis.
        eps: keeps a token of zeros finite.

    Raises:
        ValueError: the width is below 1.
    """

    def __init__(self, width: int, *, eps: float = 1e-6):
        super().__init__()
        _check(width)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Normalise each token for itself.

        Args:
            x: tokens of C channels, with any leading axes.

        Returns:
            As many tokens, of x's dtype.
        """
        return rms_norm(x, self.weight, eps=self.eps)


def _check(width) -> None:
    if width < 1:
        raise ValueError(f"expected a width >= 1, got {width}")
