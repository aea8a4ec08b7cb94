import pytest
import torch

from aigc_lib.sampling.diffusion import ancestral, ddim, euler_maruyama, exponential, heun
from aigc_lib.sampling.editing import coarse, image_to_image, inpaint
from aigc_lib.schedules import VE, VP, Discrete, Straight, SubVP, linear
from tests.noise import normal

SAMPLERS = [ancestral, ddim, exponential, euler_maruyama, heun]
each = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda f: f.__name__)
EXACT = pytest.mark.parametrize("sampler", [ancestral, ddim, exponential], ids=lambda f: f.__name__)
FEW = linear(30)
X0 = normal(3, 2, 4, 5, seed=3)
MASK = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
MASK[:, :, 1:3, 2:] = True
HALF = [0.5, 0.3, 0.1]


def wild(x, condition):
    return torch.sin(3 * x) + condition.reshape(-1, 1, 1, 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(x0, seed=0):
    return torch.randn(x0.shape, generator=seeded(seed), dtype=x0.dtype)


def correlated(rho, schedule):
    """E[x₀|x_t] for pairs of pixels of variance 1 and this correlation, as ε."""
    cov, one = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64), torch.eye(2)

    def predict(x, condition):
        snr = torch.exp(4 * condition[0])
        a = (snr / (1 + snr)).sqrt()
        s = a / snr.sqrt()
        assert isinstance(schedule, VP | Discrete)
        x0 = a * x @ torch.linalg.inv(a**2 * cov + s**2 * one) @ cov
        return (x - a * x0) / s

    return predict


# Closed forms and brute force


@pytest.mark.parametrize(
    ("schedule", "times"),
    [(VP(), HALF), (SubVP(), HALF), (VE(), HALF), (Straight(), HALF), (FEW, [17, 9, 0])],
)
def test_it_begins_with_the_image_noised_to_the_first_time(schedule, times):
    state, *_ = image_to_image(ddim, wild, schedule, X0, times=times, generator=seeded())
    t = torch.tensor(times[:1], dtype=None if schedule is FEW else torch.float64)
    want = schedule.signal(t).item() * X0 + schedule.sigma(t).item() * noise(X0)
    assert state.t == times[0]
    assert torch.allclose(state.x, want, atol=1e-14)


@pytest.mark.parametrize(("schedule", "last"), [(VP(), 1.0), (FEW, 29)])
def test_without_times_it_begins_at_the_last_level(schedule, last):
    state, *_ = image_to_image(ddim, wild, schedule, X0, num_steps=4, generator=seeded())
    want, *_ = image_to_image(ddim, wild, schedule, X0, times=[last], generator=seeded())
    assert state.t == last
    assert torch.equal(state.x, want.x)


@EXACT
@pytest.mark.parametrize("schedule", [VP(), FEW, VE(0.1, 5.0), Straight()])
def test_outside_of_the_mask_every_level_has_its_own_noise(sampler, schedule):
    # The marginal of x_t given x₀ is N(signal x₀, sigma²) at each of the states, no level off.
    x0 = X0[:1].expand(600, -1, -1, -1)
    times = [29, 20, 8, 2] if schedule is FEW else [1.0, 0.6, 0.3, 0.1]
    more = {"parameterisation": "v", "generator": seeded()}  # "eps" says nothing without signal
    more |= {"variance": "beta_tilde"} if sampler is ancestral else {}
    states = inpaint(sampler, wild, schedule, x0, MASK, times=times, **more)
    count = 0
    for state in list(states)[:-1]:
        kind = None if schedule is FEW else torch.float64
        t = torch.tensor([state.t], dtype=kind)
        t = t.long() if schedule is FEW else t
        z = (state.x - schedule.signal(t) * x0) / schedule.sigma(t)
        z = z.masked_select(~MASK)
        assert abs(z.mean()) < 4 / len(z) ** 0.5
        assert abs(z.std() - 1) < 4 / (2 * len(z)) ** 0.5
        count += 1
    assert count == 4


def test_the_flow_carries_one_noise_along_outside_of_the_mask():
    states = list(inpaint(ddim, wild, VP(), X0, MASK, num_steps=7, generator=seeded()))
    for state in states[:-1]:
        t = torch.tensor([state.t], dtype=torch.float64)
        want = VP().signal(t) * X0 + VP().sigma(t) * noise(X0)
        outside = (~MASK).expand_as(X0)
        assert torch.allclose(state.x[outside], want[outside], atol=1e-12)
        assert torch.equal(state.x0[outside], X0[outside])


def test_pixels_that_know_nothing_of_each_other_are_drawn_as_without_the_mask():
    predict, x0 = correlated(0.0, VP()), normal(50, 1, 1, 2)
    mask = torch.tensor([False, True]).reshape(1, 1, 1, 2)
    whole = image_to_image(ddim, predict, VP(), x0, num_steps=12, generator=seeded())
    part = inpaint(ddim, predict, VP(), x0, mask, num_steps=12, generator=seeded())
    for free, kept in zip(whole, part, strict=True):
        assert torch.allclose(free.x[..., 1], kept.x[..., 1], atol=1e-12)
    assert not torch.allclose(free.x[..., 0], kept.x[..., 0], atol=0.1)


def test_correlated_pixels_follow_the_recursion_written_out():
    # x₂ by Euler's steps of x̄ = x/signal in σ̄, from E[x₂|x_t], while x₁ is a point that is known.
    schedule, rho, times = VP(), 0.8, [1.0, 0.7, 0.45, 0.2, 0.05]
    x0, start = normal(40, 1, 1, 2), None
    mask = torch.tensor([False, True]).reshape(1, 1, 1, 2)
    got = inpaint(
        ddim, correlated(rho, schedule), schedule, x0, mask, times=times, generator=seeded()
    )
    t = torch.tensor(times, dtype=torch.float64)
    a, s = [*schedule.signal(t), 1.0], [*schedule.sigma(t), 0.0]
    z = noise(x0)[:, 0, 0]
    start = a[0] * x0[:, 0, 0] + s[0] * z
    known, x = x0[:, 0, 0, 0], start[:, 1]
    for k, state in enumerate(list(got)[:-1]):
        assert torch.allclose(state.x[:, 0, 0, 1], x, atol=1e-11)
        seen = a[k] * known + s[k] * z[:, 0]
        v = a[k] ** 2 + s[k] ** 2
        c = a[k] ** 2 * rho
        of_seen, of_x = (a[k] * rho * v - a[k] * c, a[k] * v - a[k] * rho * c)
        guess = (of_seen * seen + of_x * x) / (v**2 - c**2)
        x = a[k + 1] * guess + s[k + 1] / s[k] * (x - a[k] * guess)
    assert torch.allclose(state.x0[:, 0, 0, 1], guess, atol=1e-11)


def test_what_is_drawn_anew_leans_towards_what_is_known():
    x0 = torch.full((4000, 1, 1, 2), 1.5, dtype=torch.float64)
    mask = torch.tensor([False, True]).reshape(1, 1, 1, 2)
    means = []
    for rho in (-0.8, 0.0, 0.8):
        *_, last = inpaint(
            ancestral, correlated(rho, VP()), VP(), x0, mask, num_steps=60, generator=seeded()
        )
        means.append(float(last.x[..., 1].mean()))
    assert means[0] < -0.4
    assert abs(means[1]) < 0.1
    # The truth is 1.2: what is drawn saw the known pixel through noise alone.
    assert 0.4 < means[2] < 1.1


# Invariances


@each
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score", "velocity"])
@pytest.mark.parametrize("schedule", [VP(), FEW, Straight()], ids=["VP", "discrete", "straight"])
def test_outside_of_the_mask_nothing_is_touched(sampler, kind, schedule):
    x0 = (3 * X0).float()
    x0[0, 0, 0, :2] = torch.tensor([0.1, -1e-30])
    times = [25, 10, 3] if schedule is FEW else [0.9, 0.4, 0.1]
    *_, last = inpaint(
        sampler, wild, schedule, x0, MASK, times=times, parameterisation=kind, generator=seeded()
    )
    outside = (~MASK).expand_as(x0)
    assert torch.equal(last.x[outside], x0[outside])
    assert not torch.isclose(last.x[~outside], x0[~outside], atol=1e-3).any()
    assert last.x.dtype == torch.float32
    assert last.x is last.x0


@each
def test_limits_hold_inside_and_spare_the_outside(sampler):
    x0 = 5 * X0
    *_, before, last = inpaint(
        sampler, wild, VP(), x0, MASK, num_steps=5, clip=(-0.2, 0.3), generator=seeded()
    )
    inside = MASK.expand_as(x0)
    assert before.x0[inside].min() >= -0.2
    assert before.x0[inside].max() <= 0.3
    assert torch.equal(last.x[~inside], x0[~inside])


@each
def test_a_mask_of_everything_is_image_to_image(sampler):
    whole = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    for a, b in zip(
        inpaint(sampler, wild, VP(), X0, whole, times=HALF, generator=seeded()),
        image_to_image(sampler, wild, VP(), X0, times=HALF, generator=seeded()),
        strict=True,
    ):
        assert torch.allclose(a.x, b.x, atol=1e-11)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 1, 4, 5), (1, 2, 4, 5), (1, 1, 4, 5)])
def test_a_mask_may_be_of_each_image_and_of_each_channel(shape):
    mask = torch.rand(shape, generator=seeded()) < 0.4
    *_, last = inpaint(ddim, wild, VP(), X0, mask, num_steps=3, generator=seeded(1))
    assert torch.equal(last.x == X0, ~mask.expand_as(X0))


def test_little_noise_changes_little():
    predict, image = correlated(0.3, VP()), normal(200, 1, 1, 2)
    away = []
    for t in (0.05, 0.3, 1.0):
        times = [t, 0.7 * t, 0.3 * t]
        *_, last = image_to_image(ddim, predict, VP(), image, times=times, generator=seeded())
        away.append(float((last.x - image).square().mean()))
    assert away[0] < 0.05
    assert away[0] < away[1] < away[2]


def test_neither_the_image_nor_the_options_are_changed():
    image, mask, options = X0.clone(), MASK.clone(), {"num_steps": 3, "clip": (-1.0, 1.0)}
    list(inpaint(ddim, wild, VP(), image, mask, **options))
    assert torch.equal(image, X0)
    assert torch.equal(mask, MASK)
    assert options == {"num_steps": 3, "clip": (-1.0, 1.0)}


def test_the_generator_decides_all():
    for run in (
        lambda g: image_to_image(ancestral, wild, VP(), X0, times=HALF, generator=g),
        lambda g: inpaint(ancestral, wild, VP(), X0, MASK, num_steps=3, generator=g),
    ):
        ends = [list(run(seeded(seed)))[-1].x for seed in (0, 0, 1)]
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])


def test_a_coarse_mask_has_every_place_with_a_pixel():
    mask = torch.rand(3, 1, 8, 12, generator=seeded()) < 0.1
    got = coarse(mask, (4, 3))
    assert got.shape == (3, 1, 4, 3)
    for b in range(3):
        for y in range(4):
            for x in range(3):
                part = mask[b, 0, 2 * y : 2 * y + 2, 4 * x : 4 * x + 4]
                assert got[b, 0, y, x] == part.any()
    assert 0 < got.sum() < got.numel()


# An independent reference


def test_the_first_x_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(30, trained_betas=FEW.beta.numpy())
    scheduler.alphas_cumprod = FEW.alpha_bars
    want = scheduler.add_noise(X0, noise(X0), torch.tensor([17]))
    state, *_ = image_to_image(ddim, wild, FEW, X0, times=[17, 3], generator=seeded())
    assert torch.allclose(state.x, want, atol=1e-12)


# Bad input

SHORT = {"num_steps": 3}


@pytest.mark.parametrize(
    ("error", "name", "mask", "options"),
    [
        *(
            (ValueError, "mask", mask, SHORT)
            for mask in (
                MASK[0],
                MASK[0, 0],
                MASK[..., :4],
                MASK[:, :, :3],
                MASK.expand(2, 1, 4, 5),
                MASK.expand(1, 3, 4, 5),
                torch.ones(1, 1, 1, 1, dtype=torch.bool),
                torch.ones(1, 1, dtype=torch.bool),
                torch.ones(3, 2, 4, dtype=torch.bool),
                MASK & False,
                torch.cat([MASK, MASK, MASK & False]),
                MASK[None],
            )
        ),
        *((TypeError, "mask", mask, SHORT) for mask in (MASK.float(), MASK.long(), MASK.byte())),
        (ValueError, "num_steps", MASK, {}),
        (ValueError, "num_steps", MASK, {"num_steps": 0}),
        (ValueError, "times", MASK, {"times": []}),
        (ValueError, "times", MASK, {"times": [0.5, 0.6]}),
        (ValueError, "t in", MASK, {"times": [1.5, 0.6]}),
        (ValueError, "clip", MASK, SHORT | {"clip": (1.0, -1.0)}),
        (ValueError, "parameterisation", MASK, SHORT | {"parameterisation": "x_0"}),
    ],
)
def test_what_does_not_fit_is_named_at_once(hook_off, error, name, mask, options):
    with pytest.raises(error, match=f"^expected .*{name}"):
        inpaint(ddim, wild, VP(), X0, mask, **options)


def test_images_of_whole_numbers_are_refused(hook_off):
    with pytest.raises(TypeError, match="expected x0"):
        image_to_image(ddim, wild, VP(), X0.long(), num_steps=3)


@each
def test_a_start_of_ones_own_is_refused(sampler):
    for call in (
        lambda: image_to_image(sampler, wild, VP(), X0, num_steps=3, start=X0),
        lambda: inpaint(sampler, wild, VP(), X0, MASK, num_steps=3, start=X0),
    ):
        with pytest.raises(TypeError, match="start"):
            call()
