"""A residual perceptron of points that is told how noisy they are."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.positions import sinusoidal

Points = Float[Tensor, "B D"]


class PointNet(nn.Module):
    """h_0 = W x,   h_l = h_{l−1} + V_l SiLU(U_l h_{l−1} + E_l p(condition)),   out = W_out SiLU(h).

    p is sinusoidal; `scale` is that of a UNet. The output starts at 0.

    Source: He et al. 2016 (identity mappings), figure 1, with perceptrons for convolutions.
    Derived: —
    """

    def __init__(self, dims: int, width: int = 128, depth: int = 3, scale: float = 30.0):
        super().__init__()
        expect.count(dims=dims, width=width, depth=depth)
        expect.that(width % 2 == 0, "an even width", width)
        expect.above(0, scale=scale)
        self.dims, self.width, self.scale = dims, width, scale
        self.first, self.last = nn.Linear(dims, width), nn.Linear(width, dims)
        self.tell = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Points, condition: Float[Tensor, " B"]) -> Points:
        """The output for points of one noise level each."""
        expect.shaped(("B", self.dims), x=x)
        expect.shaped((len(x),), condition=condition)
        p = sinusoidal(self.scale * condition, self.width).to(x.dtype)  #  B C
        h = self.first(x)  #                                               B C
        for tell, inner, outer in zip(self.tell, self.inner, self.outer, strict=True):
            h = h + outer(F.silu(inner(h) + tell(p)))
        return self.last(F.silu(h))  #                                     B D
