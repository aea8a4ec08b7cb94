import math

import pytest
import torch
from torch import nn

from aigc_lib.models.text.gpt import GPT, GPTConfig
from aigc_lib.optimizers import Together, matrices_by_muon


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def steps(model, optimizer, number):
    """Plain steps on one batch; returns the losses."""
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    losses = []
    for _ in range(number):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def parted(model, kind=torch.optim.AdamW):
    first, *others = model.parameters()
    return Together(kind([first], lr=0.01), torch.optim.AdamW(others, lr=0.02))


def test_optimizers_together_step_as_each_would_alone():
    whole, other = net(), net()
    first, *others = whole.parameters()
    groups = [{"params": [first], "lr": 0.01}, {"params": others, "lr": 0.02}]
    assert steps(other, parted(other), 5) == steps(whole, torch.optim.AdamW(groups), 5)
    for a, b in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_rate_set_in_a_group_reaches_its_optimizer_after_loading_too():
    model = net()
    together = parted(model)
    for _ in range(2):
        assert [group["lr"] for group in together.param_groups] == [0.01, 0.02]
        together.param_groups[1]["lr"] = 0.5
        assert together.optimizers[1].param_groups[0]["lr"] == 0.5
        together.param_groups[1]["lr"] = 0.02
        together.load_state_dict(together.state_dict())


def test_the_state_of_every_optimizer_is_kept():
    model = net()
    together = parted(model, torch.optim.Muon)
    steps(model, together, 3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.utils._pytree.tree_map(
        lambda x: x.clone() if isinstance(x, torch.Tensor) else x, together.state_dict()
    )
    losses = steps(model, together, 3)
    model.load_state_dict(weights)
    resumed = parted(model, torch.optim.Muon)
    resumed.load_state_dict(state)
    assert steps(model, resumed, 3) == losses


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_are_forgotten_or_zero(to_none):
    model = net()
    together = parted(model)
    steps(model, together, 1)
    together.zero_grad(set_to_none=to_none)
    for p in model.parameters():
        assert (p.grad is None) if to_none else (p.grad == 0).all()


def test_optimizers_together_need_parameters_of_their_own():
    parameters = list(net().parameters())
    one, other = (torch.optim.SGD(parameters[a:b], lr=1) for a, b in ((0, 2), (1, 4)))
    for wrong in ([], [one, one], [one, other]):
        with pytest.raises(ValueError, match="parameters of their own"):
            Together(*wrong)


def small_gpt(**choices):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "context": 8, "width": 8, "num_layers": 2, "num_heads": 2}
    return GPT(GPTConfig(**sizes, **choices)).double()


@pytest.mark.parametrize(
    "choices", [{}, {"tied": False, "bias": True}, {"positions": "learned", "activation": "swiglu"}]
)
def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_every_other_parameter(choices):
    model = small_gpt(**choices)
    together = matrices_by_muon(model, muon_lr=0.5, adamw_lr=0.25)
    muon, adamw = together.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon, by_adamw = (
        [names[id(p)] for group in o.param_groups for p in group["params"]] for o in (muon, adamw)
    )
    assert sorted(by_muon + by_adamw) == sorted(names.values())
    assert sorted(by_muon) == sorted(
        name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    )
    assert "embedding.weight" in by_adamw
    assert not any(word in name for name in by_muon for word in ("embedding", "positions", "head"))
    assert [group["lr"] for group in together.param_groups] == [0.5, 0.25]
    assert [group["weight_decay"] for group in together.param_groups] == [0.0, 0.0]
    assert muon.param_groups[0]["momentum"] == 0.95
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)


def test_a_step_of_muon_is_nearly_orthogonal_and_one_of_adamw_a_sign():
    model = small_gpt()
    optimizer = matrices_by_muon(model, muon_lr=0.02, adamw_lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(11, (4, 8))
    model(tokens).logsumexp(-1).square().mean().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        change = p.detach() - before[name]
        if name.startswith("blocks.") and p.ndim == 2:
            # Five rounds of Newton and Schulz bring most singular values near 1, not those that
            # were tiny; with more rows than columns the rate grows by the root of their ratio.
            scale = 0.02 * math.sqrt(max(1, p.shape[0] / p.shape[1]))
            values = torch.linalg.svdvals(change) / scale
            assert 0.6 < values.median() <= values.max() < 1.3, name
        else:
            clear = p.grad.abs() > 1e-5
            assert torch.allclose(change[clear], -1e-3 * p.grad[clear].sign(), rtol=1e-2), name


@pytest.mark.parametrize("blocks", [None, 3, [nn.Linear(3, 1)], nn.Sequential(nn.LayerNorm(3))])
def test_a_model_without_blocks_or_matrices_in_them_is_refused(blocks):
    model = nn.Linear(3, 1)
    if blocks is not None:
        model.blocks = blocks
    with pytest.raises(ValueError, match="`blocks`, got Linear"):
        matrices_by_muon(model)
