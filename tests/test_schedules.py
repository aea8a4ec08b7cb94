import math

import pytest
import torch

from aigc_lib import schedules
from aigc_lib.schedules import PARAMETERISATIONS, VE, VP, Discrete, Straight, SubVP, cosine, linear
from tests.noise import normal

CONTINUOUS = [VP(), VP(0.3, 7.0), SubVP(), VE(), VE(0.02, 5.0), Straight()]
ALL = [linear(40), cosine(40), *CONTINUOUS]
each = pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)


def some_times(schedule):
    """Six times, noise last, where neither the signal nor the noise vanishes."""
    if isinstance(schedule, Discrete):
        return torch.tensor([0, 1, 7, 20, 33, 38])
    last = 0.95 if isinstance(schedule, Straight) else 1.0
    return torch.tensor([0.01, 0.1, 0.3, 0.5, 0.9, last], dtype=torch.float64)


# Closed forms and brute force


def test_a_discrete_schedule_worked_out_by_hand():
    schedule, t = Discrete(torch.tensor([0.5, 0.75], dtype=torch.float64)), torch.tensor([0, 1])
    assert schedule.alpha_bars.tolist() == [0.5, 0.125]
    assert schedule.num_steps == 2
    assert torch.allclose(schedule.alpha_bar(t), schedule.alpha_bars, atol=1e-15)
    assert schedule.signal(t).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.125)])
    assert schedule.sigma(t).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.875)])
    assert schedule.snr(t).tolist() == pytest.approx([1, 1 / 7])
    assert schedule.posterior_variances.tolist() == pytest.approx([0, 0.75 * 0.5 / 0.875])
    assert schedule.drift_scale(t).tolist() == pytest.approx([math.sqrt(0.5) - 1, -0.5])
    assert schedule.diffusion(t).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.75)])


@pytest.mark.parametrize("schedule", [linear(40), cosine(40)])
def test_the_chain_of_single_steps_ends_where_the_schedule_says(schedule):
    signal, variance = 1.0, 0.0
    for t in range(schedule.num_steps):
        keep, add = (
            float(part(torch.tensor([t]))) for part in (schedule.drift_scale, schedule.diffusion)
        )
        signal, variance = (1 + keep) * signal, (1 + keep) ** 2 * variance + add**2
        assert float(schedule.signal(torch.tensor([t]))) == pytest.approx(signal, abs=1e-14)
        assert float(schedule.sigma(torch.tensor([t]))) ** 2 == pytest.approx(variance, abs=1e-14)


@pytest.mark.parametrize("t", [1, 2, 17, 39])
def test_the_posterior_is_that_of_the_joint_gaussian(t):
    schedule, x0, x_t = linear(40), normal(3, 2), normal(3, 2, seed=1)
    before, time = torch.full((3,), t - 1), torch.full((3,), t)
    a, s2 = schedule.signal(before)[0], schedule.sigma(before)[0] ** 2  # of x_{t−1} given x₀
    keep, beta = (1 - schedule.beta[t]).sqrt(), schedule.beta[t]
    gain = keep * s2 / (keep**2 * s2 + beta)
    want = a * x0 + gain * (x_t - keep * a * x0)
    mean, variance = schedule.posterior(x0, x_t, time)
    assert torch.allclose(mean, want, atol=1e-12)
    assert torch.allclose(variance, (s2 - gain * keep * s2).expand(3), atol=1e-14)
    assert (variance < beta).all()


def test_before_the_first_time_lies_the_data():
    x0 = normal(3, 2)
    mean, variance = linear(40).posterior(x0, normal(3, 2, seed=1), torch.zeros(3).long())
    assert torch.allclose(mean, x0, atol=1e-12)
    assert variance.tolist() == [0, 0, 0]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_the_sde_has_these_marginals(schedule):
    """d signal/dt = f signal and d sigma²/dt = 2 f sigma² + g², by automatic differentiation."""
    last = 0.99 if isinstance(schedule, Straight) else 1
    t = torch.linspace(0.01, last, 12, dtype=torch.float64, requires_grad=True)
    f, g = schedule.drift_scale(t), schedule.diffusion(t)
    signal, variance = schedule.signal(t), schedule.sigma(t).square()
    (growth,) = torch.autograd.grad(variance.sum(), t, retain_graph=True)
    assert torch.allclose(growth, 2 * f * variance + g.square(), rtol=1e-10)
    slope = torch.autograd.grad(signal.sum(), t)[0] if signal.grad_fn else torch.zeros_like(t)
    assert torch.allclose(slope, f * signal, rtol=1e-10)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_rates_are_derivatives(schedule):
    t = torch.linspace(0.01, 1, 12, dtype=torch.float64, requires_grad=True)
    for part, rate in zip((schedule.signal, schedule.sigma), schedule.rates(t), strict=True):
        level = part(t)
        moves = level.requires_grad
        slope = torch.autograd.grad(level.sum(), t)[0] if moves else torch.zeros_like(t)
        assert torch.allclose(rate, slope, rtol=1e-10)


@pytest.mark.parametrize("schedule", [linear(), cosine(1000)])
def test_rates_of_a_discrete_schedule_are_those_of_a_step(schedule):
    t = torch.arange(100, 500)
    for level, rate in zip((schedule.signal, schedule.sigma), schedule.rates(t), strict=True):
        step = level(t) - level(t - 1)
        assert torch.allclose(rate, step, rtol=0.06)
        assert (rate.sign() == step.sign()).all()


def test_the_straight_path_worked_out_by_hand():
    t, x0, eps = torch.tensor([0.0, 0.25, 1.0]), torch.full((3, 2), 8.0), torch.full((3, 2), 4.0)
    assert Straight().noised(x0, t, eps)[:, 0].tolist() == [8, 7, 4]
    assert [rate.tolist() for rate in Straight().rates(t)] == [[-1, -1, -1], [1, 1, 1]]
    assert Straight().drift_scale(t).tolist() == pytest.approx([-1, -4 / 3, -math.inf])
    assert Straight().diffusion(t).tolist() == pytest.approx([0, math.sqrt(2 / 3), math.inf])
    assert Straight().condition(t).tolist() == pytest.approx([5, math.log(3) / 2, -5])


def test_the_straight_velocity_tells_all_at_both_ends():
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x0, eps = normal(2, 3), normal(2, 3, seed=1)
    x_t, u = Straight().noised(x0, t, eps), eps - x0
    for target, want in (("x0", x0), ("eps", eps), ("velocity", u)):
        got = Straight().convert(u, x_t, t, source="velocity", target=target)
        assert torch.allclose(got, want, atol=1e-15)
    v = torch.stack([eps[0], -x0[1]])
    assert torch.allclose(Straight().convert(u, x_t, t, source="velocity", target="v"), v)
    assert torch.allclose(Straight().convert(v, x_t, t, source="v", target="velocity"), u)


@each
def test_the_velocity_is_that_of_the_probability_flow(schedule):
    """f x_t − ½ g² score, however signal and sigma move."""
    t, x_t, score = some_times(schedule), normal(6, 2), normal(6, 2, seed=1)
    f, g = schedule.drift_scale(t)[:, None], schedule.diffusion(t)[:, None]
    got = schedule.convert(score, x_t, t, source="score", target="velocity")
    assert torch.allclose(got, f * x_t - 0.5 * g**2 * score, rtol=1e-9, atol=1e-9)


def test_the_ends_of_the_continuous_schedules():
    start, end = torch.zeros(1).double(), torch.ones(1).double()
    for schedule in (VP(), SubVP()):
        assert schedule.signal(start) == 1
        assert schedule.sigma(start) == 0
        assert float(schedule.signal(end)) == pytest.approx(math.exp(-0.5 * 10.05))
    assert float(VP().sigma(end)) == pytest.approx(math.sqrt(1 - math.exp(-10.05)))
    assert float(SubVP().sigma(end)) == pytest.approx(1 - math.exp(-10.05))
    assert float(VE(0.02, 5).sigma(start)) == 0.02
    assert float(VE(0.02, 5).sigma(end)) == pytest.approx(5)
    assert float(VE(0.02, 5).sigma((start + end) / 2)) == pytest.approx(math.sqrt(0.02 * 5))


# Invariances


@each
def test_time_is_noise(schedule):
    t = some_times(schedule)
    assert (schedule.snr(t).diff() < 0).all()
    assert (schedule.signal(t).diff() <= 0).all()
    assert (schedule.sigma(t).diff() > 0).all()
    assert torch.allclose(schedule.alpha_bar(t), schedule.signal(t) ** 2)
    if isinstance(schedule, Straight):
        assert torch.allclose(schedule.signal(t) + schedule.sigma(t), torch.ones(6).double())
    elif not isinstance(schedule, VE | SubVP):
        assert torch.allclose(
            schedule.signal(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(6).double()
        )


@each
@pytest.mark.parametrize("source", PARAMETERISATIONS)
def test_each_parameterisation_says_the_same(schedule, source):
    t, x0, eps = some_times(schedule), normal(6, 2, 3), normal(6, 2, 3, seed=1)
    a, s = schedule.signal(t)[:, None, None], schedule.sigma(t)[:, None, None]
    x_t = schedule.noised(x0, t, eps)
    assert torch.allclose(x_t, a * x0 + s * eps, atol=1e-14)
    da, ds = (rate[:, None, None] for rate in schedule.rates(t))
    truth = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}
    truth["velocity"] = da * x0 + ds * eps
    for target in PARAMETERISATIONS:
        got = schedule.convert(truth[source], x_t, t, source=source, target=target)
        assert torch.allclose(got, truth[target], rtol=1e-8, atol=1e-8)


@each
def test_a_network_is_told_a_number_of_order_one(schedule):
    t = some_times(schedule)
    told = schedule.condition(t, torch.float64)
    assert torch.allclose(told, schedule.snr(t).log() / 4)
    assert schedule.condition(t).dtype == torch.float32
    everything = torch.arange(40) if isinstance(schedule, Discrete) else torch.linspace(0, 1, 40)
    told = schedule.condition(everything)
    assert told.abs().max() <= 5
    assert (told.diff() < 0).all()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_have_the_dtype_of_the_data(schedule, dtype):
    t, x = some_times(schedule), normal(6, 2).to(dtype)
    low = t if isinstance(schedule, Discrete) else t.to(dtype)
    assert schedule.signal(low).dtype == (torch.float64 if low is t else torch.float32)
    assert schedule.noised(x, low, x).dtype == dtype
    for source in PARAMETERISATIONS:
        for target in ("v", "velocity"):
            assert schedule.convert(x, x, low, source=source, target=target).dtype == dtype
    if isinstance(schedule, Discrete):
        assert schedule.posterior(x, x, t)[0].dtype == dtype
        assert torch.equal(schedule.signal(t.int()), schedule.signal(t))


def test_v_says_what_x0_is_where_next_to_no_signal_is_left():
    schedule, t = cosine(1000), torch.full((4,), 999)
    x0, eps = normal(4, 3).float(), normal(4, 3, seed=1).float()
    v = schedule.convert(eps, schedule.noised(x0, t, eps), t, source="eps", target="v")
    a, s = schedule.signal(t)[0].float(), schedule.sigma(t)[0].float()
    v, x_t = a * eps - s * x0, schedule.noised(x0, t, eps)
    assert (schedule.convert(v, x_t, t, source="v", target="x0") - x0).abs().max() < 1e-6


@pytest.mark.parametrize("num_steps", [21, 50, 200, 1000])
def test_any_number_of_steps_ends_in_noise(num_steps):
    assert float(linear(num_steps).alpha_bars[-1]) < 1e-4
    assert float(cosine(num_steps).alpha_bars[-1]) < 1e-4


# An independent reference


@pytest.mark.parametrize(
    ("ours", "settings"),
    [
        (linear(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (linear(50), {"beta_schedule": "linear", "beta_start": 2e-3, "beta_end": 0.4}),
        (cosine(200), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_schedules_are_those_of_diffusers(ours, settings):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(ours.num_steps, **settings)
    assert torch.allclose(ours.beta.float(), theirs.betas, rtol=1e-4, atol=1e-7)
    assert torch.allclose(ours.alpha_bars.float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-7)
    x0, eps, t = normal(4, 3).float(), normal(4, 3, seed=1).float(), torch.tensor([0, 5, 11, 40])
    x_t = ours.noised(x0, t, eps)
    assert torch.allclose(x_t, theirs.add_noise(x0, eps, t), atol=1e-5)
    v = ours.convert(eps, x_t, t, source="eps", target="v")
    assert torch.allclose(v, theirs.get_velocity(x0, eps, t), atol=1e-4)


def test_the_straight_path_is_that_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(1000)
    x0, eps, t = normal(4, 3), normal(4, 3, seed=1), theirs.timesteps[[0, 10, 500, 999]]
    want = theirs.scale_noise(x0, t, eps)
    assert torch.allclose(Straight().noised(x0, t.double() / 1000, eps), want, atol=1e-6)


# Bad input

X, T, U = torch.zeros(3, 2), torch.arange(3), torch.full((3,), 0.5)
FEW = linear(40)


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(
    ("kind", "name", "call"),
    [
        (ValueError, "beta", lambda: Discrete(torch.tensor([0.1, 1.0]))),
        (ValueError, "beta", lambda: Discrete(torch.tensor([0.0, 0.1]))),
        (ValueError, "beta", lambda: Discrete(torch.tensor([0.1, math.nan]))),
        (ValueError, "beta", lambda: Discrete(torch.tensor([]))),
        (ValueError, "beta", lambda: Discrete(torch.tensor([[0.1]]))),
        (TypeError, "beta", lambda: Discrete(torch.tensor([1, 2]))),
        (ValueError, "beta", lambda: linear(20)),
        (ValueError, "num_steps", lambda: linear(0)),
        (ValueError, "num_steps", lambda: cosine(0)),
        (ValueError, "beta_min", lambda: VP(0.0)),
        (ValueError, "beta_max", lambda: VP(0.1, 0.05)),
        (ValueError, "sigma_min", lambda: VE(0.0)),
        (ValueError, "sigma_max", lambda: VE(1.0, 1.0)),
        (ValueError, "t in", lambda: FEW.signal(torch.tensor([40]))),
        (ValueError, "t in", lambda: FEW.signal(torch.tensor([-1]))),
        (TypeError, "t ", lambda: FEW.signal(U)),
        (ValueError, "t ", lambda: FEW.signal(torch.tensor(3))),
        (ValueError, "t in", lambda: VP().sigma(U + 0.6)),
        (ValueError, "t in", lambda: VE().sigma(-U)),
        (TypeError, "t ", lambda: SubVP().sigma(T)),
        (ValueError, "t ", lambda: VP().sigma(U[0])),
        (ValueError, "t in", lambda: Straight().sigma(U + 0.6)),
        (ValueError, "t in", lambda: Straight().rates(U - 0.6)),
        (TypeError, "t ", lambda: Straight().rates(T)),
        (ValueError, "t ", lambda: Straight().rates(U[0])),
        (ValueError, "target", lambda: Straight().convert(X, X, U, source="eps", target="u")),
        (ValueError, "eps", lambda: FEW.noised(X, T, X[:, :1])),
        (TypeError, "x0", lambda: FEW.noised(X.long(), T, X)),
        (ValueError, "t of", lambda: FEW.noised(X, T[:1], X)),
        (ValueError, "source", lambda: FEW.convert(X, X, T, source="epsilon", target="x0")),
        (ValueError, "target", lambda: FEW.convert(X, X, T, source="eps", target="x")),
        (ValueError, "output", lambda: FEW.convert(X[:2], X, T, source="eps", target="x0")),
        (ValueError, "t of", lambda: FEW.convert(X, X, T[:1], source="eps", target="x0")),
        (ValueError, "x_t", lambda: FEW.posterior(X, X[:, :1], T)),
        (ValueError, "t of", lambda: FEW.posterior(X, X, T[:1])),
        (TypeError, "x0", lambda: FEW.posterior(X.long(), X, T)),
    ],
)
def test_what_does_not_fit_is_named(kind, name, call):
    with pytest.raises(kind, match=f"^expected .*{name}"):
        call()


def test_there_are_five_parameterisations():
    assert schedules.PARAMETERISATIONS == ("eps", "x0", "v", "score", "velocity")


def test_levels_are_not_rounded_to_the_data_s_dtype():
    schedule, t = linear(40), torch.tensor([0, 1, 7, 20, 33, 38])
    x, eps = normal(6, 50).bfloat16(), normal(6, 50, seed=1).bfloat16()
    want = schedule.noised(x.double(), t, eps.double())
    got = schedule.noised(x, t, eps).double()
    assert torch.allclose(got, want, rtol=0.51 * torch.finfo(torch.bfloat16).eps, atol=1e-6)


def test_a_condition_ends_at_five():
    start, end = torch.zeros(1), torch.ones(1)
    assert float(VP().condition(start)) == 5
    assert float(VE(1e-3, 1e10).condition(end)) == -5


def test_ve_goes_from_a_hundredth_to_fifty():
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert VE().sigma(t).tolist() == pytest.approx([0.01, 50])
