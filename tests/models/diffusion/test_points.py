import pytest
import torch
from noise import filled, normal

from aigc_lib.models.diffusion.points import PointNet


def noisy(**sizes):
    return filled(PointNet(**{"dims": 2, "width": 6, "depth": 2} | sizes))


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_the_model_written_out(depth):
    model = noisy(depth=depth)
    w, x, condition = dict(model.named_parameters()), normal(5, 2), normal(5, seed=1)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def silu(x):
        return x / (1 + torch.exp(-x))

    angles = 30 * condition[:, None] * 10_000 ** (-torch.arange(0, 6, 2).double() / 6)
    p = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    h = linear(x, "first")
    for i in range(depth):
        inner = silu(linear(h, f"inner.{i}") + linear(p, f"tell.{i}"))
        h = h + linear(inner, f"outer.{i}")
    assert len(w) == 4 + 5 * depth
    assert torch.allclose(model(x, condition), linear(silu(h), "last"), atol=1e-12)


@torch.no_grad()
def test_the_scale_multiplies_the_condition():
    x, condition = normal(5, 2), normal(5, seed=1)
    one, two = noisy(scale=7.0), noisy(scale=14.0)
    assert torch.allclose(one(x, 2 * condition), two(x, condition), atol=1e-12)
    assert not torch.allclose(one(x, condition), two(x, condition))


def test_a_fresh_net_gives_zeros():
    assert (PointNet(3)(torch.randn(4, 3), torch.rand(4)) == 0).all()


@torch.no_grad()
def test_each_point_is_worked_on_alone():
    model, x, condition = noisy(), normal(5, 2), normal(5, seed=1)
    whole, order = model(x, condition), torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(model(x[order], condition[order]), whole[order], atol=1e-12)
    assert torch.allclose(model(x[:1], condition[:1]), whole[:1], atol=1e-12)
    assert not torch.allclose(model(x, condition.flip(0)), whole, atol=1e-2)


def test_a_condition_may_be_more_exact_than_the_points():
    model = PointNet(2)
    assert model(torch.ones(3, 2), normal(3)).dtype == torch.float32


def test_every_parameter_has_a_gradient():
    model = noisy()
    (model(normal(5, 2), normal(5, seed=1)) * normal(5, 2, seed=2)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-6, name


def test_it_learns_eight_answers_at_one_point():
    model, x = PointNet(2, width=32), torch.ones(8, 2)
    condition, wanted = torch.linspace(-3, 3, 8), normal(8, 2).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = (model(x, condition) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, 0) for name in ("dims", "width", "depth", "scale")), ("width", 7), ("depth", 1.5)],
)
def test_a_size_out_of_range_is_named(hook_off, name, value):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        PointNet(**{"dims": 2} | {name: value})


@pytest.mark.parametrize(
    ("name", "x", "condition"),
    [
        ("x", (5, 3), (5,)),
        ("x", (2,), (2,)),
        ("condition", (5, 2), (4,)),
        ("condition", (5, 2), (5, 1)),
    ],
)
def test_input_of_another_shape_is_named(hook_off, name, x, condition):
    with pytest.raises(ValueError, match=f"expected {name} "):
        PointNet(2)(torch.zeros(x), torch.zeros(condition))
