import math

import pytest
import torch
import torch.distributions as D

from aigc_lib.data import toy2d
from aigc_lib.models.density.mdn import AutoregressiveMDN, MDNConfig


def noisy(**sizes):
    model = AutoregressiveMDN(MDNConfig(**sizes)).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return model


def test_the_density_integrates_to_one():
    model = noisy(components=3, hidden=5)
    ticks = torch.linspace(-12, 12, 801, dtype=torch.float64)
    x = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        mass = sum(model(part).exp().sum() for part in x.split(200_000)) * 0.03**2
    assert float(mass) == pytest.approx(1, abs=1e-6)


def test_zero_output_weights_give_a_mixture_that_can_be_computed_by_hand():
    model = AutoregressiveMDN(MDNConfig(components=2, hidden=3)).double()
    with torch.no_grad():
        model.w3.zero_()
        model.b3.copy_(torch.tensor([[0.0, 0.0, -1.0, 1.0, 0.0, 0.0]] * 2))
    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64)

    def one(value):
        return 0.5 * sum(
            math.exp(-((value - mu) ** 2) / 2) / math.sqrt(2 * math.pi) for mu in (-1, 1)
        )

    assert model(x).item() == pytest.approx(math.log(one(0.3)) + math.log(one(-0.8)), abs=1e-12)


def test_a_conditional_sees_only_the_coordinates_before_it():
    model = noisy(dims=4, components=2, hidden=6)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for d in range(4):
        (mean,) = (part[:, d].sum() for part in model._mixtures(x)[1:2])
        (gradient,) = torch.autograd.grad(mean, x)
        assert gradient[:, d:].abs().max() == 0
        assert (gradient[:, :d] != 0).all()


def test_each_point_is_scored_on_its_own():
    model, x = noisy(), torch.randn(6, 2, dtype=torch.float64)
    order = torch.randperm(6)
    assert torch.allclose(model(x)[order], model(x[order]), atol=1e-12)


def test_the_log_density_agrees_with_torch_distributions():
    model, x = noisy(dims=3, components=4), torch.randn(7, 3, dtype=torch.float64)
    log_pi, mu, log_sigma = model._mixtures(x)
    mixture = D.MixtureSameFamily(D.Categorical(logits=log_pi), D.Normal(mu, log_sigma.exp()))
    assert torch.allclose(model(x), mixture.log_prob(x).sum(1), atol=1e-12)


def test_samples_follow_the_density(generator):
    model = noisy(components=2, hidden=4)
    x = model.sample(20_000, generator)
    log_p = model(x).detach()
    ticks = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        log_q = model(grid)
    mass = log_q.exp() * 0.03**2
    entropy = float(-(mass * log_q).sum())
    assert -float(log_p.mean()) == pytest.approx(entropy, abs=4 * float(log_p.std()) / 140)
    mean = (mass[:, None] * grid).sum(0)
    assert x.mean(0).tolist() == pytest.approx(mean.tolist(), abs=4 * float(x.std()) / 140)
    product = float((mass * grid.prod(1)).sum())
    assert float(x.prod(1).mean()) == pytest.approx(product, abs=4 * float(x.prod(1).std()) / 140)


def test_the_generator_given_draws_all_that_is_random():
    model, before = noisy(components=3, hidden=4), torch.get_rng_state()
    one, two = (model.sample(50, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert not torch.equal(model.sample(50), one)


@pytest.mark.parametrize("components", [1, 2, 5])
def test_fresh_means_are_spread_out_over_equal_components(components):
    model = AutoregressiveMDN(MDNConfig(dims=3, components=components))
    logits, mu, log_sigma = model.b3.detach().unflatten(1, (3, components)).unbind(1)
    assert logits.count_nonzero() == log_sigma.count_nonzero() == 0
    expected = {1: [0.0], 2: [-2.0, 2.0], 5: [-2.0, -1.0, 0.0, 1.0, 2.0]}[components]
    assert mu.tolist() == [expected] * 3


def test_fresh_weights_are_as_large_as_their_layer_needs():
    model = AutoregressiveMDN(MDNConfig(dims=4, components=20, hidden=50))
    for weight, std in ((model.w1, 4**-0.5), (model.w2, 50**-0.5), (model.w3, 0.1 * 50**-0.5)):
        assert weight.std().item() == pytest.approx(std, rel=0.1)
        assert weight.mean().abs() < 0.1 * std
    assert model.b1.count_nonzero() == model.b2.count_nonzero() == 0


def test_it_overfits_eight_points(generator):
    points = toy2d.moons().sample(8, generator)
    model = AutoregressiveMDN(MDNConfig(hidden=32))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(600):
        optimizer.zero_grad()
        loss = -model(points).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < -0.5  # the truth scores about 1.8; spikes that sharp are unstable


def test_dtype_and_device_follow_the_weights():
    model = AutoregressiveMDN(MDNConfig()).double()
    assert model.sample(3).dtype == torch.float64


@pytest.mark.parametrize("name", ["dims", "components", "hidden"])
def test_a_size_below_one_is_named(name, hook_off):
    with pytest.raises(ValueError, match=name):
        MDNConfig(**{name: 0})


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda model: model(torch.zeros(4, 3))),
        ("x", lambda model: model(torch.zeros(2))),
        ("num_samples", lambda model: model.sample(0)),
    ],
)
def test_bad_input_is_named(name, call, hook_off):
    with pytest.raises(ValueError, match=f"expected {name}"):
        call(AutoregressiveMDN(MDNConfig()))
