"""Noise schedules: how much data and how much noise there is at each time of a diffusion.

    x_t = signal(t) x₀ + sigma(t) ε,   ε ~ N(0, I),   dx = f(t) x dt + g(t) dw

t is (B,): whole, 0 … S − 1, in a `Discrete` schedule, the data lying before t = 0; else a float in
[0, 1], the data at 0. Answers are (B,), at least float32, float64 for whole t but on MPS; those of
the data's shape have its dtype. TypeError for other dtypes, ValueError for shapes and values.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype

PARAMETERISATIONS = ("eps", "x0", "v", "score", "velocity")
Time = Int[Tensor, " B"] | Float[Tensor, " B"]
Level = Float[Tensor, " B"]
Data = Float[Tensor, "B *D"]


class Schedule:
    """What all have in common; each gives (signal, sigma, f, g) by `_levels`."""

    def signal(self, t: Time) -> Level:
        """What x₀ is multiplied by."""
        return self._levels(t)[0]

    def sigma(self, t: Time) -> Level:
        """The noise's deviation."""
        return self._levels(t)[1]

    def drift_scale(self, t: Time) -> Level:
        """f(t)."""
        return self._levels(t)[2]

    def diffusion(self, t: Time) -> Level:
        """g(t)."""
        return self._levels(t)[3]

    def rates(self, t: Time) -> tuple[Level, Level]:
        """d signal/dt = f signal,   d sigma/dt = f sigma + g²/(2 sigma): per step if `Discrete`."""
        signal, sigma, f, g = self._levels(t)
        return f * signal, f * sigma + 0.5 * g.square() / sigma

    def alpha_bar(self, t: Time) -> Level:
        """signal²."""
        return self.signal(t).square()

    def snr(self, t: Time) -> Level:
        """signal²/sigma²."""
        return (self.signal(t) / self.sigma(t)).square()

    def condition(self, t: Time, dtype: torch.dtype | None = None) -> Level:
        """¼ log snr, clipped to −5 … 5: what networks are told; None is torch's default dtype."""
        return (self.snr(t).log() / 4).clamp(-5, 5).to(dtype or torch.get_default_dtype())

    def noised(self, x0: Data, t: Time, eps: Data) -> Data:
        """x_t = signal(t) x₀ + sigma(t) ε."""
        signal, sigma = self._over(t, x0=x0, eps=eps)
        return (signal * x0 + sigma * eps).to(x0.dtype)

    def convert(self, output: Data, x_t: Data, t: Time, *, source: str, target: str) -> Data:
        """From one to another of ε, x₀, the score −ε/sigma, v = signal ε − sigma x₀, and velocity.

        The velocity dx_t/dt = (d signal/dt) x₀ + (d sigma/dt) ε is that of the ODE with these
        marginals; v is as though signal and sigma turned: its rates are −sigma and signal.

        Source: Salimans and Ho 2022, section 4, for v; Lipman et al. 2023, theorem 3, for velocity.
        Derived: 40_ddpm eq-targets
        """
        expect.one_of(PARAMETERISATIONS, source=source)
        expect.one_of(PARAMETERISATIONS, target=target)
        a, s = self._over(t, x_t=x_t, output=output)
        if source == target:
            return output.to(x_t.dtype)

        def rates(kind):
            return (-s, a) if kind == "v" else (spread(rate, x_t) for rate in self.rates(t))

        if source == "x0":
            x0, eps = output, (x_t - a * output) / s
        elif source in ("v", "velocity"):
            da, ds = rates(source)
            x0, eps = ds * x_t - s * output, a * output - da * x_t
            x0, eps = x0 / (a * ds - s * da), eps / (a * ds - s * da)
        else:
            eps = output if source == "eps" else -s * output
            x0 = (x_t - s * eps) / a
        if target in ("v", "velocity"):
            da, ds = rates(target)
            return (da * x0 + ds * eps).to(x_t.dtype)
        return {"eps": eps, "x0": x0, "score": -eps / s}[target].to(x_t.dtype)

    def _over(self, t, **data):
        """The signal and the deviation at t, to be multiplied with the data."""
        expect.floating(**data)
        expect.alike(**data)
        return (spread(level, *data.values()) for level in self._levels(t)[:2])


def spread(level: Tensor, x: Data, *_: Data) -> Tensor:
    """One number per example, (B, 1, …), against the axes of x, at least float32."""
    expect.that(len(level) == len(x), f"t of {len(x)} examples", len(level))
    return level.to(loss_dtype(x)).reshape(-1, *[1] * (x.ndim - 1))


class Discrete(Schedule):
    """x_t = √(1 − β_t) x_{t−1} + √β_t ε,   alpha_bar_t = Π_{u ≤ t} (1 − β_u),   t = 0 … S − 1.

    beta, alpha_bars and posterior_variances β̃_t = β_t (1 − ᾱ_{t−1})/(1 − ᾱ_t), with β̃_0 = 0, are
    float64 on the CPU. A step of length 1 by f = √(1 − β_t) − 1 and g = √β_t is exact.

    Source: Ho et al. 2020, equations 2, 4 and 7; their t = 1 … T is t = 0 … S − 1 here.
    Derived: 40_ddpm eq-marginal
    """

    def __init__(self, beta: Float[Tensor, " S"]):
        expect.floating(beta=beta)
        expect.shaped((None,), beta=beta)
        self.beta, self.num_steps = beta.detach().double().cpu(), len(beta)
        fits = bool(((self.beta > 0) & (self.beta < 1)).all()) and len(beta) > 0
        expect.that(fits, "a beta in (0, 1) for each step", self.beta)
        self.alpha_bars = (1 - self.beta).cumprod(0)
        alpha, rest = 1 - self.beta, 1 - self.alpha_bars
        before = torch.cat([alpha.new_ones(1), self.alpha_bars[:-1]])
        self.posterior_variances = self.beta * (1 - before) / rest
        of_x0, of_x_t = before.sqrt() * self.beta / rest, alpha.sqrt() * (1 - before) / rest
        levels = self.alpha_bars.sqrt(), rest.sqrt(), alpha.sqrt() - 1, self.beta.sqrt()
        self._tables = torch.stack([*levels, of_x0, of_x_t, self.posterior_variances])
        self._on_device: dict[torch.device, Tensor] = {}

    def posterior(self, x0: Data, x_t: Data, t: Time) -> tuple[Data, Level]:
        """q(x_{t−1}|x_t, x₀): mean (√ᾱ_{t−1} β_t x₀ + √α_t (1 − ᾱ_{t−1}) x_t)/(1 − ᾱ_t), β̃_t.

        Source: Ho et al. 2020, equations 6 and 7.
        Derived: 40_ddpm eq-bayes
        """
        expect.floating(x0=x0, x_t=x_t)
        expect.alike(x0=x0, x_t=x_t)
        of_x0, of_x_t, variance = self._at(t)[4:]
        return (spread(of_x0, x0) * x0 + spread(of_x_t, x0) * x_t).to(x0.dtype), variance

    def _levels(self, t):
        return self._at(t)[:4]

    def _at(self, t):
        expect.whole(t=t)
        expect.shaped((None,), t=t)
        expect.values_in(0, self.num_steps - 1, t=t)
        if t.device not in self._on_device:  # once, for a copy waits for all that a GPU has to do
            wide = torch.float32 if t.device.type == "mps" else torch.float64
            self._on_device[t.device] = self._tables.to(wide).to(t.device)
        return self._on_device[t.device][:, t]


def linear(num_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Discrete:
    """β_t evenly from first to last, times 1000/S, so that fewer steps, S > 20, end in noise too.

    Source: Ho et al. 2020, section 4, for S = 1000.
    Derived: —
    """
    expect.count(num_steps=num_steps)
    return Discrete(torch.linspace(first, last, num_steps, dtype=torch.float64) * 1000 / num_steps)


def cosine(num_steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Discrete:
    """ᾱ_t = h(t + 1)/h(0),   h(u) = cos²(π/2 · (u/S + offset)/(1 + offset)),   β_t ≤ largest.

    Source: Nichol and Dhariwal 2021, equation 17.
    Derived: —
    """
    expect.count(num_steps=num_steps)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    h = torch.cos(math.pi / 2 * (u + offset) / (1 + offset)).square()
    return Discrete((1 - h[1:] / h[:-1]).clamp(max=largest))


class VP(Schedule):
    """dx = −½ β x dt + √β dw,   β(t) = β_min + t (β_max − β_min):   signal² + sigma² = 1.

    Source: Song et al. 2021 (score SDE), equation 11 and appendix B.
    Derived: 41_score_and_sde eq-linear-sde
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        expect.above(0, beta_min=beta_min)
        expect.at_least(beta_min, beta_max=beta_max)
        self.beta_min, self.beta_max = beta_min, beta_max

    def _levels(self, t):
        t = _unit(t)
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        integral = 0.5 * t * (self.beta_min + beta)
        signal, sigma = torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))
        return signal, sigma, -0.5 * beta, beta.sqrt()


class SubVP(VP):
    """dx = −½ β x dt + √(β (1 − signal⁴)) dw with VP's β and signal:   sigma = 1 − signal².

    Source: Song et al. 2021 (score SDE), equation 12 and appendix B.
    Derived: 41_score_and_sde eq-linear-sde
    """

    def _levels(self, t):
        signal, sigma, f, g = super()._levels(t)
        return signal, sigma.square(), f, g * sigma * (1 + signal.square()).sqrt()


class VE(Schedule):
    """dx = √(dσ²/dt) dw,   sigma(t) = σ_min (σ_max/σ_min)ᵗ, hence σ_min at the data:   signal = 1.

    Source: Song et al. 2021 (score SDE), equation 9.
    Derived: 41_score_and_sde eq-linear-sde
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        expect.above(0, sigma_min=sigma_min)
        expect.above(sigma_min, sigma_max=sigma_max)
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)

    def _levels(self, t):
        t = _unit(t)
        sigma = self.sigma_min * torch.exp(self.log_ratio * t)
        return torch.ones_like(t), sigma, torch.zeros_like(t), sigma * (2 * self.log_ratio) ** 0.5


class Straight(Schedule):
    """x_t = (1 − t) x₀ + t ε, whose velocity is ε − x₀:   f = −1/(1 − t),   g² = 2t/(1 − t).

    At t = 1 nothing is left of x₀: no ε or score tells it, and f and g are infinite, the rates not.

    Source: Liu et al. 2023 (rectified flow), equation 1; Lipman et al. 2023, equation 20, turned.
    Derived: —
    """

    def rates(self, t: Time) -> tuple[Level, Level]:
        """−1 and 1."""
        one = torch.ones_like(_unit(t))
        return -one, one

    def _levels(self, t):
        t = _unit(t)
        return 1 - t, t, -1 / (1 - t), torch.sqrt(2 * t / (1 - t))


def _unit(t):
    expect.floating(t=t)
    expect.shaped((None,), t=t)
    expect.values_in(0, 1, t=t)
    return t.to(loss_dtype(t))
