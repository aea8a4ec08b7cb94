"""Sampling by diffusion: from noise to data, a state at a time.

A sampler asks predict(x, condition) at N times, then steps to the data (signal 1, sigma 0; t = −1,
in continuous schedules 0). Each of its N + 1 states has the x₀ predicted from its x; the last one's
x is the sample. No gradient is kept. Bad input raises at the call, ValueError or TypeError.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.schedules import PARAMETERISATIONS, Discrete, Schedule

Predict = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, ...]


class State(NamedTuple):
    """x at time t, and the x₀ predicted from it; of the last, x itself."""

    t: float
    x: Tensor
    x0: Tensor


class Options(TypedDict, total=False):
    """What every sampler takes."""

    num_steps: int | None  # N, evenly over the schedule; None: all steps of a discrete one
    times: Sequence[float] | None  # instead: where predict is asked, falling, the data left out
    parameterisation: str  # what predict gives, one of schedules', "eps" by default
    generator: torch.Generator | None
    clip: tuple[float | Tensor, float | Tensor] | None  # for the predicted x₀; ε follows from it
    start: Tensor | None  # the first x; None: noise as wide as data of variance 1 would be there


States = Iterator[State]
More = Unpack[Options]


def ancestral(
    predict: Predict, schedule: Schedule, shape: Shape, *, variance: str = "beta", **options: More
) -> States:
    """x_{t−1} = mean of q(x_{t−1}|x_t, x̂₀) + √(β_t or β̃_t) z, the last step without noise.

    From t to any s < t: β = sigma_t² − (signal_t/signal_s)² sigma_s², and β̃ = β sigma_s²/sigma_t².

    Source: Ho et al. 2020, algorithm 2 and section 3.2.
    Derived: 40_ddpm eq-bayes
    """
    expect.one_of(("beta", "beta_tilde"), variance=variance)

    def step(run, x, x0, eps, here, there):
        ratio, beta, beta_tilde = _variances(here, there)
        mean = (ratio * there.sigma**2 * x + beta * there.signal * x0) / here.sigma**2
        return mean + run.noise(beta if variance == "beta" else beta_tilde, there)

    return _Run(predict, schedule, shape, **options).states(step)


def ddim(
    predict: Predict, schedule: Schedule, shape: Shape, *, eta: float = 0.0, **options: More
) -> States:
    """x_s = signal_s x̂₀ + √(sigma_s² − η² β̃) ε̂ + η √β̃ z,   β̃ as in `ancestral`, 0 ≤ η ≤ 1.

    η = 0 draws nothing: Euler's steps of dx̄/dσ̄ = ε̂, x̄ = x/signal, σ̄ = sigma/signal, and on the
    straight path of the flow itself, x_s = x − (t − s) û. η = 1 is `ancestral` with β̃.

    Source: Song et al. 2021 (DDIM), equations 12 and 16.
    Derived: 40_ddpm eq-ddim
    """
    expect.between(0, 1, eta=eta)

    def step(run, x, x0, eps, here, there):
        variance = eta**2 * _variances(here, there)[2]
        rest = math.sqrt(there.sigma**2 - variance)
        return there.signal * x0 + rest * eps + run.noise(variance, there)

    return _Run(predict, schedule, shape, **options).states(step)


def exponential(predict: Predict, schedule: Schedule, shape: Shape, **options: More) -> States:
    """x_s = sigma_s/sigma_t x + signal_s (1 − e^{−h}) [x̂₀ + (x̂₀ − x̂₀ before)/(2r)], r = h before/h.

    h = λ_s − λ_t is the step in λ = log(signal/sigma). DPM-Solver++ 2M: order 2 from one question a
    step; the first and the last step, to the data, have no difference. Few `times` are best even in
    λ: after a step much shorter than the next, the difference reaches too far.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.
    Derived: 41_score_and_sde eq-two-steps
    """
    before = []

    def step(run, x, x0, eps, here, there):
        ratio, blend = there.sigma / here.sigma, x0
        if before and there.sigma > 0:
            earlier, guess = before.pop()
            r = (here.log_ratio - earlier.log_ratio) / (there.log_ratio - here.log_ratio)
            blend = x0 + (x0 - guess) / (2 * r)
        before[:] = [(here, x0)]
        return ratio * x + (there.signal - here.signal * ratio) * blend

    return _Run(predict, schedule, shape, **options).states(step)


def euler_maruyama(predict: Predict, schedule: Schedule, shape: Shape, **options: More) -> States:
    """x_s = x − (f x − g² score) h + g √h z,   h = t − s: the reverse SDE, the last step without z.

    Source: Song et al. 2021 (score SDE), equation 6.
    Derived: 41_score_and_sde eq-reverse
    """

    def step(run, x, x0, eps, here, there):
        h = here.t - there.t
        drift = here.d_signal / here.signal * x + here.g**2 * eps / here.sigma
        return x - h * drift + run.noise(h * here.g**2, there)

    run = _Run(predict, schedule, shape, **options)
    expect.that(run.levels[0].g < math.inf, "times where g is finite", run.levels[0].t)
    return run.states(step)


def heun(
    predict: Predict, schedule: Schedule, shape: Shape, *, order: int = 2, **options: More
) -> States:
    """x_s = x − ½ h (k_t + k_s),   k = f x − ½ g² score, k_s at Euler's x − h k_t,   h = t − s.

    The ODE with the SDE's marginals and velocity k. Order 1 and the last step are Euler's method.

    Source: Song et al. 2021 (score SDE), equation 13; Karras et al. 2022, algorithm 1.
    Derived: 41_score_and_sde eq-reverse
    """
    expect.one_of((1, 2), order=order)

    def step(run, x, x0, eps, here, there):
        h, k = here.t - there.t, here.velocity(x0, eps)
        euler = x - h * k
        if order == 1 or there.sigma == 0:
            return euler
        return x - 0.5 * h * (k + there.velocity(*run.ask(euler, there)))

    return _Run(predict, schedule, shape, **options).states(step)


def ode_likelihood(
    predict: Predict,
    schedule: Schedule,
    x: Float[Tensor, "B *D"],
    *,
    num_steps: int = 50,
    first: float = 1e-3,
    divergence: str = "exact",
    parameterisation: str = "eps",
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """log p(x) = log N(x(1); 0, signal² + sigma²) + ∫ div k dt,   dx/dt = k as in `heun`.

    By Runge and Kutta's method of order 4, from t = first to 1, evenly in √t: the density at first,
    of data with that little noise. div is exact, a gradient for each number of x, or Hutchinson's
    zᵀ(∂k/∂x)z with signs z = ±1 from the generator. predict must not mix a batch's rows.

    Source: Song et al. 2021 (score SDE), appendix D.2; z: Grathwohl et al. 2019, section 3.1.
    Derived: 41_score_and_sde eq-flow-likelihood
    """
    expect.one_of(("exact", "hutchinson"), divergence=divergence)
    expect.count(num_steps=num_steps)
    expect.that(not isinstance(schedule, Discrete), "a schedule with continuous t", schedule)
    expect.floating(x=x)
    expect.that(0 < first < 1, "first in (0, 1)", first)
    roots = torch.linspace(1, math.sqrt(first), 2 * num_steps + 1, dtype=torch.float64)
    settings = {"parameterisation": parameterisation, "generator": generator, "start": x}
    run = _Run(predict, schedule, x.shape, times=(roots**2).tolist(), **settings)
    zs = torch.eye(x[0].numel()).to(x).reshape(-1, 1, *x.shape[1:])
    if divergence == "hutchinson":
        zs = 2 * torch.randint(2, (1, *x.shape), generator=generator, device=run.device).to(x) - 1

    @torch.enable_grad
    def slope(y, here):
        """k and its divergence, side by side, by the root of t: dt = 2 √t d√t."""
        x_t = y[:, :-1].reshape(x.shape).detach().requires_grad_()
        k = here.velocity(*run.ask(x_t, here))
        pulls = (torch.autograd.grad(k, x_t, z.expand_as(k), retain_graph=True)[0] for z in zs)
        div = sum((z * pull).flatten(1).sum(1) for z, pull in zip(zs, pulls, strict=True))
        return 2 * math.sqrt(here.t) * torch.cat([k.detach().flatten(1), div[:, None]], 1)

    y, h, rising = F.pad(x.flatten(1), (0, 1)), 2 * float(roots[0] - roots[1]), run.levels[-2::-1]
    for here, middle, there in zip(rising[:-2:2], rising[1::2], rising[2::2], strict=True):
        k_1 = slope(y, here)
        k_2 = slope(y + 0.5 * h * k_1, middle)
        k_3 = slope(y + 0.5 * h * k_2, middle)
        y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + slope(y + h * k_3, there))
    variance = there.signal**2 + there.sigma**2
    log_prior = -0.5 * (y[:, :-1].square() / variance + math.log(2 * math.pi * variance))
    return log_prior.sum(1) + y[:, -1]


class _Level(NamedTuple):
    t: float
    signal: float
    sigma: float
    g: float = 0.0
    d_signal: float = 0.0
    d_sigma: float = 0.0

    @property
    def log_ratio(self):
        return math.log(self.signal / self.sigma) if self.signal else -math.inf

    def velocity(self, x0, eps):
        return self.d_signal * x0 + self.d_sigma * eps


@dataclass
class _Run:
    """One call: predict, the levels from noise to data, and the first x."""

    predict: Predict
    schedule: Schedule
    shape: Shape
    num_steps: int | None = None
    times: Sequence[float] | None = None
    parameterisation: str = "eps"
    generator: torch.Generator | None = None
    clip: tuple[float | Tensor, float | Tensor] | None = None
    start: Tensor | None = None

    def __post_init__(self):
        low, high = self.clip or (0.0, 1.0)
        expect.that(not torch.as_tensor(low >= high).all(), "clip, low < high", self.clip)
        self.levels = _levels(self.schedule, self.num_steps, self.times)
        known = PARAMETERISATIONS if self.levels[0].signal else ("x0", "v", "velocity")
        expect.one_of(known, parameterisation=self.parameterisation)
        self.device = getattr(self.generator, "device", getattr(self.start, "device", "cpu"))
        if self.start is None:
            std = math.hypot(self.levels[0].signal, self.levels[0].sigma)
            self.start = std * torch.randn(self.shape, generator=self.generator, device=self.device)
        expect.floating(start=self.start)
        expect.shaped(tuple(self.shape), start=self.start)

    def states(self, step):
        x = self.start
        for here, there in pairwise(self.levels):
            with torch.no_grad():
                x0, eps = self.ask(x, here)
                before, x = x, step(self, x, x0, eps, here, there)
            yield State(here.t, before, x0)
        yield State(there.t, x, x)

    def ask(self, x, here):
        """The x₀ and ε predicted from x."""
        kind = torch.int64 if isinstance(self.schedule, Discrete) else loss_dtype(x)
        t = torch.full((len(x),), here.t, dtype=kind, device=x.device)
        output, source = self.predict(x, self.schedule.condition(t, x.dtype)), self.parameterisation
        convert = partial(self.schedule.convert, x_t=x, t=t)
        if self.clip is not None:
            output, source = convert(output, source=source, target="x0").clamp(*self.clip), "x0"
        return tuple(convert(output, source=source, target=target) for target in ("x0", "eps"))

    def noise(self, variance, there):
        if variance == 0 or there.sigma == 0:
            return 0.0
        x = self.start
        z = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=self.device)
        return math.sqrt(variance) * z.to(x.device)


def _variances(here, there):
    """signal_t/signal_s and, of x_t given x_s and of x_s given x_t and x₀, the variances β, β̃."""
    ratio = here.signal / there.signal
    beta = here.sigma**2 - (ratio * there.sigma) ** 2
    return ratio, beta, beta * (there.sigma / here.sigma) ** 2


def _levels(schedule, num_steps, times):
    is_discrete = isinstance(schedule, Discrete)
    expect.count(num_steps=num_steps)
    expect.that(times is None or num_steps is None, "num_steps or times", "both")
    if times is None:
        most = schedule.num_steps if is_discrete else num_steps
        count = most if num_steps is None else num_steps
        expect.that(count is not None and count <= most, f"num_steps <= {most}", num_steps)
        first, gaps, kind = (most - 1, count - 1 or 1, round) if is_discrete else (1, count, float)
        times = [kind(first * (1 - k / gaps)) for k in range(count)]
    end = -1 if is_discrete else 0.0
    falls = len(times) > 0 and all(a > b for a, b in pairwise([*times, end]))
    expect.that(falls, f"falling times above {end}", list(times))
    t = torch.tensor(times, dtype=None if is_discrete else torch.float64)
    parts = schedule.signal(t), schedule.sigma(t), schedule.diffusion(t), *schedule.rates(t)
    rows = zip(times, *(part.tolist() for part in parts), strict=True)
    return [*(_Level(*row) for row in rows), _Level(end, 1.0, 0.0)]
