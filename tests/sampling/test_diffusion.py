import math
from itertools import pairwise

import pytest
import torch
import torch.distributions as D
from torch import nn

from aigc_lib.sampling.diffusion import (
    State,
    ancestral,
    ddim,
    euler_maruyama,
    exponential,
    heun,
    ode_likelihood,
)
from aigc_lib.schedules import PARAMETERISATIONS, VE, VP, Discrete, Straight, SubVP, cosine, linear
from tests.noise import normal

SAMPLERS = [ancestral, ddim, exponential, euler_maruyama, heun]
each = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda f: f.__name__)
FEW = linear(30)


class Mixture:
    """Data of equal Gaussians of one spread: all that can be asked of them is known."""

    def __init__(self, means, spread):
        self.means, self.spread = torch.tensor(means, dtype=torch.float64), spread

    def at(self, signal, sigma):
        """The density of x_t; signal and sigma are numbers, or one for each row of x."""
        a, s = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (signal, sigma))
        deviation = torch.sqrt(a**2 * self.spread**2 + s**2).expand(-1, *self.means.shape)
        parts = D.Independent(D.Normal(a * self.means, deviation), 1)
        return D.MixtureSameFamily(D.Categorical(torch.ones(parts.batch_shape)), parts)

    def score(self, x, signal, sigma):
        a, s = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (signal, sigma))
        variance = a**2 * self.spread**2 + s**2
        away = a * self.means - x[:, None]
        weights = (-0.5 * away.square().sum(2, keepdim=True) / variance).softmax(1)
        return (weights * away / variance).sum(1)

    def predict(self, schedule, target="eps"):
        """What the best network would give, which learns the time from the condition alone."""

        def predict(x, condition):
            snr = torch.exp(4 * condition)
            signal = torch.ones_like(snr) if isinstance(schedule, VE) else (snr / (1 + snr)).sqrt()
            if isinstance(schedule, Straight):
                signal = snr.sqrt() / (1 + snr.sqrt())
            sigma = signal / snr.sqrt()
            a, s = signal[:, None], sigma[:, None]
            score = self.score(x, signal, sigma)
            eps = -s * score
            x0 = (x - s * eps) / a
            if target == "velocity":
                da, ds = (r[:, None] for r in schedule.rates(time_of(schedule, condition)))
                return da * x0 + ds * eps
            return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": score}[target]

        return predict


GAUSSIAN = Mixture([[0.5, -0.3]], 0.4)
TWO = Mixture([[1.0, 0.5], [-0.6, -0.2]], 0.5)


def time_of(schedule, condition):
    """The time that networks are told of by this condition: looked up, or found by halving."""
    if isinstance(schedule, Discrete):
        told = schedule.condition(torch.arange(schedule.num_steps), torch.float64)
        return (told - condition[:, None]).abs().argmin(1)
    if isinstance(schedule, Straight):
        return torch.sigmoid(-2 * condition)
    low, high = torch.zeros_like(condition), torch.ones_like(condition)
    for _ in range(60):
        middle = (low + high) / 2
        later = schedule.condition(middle, torch.float64) > condition
        low, high = torch.where(later, middle, low), torch.where(later, high, middle)
    return high


def levels(schedule, times):
    """(signal, sigma) at the times and, last, at the data."""
    t = torch.tensor(times, dtype=None if isinstance(schedule, Discrete) else torch.float64)
    return [*zip(schedule.signal(t).tolist(), schedule.sigma(t).tolist(), strict=True), (1.0, 0.0)]


def one_at_a_time(monkeypatch, num_steps):
    """Draws for a batch of num_steps + 1: in draw k row k gets ones, the others nothing."""
    draws = iter(range(num_steps))

    def randn(shape, **settings):
        z = torch.zeros(shape, dtype=torch.float64)
        z[next(draws) + 1] = 1
        return z

    monkeypatch.setattr(torch, "randn", randn)


def moments(states, start_mean, start_variance, run_from):
    """The mean and variance of x in every state of an affine sampler.

    `states` come from the noise one at a time and a start of zeros; `run_from(1)` from ones.
    """
    answers = []
    for state, other in zip(states, run_from(1.0), strict=True):
        zero, one = state.x[0, 0], other.x[0, 0]
        slope, pushes = one - zero, state.x[1:, 0] - zero
        variance = slope**2 * start_variance + pushes.square().sum()
        answers.append((float(zero + slope * start_mean), float(variance)))
    return answers


def moments_of(monkeypatch, sampler, data, schedule, times, **settings):
    predict = data.predict(schedule, settings.get("parameterisation", "eps"))
    n = len(times)

    def run(start):
        with monkeypatch.context() as patch:
            one_at_a_time(patch, n)
            x = torch.full((n + 1, 2), start, dtype=torch.float64)
            x = x if start == 0 else x[:1].expand(n + 1, 2)
            return list(sampler(predict, schedule, (n + 1, 2), times=times, start=x, **settings))

    (a, s), *_ = levels(schedule, times)
    mean = float(a * data.means[0, 0])
    return moments(run(0.0), mean, a**2 * data.spread**2 + s**2, run)


# Closed forms and brute force: the discrete chain


@pytest.mark.parametrize("times", [list(range(29, -1, -1)), [29, 17, 4, 0]])
@pytest.mark.parametrize(
    ("sampler", "settings"), [(ancestral, {"variance": "beta_tilde"}), (ddim, {"eta": 1.0})]
)
def test_for_data_of_one_point_the_chain_has_the_true_marginals(
    monkeypatch, sampler, settings, times
):
    data = Mixture([[0.7, 0.7]], 0.0)
    got = moments_of(monkeypatch, sampler, data, FEW, times, **settings)
    for (mean, variance), (a, s) in zip(got, levels(FEW, times), strict=True):
        assert mean == pytest.approx(0.7 * a, abs=1e-10)
        assert variance == pytest.approx(s**2, abs=1e-10)


@pytest.mark.parametrize("times", [list(range(29, -1, -1)), [29, 17, 4, 0]])
def test_for_data_of_unit_variance_the_wide_chain_has_the_true_marginals(monkeypatch, times):
    got = moments_of(monkeypatch, ancestral, Mixture([[0.0, 0.0]], 1.0), FEW, times)
    for mean, variance in got[:-1]:
        assert mean == pytest.approx(0, abs=1e-12)
        assert variance == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("schedule", [FEW, VP(), VE(), Straight()])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_any_eta_keeps_the_marginals_of_one_point(monkeypatch, schedule, eta):
    times = [29, 17, 4, 0] if schedule is FEW else [1.0, 0.6, 0.2]
    data, kind = Mixture([[0.7, 0.7]], 0.0), "eps"
    if isinstance(schedule, Straight):
        times, kind = [0.99, 0.6, 0.2], "velocity"
    settings = {"eta": eta, "parameterisation": kind}
    got = moments_of(monkeypatch, ddim, data, schedule, times, **settings)
    for (mean, variance), (a, s) in zip(got, levels(schedule, times), strict=True):
        assert mean == pytest.approx(0.7 * a, abs=1e-8)
        assert variance == pytest.approx(s**2, rel=1e-8, abs=1e-8)


# Closed forms and brute force: orders

ODE = [
    (heun, {"order": 1}, 1),
    (ddim, {}, 1),
    (heun, {}, 2),
    (exponential, {}, 2),
]


def slope(errors):
    """The order by which errors fall when steps are halved, at the last halving."""
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize(("sampler", "settings", "order"), ODE)
@pytest.mark.parametrize(
    "schedule", [VP(), VE(0.05, 5.0), Straight()], ids=lambda s: type(s).__name__
)
def test_the_order_on_an_ode_with_a_known_solution(sampler, settings, order, schedule):
    start, errors = normal(6, 2), []
    kind = "velocity" if isinstance(schedule, Straight) else "eps"
    for num_steps in (20, 40, 80):
        times = torch.linspace(1, 0.2, num_steps + 1, dtype=torch.float64).tolist()
        run = sampler(
            GAUSSIAN.predict(schedule, kind), schedule, (6, 2), times=times, start=start,
            parameterisation=kind, **settings,
        )  # fmt: skip
        *_, state = (state for state in run if state.t >= 0.2)
        (a1, s1), (a0, s0) = levels(schedule, [1.0, 0.2])[:2]
        spread = GAUSSIAN.spread**2
        ratio = math.sqrt((a0**2 * spread + s0**2) / (a1**2 * spread + s1**2))
        want = a0 * GAUSSIAN.means + ratio * (start - a1 * GAUSSIAN.means)
        errors.append(float((state.x - want).abs().max()))
    assert slope(errors) == pytest.approx(order, abs=0.15)
    assert errors[-1] < 0.05


@pytest.mark.parametrize("schedule", [VP(), VE(0.05, 5.0)], ids=lambda s: type(s).__name__)
def test_euler_maruyama_is_of_weak_order_one(monkeypatch, schedule):
    errors = []
    for num_steps in (40, 80, 160):
        times = torch.linspace(1, 0.2, num_steps + 1, dtype=torch.float64).tolist()
        got = moments_of(monkeypatch, euler_maruyama, GAUSSIAN, schedule, times)
        a, s = levels(schedule, times)[-2]
        mean, variance = got[-2]
        off = abs(mean - a * 0.5), abs(variance - a**2 * GAUSSIAN.spread**2 - s**2)
        errors.append(off)
    if isinstance(schedule, VE):  # nothing moves the mean
        assert all(off[0] < 1e-12 for off in errors)
        errors = [off[1:] for off in errors]
    for means_or_variances in zip(*errors, strict=True):
        assert slope(means_or_variances) == pytest.approx(1, abs=0.15)
        assert means_or_variances[-1] < 0.05


def field(x, condition):
    """Some velocity: it need not belong to any data."""
    return torch.sin(3 * x) * (1 + 0.3 * condition[:, None])


@pytest.mark.parametrize(("sampler", "settings"), [(ddim, {}), (heun, {"order": 1})])
@pytest.mark.parametrize("times", [[1.0, 0.75, 0.5, 0.25], [1.0, 0.9, 0.3], [0.6, 0.05]])
def test_on_the_straight_path_it_is_eulers_method_of_the_flow(sampler, settings, times):
    x, straight = normal(5, 2), Straight()
    settings |= {"times": times, "parameterisation": "velocity", "start": x}
    states = list(sampler(field, straight, (5, 2), **settings))
    for here, (state, later) in zip(times, pairwise(states), strict=True):
        there = later.t
        told = straight.condition(torch.full((5,), here, dtype=torch.float64), torch.float64)
        u = field(x, told)
        assert torch.allclose(state.x0, x - here * u, atol=1e-12)
        x = x + (there - here) * u
        assert torch.allclose(later.x, x, atol=1e-12)


def test_heun_on_the_straight_path_worked_out():
    x, straight = normal(5, 2), Straight()

    def u(x, t):
        return field(x, straight.condition(torch.full((5,), t).double(), torch.float64))

    *_, got = heun(field, straight, (5, 2), times=[1.0, 0.4], parameterisation="velocity", start=x)
    x = x - 0.3 * (u(x, 1.0) + u(x - 0.6 * u(x, 1.0), 0.4))
    assert torch.allclose(got.x, x - 0.4 * u(x, 0.4), atol=1e-12)


def test_the_second_exponential_step_knows_no_step_that_began_without_signal():
    """Its λ was −∞, so that r = ∞: two steps of Euler's, and then one with a difference."""
    x, straight = normal(5, 2), Straight()
    settings = {"times": [1.0, 0.8, 0.5, 0.3], "parameterisation": "velocity", "start": x}
    euler, got = (list(f(field, straight, (5, 2), **settings)) for f in (ddim, exponential))
    for k in (1, 2):
        assert torch.allclose(got[k].x, euler[k].x, atol=1e-12)
    here, before = got[2], got[1]
    r = math.log((0.5 / 0.5) / (0.2 / 0.8)) / math.log((0.7 / 0.3) / (0.5 / 0.5))
    blend = here.x0 + (here.x0 - before.x0) / (2 * r)
    want = 0.3 / 0.5 * here.x + (0.7 - 0.5 * 0.3 / 0.5) * blend
    assert torch.allclose(got[3].x, want, atol=1e-12)


@pytest.mark.parametrize("sampler", [ancestral, ddim, exponential, heun])
def test_a_straight_path_to_one_point_takes_one_step(sampler):
    """There the velocity (x − x₀)/t is constant along the path."""
    point = torch.tensor([0.3, -0.8], dtype=torch.float64)

    def predict(x, condition):
        return (x - point) / time_of(Straight(), condition)[:, None].clamp(min=1e-4)

    options = {"parameterisation": "velocity", "start": normal(5, 2)}
    for num_steps in (1, 4):
        draws = torch.Generator().manual_seed(0)
        options |= {"num_steps": num_steps, "generator": draws}
        *_, last = sampler(predict, Straight(), (5, 2), **options)
        assert torch.allclose(last.x, point.expand(5, 2), atol=3e-4)


def test_on_a_discrete_schedule_a_step_of_the_sde_is_nearly_ancestral():
    schedule, start = linear(300), normal(4, 2)
    predict = TWO.predict(schedule)
    ends = []
    for sampler in (ancestral, euler_maruyama):
        draw = torch.Generator().manual_seed(3)
        run = sampler(predict, schedule, (4, 2), start=start, generator=draw)
        ends.append([state.x for state in run][-2])
    assert (ends[0] - ends[1]).abs().max() < 0.06


# Closed forms and brute force: the likelihood


@pytest.mark.parametrize("schedule", [VP(0.1, 40.0), VE(0.02, 2000.0)])
@pytest.mark.parametrize("data", [GAUSSIAN, TWO])
def test_the_likelihood_is_that_of_the_data(schedule, data):
    x = torch.tensor([[0.5, -0.3], [1.0, 1.0], [-0.8, 0.0], [2.0, -1.0]], dtype=torch.float64)
    (a, s), *_ = levels(schedule, [1e-3])
    want = data.at(a, s).log_prob(x)
    num_steps = 50 if isinstance(schedule, VP) else 100  # σ grows a hundred thousandfold
    got = ode_likelihood(data.predict(schedule), schedule, x, num_steps=num_steps)
    assert (got - want).abs().max() < 5e-3
    if isinstance(schedule, VP):
        assert (got - data.at(1, 0).log_prob(x)).abs().max() < 0.01


def test_the_likelihood_is_that_of_the_time_asked_for_and_images_are_summed():
    schedule, x = VP(0.1, 40.0), normal(3, 2)
    (level, *_) = levels(schedule, [0.3])
    got = ode_likelihood(TWO.predict(schedule), schedule, x, num_steps=50, first=0.3)
    assert (got - TWO.at(*level).log_prob(x)).abs().max() < 5e-3

    def of_images(x, condition):
        return TWO.predict(schedule)(x.flatten(1), condition).reshape(x.shape)

    images = ode_likelihood(of_images, schedule, x.reshape(3, 1, 1, 2), num_steps=50, first=0.3)
    assert torch.allclose(images, got, atol=1e-10)


def test_the_likelihood_of_a_flow_is_that_of_the_data():
    """On the straight path from t = 1 itself, which no other parameterisation could begin at."""
    straight = Straight()
    x = torch.tensor([[0.5, -0.3], [1.0, 1.0], [-0.8, 0.0], [2.0, -1.0]], dtype=torch.float64)
    for data in (GAUSSIAN, TWO):
        predict = data.predict(straight, "velocity")
        got = ode_likelihood(predict, straight, x, num_steps=50, parameterisation="velocity")
        (a, s), *_ = levels(straight, [1e-3])
        assert (got - data.at(a, s).log_prob(x)).abs().max() < 1e-3


def test_hutchinsons_signs_are_the_generators(generator):
    def estimate():
        signs = torch.Generator().manual_seed(3)
        options = {"num_steps": 2, "divergence": "hutchinson", "generator": signs}
        return ode_likelihood(TWO.predict(VP()), VP(), x, **options)

    x = normal(3, 2)
    first = estimate()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(estimate(), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_of_euler_maruyama_takes_drift_and_noise_at_its_beginning():
    schedule, x, times = VP(), normal(4, 2), [0.6, 0.4]
    options = {"times": times, "start": x, "generator": torch.Generator().manual_seed(2)}
    states = list(euler_maruyama(TWO.predict(schedule), schedule, x.shape, **options))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    t = torch.full((4,), 0.6, dtype=torch.float64)
    f, g = schedule.drift_scale(t)[0], schedule.diffusion(t)[0]
    score = TWO.score(x, schedule.signal(t), schedule.sigma(t))
    wanted = x - 0.2 * (f * x - g**2 * score) + 0.2**0.5 * g * z
    assert torch.allclose(states[1].x, wanted, atol=1e-8)


def test_the_likelihood_takes_every_parameterisation():
    x = normal(3, 2)
    values = {
        kind: ode_likelihood(TWO.predict(VP(), kind), VP(), x, num_steps=4, parameterisation=kind)
        for kind in PARAMETERISATIONS
    }
    for kind in PARAMETERISATIONS:
        assert torch.allclose(values[kind], values["eps"], atol=1e-8)


def net(width=8):
    """A smooth function of x and the condition, whose Jacobian is full."""
    inner, outer = nn.Linear(4, width).double(), nn.Linear(width, 3).double()

    def predict(x, condition):
        return outer(torch.tanh(inner(torch.cat([x, condition[:, None]], 1))))

    return predict


def test_the_divergence_is_the_trace_of_the_jacobian():
    schedule, predict, x = VP(), net(), normal(2, 3)
    roots = torch.linspace(math.sqrt(1e-3), 1, 4, dtype=torch.float64)

    def velocity(x, root):  # dx/d√t
        t = root.square().expand(len(x))
        score = -predict(x, schedule.condition(t, torch.float64)) / schedule.sigma(t)[:, None]
        f, g = schedule.drift_scale(t)[:, None], schedule.diffusion(t)[:, None]
        return 2 * root * (f * x - 0.5 * g**2 * score)

    def trace(x, t):
        jacobian = torch.autograd.functional.jacobian(lambda x: velocity(x, t), x)
        return torch.einsum("bibi->b", jacobian)

    total, y = 0, x
    for t, later in pairwise(roots):
        h, middle = later - t, (t + later) / 2
        k_1, d_1 = velocity(y, t), trace(y, t)
        k_2, d_2 = (part(y + h / 2 * k_1, middle) for part in (velocity, trace))
        k_3, d_3 = (part(y + h / 2 * k_2, middle) for part in (velocity, trace))
        k_4, d_4 = (part(y + h * k_3, later) for part in (velocity, trace))
        total = total + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)
        y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    want = D.Normal(0.0, 1.0).log_prob(y).sum(1) + total
    got = ode_likelihood(predict, schedule, x, num_steps=3)
    assert torch.allclose(got, want, atol=1e-10)
    assert not got.requires_grad


def test_hutchinson_is_exact_where_numbers_do_not_mix(generator):
    x, predict = normal(4, 2), GAUSSIAN.predict(VP())
    exact = ode_likelihood(predict, VP(), x, num_steps=4)
    got = ode_likelihood(
        predict, VP(), x, num_steps=4, divergence="hutchinson", generator=generator
    )
    assert torch.allclose(got, exact, atol=1e-12)


def test_hutchinson_is_right_on_average(generator):
    """In two dimensions zᵀJz is the trace plus or minus the same: the mean of both is exact."""
    x, predict = torch.tensor([[0.3, -0.2]], dtype=torch.float64), TWO.predict(VP())
    exact = ode_likelihood(predict, VP(), x, num_steps=4)
    many = ode_likelihood(
        predict, VP(), x.expand(50, 2), num_steps=4, divergence="hutchinson", generator=generator
    )
    values = many.unique()
    values = values[torch.cat([torch.ones(1).bool(), values.diff() > 1e-9])]
    assert len(values) == 2
    assert float(values.mean()) == pytest.approx(float(exact), abs=1e-9)
    assert float(values[1] - values[0]) > 1e-3


# Invariances


@each
@pytest.mark.parametrize(
    "schedule", [FEW, VP(), VE(0.05, 5.0), Straight()], ids=lambda s: type(s).__name__
)
def test_all_parameterisations_sample_the_same(sampler, schedule):
    ends, steps = {}, {"num_steps": 6}
    if isinstance(schedule, Straight):
        steps = {"times": [0.95, 0.8, 0.6, 0.4, 0.2, 0.05]}
    for kind in PARAMETERISATIONS:
        draw = torch.Generator().manual_seed(0)
        run = sampler(
            TWO.predict(schedule, kind), schedule, (5, 2), **steps, parameterisation=kind,
            start=normal(5, 2), generator=draw,
        )  # fmt: skip
        *_, ends[kind] = run
    for kind in PARAMETERISATIONS:
        assert torch.allclose(ends[kind].x, ends["eps"].x, atol=1e-8)


@each
@pytest.mark.parametrize("schedule", [FEW, cosine(30), VP(), SubVP(), VE()])
def test_the_states_run_from_noise_to_the_data(sampler, schedule, generator):
    seen = []

    def predict(x, condition):
        seen.append(condition)
        return 0.1 * x

    states = list(sampler(predict, schedule, (3, 1, 2, 2), num_steps=5, generator=generator))
    assert len(states) == 6
    assert all(type(state) is State and state.x.shape == (3, 1, 2, 2) for state in states)
    discrete = isinstance(schedule, Discrete)
    want = [29, 22, 14, 7, 0, -1] if discrete else [1, 0.8, 0.6, 0.4, 0.2, 0]
    assert [state.t for state in states] == pytest.approx(want)
    assert states[-1].x is states[-1].x0
    assert all(state.x.dtype == state.x0.dtype == torch.float32 for state in states)
    told = schedule.condition(torch.tensor(want[:-1]))
    firsts = [condition[0] for condition in seen]
    assert torch.allclose(torch.stack(firsts[:1]), told[:1])
    assert all(c.shape == (3,) and c.dtype == torch.float32 for c in seen)
    t = torch.full((3,), states[1].t)
    x0 = schedule.convert(0.1 * states[1].x, states[1].x, t, source="eps", target="x0")
    assert torch.allclose(states[1].x0, x0, rtol=1e-4)


@each
def test_the_last_step_draws_nothing(sampler):
    """From t = 0, and from any single time: what comes out is decided by what goes in."""
    start, predict = normal(3, 2), TWO.predict(FEW)
    for times in ([0], [12]):
        ends = []
        for seed in (0, 1):
            draw = torch.Generator().manual_seed(seed)
            *_, last = sampler(predict, FEW, (3, 2), times=times, start=start, generator=draw)
            ends.append(last.x)
        assert torch.equal(*ends)


@pytest.mark.parametrize("sampler", [ancestral, ddim, exponential])
def test_the_last_step_leads_to_the_predicted_data(sampler):
    *_, before, last = sampler(TWO.predict(FEW), FEW, (3, 2), num_steps=7, start=normal(3, 2))
    assert torch.allclose(last.x, before.x0, atol=1e-12)


@each
def test_the_generator_decides_alone(sampler):
    def run(seed, start=None):
        draw = torch.Generator().manual_seed(seed)
        predict = TWO.predict(FEW)
        *_, last = sampler(lambda x, c: predict(x, c).to(x.dtype), FEW, (3, 2), generator=draw)
        return last.x

    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), run(1))


def test_the_first_noise_is_as_wide_as_the_schedule(generator):
    for schedule, width in ((VP(), 1), (VE(0.01, 50), 50), (FEW, 1)):
        first = next(ddim(lambda x, c: x, schedule, (4000, 2), num_steps=2, generator=generator))
        assert float(first.x.std()) == pytest.approx(width, rel=0.05)


def test_the_first_noise_has_room_for_data_of_variance_one(generator):
    schedule = VE(0.1, 1.0)
    first = next(ddim(same, schedule, (40_000, 1), num_steps=2, generator=generator))
    assert abs(first.x.std().item() - 2**0.5) < 0.02


@each
def test_clipping_holds_the_predicted_data(sampler):
    states = list(
        sampler(lambda x, c: 0.2 * x, FEW, (3, 2), clip=(-0.5, 0.4), start=3 * normal(3, 2))
    )
    for state in states[:-1]:
        assert state.x0.min() >= -0.5
        assert state.x0.max() <= 0.4
    free = next(sampler(lambda x, c: 0.2 * x, FEW, (3, 2), start=3 * normal(3, 2)))
    assert torch.allclose(states[0].x0, free.x0.clamp(-0.5, 0.4))


@pytest.mark.parametrize("num_steps", range(1, 31))
def test_any_number_of_steps_is_spread_over_the_schedule(num_steps):
    times = [int(s.t) for s in ddim(lambda x, c: x, FEW, (1, 1), num_steps=num_steps)]
    assert len(times) == num_steps + 1
    assert times[0] == 29
    assert num_steps == 1 or times[-2] == 0
    gaps = [a - b for a, b in pairwise(times[:-1])]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


@each
def test_sampling_differentiates_nothing(sampler):
    weight = torch.ones(1, requires_grad=True)
    for state in sampler(lambda x, c: weight * x, FEW, (2, 2), num_steps=3):
        assert not state.x.requires_grad
        assert torch.is_grad_enabled()  # the caller's own mode is left alone


# An independent reference: diffusers


def theirs(kind, schedule, **settings):
    import diffusers

    betas = schedule.beta.numpy()
    scheduler = getattr(diffusers, kind)(len(betas), trained_betas=betas, **settings)
    scheduler.alphas_cumprod = (1 - torch.tensor(betas)).cumprod(0)  # theirs are float32
    return scheduler


SETTINGS = [
    (linear(60), "eps", "epsilon", None),
    (cosine(60), "v", "v_prediction", None),
    (linear(60), "x0", "sample", (-1.0, 1.0)),
]
TIMES = list(range(54, -1, -6))
settings = pytest.mark.parametrize(
    ("schedule", "kind", "name", "clip"), SETTINGS, ids=["eps", "v", "x0 clipped"]
)


def predictions(x, t):
    """Anything: the samplers need no good network to agree."""
    return torch.sin(3 * x) * (0.5 + 0.01 * t)


def ours(sampler, schedule, kind, times, start, **options):
    """Our x after each step, with the same predictions at the same times and the same noise."""
    upcoming = iter(times)
    options |= {"parameterisation": kind, "generator": torch.Generator().manual_seed(7)}
    run = sampler(
        lambda x, c: predictions(x, next(upcoming)), schedule, tuple(start.shape), times=times,
        start=start, **options,
    )  # fmt: skip
    return [state.x for state in run][1:]


def compare(ours, scheduler, times, start, tol=1e-10, **options):
    x, draw = start, torch.Generator().manual_seed(7)
    if options.pop("draws", False):
        options["generator"] = draw
    for t, mine in zip(times, ours, strict=True):
        x = scheduler.step(predictions(x, t), t, x, **options).prev_sample
        assert (x - mine).abs().max() < tol * (1 + x.abs().max())


@settings
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("times", [list(range(59, -1, -1)), TIMES], ids=["all", "some"])
def test_ancestral_is_that_of_diffusers(schedule, kind, name, clip, variance, times):
    scheduler = theirs(
        "DDPMScheduler", schedule, prediction_type=name, clip_sample=clip is not None,
        variance_type={"beta": "fixed_large", "beta_tilde": "fixed_small"}[variance],
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=times)
    start = normal(4, 3)
    mine = ours(ancestral, schedule, kind, times, start, variance=variance, clip=clip)
    compare(mine, scheduler, times, start, draws=True)


@settings
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers(schedule, kind, name, clip, eta):
    scheduler = theirs(
        "DDIMScheduler", schedule, prediction_type=name, clip_sample=clip is not None
    )
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == TIMES
    start = normal(4, 3)
    mine = ours(ddim, schedule, kind, TIMES, start, eta=eta, clip=clip)
    compare(mine, scheduler, TIMES, start, eta=eta, draws=True, use_clipped_model_output=True)


@settings
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("times", [TIMES, [59, 50, 30, 21, 3]], ids=["even", "uneven"])
def test_dpm_solver_is_that_of_diffusers(schedule, kind, name, clip, times):
    scheduler = theirs(
        "DPMSolverMultistepScheduler", schedule, prediction_type=name, solver_order=2,
        algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(timesteps=times)
    start = normal(4, 3)
    mine = ours(exponential, schedule, kind, times, start)
    compare(mine, scheduler, times, start, tol=2e-5)  # its sigmas are float32


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, {"num_inference_steps": 10}),
        ({"shift": 3.0}, {"num_inference_steps": 7}),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 6, "mu": 0.8}),
        ({}, {"sigmas": [1.0, 0.85, 0.3, 0.02]}),
    ],
    ids=["even", "shift 3", "by image size", "given"],
)
def test_eulers_flow_is_that_of_diffusers(settings, steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(1000, **settings)
    scheduler.set_timesteps(**steps)
    times, x = scheduler.sigmas[:-1].tolist(), normal(4, 3).float()
    mine = ours(ddim, Straight(), "velocity", times, x)
    assert len(mine) == len(times)
    for t, timestep, got in zip(times, scheduler.timesteps, mine, strict=True):
        x = scheduler.step(predictions(x, t), timestep, x).prev_sample
        assert (x - got).abs().max() < 2e-6  # theirs is float32


# Behaviour


@each
def test_a_perfect_predictor_finds_both_clusters(sampler, generator):
    data = Mixture([[1.0, 1.0], [-1.0, -1.0]], 0.1)
    run = sampler(
        data.predict(VP()), VP(), (400, 2), num_steps=100, start=normal(400, 2), generator=generator
    )
    *_, last = run
    right = last.x[:, 0] > 0
    assert 0.35 < float(right.double().mean()) < 0.65
    assert torch.allclose(last.x[right].mean(0), data.means[0], atol=0.05)
    assert torch.allclose(last.x[~right].mean(0), data.means[1], atol=0.05)
    assert float(last.x[right].std(0).mean()) == pytest.approx(0.1, abs=0.03)


def test_evenly_in_log_snr_exponential_steps_beat_as_many_of_ddim():
    data, schedule, start = TWO, linear(400), normal(300, 2)
    ratios = schedule.snr(torch.arange(400)).log()
    wanted = torch.linspace(float(ratios[-1]), float(ratios[0]), 12, dtype=torch.float64)
    times = (ratios - wanted[:, None]).abs().argmin(1).tolist()
    *_, exact = exponential(data.predict(schedule), schedule, (300, 2), start=start)
    errors = []
    for sampler in (exponential, ddim):
        *_, last = sampler(data.predict(schedule), schedule, (300, 2), start=start, times=times)
        errors.append(float((last.x - exact.x).square().mean()))
    assert errors[0] < 0.3 * errors[1]


# Bad input


def same(x, c):
    return x


X = torch.zeros(3, 2)
STRAIGHT = {"num_steps": 3, "parameterisation": "velocity"}


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(
    ("kind", "name", "call"),
    [
        (ValueError, "num_steps", lambda: ddim(same, FEW, (3, 2), num_steps=0)),
        (ValueError, "num_steps", lambda: ddim(same, FEW, (3, 2), num_steps=2.5)),
        (ValueError, "num_steps", lambda: ancestral(same, FEW, (3, 2), num_steps=31)),
        (ValueError, "num_steps", lambda: heun(same, VP(), (3, 2))),
        (
            ValueError,
            "num_steps or times",
            lambda: heun(same, VP(), (3,), num_steps=1, times=[1.0]),
        ),
        (ValueError, "times", lambda: exponential(same, VP(), (3, 2), times=[])),
        (ValueError, "times", lambda: exponential(same, VP(), (3, 2), times=[0.5, 0.5])),
        (ValueError, "times", lambda: exponential(same, VP(), (3, 2), times=[0.4, 0.5])),
        (ValueError, "times", lambda: exponential(same, VP(), (3, 2), times=[0.4, 0.0])),
        (ValueError, "t in", lambda: exponential(same, VP(), (3, 2), times=[1.2, 0.5])),
        (ValueError, "t in", lambda: ddim(same, FEW, (3, 2), times=[30, 5])),
        (ValueError, "times", lambda: ddim(same, FEW, (3, 2), times=[5, -1])),
        (TypeError, "t ", lambda: ddim(same, FEW, (3, 2), times=[5.5, 2.0])),
        (ValueError, "clip", lambda: ddim(same, FEW, (3, 2), clip=(1.0, 1.0))),
        (ValueError, "clip", lambda: ddim(same, FEW, (3, 2), clip=(1.0, -1.0))),
        (ValueError, "start", lambda: ddim(same, FEW, (3, 2), start=X[:2])),
        (ValueError, "start", lambda: ddim(same, FEW, (3, 2), start=X[0])),
        (TypeError, "start", lambda: ddim(same, FEW, (3, 2), start=X.long())),
        (ValueError, "parameterisation", lambda: ddim(same, FEW, (3, 2), parameterisation="x_0")),
        (ValueError, "variance", lambda: ancestral(same, FEW, (3, 2), variance="tilde")),
        *(
            (ValueError, "parameterisation", lambda k=k: ddim(same, Straight(), (3, 2), **k))
            for k in ({"num_steps": 3}, {"num_steps": 3, "parameterisation": "score"})
        ),
        (ValueError, "times", lambda: euler_maruyama(same, Straight(), (3, 2), **STRAIGHT)),
        (ValueError, "times", lambda: heun(same, Straight(), (3, 2), times=[0.5, 0.0])),
        (ValueError, "num_steps", lambda: ddim(same, Straight(), (3, 2))),
        (ValueError, "t in", lambda: ddim(same, Straight(), (3, 2), times=[1.1])),
        (ValueError, "eta", lambda: ddim(same, FEW, (3, 2), eta=1.1)),
        (ValueError, "eta", lambda: ddim(same, FEW, (3, 2), eta=-0.1)),
        (ValueError, "order", lambda: heun(same, FEW, (3, 2), order=3)),
        (ValueError, "output", lambda: list(ddim(lambda x, c: x[:1], FEW, (3, 2)))),
        (ValueError, "divergence", lambda: ode_likelihood(same, VP(), X, divergence="trace")),
        (ValueError, "num_steps", lambda: ode_likelihood(same, VP(), X, num_steps=0)),
        (ValueError, "first", lambda: ode_likelihood(same, VP(), X, first=0.0)),
        (ValueError, "first", lambda: ode_likelihood(same, VP(), X, first=1.0)),
        (ValueError, "schedule", lambda: ode_likelihood(same, FEW, X)),
        (TypeError, "x ", lambda: ode_likelihood(same, VP(), X.long())),
        (ValueError, "paramet", lambda: ode_likelihood(same, VP(), X, parameterisation="y")),
    ],
)
def test_what_does_not_fit_is_named_at_once(kind, name, call):
    with pytest.raises(kind, match=f"^expected .*{name}"):
        call()


@each
def test_a_misspelt_keyword_is_named_at_once(sampler):
    with pytest.raises(TypeError, match="steps_num"):
        sampler(same, FEW, (3, 2), steps_num=3)
