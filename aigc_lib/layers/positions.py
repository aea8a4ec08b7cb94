"""Positions: a code for "where" that turns a shift into a rotation, added or multiplied in.

Positions t are whole or fractional, negative ones too; a code has their dtype if it is a floating
one, else torch's default one. Widths are even. The slowest pair has a wavelength just under 2π·base
positions. ValueError for other widths, and for base ≤ 0.
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from aigc_lib import expect

Positions = Num[Tensor, " T"]
RotaryRows = Float[Tensor, "T half 2"]
Heads = Float[Tensor, "... T K"]


def sinusoidal(positions: Positions, width: int, *, base: float = 10_000) -> Float[Tensor, "T C"]:
    """p_{t,2i} = sin(ω_i t),   p_{t,2i+1} = cos(ω_i t),   ω_i = base^{−2i/C} radians per position.

    Each position is written as the hands of C/2 clocks that run at different speeds.

    Source: Vaswani et al. 2017, section 3.5; pos there is t here, d_model is C.
    Derived: 11_attention eq-sinusoid
    """
    expect.shaped((None,), positions=positions)
    if not positions.is_floating_point():
        positions = positions.to(torch.get_default_dtype())
    angles = positions[:, None] * _speeds(width, base).to(positions)  #    T C/2
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)  #      T C


def shift_matrix(offset: float, width: int, *, base: float = 10_000) -> Float[Tensor, "C C"]:
    """p_{t+δ} = R_δ p_t: the rotation that moves every sinusoidal position by the same offset δ.

    R_δ is block diagonal; block i is [[cos ω_i δ, sin ω_i δ], [−sin ω_i δ, cos ω_i δ]]. It is
    float64, for the caller to round.

    Source: Vaswani et al. 2017, section 3.5, which claims a linear map without writing it down.
    Derived: 11_attention eq-shift
    """
    angles = offset * _speeds(width, base)
    sin, cos = angles.sin(), angles.cos()
    blocks = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    return torch.block_diag(*blocks)


def rotary_table(positions: Positions, width: int, *, base: float = 10_000) -> RotaryRows:
    """table_{t,i} = (cos θ_i t, sin θ_i t),   θ_i = base^{−2i/K} radians per position, 0 ≤ i < K/2.

    These are the angles by which rotary positions turn queries and keys; K is a head's width.

    Source: Su et al. 2021, equation 15; m, i − 1 and d there are t, i and K here.
    Derived: 13_gpt eq-rotary
    """
    code = sinusoidal(positions, width, base=base)  #                      T K
    return code.unflatten(1, (width // 2, 2)).flip(2)  #                   T K/2 2


def rotate(x: Heads, rotary: RotaryRows) -> Heads:
    """(y_{2i}, y_{2i+1}) = (x_{2i} cos − x_{2i+1} sin, x_{2i} sin + x_{2i+1} cos) of θ_i t.

    So ⟨R_m q, R_n k⟩ = ⟨q, R_{n−m} k⟩: the score sees the distance alone. Pairs are interleaved as
    in the paper; some published weights pair i with i + K/2 instead. `rotary` has the row of
    `rotary_table` for each token. Computed in the wider of both dtypes, rounded once to x's.

    Source: Su et al. 2021, equation 34 (equation 15 without its zeros).
    Derived: 13_gpt eq-rotary
    """
    fits = rotary.shape == (*x.shape[-2:-1], x.shape[-1] // 2, 2) and x.shape[-1] % 2 == 0
    expect.that(fits, "rotary of shape (T, K / 2, 2) for x (…, T, K)", rotary.shape)
    pairs = x.unflatten(-1, (-1, 2))  #                                    ... T K/2 2
    if not torch.compiler.is_compiling() and rotary.dtype == x.dtype and _is_complex_view(pairs):
        # One pass over memory: a pair is a complex number, and a turn multiplies it by e^{iθt}.
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(rotary.contiguous())
        return torch.view_as_real(turned).flatten(-2)  #                   ... T K
    (even, odd), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)  #        ... T K/2
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.flatten(-2).to(x.dtype)


def _is_complex_view(pairs) -> bool:
    if pairs.dtype not in (torch.float32, torch.float64) or pairs.stride(-1) != 1:
        return False
    return not any(n % 2 for n in (pairs.storage_offset(), *pairs.stride()[:-1]))


def _speeds(width: int, base: float) -> Tensor:
    expect.that(width >= 2 and width % 2 == 0, "an even width >= 2", width)
    expect.above(0, base=base)
    halves = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
    return float(base) ** (-halves / width)


class _Table(nn.Module):
    """Rows for positions 0 … length − 1, computed once; they are not saved with the weights."""

    def __init__(self, width: int, length: int, *, base: float = 10_000):
        super().__init__()
        self.width, self.length, self.base = width, length, base
        table = self._exact().to(torch.get_default_device(), torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Int[Tensor, " T"]) -> Float[Tensor, "T ..."]:
        """The rows of some positions."""
        return self.table.index_select(0, positions)

    def _exact(self) -> Tensor:
        positions = torch.arange(self.length, dtype=torch.float64, device="cpu")
        return self._rows(positions, self.width, base=self.base)

    def _apply(self, fn, recurse=True):
        # A change of dtype or device starts from the exact table, not from a rounded one, nor from
        # one that lost its numbers on the meta device.
        super()._apply(fn, recurse)
        self.table = self._exact().to(self.table)
        return self


class Sinusoidal(_Table):
    """The codes of `sinusoidal` for positions 0 … length − 1, to be added to embeddings.

    Source: Vaswani et al. 2017, section 3.5.
    Derived: 11_attention eq-sinusoid
    """

    _rows = staticmethod(sinusoidal)


class Rotary(_Table):
    """The rows of `rotary_table` for positions 0 … length − 1, for `rotate`.

    Source: Su et al. 2021, equation 15.
    Derived: 13_gpt eq-rotary
    """

    _rows = staticmethod(rotary_table)
