import math
from functools import partial

import pytest
import torch
import torch.distributions as D

from aigc_lib.objectives.likelihood import (
    bernoulli_log_likelihood,
    discretized_logistic_log_likelihood,
    gaussian_log_likelihood,
)

SHAPE = (5, 2, 3, 4)
ALL = {
    "bernoulli": bernoulli_log_likelihood,
    "gaussian": partial(gaussian_log_likelihood, log_var=-0.7),
    "logistic": partial(discretized_logistic_log_likelihood, log_scale=-1.2, num_bins=9),
}
each = pytest.mark.parametrize("name", list(ALL))


def normal(*shape, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)


def pixels(*shape, levels=9):
    draw = torch.Generator().manual_seed(7)
    return torch.randint(levels, shape, generator=draw).double() / (levels - 1)


def sigmoid(a):
    return 0.5 * (1 + math.tanh(a / 2))


# Closed forms and brute force


def test_a_bernoulli_is_the_sum_of_the_logarithms_of_its_chances():
    x, logits = pixels(2, 3, levels=2), normal(2, 3, scale=2)
    got = bernoulli_log_likelihood(x, logits)
    for b in range(2):
        want = sum(
            math.log(sigmoid(float(z)) if one else 1 - sigmoid(float(z)))
            for one, z in zip(x[b].tolist(), logits[b], strict=True)
        )
        assert float(got[b]) == pytest.approx(want, abs=1e-13)


def test_the_probabilities_of_all_binary_images_sum_to_one():
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 6)
    logits = normal(6, scale=3).expand(64, 6)
    assert float(bernoulli_log_likelihood(images, logits).exp().sum()) == pytest.approx(
        1, abs=1e-13
    )


def test_a_grey_pixel_scores_the_mean_over_its_binary_draws():
    logits = normal(1, 1, scale=2)
    zero, one = (bernoulli_log_likelihood(torch.full_like(logits, v), logits) for v in (0.0, 1.0))
    grey = bernoulli_log_likelihood(torch.full_like(logits, 0.3), logits)
    assert float(grey) == pytest.approx(float(0.7 * zero + 0.3 * one), abs=1e-14)


def test_a_gaussian_density_integrates_to_one():
    ticks = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None]
    for log_var in (-1.0, 0.5, 2.0):
        density = gaussian_log_likelihood(ticks, torch.full_like(ticks, 1.5), log_var).exp()
        assert float(density.sum()) * 0.01 == pytest.approx(1, abs=1e-10)


def test_a_gaussian_density_can_exceed_one_where_a_probability_cannot():
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    want = -0.5 * math.log(2 * math.pi) + 0.5 * 10
    assert want > 0
    assert float(gaussian_log_likelihood(x, x, -10.0)) == pytest.approx(want, abs=1e-13)
    assert float(discretized_logistic_log_likelihood(x, x, -10.0, num_bins=3)) <= 0


@pytest.mark.parametrize("num_bins", [2, 3, 9, 256])
@pytest.mark.parametrize("log_scale", [-9.0, -3.0, 0.0, 2.5])
@pytest.mark.parametrize("mean", [-0.8, 0.0, 0.33, 1.0, 4.0])
def test_the_bins_of_a_logistic_share_out_all_of_the_probability(num_bins, log_scale, mean):
    x = (torch.arange(num_bins, dtype=torch.float64) / (num_bins - 1))[:, None]
    log_p = discretized_logistic_log_likelihood(
        x, torch.full_like(x, mean), log_scale, num_bins=num_bins
    )
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    cut = [sigmoid(((k + 0.5) / (num_bins - 1) - mean) * math.exp(-log_scale)) for k in (0, 1)]
    assert float(log_p[0].exp()) == pytest.approx(cut[0], rel=1e-9, abs=1e-15)
    if num_bins > 2 and cut[1] - cut[0] > 1e-6:
        assert float(log_p[1].exp()) == pytest.approx(cut[1] - cut[0], rel=1e-9)


def test_a_pixel_stands_for_the_level_nearest_to_it():
    x = torch.tensor([[0.0], [0.1], [0.15], [0.26], [0.99]], dtype=torch.float64)
    level = torch.tensor([[0.0], [0.0], [0.25], [0.25], [1.0]], dtype=torch.float64)
    score = partial(discretized_logistic_log_likelihood, log_scale=-1.0, num_bins=5)
    mean = torch.full_like(x, 0.4)
    assert torch.equal(score(x, mean), score(level, mean))


# Invariances


@each
def test_an_example_has_one_number_the_sum_over_its_pixels(name):
    x, outputs = pixels(*SHAPE, levels=2), normal(*SHAPE)
    got = ALL[name](x, outputs)
    assert got.shape == (5,)
    single = ALL[name](x.reshape(-1, 1), outputs.reshape(-1, 1)).reshape(SHAPE)
    assert torch.allclose(got, single.sum((1, 2, 3)), atol=1e-12)
    assert torch.allclose(ALL[name](x.flatten(1), outputs.flatten(1)), got, atol=1e-12)


@each
def test_an_example_is_scored_on_its_own(name):
    x, outputs = pixels(*SHAPE, levels=2), normal(*SHAPE)
    order = torch.tensor([3, 0, 4, 2, 1])
    got = ALL[name](x, outputs)
    assert torch.allclose(ALL[name](x[order], outputs[order]), got[order], atol=1e-13)
    assert torch.allclose(ALL[name](x[:2], outputs[:2]), got[:2], atol=1e-13)
    assert ALL[name](x[:0], outputs[:0]).shape == (0,)


def test_black_and_white_may_change_places():
    x, outputs = pixels(4, 6, levels=2), normal(4, 6)
    want = bernoulli_log_likelihood(x, outputs)
    assert torch.allclose(bernoulli_log_likelihood(1 - x, -outputs), want, atol=1e-13)
    score = ALL["logistic"]
    x = pixels(4, 6)
    assert torch.allclose(score(1 - x, 1 - outputs), score(x, outputs), atol=1e-13)


@pytest.mark.parametrize(
    ("score", "name"),
    [(gaussian_log_likelihood, "log_var"), (discretized_logistic_log_likelihood, "log_scale")],
)
def test_one_spread_for_all_pixels_is_that_spread_at_each(score, name):
    x, outputs = pixels(*SHAPE), normal(*SHAPE)
    learned = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    each_pixel = torch.full(SHAPE, -0.4, dtype=torch.float64, requires_grad=True)
    want = score(x, outputs, each_pixel)
    assert torch.allclose(score(x, outputs, learned), want, atol=1e-13)
    assert torch.allclose(score(x, outputs, -0.4), want, atol=1e-13)
    (one,) = torch.autograd.grad(score(x, outputs, learned).sum(), learned)
    (many,) = torch.autograd.grad(want.sum(), each_pixel)
    assert float(one) == pytest.approx(float(many.sum()), abs=1e-11)


# Independent references


def test_bernoulli_and_gaussian_agree_with_torch_distributions():
    x, outputs, log_var = pixels(*SHAPE, levels=2), normal(*SHAPE), normal(*SHAPE, seed=1)
    coins = D.Independent(D.Bernoulli(logits=outputs), 3)
    assert torch.allclose(bernoulli_log_likelihood(x, outputs), coins.log_prob(x), atol=1e-12)
    bells = D.Independent(D.Normal(outputs, log_var.mul(0.5).exp()), 3)
    got = gaussian_log_likelihood(x, outputs, log_var)
    assert torch.allclose(got, bells.log_prob(x), atol=1e-12)


def test_the_logistic_agrees_with_differences_of_torch_distributions():
    x, mean, log_scale = pixels(*SHAPE), normal(*SHAPE), normal(*SHAPE, seed=1) - 1
    base = D.Uniform(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    maps = [D.SigmoidTransform().inv, D.AffineTransform(mean, log_scale.exp())]
    logistic = D.TransformedDistribution(base, maps)
    above = torch.where(x == 1, 1.0, logistic.cdf(x + 1 / 16))
    below = torch.where(x == 0, 0.0, logistic.cdf(x - 1 / 16))
    want = (above - below).log().flatten(1).sum(1)
    got = discretized_logistic_log_likelihood(x, mean, log_scale, num_bins=9)
    assert torch.allclose(got, want, atol=1e-10)


@each
def test_the_gradient_is_that_of_finite_differences(name):
    x, outputs = pixels(2, 3, levels=3), normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(partial(ALL[name], x), (outputs,))


def test_the_gradient_in_the_spread_is_that_of_finite_differences():
    x, outputs, spread = pixels(2, 3), normal(2, 3), normal(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(partial(gaussian_log_likelihood, x, outputs), (spread,))
    logistic = partial(discretized_logistic_log_likelihood, x, outputs, num_bins=9)
    assert torch.autograd.gradcheck(lambda s: logistic(log_scale=s), (spread,))


# Behaviour


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_a_bernoulli_survives_extreme_logits(size):
    logits = torch.tensor([[size], [-size], [size], [-size]], requires_grad=True)
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    got = bernoulli_log_likelihood(x, logits)
    assert got.tolist() == pytest.approx([0, 0, -size, -size], abs=1e-6, rel=1e-6)
    (slope,) = torch.autograd.grad(got.sum(), logits)
    assert slope.flatten().tolist() == pytest.approx([0, 0, -1, 1], abs=1e-6)


@pytest.mark.parametrize("log_scale", [-200.0, -60.0, -20.0, 0.0, 20.0, 60.0, 200.0])
@pytest.mark.parametrize("mean", [-50.0, 0.0, 0.5, 1.0, 50.0])
def test_a_logistic_survives_extreme_scales(log_scale, mean):
    x = torch.tensor([[0.0], [0.5], [1.0]])
    mu = torch.full((3, 1), mean, requires_grad=True)
    spread = torch.full((3, 1), log_scale, requires_grad=True)
    got = discretized_logistic_log_likelihood(x, mu, spread, num_bins=3)
    slopes = torch.autograd.grad(got.sum(), (mu, spread))
    assert all(value.isfinite().all() for value in (got, *slopes))
    assert (got <= 0).all()
    if log_scale == -60 and mean == 0.5:
        assert got.tolist() == pytest.approx([-0.25 * math.exp(60), 0, -0.25 * math.exp(60)])
    if log_scale == 60:
        want = [math.log(0.5), math.log(0.125) - 60, math.log(0.5)]
        assert got.tolist() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@each
def test_low_precision_is_computed_and_returned_in_float32(name, dtype):
    x, outputs = pixels(*SHAPE, levels=2).to(dtype), normal(*SHAPE).to(dtype)
    got = ALL[name](x, outputs)
    assert got.dtype == torch.float32
    want = ALL[name](x.double(), outputs.double())
    assert want.dtype == torch.float64
    assert torch.allclose(got.double(), want, rtol=1e-6, atol=1e-5)


@each
def test_the_best_answer_is_the_pixel_itself(name):
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    good, bad = torch.tensor([[-9.0, 9.0]]).double(), torch.tensor([[9.0, -9.0]]).double()
    if name != "bernoulli":
        good, bad = x, 1 - x
    assert float(ALL[name](x, good)) > float(ALL[name](x, bad)) + 0.5


@each
def test_where_looking_would_wait_a_wrong_pixel_gives_nan(name, hook_off):
    x, outputs = pixels(3, 4, levels=2), normal(3, 4)
    compiled = torch.compile(ALL[name], fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, outputs), ALL[name](x, outputs), atol=1e-12)
    x[1, 2] = math.nan
    got = compiled(x, outputs)
    assert got.isnan().tolist() == [False, True, False]
    if name != "gaussian":
        x[1, 2], x[2, 0] = 1.5, -0.1
        assert compiled(x, outputs).isnan().tolist() == [False, True, True]


@each
def test_nothing_waits_for_another_device(name):
    x = torch.empty(3, 4, device="meta")  # to look at a number of it is an error
    assert ALL[name](x, torch.empty_like(x)).shape == (3,)


# Bad input

X = torch.zeros(3, 4)
OUTPUT = {"bernoulli": "logits", "gaussian": "mean", "logistic": "mean"}


def pixels_with(value):
    x = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    x[1, 0] = value
    return x, torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        *(
            (ValueError, "x", partial(ALL[name], *pixels_with(value)))
            for name in ("bernoulli", "logistic")
            for value in (1.5, -0.25, math.inf, math.nan)
        ),
        *(
            (ValueError, "x", partial(ALL["gaussian"], *pixels_with(value)))
            for value in (math.nan, -math.inf, math.inf)
        ),
        *(
            (error, name, partial(ALL[kind], x, outputs))
            for kind, output in OUTPUT.items()
            for error, name, x, outputs in (
                (ValueError, output, X, torch.zeros(3, 5)),
                (ValueError, output, X, X[:1]),
                (ValueError, "x", X[0], X[0]),
                (ValueError, "x", X[0, 0], X[0, 0]),
                (TypeError, "x", X.byte(), X),
                (TypeError, output, X, X.long()),
            )
        ),
        *(
            (ValueError, name, partial(score, X, X, torch.zeros(shape)))
            for name, score in (
                ("log_var", gaussian_log_likelihood),
                ("log_scale", discretized_logistic_log_likelihood),
            )
            for shape in ((4,), (3, 1), (3,), (1,))
        ),
        (ValueError, "num_bins", lambda: discretized_logistic_log_likelihood(X, X, 0.0, 1)),
    ],
)
def test_bad_input_is_named(error, name, call, hook_off):
    with pytest.raises(error, match=rf"^expected .*\b{name}\b.*, got"):
        call()


def test_a_gaussian_takes_any_finite_number():
    x = torch.tensor([[2.0, -3.0]])
    assert ALL["gaussian"](x, torch.zeros(1, 2)).isfinite().all()


@pytest.mark.parametrize("log_var", [-95.0, -150.0, 60.0])
def test_a_gaussian_is_finite_at_its_mean_at_any_width(log_var):
    x = torch.tensor([[0.3, -0.7, 2.0]])
    width = torch.tensor(log_var, requires_grad=True)
    got = gaussian_log_likelihood(x, x, width)
    assert got.item() == pytest.approx(-1.5 * (math.log(2 * math.pi) + log_var), rel=1e-6)
    got.sum().backward()
    assert width.grad.item() == pytest.approx(-1.5)


def test_a_learned_width_of_what_is_always_met_stays_finite():
    x, width = torch.zeros(1, 3), torch.zeros((), requires_grad=True)
    descent = torch.optim.SGD([width], lr=1.0)
    for _ in range(150):
        loss = -gaussian_log_likelihood(x, x, width).sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert width.item() == pytest.approx(-225)
    assert math.isfinite(loss.item())


def test_an_excess_in_the_seventh_digit_is_seen_in_the_message():
    with pytest.raises(ValueError, match=r"x in \[0, 1\], got 1\.00000095"):
        bernoulli_log_likelihood(torch.tensor([[0.0, 1.000001]]), torch.zeros(1, 2))
