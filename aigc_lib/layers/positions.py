"""Sinusoidal positions: a code for "where" that turns a shift into a rotation."""

import torch
from jaxtyping import Float, Num
from torch import Tensor


def sinusoidal(
    positions: Num[Tensor, " T"], width: int, *, base: float | int = 10_000
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


def shift_matrix(
    offset: float | int, width: int, *, base: float | int = 10_000
) -> Float[Tensor, "C C"]:
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


def _speeds(width: int, base: float | int) -> Tensor:
    if width < 2 or width % 2:
        raise ValueError(f"expected an even width >= 2, got {width}")
    if base <= 0:
        raise ValueError(f"expected base > 0, got {base}")
    return float(base) ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
