"""Normalisations with learned scales: what keeps a deep residual stream at one size.

Each works along the C channels of a token, whatever the leading axes; `eps` keeps a constant token
(for RMSNorm one of zeros) finite.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.ops.norm import layer_norm, rms_norm


class LayerNorm(nn.Module):
    """y = (x − μ) / √(σ² + eps) · weight + bias: mean 0 and variance 1, then a scale and a shift.

    Source: Ba, Kiros, Hinton 2016, equations 3 and 4.
    Derived: 12_transformer eq-layernorm
    """

    def __init__(self, width: int, *, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        expect.at_least(1, width=width)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Each token for itself, in x's dtype."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + eps) · weight: mean square 1, then a scale.

    Source: Zhang, Sennrich 2019, equation 4.
    Derived: 12_transformer eq-rms-jacobian
    """

    def __init__(self, width: int, *, eps: float = 1e-6):
        super().__init__()
        expect.at_least(1, width=width)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Each token for itself, in x's dtype."""
        return rms_norm(x, self.weight, eps=self.eps)
