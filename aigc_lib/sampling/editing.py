"""Editing: an image drawn anew, wholly or inside of a mask, from a level of noise that it sets.

Both functions give the states of a sampler of `sampling.diffusion`; images may as well be latents.
A mask is True where it is drawn anew: (B or 1, C or 1, Y, X), a pixel or more in each image. Bad
input raises at the call, ValueError or TypeError.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.sampling.diffusion import Limits, More, Predict, State, States
from aigc_lib.schedules import Discrete, Schedule

Sampler = Callable[..., States]
Images, Mask = Float[Tensor, "B C Y X"], Bool[Tensor, "_ _ Y X"]


def image_to_image(
    sampler: Sampler, predict: Predict, schedule: Schedule, x0: Images, t: float, **options: More
) -> States:
    """x_t = signal(t) x₀ + sigma(t) ε, then down to the data in num_steps steps, evenly in t.

    t, the papers' strength, is 1 or S − 1 for a new image; less keeps the layout, then the details.

    Source: Meng et al. 2022 (SDEdit), algorithm 1.
    Derived: 43_latent_diffusion eq-edit
    """
    is_discrete, num_steps = isinstance(schedule, Discrete), options.pop("num_steps", None)
    fits = t in range(schedule.num_steps) if is_discrete else 0 < t <= 1
    expect.that(fits, "t of the schedule, above the data", t)
    expect.that(num_steps is not None, "num_steps", num_steps)
    expect.count(num_steps=num_steps)
    expect.floating(x0=x0)
    last = max(1, num_steps - 1) if is_discrete else num_steps
    times = [t * (1 - k / last) for k in range(num_steps)]
    times = [round(time) for time in times] if is_discrete else times
    kind = torch.int64 if is_discrete else loss_dtype(x0)
    first = torch.full((len(x0),), t, dtype=kind, device=x0.device)
    eps = torch.randn(
        x0.shape, generator=options.get("generator"), dtype=x0.dtype, device=x0.device
    )
    options |= {"times": times, "start": schedule.noised(x0, first, eps)}
    return sampler(predict, schedule, tuple(x0.shape), **options)


def inpaint(
    sampler: Sampler,
    predict: Predict,
    schedule: Schedule,
    x0: Images,
    mask: Mask,
    t: float = 1.0,
    clip: Limits = (-math.inf, math.inf),
    **options: More,
) -> States:
    """x̂₀ ← x̂₀ inside of the mask, x₀ outside, so that x_t outside is x₀ with its share of noise.

    The last x is, outside, x₀ bit for bit. Inside, each step sees the outside through noise alone,
    so that it fits less well than a draw from p(inside|outside) would. The rest is as above.

    Source: Song et al. 2021 (score SDE), appendix I.2; its price: Lugmayr et al. 2022, section 4.
    Derived: 43_latent_diffusion eq-inpaint
    """
    expect.of_dtype((torch.bool,), mask=mask)
    batch, channels, *places = x0.shape
    fits = mask.ndim == 4 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, channels)
    fits = fits and [*mask.shape[2:]] == places and bool(mask.flatten(1).any(1).all())
    expect.that(fits, f"mask (B or 1, C or 1, Y, X) for x0 {tuple(x0.shape)}, with a pixel", mask)
    limits = tuple(torch.where(mask, limit, x0) for limit in clip)
    states = image_to_image(sampler, predict, schedule, x0, t, clip=limits, **options)
    return (_outside(state, mask, x0) for state in states)


def coarse(mask: Mask, places: tuple[int, int]) -> Bool[Tensor, "_ _ v u"]:
    """The mask of a latent of so many rows and columns: True at a place with any pixel of it."""
    return F.adaptive_max_pool2d(mask.float(), places).bool()


def _outside(state: State, mask: Tensor, known: Tensor) -> State:
    x0 = torch.where(mask, state.x0, known)
    return State(state.t, x0 if state.x is state.x0 else state.x, x0)
