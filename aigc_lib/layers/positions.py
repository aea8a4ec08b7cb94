"""Positions: a code for "where" that turns a shift into a rotation, added or multiplied in."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn


def sinusoidal(
    positions: Num[Tensor, " T"], width: int, *, base: float = 10_000
) -> Float[Tensor, "T C"]:
    """Write each position as the hands of C/2 clocks that run at different speeds.

    p_{t,2i} = sin(ω_i t),   p_{t,2i+1} = cos(ω_i t),   ω_i = base^{−2i/C} radians per position.

    Source: Vaswani et al. 2017, section 3.5; pos there is t here, d_model is C.
    Derived: 11_attention eq-sinusoid

    Args:
        positions: t, whole or fractional, negative ones too.
        width: C, even.
        base: the slowest hand has wavelength just under 2π·base.

    Returns:
        (T, C) in the positions' dtype if that is a floating one, else in torch's default one.

    Raises:
        ValueError: the positions are not a vector, the width is odd or below 2, or base ≤ 0.
    """
    if positions.ndim != 1:
        raise ValueError(f"expected positions of shape (T,), got {tuple(positions.shape)}")
    if not positions.is_floating_point():
        positions = positions.to(torch.get_default_dtype())
    angles = positions[:, None] * _speeds(width, base).to(positions)  #    T C/2
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)  #      T C


def shift_matrix(offset: float, width: int, *, base: float = 10_000) -> Float[Tensor, "C C"]:
    """The rotation that moves every sinusoidal position by the same offset: p_{t+δ} = R_δ p_t.

    R_δ is block diagonal; block i is [[cos ω_i δ, sin ω_i δ], [−sin ω_i δ, cos ω_i δ]].

    Source: Vaswani et al. 2017, section 3.5, which claims a linear map without writing it down.
    Derived: 11_attention eq-shift

    Args:
        offset: δ, in positions; negative looks back.
        width: C, even, as in `sinusoidal`.
        base: as in `sinusoidal`.

    Returns:
        (C, C), orthogonal, float64 for the caller to round.

    Raises:
        ValueError: the width is odd or below 2, or base ≤ 0.
    """
    angles = offset * _speeds(width, base)
    sin, cos = angles.sin(), angles.cos()
    blocks = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    return torch.block_diag(*blocks)


def rotary_table(
    positions: Num[Tensor, " T"], width: int, *, base: float = 10_000
) -> Float[Tensor, "T half 2"]:
    """The angles by which rotary positions turn queries and keys, as cosines and sines.

    table_{t,i} = (cos θ_i t, sin θ_i t),   θ_i = base^{−2i/K} radians per position, 0 ≤ i < K/2.

    Source: Su et al. 2021, equation 15; m, i − 1 and d there are t, i and K here.
    Derived: 13_gpt eq-rotary

    Args:
        positions: t, whole or fractional, negative ones too.
        width: K, of a head; even.
        base: the slowest pair has wavelength just under 2π·base.

    Returns:
        (T, K/2, 2) in the positions' dtype if that is a floating one, else in torch's default one.

    Raises:
        ValueError: the positions are not a vector, the width is odd or below 2, or base ≤ 0.
    """
    code = sinusoidal(positions, width, base=base)  #                      T K
    return code.unflatten(1, (width // 2, 2)).flip(2)  #                   T K/2 2


def rotate(
    x: Float[Tensor, "... T K"], rotary: Float[Tensor, "T half 2"]
) -> Float[Tensor, "... T K"]:
    """Turn queries or keys by the angles of their positions, a pair of neighbours at a time.

    (y_{2i}, y_{2i+1}) = (x_{2i} cos − x_{2i+1} sin, x_{2i} sin + x_{2i+1} cos),

    cos and sin of θ_i t. So ⟨R_m q, R_n k⟩ = ⟨q, R_{n−m} k⟩: the score sees the distance alone.
    Pairs are interleaved as in the paper; some published weights pair i with i + K/2 instead.

    Source: Su et al. 2021, equation 34 (equation 15 without its zeros).
    Derived: 13_gpt eq-rotary

    Args:
        x: queries or keys, with any leading axes.
        rotary: rows of `rotary_table`, one for each of the T positions.

    Returns:
        As x, each pair's length kept; computed in the wider of both dtypes, rounded once.

    Raises:
        ValueError: the rotary do not fit x.
    """
    if x.ndim < 2 or rotary.shape != (x.shape[-2], x.shape[-1] // 2, 2) or x.shape[-1] % 2:
        raise ValueError(
            "expected rotary of shape (tokens, head width / 2, 2) for x (..., tokens, head width), "
            f"got {tuple(rotary.shape)} for {tuple(x.shape)}"
        )
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


class _Table(nn.Module):
    """Rows for the first positions, computed once; they are not saved with the weights."""

    def __init__(self, width, length, base):
        super().__init__()
        self.width, self.length, self.base = width, length, base
        table = self._exact().to(torch.get_default_device(), torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Int[Tensor, " T"]) -> Float[Tensor, "T ..."]:
        """Look up the rows of some positions.

        Args:
            positions: from 0 to length − 1.

        Returns:
            One row for each.
        """
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
    """The codes of `sinusoidal` for the first positions, to be added to embeddings.

    Source: Vaswani et al. 2017, section 3.5.
    Derived: 11_attention eq-sinusoid

    Args:
        width: C, even.
        length: positions 0 … length − 1 are held.
        base: as in `sinusoidal`.

    Raises:
        ValueError: the width is odd or below 2, or base ≤ 0.
    """

    _rows = staticmethod(sinusoidal)

    def __init__(self, width: int, length: int, *, base: float = 10_000):
        super().__init__(width, length, base)


class Rotary(_Table):
    """The rotary of `rotary_table` for the first positions, for `rotate`.

    Source: Su et al. 2021, equation 15.
    Derived: 13_gpt eq-rotary

    Args:
        width: K, of a head; even.
        length: positions 0 … length − 1 are held.
        base: as in `rotary_table`.

    Raises:
        ValueError: the width is odd or below 2, or base ≤ 0.
    """

    _rows = staticmethod(rotary_table)

    def __init__(self, width: int, length: int, *, base: float = 10_000):
        super().__init__(width, length, base)


def _speeds(width: int, base: float) -> Tensor:
    if width < 2 or width % 2:
        raise ValueError(f"expected an even width >= 2, got {width}")
    if base <= 0:
        raise ValueError(f"expected base > 0, got {base}")
    halves = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
    return float(base) ** (-halves / width)
