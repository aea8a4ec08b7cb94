import pytest
import torch
from tolerance import assert_same
from torch import nn

from aigc_lib.layers.norm import LayerNorm, RMSNorm

C = 6


def noisy(layer):
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    return layer


def tokens(*shape):
    return 3 * torch.randn(*shape, C, dtype=torch.float64) + 2


def test_a_fresh_layer_norm_gives_mean_zero_and_variance_one():
    y = LayerNorm(C, eps=0).double()(tokens(2, 3))
    assert torch.allclose(y.mean(2), torch.zeros(2, 3).double(), atol=1e-12)
    assert torch.allclose(y.var(2, correction=0), torch.ones(2, 3).double(), atol=1e-12)


def test_a_fresh_rms_norm_gives_mean_square_one_and_keeps_the_direction():
    x = tokens(2, 3)
    y = RMSNorm(C, eps=0).double()(x)
    assert torch.allclose(y.square().mean(2), torch.ones(2, 3).double(), atol=1e-12)
    assert torch.allclose(torch.cosine_similarity(x, y, 2), torch.ones(2, 3).double())


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_weight_bias_and_eps_enter_as_the_formula_says(eps):
    x, layer = tokens(4), noisy(LayerNorm(C, eps=eps))
    away = x - x.mean(1, keepdim=True)
    want = away / (away.square().mean(1, keepdim=True) + eps).sqrt() * layer.weight + layer.bias
    assert torch.allclose(layer(x), want, atol=1e-12)
    layer = noisy(RMSNorm(C, eps=eps))
    want = x / (x.square().mean(1, keepdim=True) + eps).sqrt() * layer.weight
    assert torch.allclose(layer(x), want, atol=1e-12)


def test_layer_norm_sees_neither_shift_nor_scale_and_rms_norm_no_scale():
    x = tokens(4)
    layer, rms = noisy(LayerNorm(C, eps=0)), noisy(RMSNorm(C, eps=0))
    assert torch.allclose(layer(5 * x + 7), layer(x), atol=1e-12)
    assert torch.allclose(rms(5 * x), rms(x), atol=1e-12)
    assert not torch.allclose(rms(x + 7), rms(x), atol=0.1)


@pytest.mark.parametrize("bias", [True, False])
def test_they_agree_with_those_of_torch(bias):
    ours, theirs = noisy(LayerNorm(C, bias=bias)), nn.LayerNorm(C, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    assert ours.eps == theirs.eps
    assert_same(ours, theirs, [tokens(2, 3)])
    ours, theirs = noisy(RMSNorm(C)), nn.RMSNorm(C, eps=1e-6).double()
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, [tokens(2, 3)])


@pytest.mark.parametrize("make", [LayerNorm, RMSNorm])
def test_a_width_below_one_is_refused(make):
    with pytest.raises(ValueError, match="width"):
        make(0)
