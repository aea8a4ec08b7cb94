import math

import pytest
import torch
from tolerance import assert_same
from torch import nn

from aigc_lib.layers.mlp import MLP

C, HIDDEN = 4, 6

BENDS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: x * (x > 0),
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
}


def noisy(activation, bias):
    layer = MLP(C, HIDDEN, activation=activation, bias=bias).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", list(BENDS))
def test_it_is_its_formula(activation, bias):
    layer, x = noisy(activation, bias), torch.randn(2, 3, C, dtype=torch.float64)

    def linear(part, x):
        y = x @ part.weight.T
        return y + part.bias if bias else y

    hidden = linear(layer.up, x)
    bend = BENDS[activation]
    if activation == "swiglu":
        hidden = bend(linear(layer.gate, x)) * hidden
    else:
        hidden = bend(hidden)
        assert layer.gate is None
    assert torch.allclose(layer(x), linear(layer.down, hidden), atol=1e-12)


@pytest.mark.parametrize("activation", list(BENDS))
def test_each_token_is_on_its_own(activation):
    layer, x = noisy(activation, True), torch.randn(5, C, dtype=torch.float64)
    assert torch.allclose(layer(x)[2], layer(x[2]), atol=1e-12)
    assert layer(x[:0]).shape == (0, C)


@pytest.mark.parametrize(
    ("activation", "theirs"),
    [("gelu", nn.GELU()), ("gelu_tanh", nn.GELU("tanh")), ("relu", nn.ReLU())],
)
def test_it_agrees_with_a_chain_of_torch_modules(activation, theirs):
    ours = noisy(activation, True)
    chain = nn.Sequential(nn.Linear(C, HIDDEN), theirs, nn.Linear(HIDDEN, C)).double()
    chain.load_state_dict(
        {f"{i}.{k}": v for i, m in ((0, ours.up), (2, ours.down)) for k, v in m.named_parameters()}
    )
    assert_same(ours, chain, [torch.randn(7, C, dtype=torch.float64)])


def test_a_gate_of_two_thirds_costs_the_same():
    gated, plain = MLP(96, 256, activation="swiglu"), MLP(96, 384)
    count = [sum(p.numel() for p in m.parameters()) for m in (gated, plain)]
    assert count[0] == count[1]


@pytest.mark.parametrize("activation", list(BENDS))
def test_it_fits_a_function_that_no_linear_map_does(activation):
    x = torch.linspace(-2, 2, 64)[:, None]
    y = x.abs()
    layer = MLP(1, 16, activation=activation, bias=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05, fused=True)
    for _ in range(100):
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 < (y - y.mean()).square().mean().item() / 10


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"width": 0}, "width"),
        ({"hidden": 0}, "hidden"),
        ({"activation": "tanh"}, "activation .*'gelu', 'gelu_tanh', 'relu', 'swiglu'"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        MLP(**{"width": 2, "hidden": 3} | settings)
