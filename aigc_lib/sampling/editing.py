"""Editing: an image drawn anew, wholly or inside of a mask, from a level of noise that it sets.

Both functions give the states of a sampler of `sampling.diffusion`, which takes the options but for
start; images may as well be latents. Bad input raises at the call, ValueError or TypeError.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.sampling.diffusion import More, Predict, State, States
from aigc_lib.schedules import Discrete, Schedule

Sampler = Callable[..., States]
Images, Mask = Float[Tensor, "B C Y X"], Bool[Tensor, "_ _ Y X"]


def image_to_image(
    sampler: Sampler, predict: Predict, schedule: Schedule, x0: Images, **options: More
) -> States:
    """x_t = signal(t) x₀ + sigma(t) ε at the first of the times, then from there to the data.

    That t, or t/(S − 1), is what papers call strength. Few noise keeps all but details, more the
    layout, and the last level, which num_steps alone starts at, next to nothing.

    Source: Meng et al. 2022 (SDEdit), algorithm 1.
    Derived: 43_latent_diffusion eq-edit
    """
    expect.floating(x0=x0)
    is_discrete = isinstance(schedule, Discrete)
    first, *_ = options.get("times") or [schedule.num_steps - 1 if is_discrete else 1.0]
    kind = torch.int64 if is_discrete else loss_dtype(x0)
    t = torch.full((len(x0),), first, dtype=kind, device=x0.device)
    draw = options.get("generator")
    device = getattr(draw, "device", x0.device)
    eps = torch.randn(x0.shape, generator=draw, dtype=x0.dtype, device=device)
    start = schedule.noised(x0, t, eps.to(x0.device))
    return sampler(predict, schedule, tuple(x0.shape), start=start, **options)


def inpaint(
    sampler: Sampler, predict: Predict, schedule: Schedule, x0: Images, mask: Mask, **options: More
) -> States:
    """x̂₀ ← x̂₀ where the mask is True, else x₀: there x_t is x₀ with its share of noise.

    The last x is x₀ there bit for bit. The mask, (B or 1, C or 1, Y, X), has a pixel in each image.
    What is drawn anew sees the rest through noise alone, and fits it less well than a draw from
    p(inside|outside) would.

    Source: Song et al. 2021 (score SDE), appendix I.2; its price: Lugmayr et al. 2022, section 4.
    Derived: 43_latent_diffusion eq-inpaint
    """
    expect.of_dtype((torch.bool,), mask=mask)
    sizes = zip(mask.shape, x0.shape, ((1,), (1,), (), ()), strict=False)
    fits = mask.ndim == x0.ndim and all(m in (n, *more) for m, n, more in sizes)
    fits = fits and bool(mask.flatten(1).any(1).all())
    expect.that(fits, f"mask for x0 {tuple(x0.shape)}, with a pixel in each", mask)
    clip = options.pop("clip", None) or (-math.inf, math.inf)
    options |= {"clip": tuple(torch.where(mask, limit, x0) for limit in clip)}

    def keep(state: State) -> State:
        known = torch.where(mask, state.x0, x0)
        return State(state.t, known if state.x is state.x0 else state.x, known)

    return map(keep, image_to_image(sampler, predict, schedule, x0, **options))


def coarse(mask: Mask, places: tuple[int, int]) -> Bool[Tensor, "_ _ v u"]:
    """The mask of a latent of so many rows and columns: True at a place with any pixel of it."""
    return F.adaptive_max_pool2d(mask.float(), places).bool()
