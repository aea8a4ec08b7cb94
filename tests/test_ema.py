import math

import pytest
import torch
from torch import nn

from aigc_lib.ema import EMA


class Net(nn.Module):
    """Parameters of two dtypes, one of them shared, and a buffer of floats and one of counts."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2, bias=False).double()
        self.tied = self.a.weight
        self.norm = nn.BatchNorm1d(2)


def disturb(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
        for b in model.buffers():
            b.add_(1)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_average_moves_from_the_first_update_on(decay):
    model = Net()
    average = EMA(model, decay)
    assert average.decay == decay
    expected = [p.detach().double().clone() for p in model.parameters()]
    for _ in range(4):
        disturb(model)
        average.update(model)
        expected = [
            decay * m + (1 - decay) * p.detach().double()
            for m, p in zip(expected, model.parameters(), strict=True)
        ]
        for mean, right in zip(average.model.parameters(), expected, strict=True):
            assert torch.allclose(mean.double(), right, rtol=1e-5, atol=1e-6)
        for mean, now in zip(average.model.buffers(), model.buffers(), strict=True):
            assert torch.equal(mean, now)


def test_decay_zero_is_the_model_bit_for_bit():
    model = Net()
    average = EMA(model, 0)
    for _ in range(2):
        disturb(model)
        average.update(model)
    for name, value in model.state_dict().items():
        assert torch.equal(average.model.state_dict()[name], value)


def test_it_starts_at_a_copy_that_the_model_does_not_move():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average = EMA(model, 0.9)
    disturb(model)
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_averaged_model_is_in_eval_mode_without_gradients_and_the_model_as_it_was():
    model = Net()
    average = EMA(model, 0.9)
    average.update(model)
    assert not any(part.training for part in average.model.modules())
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert type(average.model) is Net


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(nn.Linear(1, 1), decay)


def test_a_model_of_other_parameters_is_refused():
    average = EMA(nn.Linear(3, 2), 0.9)
    with pytest.raises(ValueError, match="parameters"):
        average.update(nn.Linear(3, 2, bias=False))


def test_a_model_of_more_parameters_is_refused_too():
    average = EMA(nn.Linear(3, 2, bias=False), 0.9)
    with pytest.raises(ValueError, match="expected a model of 1 parameters, got 2"):
        average.update(nn.Linear(3, 2))
